"""Numbered output: each piece once and in order, for any reader at any time, or an error that says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import codec
from codec import headers as h
from runtime import headers, jobs, output_reader, streams
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from runtime.output import OutputItem, OutputReader, OutputWriter, read_output
from stack.process import Server
from subjects import gateway, grammar
from subjects.contract import Code, Fault
from tests.broker import RawSocket, own_broker, settings_of, until

GENERATION = gateway.Generation(
    id="g", model="m", provider="p", message=gateway.Message(role="assistant", content="one two"),
    finish_reason="stop", usage=gateway.Usage(),
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def broker() -> AsyncIterator[Server]:
    async with own_broker() as server:
        link = await connect(settings_of(server.url), name="setup")
        await streams.ensure(link, settings_of(server.url))
        await link.close()
        yield server


@pytest_asyncio.fixture
async def link(broker: Server) -> AsyncIterator[Connection]:
    opened = await connect(settings_of(broker.url), name="tests")
    yield opened
    await opened.close()


@pytest.fixture
def client(link: Connection) -> Client:
    return Client(link, settings_of("nats://unused:1"), source="tests")


@pytest.fixture
def output_id() -> str:
    return jobs.output_id()


def text(piece: str) -> gateway.GenerationChunk:
    return gateway.GenerationChunk(text=piece)


async def write(writer: OutputWriter, count: int) -> None:
    for number in range(1, count + 1):
        await writer.chunk(b"%d" % number)


async def read(
    link: Connection, tenant: str, output_id: str, after: tuple[int, int] | None = None, idle_s: float = 5
) -> list[OutputItem]:
    return [item async for item in read_output(link, tenant, output_id, after=after, idle_timeout_s=idle_s)]


def places(items: list[OutputItem]) -> list[tuple[str, int, int]]:
    return [(item.kind, item.attempt, item.n) for item in items]


def chunks(attempt: int, first: int, last: int) -> list[tuple[str, int, int]]:
    return [("chunk", attempt, n) for n in range(first, last + 1)]


async def test_many_readers_get_each_piece_once_whenever_they_come(
    link: Connection, tenant: str, output_id: str
) -> None:
    writer = OutputWriter(link, tenant, output_id)
    early = [asyncio.create_task(read(link, tenant, output_id)) for _ in range(3)]
    await write(writer, 10)
    middle = asyncio.create_task(read(link, tenant, output_id))
    await asyncio.sleep(0)
    for number in range(11, 301):
        await writer.chunk(b"%d" % number)
    await writer.end("done", b"whole")
    late = asyncio.create_task(read(link, tenant, output_id))
    for items in await asyncio.gather(*early, middle, late):
        assert places(items) == [*chunks(1, 1, 300), ("done", 1, 301)]
        assert [item.data for item in items] == [*(b"%d" % n for n in range(1, 301)), b"whole"]


async def test_a_reader_rejoins_behind_what_it_has_seen(link: Connection, tenant: str, output_id: str) -> None:
    writer = OutputWriter(link, tenant, output_id)
    await write(writer, 5)
    rejoined = asyncio.create_task(read(link, tenant, output_id, after=(1, 3)))
    await asyncio.sleep(0.05)
    await writer.chunk(b"6")
    await writer.end("done", b"")
    assert places(await rejoined) == [*chunks(1, 4, 6), ("done", 1, 7)]


async def test_a_new_attempt_begins_with_restart(link: Connection, tenant: str, output_id: str) -> None:
    reading = asyncio.create_task(read(link, tenant, output_id))
    await write(OutputWriter(link, tenant, output_id, 1), 2)
    await asyncio.sleep(0.05)
    again = OutputWriter(link, tenant, output_id, 2)
    await write(again, 1)
    await OutputWriter(link, tenant, output_id, 1).chunk(b"straggler")
    await again.end("done", b"")
    expected = [*chunks(1, 1, 2), ("restart", 2, 0), *chunks(2, 1, 1), ("done", 2, 2)]
    assert places(await reading) == expected
    assert places(await read(link, tenant, output_id)) == expected
    assert places(await read(link, tenant, output_id, after=(1, 1))) == expected[1:]


async def test_an_attempt_can_be_set_before_it_writes(link: Connection, tenant: str, output_id: str) -> None:
    writer = OutputWriter(link, tenant, output_id)
    writer.attempt = 3
    await writer.end("error", b"p")
    assert places(await read(link, tenant, output_id)) == [("error", 3, 1)]


async def test_a_gap_is_filled_from_what_is_kept(link: Connection, tenant: str, output_id: str) -> None:
    writer = OutputWriter(link, tenant, output_id)
    await write(writer, 5)
    await link.flush()
    reader = OutputReader(link, tenant, output_id, fresh=True)  # believes that nothing was written before it
    await reader.start()
    await writer.chunk(b"6")
    await writer.end("done", b"")
    items = [item async for item in reader.items(5)]
    await reader.close()
    assert places(items) == [*chunks(1, 1, 6), ("done", 1, 7)]


async def test_a_slow_reader_has_a_bounded_buffer_and_loses_nothing(
    link: Connection, tenant: str, output_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_reader, "MAX_LIVE", 10)
    reader = OutputReader(link, tenant, output_id)
    await reader.start()
    writer = OutputWriter(link, tenant, output_id)
    await write(writer, 1000)
    await writer.end("done", b"")
    await until(lambda: link.stats["in_msgs"] >= 1001)
    assert len(reader._live) == 10
    items = [item async for item in reader.items(5)]
    await reader.close()
    assert places(items) == [*chunks(1, 1, 1000), ("done", 1, 1001)]


async def test_what_is_no_longer_kept_is_an_error_that_names_the_output(
    link: Connection, tenant: str, output_id: str
) -> None:
    writer = OutputWriter(link, tenant, output_id)
    await write(writer, 5)
    await writer.end("done", b"")
    await link.flush()
    subject = grammar.output(tenant, output_id)
    await link.jetstream().purge_stream("OUT", subject=subject, keep=2)
    for after in (None, (1, 2)):
        items = await read(link, tenant, output_id, after=after)
        assert [item.kind for item in items] == ["error"]
        problem = codec.decode(items[0].data, codec.Problem, items[0].content_type)
        assert output_id in problem.detail
        assert problem.code == Code.NOT_FOUND
    assert places(await read(link, tenant, output_id, after=(1, 4))) == [*chunks(1, 5, 5), ("done", 1, 6)]


async def test_a_lost_attempt_does_not_matter_when_a_later_one_is_whole(
    link: Connection, tenant: str, output_id: str
) -> None:
    await write(OutputWriter(link, tenant, output_id, 1), 3)
    again = OutputWriter(link, tenant, output_id, 2)
    await write(again, 2)
    await again.end("done", b"")
    await link.flush()
    await link.jetstream().purge_stream("OUT", subject=grammar.output(tenant, output_id), keep=4)
    items = await read(link, tenant, output_id)
    assert [item.data for item in items if item.attempt == 2 and item.kind == "chunk"] == [b"1", b"2"]
    assert items[-1].kind == "done"


async def test_silence_ends_as_an_error(link: Connection, tenant: str, output_id: str) -> None:
    items = await read(link, tenant, output_id, idle_s=0.2)
    assert [item.kind for item in items] == ["error"]
    assert codec.decode(items[0].data, codec.Problem, items[0].content_type).code == Code.TIMEOUT


async def test_a_reconnect_loses_nothing_that_is_kept(broker: Server, tenant: str, output_id: str) -> None:
    link, other = [await connect(settings_of(broker.url), name="tests") for _ in range(2)]
    reading = asyncio.create_task(read(link, tenant, output_id))
    writer = OutputWriter(other, tenant, output_id)
    await write(writer, 3)
    await asyncio.sleep(0.1)
    await link.force_reconnect()
    await write_on(writer, 4, 6)
    await writer.end("done", b"")
    assert places(await reading) == [*chunks(1, 1, 6), ("done", 1, 7)]
    await link.close()
    await other.close()


async def write_on(writer: OutputWriter, first: int, last: int) -> None:
    for number in range(first, last + 1):
        await writer.chunk(b"%d" % number)


@pytest.mark.parametrize("block", [b"", b"abc", b"NATS/1.0\r\nChunk: x\r\n\r\n", b"NATS/1.0\r\nChunk: -1\r\n\r\n"])
async def test_garbage_on_an_output_harms_no_reader(
    broker: Server, link: Connection, tenant: str, output_id: str, block: bytes
) -> None:
    reading = asyncio.create_task(read(link, tenant, output_id))
    raw = await RawSocket.open(broker.url)
    subject = grammar.output(tenant, output_id).encode()
    await raw.publish(subject, b"bad", block=block or None)
    writer = OutputWriter(link, tenant, output_id)
    await write(writer, 2)
    await writer.end("done", b"")
    expected = [*chunks(1, 1, 2), ("done", 1, 3)]
    assert places(await reading) == expected
    assert places(await read(link, tenant, output_id)) == expected
    raw.close()


async def test_small_texts_are_joined_and_the_first_goes_out_at_once(
    link: Connection, tenant: str, output_id: str
) -> None:
    writer = OutputWriter(link, tenant, output_id)
    for number in range(100):
        await writer.chunk(text(f"{number} "))
    assert writer.count == 1
    await until(lambda: writer.count == 2, within_s=0.5)
    await writer.chunk(gateway.GenerationChunk(tool_calls=[gateway.ToolCall(id="1", name="n", arguments="{}")]))
    for _ in range(3):
        await writer.chunk(text("x" * 2000))
    await writer.end("done", GENERATION)
    items = await read(link, tenant, output_id)
    pieces = [codec.decode(item.data, gateway.GenerationChunk, item.content_type) for item in items[:-1]]
    assert "".join(each.text for each in pieces) == "".join(f"{n} " for n in range(100)) + "x" * 6000
    assert len(pieces) <= 6
    assert [bool(each.tool_calls) for each in pieces].count(True) == 1
    assert codec.decode(items[-1].data, gateway.Generation) == GENERATION


async def test_after_the_end_nothing_can_be_written(link: Connection, tenant: str, output_id: str) -> None:
    writer = OutputWriter(link, tenant, output_id)
    await writer.end("done", b"")
    await writer.end("error", b"")
    with pytest.raises(Fault):
        await writer.chunk(b"more")
    assert places(await read(link, tenant, output_id)) == [("done", 1, 1)]


# -- streams --------------------------------------------------------------------------------------------------------


class Model:
    """Answers gateway.generate with chunks, as a worker would."""

    def __init__(self, link: Connection, pieces: int, *, pause_s: float = 0.0, fails: bool = False) -> None:
        self._link, self._pieces, self._pause_s, self._fails = link, pieces, pause_s, fails
        self.tasks: list[asyncio.Task[None]] = []
        self.cancels: list[str] = []

    async def serve(self, tenant: str) -> None:
        await self._link.listen(f"req.{tenant}.gateway.generate", self._received)
        await self._link.listen(f"ctl.{tenant}.cancel.*", lambda subject, *_: self.cancels.append(subject.decode()))
        await self._link.flush()

    def _received(self, subject: bytes, reply: bytes, _data: bytes, block: bytes | None) -> None:
        given = headers.parse(block or b"")
        tenant = subject.decode().split(".")[1]
        writer = OutputWriter(self._link, tenant, given[h.OUTPUT_TO])
        self.tasks.append(asyncio.ensure_future(self._answer(writer, reply.decode())))

    async def _answer(self, writer: OutputWriter, reply: str) -> None:
        for number in range(self._pieces):
            await writer.chunk(text(f"{number} "))
            await asyncio.sleep(self._pause_s)
        if self._fails:
            fault = Fault(Code.UPSTREAM, "cut")
            await writer.end("error", codec.to_problem(fault))
            given, body = codec.fault_reply(fault)
        else:
            await writer.end("done", GENERATION)
            given, body = {h.CONTENT_TYPE: codec.MSGPACK}, codec.encode(GENERATION)
        self._link.write(reply, body, block=headers.block(given))


@pytest.mark.parametrize(("pieces", "pause_s"), [(0, 0), (1, 0), (40, 0.002), (500, 0)])
async def test_a_stream_gives_all_pieces_and_the_whole_answer(
    link: Connection, client: Client, tenant: str, pieces: int, pause_s: float
) -> None:
    await Model(link, pieces, pause_s=pause_s).serve(tenant)
    read_ = ""
    async with client.stream(gateway.GENERATE, gateway.Generate(prompt="p"), identity=Identity.new(tenant)) as stream:
        async for chunk in stream:
            assert isinstance(chunk, gateway.GenerationChunk)
            read_ += chunk.text
    assert read_ == "".join(f"{n} " for n in range(pieces))
    assert stream.result == GENERATION


async def test_a_failing_stream_raises_after_its_pieces(link: Connection, client: Client, tenant: str) -> None:
    await Model(link, 3, fails=True).serve(tenant)
    pieces: list[str] = []

    async def consume() -> None:
        message = gateway.Generate(prompt="p")
        async with client.stream(gateway.GENERATE, message, identity=Identity.new(tenant)) as stream:
            async for chunk in stream:
                assert isinstance(chunk, gateway.GenerationChunk)
                pieces.append(chunk.text)

    with pytest.raises(Fault) as raised:
        await consume()
    assert raised.value.code is Code.UPSTREAM
    assert "".join(pieces) == "0 1 2 "


async def test_leaving_a_stream_early_cancels_the_work(link: Connection, client: Client, tenant: str) -> None:
    model = Model(link, 1000, pause_s=0.01)
    await model.serve(tenant)
    async with client.stream(gateway.GENERATE, gateway.Generate(prompt="p"), identity=Identity.new(tenant)) as stream:
        async for _ in stream:
            break
    await until(lambda: grammar.cancel(tenant, stream.output_id) in model.cancels, within_s=1)
    for task in model.tasks:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        _ = stream.result
    assert len(link.requests) == 0


async def test_a_stream_that_nobody_answers_is_unavailable(client: Client, tenant: str) -> None:
    message = gateway.Generate(prompt="p")

    async def consume() -> None:
        async with client.stream(gateway.GENERATE, message, identity=Identity.new(tenant)) as stream:
            async for _ in stream:
                pass

    with pytest.raises(Fault) as raised:
        await consume()
    assert raised.value.code is Code.UNAVAILABLE
