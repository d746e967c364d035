"""The process pool: whatever a function does, its caller gets an answer in time and the next caller a good process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from subjects.contract import Code, Fault
from tests.integration.pool_work import (
    chatter,
    eat,
    echo,
    end_with,
    environment,
    fail,
    impolite,
    nap,
    refuse,
    spawn_sleeper_and_hang,
    spin,
    who,
)
from workers.serving.pool import Pool


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool(max_workers=1)
    yield pool
    await pool.close()


async def fault_of(pool: Pool, fn: Any, *args: Any, timeout_s: float = 20, memory_bytes: int = 1 << 30) -> Fault:
    with pytest.raises(Fault) as caught:
        await pool.run(fn, *args, timeout_s=timeout_s, memory_bytes=memory_bytes)
    return caught.value


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  another process's end is no event of ours
            await asyncio.sleep(0.02)


async def gone(pid: int) -> None:
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


async def test_a_function_runs_in_another_process_that_is_reused(pool: Pool) -> None:
    first = await pool.run(who, timeout_s=20)
    assert first != os.getpid()
    assert await pool.run(who, timeout_s=20) == first


async def test_plain_data_crosses_unchanged(pool: Pool) -> None:
    value = {"text": "ä\f\n", "raw": b"\x00\xff", "n": [1, -2, 3.5, None, True], "deep": {"a": {"b": []}}}
    assert await pool.run(echo, value, timeout_s=20) == value
    large = "x" * (5 << 20)
    assert await pool.run(echo, large, timeout_s=20) == large


@pytest.mark.parametrize(("work", "args"), [(spin, ()), (nap, (30.0,))], ids=["spin", "nap"])
async def test_a_function_over_its_time_is_killed_and_the_next_one_runs(pool: Pool, work: Any, args: Any) -> None:
    before = await pool.run(who, timeout_s=20)
    started = time.monotonic()
    fault = await fault_of(pool, work, *args, timeout_s=0.3)
    assert fault.code == Code.TIMEOUT
    assert time.monotonic() - started < 3
    assert await pool.run(who, timeout_s=20) != before
    await gone(before)


async def test_a_function_over_its_memory_is_too_large_and_the_next_one_runs(pool: Pool) -> None:
    assert (await fault_of(pool, eat, 2000, memory_bytes=256 << 20)).code == Code.TOO_LARGE
    assert await pool.run(eat, 50, timeout_s=20, memory_bytes=256 << 20) == 50


async def test_a_crash_is_too_large_and_a_kill_from_outside_may_be_tried_again(pool: Pool) -> None:
    assert (await fault_of(pool, end_with, signal.SIGSEGV)).code == Code.TOO_LARGE
    assert (await fault_of(pool, end_with, signal.SIGKILL)).code == Code.UNAVAILABLE


async def test_a_fault_crosses_and_any_other_exception_says_nothing(pool: Pool) -> None:
    fault = await fault_of(pool, refuse)
    assert (fault.code, fault.detail) == (Code.INVALID, "the file is encrypted")
    fault = await fault_of(pool, fail)
    assert fault.code == Code.INTERNAL
    assert "secret" not in str(fault)
    assert (await fault_of(pool, impolite)).code == Code.INTERNAL


async def test_cancelling_kills_the_process(pool: Pool) -> None:
    pid = await pool.run(who, timeout_s=20)
    task = asyncio.create_task(pool.run(nap, 60.0, timeout_s=60))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(pid)
    assert await pool.run(echo, 1, timeout_s=20) == 1


async def test_what_a_killed_function_started_dies_with_it(pool: Pool) -> None:
    await fault_of(pool, spawn_sleeper_and_hang, timeout_s=0.5)
    await until(lambda: all(p.info["cmdline"] != ["sleep", "61.5"] for p in psutil.process_iter(["cmdline"])))


async def test_printing_and_reading_do_not_disturb_the_frames(pool: Pool) -> None:
    assert await pool.run(chatter, timeout_s=20) == ""


async def test_the_child_sees_no_secret_of_the_environment(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    monkeypatch.setenv("DATABASE_URL", "canary")
    assert "canary" not in (await pool.run(environment, timeout_s=20)).values()


async def test_a_lambda_is_refused_before_anything_starts(pool: Pool) -> None:
    assert (await fault_of(pool, lambda: None)).code == Code.INTERNAL


async def test_at_most_max_workers_run_at_once() -> None:
    pool = Pool(max_workers=2)
    try:
        pids = await asyncio.gather(*(pool.run(who, timeout_s=20) for _ in range(6)))
        assert len(set(pids)) <= 2
    finally:
        await pool.close()


async def test_close_ends_working_and_idle_processes() -> None:
    pool = Pool(max_workers=2)
    busy = asyncio.create_task(pool.run(nap, 60.0, timeout_s=60))
    idle = await pool.run(who, timeout_s=20)
    await asyncio.sleep(0.2)
    await pool.close()
    with pytest.raises(Fault) as caught:
        await busy
    assert caught.value.code == Code.UNAVAILABLE
    await gone(idle)
    assert (await fault_of(pool, who)).code == Code.UNAVAILABLE


async def test_children_die_with_their_parent() -> None:
    program = (
        "import asyncio, os, sys\n"
        "from workers.serving.pool import Pool\n"
        "async def main():\n"
        "    pool = Pool()\n"
        "    print(await pool.run(os.getpid, timeout_s=20), flush=True)\n"
        "    await pool.run(__import__('time').sleep, 60, timeout_s=60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    parent.kill()
    await parent.wait()
    await gone(child)
