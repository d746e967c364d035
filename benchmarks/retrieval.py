"""`python -m benchmarks.retrieval`: how well and how fast documents are found, on SciFact, through rag's operations.

A platform of its own is started; every abstract goes in by rag.ingest and every claim is asked by rag.search, both over
NATS with the typed client. Documents are ranked by their best chunk. Citations: the sentences that rag.query would
quote, found by its own ranking in the gold document, without the words of the generating model, which do not change
them. SciFact (BEIR layout, with evidence.jsonl) is read from ../shared/data or from --data; without it nothing is
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import scifact
from benchmarks.bench import ROOT
from benchmarks.scifact import Claim, Paper, Scores
from cli.platform import Platform
from runtime.client import Client
from runtime.connection import connect
from runtime.identity import Identity
from subjects import gateway, rag
from workers.rag import answer

IN_FLIGHT = 6  # ingests at a time: keeps the embedding model busy
DEPTH = 100  # hits asked for where quality is measured: R@100
WARM_UP = 30
TENANT = "bench"
ANY_FREE_PORT = 0
PORTS = dict.fromkeys(("nats", "postgres", "valkey", "models"), ANY_FREE_PORT)
TARGETS = {"nDCG@10": 0.730, "R@10": 0.847, "R@100": 0.953}


@dataclass(frozen=True)
class Asking:
    """One caller of rag."""

    client: Client
    identity: Identity

    async def ingest(self, paper: Paper) -> int:
        message = rag.Ingest(
            text=paper.text,
            title=paper.title,
            source_id=paper.id,
            metadata={"paper": paper.id},
        )
        return (await self.client.call(rag.INGEST, message, identity=self.identity)).chunks

    async def search(self, message: rag.Search) -> tuple[rag.SearchResult, float]:
        """The result, and how many milliseconds it took from here."""
        started = time.perf_counter()
        result = await self.client.call(rag.SEARCH, message, identity=self.identity)
        return result, (time.perf_counter() - started) * 1000

    async def embed(self, texts: list[str]) -> list[bytes]:
        message = gateway.Embed(input=texts, encoding="f32")  # at most 64, and a paper has at most 48 sentences here
        return (await self.client.call(gateway.EMBED, message, identity=self.identity)).vectors


async def fill(asking: Asking, papers: list[Paper]) -> None:
    """Ingest all papers and print how fast."""
    chunks = 0
    waiting = iter(papers)

    async def work() -> None:
        nonlocal chunks
        for paper in waiting:
            made = await asking.ingest(paper)
            chunks += made

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    took = time.perf_counter() - started
    print(f"ingested {len(papers)} papers, {chunks} chunks in {took:.0f} s: {chunks / took:.1f} chunks/s", flush=True)


async def quality(asking: Asking, claims: list[Claim]) -> None:
    """Print nDCG@10, R@10 and R@100 of each mode, and hybrid against the better single side, claim by claim."""
    scores: dict[str, list[Scores]] = {"hybrid": [], "text": [], "vector": []}
    for claim in claims:
        for mode, found in scores.items():
            message = rag.Search.model_validate({"query": claim.text, "mode": mode, "top_k": DEPTH, "cache": "off"})
            result, _ = await asking.search(message)
            ranking = list(dict.fromkeys(hit.source_id for hit in result.results))
            found.append(scifact.score(ranking, claim.relevant))
    means = {mode: scifact.mean(found) for mode, found in scores.items()}
    for mode, mean in means.items():
        print(f"{mode:7} nDCG@10 {mean.ndcg:.4f}   R@10 {mean.recall_10:.4f}   R@100 {mean.recall_100:.4f}")
    print("target  " + "   ".join(f"{name} {value:.3f}" for name, value in TARGETS.items()))
    best = max(("text", "vector"), key=lambda mode: means[mode].ndcg)
    gains = [one.ndcg - other.ndcg for one, other in zip(scores["hybrid"], scores[best], strict=True)]
    low, high = scifact.interval(gains)
    print(f"hybrid - {best}, paired: {sum(gains) / len(gains):+.4f} (95 % {low:+.4f} .. {high:+.4f}); target +0.030")


async def speed(asking: Asking, claims: list[Claim]) -> None:
    """Print p50 and p99 of a search at one in flight, cache off, ten results."""
    whole: list[float] = []
    statement: list[float] = []
    embedding: list[float] = []
    for number, claim in enumerate([*claims[:WARM_UP], *claims]):
        result, took = await asking.search(rag.Search(query=claim.text, cache="off"))
        if number >= min(WARM_UP, len(claims)):
            whole.append(took)
            statement.append(result.timings.search_ms)
            embedding.append(result.timings.embed_ms)
    for name, found, target in (
        ("rag.search over NATS", whole, "10 / 20"),
        ("  its search statement", statement, "7 / 10"),
        ("  its embedding", embedding, "-"),
    ):
        p50, p99 = scifact.percentiles(found)
        print(f"{name:24} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   target {target} ms")


async def citing(asking: Asking, evidence: list[Claim]) -> None:
    """Print how often the best sentence, or one of the three best, of the gold document is one that people marked."""
    first = three = cited = 0
    for claim in evidence:
        message = rag.Search(query=claim.text, top_k=DEPTH, filters={"paper": claim.paper}, cache="off")
        result, _ = await asking.search(message)
        found = answer.candidates(result.results)
        vectors = await asking.embed([claim.text, *(each.text for each in found)])
        ranked = answer.ranked(claim.text, vectors, found)
        hits = [claim.marked(each.start, each.end) for each in ranked[:3]]
        first += any(hits[:1])
        three += any(hits)
        cited += any(claim.marked(each.start, each.end) for each in answer.citations(ranked))
    count = len(evidence)
    print(
        f"citations, {count} pairs of claim and paper: hit@1 {first / count:.3f} (target .60)   "
        f"hit@3 {three / count:.3f} (target .85)   among those cited {cited / count:.3f}"
    )


async def run(home: Path, folder: Path, sample: int | None) -> None:
    papers, claims, evidence = scifact.papers(folder), scifact.claims(folder), scifact.evidence(folder)
    if sample is not None:
        claims, evidence = claims[:sample], evidence[:sample]
        papers = _with(papers, {paper for claim in claims for paper in claim.relevant} | {e.paper for e in evidence})
        print(f"a sample: {len(papers)} papers, {len(claims)} claims; its figures are no SciFact figures")
    async with Platform(home, port=ANY_FREE_PORT, ports=PORTS) as platform:
        settings = platform.settings()
        connection = await connect(settings, name="bench-retrieval")
        try:
            asking = Asking(Client(connection, settings, source="bench"), Identity.new(TENANT))
            await fill(asking, papers)
            await quality(asking, claims)
            await speed(asking, claims)
            await citing(asking, evidence)
        finally:
            await connection.close()
    platform.stack.abandon()


def _with(papers: list[Paper], wanted: set[str]) -> list[Paper]:
    """The wanted papers, and as many others."""
    others = [paper for paper in papers if paper.id not in wanted]
    chosen = {paper.id for paper in random.Random(0).sample(others, min(len(others), len(wanted)))}
    return [paper for paper in papers if paper.id in wanted | chosen]


def main() -> int:
    options = argparse.ArgumentParser(prog="benchmarks.retrieval", description="Retrieval quality and speed.")
    options.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds scifact/"
    )
    options.add_argument("--sample", type=int, metavar="N", help="only the first N claims, and fewer papers")
    given = options.parse_args()
    folder = given.data / "scifact"
    missing = scifact.missing(folder)
    if missing:
        print(f"skipped: {folder} does not hold {', '.join(missing)}")
        return 0
    home = Path(tempfile.mkdtemp(prefix="faas-bench-", dir="/tmp"))
    try:
        asyncio.run(run(home, folder, given.sample))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
