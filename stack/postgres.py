"""PostgreSQL with pgvector: its own initdb and postgres processes, passwords for everyone, loopback only."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from stack import ports, territory
from stack.process import Program, Report, Server, StackError
from stack.secrets import secret
from stack.territory import Territory

PORT = 5432
DATABASE = "faas"
SUPERUSER = "postgres"
ROLES = ("faas_owner", "faas_app", "faas_keeper")
INITDB_LIMIT_S = 120.0
CONNECT_LIMIT_S = 5.0
NOBODY = 65534
SOCKETS, SOCKET_PREFIX = Path("/tmp"), "faas-s-"
OPTIONS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "128MB",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


@dataclass
class Postgres:
    """The running server and the addresses of the three roles."""

    server: Server
    sockets: Path
    urls: dict[str, str]

    async def stop(self) -> None:
        await self.server.stop()
        shutil.rmtree(self.sockets, ignore_errors=True)


async def start(home: Path, *, bootstrap: str, port: int | None = PORT, report: Report | None = None) -> Postgres:
    """Make the data directory when there is none, start, and run the bootstrap SQL as superuser.

    bootstrap must be repeatable and create the roles of ROLES; their passwords are set here. Raises StackError.
    """
    place = await asyncio.to_thread(territory.claim, home)
    if not (place.data / "PG_VERSION").exists():
        (report or (lambda _: None))("making a new database")
        await _initdb(home, place)
    chosen = ports.choose(port)
    sockets = _socket_folder(home)
    place.give(sockets)
    argv = [place.binary("postgres"), "-D", str(place.data), "-k", str(sockets), "-p", str(chosen)]
    for name, value in {"listen_addresses": ports.LOOPBACK, **OPTIONS}.items():
        argv += ["-c", f"{name}={value}"]
    urls = {role: _url(home, role, chosen, DATABASE) for role in ROLES}
    admin = _url(home, SUPERUSER, chosen, SUPERUSER)

    async def ready() -> bool:
        return await _answers(admin)

    program = Program(
        "postgres",
        tuple(argv),
        ready,
        cwd=Path("/") if place.user else None,
        user=place.user,
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGINT,
        start_limit_s=60.0,
    )
    started = Postgres(Server(program, urls["faas_app"], home=home, report=report), sockets, urls)
    try:
        await started.server.start()
        await _bootstrap(home, admin, bootstrap)
    except BaseException:
        await started.stop()
        raise
    return started


def _socket_folder(home: Path) -> Path:
    """A new private one, with a short path; the one that a killed run left behind is removed."""
    note = home / "run" / "sockets"
    note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(OSError):
        left = Path(note.read_text().strip())
        if left.parent == SOCKETS and left.name.startswith(SOCKET_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir=SOCKETS))
    note.write_text(f"{made}\n")
    return made


async def _initdb(home: Path, place: Territory) -> None:
    """Into a folder beside, then renamed: an interrupted first start leaves nothing that looks finished."""
    fresh = place.data.with_name("data.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    # initdb wants an entry in the user database, which the server's own user has not: nobody makes it, then gives it.
    maker = (NOBODY, NOBODY) if place.user else None
    outside = fresh.parent
    password = fresh.with_name("pw")
    password.write_text(secret(home, SUPERUSER) + "\n")
    password.chmod(0o600)
    if maker:
        os.chown(outside, *maker)
        os.chown(fresh, *maker)
        os.chown(password, *maker)
    argv = [place.binary("initdb"), "-D", str(fresh), "-U", SUPERUSER, "-A", "scram-sha-256", "--pwfile", str(password)]
    argv += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd="/" if maker else None,
            start_new_session=True,
            user=NOBODY if maker else None,
            group=NOBODY if maker else None,
            extra_groups=[] if maker else None,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), INITDB_LIMIT_S)
        except BaseException:
            with suppress(ProcessLookupError):
                process.kill()
            raise
        if process.returncode != 0:
            raise StackError(
                f"initdb ended with status {process.returncode}: {output.decode(errors='replace').strip()}"
            )
    finally:
        password.unlink(missing_ok=True)
        if place.user:
            os.chown(outside, *place.user)
    place.give(fresh)
    fresh.rename(place.data)


def _url(home: Path, role: str, port: int, database: str) -> str:
    return f"postgresql://{role}:{secret(home, role)}@{ports.LOOPBACK}:{port}/{database}"


async def _answers(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_LIMIT_S)
    except asyncpg.InvalidPasswordError as error:
        raise StackError(
            f"the database does not accept its own password; were the secrets replaced? ({error})"
        ) from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    await connection.close(timeout=CONNECT_LIMIT_S)
    return True


async def _bootstrap(home: Path, admin: str, sql: str) -> None:
    connection = await asyncpg.connect(admin, timeout=CONNECT_LIMIT_S)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close(timeout=CONNECT_LIMIT_S)
    connection = await asyncpg.connect(admin, database=DATABASE, timeout=CONNECT_LIMIT_S)
    try:
        await connection.execute(sql)
        for role in ROLES:
            # Only token_urlsafe characters: nothing to quote.
            await connection.execute(f"ALTER ROLE {role} PASSWORD '{secret(home, role)}'")
    finally:
        await connection.close(timeout=CONNECT_LIMIT_S)
