"""Numbered output, the writing side: chunks from 1 without gaps, small texts joined, one end."""

from __future__ import annotations

import asyncio
from typing import Literal, TypeVar

from codec import MSGPACK, encode
from codec import headers as h
from runtime import headers, telemetry
from runtime.connection import Connection
from runtime.output_reader import OutputItem, OutputReader, read_output
from subjects import grammar
from subjects.contract import Code, Fault, Model

__all__ = ["OutputItem", "OutputReader", "OutputWriter", "read_output"]

JOIN_S = 0.020
JOIN_BYTES = 4 * 1024

M = TypeVar("M", bound=Model)
_log = telemetry.get_logger(__name__)


class OutputWriter:
    """Writes one attempt's output. A new attempt of the same output is a new writer with a higher number.

    Pieces of text (models whose field `text` alone differs) are joined for at most 20 ms or 4 KiB; the first piece
    after a pause goes out at once.
    """

    def __init__(
        self, connection: Connection, tenant: str, output_id: str, attempt: int = 1, *, content_type: str = MSGPACK
    ) -> None:
        self._connection = connection
        self._subject = grammar.output(tenant, output_id)
        self._type = content_type
        self._attempt = attempt
        self._n = 0
        self._ended = False
        self._waiting: Model | None = None
        self._texts: list[str] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._last_at = 0.0

    @property
    def attempt(self) -> int:
        """The number of this attempt. Setting another one begins anew: readers get `restart`."""
        return self._attempt

    @attempt.setter
    def attempt(self, attempt: int) -> None:
        if attempt != self._attempt:
            self._attempt, self._n = attempt, 0

    @property
    def count(self) -> int:
        """How many chunks are out."""
        return self._n

    async def chunk(self, piece: Model | bytes) -> None:
        """Publish a piece: bytes (encoded already) or a model. Raises Fault(TOO_LARGE, UNAVAILABLE, INVALID)."""
        if self._ended:
            raise Fault(Code.INTERNAL, "a chunk after the end of its output")
        if isinstance(piece, bytes):
            self.flush()
            self._write(piece)
            return
        text = getattr(piece, "text", None)
        if not isinstance(text, str):
            self.flush()
            self._write(encode(piece, self._type))
            return
        if self._waiting is not None and not _joinable(self._waiting, piece):
            self.flush()
        self._join(piece, text)

    def _join(self, piece: Model, text: str) -> None:
        self._waiting = piece
        self._texts.append(text)
        self._size += len(text.encode("utf-8", "replace"))
        loop = asyncio.get_running_loop()
        due_s = self._last_at + JOIN_S - loop.time()
        if self._size >= JOIN_BYTES or due_s <= 0:
            self.flush()
        elif self._timer is None:
            self._timer = loop.call_later(due_s, self._flush_late)

    def flush(self) -> None:
        """Publish what waits to be joined. Raises Fault as chunk()."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting is None:
            return
        piece = self._waiting.model_copy(update={"text": "".join(self._texts)})
        self._write(encode(piece, self._type))
        self._waiting, self._texts, self._size = None, [], 0

    def _flush_late(self) -> None:
        self._timer = None
        try:
            self.flush()
        except Fault as fault:  # what waits stays; the next chunk or the end tries again and raises
            _log.warning("output_not_flushed", detail=fault.detail)

    async def end(self, how: Literal["done", "error"], body: Model | bytes, *, content_type: str | None = None) -> None:
        """The last message: the final reply, or the problem document. Once; a second end does nothing."""
        if self._ended:
            return
        self.flush()
        data = body if isinstance(body, bytes) else encode(body, content_type or self._type)
        extra: dict[str, str] = {h.CHUNK_END: how}
        if content_type is not None and content_type != self._type:
            extra[h.CONTENT_TYPE] = content_type  # the last of equal names counts
        self._write(data, headers.lines(extra))
        self._ended = True

    def close(self) -> None:
        """Drop what waits, without an end: the attempt was given up and another will follow."""
        self._ended = True
        self._waiting, self._texts = None, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _write(self, data: bytes, extra: bytes = b"") -> None:
        place = f"{h.CONTENT_TYPE}: {self._type}\r\n{h.ATTEMPT}: {self._attempt}\r\n{h.CHUNK}: {self._n + 1}\r\n"
        block = headers.LINE + place.encode() + extra + headers.CRLF
        self._connection.write(self._subject, data, block=block)
        self._n += 1  # only now: a refused chunk leaves no gap
        self._last_at = asyncio.get_running_loop().time()


def _joinable(one: Model, other: Model) -> bool:
    if type(one) is not type(other):
        return False
    return all(getattr(one, name) == getattr(other, name) for name in type(one).model_fields if name != "text")
