"""Cuts a text into sentences and chunks, each with its exact character span: `text[start:end]` is the piece, verbatim.

A chunk is a run of whole sentences of about equal size, at most max_words long, and ends at a paragraph where one is
near. Everything here is linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PAGE_BREAK = "\f"
MAX_SENTENCE_WORDS = 80  # a table or a list without full stops is cut here
NEAR_PARAGRAPH = 0.75  # a paragraph's end counts as near from this share of the wanted size on
MAX_HEADING_CHARACTERS = 200

# A word as the size of a chunk counts it: 24 characters without a space, or one CJK character (about one token each).
_word = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,24}")
# Where a sentence may end: a paragraph, page, heading or list item; or a full stop, white space and a new start.
_boundary = re.compile(
    r"(?P<paragraph>\n[ \t]*\n\s*|\f\s*)"
    r"|\n(?=[ \t]*(?:[-*\u2022#]|\d{1,3}[.)])[ \t#])"
    r"|(?P<stop>(?<=[.!?\u2026])[\"')\]\u201d\u2019]{0,3}\s+(?=[\"'(\[\u201c\u2018]{0,3}[^\W_a-z]))"
    r"|(?<=[\u3002\uff01\uff1f])"
)
_abbreviation = re.compile(
    r"(?:^|[\s(\[\"'])(?:[A-Z]|Dr|Mr|Mrs|Ms|Prof|St|vs|cf|al|approx|No|Nos|Fig|Figs|fig|figs|Eq|Ref|Refs|vol|pp|"
    r"Inc|Ltd|Co|Corp|Jr|Sr|Gen|Rep|Sen|Gov|e\.g|i\.e|U\.S|a\.m|p\.m)\.$"
)
_heading = re.compile(r"^(#{1,6})[ \t]+(\S.{0,199})", re.MULTILINE)


@dataclass(frozen=True)
class Sentence:
    """start and end are characters of the whole text. last: it ends its paragraph."""

    start: int
    end: int
    words: int
    last: bool = False


@dataclass(frozen=True)
class Chunk:
    """page counts form feeds from 1; None where the text has none. heading is the path of Markdown headings."""

    start: int
    end: int
    words: int
    page: int | None = None
    heading: str = ""


def sentences(text: str, max_words: int = MAX_SENTENCE_WORDS) -> list[Sentence]:
    """The text's sentences in order, without the white space between them; longer ones are cut at max_words."""
    found: list[Sentence] = []
    begin = 0
    for boundary in _boundary.finditer(text):
        if boundary["stop"] is not None and _abbreviation.search(text, max(0, boundary.start() - 9), boundary.start()):
            continue
        # Closing quotes and brackets that the boundary took belong to the sentence before it.
        end = boundary.start() + len(boundary[0].rstrip()) if boundary["stop"] is not None else boundary.start()
        found.extend(_pieces(text, begin, end, max_words, last=boundary["paragraph"] is not None))
        begin = boundary.end()
    found.extend(_pieces(text, begin, len(text), max_words, last=True))
    return found


def _pieces(text: str, start: int, end: int, max_words: int, *, last: bool) -> Iterator[Sentence]:
    """The span as one sentence, or as several when it is too long for one."""
    words = [match.span() for match in _word.finditer(text, start, end)]
    for first in range(0, len(words), max_words):
        part = words[first : first + max_words]
        yield Sentence(part[0][0], part[-1][1], len(part), last and first + max_words >= len(words))


def chunks(text: str, max_words: int) -> list[Chunk]:
    """The text's chunks in order: each at most max_words long (max_words >= 20), none empty, none overlapping."""
    made: list[Chunk] = []
    headings = _Headings(text)
    page, counted = (1, 0) if PAGE_BREAK in text else (None, 0)
    for run in _runs(sentences(text, min(max_words, MAX_SENTENCE_WORDS)), max_words):
        start, end = run[0].start, run[-1].end
        if page is not None:
            page += text.count(PAGE_BREAK, counted, start)
            counted = start
        made.append(Chunk(start, end, sum(sentence.words for sentence in run), page, headings.at(start)))
    return made


def spans(text: str, max_words: int) -> list[tuple[int, int, int, int | None, str]]:
    """chunks() as plain data, each the fields of a Chunk: so it can cross from a process of the pool."""
    return [(chunk.start, chunk.end, chunk.words, chunk.page, chunk.heading) for chunk in chunks(text, max_words)]


def _runs(found: list[Sentence], max_words: int) -> Iterator[list[Sentence]]:
    """Sentences in runs of about equal size: 250 words at 180 make 125 + 125, not 180 + 70."""
    total = sum(sentence.words for sentence in found)
    if not total:
        return
    wanted = total / -(-total // max_words)
    run: list[Sentence] = []
    size = 0
    for sentence in found:
        if run and (size + sentence.words > max_words or size + sentence.words / 2 > wanted):
            yield run
            run, size = [], 0
        run.append(sentence)
        size += sentence.words
        if sentence.last and size >= wanted * NEAR_PARAGRAPH:
            yield run
            run, size = [], 0
    if run:
        yield run


class _Headings:
    """The path of Markdown headings above a position; asked in rising order."""

    def __init__(self, text: str) -> None:
        self._found = _heading.finditer(text)
        self._next = next(self._found, None)
        self._path: list[tuple[int, str]] = []

    def at(self, position: int) -> str:
        while self._next is not None and self._next.start() < position:
            depth = len(self._next[1])
            self._path = [level for level in self._path if level[0] < depth]
            self._path.append((depth, self._next[2].rstrip(" \t#")))
            self._next = next(self._found, None)
        return " > ".join(name for _, name in self._path)[:MAX_HEADING_CHARACTERS]
