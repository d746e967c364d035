"""rag: documents in, cited answers out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from subjects.contract import Call, Code, Event, EventPayload, Model
from subjects.gateway import Usage
from subjects.grammar import TOKEN

MAX_DOCUMENT_TEXT = 900_000  # characters in one message; larger texts come as file_id

Collection = Annotated[str, Field(pattern=TOKEN)]
Filters = Annotated[dict[str, JsonValue], Field(max_length=16, description="metadata fields that must be equal")]


class Chunking(Model):
    """max_words: an upper bound of a chunk; the default model cuts at 256 tokens, which is about 220 words."""

    max_words: int = Field(220, ge=20, le=220)


class Ingest(Model):
    """Exactly one of text and file_id. file_id names an object that holds extracted text (ingestion puts it there)."""

    text: str | None = Field(None, max_length=MAX_DOCUMENT_TEXT)
    file_id: str | None = Field(None, pattern=TOKEN)
    title: str = Field("", max_length=500)
    source_id: str | None = Field(None, max_length=255, description="the same source replaces atomically")
    collection: Collection = "default"
    metadata: dict[str, JsonValue] = Field(default={}, max_length=64)
    chunking: Chunking = Chunking()

    @model_validator(mode="after")
    def _one_source(self) -> Ingest:
        if (self.text is None) == (self.file_id is None):
            raise ValueError("give exactly one of text and file_id")
        return self


class Ingested(Model):
    document_id: str
    chunks: int
    tokens: int
    unchanged: bool = False


class Citation(Model):
    """quote stands verbatim in the document's text from start to end (characters)."""

    document_id: str
    chunk_id: str
    title: str = ""
    start: int
    end: int
    quote: str
    score: float
    page: int | None = None


class Timings(Model):
    """Milliseconds of each stage."""

    embed_ms: float = 0
    search_ms: float = 0
    generate_ms: float = 0
    total_ms: float = 0


class Query(Model):
    question: str = Field(min_length=1, max_length=4000)
    collection: Collection = "default"
    top_k: int = Field(5, ge=1, le=50)
    filters: Filters = {}
    model: str | None = Field(None, max_length=200)
    min_score: float = Field(0.0, ge=0, le=1)
    cache: Literal["on", "off"] = "on"


class Answer(Model):
    answer: str
    answered: bool = Field(description="false = the documents do not answer the question")
    citations: list[Citation] = []
    usage: Usage = Usage()
    timings: Timings = Timings()
    cached: bool = False


class AnswerChunk(Model):
    text: str


class Search(Model):
    query: str = Field(min_length=1, max_length=4000)
    collection: Collection = "default"
    mode: Literal["hybrid", "vector", "text"] = "hybrid"
    top_k: int = Field(10, ge=1, le=100)
    filters: Filters = {}
    cache: Literal["on", "off"] = "on"


class Hit(Model):
    document_id: str
    chunk_id: str
    source_id: str
    title: str
    text: str
    score: float
    start: int
    end: int
    page: int | None = None


class SearchResult(Model):
    results: list[Hit]
    timings: Timings = Timings()
    cached: bool = False


class Document(Model):
    document_id: str
    source_id: str
    collection: str
    title: str
    metadata: dict[str, JsonValue] = {}
    chunks: int
    tokens: int
    characters: int
    version: int
    created_at: datetime
    updated_at: datetime
    text: str | None = Field(None, description="only in get_document, when asked for and at most 400,000 characters")


class GetDocument(Model):
    document_id: str = Field(pattern=TOKEN)
    include_text: bool = False


class ListDocuments(Model):
    collection: Collection | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=512)


class DocumentList(Model):
    items: list[Document]
    next_cursor: str | None = None


class UpdateDocument(Model):
    """What is absent stays as it is. Another text or title is cut, embedded and indexed anew; metadata is replaced."""

    document_id: str = Field(pattern=TOKEN)
    text: str | None = Field(None, min_length=1, max_length=MAX_DOCUMENT_TEXT)
    title: str | None = Field(None, max_length=500)
    metadata: dict[str, JsonValue] | None = Field(None, max_length=64)
    chunking: Chunking = Field(Chunking(), description="of a text that is cut anew")


class DeleteDocument(Model):
    document_id: str = Field(pattern=TOKEN)


class Deleted(Model):
    deleted: bool


class DocumentIndexed(EventPayload):
    """entity_id is the document id."""

    source_id: str
    collection: str
    chunks: int


