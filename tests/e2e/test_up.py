"""`faas up` as a person uses it: it says how to reach it, gets up again by itself, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio

from stack import territory
from workers.serving import tables

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 90.0
STOP_LIMIT_S = 10.0
BACK_LIMIT_S = 30.0
POLL_S = 0.2
CHILDREN = ("worker gateway", "worker cache", "bridge", "nats-server", "postgres", "valkey")


@dataclass
class Up:
    """A running `faas up`, and what it printed."""

    process: subprocess.Popen[str]
    home: Path
    said: str
    took_s: float

    @property
    def url(self) -> str:
        found = re.search(r"^URL +(http://\S+)", self.said, re.MULTILINE)
        assert found, self.said
        return found[1]

    @property
    def token(self) -> str:
        found = re.search(r"^token +(\S+)", self.said, re.MULTILINE)
        assert found, self.said
        return found[1]

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: signal.Signals = signal.SIGINT) -> float:
        """Seconds until it ended."""
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=STOP_LIMIT_S + 5)
        return time.monotonic() - started


def environ(home: Path) -> dict[str, str]:
    silent = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    return {**silent, "FAAS_HOME": str(home), "BRIDGE_PORT": "0", "JOB_ACK_WAIT_S": "2", "PYTHONPATH": str(ROOT)}


def start(home: Path) -> Up:
    started = time.monotonic()
    said = home.with_name("said")
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up"],
            cwd=ROOT,
            env=environ(home),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    while "Ctrl-C" not in (text := said.read_text()):
        assert process.poll() is None, text
        assert time.monotonic() - started < START_LIMIT_S, text
        time.sleep(POLL_S)
    return Up(process, home, text, time.monotonic() - started)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    home = tmp_path_factory.mktemp("up") / "a home"
    running = await asyncio.to_thread(start, home)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(timeout=STOP_LIMIT_S + 5)
        territory.abandon(home)


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: it waits for whoever adopted it to take note of its end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def words(process: psutil.Process) -> list[str]:
    """Its command line; none when it ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def faas(up: Up, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env=environ(up.home),
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_every_process_says_what_it_is(up: Up) -> None:
    lines = [" ".join(process.cmdline()) for process in up.family()]
    for wanted in CHILDREN:
        assert [line for line in lines if re.search(wanted, line)], (wanted, lines)


async def test_the_addresses_are_written_down_for_its_user_alone(up: Up) -> None:
    path = up.home / "env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    names = {line.partition("=")[0] for line in path.read_text().splitlines()}
    assert {"NATS_URL", "DATABASE_URL", "REDIS_URL", "BRIDGE_URL"} <= names


async def test_the_printed_token_opens_the_printed_url(up: Up) -> None:
    async with httpx.AsyncClient(base_url=up.url, timeout=30) as http:
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.post("/api/v1/jobs/list", json={})).status_code == 401
        answer = await http.post("/api/v1/jobs/list", json={}, headers={"Authorization": f"Bearer {up.token}"})
        assert answer.status_code == 200, answer.text


async def test_the_other_commands_find_it(up: Up) -> None:
    doctor = await asyncio.to_thread(faas, up, "doctor")
    assert doctor.returncode == 0, doctor.stdout
    checks = {check["name"]: check["detail"] for check in json.loads(doctor.stdout)["checks"]}
    assert checks["workers"] == ", ".join(f"{name} 1" for name in tables.names())
    assert "faas_owner:" not in doctor.stdout.replace("faas_owner:********", "")
    listed = await asyncio.to_thread(faas, up, "jobs", "ls")
    assert listed.returncode == 0, listed.stderr
    loaded = await asyncio.to_thread(faas, up, "bench", "cache.stats", "--seconds", "0.5", "--in-flight", "4")
    found = json.loads(loaded.stdout)
    assert (found["faults"], found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]) == ({}, True)
    assert found["answers"] > 10
    absent = await asyncio.to_thread(faas, up, "jobs", "get", "j" + "a" * 26)
    assert (absent.returncode, "NOT_FOUND" in absent.stderr) == (1, True)


async def test_a_killed_child_is_started_again(up: Up) -> None:
    def workers() -> set[int]:
        return {process.pid for process in up.family() if "worker" in words(process)}

    before = workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + BACK_LIMIT_S
    async with httpx.AsyncClient(base_url=up.url, timeout=5) as http:
        while time.monotonic() < deadline:
            back = workers() - before
            if len(back) >= len(before) and (await http.get("/readyz")).status_code == 200:
                return
            await asyncio.sleep(POLL_S)
    pytest.fail(f"not ready {BACK_LIMIT_S:g} s after its workers were killed")


async def test_ctrl_c_ends_everything_and_a_second_start_is_there_again(up: Up) -> None:
    family = up.family()
    assert await asyncio.to_thread(up.stop) < STOP_LIMIT_S
    assert up.process.returncode == 0
    assert not [process for process in family if is_alive(process)]
    again = await asyncio.to_thread(start, up.home)
    try:
        assert "making a new database" not in again.said
    finally:
        assert await asyncio.to_thread(again.stop, signal.SIGTERM) < STOP_LIMIT_S
