"""A plain nats-py echo: `python -m benchmarks.peers.nats_echo URL SUBJECT`."""

from __future__ import annotations

import asyncio
import sys

import nats
import uvloop
from nats.aio.msg import Msg


async def main(url: str, subject: str) -> None:
    connection = await nats.connect(url)

    async def echo(msg: Msg) -> None:
        await msg.respond(msg.data)

    await connection.subscribe(subject, queue="echo", cb=echo)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
