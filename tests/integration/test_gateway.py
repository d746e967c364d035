"""gateway as a served table over NATS: real local models, and a scripted upstream in place of a paid one."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from runtime.client import Client
from runtime.connection import connect
from runtime.identity import Identity
from runtime.settings import Settings
from stack import Stack, local
from subjects import gateway
from subjects.contract import Code, Fault
from subjects.gateway import CachePolicy, Embed, Generate, Generation, ImagePart, Message
from tests.upstream import SECRET, Upstream
from workers.gateway.worker import WORKER
from workers.serving.boot import serving

QUESTION = "What is the capital of France?"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(
    settings: Settings, stack: Stack, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Client]:
    """A client of a gateway whose OpenAI is the scripted upstream."""
    models = await local.start(tmp_path_factory.mktemp("models"), port=None)
    changed = settings.model_copy(update={"local_models_url": models.url, "llm_default_model": "local/smollm2"})
    connection = await connect(changed, name="test-gateway")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", "sk-test-key")
        environment.setenv("OPENAI_BASE_URL", upstream.url)
        environment.delenv("ANTHROPIC_API_KEY", raising=False)
        try:
            async with serving([WORKER], changed, connection):
                yield Client(connection, changed, source="test")
        finally:
            await connection.close()
            await models.stop()


@pytest.fixture
def who(tenant: str) -> Identity:
    return Identity.new(tenant)


async def _ask(client: Client, who: Identity, model: str, *, timeout_s: float = 30, **more: Any) -> Generation:
    message = Generate(prompt=QUESTION, model=model, **more)
    return await client.call(gateway.GENERATE, message, identity=who, timeout_s=timeout_s)


# --- what there is --------------------------------------------------------------------------------------------------


async def test_the_models_are_those_that_can_be_asked(client: Client, who: Identity) -> None:
    found: dict[str, gateway.ModelInfo] = {}
    cursor = None
    while True:
        message = gateway.ListModels(limit=40, cursor=cursor)
        page = await client.call(gateway.LIST_MODELS, message, identity=who)
        assert len(page.items) <= 40
        assert not found.keys() & {each.name for each in page.items}
        found |= {each.name: each for each in page.items}
        cursor = page.next_cursor
        if cursor is None:
            break
    assert {each.provider for each in found.values()} == {"local", "openai"}
    assert (found["local/smollm2"].default, found["local/minilm"].dimensions) == (True, 384)
    mini = found["openai/gpt-5-mini"]
    assert (mini.kind, mini.input_usd_per_million, "tools" in mini.capabilities) == ("chat", 0.25, True)
    chat = await client.call(gateway.LIST_MODELS, gateway.ListModels(kind="chat", provider="local"), identity=who)
    assert [each.name for each in chat.items] == ["local/smollm2"]


async def test_a_provider_says_what_it_needs(client: Client, who: Identity) -> None:
    found = (await client.call(gateway.LIST_PROVIDERS, gateway.ListProviders(), identity=who)).items
    told = {each.name: (each.configured, each.missing) for each in found}
    assert told["openai"] == told["local"] == (True, None)
    assert told["anthropic"] == (False, "ANTHROPIC_API_KEY")
    message = gateway.ListProviders(configured=True)
    configured = (await client.call(gateway.LIST_PROVIDERS, message, identity=who)).items
    assert {each.name for each in configured} == {"local", "openai"}


# --- local models ---------------------------------------------------------------------------------------------------


async def test_the_default_model_answers_without_a_key(client: Client, who: Identity) -> None:
    answer = await client.call(gateway.GENERATE, Generate(prompt=QUESTION, max_tokens=30), identity=who)
    assert "Paris" in str(answer.message.content)
    assert (answer.model, answer.provider, answer.cost_usd) == ("local/smollm2", "local", 0.0)
    assert answer.usage.input > 0
    assert answer.usage.output > 0
    assert answer.ttft_ms is not None
    assert answer.ttft_ms <= answer.latency_ms
    assert [attempt.code for attempt in answer.attempts] == [None]


async def test_streamed_pieces_are_the_final_answer(client: Client, who: Identity) -> None:
    message = Generate(prompt="Write one sentence about the sea.", max_tokens=60)
    async with client.stream(gateway.GENERATE, message, identity=who) as stream:
        pieces = [chunk.text async for chunk in stream if isinstance(chunk, gateway.GenerationChunk)]
    assert len(pieces) > 1
    assert "".join(pieces) == stream.result.message.content


async def test_64_texts_become_vectors_in_order(client: Client, who: Identity) -> None:
    texts = [f"text number {number}" for number in range(64)]
    floats = await client.call(gateway.EMBED, Embed(input=texts), identity=who)
    packed = await client.call(gateway.EMBED, Embed(input=texts, encoding="f32"), identity=who)
    assert (floats.dimensions, len(floats.embeddings), len(packed.vectors)) == (384, 64, 64)
    assert len(floats.revision) == 16
    assert floats.revision == packed.revision
    assert floats.cost_usd == 0.0
    for row, data in zip(floats.embeddings, packed.vectors, strict=True):
        assert row == pytest.approx(struct.unpack("<384f", data))


async def test_dimensions_that_the_model_does_not_have_are_invalid(client: Client, who: Identity) -> None:
    with pytest.raises(Fault) as raised:
        await client.call(gateway.EMBED, Embed(input="x", dimensions=100), identity=who)
    assert raised.value.code is Code.INVALID


# --- a provider -----------------------------------------------------------------------------------------------------


async def test_usage_comes_in_classes_that_exclude_each_other(client: Client, who: Identity) -> None:
    answer = await _ask(client, who, "openai/ok")
    assert answer.message.content == "Paris is the capital."
    assert answer.usage == gateway.Usage(input=16, cache_read=4, output=3, reasoning=2)
    assert answer.cost_usd is None  # no price is known for this name


async def test_a_known_model_has_a_price(client: Client, who: Identity) -> None:
    answer = await _ask(client, who, "gpt-4o-mini")
    assert answer.model == "openai/gpt-4o-mini"
    assert answer.cost_usd == pytest.approx(16 * 0.15e-6 + 4 * 0.075e-6 + 5 * 0.6e-6)


async def test_a_stream_that_tells_no_usage_is_estimated(client: Client, who: Identity) -> None:
    answer = await _ask(client, who, "openai/no-usage")
    assert answer.usage.input > 0
    assert answer.usage.output > 0


async def test_tool_calls_are_joined(client: Client, who: Identity) -> None:
    answer = await _ask(client, who, "openai/tool", tools=[{"type": "function", "function": {"name": "weather"}}])
    (call,) = answer.message.tool_calls
    assert (call.id, call.name, call.arguments) == ("call_1", "weather", '{"city":"Oslo"}')
    assert answer.finish_reason == "tool_calls"


FAILURES = {
    "429": Code.EXHAUSTED,
    "500": Code.UPSTREAM,
    "503": Code.UPSTREAM,
    "401": Code.UPSTREAM,
    "400": Code.INVALID,
    "404": Code.NOT_FOUND,
    "html": Code.UPSTREAM,
    "cut-json": Code.UPSTREAM,
    "hang": Code.TIMEOUT,
    "stall": Code.TIMEOUT,
    "reset": Code.UPSTREAM,
    "truncated": Code.UPSTREAM,
    "bad-json": Code.UPSTREAM,
    "error-chunk": Code.UPSTREAM,
    "no-finish": Code.UPSTREAM,
    "no-finish-but-done": Code.UPSTREAM,
    "empty": Code.UPSTREAM,
}


@pytest.mark.parametrize(("mode", "code"), FAILURES.items())
async def test_a_failing_upstream_is_a_fault_after_one_hit(
    client: Client, who: Identity, upstream: Upstream, mode: str, code: Code
) -> None:
    before = upstream.hits[mode]
    with pytest.raises(Fault) as raised:
        await _ask(client, who, f"openai/{mode}", timeout_s=1.5)
    assert raised.value.code is code
    assert upstream.hits[mode] == before + 1
    assert SECRET not in raised.value.detail


async def test_a_rate_limit_says_when_to_come_back(client: Client, who: Identity) -> None:
    with pytest.raises(Fault) as raised:
        await _ask(client, who, "openai/429")
    assert raised.value.retry_after_s == 7


@pytest.mark.parametrize("mode", ["429", "500", "401", "404", "html", "empty", "hang"])
async def test_a_fallback_answers_before_the_first_piece(client: Client, who: Identity, mode: str) -> None:
    answer = await _ask(client, who, f"openai/{mode}", fallbacks=["openai/ok"], timeout_s=3)
    assert answer.model == "openai/ok"
    assert [attempt.code for attempt in answer.attempts] == [FAILURES[mode].value, None]


@pytest.mark.parametrize("mode", ["reset", "no-finish"])
async def test_no_fallback_follows_a_piece(client: Client, who: Identity, upstream: Upstream, mode: str) -> None:
    before = upstream.hits["ok"]
    with pytest.raises(Fault) as raised:
        await _ask(client, who, f"openai/{mode}", fallbacks=["openai/ok"])
    assert raised.value.code is Code.UPSTREAM
    assert upstream.hits["ok"] == before


async def test_a_caller_who_leaves_closes_the_upstream(client: Client, who: Identity, upstream: Upstream) -> None:
    upstream.left["long"].clear()
    async with client.stream(gateway.GENERATE, Generate(prompt="x", model="openai/long"), identity=who) as stream:
        async for _ in stream:
            break
    left = time.monotonic()
    await asyncio.wait_for(upstream.left["long"].wait(), 1)
    assert time.monotonic() - left < 1


async def test_a_cut_answer_is_billed_for_what_came(client: Client, who: Identity) -> None:
    heard: asyncio.Queue[gateway.Completed] = asyncio.Queue()

    async def hear(event: gateway.Completed, _: Identity) -> None:
        heard.put_nowait(event)

    await client.subscribe(gateway.FAILED, hear, tenant=who.tenant)
    with pytest.raises(Fault):
        await _ask(client, who, "openai/reset", metadata={"case": "cut"})
    event = await asyncio.wait_for(heard.get(), 5)
    assert (event.status, event.model, event.metadata) == ("failed", "openai/reset", {"case": "cut"})
    assert event.usage.output > 0
    assert event.cost_usd is None


async def test_an_answer_is_told_as_an_event(client: Client, who: Identity) -> None:
    heard: asyncio.Queue[gateway.Completed] = asyncio.Queue()

    async def hear(event: gateway.Completed, _: Identity) -> None:
        heard.put_nowait(event)

    await client.subscribe(gateway.COMPLETED, hear, tenant=who.tenant)
    answer = await _ask(client, who, "openai/ok")
    event = await asyncio.wait_for(heard.get(), 5)
    assert (event.entity_id, event.usage, event.status) == (answer.id, answer.usage, "completed")


async def test_the_same_key_asks_the_model_once(client: Client, who: Identity, upstream: Upstream) -> None:
    before = upstream.hits["ok"]
    message = Generate(prompt=QUESTION, model="openai/ok")
    answers = [await client.call(gateway.GENERATE, message, identity=who, key="k1") for _ in range(2)]
    assert answers[0].id == answers[1].id
    assert upstream.hits["ok"] == before + 1


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("anthropic/claude-haiku-4-5", "ANTHROPIC_API_KEY"),
        ("no-such-model", "local/smollm2"),
        ("local/nothing", "local/smollm2"),
        ("petals/x", "PETALS_API_BASE"),
    ],
)
async def test_a_model_that_cannot_be_asked_names_what_is_missing(
    client: Client, who: Identity, model: str, says: str
) -> None:
    with pytest.raises(Fault) as raised:
        await _ask(client, who, model)
    assert raised.value.code is Code.NOT_FOUND
    assert says in raised.value.detail


@pytest.mark.parametrize(
    "more",
    [
        {"model": "openai/http://127.0.0.1:1/v1"},
        {"model": "openai/../x"},
        {"tools": [{"type": "mcp", "server_url": "http://127.0.0.1:1"}]},
        {"cache": CachePolicy(mode="exact")},
        {"cache": CachePolicy(mode="semantic")},
    ],
)
async def test_what_this_version_cannot_do_is_invalid(client: Client, who: Identity, more: dict[str, Any]) -> None:
    with pytest.raises(Fault) as raised:
        await client.call(gateway.GENERATE, Generate(prompt="x", **more), identity=who)
    assert raised.value.code is Code.INVALID


async def test_an_image_from_an_address_is_refused(client: Client, who: Identity) -> None:
    message = Message(role="user", content=[ImagePart(url="http://169.254.169.254/latest")])
    with pytest.raises(Fault) as raised:
        await client.call(gateway.GENERATE, Generate(messages=[message], model="openai/ok"), identity=who)
    assert raised.value.errors[0].path == "messages.0.content.0"


async def test_a_provider_embeds_in_input_order(client: Client, who: Identity) -> None:
    reply = await client.call(gateway.EMBED, Embed(input=["a", "bbb"], model="openai/any"), identity=who)
    assert [row[0] for row in reply.embeddings] == [1.0, 3.0]
    assert reply.cost_usd is None


def test_reading_the_table_imports_no_litellm() -> None:
    import subprocess
    import sys

    code = "import sys, workers.gateway.worker; sys.exit('litellm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
