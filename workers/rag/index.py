"""Puts a document into the index and takes it out, inside the caller's transaction.

Order of locks, the same for everyone: the document's row, its chunks and postings (nobody else's), the terms in sorted
order, and last the collection's row. So writers of one collection wait for each other only at the end, and never in a
circle.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgvector import Vector

from store.sql import load
from store.transaction import Record, Transaction
from subjects.contract import Code, Fault
from workers.rag.chunking import Chunk

SLICE_CHUNKS = 500  # a statement handles at most so many chunks: well below its time limit
COLUMNS = (
    "collection_id", "document_no", "ordinal", "start_at", "end_at", "page", "heading", "text", "digest", "embedding",
)  # fmt: skip

queries = load("workers.rag")


@dataclass(frozen=True)
class EmbeddingModel:
    """What made the vectors; revision is the hash of the model's files."""

    name: str
    revision: str
    dimensions: int


@dataclass(frozen=True)
class Piece:
    """A chunk as it is indexed. heading stands in front of the text on both sides; digest is of both."""

    chunk: Chunk
    heading: str
    text: str
    digest: bytes

    @property
    def embedded(self) -> str:
        """What the embedding model reads."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


@dataclass(frozen=True)
class Entry:
    """A document to be indexed. digest: the same again changes nothing. tokens: read by the embedding model."""

    document_id: str
    source_id: str
    title: str
    metadata: Mapping[str, Any]
    digest: bytes
    text: str
    tokens: int


@dataclass(frozen=True)
class Stored:
    """How a document stands after put; unchanged means that it stood so before."""

    document_id: str
    chunks: int
    tokens: int
    version: int
    unchanged: bool = False


async def collection_for(tx: Transaction, name: str, model: EmbeddingModel) -> int:
    """The collection's id; made when it is new. Raises Fault(CONFLICT) when it holds vectors of another model."""
    await tx.execute(queries.create_collection, name, model.name, model.revision, model.dimensions)
    row = await tx.fetchrow(queries.get_collection, name)
    assert row is not None  # collections are never removed
    identifier = int(row["collection_id"])
    if row["revision"] != model.revision:
        adopted = await tx.execute(queries.adopt_model, identifier, model.name, model.revision, model.dimensions)
        if adopted != "UPDATE 1":
            raise mixed(name)
    return identifier


def mixed(name: str) -> Fault:
    return Fault(
        Code.CONFLICT,
        f"collection {name} was embedded with another model or revision: ingest its documents into a new collection",
    )


async def put(
    tx: Transaction,
    collection: str,
    model: EmbeddingModel,
    *,
    entry: Entry,
    pieces: Sequence[Piece],
    vectors: Mapping[bytes, bytes],
) -> Stored:
    """Index a document in place of what stood under its source_id. vectors: float32 bytes by a piece's digest.

    Raises Fault(CONFLICT) when the collection holds vectors of another model.
    """
    collection_id = await collection_for(tx, collection, model)
    await tx.execute(queries.create_document, entry.document_id, collection_id, entry.source_id)
    row = await tx.fetchrow(queries.lock_source, collection_id, entry.source_id)
    if row is None:  # deleted between the two statements
        raise Fault(Code.UNAVAILABLE, "the document is being deleted; ask again")
    if row["digest"] == entry.digest:
        return await _describe(tx, collection_id, row, entry.metadata)
    document_no = int(row["document_no"])
    terms = await _take_out(tx, document_no, collection_id, row["chunks"])
    length = 0
    for first in range(0, len(pieces), SLICE_CHUNKS):
        part = pieces[first : first + SLICE_CHUNKS]
        await tx.copy_into("rag_chunks", COLUMNS, _records(collection_id, document_no, first, part, vectors))
        for put_term in await tx.fetch(queries.insert_postings, document_no, collection_id, first, first + len(part)):
            terms[put_term["term"]] += put_term["chunks"]
            length += put_term["length"]
    version = await tx.fetchval(
        queries.fill_document, document_no, entry.title, dict(entry.metadata), entry.digest, entry.text,
        len(entry.text), len(pieces), length, entry.tokens,
    )  # fmt: skip
    await _count(tx, collection_id, terms)
    changed = await tx.execute(
        queries.change_collection, collection_id, model.revision,
        int(row["version"] == 0), len(pieces) - row["chunks"], length - row["length"],
    )  # fmt: skip
    if changed != "UPDATE 1":
        raise mixed(collection)
    return Stored(row["document_id"], len(pieces), entry.tokens, version)


async def describe(tx: Transaction, document_id: str, metadata: Mapping[str, Any]) -> Stored:
    """Change the metadata of a document whose row is locked."""
    row = await tx.fetchrow(queries.described, document_id)
    assert row is not None  # its row is locked
    return await _describe(tx, row["collection_id"], row, metadata)


async def _describe(tx: Transaction, collection_id: int, row: Record, metadata: Mapping[str, Any]) -> Stored:
    """The text is the same: at most the metadata changes."""
    version = int(row["version"])
    unchanged = bool(row["metadata"] == dict(metadata))
    if not unchanged:
        await tx.execute(queries.describe_document, row["document_no"], dict(metadata))
        await tx.execute(queries.change_collection, collection_id, None, 0, 0, 0)
        version += 1
    return Stored(row["document_id"], row["chunks"], row["tokens"], version, unchanged)


async def remove(tx: Transaction, row: Record) -> None:
    """Take out a document whose row is locked: its chunks, its postings and its share of every count."""
    terms = await _take_out(tx, row["document_no"], row["collection_id"], row["chunks"])
    await tx.execute(queries.remove_document, row["document_no"])
    await _count(tx, row["collection_id"], terms)
    await tx.execute(queries.change_collection, row["collection_id"], None, -1, -row["chunks"], -row["length"])


async def _take_out(tx: Transaction, document_no: int, collection_id: int, chunks: int) -> Counter[str]:
    """Remove a document's chunks and postings; the answer is what that takes from each term's count."""
    terms: Counter[str] = Counter()
    for first in range(0, chunks, SLICE_CHUNKS):
        gone = await tx.fetch(queries.remove_postings, document_no, collection_id, first, first + SLICE_CHUNKS)
        for row in gone:
            terms[row["term"]] -= row["chunks"]
    if chunks:
        await tx.execute(queries.remove_chunks, document_no)
    return terms


async def _count(tx: Transaction, collection_id: int, terms: Counter[str]) -> None:
    changes = sorted((term, change) for term, change in terms.items() if change)
    names = [term for term, _ in changes]
    await tx.execute(queries.change_terms, collection_id, names, [change for _, change in changes])
    if any(change < 0 for _, change in changes):
        await tx.execute(queries.forget_terms, collection_id, names)


def _records(
    collection_id: int, document_no: int, first: int, pieces: Sequence[Piece], vectors: Mapping[bytes, bytes]
) -> Iterator[tuple[object, ...]]:
    for ordinal, piece in enumerate(pieces, first):
        chunk = piece.chunk
        yield (
            collection_id, document_no, ordinal, chunk.start, chunk.end, chunk.page, piece.heading, piece.text,
            piece.digest, Vector(floats(vectors[piece.digest])),
        )  # fmt: skip


def floats(vector: bytes) -> list[float]:
    """Little-endian float32 bytes as numbers. Raises Fault(UPSTREAM) when they are none."""
    try:
        return array("f", vector).tolist()
    except ValueError as error:
        raise Fault(Code.UPSTREAM, "the embedding model answered with a broken vector") from error
