"""rag's documents: read, list, delete."""

from __future__ import annotations

from subjects import rag
from subjects.contract import Code, Fault
from workers.rag import cached, index
from workers.rag.deps import Deps
from workers.rag.index import queries
from workers.serving import Context

MAX_TEXT_CHARACTERS = 400_000  # in one reply; more stays in the store


async def get_document(ctx: Context[Deps], message: rag.GetDocument) -> rag.Document:
    """A document, with its text when asked. Raises Fault(NOT_FOUND), and TOO_LARGE for a text over 400,000
    characters."""
    async with ctx.read() as tx:
        row = await tx.fetchrow(queries.get_document, message.document_id, message.include_text)
    if row is None:
        raise Fault(Code.NOT_FOUND, f"there is no document {message.document_id}")
    if message.include_text and row["characters"] > MAX_TEXT_CHARACTERS:
        raise Fault(Code.TOO_LARGE, f"the text has {row['characters']} characters, more than {MAX_TEXT_CHARACTERS}")
    return rag.Document.model_validate(dict(row))


async def list_documents(ctx: Context[Deps], message: rag.ListDocuments) -> rag.DocumentList:
    """Documents in the order in which they came. Raises Fault(INVALID) on a cursor that is not ours."""
    after = _after(message.cursor)
    async with ctx.read() as tx:
        rows = await tx.fetch(queries.list_documents, after, message.collection, message.limit + 1)
    page = rows[: message.limit]
    more = str(page[-1]["document_no"]) if len(rows) > message.limit else None
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


def _after(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isdecimal() or len(cursor) > 18:
        raise Fault(Code.INVALID, "the cursor is not one that this list gave; begin without one")
    return int(cursor)
