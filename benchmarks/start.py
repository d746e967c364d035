"""P11: `faas up` to ready, what the idle platform weighs, and what one worker does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.bench import Bench, ready, served
from benchmarks.platform_up import new_home, up
from benchmarks.report import Line
from cli.children import components

IDLE_AFTER_S = 5.0
MAX_START_S, MAX_PLATFORM_MB, MAX_WORKER_MB = 12.0, 1200.0, 90.0
MB = 1e6
HEAVY = frozenset({"gateway"})
"""litellm; what the others need of models is in children of their own."""


async def p11(bench: Bench) -> list[Line]:
    async with new_home("faas-up-") as home:
        lines = await _whole(home)
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
    began = time.perf_counter()
    async with up(home) as platform:
        took_s = time.perf_counter() - began
        await asyncio.sleep(IDLE_AFTER_S)
        tree = platform.tree()
        return took_s, weight_mb(tree), sum(process.memory_info().rss for process in tree) / MB


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
