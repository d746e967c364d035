"""What a handler sees: who asks, its deps, the other components, its journal and its one transaction."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from typing import Any, Generic, TypeVar

import structlog

import codec
from codec import headers as names
from runtime.client import Client
from runtime.identity import Identity, new_id
from runtime.message_spans import emitting
from runtime.output import OutputWriter
from runtime.settings import Settings
from runtime.stream import Stream
from runtime.tracing import sampled
from store.transaction import Transaction
from subjects import jobs
from subjects.contract import AnyEvent, Call, Code, Event, EventPayload, Fault, Model
from workers.serving.host import Host
from workers.serving.running import Cancellable

D = TypeVar("D")
In = TypeVar("In", bound=Model)
Out = TypeVar("Out", bound=Model)
M = TypeVar("M", bound=Model)
R = TypeVar("R")

log = structlog.get_logger("workers.serving")

PROGRESS_EVERY_S = 1.0  # a job's row is told of progress at most this often


class Context(Generic[D]):
    """One message being handled. Made by the dispatcher; lives as long as the handler runs."""

    def __init__(
        self, host: Host, client: Client, deps: D, identity: Identity, *, deadline: float, stop: Cancellable
    ) -> None:
        self.host = host
        self.client = client
        self.deps = deps
        self.identity = identity
        self.deadline = deadline  # unix seconds
        self.stop = stop
        self.job_id: str | None = None
        self.replay_of: str | None = None
        self.durable = False
        self.attempt = 1  # of the work: being handed back does not count
        self.claimed = asyncio.Event()
        self.resumed = False  # handed back before, so that it has been said to have started
        self.key: str | None = None
        self.output: OutputWriter | None = None
        self.output_id: str | None = None
        self.streams = False
        self.emitted: list[tuple[Event[Any], EventPayload]] = []
        self.afterwards: list[Callable[[], Awaitable[None]]] = []
        self._transaction: Transaction | None = None
        self._open = AsyncExitStack()
        self._numbers = itertools.count(1)
        self._step: str | None = None
        self._progress_at = 0.0
        self._unsaid: jobs.Progress | None = None

    @property
    def tenant(self) -> str:
        return self.identity.tenant

    @property
    def origin(self) -> str | None:
        """What names the work itself, for ids that are made of it: the same for a job, its redrives and its forced
        replays, which have keys of their own. None for a request without a key."""
        return self.replay_of or self.job_id or self.key

    @property
    def settings(self) -> Settings:
        return self.host.settings

    @property
    def log(self) -> Any:
        return log

    def remaining_s(self) -> float:
        """Seconds until the deadline; 0 when it has passed."""
        return max(0.0, self.deadline - time.time())

    # --- other components ---------------------------------------------------------------------------------------

    async def call(self, call: Call[In, Out], message: In, *, timeout_s: float | None = None) -> Out:
        """Ask another component and wait. Inside a job the call carries the job's id and step as its key, so that a
        repeated job repeats no effect. Raises the callee's Fault; FORBIDDEN when the table does not list the call."""
        self._refuse_in_transaction(call.name)
        return await self.client.call(
            call, message, identity=self._onwards(call), timeout_s=timeout_s, key=self._key(call)
        )

    def stream(self, call: Call[In, Out], message: In) -> AbstractAsyncContextManager[Stream[Out]]:
        """Ask for chunks: `async with ctx.stream(...) as s: async for chunk in s: ...`, then s.result."""
        self._refuse_in_transaction(call.name)
        return self.client.stream(call, message, identity=self._onwards(call), key=self._key(call))

    async def submit(self, call: Call[In, Out], message: In, *, key: str | None = None) -> jobs.Submitted:
        """Have it done as a job. Inside a job the key defaults to this job's id and step."""
        # A job outlives the message that asked for it, so it does not inherit its deadline.
        identity = replace(self._onwards(call), deadline_ms=None)
        return await self.client.submit(call, message, identity=identity, key=key or self._key(call))

    def _onwards(self, call: Call[Any, Any]) -> Identity:
        # Whoever may ask this operation may have done what it needs: the table bounds that, not the caller's scopes.
        scopes = self.identity.scopes if self.identity.allows(call.scope) else self.identity.scopes | {call.scope}
        return replace(self.identity, scopes=scopes, deadline_ms=int(self.deadline * 1000))

    def _key(self, call: Call[Any, Any]) -> str | None:
        if self.job_id is None or not (call.mutates or call.job):
            return None
        # A redriven job asks anew: under its id alone its callees would answer with the fault that it died of.
        return f"{self.key or self.job_id}/{self._step or f'{call.name}.{next(self._numbers)}'}"

    def _refuse_in_transaction(self, name: str) -> None:
        if self._transaction is not None:
            raise Fault(Code.INTERNAL, f"{name} was called inside a transaction: call first, then begin()")

    # --- long work ------------------------------------------------------------------------------------------------

    async def step(self, name: str, fn: Callable[[], Awaitable[M]], model: type[M]) -> M:
        """The result of fn, journaled: a redelivered job gets it back without calling fn. A request simply runs fn."""
        if self.job_id is None:
            return await fn()
        stored = await self.host.books.steps.get(self.tenant, self.job_id, name)
        if stored is not None:
            return codec.decode(stored, model)
        self._step = name
        try:
            result = await fn()
        finally:
            self._step = None
        await self.host.books.steps.put(self.tenant, self.job_id, name, codec.encode(result))
        return result

    async def chunk(self, chunk: Model) -> None:
        """Publish a piece of the answer, when the caller wants pieces. The reply must still be the whole answer."""
        if self.output is not None:
            await self.output.chunk(chunk)

    async def progress(self, done: float, total: float | None = None, unit: str = "", message: str = "") -> None:
        """How far a job is. Written to its row at most once a second, and once more when it is done; nothing in a
        request."""
        if self.job_id is None:
            return
        self._unsaid = jobs.Progress(done=done, total=total, unit=unit, message=message)
        if time.monotonic() - self._progress_at >= PROGRESS_EVERY_S:
            await self.last_progress()

    async def last_progress(self) -> None:
        """Write what was reported since it was last written."""
        progress, self._unsaid = self._unsaid, None
        if progress is None or self.job_id is None:
            return
        self._progress_at = time.monotonic()
        # In the open transaction, if there is one: who holds a connection must not wait for a second.
        told, tx = progress.model_dump(), self._transaction
        await self.host.books.jobs.progress(self.tenant, self.job_id, told, tx=tx)
        if self.output is not None and not self.streams:
            await self.output.chunk(progress)

    async def pool(self, fn: Callable[..., Any], *args: Any, timeout_s: float, memory_bytes: int) -> Any:
        """Run a module-level function in a child process that is killed at these limits. Raises Fault(TIMEOUT) or
        Fault(TOO_LARGE) at a limit."""
        self._refuse_in_transaction(fn.__name__)
        return await self.host.pool.run(
            fn, *args, timeout_s=min(timeout_s, self.remaining_s()), memory_bytes=memory_bytes
        )

    # --- state ----------------------------------------------------------------------------------------------------

    def read(self) -> AbstractAsyncContextManager[Transaction]:
        """A short transaction of its own under the tenant's row-level security, committed when the block ends."""
        return self.host.database.transaction(self.tenant)

    async def begin(self) -> Transaction:
        """THE transaction of this message: commits with the reply, the key's claim, the job's row and the events after
        the handler has returned; rolled back when it raises. Open it after all outside work."""
        if self._transaction is None:
            self._transaction = await self._open.enter_async_context(self.host.database.transaction(self.tenant))
        return self._transaction

    def emit(self, event: Event[Any], payload: EventPayload) -> None:
        """Publish a fact with, and only with, the state that it tells of."""
        if not isinstance(payload, event.payload):
            raise TypeError(f"{event.name} carries {event.payload.__name__}, not {type(payload).__name__}")
        self.emitted.append((event, payload))

    def after_commit(self, fn: Callable[[], Awaitable[None]]) -> None:
        """Best effort once the effect stands: its failure is logged and changes nothing."""
        self.afterwards.append(fn)

    # --- for the dispatcher -------------------------------------------------------------------------------------

    @property
    def began(self) -> bool:
        return self._transaction is not None

    async def commit(self) -> None:
        await self._open.aclose()
        self._transaction = None

    async def rollback(self, error: BaseException) -> None:
        """Undo what begin() opened. The error is what the transaction's block would have raised."""
        if self._transaction is None:
            return
        self._transaction = None
        try:
            await self._open.__aexit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise

    def event_headers(self, event: AnyEvent) -> dict[str, str]:
        """Of an event that this message causes, whoever publishes it."""
        span = emitting(event, self.identity) if sampled(self.identity.traceparent) else None
        given = replace(self.identity.under(span), request_id=new_id(), deadline_ms=None).headers()
        if span is not None:
            span.end()
        return {**given, names.CONTENT_TYPE: self.host.settings.content_type}
