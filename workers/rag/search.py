"""Hybrid search: BM25 over our own postings and cosine over vectors, fused in one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pgvector import Vector

from store.transaction import Record, Transaction
from subjects import rag
from workers.rag.index import queries

EXACT_UP_TO_CHUNKS = 5_000  # below it, reading every vector is faster than the HNSW index, and finds all
HNSW_DIMENSIONS = 384  # the index is built for these; collections of other models are searched exactly
WEIGHT_OF_WORDS: Mapping[Literal["hybrid", "vector", "text"], float] = {"hybrid": 0.5, "vector": 0.0, "text": 1.0}

_exact = queries.search.replace("{near}", queries.near_exact)
_hnsw = queries.search.replace("{near}", queries.near_hnsw)


@dataclass(frozen=True)
class Collection:
    """A collection's statistics row. length counts the lexemes of all chunks."""

    collection_id: int
    name: str
    model: str
    revision: str
    dimensions: int
    chunks: int
    length: int
    version: int

    @property
    def mean_length(self) -> float:
        return max(1.0, self.length / max(1, self.chunks))


@dataclass(frozen=True)
class Found:
    """A hit, and the heading path that stood in front of its text in the index."""

    hit: rag.Hit
    heading: str


async def get_collection(tx: Transaction, name: str) -> Collection | None:
    row = await tx.fetchrow(queries.get_collection, name)
    if row is None:
        return None
    return Collection(**{field: row[field] for field in Collection.__dataclass_fields__})


async def find(
    tx: Transaction, collection: Collection, message: rag.Search, *, vector: Sequence[float] | None
) -> list[Found]:
    """The best chunks, best first. vector is the query's, None for mode text.

    The transaction must be one for search (plan_cache_mode, hnsw settings). Scores are 0 to 1 and relative to the
    candidates of this query. Whether vectors are read exactly or by the HNSW index is decided here by the number of
    chunks in question: under row-level security the planner does not see it.
    """
    lexemes: list[str] = []
    if message.mode != "vector":
        lexemes = await tx.fetchval(queries.lexemes, message.query) or []
    filters = dict(message.filters) or None
    searched = collection.chunks
    if filters is not None:
        searched = await tx.fetchval(queries.count_filtered, collection.collection_id, filters)
    exact = searched <= EXACT_UP_TO_CHUNKS or collection.dimensions != HNSW_DIMENSIONS
    rows = await tx.fetch(
        _exact if exact else _hnsw,
        collection.collection_id,
        lexemes,
        None if vector is None else Vector(list(vector)),
        float(collection.chunks),
        collection.mean_length,
        WEIGHT_OF_WORDS[message.mode],
        message.top_k,
        filters,
    )
    return [_found(row) for row in rows]


def _found(row: Record) -> Found:
    hit = rag.Hit(
        document_id=row["document_id"],
        chunk_id=f"{row['document_id']}-{row['ordinal']}",
        source_id=row["source_id"],
        title=row["title"],
        text=row["text"],
        score=min(1.0, max(0.0, row["score"])),
        start=row["start_at"],
        end=row["end_at"],
        page=row["page"],
    )
    return Found(hit, row["heading"])
