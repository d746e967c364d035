"""rag.ingest: a text becomes chunks, vectors and postings, all of it or nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from store.transaction import Transaction
from subjects import rag
from subjects.contract import Code, Fault
from workers.rag import cached, index
from workers.rag.chunking import Chunk, chunks, spans
from workers.rag.deps import Deps
from workers.rag.embedding import embed_pieces
from workers.rag.index import EmbeddingModel, Entry, Piece, Stored, queries
from workers.serving import Context

MAX_TEXT_BYTES = 16 * 1024 * 1024  # of a text that comes as an object
READ_TIMEOUT_S = 60.0
POOLED_FROM_CHARS = 200_000  # about 20 ms of cutting: a longer text would hold up everybody in this process
CUT_TIMEOUT_S = 60.0  # 16 MiB take 2 s
CUT_MEMORY_BYTES = 1 << 30
YIELD_EVERY_PIECES = 500
ID_CHARS = 26


async def ingest(ctx: Context[Deps], message: rag.Ingest) -> rag.Ingested:
    """Chunk, embed and index a text under its source_id, in place of what stood there.

    Raises Fault(INVALID) when there is no text in it, NOT_FOUND for an unknown file_id, TOO_LARGE over 16 MiB,
    CONFLICT when the collection was embedded with another model, and what the gateway raises.
    """
    text = message.text if message.text is not None else await _read(ctx, str(message.file_id))
    digest = _digest(text, message)
    document_id = _document_id(ctx, message)
    source_id = message.source_id or document_id
    async with ctx.read() as tx:
        known = await tx.fetchrow(queries.find_source, message.collection, source_id)
    if known is not None and known["digest"] == digest and known["metadata"] == dict(message.metadata):
        return rag.Ingested(
            document_id=known["document_id"], chunks=known["chunks"], tokens=known["tokens"], unchanged=True
        )
    prepared = await prepare(ctx, document_id, text, message)
    stored = await prepared.put(await ctx.begin())
    if not stored.unchanged:
        tell_indexed(ctx, message.collection, source_id, stored)
    return rag.Ingested(
        document_id=stored.document_id, chunks=stored.chunks, tokens=stored.tokens, unchanged=stored.unchanged
    )


@dataclass(frozen=True)
class Prepared:
    """A document cut and embedded: all that may wait for others is done."""

    collection: str
    model: EmbeddingModel
    entry: Entry
    pieces: Sequence[Piece]
    vectors: Mapping[bytes, bytes]

    async def put(self, tx: Transaction) -> Stored:
        """Raises Fault(CONFLICT, UNAVAILABLE) as index.put does."""
        return await index.put(
            tx, self.collection, self.model, entry=self.entry, pieces=self.pieces, vectors=self.vectors
        )


async def prepare(ctx: Context[Deps], document_id: str, text: str, message: rag.Ingest) -> Prepared:
    """Cut and embed a text as the message says. Raises Fault(INVALID) when there is no text in it."""
    pieces = await _pieces(ctx, text, message)
    if not pieces:
        raise Fault(Code.INVALID, "the document holds no text")
    model, vectors, tokens = await embed_pieces(ctx, message.collection, pieces)
    digest = _digest(text, message)
    entry = Entry(
        document_id, message.source_id or document_id, message.title, message.metadata, digest, text, tokens
    )  # fmt: skip
    return Prepared(message.collection, model, entry, pieces, vectors)


def tell_indexed(ctx: Context[Deps], collection: str, source_id: str, stored: Stored) -> None:
    """The event, and the end of what is kept of the collection."""
    ctx.emit(rag.DOCUMENT_INDEXED, rag.DocumentIndexed(
        entity_id=stored.document_id, version=stored.version, source_id=source_id, collection=collection,
        chunks=stored.chunks,
    ))  # fmt: skip
    cached.forget(ctx, collection)


async def _read(ctx: Context[Deps], file_id: str) -> str:
    data = await ctx.deps.objects.read(ctx.tenant, file_id, MAX_TEXT_BYTES, READ_TIMEOUT_S)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Fault(Code.INVALID, f"file {file_id} holds no text; upload it to ingestion, which extracts it") from error


def _digest(text: str, message: rag.Ingest) -> bytes:
    """Of everything that makes the chunks: the same again changes nothing."""
    made_of = json.dumps([text, message.title, message.chunking.model_dump()])
    return hashlib.sha256(made_of.encode("utf-8", "replace")).digest()


def _document_id(ctx: Context[Deps], message: rag.Ingest) -> str:
    """The same for the same source, and for the same job delivered or replayed again."""
    if message.source_id is not None:
        named = f"{ctx.tenant}\0{message.collection}\0{message.source_id}"
    else:
        named = f"{ctx.tenant}\0{ctx.origin or uuid.uuid4().hex}"
    return "d" + hashlib.sha256(named.encode()).hexdigest()[:ID_CHARS]


async def _pieces(ctx: Context[Deps], text: str, message: rag.Ingest) -> list[Piece]:
    made = []
    for number, chunk in enumerate(await _cut(ctx, text, message.chunking.max_words), 1):
        heading = " > ".join(part for part in (message.title, chunk.heading) if part)
        words = text[chunk.start : chunk.end]
        digest = hashlib.sha256(f"{heading}\0{words}".encode()).digest()[:16]
        made.append(Piece(chunk, heading, words, digest))
        if number % YIELD_EVERY_PIECES == 0:
            await asyncio.sleep(0)
    return made


async def _cut(ctx: Context[Deps], text: str, max_words: int) -> list[Chunk]:
    """In a process of its own when it is long."""
    if len(text) < POOLED_FROM_CHARS:
        return chunks(text, max_words)
    cut = await ctx.pool(spans, text, max_words, timeout_s=CUT_TIMEOUT_S, memory_bytes=CUT_MEMORY_BYTES)
    return [Chunk(*span) for span in cut]
