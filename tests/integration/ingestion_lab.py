"""A rag that only counts characters, so that ingestion is tested without models; and files made by hand.

`python -m tests.integration.ingestion_lab` serves ingestion with it, in a process that can be killed.
"""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtime import telemetry
from runtime.settings import Settings
from store.objects import Objects
from subjects import rag
from subjects.contract import Code, Fault
from workers.ingestion.worker import WORKER as INGESTION
from workers.serving import Context, Host, Later, Worker, serve
from workers.serving.boot import run

READ_TIMEOUT_S = 10.0


@asynccontextmanager
async def _lifespan(host: Host) -> AsyncIterator[Objects]:
    yield host.objects


async def _ingest(ctx: Context[Objects], message: rag.Ingest) -> rag.Ingested:
    """metadata says how it goes: {"fail": true}, or {"not_before": unix seconds}."""
    if message.metadata.get("fail"):
        raise Fault(Code.INVALID, "the embedding model refuses it")
    not_before = message.metadata.get("not_before", 0)
    assert isinstance(not_before, int | float)
    if time.time() < not_before:
        raise Later(0.3)
    text = await ctx.deps.read(ctx.tenant, str(message.file_id), max_bytes=32 << 20, timeout_s=READ_TIMEOUT_S)
    return rag.Ingested(document_id="d1", chunks=len(text.decode("utf-8")), tokens=0)


INDEX = Worker("rag", _lifespan, serves=[serve(rag.INGEST, _ingest)], needs=frozenset({"database", "objects"}))


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page; an empty string makes a page without any."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else "0 0 100 100 re f"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * n} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(f"{number} 0 obj\n{body}\nendobj\n".encode())
    start = out.tell()
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    for offset in offsets:
        out.write(f"{offset:010d} 00000 n \n".encode())
    out.write(f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode())
    return out.getvalue()


def zipped(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


if __name__ == "__main__":
    settings = Settings.load()
    telemetry.configure(settings, "ingestion-lab")
    asyncio.run(run([INGESTION, INDEX], settings))
