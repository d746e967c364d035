"""Serve the lab in a process of its own, so that it can be killed."""

from __future__ import annotations

import asyncio

from runtime import telemetry
from runtime.settings import Settings
from tests.lab.worker import WORKER
from workers.serving.boot import run

if __name__ == "__main__":
    settings = Settings.load()
    telemetry.configure(settings, "lab")
    asyncio.run(run([WORKER], settings))
