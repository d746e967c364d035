"""From hits to an answer: the sentences that speak to the question, a short prompt, and a check on what comes back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

from subjects import gateway, rag
from workers.rag.chunking import sentences
from workers.rag.index import floats

MAX_SENTENCES = 48  # embedded for one question: about 60 ms of the local model
EVIDENCE = 3  # sentences shown to the model, best first
CITED = 3
CITED_SHARE = 0.75  # a citation scores at least this share of the best one
WEIGHT_OF_WORDS = 0.5  # against the cosine: names and numbers are told apart by words
ENOUGH = 0.30  # below this score of the best sentence the documents do not speak to the question
NEAR = 0.38  # nor when no sentence is so near by meaning: single words in common are no answer. Both: see README.md
MAX_TOKENS = 96
INSTRUCTION = (
    "You answer questions from the given context. Answer in one short sentence. "
    "Use only the context, and copy names and numbers exactly."
)
NOT_ANSWERED = "The documents do not answer this question."

_ENDINGS = ("ations", "ation", "ings", "ing", "ions", "ion", "edly", "ed", "ies", "es", "s", "ly")
MIN_STEM = 4  # characters that must be left

_word = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_number = re.compile(r"\d+(?:[.,]\d+)*")
_thousands = re.compile(r",(?=\d{3}(?:\D|$))")
_STOP = frozenset(
    {
        "a", "an", "and", "are", "as", "at", "be", "by", "did", "do", "does", "for", "from", "had", "has", "have",
        "how", "in", "is", "it", "its", "many", "much", "of", "on", "or", "that", "the", "this", "to", "was", "were",
        "what", "when", "where", "which", "who", "whom", "whose", "why", "will", "with",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """A sentence of a hit with its span in the document's text."""

    hit: rag.Hit
    start: int
    end: int
    text: str
    score: float = 0.0
    cosine: float = 0.0


def candidates(hits: Sequence[rag.Hit]) -> list[Evidence]:
    """The sentences of the best hits, in their order, at most MAX_SENTENCES."""
    found: list[Evidence] = []
    for hit in hits:
        for sentence in sentences(hit.text):
            text = hit.text[sentence.start : sentence.end]
            if _word.search(text):
                found.append(Evidence(hit, hit.start + sentence.start, hit.start + sentence.end, text))
            if len(found) == MAX_SENTENCES:
                return found
    return found


def ranked(question: str, vectors: Sequence[bytes], found: Sequence[Evidence]) -> list[Evidence]:
    """Best first. vectors: the question's, then one for each sentence, of length 1."""
    asked = floats(vectors[0])
    wanted = _content(question)
    scored = []
    for evidence, vector in zip(found, vectors[1:], strict=True):
        words = _content(evidence.text) | _content(evidence.hit.title)
        overlap = len(wanted & words) / len(wanted) if wanted else 0.0
        cosine = _cosine(asked, floats(vector))
        score = (1 - WEIGHT_OF_WORDS) * cosine + WEIGHT_OF_WORDS * overlap
        scored.append(replace(evidence, score=min(1.0, max(0.0, score)), cosine=cosine))
    return sorted(scored, key=lambda evidence: -evidence.score)


def enough(evidence: Sequence[Evidence], min_score: float) -> bool:
    """Whether these sentences, best first, speak to the question at all."""
    if not evidence or evidence[0].score < max(ENOUGH, min_score):
        return False
    return max(each.cosine for each in evidence) >= NEAR


def prompt(question: str, evidence: Sequence[Evidence], model: str | None) -> gateway.Generate:
    """A short context, best sentence first: a small model copies what stands next to the question."""
    context = " ".join(" ".join(each.text.split()) for each in evidence[:EVIDENCE])
    return gateway.Generate(
        messages=[
            gateway.Message(role="system", content=INSTRUCTION),
            gateway.Message(role="user", content=f"Context: {context}\n\nQuestion: {question}"),
        ],
        model=model,
        temperature=0,
        max_tokens=MAX_TOKENS,
    )


def citations(evidence: Sequence[Evidence]) -> list[rag.Citation]:
    """The best sentence and those nearly as good."""
    if not evidence:
        return []
    least = evidence[0].score * CITED_SHARE
    return [
        rag.Citation(
            document_id=each.hit.document_id,
            chunk_id=each.hit.chunk_id,
            title=each.hit.title,
            start=each.start,
            end=each.end,
            quote=each.text,
            score=each.score,
            page=each.hit.page,
        )
        for each in evidence[:CITED]
        if each.score >= least
    ]


class Supported:
    """Passes a generated text on word by word, as long as every number in it stands in the evidence or the question.

    A small model garbles digits. The text is cut before the first number that nobody wrote, and the quote follows.
    """

    def __init__(self, question: str, evidence: Sequence[Evidence]) -> None:
        self._known = {
            _value(number)
            for text in (question, *(each.text for each in evidence[:EVIDENCE]))
            for number in _number.findall(text)
        }
        self._quote = evidence[0].text
        self._held = ""
        self._said: list[str] = []
        self.broken = False

    @property
    def text(self) -> str:
        return "".join(self._said)

    def add(self, piece: str) -> str:
        """What may be passed on now: whole words only, for a number is known at its end."""
        if self.broken:
            return ""
        self._held += piece
        cut = max(self._held.rfind(" "), self._held.rfind("\n")) + 1
        ready, self._held = self._held[:cut], self._held[cut:]
        return self._pass(ready)

    def end(self) -> str:
        """The rest; the quote, when the text was cut, is empty, or says nothing that stands in the evidence."""
        rest = "" if self.broken else self._pass(self._held)
        words = _content(self.text)
        if not self.broken and words and len(words & _content(self._quote)) >= min(2, len(words)):
            return rest
        quote = " ".join(self._quote.split())
        added = f'{" " if self.text and not self.text.endswith(" ") else ""}The document says: "{quote}"'
        self._said.append(added)
        return rest + added

    def _pass(self, ready: str) -> str:
        for number in _number.finditer(ready):
            if _value(number[0]) not in self._known:
                self.broken = True
                ready = ready[: number.start()]
                break
        self._said.append(ready)
        return ready


def _value(number: str) -> str:
    """1,000 and 1000 are one number; 5.42 and 542 are two."""
    return _thousands.sub("", number)


def _content(text: str) -> set[str]:
    return {_stem(word.lower()) for word in _word.findall(text)} - _STOP


def _stem(word: str) -> str:
    """So that a question about a step finds the steps. Coarse: it only has to tell the sentences of a page apart."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= MIN_STEM:
            return word[: -len(ending)]
    return word


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (sqrt(sum(a * a for a in one)) * sqrt(sum(b * b for b in other)) or 1.0)
