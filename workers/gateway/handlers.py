"""What gateway does with a prompt and with texts to embed."""

from __future__ import annotations

import array
import asyncio
import sys
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from subjects import gateway
from subjects.contract import Code, Fault
from subjects.gateway import Attempt, Generate, Generation, GenerationChunk
from workers.gateway.answer import Answer
from workers.gateway.catalogue import Catalogue
from workers.gateway.models import Models
from workers.gateway.request import parameters
from workers.gateway.spans import asking
from workers.gateway.targets.local import LocalModels
from workers.gateway.targets.providers import Providers
from workers.gateway.targets.target import Piece, Target
from workers.serving import Context

STALL_LIMIT_S = 30.0  # between two pieces of an answer that has begun
SETTLE_S = 0.2  # kept of the deadline, to tell the caller that it has passed
OUR_FAULT = frozenset({Code.INVALID, Code.TOO_LARGE, Code.INTERNAL, Code.CANCELLED})


@dataclass(frozen=True)
class Deps:
    models: Models
    providers: Providers
    local: LocalModels
    catalogue: Catalogue


async def list_models(ctx: Context[Deps], message: gateway.ListModels) -> gateway.ModelList:
    """What can be asked here. Raises Fault(INVALID) on a cursor that is not ours."""
    return ctx.deps.catalogue.list_models(message)


async def list_providers(ctx: Context[Deps], message: gateway.ListProviders) -> gateway.ProviderList:
    """Who could answer here, and what is missing. Raises Fault(INVALID) on a cursor that is not ours."""
    return ctx.deps.catalogue.list_providers(message)


async def generate(ctx: Context[Deps], message: Generate) -> Generation:
    """Answer from the asked model, or from the first fallback that can, before the first piece: never after it.

    Raises Fault: INVALID, NOT_FOUND (the detail names the key to set), EXHAUSTED, UPSTREAM, UNAVAILABLE, TIMEOUT.
    """
    request = parameters(message)
    names = [message.model or ctx.deps.models.default_chat, *message.fallbacks]
    ident, attempts = f"gen-{uuid.uuid4().hex}", list[Attempt]()
    for number, name in enumerate(names, 1):
        began = time.perf_counter()
        answer: Answer | None = None
        try:
            answer = Answer(ctx.deps.models.chat(name))
            with asking("chat", answer.target) as asked:
                try:
                    await _fill(ctx, answer, request, first_piece_s=_share_s(ctx, targets_left=len(names) - number + 1))
                finally:
                    asked.usage = answer.usage(message) if answer.started else None
                    asked.finish_reason, asked.ttft_ms = answer.finish_reason, answer.ttft_ms
        except Fault as fault:
            latency_ms = (time.perf_counter() - began) * 1000
            attempts.append(Attempt(model=name, code=fault.code.value, latency_ms=latency_ms))
            if answer is not None:
                _report(ctx, ident, message, answer, "failed")
            if number == len(names) or (answer and answer.started) or fault.code in OUR_FAULT:
                raise
            ctx.log.warning("fallback", model=name, code=fault.code.value, to=names[number])
        except asyncio.CancelledError:
            if answer is not None:
                _report(ctx, ident, message, answer, "cancelled")
            raise
        else:
            attempts.append(Attempt(model=answer.target.name, latency_ms=answer.latency_ms))
            return _completed(ctx, ident, message, answer, attempts)
    raise Fault(Code.INTERNAL, "no model was asked")


def _share_s(ctx: Context[Deps], *, targets_left: int) -> float:
    """Time for a target's first piece: what is left is shared out, so that one that hangs leaves time for the next."""
    return max(ctx.remaining_s() - SETTLE_S, 0.0) / targets_left


async def _fill(ctx: Context[Deps], answer: Answer, request: dict[str, object], *, first_piece_s: float) -> None:
    """Ask the target once and hand its pieces on. However this ends, the upstream is closed."""
    timeout_s = max(ctx.remaining_s() - SETTLE_S, 0.0)
    async with aclosing(ctx.deps.providers.stream(answer.target, request, timeout_s=timeout_s)) as pieces:
        limit_s = first_piece_s
        while (piece := await _next(pieces, limit_s, answer.target)) is not None:
            answer.add(piece)
            if piece.text:
                await ctx.chunk(GenerationChunk(text=piece.text))
            limit_s = min(STALL_LIMIT_S, max(ctx.remaining_s() - SETTLE_S, 0.0))
    if answer.tool_calls:
        await ctx.chunk(GenerationChunk(tool_calls=answer.tool_calls))


