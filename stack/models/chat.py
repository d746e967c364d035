"""The local chat model: SmolLM2-135M-Instruct in llama.cpp, generating in threads, streamed to the event loop."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import xllamacpp  # type: ignore[import-untyped]

from stack.models import files
from stack.models.overload import Overloaded

NAME = "smollm2"
SLOTS = 2
CONTEXT_TOKENS = 4096  # of each slot, prompt and answer together
BATCH_TOKENS = 128  # a cancel is noticed between batches of the prompt: about 0.3 s apart on two cores
DEFAULT_MAX_TOKENS = 1024
MAX_WAITING = 32
THREADS = 2
SEED = 0
SYSTEM = {"role": "system", "content": "You answer questions briefly."}
"""Said when nobody says anything: under the model's own default it takes Paris for a song."""

Json = dict[str, Any]


class Refused(Exception):
    """The request cannot be answered by this model; the text says why, kind is OpenAI's error code."""

    def __init__(self, message: str, kind: str = "invalid_value") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class _End:
    """The generating thread is done; error is what stopped it."""

    error: Exception | None = None


class Chat:
    """SLOTS generations at a time, MAX_WAITING more in line; the next one is Overloaded."""

    def __init__(self) -> None:
        self._server = xllamacpp.Server(_parameters())
        self._threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="chat")
        self._slots = asyncio.Semaphore(SLOTS)
        self._asked = 0
        self._stops: set[threading.Event] = set()

    async def chunks(self, request: Json) -> AsyncGenerator[Json, None]:
        """OpenAI chunks for a chat request, the last one with the usage.

        Closing the iterator stops the generation at its next token (or the next batch of its prompt).
        Raises Overloaded and Refused, both before the first chunk.
        """
        if self._asked >= SLOTS + MAX_WAITING:
            raise Overloaded("too many chats wait")
        self._asked += 1
        try:
            async with self._slots, aclosing(self._generate(_body(request))) as generated:
                async for chunk in generated:
                    yield chunk
        finally:
            self._asked -= 1

    async def _generate(self, body: Json) -> AsyncGenerator[Json, None]:
        loop, stop = asyncio.get_running_loop(), threading.Event()
        # One item a token, so the answer's bound is the queue's: at most CONTEXT_TOKENS small dicts.
        queue: asyncio.Queue[Json | _End] = asyncio.Queue()

        def on_chunk(chunk: Json) -> bool:
            if not stop.is_set():
                loop.call_soon_threadsafe(queue.put_nowait, chunk)
            return stop.is_set()

        def generate() -> None:
            end = _End()
            try:
                self._server.handle_chat_completions(body, on_chunk)
            except Exception as error:  # the binding raises whatever llama.cpp threw
                end = _End(error)
            if not stop.is_set():
                loop.call_soon_threadsafe(queue.put_nowait, end)

        self._stops.add(stop)
        running = loop.run_in_executor(self._threads, generate)
        try:
            async for chunk in _until_end(queue):
                yield chunk
        finally:
            stop.set()
            self._stops.discard(stop)
            # The slot is free when the thread has returned, not when its client has left.
            await asyncio.shield(running)

    def close(self) -> None:
        """Stop every generation; threads end at their next token."""
        for stop in self._stops:
            stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _until_end(queue: asyncio.Queue[Json | _End]) -> AsyncIterator[Json]:
    while True:
        item = await queue.get()
        if isinstance(item, _End):
            if item.error is not None:
                raise Refused(str(item.error)) from item.error
            return
        if "error" in item:
            raise Refused(str(item["error"].get("message", "refused")), str(item["error"].get("type", "invalid_value")))
        if "prompt_progress" in item:
            continue
        item.pop("timings", None)
        yield item


def _parameters() -> Any:
    """llama.cpp's settings. It insists on an HTTP port of its own: that one gets a key that nobody knows."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(files.chat_file())
    parameters.model_alias = {NAME}
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * CONTEXT_TOKENS
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    parameters.n_gpu_layers = 0
    parameters.cache_ram_mib = 0
    for cpu in (parameters.cpuparams, parameters.cpuparams_batch):
        cpu.n_threads = min(THREADS, os.cpu_count() or 1)
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.api_keys = [secrets.token_hex(32)]
    return parameters


def _body(request: Json) -> Json:
    """What llama.cpp is asked: always a stream, the same answer to the same question unless told otherwise.

    The prompt cache stays off, because an answer computed on a cached prompt differs from one that is not.
    """
    messages = request["messages"]
    asked = request.get("max_completion_tokens") or request.get("max_tokens") or DEFAULT_MAX_TOKENS
    body: Json = {
        "model": NAME,
        "messages": messages if any(_is_system(message) for message in messages) else [SYSTEM, *messages],
        "max_tokens": min(int(asked), CONTEXT_TOKENS),
        "temperature": _given(request, "temperature", 0),
        "seed": _given(request, "seed", SEED),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "cache_prompt": False,
    }
    for name in ("top_p", "stop", "response_format"):
        if request.get(name):
            body[name] = request[name]
    return body


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "system"


def _given(request: Json, name: str, default: float) -> Any:
    value = request.get(name)
    return default if value is None else value
