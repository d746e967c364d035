"""rag's documents: read, list, change, delete."""

from __future__ import annotations

from store import cursors
from store.transaction import Transaction
from subjects import rag
from subjects.contract import Code, Fault
from workers.rag import cached, index
from workers.rag.deps import Deps
from workers.rag.index import queries
from workers.rag.ingesting import prepare, tell_indexed
from workers.serving import Context

MAX_TEXT_CHARACTERS = 400_000  # in one reply; more stays in the store


async def get_document(ctx: Context[Deps], message: rag.GetDocument) -> rag.Document:
    """A document, with its text when asked. Raises Fault(NOT_FOUND), and TOO_LARGE for a text over 400,000
    characters."""
    async with ctx.read() as tx:
        row = await tx.fetchrow(queries.get_document, message.document_id, message.include_text)
    if row is None:
        raise _unknown(message.document_id)
    if message.include_text and row["characters"] > MAX_TEXT_CHARACTERS:
        raise Fault(Code.TOO_LARGE, f"the text has {row['characters']} characters, more than {MAX_TEXT_CHARACTERS}")
    return rag.Document.model_validate(dict(row))


async def list_documents(ctx: Context[Deps], message: rag.ListDocuments) -> rag.DocumentList:
    """Documents in the order in which they came. Raises Fault(INVALID) on a cursor that is not ours."""
    after = 0 if message.cursor is None else cursors.number(message.cursor)
    async with ctx.read() as tx:
        rows = await tx.fetch(queries.list_documents, after, message.collection, message.limit + 1)
    page = rows[: message.limit]
    more = cursors.make(page[-1]["document_no"]) if len(rows) > message.limit else None
    return rag.DocumentList(items=[rag.Document.model_validate(dict(row)) for row in page], next_cursor=more)


async def delete_document(ctx: Context[Deps], message: rag.DeleteDocument) -> rag.Deleted:
    """Take a document out with everything that was made of it. One that is not there is deleted: false."""
    tx = await ctx.begin()
    row = await tx.fetchrow(queries.lock_document, message.document_id)
    if row is None:
        return rag.Deleted(deleted=False)
    await index.remove(tx, row)
    ctx.emit(rag.DOCUMENT_DELETED, rag.DocumentDeleted(
        entity_id=row["document_id"], version=row["version"] + 1, source_id=row["source_id"],
        collection=row["collection"],
    ))  # fmt: skip
    cached.forget(ctx, row["collection"])
    return rag.Deleted(deleted=True)


async def update_document(ctx: Context[Deps], message: rag.UpdateDocument) -> rag.Document:
    """Change what the message names; another text or title is cut, embedded and indexed anew.

    Raises Fault: NOT_FOUND, INVALID when there is no text in it, CONFLICT when the collection was embedded with another
    model, UNAVAILABLE when somebody else changes it at the same time, and what the gateway raises.
    """
    async with ctx.read() as tx:
        known = await tx.fetchrow(queries.get_document, message.document_id, True)
    if known is None:
        raise _unknown(message.document_id)
    whole = rag.Ingest(
        text=known["text"][:1],  # the text itself may be longer than a message
        title=known["title"] if message.title is None else message.title,
        source_id=known["source_id"],
        collection=known["collection"],
        metadata=known["metadata"] if message.metadata is None else message.metadata,
        chunking=message.chunking,
    )
    if message.text is None and whole.title == known["title"]:
        tx = await _locked(ctx, message.document_id, known["version"])
        stored = await index.describe(tx, message.document_id, whole.metadata)
    else:
        text = known["text"] if message.text is None else message.text
        prepared = await prepare(ctx, message.document_id, text, whole)
        tx = await _locked(ctx, message.document_id, known["version"])
        stored = await prepared.put(tx)
    if not stored.unchanged:
        tell_indexed(ctx, whole.collection, known["source_id"], stored)
    row = await tx.fetchrow(queries.get_document, message.document_id, False)
    assert row is not None  # its row is locked
    return rag.Document.model_validate(dict(row))


async def _locked(ctx: Context[Deps], document_id: str, version: int) -> Transaction:
    """The message's transaction with the document's row locked, as it was when it was read."""
    tx = await ctx.begin()
    row = await tx.fetchrow(queries.lock_document, document_id)
    if row is None:
        raise _unknown(document_id)
    if row["version"] != version:
        raise Fault(Code.UNAVAILABLE, "the document is being changed; ask again")
    return tx


def _unknown(document_id: str) -> Fault:
    return Fault(Code.NOT_FOUND, f"there is no document {document_id}")
