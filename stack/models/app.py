"""The OpenAI-compatible face of the local models: health, models, chat completions, embeddings."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stack.models import chat, embedder
from stack.models.chat import Chat, Refused
from stack.models.embedder import Embedder
from stack.models.leaving import EventStream, event, unless_gone
from stack.models.overload import Overloaded

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_INPUTS = 2048
CREATED = 1_735_689_600  # the models' files are older than this; OpenAI's shape wants a time

Json = dict[str, Any]
Work = Callable[[Request, Json], Awaitable[Response]]


class Models:
    """The two models, loading side by side while the address already answers "starting"."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.embedder: Embedder | None = None
        self.chat: Chat | None = None
        self.failure: str | None = None

    async def load(self) -> None:
        """Load both. A failure is kept for /healthz, and raised."""
        try:
            self.embedder, self.chat = await asyncio.gather(
                asyncio.to_thread(embedder.load, self._cache), asyncio.to_thread(Chat)
            )
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            raise

    def close(self) -> None:
        for model in (self.embedder, self.chat):
            if model is not None:
                model.close()


def create(cache: Path, *, on_failure: Callable[[], None]) -> Starlette:
    """The application. on_failure is called when a model cannot be loaded."""
    models = Models(cache)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        def finished(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                on_failure()

        loading = asyncio.create_task(models.load())
        loading.add_done_callback(finished)
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            models.close()

    app = Starlette(
        routes=[
            Route("/healthz", _healthz),
            Route("/v1/models", _models),
            Route("/v1/chat/completions", _guarded(_chat), methods=["POST"]),
            Route("/v1/embeddings", _guarded(_embeddings), methods=["POST"]),
        ],
        lifespan=lifespan,
    )
    app.state.models = models
    return app


def _error(status: int, message: str, kind: str, **headers: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error" if status < 500 else "server_error", "code": kind}
    return JSONResponse({"error": error}, status, headers)


def _guarded(work: Work) -> Callable[[Request], Awaitable[Response]]:
    """Reads the bounded body and turns every refusal into OpenAI's error shape."""

    async def endpoint(request: Request) -> Response:
        try:
            return await work(request, await _read(request))
        except Refused as refusal:
            return _error(404 if refusal.kind == "model_not_found" else 400, str(refusal), refusal.kind)
        except Overloaded as overload:
            return _error(429, str(overload), "rate_limit_exceeded", **{"Retry-After": "1"})
        except ClientDisconnect:
            return Response(status_code=499)

    return endpoint


async def _read(request: Request) -> Json:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY_BYTES:
            raise Refused(f"the body is larger than {MAX_BODY_BYTES} bytes", "too_large")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused("the body is not JSON") from error
    if not isinstance(body, dict):
        raise Refused("the body is not a JSON object")
    return body


async def _healthz(request: Request) -> Response:
    models: Models = request.app.state.models
    if models.failure is not None:
        return JSONResponse({"status": "failed", "detail": models.failure}, 500)
    if models.embedder is None or models.chat is None:
        return JSONResponse({"status": "starting"}, 503)
    return JSONResponse({"status": "ok"})


async def _models(request: Request) -> Response:
    models: Models = request.app.state.models
    listed: list[Json] = [{"id": chat.NAME, "kind": "chat", "context_tokens": chat.CONTEXT_TOKENS}]
    if models.embedder is not None:
        revision = {"revision": models.embedder.revision, "dimensions": embedder.DIMENSIONS}
        listed.append({"id": embedder.NAME, "kind": "embedding", "max_tokens": embedder.MAX_TOKENS, **revision})
    data = [{"object": "model", "created": CREATED, "owned_by": "local", **model} for model in listed]
    return JSONResponse({"object": "list", "data": data})


async def _chat(request: Request, body: Json) -> Response:
    model: Chat | None = request.app.state.models.chat
    if model is None:
        return _error(503, "the model is still loading", "starting", **{"Retry-After": "1"})
    _check_chat(body)
    chunks = model.chunks(body)
    if not body.get("stream"):
        return JSONResponse(await unless_gone(request, _join(chunks)))
    try:
        # What is wrong with the request shows here, while a status can still say so.
        first = await unless_gone(request, anext(chunks))
    except BaseException:
        await chunks.aclose()
        raise
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return EventStream(_events(first, chunks, usage=usage))


def _check_chat(body: Json) -> None:
    if body.get("model") not in (chat.NAME, None):
        raise Refused(f"there is no model {str(body['model'])[:100]!r} here, only {chat.NAME}", "model_not_found")
    if body.get("tools"):
        raise Refused(f"{chat.NAME} cannot call tools", "unsupported_parameter")
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise Refused("messages must be a list of at least one message")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refused("stream_options must be an object")
    for name in ("max_tokens", "max_completion_tokens", "seed"):
        if body.get(name) is not None and (type(body[name]) is not int or body[name] < 0):
            raise Refused(f"{name} must be a whole number that is not negative")


async def _events(first: Json, chunks: AsyncGenerator[Json, None], *, usage: bool) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        yield event(first)
        async for chunk in chunks:
            if chunk["choices"] or usage:
                yield event(chunk)
    yield b"data: [DONE]\n\n"


async def _join(chunks: AsyncGenerator[Json, None]) -> Json:
    text: list[str] = []
    finish: str | None = None
    usage: Json = {}
    ident = ""
    async with aclosing(chunks):
        async for chunk in chunks:
            ident, usage = chunk["id"], chunk.get("usage") or usage
            for choice in chunk["choices"]:
                text.append(choice["delta"].get("content") or "")
                finish = choice.get("finish_reason") or finish
    message = {"role": "assistant", "content": "".join(text)}
    return {
        "id": ident,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": chat.NAME,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }


async def _embeddings(request: Request, body: Json) -> Response:
    model: Embedder | None = request.app.state.models.embedder
    if model is None:
        return _error(503, "the model is still loading", "starting", **{"Retry-After": "1"})
    if body.get("model") not in (embedder.NAME, None):
        raise Refused(f"there is no model {str(body['model'])[:100]!r} here, only {embedder.NAME}", "model_not_found")
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_INPUTS or not all(type(t) is str for t in texts):
        raise Refused(f"input must be a text or a list of 1 to {MAX_INPUTS} texts")
    if body.get("dimensions") not in (embedder.DIMENSIONS, None):
        raise Refused(f"{embedder.NAME} gives {embedder.DIMENSIONS} dimensions and no other number")
    embedded = await model.embed(texts)
    as_text = body.get("encoding_format") == "base64"
    vectors = [base64.b64encode(v.tobytes()).decode() if as_text else v.tolist() for v in embedded.vectors]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return JSONResponse(
        {"object": "list", "model": embedder.NAME, "revision": model.revision, "data": data, "usage": usage}
    )
