"""Files in: each reaches the index, or is quarantined with its reason; an accepted one is never lost."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sys
import time
import unicodedata
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import JsonValue

from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from runtime.settings import Settings
from stack import Stack
from store.objects import Objects
from subjects import grammar, ingestion, jobs
from subjects.contract import Code, Fault
from tests.integration.ingestion_lab import INDEX, pdf, zipped
from tests.lab.fixtures import ended
from workers.ingestion import extract as extraction
from workers.ingestion import sniff
from workers.ingestion.worker import WORKER as INGESTION
from workers.jobs.worker import WORKER as JOBS
from workers.serving.boot import serving
from workers.serving.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
FORMATS = Path(os.environ.get("FAAS_TEST_DATA", ROOT.parent / "shared" / "data")) / "formats"
BOMB = zipped({"[Content_Types].xml": b"<Types/>", "word/document.xml": b"\0" * (600 << 20)})
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600 + "EncryptedPackage".encode("utf-16-le")


@pytest_asyncio.fixture
async def served(settings: Settings) -> AsyncIterator[None]:
    own = await connect(settings, name="ingestion-here")
    async with serving([INGESTION, INDEX, JOBS], settings, own):
        yield
    await own.close()


@pytest.fixture
def objects(connection: Connection) -> Objects:
    return Objects(connection)


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


class Uploader:
    """What the bridge does: bytes into the object store, then register."""

    def __init__(self, client: Client, objects: Objects, identity: Identity) -> None:
        self.client, self.objects, self.identity = client, objects, identity

    async def store(self, content: bytes, name: str, metadata: dict[str, JsonValue]) -> ingestion.Register:
        file_id = "f" + uuid.uuid4().hex[:20]
        tenant = self.identity.tenant
        await self.objects.put(tenant, file_id, one(content), max_bytes=1 << 30, timeout_s=20)
        digest = hashlib.sha256(content).hexdigest()
        return ingestion.Register(file_id=file_id, name=name, size=len(content), sha256=digest, metadata=metadata)

    async def register(self, message: ingestion.Register) -> ingestion.Uploaded:
        return await self.client.call(ingestion.REGISTER, message, identity=self.identity)

    async def upload(self, content: bytes, name: str = "a file", **metadata: JsonValue) -> ingestion.Uploaded:
        return await self.register(await self.store(content, name, metadata))

    async def file(self, file_id: str) -> ingestion.File:
        return await self.client.call(ingestion.GET_FILE, ingestion.GetFile(file_id=file_id), identity=self.identity)

    async def ended(self, uploaded: ingestion.Uploaded) -> jobs.Job:
        return await ended(self.client, self.identity, uploaded.job_id, within_s=60)

    async def text(self, file_id: str) -> str:
        data = await self.objects.read(self.identity.tenant, f"{file_id}-text", max_bytes=32 << 20, timeout_s=10)
        return data.decode("utf-8")


@pytest.fixture
def uploader(client: Client, objects: Objects, identity: Identity) -> Uploader:
    return Uploader(client, objects, identity)


@pytest.mark.usefixtures("served")
class TestProcessing:
    async def test_a_pdf_goes_through_every_stage(self, uploader: Uploader) -> None:
        uploaded = await uploader.upload(pdf("The first page.", "The number is 4711."), "report.pdf")
        assert uploaded.type == sniff.PDF
        job = await uploader.ended(uploaded)
        assert job.status == "succeeded", job.fault
        assert job.progress == jobs.Progress(done=4, total=4, unit="stages", message="done")
        result = ingestion.Processed.model_validate(job.result)
        assert (result.document_id, result.pages) == ("d1", 2)
        file = await uploader.file(uploaded.file_id)
        assert (file.status, file.document_id, file.pages) == ("indexed", "d1", 2)
        assert [stage.status for stage in file.stages] == ["done"] * 4
        assert all(stage.at is not None for stage in file.stages)
        text = await uploader.text(uploaded.file_id)
        assert [page.strip() for page in text.split("\f")] == ["The first page.", "The number is 4711."]
        assert result.chunks == len(text)

    async def test_a_processed_file_is_not_processed_again(self, uploader: Uploader) -> None:
        uploaded = await uploader.upload(b"Some words.", "a.txt")
        first = await uploader.ended(uploaded)
        again = await uploader.client.call(
            ingestion.PROCESS, ingestion.Process(file_id=uploaded.file_id), identity=uploader.identity
        )
        assert again.model_dump() == first.result

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "empty"),
            (b"   \n", "empty"),
            (pdf(""), "images"),
            (pdf("x" * 200)[:150], "broken"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "image"),
            (b"ID3\x03" + b"\0" * 50, "audio"),
            (b"\x7fELF" + b"\0" * 50, "cannot be indexed"),
            (OLE, "encrypted"),
            (zipped({"a.txt": b"x"}), "cannot be indexed"),
            (b"PK\x03\x04broken", "broken"),
            (zipped({"[Content_Types].xml": b"<Types/>", "word/document.xml": b"<broken"}), ""),
            (BOMB, "unpacks"),
        ],
        ids=["nothing", "blank", "scan", "cut", "png", "mp3", "elf", "secret", "zip", "cut-zip", "bad-docx", "bomb"],
    )
    async def test_what_cannot_be_indexed_is_quarantined_with_its_reason(
        self, uploader: Uploader, content: bytes, reason: str
    ) -> None:
        uploaded = await uploader.upload(content, "../../../etc/passwd")
        job = await uploader.ended(uploaded)
        assert job.status == "failed"
        assert job.fault is not None
        assert job.fault.code in (Code.INVALID, Code.TOO_LARGE)
        assert reason in job.fault.detail
        file = await uploader.file(uploaded.file_id)
        assert file.status == "quarantined"
        assert [stage.error for stage in file.stages if stage.status == "failed"] == [job.fault.detail]
        assert file.document_id is None
        assert file.index_job_id is None
        assert file.name == "../../../etc/passwd"
        with pytest.raises(Fault):
            await uploader.text(uploaded.file_id)

    async def test_a_file_that_rag_refuses_is_quarantined(self, uploader: Uploader) -> None:
        uploaded = await uploader.upload(b"Some words.", "a.txt", fail=True)
        job = await uploader.ended(uploaded)
        assert job.fault is not None
        assert "refuses" in job.fault.detail
        file = await uploader.file(uploaded.file_id)
        assert (file.status, file.stages[-1].status) == ("quarantined", "failed")
        assert file.index_job_id is not None

    async def test_each_stage_is_told(self, uploader: Uploader, connection: Connection, tenant: str) -> None:
        heard: list[str] = []
        every = grammar.event(tenant, "ingestion", "*")

        async def hear(msg: Any) -> None:
            heard.append(msg.subject.rsplit(".", 1)[1])

        subscription = await connection.subscribe(every, cb=hear)
        await uploader.ended(await uploader.upload(b"Some words.", "a.txt"))
        await uploader.ended(await uploader.upload(b""))
        expected = Counter({"file_received": 2, "file_extracted": 1, "file_failed": 1})
        await until(lambda: Counter(heard) == expected)
        await subscription.unsubscribe()

    async def test_registering_again_changes_nothing(self, uploader: Uploader) -> None:
        message = await uploader.store(b"Some words.", "a.txt", {})
        first = await uploader.register(message)
        assert await uploader.register(message) == first
        other = message.model_copy(update={"sha256": "0" * 64})
        with pytest.raises(Fault) as caught:
            await uploader.register(other)
        assert caught.value.code == Code.CONFLICT
        assert (await uploader.ended(first)).status == "succeeded"

    async def test_a_job_that_comes_before_its_row_waits_for_it(self, uploader: Uploader) -> None:
        message = await uploader.store(b"Some words.", "a.txt", {})
        process = ingestion.Process(file_id=message.file_id)
        submitted = await uploader.client.submit(
            ingestion.PROCESS, process, identity=uploader.identity, key=message.file_id
        )
        await asyncio.sleep(0.5)
        uploaded = await uploader.register(message)
        assert uploaded.job_id == submitted.job_id
        job = await uploader.ended(uploaded)
        assert job.status == "succeeded"

    async def test_a_file_of_another_tenant_is_not_found(self, uploader: Uploader, client: Client) -> None:
        uploaded = await uploader.upload(b"Some words.", "a.txt")
        stranger = Identity.new("t" + uuid.uuid4().hex[:12])
        with pytest.raises(Fault) as caught:
            await client.call(ingestion.GET_FILE, ingestion.GetFile(file_id=uploaded.file_id), identity=stranger)
        assert caught.value.code == Code.NOT_FOUND
        with pytest.raises(Fault) as caught:
            await client.call(ingestion.PROCESS, ingestion.Process(file_id=uploaded.file_id), identity=stranger)
        assert caught.value.code == Code.NOT_FOUND

    async def test_files_are_listed_newest_first(self, uploader: Uploader, client: Client) -> None:
        made = [(await uploader.upload(f"Text {n}.".encode(), f"{n}.txt")) for n in range(5)]
        for uploaded in made:
            await uploader.ended(uploaded)

        async def listed(**wanted: Any) -> tuple[list[str], str | None]:
            message = ingestion.ListFiles.model_validate(wanted)
            page = await client.call(ingestion.LIST_FILES, message, identity=uploader.identity)
            return [each.file_id for each in page.items], page.next_cursor

        newest = [each.file_id for each in reversed(made)]
        first, cursor = await listed(limit=3)
        rest, end = await listed(limit=3, cursor=cursor)
        assert (first + rest, end) == (newest, None)
        assert (await listed(status="indexed", collection="default"))[0] == newest
        assert (await listed(status="quarantined"))[0] == (await listed(collection="other"))[0] == []

    async def test_bytes_that_are_not_there_are_not_registered(self, uploader: Uploader) -> None:
        message = ingestion.Register(file_id="f" + uuid.uuid4().hex[:20], name="x", size=3, sha256="0" * 64)
        with pytest.raises(Fault) as caught:
            await uploader.register(message)
        assert caught.value.code == Code.NOT_FOUND


async def test_a_killed_worker_goes_on_at_the_stage_where_it_died(
    uploader: Uploader, settings: Settings, stack: Stack, connection: Connection, tenant: str
) -> None:
    # By event id: a process killed between publishing and noting it has its event published again, under the same id.
    heard: dict[str, str] = {}

    async def hear(msg: Any) -> None:
        heard[msg.headers[h.MESSAGE_ID]] = msg.subject.rsplit(".", 1)[1]

    subscription = await connection.subscribe(grammar.event(tenant, "ingestion", "*"), cb=hear)
    environ = {**os.environ, **stack.environ(), "JOB_ACK_WAIT_S": "2", "LOG_LEVEL": "warning"}

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.ingestion_lab", cwd=ROOT, env=environ
        )

    own = await connect(settings, name="jobs-here")
    process = await start()
    try:
        async with serving([JOBS], settings, own):
            uploaded = await patiently(lambda: uploader.upload(b"Words.", "a.txt", not_before=time.time() + 6))
            await until(lambda: "file_extracted" in heard.values())
            process.kill()
            await process.wait()
            process = await start()
            assert (await uploader.ended(uploaded)).status == "succeeded"
    finally:
        process.kill()
        await process.wait()
        await subscription.unsubscribe()
        await own.close()
    assert Counter(heard.values())["file_extracted"] == 1


# --- what the pool's process makes of real files ---------------------------------------------------------------------

needs_formats = pytest.mark.skipif(not FORMATS.is_dir(), reason="no sample files: set FAAS_TEST_DATA")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(max_workers=1)
    yield pool
    await pool.close()


async def extracted(pool: Pool, path: Path, folder: Path) -> tuple[extraction.Extracted, str]:
    target = folder / "text"
    found = await pool.run(extraction.extract, str(path), str(target), path.name, timeout_s=60)
    return found, target.read_bytes().decode("utf-8")


@needs_formats
@pytest.mark.parametrize(("ending", "floor"), [("pdf", 0.95), ("html", 0.90), ("epub", 0.97)])
async def test_a_document_reads_the_same_in_every_format(pool: Pool, tmp_path: Path, ending: str, floor: float) -> None:
    _, twin = await extracted(pool, FORMATS / "developers-reference.txt", tmp_path)
    found, text = await extracted(pool, FORMATS / f"developers-reference.{ending}", tmp_path)
    assert alike(text, twin) > floor
    assert text == unicodedata.normalize("NFC", text)
    assert not re.search(r"[\x00-\x08\x0b\x0d-\x1f\x7f]", text.replace("\f", ""))
    if ending == "pdf":
        assert found["pages"] == 114 == text.count("\f") + 1


@needs_formats
@pytest.mark.parametrize(
    ("name", "type_", "words"),
    [
        ("converter_test.docx", sniff.DOCX, "This is a raw test"),
        ("converter_test.odt", sniff.ODT, "This is a raw test"),
        ("converter_test.rtf", sniff.RTF, "This is a raw test"),
        ("converter_test.pdf", sniff.PDF, "This is a raw test"),
        ("hdr-header-footer.docx", sniff.DOCX, "section without header of its own"),
        ("md/queue.md", sniff.MARKDOWN, "# Queue Groups"),
    ],
)
async def test_real_files_are_read(pool: Pool, tmp_path: Path, name: str, type_: str, words: str) -> None:
    found, text = await extracted(pool, FORMATS / name, tmp_path)
    assert found["type"] == type_
    assert words in text


@needs_formats
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crazyones-encrypted-256.pdf", "encrypted"),
        ("imagemagick-CCITTFaxDecode.pdf", "images"),
        ("tbl-having-tables.docx", "no text"),
    ],
)  # fmt: skip
async def test_real_files_that_cannot_be_read_say_why(pool: Pool, tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(Fault, match=reason) as caught:
        await extracted(pool, FORMATS / name, tmp_path)
    assert caught.value.code == Code.INVALID


@pytest.mark.parametrize(
    ("name", "content", "type_", "expected"),
    [
        ("a.csv", b"name,amount\nAda,12\n", sniff.CSV, "amount: 12"),
        ("a.json", b'{"title": "x", "items": [{"a": "some text"}]}', sniff.JSON, "some text"),
        ("a.xml", b'<?xml version="1.0"?><r><p>Hello</p></r>', sniff.XML, "Hello"),
        ("a.html", b'<p>See <a href="http://x">the link</a> &amp; go</p>', sniff.HTML, "See the link & go"),
        ("a.html", "<meta charset=iso-8859-1><p>Köln</p>".encode("latin-1"), sniff.HTML, "Köln"),
        ("a.eml", b"From: a@b.c\r\nTo: d@e.f\r\nSubject: S\r\n\r\nThe number is 4711.\r\n", sniff.EMAIL, "4711"),
        ("a.txt", "Grüße\r\n\x07bell".encode("latin-1"), sniff.TEXT, "Grüße\nbell"),
        ("a.txt", "e\u0301".encode(), sniff.TEXT, "\u00e9"),
        ("a.txt", b"one\ftwo", sniff.TEXT, "one\ftwo"),
        ("a.txt", "Wörter".encode("utf-16"), sniff.TEXT, "Wörter"),
    ],
)  # fmt: skip
async def test_small_files_are_read(
    pool: Pool, tmp_path: Path, name: str, content: bytes, type_: str, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found, text = await extracted(pool, path, tmp_path)
    assert found["type"] == type_
    assert expected in text


def alike(a: str, b: str) -> float:
    """F1 of the two bags of words."""
    bags = [Counter(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())) for text in (a, b)]
    return 2 * (bags[0] & bags[1]).total() / (bags[0].total() + bags[1].total())


async def until(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  what is awaited happens in another process
            await asyncio.sleep(0.05)


async def patiently(ask: Callable[[], Any], within_s: float = 20.0) -> Any:
    """Ask until somebody is there to answer."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return await ask()
        except Fault as fault:
            if fault.code != Code.UNAVAILABLE or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
