"""Reads SciFact in BEIR's layout and scores rankings as BEIR does."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FILES = ("corpus.jsonl", "queries.jsonl", "qrels.tsv", "evidence.jsonl")
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Paper:
    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Claim:
    """relevant: grade by paper. paper and spans: where people marked the evidence, characters of the paper's text."""

    text: str
    relevant: Mapping[str, int] = field(default_factory=dict)
    paper: str = ""
    spans: Sequence[tuple[int, int]] = ()

    def marked(self, start: int, end: int) -> bool:
        """Whether most of this span is marked, or it holds most of a marked one."""
        return any(2 * (min(end, e) - max(start, s)) > min(end - start, e - s) for s, e in self.spans)


@dataclass(frozen=True)
class Scores:
    ndcg: float
    recall_10: float
    recall_100: float


def missing(folder: Path) -> list[str]:
    return [name for name in FILES if not (folder / name).is_file()]


def papers(folder: Path) -> list[Paper]:
    rows = map(json.loads, (folder / "corpus.jsonl").read_text().splitlines())
    return [Paper(row["_id"], row["title"], row["text"]) for row in rows]


def claims(folder: Path) -> list[Claim]:
    """The test claims: those that qrels.tsv grades."""
    texts = {row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").read_text().splitlines())}
    grades: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        claim, paper, grade = line.split("\t")
        if int(grade) > 0:
            grades.setdefault(claim, {})[paper] = int(grade)
    return [Claim(texts[claim], relevant) for claim, relevant in grades.items()]


def evidence(folder: Path) -> list[Claim]:
    """One for each pair of a claim and a paper with evidence for or against it; its spans are those of every group of
    sentences that people marked."""
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in map(json.loads, (folder / "evidence.jsonl").read_text().splitlines()):
        for each in row["evidence"]:
            spans.setdefault((row["claim"], each["doc"]), []).extend((start, end) for start, end in each["spans"])
    return [Claim(text, paper=paper, spans=marked) for (text, paper), marked in spans.items()]


def score(ranking: Sequence[str], relevant: Mapping[str, int]) -> Scores:
    gained = sum(relevant.get(paper, 0) / math.log2(rank + 2) for rank, paper in enumerate(ranking[:10]))
    ideal = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(relevant.values(), reverse=True)[:10]))

    def recall(depth: int) -> float:
        return len(relevant.keys() & set(ranking[:depth])) / len(relevant)

    return Scores(gained / ideal, recall(10), recall(100))


def mean(scores: Sequence[Scores]) -> Scores:
    count = len(scores)
    return Scores(
        sum(each.ndcg for each in scores) / count,
        sum(each.recall_10 for each in scores) / count,
        sum(each.recall_100 for each in scores) / count,
    )


def interval(gains: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean, by bootstrap; the same every time."""
    chance = random.Random(0)
    means = sorted(sum(chance.choices(gains, k=len(gains))) / len(gains) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p99."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
