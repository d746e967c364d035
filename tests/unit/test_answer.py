"""What may be said: words as the model wrote them, numbers only as the documents have them."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subjects import rag
from workers.rag import answer
from workers.rag.answer import Evidence, Supported

FACT = "The lighthouse of Quillon has 542 steps, and its keeper is Ivo Brandt."
QUESTION = "How many steps does the lighthouse of Quillon have?"
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def _hit(text: str, title: str = "") -> rag.Hit:
    return rag.Hit(
        document_id="d1", chunk_id="d1-0", source_id="s", title=title, text=text, score=1, start=0, end=len(text)
    )


def _evidence(text: str, **more: float) -> Evidence:
    return Evidence(_hit(text), 0, len(text), text, **more)


def _said(pieces: list[str], *, question: str = QUESTION, fact: str = FACT) -> tuple[str, Supported]:
    supported = Supported(question, [_evidence(fact)])
    said = "".join([*(supported.add(piece) for piece in pieces), supported.end()])
    return said, supported


def _cut(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(["The", "lighthouse", "has", "steps.", "542", "542,", "\n", "1,000", "5.42", "54", "2"]),
            st.integers(0, 10**6).map(str),
            st.text(max_size=6),
        ),
        max_size=30,
    ),
    sizes=st.lists(st.integers(0, 7), max_size=30),
)
def test_a_number_that_nobody_wrote_never_passes(words: list[str], sizes: list[int]) -> None:
    said, supported = _said(_cut(" ".join(words), sizes))
    assert said == supported.text
    assert said
    assert set(NUMBER.findall(said)) <= {"542"}


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=20))
def test_a_supported_answer_passes_as_it_is_however_it_is_cut(sizes: list[int]) -> None:
    answered = "The lighthouse of Quillon has 542 steps."
    said, supported = _said(_cut(answered, sizes))
    assert said == answered
    assert not supported.broken


def test_a_wrong_number_is_replaced_by_the_quote() -> None:
    said, supported = _said(["The lighthouse has ", "54", "3 steps."])
    assert supported.broken
    assert "543" not in said
    assert FACT in said


def test_a_number_of_the_question_may_be_repeated() -> None:
    said, _ = _said(
        ["In 1900 the lighthouse had 542 steps."], question="How many steps did the lighthouse have in 1900?"
    )
    assert said == "In 1900 the lighthouse had 542 steps."


@pytest.mark.parametrize(
    ("said", "passes"), [("1000", True), ("1,000", True), ("1.5", True), ("15", False), ("100", False)]
)
def test_thousands_may_be_written_either_way_and_nothing_else(said: str, passes: bool) -> None:
    _, supported = _said([f"It cost {said} crowns."], question="?", fact="It cost 1,000 crowns and 1.5 boats.")
    assert supported.broken is not passes


@pytest.mark.parametrize("pieces", [[], [""], ["Yes, no, perhaps."], ["   "]])
def test_saying_nothing_of_the_evidence_gives_the_quote(pieces: list[str]) -> None:
    said, _ = _said(pieces)
    assert FACT in said


def _vector(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def test_the_sentence_with_the_words_and_the_meaning_comes_first() -> None:
    found = [_evidence("The bay is shallow."), _evidence(FACT)]
    ranked = answer.ranked(QUESTION, [_vector(1, 0), _vector(0, 1), _vector(0.8, 0.6)], found)
    assert [each.text for each in ranked] == [FACT, "The bay is shallow."]
    assert ranked[0].cosine == pytest.approx(0.8)
    assert all(0 <= each.score <= 1 for each in ranked)


def test_enough_needs_words_or_meaning_above_both_limits() -> None:
    assert answer.enough([_evidence(FACT, score=0.6, cosine=0.6)], 0)
    assert not answer.enough([_evidence(FACT, score=0.6, cosine=0.6)], 0.7)
    assert not answer.enough([_evidence(FACT, score=0.6, cosine=0.2)], 0)
    assert not answer.enough([_evidence(FACT, score=0.2, cosine=0.6)], 0)
    assert not answer.enough([], 0)


def test_citations_are_the_best_and_those_nearly_as_good() -> None:
    scores = (0.9, 0.8, 0.3, 0.2)
    cited = answer.citations([_evidence(FACT, score=score) for score in scores])
    assert [citation.score for citation in cited] == [0.9, 0.8]
    assert answer.citations([]) == []


def test_candidates_are_verbatim_spans_and_bounded() -> None:
    hit = _hit(" ".join(f"Sentence {number} stands here." for number in range(200)))
    found = answer.candidates([hit.model_copy(update={"start": 1000})])
    assert len(found) == answer.MAX_SENTENCES
    assert all(hit.text[each.start - 1000 : each.end - 1000] == each.text for each in found)
