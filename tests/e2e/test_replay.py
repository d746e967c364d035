"""Replay and dead letters as an operator meets them: on the command line, and over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.platform import AS_JOB, Running, job_ended

ROOT = Path(__file__).resolve().parents[2]
INGEST, LETTERS = "/api/v1/rag/ingest", "/api/v1/jobs/dead-letters"
COMMAND_WITHIN_S = 60.0


async def faas(running: Running, *arguments: str) -> Any:
    """What the command prints into a pipe."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", *arguments, cwd=ROOT, env={**os.environ, **running.platform.environ()},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, complained = await asyncio.wait_for(process.communicate(), COMMAND_WITHIN_S)
    assert process.returncode == 0, (said, complained)
    return json.loads(said) if said else None


async def on_a_terminal(running: Running, *arguments: str) -> str:
    """What it prints there."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", *arguments, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, **running.platform.environ(), "TERM": "xterm", "COLUMNS": "160"},
    )  # fmt: skip
    os.close(theirs)
    said = bytearray()

    def read() -> None:
        with suppress(OSError):  # it has ended
            while piece := os.read(ours, 65536):
                said.extend(piece)

    await asyncio.wait_for(asyncio.to_thread(read), COMMAND_WITHIN_S)
    os.close(ours)
    assert await process.wait() == 0, said
    return said.decode()


async def dead(http: httpx.AsyncClient) -> str:
    """The id of an ingest that died of a file which is not there."""
    reply = await http.post(INGEST, json={"file_id": "fnothing"}, headers=AS_JOB)
    job_id: str = reply.json()["job_id"]
    assert (await job_ended(http, job_id))["status"] == "failed"
    async with asyncio.timeout(10):
        while (await http.get(f"{LETTERS}/{job_id}")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return job_id


async def test_the_command_line_replays_and_redrives(running: Running, tenant: str) -> None:
    about = ("--tenant", tenant)
    async with running.http(tenant) as http:
        made = (await http.post(INGEST, json={"text": "The ferry leaves at nine."}, headers=AS_JOB)).json()
        document = (await job_ended(http, made["job_id"]))["result"]["document_id"]
        wanted = {"document_id": document}
        assert (await http.post("/api/v1/rag/delete_document", json=wanted)).status_code == 200
        dry = await faas(running, "replay", *about, "-s", "rag.ingest", "--since", "1h", "--force", "--dry-run")
        assert (dry["dry_run"], dry["total"]["run"], dry["operations"]["rag.ingest"]["run"]) == (True, 1, 1)
        assert (await http.post("/api/v1/rag/get_document", json=wanted)).status_code == 404
        said = await on_a_terminal(
            running, "replay", *about, "-s", f"job.{tenant}.rag.ingest.>", "--seq", "1:", "--force", "--rate", "5"
        )
        assert "rag.ingest" in said
        assert "1 sent" in said
        async with asyncio.timeout(20):
            while (await http.post("/api/v1/rag/get_document", json=wanted)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

        job_id = await dead(http)
        (letter,) = (await faas(running, "dlq", "ls", *about, "--component", "rag"))["items"]
        assert (letter["job_id"], letter["code"]) == (job_id, "NOT_FOUND")
        changes = ("--set", "file_id=null", "--set", "text=The market is on Thursdays.")
        done = await faas(running, "dlq", "redrive", *about, job_id, *changes)
        assert [each["outcome"] for each in done["items"]] == ["redriven"]
        ended = await job_ended(http, job_id)
        assert (ended["status"], ended["result"]["chunks"]) == ("succeeded", 1)
        await dead(http)
        assert await faas(running, "dlq", "purge", *about, "--all", "--yes") == {"removed": 1}


async def test_letters_are_resources_over_http(running: Running, tenant: str) -> None:
    async with running.http(tenant) as http, running.http(f"{tenant}x") as other:
        job_id = await dead(http)
        listed = (await http.get(LETTERS, params={"component": "rag", "code": "NOT_FOUND", "limit": 1})).json()
        assert [each["job_id"] for each in listed["items"]] == [job_id]
        shown = (await http.get(f"{LETTERS}/{job_id}")).json()
        assert (shown["body"]["file_id"], shown["attempts"]) == ("fnothing", 1)
        assert (await http.get(f"/api/v1/jobs/{job_id}")).json()["status"] == "failed"
        assert (await other.get(LETTERS)).json()["items"] == []
        for reply in (
            await other.get(f"{LETTERS}/{job_id}"),
            await other.post(f"{LETTERS}/{job_id}/redrive"),
            await other.delete(f"{LETTERS}/{job_id}"),
        ):
            assert reply.status_code == 404
        refused = await http.post(f"{LETTERS}/{job_id}/redrive", json={"set": {"title": 7}})
        assert (refused.status_code, refused.json()["errors"][0]["path"]) == (400, "title")
        done = await http.post(f"{LETTERS}/redrive", json={"all": True, "set": {"file_id": None, "text": "Words."}})
        assert [each["outcome"] for each in done.json()["items"]] == ["redriven"]
        assert (await job_ended(http, job_id))["status"] == "succeeded"
        await dead(http)
        assert (await http.delete(LETTERS, params={"all": "true"})).json()["removed"] == 1

        replay = {"subject": "rag.*", "first_sequence": 1, "dry_run": True}
        reply = await http.post("/api/v1/jobs/replay", json=replay)
        assert (reply.status_code, reply.headers["location"]) == (202, f"/api/v1/jobs/{reply.json()['job_id']}")
        told = (await job_ended(http, reply.json()["job_id"]))["result"]
        assert told["operations"]["rag.ingest"]["finished"] == told["total"]["finished"] == 3
