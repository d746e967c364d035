"""Spans and numbers of calls to models, by the conventions for generative AI. Never a prompt, an answer or a key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime import metrics
from runtime.tracing import Attribute, Kind, error_of, within
from subjects.gateway import Usage
from workers.gateway.targets.target import Target

_LABELS = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
DURATION = metrics.Histogram(
    "gen_ai.client.operation.duration", "s", "Of calls to models.", metrics.LLM_SECONDS, (*_LABELS, "error.type")
)
TOKENS = metrics.Histogram(
    "gen_ai.client.token.usage", "{token}", "Tokens of a call.", metrics.TOKENS, (*_LABELS, "gen_ai.token.type")
)
FIRST_PIECE = metrics.Histogram(
    "gen_ai.client.operation.time_to_first_chunk", "s", "To the first piece.", metrics.LLM_SECONDS, _LABELS
)
MAX_MODELS = 100
OTHER = "(other)"
_answered: set[str] = set()
"""Models that have answered. Callers make names up: one that never answered is no label."""


class Asked:
    """One call to a model. What is known at its end is set before the block ends."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.ttft_ms: float | None = None


@contextmanager
def asking(operation: str, target: Target) -> Iterator[Asked]:
    """operation: chat or embeddings."""
    given: dict[str, Attribute | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": target.provider,
        "gen_ai.request.model": target.name,
    }
    span = within(f"{operation} {target.name}", Kind.CLIENT, given)
    asked, began, error = Asked(), time.perf_counter(), ""
    try:
        yield asked
    except BaseException as failed:
        error = error_of(failed)
        raise
    finally:
        labels = (operation, target.provider, _model(target.name, answered=not error))
        DURATION.series(*labels, error).add(time.perf_counter() - began)
        _count(labels, asked)
        if span is not None:
            if asked.usage is not None:
                span.attributes["gen_ai.usage.input_tokens"] = _read(asked.usage)
                span.attributes["gen_ai.usage.output_tokens"] = _written(asked.usage)
            if asked.finish_reason is not None:
                span.attributes["gen_ai.response.finish_reasons"] = [asked.finish_reason]
            if not error:
                span.attributes["gen_ai.response.model"] = target.name
            span.end(error)


def _count(labels: tuple[str, str, str], asked: Asked) -> None:
    if asked.usage is not None:
        TOKENS.series(*labels, "input").add(_read(asked.usage))
        if _written(asked.usage):
            TOKENS.series(*labels, "output").add(_written(asked.usage))
    if asked.ttft_ms is not None:
        FIRST_PIECE.series(*labels).add(asked.ttft_ms / 1000)


def _read(usage: Usage) -> int:
    return usage.input + usage.cache_read + usage.cache_write


def _written(usage: Usage) -> int:
    return usage.output + usage.reasoning


def _model(name: str, *, answered: bool) -> str:
    if answered and len(_answered) < MAX_MODELS:
        _answered.add(name)
    return name if name in _answered else OTHER
