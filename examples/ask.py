"""A question to rag over plain NATS, in msgpack: `python examples/ask.py "Who keeps the lighthouse?"`."""

import asyncio
import os
import sys

import msgpack  # type: ignore[import-untyped]
import nats


async def main(question: str) -> None:
    broker = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    reply = await broker.request("req.demo.rag.query", msgpack.packb({"question": question}), timeout=60)
    answer = msgpack.unpackb(reply.data)
    print(answer.get("answer") or answer)
    await broker.close()


asyncio.run(main(sys.argv[1] if sys.argv[1:] else "What does make demo do?"))
