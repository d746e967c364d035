"""A multipart/form-data body read as it comes: one streamed file part, small fields beside it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from python_multipart import multipart
from python_multipart.exceptions import FormParserError

from subjects.contract import Code, Fault, FieldError

MAX_FIELD_BYTES = 64 * 1024  # all fields but the file together
MAX_PARTS = 16
FILE = "file"


class Form:
    """Feeds a parser from the body. First `await form.until_file()`, then `async for piece in form.file()`, then the
    fields are whole."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        kind, options = multipart.parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
            raise Fault(Code.INVALID, "the body must be multipart/form-data with a boundary")
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self._body = body
        self._pieces: list[bytes] = []
        self._name = ""
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._text = bytearray()
        self._size = self._parts = 0
        self._ended = False
        self._parser = multipart.MultipartParser(boundary, callbacks={
            "on_part_begin": self._part_begins,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._end,
        })  # fmt: skip

    async def until_file(self) -> None:
        """Read until the file begins. Raises Fault(INVALID) when the body has none."""
        while self.file_name is None:
            if not await self._feed():
                raise _bad(FILE, "a part of this name is needed")

    async def file(self) -> AsyncGenerator[bytes, None]:
        """The file's bytes; after them the whole form was read. Raises Fault(INVALID) when the body is cut."""
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if not await self._feed():
                break
        for piece in self._pieces:
            yield piece
        if not self._ended:
            raise Fault(Code.INVALID, "the multipart body ends too early")

    async def _feed(self) -> bool:
        """False = there is no more."""
        try:
            piece = await anext(self._body)
        except StopAsyncIteration:
            return False
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise Fault(Code.INVALID, "the multipart body cannot be read") from error
        return True

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Fault(Code.TOO_LARGE, f"more than {MAX_PARTS} parts")
        self._disposition, self._text = b"", bytearray()

    def _header_ends(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = multipart.parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")[:64]
        if self._name in self.fields or (self._name == FILE and self.file_name is not None):
            raise _bad(self._name, "given twice")
        if self._name == FILE:
            self.file_name = options.get(b"filename", b"").decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE:
            self._pieces.append(bytes(data[start:end]))
            return
        self._size += end - start
        if self._size > MAX_FIELD_BYTES:
            raise Fault(Code.TOO_LARGE, f"the fields are over {MAX_FIELD_BYTES} bytes")
        self._text += data[start:end]

    def _part_ends(self) -> None:
        if self._name == FILE:
            return
        try:
            self.fields[self._name] = self._text.decode()
        except UnicodeDecodeError as error:
            raise _bad(self._name, "must be UTF-8") from error

    def _end(self) -> None:
        self._ended = True


def _bad(name: str, message: str) -> Fault:
    return Fault(Code.INVALID, "the form is not valid", errors=[FieldError(path=name, message=message)])
