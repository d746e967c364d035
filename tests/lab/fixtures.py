"""The lab on the session's servers: in this process, or in processes that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from runtime.settings import Settings
from stack import Stack
from subjects import jobs
from tests.lab import contract as lab
from tests.lab.worker import SCHEMA, WORKER
from workers.jobs.worker import WORKER as JOBS
from workers.serving.boot import serving

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 20.0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab_tables(stack: Stack) -> None:
    connection = await asyncpg.connect(stack.database_owner_url)
    try:
        await connection.execute(SCHEMA)
        for table in ("lab_effects", "lab_heard"):
            await connection.execute(f"SELECT enable_tenancy('{table}')")
    finally:
        await connection.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    opened = await connect(settings, name="tests")
    yield opened
    await opened.close()


@pytest.fixture
def client(connection: Connection, settings: Settings) -> Client:
    return Client(connection, settings, source="tests")


@pytest.fixture
def identity(tenant: str) -> Identity:
    return Identity.new(tenant)


@pytest_asyncio.fixture
async def served(lab_tables: None, settings: Settings, connection: Connection) -> AsyncIterator[None]:
    """The lab and jobs served inside this process."""
    own = await connect(settings, name="lab-here")
    async with serving([WORKER, JOBS], settings, own):
        yield
    await own.close()


class Processes:
    """Lab workers as processes of their own."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._environ = environ
        self.running: list[asyncio.subprocess.Process] = []

    async def start(self, count: int = 1, **environ: str) -> None:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.lab", cwd=ROOT, env={**os.environ, **self._environ, **environ}
            )
            self.running.append(process)

    async def kill(self) -> None:
        for process in self.running:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
        for process in self.running:
            await process.wait()
        self.running.clear()

    async def keep(self, until: Callable[[], Awaitable[bool]], within_s: float) -> None:
        """Start again whichever dies, as a supervisor would, until the condition holds."""
        deadline = time.monotonic() + within_s
        while not await until():
            assert time.monotonic() < deadline, f"not within {within_s} s"
            for process in list(self.running):
                if process.returncode is not None:
                    self.running.remove(process)
                    await self.start()
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def processes(lab_tables: None, stack: Stack, settings: Settings) -> AsyncIterator[Processes]:
    made = Processes({**stack.environ(), "JOB_ACK_WAIT_S": "2", "LOG_LEVEL": "warning"})
    yield made
    await made.kill()


@pytest_asyncio.fixture
async def jobs_served(lab_tables: None, settings: Settings) -> AsyncIterator[None]:
    """The component jobs alone, for tests whose lab runs in processes."""
    own = await connect(settings, name="jobs-here")
    async with serving([JOBS], settings, own):
        yield
    await own.close()


async def ended(client: Client, identity: Identity, job_id: str, within_s: float = 30.0) -> jobs.Job:
    """The job once it is final."""
    deadline = time.monotonic() + within_s
    while True:
        job = await client.call(jobs.WAIT, jobs.WaitForJob(job_id=job_id, wait_s=5), identity=identity)
        if job.status in jobs.FINAL:
            return job
        assert time.monotonic() < deadline, f"job {job_id} is still {job.status} after {within_s} s"


async def rows(stack: Stack, tenant: str, name: str, table: str = "lab_effects") -> int:
    """How many effects there are, counted at the table."""
    connection = await asyncpg.connect(stack.database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT set_config('app.tenant', $1, true)", tenant)
            return int(await connection.fetchval(f"SELECT count(*) FROM {table} WHERE name = $1", name))  # noqa: S608
    finally:
        await connection.close()


__all__ = ["Processes", "ended", "lab", "rows"]
