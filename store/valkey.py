"""The Valkey client: commands that arrive together share a round trip, and nothing waits long for a sick server."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar

from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState
from purgatory.service._async.circuitbreaker import AsyncCircuitBreaker
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from subjects import grammar
from subjects.contract import Code, Fault

SOCKET_TIMEOUT_S = 0.15  # redis-py's defaults let a frozen server hold a call for a minute
TOTAL_TIMEOUT_S = 0.2  # connect, send, wait and read together
MAX_CONNECTIONS = 16
MAX_BATCHES = 4  # round trips in flight; what comes meanwhile joins the next one
MAX_BATCH_COMMANDS = 128
MAX_BATCH_BYTES = 1 << 20
MAX_PENDING = 8192
BREAKER_FAILURES = 5
BREAKER_OPEN_S = 1.0
CLOSE_S = 1.0

T = TypeVar("T")
Arg = bytes | str | int | float

_SICK = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)


def key(tenant: str, component: str, *parts: str | bytes) -> bytes:
    """The name of a tenant's thing: each part carries its length, so no characters make two names collide.

    The braces put everything of a tenant into one slot of a cluster, which its scripts need. Raises Fault(INVALID).
    """
    out = [b"{", grammar.token(tenant, "tenant").encode(), b"}:", grammar.token(component, "component").encode()]
    for part in parts:
        try:
            raw = part if isinstance(part, bytes) else part.encode()
        except UnicodeEncodeError as error:
            raise Fault(Code.INVALID, "a key must be valid Unicode: it has a lone surrogate") from error
        out.append(b":%d:%b" % (len(raw), raw))
    return b"".join(out)


@dataclass(frozen=True)
class Script:
    """A Lua script, known to the server by its SHA-1 once it has run."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # The digest names the script in the protocol; nothing is protected by it.
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())

    @classmethod
    def load(cls, package: str, *filenames: str) -> Script:
        """The files of a package, one after the other: functions that several scripts use stand in the first."""
        folder = resources.files(package)
        return cls("\n".join((folder / name).read_text() for name in filenames))


@dataclass(eq=False)
class _Pending:
    args: tuple[Arg, ...]
    future: asyncio.Future[Any]

    @property
    def bytes(self) -> int:
        return sum(len(arg) if isinstance(arg, (bytes, str)) else 8 for arg in self.args)


def _unavailable() -> Fault:
    return Fault(Code.UNAVAILABLE, "the cache server does not answer: try again", retry_after_s=BREAKER_OPEN_S)


def _refused(error: RedisError) -> Fault:
    if str(error).startswith("OOM") or "OOM command" in str(error):
        return Fault(Code.EXHAUSTED, "the cache server is out of memory: try again later or give it more")
    return Fault(Code.INTERNAL, "the cache server refused a command")


