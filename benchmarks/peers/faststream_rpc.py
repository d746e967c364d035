"""FastStream RPC over NATS with a pydantic model. Runs in an environment of its own, so it imports nothing of ours.

`python faststream_rpc.py serve URL SUBJECT`, or `... load URL SUBJECT SECONDS IN_FLIGHT`, which prints one JSON line.
"""

# mypy: ignore-errors
# FastStream is not among our packages.

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop
from faststream.nats import NatsBroker
from pydantic import BaseModel

WARM_UP_S = 0.3


class Echo(BaseModel):
    id: str = "0195a0c2-7c1e-7b44-9a54-4b8f6f0a7d11"
    name: str = "a question of ordinary length"
    number: int = 42
    ratio: float = 0.5
    flag: bool = True
    note: str | None = None
    tags: list[str] = ["one", "two"]
    counts: dict[str, int] = {"a": 1, "b": 2}


async def serve(url: str, subject: str) -> None:
    broker = NatsBroker(url)

    @broker.subscriber(subject, queue="echo")
    async def echo(message: Echo) -> Echo:
        return message

    await broker.start()
    await asyncio.Event().wait()


async def load(url: str, subject: str, seconds: str, in_flight: str) -> None:
    latencies: list[float] = []
    async with NatsBroker(url) as broker:
        begin = time.perf_counter() + WARM_UP_S
        end = begin + float(seconds)

        async def one_after_another() -> None:
            while (asked := time.perf_counter()) < end:
                reply = await broker.request(Echo(), subject, timeout=5)
                Echo.model_validate(await reply.decode())
                if asked >= begin:
                    latencies.append(time.perf_counter() - asked)

        await asyncio.gather(*(one_after_another() for _ in range(int(in_flight))))
    print(json.dumps(latencies))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run({"serve": serve, "load": load}[sys.argv[1]](*sys.argv[2:]))
