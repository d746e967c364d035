"""Processes that a run which was killed left behind: written down while they live, ended by the next start."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import psutil

REAP_LIMIT_S = 8.0


def family(pid: int) -> list[psutil.Process]:
    """The process and everything below it. A group is not enough: Postgres' children have sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def remember(path: Path, pid: int) -> None:
    """Write down which process this is: its pid alone may be another's by the next start."""
    with suppress(psutil.NoSuchProcess):
        path.write_text(json.dumps({"pid": pid, "created": psutil.Process(pid).create_time()}))


def reap(run: Path) -> list[str]:
    """Kill what an earlier run left behind: each pid file whose process still is the one that was written down."""
    reaped = []
    for path in sorted(run.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
            noted = json.loads(path.read_text())
            process = psutil.Process(int(noted["pid"]))
            if abs(process.create_time() - float(noted["created"])) < 1.0:
                left = family(process.pid)
                for member in left:
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
                psutil.wait_procs(left, timeout=REAP_LIMIT_S)
                reaped.append(path.stem)
        path.unlink(missing_ok=True)
    return reaped
