"""One conversation in every format and by every way in; and held by a client that has the .proto files alone."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest_asyncio

import codec
from cli.tokens import sign
from codec import headers as h
from codec import protos
from subjects import cache, rag
from subjects.contract import AnyCall, Code, Model
from tests.e2e.platform import Running

LIMIT_S = 60
MODEL = "openai/ok"  # the scripted upstream: not a second of this machine for words that nobody reads
QUESTION = "How many wheels does the mill of Tarn have?"
TEXT = "The mill of Tarn has 417 wheels. It stands by the river."
Ask = Callable[[AnyCall, Model], Awaitable[Model]]


@pytest_asyncio.fixture
async def ways(running: Running, tenant: str) -> AsyncIterator[dict[str, Ask]]:
    """Every format over NATS and over HTTP, by name."""
    bare = await nats.connect(running.platform.stack.nats_url)
    async with running.http(tenant) as http:

        def over_nats(kind: str) -> Ask:
            async def ask(call: AnyCall, message: Model) -> Model:
                subject, given = f"req.{tenant}.{call.component}.{call.operation}", {h.CONTENT_TYPE: kind}
                reply = await bare.request(subject, codec.encode(message, kind), timeout=LIMIT_S, headers=given)
                told = reply.headers or {}
                assert told[h.CONTENT_TYPE] == kind
                return read(reply.data, call, kind, failed=h.ERROR_CODE in told)

            return ask

        def over_http(kind: str) -> Ask:
            async def ask(call: AnyCall, message: Model) -> Model:
                given = {"Content-Type": kind, "Prefer": f"wait={LIMIT_S}"}
                reply = await http.post(call.path, content=codec.encode(message, kind), headers=given)
                assert reply.headers["Content-Type"] in (kind, "application/problem+json")
                return read(reply.content, call, kind, failed=reply.status_code != 200)

            return ask

        yield {
            **{f"{kind} over NATS": over_nats(kind) for kind in codec.CONTENT_TYPES},
            **{f"{kind} over HTTP": over_http(kind) for kind in codec.CONTENT_TYPES},
        }
    await bare.close()


def read(data: bytes, call: AnyCall, kind: str, *, failed: bool) -> Model:
    """The answer, or the problem without what names this one request."""
    if not failed:
        answer: Model = codec.decode(data, call.output, kind)
        return answer
    return codec.decode(data, codec.Problem, kind).model_copy(update={"request_id": None, "correlation_id": None})


async def conversation(ask: Ask) -> list[Any]:
    value: Any = {"text": "ä", "list": [1, 2.5, None, []], "nothing": None}
    document = rag.Ingest(text=TEXT, title="Mill", source_id="mill", metadata={"n": 1, "tags": ["a", None]})
    return [
        await ask(cache.SET, cache.Set(key="one", value=value, tags=["a", "b"])),
        await ask(cache.GET, cache.Get(key="one")),
        await ask(cache.SET, cache.Set(key="two", bytes=b"\0\xff\xfe")),
        await ask(cache.GET_MANY, cache.GetMany(keys=["two", "none"])),
        await ask(rag.INGEST, document),
        await ask(rag.SEARCH, rag.Search(query="mill wheels", filters={"n": 1}, cache="off")),
        await ask(rag.QUERY, rag.Query(question=QUESTION, model=MODEL)),
        await ask(rag.GET_DOCUMENT, rag.GetDocument(document_id="none")),
        await ask(cache.INVALIDATE, cache.Invalidate.model_construct(tag="a", all=True)),
    ]


async def test_a_conversation_is_the_same_in_every_format_and_by_every_way_in(ways: dict[str, Ask]) -> None:
    await conversation(next(iter(ways.values())))  # afterwards the document is known, and the answer kept
    told = {name: await conversation(ask) for name, ask in ways.items()}
    expected = told[next(iter(told))]
    for name, said in told.items():
        for one, other in zip(said, expected, strict=True):
            assert comparable(one.model_dump()) == comparable(other.model_dump()), name
    *_, searched, answer, missing, wrong = expected
    assert searched.results[0].text.startswith("The mill of Tarn")
    assert (answer.answered, answer.cached, "417" in answer.citations[0].quote) == (True, True, True)
    assert (missing.code, wrong.code) == (Code.NOT_FOUND, Code.INVALID)


def comparable(told: Any) -> Any:
    """Without what differs from one time to the next: a key's version grows, work takes its time."""
    if isinstance(told, dict):
        return {name: comparable(each) for name, each in told.items() if name not in ("version", "timings")}
    return [comparable(each) for each in told] if isinstance(told, list) else told


async def test_the_proto_files_alone_are_enough_for_a_client(running: Running, tenant: str, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "proto_client.py", tmp_path)
    files = sorted(map(str, protos.COMMITTED.glob("*.proto")))
    await run(tmp_path, "-m", "grpc_tools.protoc", f"-I{protos.COMMITTED}", f"--python_out={tmp_path}", *files)
    told = json.loads(
        await run(
            tmp_path,
            "proto_client.py",
            NATS_URL=running.platform.stack.nats_url,
            BRIDGE_URL=running.bridges[1].url,
            TENANT=tenant,
            MODEL=MODEL,
            TOKEN=sign(running.platform.settings(), tenant),
        )
    )
    assert told["nats"] == told["http"]
    assert told["http"] == {
        "written": True,
        "same": True,
        "nothing": [False, False],
        "document": True,
        "text": TEXT,
        "answered": True,
        "quotes": told["nats"]["quotes"],
        "missing": ["Problem", "NOT_FOUND", 404],
        "wrong": ["INVALID", ["key"]],
    }
    assert "417" in " ".join(told["http"]["quotes"])


async def run(folder: Path, *arguments: str, **environ: str) -> str:
    """What a Python process in that folder prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=folder, env=environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, said = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0, said.decode()
    return out.decode()