class Valkey:
    """One process's link to Valkey. Every failure is a Fault, at most about 200 ms after the call.

    A command runs in a task of this class, never in the caller's: a caller that is cancelled just stops waiting, so
    no reply is left on a connection for somebody else to read.
    """

    def __init__(self, redis: Redis, breaker: AsyncCircuitBreaker) -> None:
        self._redis = redis
        self._breaker = breaker
        self._pending: deque[_Pending] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._batches = 0
        self._scheduled = False
        self._closed = False

    @classmethod
    async def open(cls, url: str) -> Valkey:
        """Make the client. Opens no connection yet: a process starts without Valkey and finds it later."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=SOCKET_TIMEOUT_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        breakers = AsyncCircuitBreakerFactory(BREAKER_FAILURES, BREAKER_OPEN_S)
        # Only a sick server opens the door: neither our own mistakes nor our own cancellations count.
        healthy: list[Any] = [(BaseException, lambda error: not isinstance(error, _SICK))]
        breaker = await breakers.get_breaker("valkey", exclude=healthy)
        return cls(Redis.from_pool(pool), breaker)

    async def command(self, *args: Arg) -> Any:
        """Run one command. Raises Fault(UNAVAILABLE, EXHAUSTED, INTERNAL)."""
        return await self._enqueue(args)

    async def script(self, script: Script, keys: Iterable[Arg] = (), args: Iterable[Arg] = ()) -> Any:
        """Run a Lua script by its digest, and by its text where the server does not know it yet."""
        names = tuple(keys)
        tail = (len(names), *names, *args)
        try:
            return await self._enqueue(("EVALSHA", script.sha, *tail))
        except NoScriptError:
            return await self._enqueue(("EVAL", script.text, *tail))

    async def run(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        """Run anything else that redis-py can do, within the same limits. Raises the same Faults."""
        if self._closed:
            raise _unavailable()
        return await asyncio.shield(self._spawn(self._guarded(operation)))

    async def ping(self) -> None:
        """Raises Fault(UNAVAILABLE) when the server does not answer."""
        await self.command("PING")

    async def close(self) -> None:
        """End what is in flight and close the connections, within 1 s."""
        self._closed = True
        self._fail_pending()
        for task in tuple(self._tasks):
            task.cancel()
        with suppress(TimeoutError, *_SICK):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self._redis.aclose(close_connection_pool=True)

    def _enqueue(self, args: tuple[Arg, ...]) -> asyncio.Future[Any]:
        if self._closed:
            raise _unavailable()
        if len(self._pending) >= MAX_PENDING:
            raise Fault(Code.EXHAUSTED, "too many cache commands wait in this process: try again", retry_after_s=0.1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._pending.append(_Pending(args, future))
        if not self._scheduled and self._batches < MAX_BATCHES:
            self._scheduled = True
            loop.call_soon(self._flush)  # after every task that is ready now has had its say
        return future

    def _flush(self) -> None:
        self._scheduled = False
        while self._pending and self._batches < MAX_BATCHES and not self._closed:
            batch: list[_Pending] = []
            size = 0
            while self._pending and len(batch) < MAX_BATCH_COMMANDS and size < MAX_BATCH_BYTES:
                entry = self._pending.popleft()
                if not entry.future.done():
                    batch.append(entry)
                    size += entry.bytes
            if batch:
                self._batches += 1
                self._spawn(self._send(batch))

    async def _send(self, batch: list[_Pending]) -> None:
        async def operation(redis: Any) -> list[Any]:
            if len(batch) == 1:
                try:
                    return [await redis.execute_command(*batch[0].args)]
                except ResponseError as error:
                    return [error]
            pipeline = redis.pipeline(transaction=False)
            for entry in batch:
                pipeline.execute_command(*entry.args)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies

        try:
            replies = await self._guarded(operation)
        except Fault as fault:
            for entry in batch:
                _settle(entry, fault)
            self._fail_pending()  # they waited behind a sick server already
        else:
            for entry, reply in zip(batch, replies, strict=True):
                _settle(entry, reply)
        finally:
            self._batches -= 1
            for entry in batch:
                _settle(entry, _unavailable())  # only what close() interrupted is still open here
            self._flush()

    async def _guarded(self, operation: Callable[[Redis], Awaitable[T]]) -> T:
        try:
            async with self._breaker:
                async with asyncio.timeout(TOTAL_TIMEOUT_S):
                    return await operation(self._redis)
        except OpenedState as error:
            error.__traceback__ = None  # purgatory raises one instance again and again: each raise would lengthen it
            raise _unavailable() from None
        except _SICK as error:
            raise _unavailable() from error
        except RedisError as error:
            raise _refused(error) from error

    def _fail_pending(self) -> None:
        while self._pending:
            _settle(self._pending.popleft(), _unavailable())

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _settle(entry: _Pending, reply: object) -> None:
    if entry.future.done():
        return
    if isinstance(reply, Fault):  # each caller its own: an exception raised twice keeps both tracebacks
        entry.future.set_exception(Fault(reply.code, reply.detail, retry_after_s=reply.retry_after_s))
    elif isinstance(reply, NoScriptError):
        entry.future.set_exception(reply)
    elif isinstance(reply, _SICK):
        entry.future.set_exception(_unavailable())
    elif isinstance(reply, RedisError):
        entry.future.set_exception(_refused(reply))
    else:
        entry.future.set_result(reply)
