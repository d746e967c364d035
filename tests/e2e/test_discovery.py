"""Discovery of real processes: a stock client of the NATS service protocol sees both of every component."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict

import nats
from nats.aio.msg import Msg
from nats.micro.service import ServicePing, ServiceStats

from subjects import registry
from tests.e2e.platform import Running, until

WITHIN_S = 10.0
PROCESSES = 2


async def test_both_processes_of_every_component_are_found_and_count_what_was_sent(
    running: Running, tenant: str
) -> None:
    await running.ready(30)
    outside = await nats.connect(running.platform.stack.nats_url)
    heard: list[bytes] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg.data)

    async def ask(subject: str, answers: int) -> list[bytes]:
        heard.clear()
        await outside.publish(subject, b"", reply=inbox)

        async def all_there() -> bool:
            return len(heard) >= answers

        await until(all_there, WITHIN_S)
        return list(heard)

    async def requests() -> int:
        found = [ServiceStats.from_dict(json.loads(each)) for each in await ask("$SRV.STATS.cache", PROCESSES)]
        return sum(each.num_requests for stats in found for each in stats.endpoints if each.name == "stats")

    inbox = outside.new_inbox()
    await outside.subscribe(inbox, cb=hear)
    try:
        components = registry.load().components
        pings = [
            ServicePing.from_dict(json.loads(each)) for each in await ask("$SRV.PING", PROCESSES * len(components))
        ]
        assert Counter(ping.name for ping in pings) == dict.fromkeys(components, PROCESSES)
        assert len({ping.id for ping in pings}) == len(pings)
        processes = defaultdict(set)
        for ping in pings:
            processes[ping.name].add((ping.metadata or {})["process"])
        assert {len(each) for each in processes.values()} == {PROCESSES}
        before = await requests()
        async with running.http(tenant) as http:
            replies = await asyncio.gather(*(http.post("/api/v1/cache/stats", json={}) for _ in range(20)))
        assert {reply.status_code for reply in replies} == {200}
        assert await requests() - before == len(replies)
    finally:
        await outside.close()
