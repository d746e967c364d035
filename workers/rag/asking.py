"""rag.search and rag.query: find the chunks, and answer from their sentences."""

from __future__ import annotations

import time

from subjects import gateway, rag
from workers.rag import answer as answers
from workers.rag import cached
from workers.rag.deps import Deps
from workers.rag.embedding import embed
from workers.rag.index import floats, mixed, queries
from workers.rag.search import find, get_collection
from workers.serving import Context


async def search(ctx: Context[Deps], message: rag.Search) -> rag.SearchResult:
    """The chunks that match best; none in a collection that does not exist. Raises Fault(CONFLICT) when the collection
    was embedded with another model than the one at hand, and what the gateway raises."""
    started = time.perf_counter()
    async with ctx.read() as tx:
        collection = await get_collection(tx, message.collection)
    if collection is None or collection.chunks == 0:
        return rag.SearchResult(results=[])
    key = cached.key_of("search", message, collection.version)
    if message.cache == "on":
        kept = await cached.recall(ctx, key, rag.SearchResult)
        if kept is not None:
            return kept.model_copy(update={"cached": True, "timings": rag.Timings(total_ms=_ms(started))})
    vector = None
    embedding = time.perf_counter()
    if message.mode != "text":
        model, vectors = await embed(ctx, [message.query])
        if model.revision != collection.revision:
            raise mixed(message.collection)
        vector = floats(vectors[0])
    searching = time.perf_counter()
    async with ctx.host.database.transaction(ctx.tenant, search=True) as tx:
        found = await find(tx, collection, message, vector=vector)
    timings = rag.Timings(embed_ms=_ms(embedding, searching), search_ms=_ms(searching), total_ms=_ms(started))
    result = rag.SearchResult(results=[each.hit for each in found], timings=timings)
    if message.cache == "on":
        cached.keep(ctx, key, message.collection, result)
    return result


async def query(ctx: Context[Deps], message: rag.Query) -> rag.Answer:
    """An answer from the documents with the sentences that carry it, or a plain word that they do not answer."""
    started = time.perf_counter()
    async with ctx.read() as tx:
        collection = await get_collection(tx, message.collection)
    key = cached.key_of("query", message, collection.version if collection is not None else 0)
    if message.cache == "on" and collection is not None:
        kept = await cached.recall(ctx, key, rag.Answer)
        if kept is not None:
            await ctx.chunk(rag.AnswerChunk(text=kept.answer))
            return kept.model_copy(update={"cached": True, "timings": rag.Timings(total_ms=_ms(started))})
    found = await search(
        ctx,
        rag.Search(
            query=message.question,
            collection=message.collection,
            top_k=message.top_k,
            filters=message.filters,
            cache="off",
        ),
    )
    evidence = await _evidence(ctx, message, found.results)
    searched = time.perf_counter()
    if not answers.enough(evidence, message.min_score):
        await ctx.chunk(rag.AnswerChunk(text=answers.NOT_ANSWERED))
        return rag.Answer(
            answer=answers.NOT_ANSWERED,
            answered=False,
            timings=found.timings.model_copy(update={"total_ms": _ms(started)}),
        )
    said, usage = await _generate(ctx, message, evidence)
    result = rag.Answer(
        answer=said,
        answered=True,
        citations=await _verified(ctx, answers.citations(evidence)),
        usage=usage,
        timings=found.timings.model_copy(update={"generate_ms": _ms(searched), "total_ms": _ms(started)}),
    )
    if message.cache == "on":
        cached.keep(ctx, key, message.collection, result)
    return result


async def _evidence(ctx: Context[Deps], message: rag.Query, hits: list[rag.Hit]) -> list[answers.Evidence]:
    found = answers.candidates(hits)
    if not found:
        return []
    _, vectors = await embed(ctx, [message.question, *(each.text for each in found)])
    return answers.ranked(message.question, vectors, found)


async def _generate(
    ctx: Context[Deps], message: rag.Query, evidence: list[answers.Evidence]
) -> tuple[str, gateway.Usage]:
    """The model's words, passed on as they come, as far as the evidence supports them. What is cut is heard to its end
    all the same (at most answers.MAX_TOKENS): it is paid for, and only the end tells how much it was."""
    supported = answers.Supported(message.question, evidence)
    async with ctx.stream(gateway.GENERATE, answers.prompt(message.question, evidence, message.model)) as stream:
        async for chunk in stream:
            assert isinstance(chunk, gateway.GenerationChunk)
            await _say(ctx, supported.add(chunk.text))
        usage = stream.result.usage
    await _say(ctx, supported.end())
    return supported.text, usage


async def _say(ctx: Context[Deps], text: str) -> None:
    if text:
        await ctx.chunk(rag.AnswerChunk(text=text))


async def _verified(ctx: Context[Deps], cited: list[rag.Citation]) -> list[rag.Citation]:
    """Those whose quote stands in the document at its span, word for word."""
    async with ctx.read() as tx:
        return [
            each
            for each in cited
            if await tx.fetchval(queries.quoted, each.document_id, each.start, each.end, each.quote)
        ]


def _ms(started: float, ended: float | None = None) -> float:
    return round(((ended or time.perf_counter()) - started) * 1000, 3)
