"""The connection goes on serving, whatever strangers, frozen servers and broken links do to it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeout

from runtime import connection as connections
from runtime import headers, streams
from runtime.connection import Connection, connect
from stack import nats, ports
from stack.process import Program, Server
from subjects.contract import Code, Fault
from tests.broker import ANY_FREE_PORT, Proxy, RawSocket, answers, own_broker, serve_echo, settings_of, until

UNREADABLE = [
    pytest.param(b"wild.\xff\xfe", b"", None, id="subject is not UTF-8"),
    pytest.param(b"wild.a", b"\xff\xfe", None, id="reply is not UTF-8"),
    pytest.param(b"wild.a", b"", b"abc", id="header block abc"),
    pytest.param(b"wild.a", b"", b"NATS/1.0", id="header block is the version alone"),
    pytest.param(b"wild.a", b"", b"NATS/1.0 \xff\xfe\xff\r\n\r\n", id="status line is not UTF-8"),
    pytest.param(b"wild.a", b"", b"NATS/1.0\r\n" + b"a: b\r\n" * 600 + b"\r\n", id="600 headers"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def broker() -> AsyncIterator[Server]:
    async with own_broker() as server:
        yield server


@pytest_asyncio.fixture
async def link(broker: Server) -> AsyncIterator[Connection]:
    opened = await connect(settings_of(broker.url), name="tests")
    yield opened
    await opened.close()


@pytest.fixture
def quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead link is found within 2 s instead of 10, so that the tests need not wait."""
    monkeypatch.setattr(connections, "PING_INTERVAL_S", 1)


@pytest_asyncio.fixture
async def raw(broker: Server) -> AsyncIterator[RawSocket]:
    opened = await RawSocket.open(broker.url)
    yield opened
    opened.close()


@pytest.mark.parametrize(("subject", "reply", "block"), UNREADABLE)
async def test_an_unreadable_message_is_dropped_and_the_next_one_served(
    link: Connection, raw: RawSocket, subject: bytes, reply: bytes, block: bytes | None
) -> None:
    heard: list[bytes] = []

    async def received(msg: Msg) -> None:
        heard.append(msg.data)

    await link.subscribe("wild.>", cb=received)
    await link.flush()
    await raw.publish(subject, b"bad", reply=reply, block=block)
    await raw.publish(b"wild.b", b"good", block=b"NATS/1.0\r\nA: b\r\n\r\n")
    await until(lambda: bool(heard))
    assert heard == [b"good"]
    assert link.dropped == 1
    assert link.healthy


@pytest.mark.parametrize("block", [each.values[2] for each in UNREADABLE if each.values[2] is not None])
async def test_a_listener_that_cannot_read_a_message_goes_on(link: Connection, raw: RawSocket, block: bytes) -> None:
    heard: list[bytes] = []

    def received(_subject: bytes, _reply: bytes, data: bytes, given: bytes | None) -> None:
        headers.parse(given or b"")
        heard.append(data)

    await link.listen("wild.>", received)
    await link.flush()
    await raw.publish(b"wild.a", b"bad", block=block)
    await raw.publish(b"wild.b", b"good", block=b"NATS/1.0\r\nA: b\r\n\r\n")
    await until(lambda: bool(heard))
    assert (heard, link.dropped, link.healthy) == ([b"good"], 1, True)


async def test_a_stored_unreadable_message_does_not_stop_a_consumer(link: Connection, raw: RawSocket) -> None:
    settings = settings_of("nats://unused:1")
    await streams.ensure(link, settings)
    await streams.ensure_consumer(link, streams.JOBS, streams.jobs_consumer("wild", settings))
    await raw.publish(b"job.t.wild.op.a", b"bad", block=b"abc")
    await raw.publish(b"job.t.wild.op.b", b"good")
    pull = await link.jetstream().pull_subscribe_bind("wild", streams.JOBS)
    found: list[bytes] = []
    while not found:
        try:
            found = [msg.data for msg in await pull.fetch(1, timeout=1)]
        except NatsTimeout:
            continue
    assert found == [b"good"]
    assert link.dropped >= 1


async def test_a_listener_that_raises_ends_nothing(link: Connection) -> None:
    heard: list[bytes] = []

    def received(_subject: bytes, _reply: bytes, data: bytes, _block: bytes | None) -> None:
        if data == b"bad":
            raise RuntimeError("a bug")
        heard.append(data)

    await link.listen("bugs", received)
    for data in (b"bad", b"good"):
        await link.publish("bugs", data)
    await until(lambda: heard == [b"good"])
    assert link.drops["listener"] == 1


async def test_a_callback_that_raises_cancelled_error_keeps_its_subscription(link: Connection) -> None:
    heard: list[bytes] = []

    async def received(msg: Msg) -> None:
        heard.append(msg.data)
        raise asyncio.CancelledError

    await link.subscribe("cancels", cb=received)
    for data in (b"1", b"2"):
        await link.publish("cancels", data)
    await until(lambda: heard == [b"1", b"2"])


async def test_headers_count_towards_the_limit_and_nothing_is_closed(link: Connection) -> None:
    await serve_echo(link, "echo")
    with pytest.raises(Fault) as raised:
        await link.publish("echo", b"x" * (link.max_payload - 10), headers={"A": "b" * 100})
    assert raised.value.code is Code.TOO_LARGE
    assert await answers(link, "echo")


async def test_an_error_of_the_broker_leads_to_a_reconnect_not_to_the_end(link: Connection) -> None:
    await serve_echo(link, "echo")
    # What write() refuses, sent all the same: the broker answers -ERR and closes the link.
    size = link.max_payload + 1
    link._pending.append(b"PUB echo %d\r\n%b\r\n" % (size, b"x" * size))
    link._pending_data_size += size
    await link._flush_pending()
    await until(lambda: link.stats["reconnects"] > 0)
    assert await answers(link, "echo")
    assert not link.is_closed


