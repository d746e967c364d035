"""`python -m benchmarks [ROW...]`: starts servers of its own, measures, prints ours, theirs and the ratio."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.bench import ROOT
from benchmarks.run import arguments
from stack import Stack
from store.migrate import migrate

PARTS = frozenset({"nats", "postgres", "valkey"})
ANY_FREE_PORT = 0


async def serve_and_measure(home: Path) -> int:
    """The measuring process runs on uvloop, which cannot start Postgres as another user: hence a process of its own."""
    bootstrap = (ROOT / "store" / "bootstrap.sql").read_text()
    stack = Stack(home, bootstrap=bootstrap, parts=PARTS, ports=dict.fromkeys(PARTS, ANY_FREE_PORT))
    try:
        return await measured(stack)
    finally:
        stack.abandon()


async def measured(stack: Stack) -> int:
    async with stack:
        await migrate(stack.database_owner_url)
        environ = {**os.environ, **stack.environ(), "JWT_SECRET": secrets.token_hex(32)}
        command = (sys.executable, "-m", "benchmarks.run", *sys.argv[1:])
        child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environ)
        try:
            return await child.wait()
        finally:
            if child.returncode is None:
                child.terminate()
                await child.wait()


def main() -> int:
    arguments()
    home = Path(tempfile.mkdtemp(prefix="faas-bench-", dir="/tmp"))
    try:
        return asyncio.run(serve_and_measure(home))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
