"""Logs: one JSON object a line, with the ids of the message that is being handled and of no other."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import asyncio, logging
from runtime.settings import Settings
from runtime.telemetry import bind, configure, get_logger

configure(Settings(log_level="info"), "tests")
log = get_logger("a.module")

async def handle(tenant):
    bind(tenant=tenant, request_id=None)
    await asyncio.sleep(0.01)
    log.info("handled", who=tenant)

async def main():
    await asyncio.gather(*(handle(f"t{n}") for n in range(5)))
    log.info("after")
    log.debug("unseen")
    logging.getLogger("some.library").warning("said %s", "so")
    logging.getLogger("nats").info("chatter")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed")

asyncio.run(main())
"""


def test_lines_are_json_with_the_ids_of_their_own_message() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    handled = [line for line in lines if line["event"] == "handled"]
    assert len(handled) == 5
    assert all(line["tenant"] == line["who"] and "request_id" not in line for line in handled)
    assert all(line["service"] == "tests" and line["level"] and line["timestamp"] for line in lines)
    after = next(line for line in lines if line["event"] == "after")
    assert "tenant" not in after
    assert [line["event"] for line in lines if line["event"] in ("unseen", "chatter")] == []
    assert any(line["event"] == "said so" and line["level"] == "warning" for line in lines)
    assert any("ZeroDivisionError" in line.get("exception", "") for line in lines)
    assert done.stdout == ""
