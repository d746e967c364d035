"""rag: documents in, cited answers out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from subjects.contract import Call, Event, EventPayload, Model
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


INGEST = Call("rag", "ingest", Ingest, Ingested, timeout_s=300, job_timeout_s=3600, mutates=True, long=True,
              summary="Chunk, embed and index a text")  # fmt: skip
QUERY = Call("rag", "query", Query, Answer, chunk=AnswerChunk, timeout_s=60,
             summary="Answer a question from the documents, with citations")  # fmt: skip
SEARCH = Call("rag", "search", Search, SearchResult, timeout_s=30, summary="Find the chunks that match a query")
GET_DOCUMENT = Call("rag", "get_document", GetDocument, Document, timeout_s=10, job=False)
LIST_DOCUMENTS = Call("rag", "list_documents", ListDocuments, DocumentList, timeout_s=10, job=False)
DELETE_DOCUMENT = Call("rag", "delete_document", DeleteDocument, Deleted, timeout_s=30, mutates=True)

DOCUMENT_INDEXED = Event("rag", "document_indexed", DocumentIndexed)
DOCUMENT_DELETED = Event("rag", "document_deleted", DocumentDeleted)
