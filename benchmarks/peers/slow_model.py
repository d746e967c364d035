"""An OpenAI-compatible upstream that waits before its first token: `python -m benchmarks.peers.slow_model PORT MS`.

The model `long` says 200 words, one every 20 ms; every other five at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

WORDS = ("Paris", " is", " the", " capital", ".")
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
FIRST_TOKEN_S = int(sys.argv[2]) / 1e3 if len(sys.argv) > 2 else 0.0
PAUSE_S = 0.02


def _line(delta: dict[str, str], reason: str | None = None, **more: object) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    made = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices} | more
    return f"data: {json.dumps(made)}\n\n".encode()


async def _said(*, long: bool) -> AsyncIterator[bytes]:
    await asyncio.sleep(FIRST_TOKEN_S)
    for word in WORDS * 40 if long else WORDS:
        yield _line({"role": "assistant", "content": word})
        if long:
            await asyncio.sleep(PAUSE_S)
    yield _line({}, "stop")
    yield _line({}, choices=[], usage=USAGE)
    yield b"data: [DONE]\n\n"


async def complete(request: Request) -> StreamingResponse:
    asked = await request.json()
    return StreamingResponse(_said(long=asked.get("model") == "long"), media_type="text/event-stream")


app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
