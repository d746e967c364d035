"""The soak's load: a mix of everything that clients do, politely and not, at a given rate; and what it was promised."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from client import Chunk, CircuitOpen, ServiceClientManager, ServiceError
from subjects import cache, jobs, rag
from subjects.contract import Code

IN_FLIGHT = 16  # while the capacity is found
MAX_IN_FLIGHT = 64  # later: what is due beyond it is not asked, and counted
KEYS = 2000
REQUEST_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 120.0
ASKED_AT_ONCE = 8
STREAM_MODEL, LONG_MODEL, LOCAL_MODEL = "openai/short", "openai/long", "local/smollm2"
WORDS = ("harbour", "lamp", "stone", "river", "ferry", "market", "winter", "keeper", "tower", "letter", "garden")
EXPECTED = frozenset({Code.INVALID, Code.UNAUTHENTICATED, Code.NOT_FOUND, Code.FORBIDDEN})


@dataclass
class Load:
    """Operations by weight; counts of how each went; the jobs that were accepted."""

    services: ServiceClientManager
    strangers: ServiceClientManager
    """With a token that is not one."""
    dice: random.Random
    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    skipped: int = 0

    def __post_init__(self) -> None:
        self._mix: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self.cache_get, 40), (self.cache_set, 28), (self.search, 8), (self.bad_input, 8), (self.stream, 5),
            (self.left_stream, 4), (self.ingest, 4), (self.cancelled, 1), (self.doomed, 1), (self.local_answer, 0.1),
        ]  # fmt: skip

    async def closed(self, seconds: float) -> float:
        """As fast as IN_FLIGHT askers get answers. Gives operations a second: the capacity."""
        until, before = time.monotonic() + seconds, sum(self.done.values())

        async def one_after_another() -> None:
            while time.monotonic() < until:
                await self._one()

        await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
        return (sum(self.done.values()) - before) / seconds

    async def paced(self, seconds: float, rate: float) -> None:
        """So many operations a second, whether the last have been answered or not."""
        running: set[asyncio.Task[None]] = set()
        begin = time.monotonic()
        for number in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
            if time.monotonic() - begin > seconds:
                self.skipped += int(seconds * rate) - number
                break
            if len(running) >= MAX_IN_FLIGHT:
                self.skipped += 1
                continue
            task = asyncio.create_task(self._one())
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running)

    async def settled(self) -> Counter[str]:
        """How the accepted jobs ended, once all have: status by count. `unknown` are those that nobody knows."""
        client, ended, places = self.services.get_client("jobs"), Counter[str](), asyncio.Semaphore(ASKED_AT_ONCE)
        until = time.monotonic() + SETTLE_TIMEOUT_S

        async def one(job_id: str) -> None:
            async with places:
                try:
                    ended[(await client.wait(job_id, timeout_s=max(1.0, until - time.monotonic()))).status] += 1
                except ServiceError as error:
                    ended["unfinished" if error.code is Code.TIMEOUT else "unknown"] += 1

        await asyncio.gather(*map(one, self.accepted))
        return ended

    async def _one(self) -> None:
        operation = self.dice.choices([each for each, _ in self._mix], [weight for _, weight in self._mix])[0]
        name = operation.__name__
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await operation()
            self.done[name] += 1
        except (ServiceError, TimeoutError) as error:
            code = error.code.value if isinstance(error, ServiceError) else "TIMEOUT"
            code = "not sent, circuit open" if isinstance(error, CircuitOpen) else code
            self.failed[f"{name} {code}"] += 1

    # -- what is done -----

    async def cache_get(self) -> None:
        key = f"k{self.dice.randrange(KEYS)}"
        await self.services.get_client("cache").call(cache.GET, cache.Get(key=key))

    async def cache_set(self) -> None:
        message = cache.Set(key=f"k{self.dice.randrange(KEYS)}", value={"text": self._prose(20)}, ttl_s=600)
        await self.services.get_client("cache").call(cache.SET, message)

    async def search(self) -> None:
        await self.services.get_client("rag").call(rag.SEARCH, rag.Search(query=self._prose(3), top_k=5))

    async def local_answer(self) -> None:
        asked = rag.Query(question=f"Who keeps the {self._prose(1)}?", model=LOCAL_MODEL, top_k=1)
        await self.services.get_client("rag").call(rag.QUERY, asked)

    async def stream(self) -> None:
        asked = {"model": STREAM_MODEL, "prompt": self._prose(8)}
        async for _ in self.services.get_client("gateway").stream("generate", asked):
            pass

    async def left_stream(self) -> None:
        asked, left_after = {"model": LONG_MODEL, "prompt": self._prose(8)}, self.dice.randrange(1, 6)
        async with self.services.get_client("gateway").stream("generate", asked) as events:
            async for event in events:
                left_after -= isinstance(event, Chunk)
                if left_after <= 0:
                    break

    async def ingest(self) -> None:
        """One document a job: its row is the effect that is counted."""
        await self._submit({"text": self._prose(60), "source_id": uuid.uuid4().hex})

    async def cancelled(self) -> None:
        job_id = await self._submit({"text": self._prose(60), "source_id": uuid.uuid4().hex})
        await asyncio.sleep(self.dice.random() * 0.1)
        with suppress(ServiceError):  # it may have ended
            await self.services.get_client("jobs").cancel(job_id)

    async def doomed(self) -> None:
        """Accepted, and then refused by its worker: a dead letter."""
        await self._submit({"file_id": "f" + uuid.uuid4().hex[:26], "source_id": uuid.uuid4().hex})

    async def bad_input(self) -> None:
        lab, strange = self.services.get_client("cache"), self.strangers.get_client("cache")
        way = self.dice.randrange(4)
        try:
            if way == 0:
                await lab.post("get", {"key": "x" * 600})
            elif way == 1:
                await lab.post("nothing", {})
            elif way == 2:
                await strange.post("get", {"key": "k"})
            else:
                await lab.call(jobs.GET, jobs.GetJob(job_id="j" + "a" * 26))
        except ServiceError as error:
            if error.code not in EXPECTED:
                raise
        else:
            self.failed["bad_input accepted"] += 1

    async def _submit(self, message: dict[str, str]) -> str:
        job: jobs.Submitted = await self.services.get_client("rag").submit("ingest", message)
        self.accepted.add(job.job_id)
        return job.job_id

    def _prose(self, words: int) -> str:
        return " ".join(self.dice.choices(WORDS, k=words)) + f" {self.dice.randrange(10**6)}"
