"""tail: prints what passes on subjects."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from typing import Any

import typer

import codec
from cli import session, show
from codec import headers as h
from subjects import grammar, registry
from subjects.contract import Fault, Model

PATTERN = re.compile(r"(?:[A-Za-z0-9_$-]+|\*)(?:\.(?:[A-Za-z0-9_$-]+|\*))*(?:\.>)?\Z|>\Z")
MAX_WAITING = 10_000
"""Messages not yet printed; more are dropped and counted, so that a slow terminal does not hold up the broker."""


def run(pattern: str, count: int | None, as_json: bool) -> None:
    if PATTERN.match(pattern) is None:
        raise typer.BadParameter("a pattern is tokens with dots between them, `*` for one token, `.>` for the rest")
    session.run(_tail(pattern, count, show.wants_json(as_json)))


async def _tail(pattern: str, count: int | None, as_json: bool) -> None:
    waiting: asyncio.Queue[Any] = asyncio.Queue(MAX_WAITING)
    dropped = 0

    async def on_message(message: Any) -> None:
        nonlocal dropped
        try:
            waiting.put_nowait(message)
        except asyncio.QueueFull:
            dropped += 1

    async with session.connected(session.load()) as connection:
        await connection.subscribe(pattern, cb=on_message)
        await connection.flush()
        printed = 0
        while count is None or printed < count:
            _print(await waiting.get(), as_json)
            printed += 1
            if dropped:
                show.value({"dropped": dropped}, as_json=True)
                dropped = 0


def _print(message: Any, as_json: bool) -> None:
    headers = dict(message.headers or {})
    body = _body(message.data, headers.get(h.CONTENT_TYPE), message.subject)
    if as_json:
        show.line(json.dumps({"subject": message.subject, "headers": headers, "data": body}, ensure_ascii=False))
    else:
        show.line(f"{message.subject}  {json.dumps(body, ensure_ascii=False)}")


def _body(data: bytes, content_type: str | None, subject: str) -> Any:
    """Decoded when it says what it is and is that; else JSON by its looks, else how many bytes there are."""
    for kind in (content_type or codec.MSGPACK, codec.JSON):
        with suppress(Fault, ValueError):
            return json.loads(codec.encode_plain(codec.decode_plain(data, kind, _model(subject)), codec.JSON))
    return f"<{len(data)} bytes>" if data else None


def _model(subject: str) -> type[Model] | None:
    """Protobuf is read by the contract that the subject names; replies name none, and pieces of output are msgpack."""
    with suppress(Fault):
        return registry.load().said_at(grammar.parse(subject))
    return None
