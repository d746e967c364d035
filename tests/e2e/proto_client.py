"""A client that has nothing of ours: google.protobuf, nats-py, and what protoc made of the .proto files.

Run in a process of its own, in the folder of the generated modules. Speaks as NATS_URL, BRIDGE_URL, TENANT and TOKEN
say (and MODEL, which answers); prints what it was told as JSON, by way in.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import nats

PROTOBUF = "application/x-protobuf"
LIMIT_S = 60
OURS = {"subjects", "codec", "runtime", "store", "workers", "bridge", "client", "cli", "stack", "tests", "pydantic"}

cache, rag, shared = (importlib.import_module(f"faas_{name}_pb2") for name in ("cache", "rag", "shared"))
Ask = Callable[[str, Any, Any], Awaitable[Any]]


async def over_nats(operation: str, message: Any, answer: Any) -> Any:
    """The answer, or the Problem."""
    broker = await nats.connect(os.environ["NATS_URL"])
    try:
        reply = await broker.request(
            f"req.{os.environ['TENANT']}.{operation}", message.SerializeToString(), timeout=LIMIT_S,
            headers={"Content-Type": PROTOBUF},
        )  # fmt: skip
    finally:
        await broker.close()
    told = reply.headers or {}
    assert told["Content-Type"] == PROTOBUF, told
    return (shared.Problem if "Nats-Service-Error-Code" in told else answer).FromString(reply.data)


async def over_http(operation: str, message: Any, answer: Any) -> Any:
    """The answer, or the Problem."""
    path = operation.replace(".", "/")
    headers = {"Content-Type": PROTOBUF, "Authorization": f"Bearer {os.environ['TOKEN']}", "Prefer": f"wait={LIMIT_S}"}
    request = urllib.request.Request(
        f"{os.environ['BRIDGE_URL']}/api/v1/{path}", data=message.SerializeToString(), headers=headers
    )

    def ask() -> tuple[Any, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
                return reply, reply.read()
        except urllib.error.HTTPError as error:
            return error, error.read()

    reply, data = await asyncio.to_thread(ask)
    assert reply.headers["Content-Type"] == PROTOBUF, data
    return (answer if reply.status == 200 else shared.Problem).FromString(data)


async def conversation(ask: Ask, name: str) -> dict[str, Any]:
    """Cache, ingest, search, query, and a question that fails."""
    value = {"name": name, "list": [1, 2.5, None]}
    written = await ask("cache.set", cache.Set(key=name, value=json.dumps(value), tags=["t"]), cache.SetResult)
    entry = await ask("cache.get", cache.Get(key=name), cache.Entry)
    nothing = await ask("cache.get", cache.Get(key=f"{name}-no"), cache.Entry)
    text = "The mill of Tarn has 417 wheels. It stands by the river."
    document = rag.Ingest(text=text, source_id="mill", metadata=json.dumps({"by": "protoc"}))
    ingested = await ask("rag.ingest", document, rag.Ingested)
    found = await ask("rag.search", rag.Search(query="mill wheels"), rag.SearchResult)
    question = rag.Query(question="How many wheels does the mill of Tarn have?", model=os.environ["MODEL"])
    answer = await ask("rag.query", question, rag.Answer)
    missing = await ask("rag.get_document", rag.GetDocument(document_id="none"), rag.Document)
    wrong = await ask("cache.set", cache.Set(value="1"), cache.SetResult)
    return {
        "written": written.written,
        "same": json.loads(entry.value) == value,
        "nothing": [nothing.found, nothing.HasField("value")],
        "document": found.results[0].document_id == ingested.document_id,
        "text": found.results[0].text,
        "answered": answer.answered,
        "quotes": [citation.quote for citation in answer.citations],
        "missing": [type(missing).__name__, missing.code, missing.status],
        "wrong": [wrong.code, [error.path for error in wrong.errors]],
    }


async def main() -> None:
    told = {"nats": await conversation(over_nats, "nats"), "http": await conversation(over_http, "http")}
    assert not OURS & {name.partition(".")[0] for name in sys.modules}
    print(json.dumps(told))


asyncio.run(main())
