"""The NATS object store: files stream in and out in bounded memory, under a deadline, and arrive whole or not at all.

The layout is the one of the NATS object store (ADR-20), so that `nats object` reads it: chunks on `$O.files.C.<nuid>`,
the description of an object on `$O.files.M.<base64 of its name>`. nats-py's own `get` has no deadline and joins bytes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from runtime import telemetry
from runtime.connection import Connection
from runtime.stored import read_stored
from runtime.streams import FILES_BUCKET, FILES_STREAM
from store.bucket import DIGEST, Bucket, Description, chunk_subject, meta_subject
from subjects import grammar
from subjects.contract import Code, Fault

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 128 * 1024
CHUNKS_IN_FLIGHT = 8  # 1 MiB sent and not yet acknowledged
CLEANUP_TIMEOUT_S = 2.0
MAX_REPLACE_RACES = 5

_log = telemetry.get_logger(__name__)


@dataclass(frozen=True)
class Stored:
    """What is kept: bytes, and their SHA-256 in hex."""

    size: int
    sha256: str


class Objects:
    """The bucket `files`; an object is named `<tenant>/<file id>`.

    Every method raises Fault: INVALID (a tenant or id that is no token), NOT_FOUND, UNAVAILABLE, TIMEOUT.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bucket = Bucket(connection)

    async def put(
        self, tenant: str, file_id: str, chunks: AsyncIterator[bytes], *, max_bytes: int, timeout_s: float
    ) -> Stored:
        """Store what chunks yields under this name; what was there stays readable until the new one is whole.

        Holds about 1 MiB. Leaves nothing behind when it fails or is cancelled. Raises also Fault(TOO_LARGE) beyond
        max_bytes and Fault(EXHAUSTED) when the bucket is full.
        """
        name = _name(tenant, file_id)
        nuid = secrets.token_hex(11)
        digest = hashlib.sha256()
        try:
            async with asyncio.timeout(timeout_s):
                size, count = await self._send(nuid, chunks, digest, max_bytes)
                replaced = await self._describe(name, nuid, size, count, digest.digest())
        except BaseException as error:
            await self._clean(nuid)
            if isinstance(error, TimeoutError):
                raise Fault(Code.TIMEOUT, f"the file did not arrive within {timeout_s:g} s") from error
            raise
        if replaced.nuid:
            await self._clean(replaced.nuid)
        return Stored(size, digest.hexdigest())

    async def open(self, tenant: str, file_id: str, timeout_s: float) -> AsyncIterator[bytes]:
        """The object's bytes in pieces of at most 128 KiB. The deadline is for all of them, the reader's time included.

        Raises Fault(UNAVAILABLE) at the end when size or digest are not those of the description: it was replaced or
        deleted meanwhile, or is damaged.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        found = await self._find(_name(tenant, file_id))
        digest, size = hashlib.sha256(), 0
        pieces = read_stored(self._connection, FILES_STREAM, chunk_subject(found.nuid))
        while size < found.size:
            try:
                piece = await asyncio.wait_for(anext(pieces), deadline - asyncio.get_running_loop().time())
            except StopAsyncIteration:
                break
            except TimeoutError as error:
                raise Fault(Code.TIMEOUT, f"the file was not read within {timeout_s:g} s") from error
            digest.update(piece.data)
            size += len(piece.data)
            if size == found.size and digest.hexdigest() != found.sha256:
                break
            yield piece.data
        if size != found.size or digest.hexdigest() != found.sha256:
            raise Fault(Code.UNAVAILABLE, "the file changed while it was read, or is damaged: read it again")

    async def read(self, tenant: str, file_id: str, max_bytes: int, timeout_s: float) -> bytes:
        """The whole object. Raises also Fault(TOO_LARGE) beyond max_bytes."""
        out = bytearray()
        async for piece in self.open(tenant, file_id, timeout_s):
            out += piece
            if len(out) > max_bytes:
                raise Fault(Code.TOO_LARGE, f"the file has more than {max_bytes} bytes")
        return bytes(out)

    async def stat(self, tenant: str, file_id: str) -> Stored:
        """Size and digest of an object."""
        found = await self._find(_name(tenant, file_id))
        return Stored(found.size, found.sha256)

    async def delete(self, tenant: str, file_id: str) -> bool:
        """Remove an object and its description; False when there is none. A delete that died is simply repeated."""
        name = _name(tenant, file_id)
        found = await self._bucket.look(name)
        if found.sequence == 0:
            return False
        # Chunks first: while the description stands, a repeated delete still finds them.
        if found.nuid:
            await self._bucket.purge(chunk_subject(found.nuid))
        await self._bucket.purge(meta_subject(name), through=found.sequence)
        return not found.deleted

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _send(self, nuid: str, chunks: AsyncIterator[bytes], digest: _Hash, max_bytes: int) -> tuple[int, int]:
        """Publish the chunks in order, a few unacknowledged at a time. Returns bytes and chunks."""
        subject, buffer, size, count = chunk_subject(nuid), bytearray(), 0, 0
        in_flight: deque[asyncio.Task[int]] = deque()

        async def send(piece: bytes) -> None:
            digest.update(piece)
            if len(in_flight) >= CHUNKS_IN_FLIGHT:
                await in_flight.popleft()
            in_flight.append(asyncio.create_task(self._bucket.publish(subject, piece)))

        try:
            async for piece in chunks:
                size += len(piece)
                if size > max_bytes:
                    raise Fault(Code.TOO_LARGE, f"a file may have {max_bytes} bytes, this has more")
                buffer += piece
                while len(buffer) >= CHUNK_BYTES:
                    await send(bytes(buffer[:CHUNK_BYTES]))
                    del buffer[:CHUNK_BYTES]
                    count += 1
            if buffer:
                await send(bytes(buffer))
                count += 1
            while in_flight:
                await in_flight.popleft()
        finally:
            if in_flight:  # what is on its way must land before it can be cleaned up
                _, late = await asyncio.wait(in_flight, timeout=CLEANUP_TIMEOUT_S)
                for task in late:
                    task.cancel()
                await asyncio.gather(*in_flight, return_exceptions=True)
        return size, count

    async def _describe(self, name: str, nuid: str, size: int, count: int, digest: bytes) -> Description:
        """Publish the description: from here on this is the object. Returns the one that it replaced."""
        body = json.dumps(
            {
                "name": name,
                "bucket": FILES_BUCKET,
                "nuid": nuid,
                "size": size,
                "chunks": count,
                "digest": DIGEST + base64.urlsafe_b64encode(digest).decode(),
                "mtime": datetime.now(UTC).isoformat(),
                "options": {"max_chunk_size": CHUNK_BYTES},
            }
        ).encode()
        for _ in range(MAX_REPLACE_RACES):
            before = await self._bucket.look(name)
            expected = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(before.sequence)}
            # Two writers at once: the later one must see the earlier, or its chunks would stay for ever.
            if await self._bucket.publish(meta_subject(name), body, expected):
                return before
        raise Fault(Code.UNAVAILABLE, "the file is being replaced by others all the time: try again", retry_after_s=1)

    async def _find(self, name: str) -> Description:
        found = await self._bucket.look(name)
        if found.deleted:
            raise Fault(Code.NOT_FOUND, "there is no such file")
        return found

    async def _clean(self, nuid: str) -> None:
        """Remove chunks that nothing names any more, even when the caller is cancelled; best effort."""
        task = asyncio.create_task(self._bucket.purge(chunk_subject(nuid), timeout_s=CLEANUP_TIMEOUT_S))
        task.add_done_callback(_log_failure)
        await asyncio.wait({task})


def _name(tenant: str, file_id: str) -> str:
    return f"{grammar.token(tenant, 'tenant')}/{grammar.token(file_id, 'file id')}"


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.warning("file_chunks_left_behind", error=str(task.exception()))
