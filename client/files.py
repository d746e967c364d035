"""Files over HTTP, a piece at a time: a streamed multipart upload and a download to disk."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from client.errors import ServiceError
from subjects.contract import Code

PIECE_BYTES = 256 * 1024
Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the whole (None = not known); a repeated attempt begins at 0 again."""
Source = Path | bytes | AsyncIterable[bytes] | Callable[[], AsyncIterable[bytes]]
"""A path, bytes, or a function that opens the same bytes again. An iterator alone can be sent only once."""


@dataclass(frozen=True)
class Form:
    """A multipart form with one file, as bytes that come when they are asked for."""

    source: Source
    name: str
    fields: Mapping[str, Any]
    progress: Progress | None
    boundary: str
    size: int | None

    @classmethod
    async def of(cls, source: Source, name: str, fields: Mapping[str, Any], progress: Progress | None) -> Form:
        """Raises OSError when the path cannot be read."""
        size: int | None = None
        if isinstance(source, Path):
            size = (await asyncio.to_thread(source.stat)).st_size
        elif isinstance(source, bytes):
            size = len(source)
        given = {key: value for key, value in fields.items() if value is not None}
        shown = name or (source.name if isinstance(source, Path) else "file")
        return cls(source, shown, given, progress, secrets.token_hex(16), size)

    @property
    def reopens(self) -> bool:
        return isinstance(self.source, Path | bytes) or callable(self.source)

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self.boundary}"

    @property
    def length(self) -> int | None:
        return None if self.size is None else len(self._head()) + self.size + len(self._tail())

    async def body(self) -> AsyncIterator[bytes]:
        """The whole form, once; the file is never whole in memory."""
        yield self._head()
        sent = 0
        async for piece in self._pieces():
            yield piece
            sent += len(piece)
            if self.progress is not None:
                self.progress(sent, self.size)
        yield self._tail()

    def _head(self) -> bytes:
        parts = [
            f'--{self.boundary}\r\nContent-Disposition: form-data; name="{_quoted(key)}"\r\n\r\n{_text(value)}\r\n'
            for key, value in self.fields.items()
        ]
        parts.append(
            f'--{self.boundary}\r\nContent-Disposition: form-data; name="file"; filename="{_quoted(self.name)}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        return "".join(parts).encode("utf-8", "replace")

    def _tail(self) -> bytes:
        return f"\r\n--{self.boundary}--\r\n".encode()

    async def _pieces(self) -> AsyncIterator[bytes]:
        source = self.source
        if isinstance(source, bytes):
            for at in range(0, len(source), PIECE_BYTES):
                yield source[at : at + PIECE_BYTES]
        elif isinstance(source, Path):
            async for piece in _of_path(source):
                yield piece
        else:
            async for piece in source() if callable(source) else source:
                yield piece


async def _of_path(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
    finally:
        file.close()


async def save(response: httpx.Response, target: Path, progress: Progress | None) -> int:
    """The body to a file, which is there whole or not at all. Gives its size. Raises OSError, ServiceError."""
    size = response.headers.get("Content-Length", "")
    total = int(size) if size.isdecimal() and "Content-Encoding" not in response.headers else None
    fresh = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    file = await asyncio.to_thread(fresh.open, "xb")
    done = 0
    try:
        try:
            async for piece in response.aiter_bytes(PIECE_BYTES):
                await asyncio.to_thread(file.write, piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
        finally:
            await asyncio.to_thread(file.close)
        if total is not None and done != total:
            raise ServiceError(Code.UNAVAILABLE, f"the file ended after {done} of {total} bytes")
        await asyncio.to_thread(fresh.replace, target)
    finally:
        fresh.unlink(missing_ok=True)
        await response.aclose()
    return done


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _quoted(name: str) -> str:
    """As browsers write a name into a header."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
