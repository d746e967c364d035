"""`faas up` as a process of its own, on a temporary FAAS_HOME: started, found, ended, cleaned up."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bench import ROOT
from runtime.settings import ENV_FILE, JWT_SECRET_FILE, Settings
from stack import territory

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Up:
    """A running platform. home: its FAAS_HOME."""

    process: psutil.Process
    home: Path

    def settings(self) -> Settings:
        """Settings that point at it."""
        lines = (line.partition("=") for line in (self.home / ENV_FILE).read_text().splitlines())
        found = {name.lower(): shlex.split(value)[0] for name, _, value in lines}
        return Settings.model_validate({**found, "jwt_secret": (self.home / JWT_SECRET_FILE).read_text().strip()})

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@asynccontextmanager
async def new_home(prefix: str) -> AsyncIterator[Path]:
    """A FAAS_HOME that is deleted, with what a run as root put outside it."""
    home = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    try:
        yield home
    finally:
        territory.abandon(home)
        shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def up(home: Path, **environ: str) -> AsyncIterator[Up]:
    """`faas up` until it says its address, on free ports where the usual ones are taken; ended with SIGTERM."""
    env = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    env |= {"FAAS_HOME": str(home), "BRIDGE_PORT": "0", "LOG_LEVEL": "warning", **environ}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", "up", cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (line := await child.stdout.readline()).startswith(b"URL"):
                if not line:
                    raise RuntimeError("faas up ended before it was ready")
        yield Up(psutil.Process(child.pid), home)
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        await asyncio.wait_for(child.wait(), STOP_TIMEOUT_S)
