"""The stage that makes text of a file: object store -> temporary file -> pool -> object store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from subjects.contract import Code, Fault, Model
from subjects.ingestion import File
from workers.ingestion import extract
from workers.ingestion.deps import Deps
from workers.serving import Context

EXTRACT_TIMEOUT_S = 120.0
EXTRACT_MEMORY_BYTES = 1 << 30
DOWNLOAD_TIMEOUT_S = 120.0
UPLOAD_TIMEOUT_S = 60.0
CHUNK_BYTES = 128 << 10
TEXT_SUFFIX = "-text"


class Extraction(Model):
    """What the journal keeps of a stage whose result is in the object store."""

    type: str
    characters: int
    pages: int | None
    title: str


def text_id(file_id: str) -> str:
    """The object that holds the file's text: UTF-8, pages separated by form feeds."""
    return file_id + TEXT_SUFFIX


async def extract_text(ctx: Context[Deps], file: File) -> Extraction:
    """Put the file's text into the object store. The same file gives the same object: safe to repeat.

    Raises Fault: INVALID (why it cannot be read), TOO_LARGE (the file's memory or text), and retryable ones of the
    object store and the pool.
    """
    with TemporaryDirectory(prefix="faas-extract-") as folder:  # file names of ours only, never the user's
        source, text = Path(folder, "file"), Path(folder, "text")
        with source.open("wb") as copy:  # noqa: ASYNC230  a chunk at a time, into the page cache
            async for chunk in ctx.deps.objects.open(ctx.tenant, file.file_id, timeout_s=DOWNLOAD_TIMEOUT_S):
                copy.write(chunk)
        extraction = Extraction.model_validate(await _pooled(ctx, source, text, file.name))
        await ctx.deps.objects.put(
            ctx.tenant,
            text_id(file.file_id),
            _chunks(text),
            max_bytes=extract.MAX_TEXT_BYTES,
            timeout_s=UPLOAD_TIMEOUT_S,
        )
    return extraction


async def _pooled(ctx: Context[Deps], source: Path, text: Path, name: str) -> extract.Extracted:
    full_time = ctx.remaining_s() > EXTRACT_TIMEOUT_S
    try:
        extracted: extract.Extracted = await ctx.pool(
            extract.extract,
            *(str(source), str(text), name),
            timeout_s=EXTRACT_TIMEOUT_S,
            memory_bytes=EXTRACT_MEMORY_BYTES,
        )
    except Fault as fault:
        if fault.code == Code.TIMEOUT and full_time:
            raise Fault(Code.INVALID, f"the text could not be extracted within {EXTRACT_TIMEOUT_S:g} s") from fault
        if fault.code == Code.INTERNAL:  # the traceback is logged; the same bytes would fail the same way
            raise Fault(Code.INVALID, "the file could not be read") from fault
        raise
    return extracted


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
