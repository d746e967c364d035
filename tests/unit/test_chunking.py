"""Chunks: verbatim spans, never over the bound, nothing lost, in linear time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.rag.chunking import Chunk, chunks, sentences, spans

WORDS = (
    "word", "Sentence", "Dr.", "e.g.", "3.14", "end.", "Why?", "“Quoted.”", "\n", "\n\n", "\f", "# Part", "- item",
    "東京です。", "x" * 99,
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(WORDS), max_size=400).map(" ".join)
ANY = st.one_of(TEXTS, st.text(max_size=600))


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@settings(max_examples=150, deadline=None)
@given(text=ANY, max_words=st.integers(20, 220))
def test_chunks_are_bounded_ordered_spans_that_leave_nothing_out(text: str, max_words: int) -> None:
    made = chunks(text, max_words)
    end = 0
    for chunk in made:
        assert end <= chunk.start < chunk.end <= len(text)
        assert 0 < chunk.words <= max_words
        assert text[chunk.start : chunk.end].strip() == text[chunk.start : chunk.end]
        end = chunk.end
    assert "".join(_bare(text[chunk.start : chunk.end]) for chunk in made) == _bare(text)


@settings(max_examples=100, deadline=None)
@given(text=ANY)
def test_sentences_leave_nothing_out(text: str) -> None:
    assert "".join(_bare(text[each.start : each.end]) for each in sentences(text)) == _bare(text)


def _said(text: str) -> list[str]:
    return [text[each.start : each.end] for each in sentences(text)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Dr. Vale met Mrs. Olsen. They left.", ["Dr. Vale met Mrs. Olsen.", "They left."]),
        ("It costs 3.50 in all. Yes.", ["It costs 3.50 in all.", "Yes."]),
        ("He said “No.” Then he left.", ["He said “No.”", "Then he left."]),
        ("- one\n- two", ["- one", "- two"]),
        ("A line\nthat goes on.", ["A line\nthat goes on."]),
        ("東京です。大阪です。", ["東京です。", "大阪です。"]),
    ],
)
def test_where_sentences_end(text: str, said: list[str]) -> None:
    assert _said(text) == said


def test_pages_count_form_feeds_and_are_none_without_any() -> None:
    page = " ".join(f"Word{number}." for number in range(20))
    made = chunks("\f".join([page, page, page]), 20)
    assert [chunk.page for chunk in made] == sorted(chunk.page or 0 for chunk in made)
    assert {chunk.page for chunk in made} == {1, 2, 3}
    assert {chunk.page for chunk in chunks(page, 20)} == {None}


def test_headings_are_a_path() -> None:
    body = " ".join(f"Word{number}." for number in range(20))
    text = f"# Manual\n\n{body}\n\n## Pump\n\n{body}\n\n## Valve\n\n{body}\n"
    assert [chunk.heading for chunk in chunks(text, 30)][-1].startswith("Manual")
    assert {"Manual > Pump"} <= {chunk.heading for chunk in chunks(text, 30)}


def test_a_little_too_long_a_text_makes_two_halves() -> None:
    text = " ".join(f"The number of this one is {number}." for number in range(40))  # 280 words
    sizes = [chunk.words for chunk in chunks(text, 180)]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) < 30


def test_a_chunk_crosses_a_process_as_plain_data() -> None:
    text = "# Manual\n\nThe pump runs on diesel.\fIts filter is changed every spring."
    assert [Chunk(*span) for span in spans(text, 20)] == chunks(text, 20)


@pytest.mark.parametrize("unit", ["word ", "A. ", "\n", "# ", "((((", "“ ", "a.b.c.d ", "1) \n", " \n ", "x"])
def test_time_is_linear(unit: str) -> None:
    def took(size: int) -> float:
        text = unit * (size // len(unit))
        started = time.perf_counter()
        chunks(text, 180)
        return time.perf_counter() - started

    took(10_000)
    small, large = took(40_000), took(320_000)
    assert large < 8 * small * 5 + 0.1