async def _next(pieces: AsyncGenerator[Piece, None], limit_s: float, target: Target) -> Piece | None:
    try:
        async with asyncio.timeout(limit_s):
            return await anext(pieces, None)
    except TimeoutError as error:
        raise Fault(Code.TIMEOUT, f"{target.name} did not go on within {limit_s:.1f} s") from error


def _completed(
    ctx: Context[Deps], ident: str, message: Generate, answer: Answer, attempts: list[Attempt]
) -> Generation:
    event = _event(ctx, ident, message, answer, "completed")
    ctx.emit(gateway.COMPLETED, event)
    return Generation(
        id=ident,
        model=answer.target.name,
        provider=answer.target.provider,
        message=answer.message(),
        finish_reason=answer.finish_reason or "stop",
        usage=event.usage,
        cost_usd=event.cost_usd,
        attempts=attempts,
        latency_ms=event.latency_ms,
        ttft_ms=event.ttft_ms,
    )


def _report(
    ctx: Context[Deps], ident: str, message: Generate, answer: Answer, status: Literal["failed", "cancelled"]
) -> None:
    """Tell of an attempt that brought no answer, with what it cost. Not by emit: that goes with an effect, and a
    message that fails has none."""
    event = _event(ctx, ident, message, answer, status)
    ctx.host.facts.publish(ctx.tenant, gateway.FAILED, event, ctx.event_headers(gateway.FAILED))


def _event(ctx: Context[Deps], ident: str, message: Generate, answer: Answer, status: str) -> gateway.Completed:
    billed = status == "completed" or answer.started
    usage = answer.usage(message) if billed else gateway.Usage()
    cost_usd = 0.0 if answer.target.local or not billed else ctx.deps.providers.cost_usd(answer.target, usage)
    return gateway.Completed(
        entity_id=ident,
        model=answer.target.name,
        provider=answer.target.provider,
        usage=usage,
        cost_usd=cost_usd,
        latency_ms=answer.latency_ms,
        ttft_ms=answer.ttft_ms,
        status=status,
        metadata=message.metadata,
    )


async def embed(ctx: Context[Deps], message: gateway.Embed) -> gateway.Embeddings:
    """Vectors of the texts in their order. Raises Fault as generate does."""
    texts = [message.input] if isinstance(message.input, str) else message.input
    target = ctx.deps.models.embedding(message.model)
    timeout_s = max(ctx.remaining_s() - SETTLE_S, 0.0)
    cost_usd: float | None = 0.0
    with asking("embeddings", target) as asked:
        if target.local:
            made = await ctx.deps.local.embed(target.name.partition("/")[2], texts, timeout_s=timeout_s)
            vectors, usage, revision = made.vectors, made.usage, made.revision
        else:
            floats, usage = await ctx.deps.providers.embed(target, texts, message.dimensions, timeout_s=timeout_s)
            vectors, revision = [_packed(row) for row in floats], target.name
            cost_usd = ctx.deps.providers.cost_usd(target, usage)
        asked.usage = usage
    dimensions = len(vectors[0]) // 4
    if message.dimensions not in (None, dimensions):
        raise Fault(Code.INVALID, f"{target.name} gives {dimensions} dimensions, not {message.dimensions}")
    return gateway.Embeddings(
        model=target.name,
        dimensions=dimensions,
        embeddings=[_unpacked(row) for row in vectors] if message.encoding == "float" else [],
        vectors=vectors if message.encoding == "f32" else [],
        usage=usage,
        cost_usd=cost_usd,
        revision=revision,
    )


def _packed(row: list[float]) -> bytes:
    """Little-endian float32."""
    values = array.array("f", row)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _unpacked(row: bytes) -> list[float]:
    values = array.array("f", row)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
