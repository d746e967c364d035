"""A pool of child processes for blocking work: each can be killed at its limit of time or memory, or when cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]
import structlog

from runtime import metrics
from runtime.tracing import Kind, ending, error_of, within
from subjects.contract import Code, Fault
from workers.serving.pool_child import HEAD

MEMORY_BYTES = 1 << 30
START_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
MAX_WAITING = 256  # callers in line; the next one is refused
MAX_FRAME_BYTES = 64 << 20  # arguments or result of one run
MAX_RUNS = 200  # then the child is replaced: whatever its libraries leak ends there

CHILD = Path(__file__).with_name("pool_child.py")

# A parser of hostile files has no business with our keys and passwords: the child gets these and nothing else.
ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "FAAS_HOME",
)
FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})

CALLS = metrics.Observed("faas.pool.calls", "", "Functions that run in a child or wait for one.", "updown", ("state",))
DURATION = metrics.Histogram(
    "faas.pool.duration", "s", "Of functions in a child.", metrics.SECONDS, ("code.function.name", "error.type")
)

Result = TypeVar("Result")
log = structlog.get_logger("pool")


@contextmanager
def _told(name: str) -> Iterator[None]:
    began, error = time.perf_counter(), ""
    try:
        with ending(within(f"pool {name}", Kind.INTERNAL, {"code.function.name": name})):
            yield
    except BaseException as failed:
        error = error_of(failed)
        raise
    finally:
        DURATION.series(name, error).add(time.perf_counter() - began)


class Pool:
    """At most max_workers functions at a time, each in a fresh interpreter that is reused while it behaves.

    Arguments and results are plain data (None, bool, int, float, str, bytes, lists, dicts with string keys): they cross
    as msgpack, never pickled. A function is module-level; its module should import only what it needs.
    """

    def __init__(self, max_workers: int = 1) -> None:
        self._slots = asyncio.Semaphore(max_workers)
        self._waiting = 0
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        self._forget = CALLS.watch(self._calls)

    def _calls(self) -> list[tuple[tuple[str, ...], float]]:
        return [(("running",), len(self._busy)), (("waiting",), self._waiting)]

    async def run(
        self, fn: Callable[..., Result], *args: Any, timeout_s: float, memory_bytes: int = MEMORY_BYTES
    ) -> Result:
        """Run fn(*args) in a child. timeout_s counts from its start, not from the wait for a free child.

        Raises what fn raises when that is a Fault; TIMEOUT (killed at its time), TOO_LARGE (reached its memory or died
        of it, or the arguments or result are too large), INTERNAL (fn raised anything else; its traceback is logged),
        UNAVAILABLE (somebody outside killed the child, or the pool is closed), EXHAUSTED (MAX_WAITING in line).
        Cancelling kills the child.
        """
        request, name = _request(fn, args, memory_bytes), f"{fn.__module__}.{fn.__qualname__}"
        if self._waiting >= MAX_WAITING:
            raise Fault(Code.EXHAUSTED, f"{MAX_WAITING} callers wait for a pool process already", retry_after_s=5)
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            with _told(name):
                reply = await self._ask(request, timeout_s, memory_bytes)
                result: Result = _result(reply, name)
        finally:
            self._slots.release()
        return result

    async def _ask(self, request: bytes, timeout_s: float, memory_bytes: int) -> dict[str, Any]:
        child = await self._take()
        self._busy.add(child)
        healthy = False
        try:
            async with asyncio.timeout(timeout_s):
                reply = await child.ask(request)
            healthy = child.runs < MAX_RUNS and "broken" not in reply
        except TimeoutError:
            raise Fault(Code.TIMEOUT, f"the work did not end within {timeout_s:g} s and was stopped") from None
        except (EOFError, OSError) as error:
            raise await child.died(memory_bytes) from error
        finally:
            self._busy.discard(child)
            if healthy and not self._closed:
                self._idle.append(child)
            else:
                self._end(child)
        return reply

    async def _take(self) -> _Child:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            self._end(child)
        if self._closed:
            raise Fault(Code.UNAVAILABLE, "the process pool is closed")
        return await _Child.start()

    def _end(self, child: _Child) -> None:
        """Kill at once, also while being cancelled; the corpse is collected by a task that close() awaits."""
        child.kill()
        task = asyncio.get_running_loop().create_task(child.gone())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Kill every child, working ones too (their callers get UNAVAILABLE), and wait until they are gone."""
        self._closed = True
        self._forget()
        for child in self._busy:
            child.kill()
        while self._idle:
            self._end(self._idle.pop())
        if self._ending:
            await asyncio.wait(set(self._ending), timeout=CLOSE_TIMEOUT_S)


class _Child:
    """One interpreter, in its own session: Ctrl-C of a terminal does not reach it, and its own children die with it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.runs = 0

    @classmethod
    async def start(cls) -> _Child:
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", str(CHILD), path, str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise Fault(Code.UNAVAILABLE, "a pool process could not be started", retry_after_s=5) from error
        child = cls(process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await child._receive()
        except BaseException as error:
            child.kill()
            if isinstance(error, TimeoutError | EOFError | OSError):
                raise Fault(Code.UNAVAILABLE, "a pool process did not start", retry_after_s=5) from error
            raise
        return child

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, request: bytes) -> dict[str, Any]:
        """One request, one reply. Raises EOFError or OSError when the process dies."""
        self.runs += 1
        assert self._process.stdin is not None
        self._process.stdin.write(request)
        await self._process.stdin.drain()
        return await self._receive()

    async def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        (size,) = HEAD.unpack(await self._process.stdout.readexactly(HEAD.size))
        if size > MAX_FRAME_BYTES:
            detail = f"the result is larger than {MAX_FRAME_BYTES >> 20} MiB"
            return {"fault": [Code.TOO_LARGE.value, detail], "broken": True}  # its bytes stay unread
        body = await self._process.stdout.readexactly(size)
        reply: dict[str, Any] = msgpack.unpackb(body, max_str_len=size, max_bin_len=size)
        return reply

    async def died(self, memory_bytes: int) -> Fault:
        """Why: a signal from outside is nobody's fault and worth another try; everything else is the work's doing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._process.wait()
        ended = self._process.returncode
        if ended is not None and -ended in FROM_OUTSIDE:
            return Fault(Code.UNAVAILABLE, "the process that did the work was stopped from outside", retry_after_s=1)
        limit = f"{memory_bytes >> 20} MiB"
        return Fault(Code.TOO_LARGE, f"the work ended its process: it is broken or needs more than {limit}")

    def kill(self) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def gone(self) -> None:
        await self._process.wait()


def _request(fn: Callable[..., Any], args: tuple[Any, ...], memory_bytes: int) -> bytes:
    if "<" in fn.__qualname__:
        raise Fault(Code.INTERNAL, f"{fn.__qualname__} is no module-level function: a pool process cannot find it")
    task = {"module": fn.__module__, "name": fn.__qualname__, "args": list(args), "memory_bytes": memory_bytes}
    body: bytes = msgpack.packb(task)
    if len(body) > MAX_FRAME_BYTES:
        raise Fault(Code.TOO_LARGE, f"the work's input is larger than {MAX_FRAME_BYTES >> 20} MiB")
    return HEAD.pack(len(body)) + body


def _result(reply: dict[str, Any], name: str) -> Any:
    if "fault" in reply:
        code, detail = reply["fault"]
        raise Fault(Code(code), detail)
    if "error" in reply:
        log.error("pool_function_failed", function=name, traceback=reply["error"])
        raise Fault(Code.INTERNAL, "internal error")
    return reply["result"]
