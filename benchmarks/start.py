"""P11: `faas up` to ready, what the idle platform weighs, and what one worker does."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.bench import ROOT, Bench, ready, served
from benchmarks.report import Line
from cli.children import components

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
IDLE_AFTER_S = 5.0
MAX_START_S, MAX_PLATFORM_MB, MAX_WORKER_MB = 12.0, 1200.0, 90.0
MB = 1e6
HEAVY = frozenset({"gateway"})
"""litellm; what the others need of models is in children of their own."""


async def p11(bench: Bench) -> list[Line]:
    home = Path(tempfile.mkdtemp(prefix="faas-up-", dir="/tmp"))
    try:
        lines = await _whole(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for name in components():
        lines.append(await _one(bench, name))
    return lines


async def _whole(home: Path) -> list[Line]:
    """The second start: what the first one makes (a database cluster, models' files) is there already."""
    first_s, _, _ = await _start(home)
    again_s, pss_mb, rss_mb = await _start(home)
    return [
        Line("P11", "faas up to ready, in a new FAAS_HOME", first_s, None, "s", most=MAX_START_S),
        Line("P11", "faas up to ready, again", again_s, None, "s", most=MAX_START_S),
        Line("P11", "whole platform, idle, PSS (each page once)", pss_mb, None, "MB", most=MAX_PLATFORM_MB),
        Line("P11", "  RSS, which counts shared pages in each process", rss_mb, None, "MB"),
    ]


async def _start(home: Path) -> tuple[float, float, float]:
    """Seconds until it says its address, PSS and RSS in MB a while later."""
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    environ |= {"FAAS_HOME": str(home), "BRIDGE_PORT": "0"}
    began = time.perf_counter()
    command = (sys.executable, "-m", "cli", "up")
    up = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert up.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (line := await up.stdout.readline()).startswith(b"URL"):
                if not line:
                    raise RuntimeError("faas up ended before it was ready")
        took_s = time.perf_counter() - began
        await asyncio.sleep(IDLE_AFTER_S)
        root = psutil.Process(up.pid)
        tree = [root, *root.children(recursive=True)]
        return took_s, weight_mb(tree), sum(process.memory_info().rss for process in tree) / MB
    finally:
        if up.returncode is None:
            up.send_signal(signal.SIGTERM)
        await asyncio.wait_for(up.wait(), STOP_TIMEOUT_S)


def weight_mb(processes: Sequence[psutil.Process]) -> float:
    """The sum of PSS, where a page that several share is counted once in all; RSS where the system does not tell."""
    found = 0
    for process in processes:
        try:
            found += process.memory_full_info().pss
        except (AttributeError, psutil.AccessDenied):
            found += process.memory_info().rss
    return found / MB


async def _one(bench: Bench, name: str) -> Line:
    """RSS of `faas worker <name>` alone, which has answered a few times."""
    async with bench.process("-m", "cli", "worker", name) as started:
        await ready(lambda: served(bench, name))
        rss_mb = started[0].memory_info().rss / MB
    most = None if name in HEAVY else MAX_WORKER_MB
    return Line("P11", f"faas worker {name}, RSS", rss_mb, None, "MB", most=most)
