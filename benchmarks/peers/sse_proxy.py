"""A raw SSE proxy: passes request and stream on. `python -m benchmarks.peers.sse_proxy PORT UPSTREAM_URL`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

UPSTREAM = sys.argv[2] if len(sys.argv) > 2 else ""
_http = httpx.AsyncClient(timeout=30)


async def forward(request: Request) -> StreamingResponse:
    asked = _http.build_request(
        "POST", UPSTREAM + request.url.path, content=await request.body(), headers={"Content-Type": "application/json"}
    )
    response = await _http.send(asked, stream=True)

    async def passed() -> AsyncIterator[bytes]:
        async for piece in response.aiter_raw():
            yield piece
        await response.aclose()

    return StreamingResponse(passed(), media_type="text/event-stream")


app = Starlette(routes=[Route("/{path:path}", forward, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