async def test_a_flush_that_timed_out_breaks_no_later_one(link: Connection, broker: Server) -> None:
    broker.signal(signal.SIGSTOP)
    await asyncio.sleep(0.1)  # a signal takes its time to stop every thread
    try:
        with pytest.raises(NatsTimeout):
            await link.flush(timeout=1)
    finally:
        broker.signal(signal.SIGCONT)
    await link.flush(timeout=5)
    await link.flush(timeout=5)
    assert link.healthy


async def test_after_a_restart_subscriptions_are_back(link: Connection, broker: Server) -> None:
    again: list[bool] = []
    link.on_reconnect(lambda: again.append(True))
    await serve_echo(link, "echo")
    await broker.restart()
    assert await answers(link, "echo")
    assert link.healthy
    assert again


async def test_a_frozen_broker_is_noticed_and_forgiven(quick_pings: None, link: Connection, broker: Server) -> None:
    await serve_echo(link, "echo")
    assert await answers(link, "echo")
    broker.signal(signal.SIGSTOP)
    await asyncio.sleep(0.1)
    try:
        with pytest.raises(Fault) as raised:
            await link.requests.ask("echo", b"", b"", 0.3)
        assert raised.value.code is Code.TIMEOUT
        await until(lambda: not link.healthy, within_s=14)
    finally:
        broker.signal(signal.SIGCONT)
    assert await answers(link, "echo")
    await until(lambda: link.healthy)


async def test_a_half_open_link_with_unsent_data_is_left_behind(quick_pings: None, broker: Server) -> None:
    async with Proxy(broker.url) as proxy:
        link = await connect(settings_of(proxy.url), name="tests")
        try:
            await serve_echo(link, "echo")
            assert await answers(link, "echo")
            proxy.stall()
            with pytest.raises(Fault) as raised:
                await _fill(link)
            assert raised.value.code is Code.UNAVAILABLE
            assert await answers(link, "echo", within_s=20)
        finally:
            await link.close()


async def _fill(link: Connection) -> None:
    for _ in range(1000):  # more than socket buffers take, until the buffer of 8 MiB is full
        await link.publish("nobody", b"x" * 100_000)


async def test_no_broker_is_unavailable_within_the_limit() -> None:
    with pytest.raises(Fault) as raised:
        await connect(settings_of(f"nats://127.0.0.1:{ports.choose(ANY_FREE_PORT)}"), name="tests", within_s=1)
    assert raised.value.code is Code.UNAVAILABLE


async def test_closing_is_no_accident(broker: Server) -> None:
    accidents: list[bool] = []
    link = await connect(settings_of(broker.url), name="tests", on_closed=lambda: accidents.append(True))
    await link.close()
    assert link.is_closed
    assert not accidents
    with pytest.raises(Fault) as raised:
        link.write("any", b"")
    assert raised.value.code is Code.UNAVAILABLE


async def test_a_loop_that_ended_by_itself_is_replaced(link: Connection) -> None:
    await serve_echo(link, "echo")
    # As if the parser had met what it cannot get over.
    link._ps.nc = None
    await link.publish("echo", b"")
    await until(lambda: link.stats["reconnects"] > 0 or link._ps.nc is None, within_s=2)
    link._ps.nc = link
    assert await answers(link, "echo")


async def test_what_the_broker_forbids_is_forbidden_at_once() -> None:
    home = Path(tempfile.mkdtemp(prefix="faas-b-", dir="/tmp"))
    port = ports.choose(ANY_FREE_PORT)
    rules = 'permissions: {publish: {allow: ["req.acme.>"]}, subscribe: ">"}'
    (home / "n.conf").write_text(
        f'listen: "127.0.0.1:{port}"\nauthorization: {{users: [{{user: u, password: p, {rules}}}]}}\n'
    )

    async def ready() -> bool:
        try:
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
        except OSError:
            return False
        return True

    program = Program("nats-server", (str(nats.binary()), "-c", str(home / "n.conf")), ready)
    server = Server(program, f"nats://u:p@127.0.0.1:{port}", home=home)
    await server.start()
    try:
        link = await connect(settings_of(server.url), name="tests")
        started = asyncio.get_running_loop().time()
        with pytest.raises(Fault) as raised:
            await link.requests.ask("req.other.cache.get", b"", b"", 5)
        assert raised.value.code is Code.FORBIDDEN
        assert asyncio.get_running_loop().time() - started < 1
        await link.close()
    finally:
        await server.stop()
        shutil.rmtree(home, ignore_errors=True)


def test_the_private_names_that_we_override_are_still_there() -> None:
    """nats-py is pinned for their sake: when this fails, read its changes before raising the pin."""
    base = Client
    for name in (
        "_process_msg", "_process_headers", "_process_pong", "_process_err", "_process_op_err", "_read_loop",
        "_flusher", "_send_ping", "_send_command", "_connect_to_server", "_process_connect_init",
        "_attempt_reconnect", "_flush_pending", "_remove_sub", "_close",
    ):  # fmt: skip
        assert asyncio.iscoroutinefunction(getattr(base, name)) or name == "_remove_sub", name
    fresh = vars(base())
    for name in (
        "_ps", "_transport", "_pending", "_pending_data_size", "_flush_queue", "_pongs", "_pings_outstanding", "_sid",
        "_subs", "_reading_task", "_flusher_task", "_ping_interval_task", "_max_payload", "_status", "_pongs_received",
    ):  # fmt: skip
        assert name in fresh, name
