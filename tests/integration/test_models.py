"""The local models as a real process: vectors that mean something, answers that stop when nobody listens."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from stack import local
from stack.models import embedder, files
from stack.models.graph import float_graph

LONG_STORY = {"messages": [{"role": "user", "content": "Write a very long story."}], "max_tokens": 3000, "stream": True}
WORDS = Path(__file__).read_text().split()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def models(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    server = await local.start(tmp_path_factory.mktemp("models"), port=None)
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            yield client
    finally:
        await server.stop()


async def _vectors(models: httpx.AsyncClient, *texts: str) -> np.ndarray[Any, Any]:
    reply = await models.post("/v1/embeddings", json={"model": "minilm", "input": list(texts)})
    assert reply.status_code == 200, reply.text
    return np.array([item["embedding"] for item in reply.json()["data"]], np.float32)


async def _chat(models: httpx.AsyncClient, text: str, **more: Any) -> Any:
    body = {"model": "smollm2", "messages": [{"role": "user", "content": text}], **more}
    reply = await models.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_vectors_tell_a_paraphrase_from_another_text(models: httpx.AsyncClient) -> None:
    one, same, other = await _vectors(
        models, "How do I reset my password?", "I forgot my password, how can I change it?", "The stock market fell."
    )
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-4)
    assert one @ same > 0.85
    assert abs(one @ other) < 0.15


async def test_similarities_are_those_that_the_model_is_known_for(models: httpx.AsyncClient) -> None:
    happy, *others = await _vectors(
        models, "That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"
    )
    assert [float(happy @ other) for other in others] == pytest.approx([0.695, 0.943, 0.257], abs=0.04)


async def test_a_vector_does_not_depend_on_its_neighbours(models: httpx.AsyncClient) -> None:
    text = "The valve closes at 40 bar."
    alone = await _vectors(models, text)
    among = await _vectors(models, "short", text, " ".join(WORDS[:200]))
    assert np.array_equal(alone[0], among[1])


async def test_a_text_is_cut_at_256_tokens(models: httpx.AsyncClient) -> None:
    start = "word " * 300
    whole, longer = await _vectors(models, start, start + "something else entirely " * 50)
    assert np.array_equal(whole, longer)


async def test_base64_vectors_are_the_same_floats(models: httpx.AsyncClient) -> None:
    (expected,) = await _vectors(models, "hello")
    reply = await models.post("/v1/embeddings", json={"input": "hello", "encoding_format": "base64"})
    data = base64.b64decode(reply.json()["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(data, "<f4"), expected)


async def test_the_embedding_model_names_its_revision(models: httpx.AsyncClient) -> None:
    listed = {model["id"]: model for model in (await models.get("/v1/models")).json()["data"]}
    assert listed["minilm"]["revision"] == files.revision(files.embedding_folder())
    assert "smollm2" in listed


async def test_a_damaged_graph_is_built_again_and_agrees_with_float32(tmp_path: Path) -> None:
    folder = files.embedding_folder()
    graph = tmp_path / f"minilm-{files.revision(folder)}.onnx"
    graph.write_bytes(b"cut off")
    model = await asyncio.to_thread(embedder.load, tmp_path)
    exact = onnxruntime.InferenceSession(float_graph(folder / "model.safetensors").SerializeToString())
    for text in ("A man is eating food.", " ".join(WORDS[:40]), " ".join(WORDS[:400])):
        ids = np.array([model._tokenizer.encode(text).ids], np.int32)
        (expected,) = exact.run(None, {"input_ids": ids, "mask": np.ones_like(ids)})
        assert float(model.vector(text)[0] @ expected[0]) >= 0.98
    model.close()
    assert os.listdir(tmp_path) == [graph.name]


async def test_the_same_question_gets_the_same_answer(models: httpx.AsyncClient) -> None:
    first = await _chat(models, "What is the capital of France?", max_tokens=30)
    again = await _chat(models, "What is the capital of France?", max_tokens=30)
    assert "Paris" in first["choices"][0]["message"]["content"]
    assert first["choices"] == again["choices"]
    assert first["choices"][0]["finish_reason"] == "stop"
    assert first["usage"]["completion_tokens"] > 0


async def test_streamed_pieces_are_the_plain_answer_and_end_with_usage(models: httpx.AsyncClient) -> None:
    whole = await _chat(models, "Name three colours.", max_tokens=40)
    body = {
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 40,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with models.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = [line[6:] async for line in reply.aiter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]


async def test_an_answer_can_be_bound_to_a_json_schema(models: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    reply = await _chat(models, "Give a number below ten.", max_tokens=60, response_format=form)
    assert isinstance(json.loads(reply["choices"][0]["message"]["content"])["number"], int)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_generation_stops_when_its_client_leaves(models: httpx.AsyncClient, streamed: bool) -> None:
    async def leave() -> None:
        async with models.stream("POST", "/v1/chat/completions", json={**LONG_STORY, "stream": streamed}) as reply:
            async for _ in reply.aiter_lines():
                await asyncio.sleep(30)

    leaving = [asyncio.create_task(leave()) for _ in range(2)]  # every slot
    await asyncio.sleep(0.5)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    left = time.monotonic()
    await _chat(models, "Hi", max_tokens=1)
    assert (
        time.monotonic() - left < 8
    )  # of the two, 3000 tokens each take 30 s on a quiet machine, longer on a busy one


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, 400),
        ({"messages": [{"role": "user", "content": "x " * 9000}], "stream": True}, 400),
        ({"messages": [{"role": "user"}]}, 400),
        ({"messages": []}, 400),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}, 400),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 400),
        ({"messages": [{"role": "user", "content": "x"}], "model": "gpt-4"}, 404),
        ([1], 400),
    ],
)
async def test_what_the_model_cannot_answer_is_refused(models: httpx.AsyncClient, body: Any, status: int) -> None:
    reply = await models.post("/v1/chat/completions", json=body)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


async def test_health_answers_while_both_models_work(models: httpx.AsyncClient) -> None:
    busy = [asyncio.create_task(_chat(models, "Tell me about the sea.", max_tokens=150)) for _ in range(2)]
    busy.append(asyncio.create_task(_vectors(models, *[" ".join(WORDS[:200])] * 40)))
    await asyncio.sleep(0.1)
    slowest = 0.0
    while not all(task.done() for task in busy):
        asked = time.monotonic()
        assert (await models.get("/healthz")).status_code == 200
        slowest = max(slowest, time.monotonic() - asked)
        await asyncio.sleep(0.02)
    await asyncio.gather(*busy)
    assert slowest < 0.5
