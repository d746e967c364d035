"""Connection: nats-py's client, hardened where it was seen to stop serving without a word."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from nats import errors
from nats.aio.client import DEFAULT_BUFFER_SIZE, PING_PROTO, Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import (
    DEFAULT_SUB_PENDING_BYTES_LIMIT,
    DEFAULT_SUB_PENDING_MSGS_LIMIT,
    Subscription,
)

from runtime import headers as blocks
from runtime import telemetry
from runtime.headers import as_block
from runtime.requests import Listener, Requests
from runtime.transport import CLOSE_WITHIN_S, BoundedTransport, ListeningParser
from subjects.contract import Code, Fault

PENDING_BYTES = 8 * 1024 * 1024
CONNECT_TIMEOUT_S = 2
SILENT_AFTER_S = 15.0  # three pings
RECONNECT_MOST_S = 2.0

_log = telemetry.get_logger(__name__)
_REFUSED = re.compile(r'permissions violation for publish to "([^"]+)"')
_SPACE = re.compile(r"[\s\x00]")


class Connection(Client):
    """As nats-py's client, with these differences.

    A message that cannot be read is dropped and counted (`dropped`, by reason in `drops`) and ends nothing. Publishing
    refuses payload + headers over the broker's limit with Fault(TOO_LARGE). Errors that the broker reports lead to a
    reconnect, never to silence. `listen` calls back from the read loop itself; `requests` is the request table.
    """

    def __init__(self, on_closed: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._ps = ListeningParser(self)
        self._listeners: dict[int, Listener] = {}
        self._on_closed = on_closed
        self._closing = False
        self.drops: Counter[str] = Counter()
        self.heard_at = 0.0
        self.requests: Requests
        self._reconnected: list[Callable[[], None]] = []

    @property
    def dropped(self) -> int:
        """How many received messages could not be read and were dropped."""
        return self.drops.total()

    @property
    def healthy(self) -> bool:
        """Connected, its tasks alive, and bytes came in lately (PONGs come every 5 s)."""
        tasks = (self._reading_task, self._flusher_task, self._ping_interval_task)
        if self._status != Client.CONNECTED or any(task is None or task.done() for task in tasks):
            return False
        return asyncio.get_running_loop().time() - self.heard_at < SILENT_AFTER_S

    async def check(self) -> None:
        """For a probe. Raises Fault(UNAVAILABLE) when the connection is not healthy."""
        if not self.healthy:
            raise Fault(Code.UNAVAILABLE, "not connected to NATS")

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each reconnect (what was live meanwhile is lost); returns what ends that."""
        self._reconnected.append(callback)
        return lambda: self._reconnected.remove(callback) if callback in self._reconnected else None

    # -- out ----------------------------------------------------------------------------------------------------

    def write(self, subject: str, payload: bytes, reply: str = "", block: bytes = b"") -> None:
        """Queue one message for the broker, at once and without a copy of the headers.

        The subject must be valid, block empty or made by runtime.headers. While reconnecting up to 8 MiB are kept.
        Raises Fault: TOO_LARGE (payload + headers), UNAVAILABLE (closed, or the 8 MiB are full).
        """
        size = len(payload) + len(block)
        if size > self._max_payload:
            raise Fault(
                Code.TOO_LARGE, f"a message may have {self._max_payload} bytes with its headers, this has {size}"
            )
        if self.is_closed or self.is_draining_pubs:
            raise Fault(Code.UNAVAILABLE, "the connection to NATS is closed")
        if self._pending_data_size + size > PENDING_BYTES:
            raise Fault(Code.UNAVAILABLE, "NATS takes no more messages at the moment", retry_after_s=1)
        if block:
            command = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode() + block + payload + b"\r\n"
        else:
            command = f"PUB {subject} {reply} {size}\r\n".encode() + payload + b"\r\n"
        self._pending.append(command)
        self._pending_data_size += len(command)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        queue = self._flush_queue
        if queue is not None and queue.empty() and self._status == Client.CONNECTED:
            queue.put_nowait(asyncio.get_running_loop().create_future())

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """As nats-py's. Raises Fault as write() does, and Fault(INVALID) on a bad subject or header name."""
        if not subject or _SPACE.search(subject) or _SPACE.search(reply):
            raise Fault(Code.INVALID, "a subject may not be empty or hold white space")
        await self.send(subject, payload, reply, as_block(headers))

    async def send(self, subject: str, payload: bytes, reply: str = "", block: bytes = b"") -> None:
        """write(), after waiting at most 2 s for room while the buffer is more than half full."""
        if self._pending_data_size > PENDING_BYTES // 2 and self.is_connected:
            await self._flush_pending(force_flush=True)
        self.write(subject, payload, reply, block)

    # -- in -----------------------------------------------------------------------------------------------------

    async def listen(self, subject: str, listener: Listener, *, queue: str = "") -> Subscription:
        """Subscribe with a plain function that the read loop calls for each message, before it reads the next:
        (subject, reply, data, header block or None), all bytes. It must not block; what it raises is counted."""
        sid = self._sid + 1
        self._listeners[sid] = listener
        try:
            # A future marks a subscription without queue and task; it is never set, the listener stands before it.
            return await super().subscribe(subject, queue=queue, future=asyncio.get_running_loop().create_future())
        except BaseException:
            self._listeners.pop(sid, None)
            raise

    async def subscribe(
        self,
        subject: str,
        queue: str = "",
        cb: Callable[[Msg], Awaitable[None]] | None = None,
        future: asyncio.Future[Any] | None = None,
        max_msgs: int = 0,
        pending_msgs_limit: int = DEFAULT_SUB_PENDING_MSGS_LIMIT,
        pending_bytes_limit: int = DEFAULT_SUB_PENDING_BYTES_LIMIT,
    ) -> Subscription:
        """As nats-py's; a callback that raises CancelledError does not end its subscription."""
        guarded = None if cb is None else self._guarded(cb)
        return await super().subscribe(
            subject, queue, guarded, future, max_msgs, pending_msgs_limit, pending_bytes_limit
        )

    def _guarded(self, cb: Callable[[Msg], Awaitable[None]]) -> Callable[[Msg], Awaitable[None]]:
        async def run(msg: Msg) -> None:
            try:
                await cb(msg)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # the subscription itself is being ended
                self._drop("callback")

        return run

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._listeners.pop(sid, None)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            listener = self._listeners.get(sid)
            if listener is None:
                await super()._process_msg(sid, subject, reply, data, headers)
            else:
                self.stats["in_msgs"] += 1
                self.stats["in_bytes"] += len(data)
                listener(subject, reply, data, headers or None)
        except ValueError:  # a header block, subject or reply that cannot be read (UnicodeDecodeError is one)
            self._drop("unreadable")
        except Exception:  # nothing that one message does may end the loop that reads all others
            self._drop("listener")
            _log.exception("a_received_message_raised")

    async def _process_headers(self, headers_: bytes | None) -> dict[str, str] | None:
        return blocks.parse(headers_) if headers_ else None

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        """In line behind what waits to be sent: nats-py's overtakes it, and a flush then promises what is not so."""
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        self._pongs_received += 1
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():  # a flush that timed out has cancelled its own
                future.set_result(True)

    def _drop(self, reason: str) -> None:
        self.drops[reason] += 1
        if self.drops[reason] in (1, 10, 100) or self.drops[reason] % 1000 == 0:
            _log.warning("message_dropped", reason=reason, count=self.drops[reason])

    # -- the link -------------------------------------------------------------------------------------------------

    async def _process_err(self, err_msg: str) -> None:
        """Where the broker also closes the link, the end of the stream leads to a reconnect; nats-py would close
        for ever, in spite of max_reconnect_attempts."""
        if "stale connection" in err_msg:
            await self._process_op_err(errors.StaleConnectionError())
            return
        _log.error("nats_refused", error=err_msg[:300])
        self._err = errors.Error(f"nats: {err_msg[:300]}")
        found = _REFUSED.search(err_msg)
        if found:
            self.requests.refuse(found[1])

    async def _connect_to_server(self, s: Srv) -> None:
        if s.uri.scheme in ("ws", "wss"):
            await super()._connect_to_server(s)
            return
        s.last_attempt = time.monotonic()
        if not isinstance(self._transport, BoundedTransport):
            self._transport = BoundedTransport()  # type: ignore[no-untyped-call]
        await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, CONNECT_TIMEOUT_S)

    async def _process_connect_init(self) -> None:
        current = asyncio.current_task()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not current:
                task.cancel()  # of a link that got half-way: two readers on one stream end each other
        self._pending = [command for command in self._pending if command != PING_PROTO]  # nobody waits for their PONGs
        await super()._process_connect_init()
        self.heard_at = asyncio.get_running_loop().time()

    async def _read_loop(self) -> None:
        await super()._read_loop()
        await self._outlived(self._reading_task)

    async def _flusher(self) -> None:
        await super()._flusher()
        await self._outlived(self._flusher_task)

    async def _outlived(self, task: asyncio.Task[None] | None) -> None:
        """A loop ended by itself although the link stands: without this it would look connected for ever."""
        if task is not asyncio.current_task() or task is None or task.cancelling():
            return  # of an earlier link, or ended by its owner
        if self._status == Client.CONNECTED:
            _log.error("nats_loop_ended")
            await self._process_op_err(errors.ProtocolError())

    async def _attempt_reconnect(self) -> None:
        while True:
            try:
                await super()._attempt_reconnect()
                return
            except Exception:  # whatever it was, a process that stops trying is lost
                _log.exception("nats_reconnect_raised")
                self._status = Client.RECONNECTING
                await asyncio.sleep(RECONNECT_MOST_S)

    async def close(self) -> None:
        """Flush for at most 2 s, then close for good."""
        self._closing = True
        try:
            await asyncio.wait_for(super().close(), 2 * CLOSE_WITHIN_S)
        except TimeoutError:
            _log.warning("nats_close_cut_short")

    async def when_error(self, error: Exception) -> None:
        _log.warning("nats_error", error=type(error).__name__, detail=str(error)[:300])

    async def when_disconnected(self) -> None:
        if not self._closing:
            _log.warning("nats_disconnected")

    async def when_reconnected(self) -> None:
        _log.info("nats_reconnected")
        for callback in list(self._reconnected):
            try:
                callback()
            except Exception:  # one owner's mistake must not cost the others their connection
                _log.exception("nats_reconnect_callback_raised")

    async def when_closed(self) -> None:
        if not self._closing and self._on_closed is not None:
            _log.error("nats_closed")
            try:
                self._on_closed()
            except Exception:
                _log.exception("nats_closed_callback_raised")
