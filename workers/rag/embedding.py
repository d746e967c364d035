"""Vectors from the gateway: batches journaled as steps of a job, so that a killed one does not embed them again."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256

from subjects import gateway
from subjects.contract import Code, Fault
from workers.rag.deps import Deps
from workers.rag.index import EmbeddingModel, Piece, queries
from workers.serving import Context

BATCH = 16  # texts in one call: about 0.2 s of the local model, and 25 KiB in the journal
VECTOR_BYTES = 4  # of a float32


async def embed(ctx: Context[Deps], texts: Sequence[str]) -> tuple[EmbeddingModel, list[bytes]]:
    """float32 bytes for each text, in order. Raises what the gateway raises."""
    vectors: list[bytes] = []
    model = None
    for first in range(0, len(texts), BATCH):
        made = await _batch(ctx, list(texts[first : first + BATCH]))
        model = model_of(made)
        vectors.extend(made.vectors)
    if model is None or len(vectors) != len(texts):
        raise Fault(Code.UPSTREAM, "the embedding model answered with another number of vectors than it was asked for")
    return model, vectors


async def embed_pieces(
    ctx: Context[Deps], collection: str, pieces: Sequence[Piece]
) -> tuple[EmbeddingModel, Mapping[bytes, bytes], int]:
    """The vector of each piece by its digest, the model, and the tokens that it read. The same words are embedded
    once: what the collection holds is taken from there, as long as the model is the same."""
    wanted = {piece.digest: piece.embedded for piece in pieces}
    first, *rest = _batches(sorted(wanted, key=lambda digest: len(wanted[digest])))
    journaled = await _step(ctx, wanted, first)
    model, tokens = model_of(journaled), journaled.usage.input
    vectors = dict(zip(first, journaled.vectors, strict=True))
    known = await _known(ctx, collection, model, [digest for part in rest for digest in part])
    vectors.update(known)
    for number, part in enumerate(rest, 1):
        missing = [digest for digest in part if digest not in known]
        if missing:
            made = await _step(ctx, wanted, missing)
            if model_of(made).revision != model.revision:
                raise Fault(Code.UNAVAILABLE, "the embedding model changed under way; ask again")
            vectors.update(zip(missing, made.vectors, strict=True))
            tokens += made.usage.input
        await ctx.progress(min(number * BATCH + BATCH, len(wanted)), len(wanted), "chunks", "embedding")
    return model, vectors, tokens


def model_of(made: gateway.Embeddings) -> EmbeddingModel:
    """Raises Fault(UPSTREAM) when the vectors are not what their model says."""
    if any(len(vector) != made.dimensions * VECTOR_BYTES for vector in made.vectors):
        raise Fault(Code.UPSTREAM, "the embedding model answered with vectors of another length than it says")
    return EmbeddingModel(made.model, made.revision or made.model, made.dimensions)


async def _batch(ctx: Context[Deps], texts: list[str]) -> gateway.Embeddings:
    return await ctx.call(gateway.EMBED, gateway.Embed(input=texts, encoding="f32"))


async def _step(ctx: Context[Deps], wanted: Mapping[bytes, str], digests: list[bytes]) -> gateway.Embeddings:
    # Named by what is in it: after a crash the collection may hold more, so that the batches are others.
    name = f"embed-{sha256(b''.join(digests)).hexdigest()[:24]}"
    return await ctx.step(name, partial(_batch, ctx, [wanted[digest] for digest in digests]), gateway.Embeddings)


async def _known(
    ctx: Context[Deps], collection: str, model: EmbeddingModel, digests: list[bytes]
) -> dict[bytes, bytes]:
    if not digests:
        return {}
    async with ctx.read() as tx:
        row = await tx.fetchrow(queries.get_collection, collection)
        if row is None or row["revision"] != model.revision:
            return {}
        rows = await tx.fetch(queries.known_vectors, row["collection_id"], digests)
    return {row["digest"]: array("f", row["embedding"].to_list()).tobytes() for row in rows}


def _batches(digests: list[bytes]) -> list[list[bytes]]:
    return [digests[first : first + BATCH] for first in range(0, len(digests), BATCH)]
