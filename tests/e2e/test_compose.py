"""The commands, users, environments and healthchecks of compose.yaml, without its containers."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.tokens import sign
from runtime.connection import connect
from runtime.settings import Settings
from stack import nats, ports, postgres, territory, valkey
from stack.process import Program, Server
from subjects.contract import Fault
from tests.compose import ROOT, composed, example

EVERY_SERVICE = "FAAS_TEST_EVERY_SERVICE"  # the workers that a cached value does not need cost 10 s
NEEDED = ("worker-cache", "worker-jobs", "bridge")
WITHIN_S = 60.0

# Programs of the images' own that no wheel carries: the same question, asked in Python.
STAND_INS = {
    "wget": "import sys, urllib.request as u; u.urlopen(sys.argv[-1], timeout=3)",
    "valkey-cli": (
        "import os, socket, sys; said = sys.argv; word = os.environ['REDISCLI_AUTH'];"
        "s = socket.create_connection((said[said.index('-h') + 1], said[said.index('-p') + 1]), 3);"
        "s.sendall(f'AUTH {word}\\r\\nPING\\r\\n'.encode()); print(s.makefile().readlines(7))"
    ),
}


@dataclass
class Here:
    """One host instead of a network: every service's address on loopback, every program from the wheels."""

    home: Path
    services: dict[str, Any]
    addresses: dict[str, str]
    path: str
    nobody: list[str]

    def put(self, text: str) -> str:
        for there, here in self.addresses.items():
            text = text.replace(there, here)
        return text

    def environ(self, name: str, **changes: str) -> dict[str, str]:
        """Of the service, and nothing of ours."""
        said = {key: self.put(str(value)) for key, value in self.services[name].get("environment", {}).items()}
        return {"PATH": self.path, "HOME": "/nonexistent", "FAAS_HOME": str(self.home / "none"), **said, **changes}

    def server(self, name: str, argv: list[str], environ: Mapping[str, str]) -> Server:
        test = [self.put(each) for each in self.services[name]["healthcheck"]["test"]]
        check = ["sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:]

        async def healthy() -> bool:
            process = await asyncio.create_subprocess_exec(
                *check, env=dict(environ), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
            return await process.wait() == 0

        argv = [*self.nobody, *argv]
        program = Program(name, tuple(argv), healthy, env=environ, cwd=Path("/"), start_limit_s=WITHIN_S, poll_s=0.5)
        return Server(program, "", home=self.home)


def _as_nobody(user: str) -> list[str]:
    """What makes root the user of compose.yaml, who may still read everything: a checkout may be in a private home."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        warnings.warn("setpriv is missing: the services run as root in this test", stacklevel=2)
        return []
    uid, _, gid = user.partition(":")
    keeps = [
        "--bounding-set=-all,+dac_read_search",
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]
    return [setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs", *keeps]


def _home() -> Path:
    made = Path(tempfile.mkdtemp(prefix="faas-c-", dir="/tmp"))
    made.chmod(0o755)
    return made


@asynccontextmanager
async def deployed(given: Mapping[str, str]) -> AsyncIterator[Here]:
    """The servers of compose.yaml: healthy by its own checks, prepared by its own scripts."""
    services = composed(given)["services"]
    home = _home()
    free = {name: ports.free_port() for name in ("nats", "monitor", "valkey")}
    bin_, data = home / "bin", home / "nats"
    bin_.mkdir()
    for name, code in STAND_INS.items():
        (bin_ / f"{name}.py").write_text(code)  # not `#!python`: there a path with a space is cut at it
        (bin_ / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$0.py" "$@"\n')
        (bin_ / name).chmod(0o755)
    (bin_ / "valkey-server").symlink_to(valkey.binary())
    nobody = _as_nobody(services["bridge"]["user"])
    data.mkdir(mode=0o777)
    data.chmod(0o777)
    async with AsyncExitStack() as running:
        running.callback(shutil.rmtree, home, ignore_errors=True)
        running.callback(territory.abandon, home)
        database = await postgres.start(home, bootstrap=(ROOT / "store/bootstrap.sql").read_text(), port=0)
        running.push_async_callback(database.stop)
        programs = Path(database.server.program.argv[0]).parent
        path = os.pathsep.join([str(bin_), str(Path(sys.executable).parent), str(programs), os.defpath])
        address = database.urls["faas_app"].rpartition("@")[2].partition("/")[0]
        here = Here(
            home,
            services,
            {
                "@nats:4222": f"@127.0.0.1:{free['nats']}",
                "127.0.0.1:8222": f"127.0.0.1:{free['monitor']}",
                "@postgres:5432": f"@{address}",
                "-p 6379": f"-p {free['valkey']}",
                "@valkey:6379": f"@127.0.0.1:{free['valkey']}",
                "otel-collector:4318": "127.0.0.1:9",
            },
            path,
            nobody,
        )
        _passwords(here, programs, database)
        places = {
            "nats-server": str(nats.binary()),
            "/etc/nats/nats.conf": str(ROOT / "deploy/nats.conf"),
            "/data": str(data),
        }
        argv = [places.get(each, each) for each in services["nats"]["command"]]
        argv += ["-a", "127.0.0.1", "-p", str(free["nats"]), "-m", str(free["monitor"])]  # the last word counts
        broker = here.server("nats", argv, here.environ("nats"))
        line = services["valkey"]["command"][2].replace("--port 6379", f"--port {free['valkey']}")
        cache = here.server("valkey", ["/bin/sh", "-c", line.replace("0.0.0.0", "127.0.0.1")], here.environ("valkey"))
        for server in (broker, cache):
            running.push_async_callback(server.stop)
        await asyncio.gather(broker.start(), cache.start())
        yield here


def _passwords(here: Here, programs: Path, database: postgres.Postgres) -> None:
    """The script that the image runs at its first start, by the image's own psql; then its healthcheck."""
    host, _, port = database.urls["faas_app"].rpartition("@")[2].partition("/")[0].partition(":")
    admin = {"PGHOST": host, "PGPORT": port, "PGUSER": "postgres", "PGDATABASE": "faas",
             "PGPASSWORD": (here.home / "secrets/postgres").read_text().strip()}  # fmt: skip
    script = [str(programs / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(ROOT / "deploy/passwords.sql")]
    environ = here.environ("postgres", **admin)
    subprocess.run(script, env=environ, check=True, capture_output=True, timeout=20)
    without = {name: value for name, value in environ.items() if name != "FAAS_KEEPER_PASSWORD"}
    assert subprocess.run(script, env=without, capture_output=True, timeout=20).returncode != 0
    check = [port if each == "5432" else each for each in here.services["postgres"]["healthcheck"]["test"][1:]]
    subprocess.run(check, env=environ, check=True, timeout=10)


@pytest.fixture
def given() -> dict[str, str]:
    """.env.example, filled in."""
    return {name: "7" + secrets.token_hex(20) for name, (_, off) in example().items() if not off}


async def test_what_compose_says_serves(given: dict[str, str]) -> None:
    async with deployed(given) as here, AsyncExitStack() as running:
        faas = shutil.which("faas", path=here.path)
        assert faas is not None
        migrated = await _run(here, [faas, *here.services["migrate"]["command"]], here.environ("migrate"))
        assert {"JOBS", "EVENTS", "DLQ", "OUT"} <= set(json.loads(migrated)["streams"])
        names = [name for name in here.services if name.startswith("worker-")] + ["bridge"]
        chosen = names if os.environ.get(EVERY_SERVICE) else [name for name in names if name in NEEDED]
        servers = []
        port = ports.free_port()
        for name in chosen:
            place = {"BRIDGE_PORT": str(port), "BRIDGE_HOST": "127.0.0.1"} if name == "bridge" else {
                "PROBE_PORT": str(ports.free_port())}  # fmt: skip
            servers.append(here.server(name, [faas, *here.services[name]["command"]], here.environ(name, **place)))
            running.push_async_callback(servers[-1].stop)
        await asyncio.gather(*(server.start() for server in servers))
        assert 0 not in {psutil.Process(server.pid).uids().effective for server in servers} or not here.nobody

        settings = Settings.model_validate({"jwt_secret": given["JWT_SECRET"]})
        headers = {"Authorization": f"Bearer {sign(settings, 'acme', scopes='cache.get cache.set')}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10) as http:
            assert (await http.post("/api/v1/cache/set", json={"key": "k", "value": [1]})).status_code == 200
            assert (await http.post("/api/v1/cache/get", json={"key": "k"})).json()["value"] == [1]
            assert (await http.post("/api/v1/cache/delete", json={"key": "k"})).status_code == 403
            assert (await http.post("/api/v1/cache/get", json={}, headers={"Authorization": ""})).status_code == 401

        told = await _doctor(here, f"http://127.0.0.1:{port}")
        await _nobody_comes_in_without_the_password(here)
    logs = "".join(path.read_text() for path in here.home.rglob("*.log"))
    assert [name for name, value in given.items() if value in logs + told + migrated] == []


async def _doctor(here: Here, bridge: str) -> str:
    """What an operator sees who has every setting of every service."""
    environ = here.environ("migrate") | here.environ("bridge") | here.environ("worker-jobs", BRIDGE_URL=bridge)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            if name not in ("PATH", "HOME"):
                patch.setenv(name, value)
        told = (await asyncio.to_thread(lambda: CliRunner().invoke(app, ["doctor", "--json"]))).output
    checks = {each["name"]: each["ok"] for each in json.loads(told)["checks"]}
    assert checks["nats"] is checks["valkey"] is checks["postgres (faas_keeper)"] is checks["bridge"] is True
    assert "nats://faas:********@127.0.0.1" in told
    return told


async def _nobody_comes_in_without_the_password(here: Here) -> None:
    url = here.environ("migrate")["NATS_URL"]
    for wrong in (url.replace("faas:7", "faas:8"), f"nats://{url.partition('@')[2]}"):
        with pytest.raises(Fault) as raised:
            await connect(Settings(nats_url=wrong), name="tests", within_s=1)
        assert "faas:8" not in str(raised.value) + repr(raised.value.__cause__)


async def _run(here: Here, argv: list[str], environ: Mapping[str, str]) -> str:
    """What a command prints, run as the user of compose.yaml."""
    process = await asyncio.create_subprocess_exec(
        *here.nobody, *argv, cwd="/", env=dict(environ), stdout=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), WITHIN_S)
    assert process.returncode == 0, out
    return out.decode()