class DocumentDeleted(EventPayload):
    source_id: str
    collection: str


DOCUMENTS = "/api/v1/rag/documents"
MODEL_FAULTS = (Code.NOT_FOUND, Code.CONFLICT, Code.UPSTREAM)  # an unknown model, a mix of models, a provider

INGEST = Call(
    "rag", "ingest", Ingest, Ingested, timeout_s=300, job_timeout_s=3600, mutates=True, long=True,
    http=(f"POST {DOCUMENTS}",), summary="Chunk, embed and index a text", raises=MODEL_FAULTS,
    example={"text": "The moon is 384400 km away.", "title": "Moon", "source_id": "moon"},
    example_reply={"document_id": "d5f1c0", "chunks": 1, "tokens": 12, "unchanged": False},
)  # fmt: skip
QUERY = Call(
    "rag", "query", Query, Answer, chunk=AnswerChunk, timeout_s=60,
    summary="Answer a question from the documents, with citations", raises=MODEL_FAULTS,
    example={"question": "How far is the moon?"},
    example_reply={
        "answer": "The moon is 384400 km away.", "answered": True,
        "citations": [{
            "document_id": "d5f1c0", "chunk_id": "d5f1c0-0", "title": "Moon", "start": 0, "end": 27,
            "quote": "The moon is 384400 km away.", "score": 0.97, "page": None,
        }],
        "usage": {"input": 120, "cache_read": 0, "cache_write": 0, "output": 14, "reasoning": 0},
        "timings": {"embed_ms": 4.1, "search_ms": 2.2, "generate_ms": 310.0, "total_ms": 318.5}, "cached": False,
    },
)  # fmt: skip
SEARCH = Call(
    "rag", "search", Search, SearchResult, timeout_s=30, summary="Find the chunks that match a query",
    raises=MODEL_FAULTS, example={"query": "distance of the moon", "top_k": 3},
    example_reply={
        "results": [{
            "document_id": "d5f1c0", "chunk_id": "d5f1c0-0", "source_id": "moon", "title": "Moon",
            "text": "The moon is 384400 km away.", "score": 0.97, "start": 0, "end": 27, "page": None,
        }],
        "timings": {"embed_ms": 4.1, "search_ms": 2.2, "generate_ms": 0, "total_ms": 7.0}, "cached": False,
    },
)  # fmt: skip
_DOCUMENT = {
    "document_id": "d5f1c0", "source_id": "moon", "collection": "default", "title": "Moon", "metadata": {"year": 1969},
    "chunks": 1, "tokens": 12, "characters": 27, "version": 1, "created_at": "2026-01-05T10:00:00Z",
    "updated_at": "2026-01-05T10:00:00Z", "text": None,
}  # fmt: skip
GET_DOCUMENT = Call(
    "rag", "get_document", GetDocument, Document, timeout_s=10, job=False, http=(f"GET {DOCUMENTS}/{{document_id}}",),
    summary="A document, with its text when asked", raises=(Code.NOT_FOUND,), example={"document_id": "d5f1c0"},
    example_reply=_DOCUMENT,
)  # fmt: skip
LIST_DOCUMENTS = Call(
    "rag", "list_documents", ListDocuments, DocumentList, timeout_s=10, job=False, http=(f"GET {DOCUMENTS}",),
    summary="The documents, in the order in which they came", raises=(), example={"collection": "default", "limit": 50},
    example_reply={"items": [_DOCUMENT], "next_cursor": None},
)  # fmt: skip
UPDATE_DOCUMENT = Call(
    "rag", "update_document", UpdateDocument, Document, timeout_s=120, mutates=True,
    http=(f"PUT {DOCUMENTS}/{{document_id}}",), summary="Change a document's text, title or metadata",
    raises=MODEL_FAULTS, example={"document_id": "d5f1c0", "metadata": {"year": 1969}}, example_reply=_DOCUMENT,
)  # fmt: skip
DELETE_DOCUMENT = Call(
    "rag", "delete_document", DeleteDocument, Deleted, timeout_s=30, mutates=True,
    http=(f"DELETE {DOCUMENTS}/{{document_id}}",), summary="Take a document out with all that was made of it",
    raises=(), example={"document_id": "d5f1c0"}, example_reply={"deleted": True},
)  # fmt: skip

DOCUMENT_INDEXED = Event("rag", "document_indexed", DocumentIndexed)
DOCUMENT_DELETED = Event("rag", "document_deleted", DocumentDeleted)
