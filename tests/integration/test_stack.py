"""The embedded default: it leaves nothing running, finds its data, and gets up again by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from stack import Stack, StackError, territory
from stack.ports import LOOPBACK, free_port
from stack.process import Program, Server

ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = ROOT / "store" / "bootstrap.sql"
SERVERS = frozenset({"nats", "postgres", "valkey"})
FREE = dict.fromkeys(SERVERS, 0)
GONE_LIMIT_S = 8.0
KILLED_OWNER = """
import asyncio, sys
from pathlib import Path
from stack import Stack
async def main():
    parts = frozenset({"nats", "postgres", "valkey"})
    home, sql = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
    async with Stack(home, bootstrap=sql, parts=parts, ports=dict.fromkeys(parts, 0)) as stack:
        print(*(server.pid for server in stack.servers.values()), flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    """A folder with a space in its path, for a stack of the test's own."""
    folder = tmp_path / "with a space" / "home"
    yield folder
    if folder.exists():
        territory.abandon(folder)


def own_stack(home: Path, parts: frozenset[str] = SERVERS) -> Stack:
    return Stack(home, bootstrap=BOOTSTRAP.read_text(), parts=parts, ports=FREE)


async def test_a_second_start_finds_its_data_and_no_process_is_left(own_home: Path) -> None:
    async with own_stack(own_home) as stack:
        pids = [server.pid for server in stack.servers.values()]
        owner = await asyncpg.connect(stack.database_owner_url)
        await owner.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
        await owner.close()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    async with own_stack(own_home) as stack:
        owner = await asyncpg.connect(stack.database_owner_url)
        assert await owner.fetchval("SELECT n FROM kept") == 7
        await owner.close()


def mode_and_owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return stat.S_IMODE(found.st_mode), found.st_uid


async def test_secrets_are_private_and_no_folder_above_is_touched(own_home: Path) -> None:
    own_home.parent.mkdir(parents=True)
    above = [own_home.parent, *own_home.parent.parents]
    before = [mode_and_owner(folder) for folder in above]
    async with own_stack(own_home, frozenset({"postgres"})):
        for path in (own_home / "secrets").iterdir():
            assert mode_and_owner(path) == (0o600, os.geteuid())
        assert mode_and_owner(own_home) == (0o700, os.geteuid())
        mode, owner = mode_and_owner(territory.claim(own_home).data)
        assert mode == 0o700
        assert owner != 0
    assert [mode_and_owner(folder) for folder in above] == before


async def test_a_wrong_password_is_refused(stack: Stack) -> None:
    address = stack.database_url.partition("@")[2]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgresql://faas_app:wrong@{address}")


async def test_servers_listen_on_loopback_alone(stack: Stack) -> None:
    for server in stack.servers.values():
        listening = [c for c in psutil.Process(server.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {connection.laddr.ip for connection in listening} == {LOOPBACK}, server.name


async def test_a_server_that_dies_serves_again_on_its_port(own_home: Path) -> None:
    async with own_stack(own_home) as stack:
        for server in stack.servers.values():
            url, pid = server.url, server.pid
            server.signal(signal.SIGKILL)
            await server.serving()
            assert (server.url, server.restarts) == (url, 1)
            assert server.pid != pid


async def test_a_frozen_server_is_stopped_within_its_grace(own_home: Path) -> None:
    async with own_stack(own_home) as stack:
        for server in stack.servers.values():
            server.signal(signal.SIGSTOP)
        started = time.monotonic()
        await stack.stop()
        assert time.monotonic() - started < 5


async def test_servers_end_with_a_killed_owner_and_the_next_start_works(own_home: Path) -> None:
    own_home.parent.mkdir(parents=True)
    owner = subprocess.Popen(  # noqa: ASYNC220 - only its kill matters here
        [sys.executable, "-c", KILLED_OWNER, str(own_home), str(BOOTSTRAP)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert owner.stdout is not None
    pids = [int(pid) for pid in (await asyncio.to_thread(owner.stdout.readline)).split()]
    assert len(pids) == len(SERVERS)
    with pytest.raises(StackError, match="another faas up"):
        await own_stack(own_home).__aenter__()
    owner.kill()
    owner.wait()
    async with own_stack(own_home):
        _, alive = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], timeout=GONE_LIMIT_S)
        assert not alive


async def test_a_port_in_use_moves_to_a_free_one_and_says_so(own_home: Path) -> None:
    said: list[str] = []
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        stack = Stack(own_home, parts=frozenset({"nats"}), ports={"nats": port}, report=said.append)
        async with stack:
            assert f":{port}" not in stack.nats_url
    assert any(f"port {port} is in use" in line for line in said)


async def test_a_program_that_cannot_start_tells_its_last_words(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    program = Program("broken", (sys.executable, "-c", "raise SystemExit('no such thing')"), never)
    with pytest.raises(StackError, match="no such thing"):
        await Server(program, "", home=tmp_path).start()


async def test_servers_get_no_secret_of_the_environment(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    async with own_stack(own_home, frozenset({"valkey"})) as stack:
        assert "OPENAI_API_KEY" not in psutil.Process(stack.valkey.pid).environ()


def test_free_ports_differ_from_those_in_use() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        assert free_port() != taken.getsockname()[1]
