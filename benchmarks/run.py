"""Measure on servers that are up already, and print the lines. Started by `python -m benchmarks`."""

from __future__ import annotations

import argparse
import asyncio
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from benchmarks.bench import TRACEPARENT, Bench
from benchmarks.contract import TENANT
from benchmarks.http import p4
from benchmarks.jobs import p7, p8
from benchmarks.observed import observed
from benchmarks.replay import p9
from benchmarks.report import HEADING, Line
from benchmarks.requests import p1, p1_cache, p2, p3
from benchmarks.start import p11
from benchmarks.stream import p10
from runtime import streams
from runtime.client import Client
from runtime.connection import connect
from runtime.identity import Identity
from runtime.settings import Settings

ROWS: dict[str, tuple[Callable[[Bench], Awaitable[list[Line]]], ...]] = {
    "P1": (p1, p1_cache),
    "P2": (p2,),
    "P3": (p3,),
    "P4": (p4,),
    "P7": (p7,),
    "P8": (p8,),
    "P9": (p9,),
    "P10": (p10,),
    "P11": (p11,),
    "T1": (observed,),
}


async def measure(rows: list[str], seconds: float, rounds: int) -> None:
    settings = Settings.load()
    connection = await connect(settings, name="bench")
    await streams.ensure(connection, settings)
    client = Client(connection, settings, source="bench")
    identity = Identity.new(TENANT, "bench", traceparent=TRACEPARENT)
    bench = Bench(settings, connection, client, identity, Path(settings.faas_home), seconds, rounds)
    print(f"{platform.machine()}, Python {platform.python_version()}, rounds of {seconds:g} s, {rounds} each\n")
    print(HEADING, flush=True)
    for row in rows:
        for measurement in ROWS[row]:
            for line in await measurement(bench):
                print(line, flush=True)
    await connection.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Ours, theirs and the ratio.")
    parser.add_argument("rows", nargs="*", type=str.upper, metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3, help="how often ours and theirs take turns")
    given = parser.parse_args()
    unknown = [row for row in given.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}")
    return given


if __name__ == "__main__":
    given = arguments()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(given.rows or list(ROWS), given.seconds, given.rounds))
