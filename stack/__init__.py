"""The embedded default: broker, database, cache and local models as child processes of whoever opens a Stack."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from stack import local, nats, postgres, territory, valkey
from stack.leftovers import reap
from stack.postgres import Postgres
from stack.process import Report, Server, StackError, start_all

PARTS: Final = frozenset({"nats", "postgres", "valkey", "models"})

__all__ = ["PARTS", "Server", "Stack", "StackError"]


class Stack:
    """`async with Stack(home, bootstrap=sql) as stack`: every part serves inside, and nothing is left running after.

    home holds data, logs, secrets and pid files; a second start finds its data. bootstrap is the repeatable SQL that a
    superuser runs once to make the three roles. ports wishes a port for a part; one in use moves to a free one, which
    report tells. started gets the name of each part that serves. A part that dies is started again on its port.
    Raises StackError.
    """

    def __init__(
        self,
        home: Path,
        *,
        bootstrap: str = "",
        parts: frozenset[str] = PARTS,
        ports: Mapping[str, int] | None = None,
        report: Report | None = None,
        started: Report | None = None,
    ) -> None:
        unknown = parts - PARTS
        if unknown:
            raise StackError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(sorted(PARTS))}")
        self.home = home.absolute()
        self.parts = parts
        self.servers: dict[str, Server] = {}
        self._bootstrap = bootstrap
        self._ports = ports
        self._report = report or (lambda _: None)
        self._started = started or (lambda _: None)
        self._postgres: Postgres | None = None
        self._lock: int | None = None

    async def __aenter__(self) -> Stack:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(self.home)
        try:
            for name in await asyncio.to_thread(reap, self.home / "run"):
                self._report(f"ended {name}, left behind by an earlier run")
            await start_all(self._start(part) for part in sorted(self.parts))
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End every part at once; each is bounded by its grace period."""
        ends = [server.stop() for name, server in self.servers.items() if name != "postgres"]
        if self._postgres is not None:
            ends.append(self._postgres.stop())
        await asyncio.gather(*ends, return_exceptions=True)
        self.servers.clear()
        self._postgres = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def abandon(self) -> None:
        """Delete what a run as root put outside the home. For temporary homes, after stop()."""
        territory.abandon(self.home)

    @property
    def nats_url(self) -> str:
        return self._server("nats").url

    @property
    def database_url(self) -> str:
        """As faas_app, the role that works under row-level security."""
        return self._role("faas_app")

    @property
    def database_owner_url(self) -> str:
        """As faas_owner, the role that migrates."""
        return self._role("faas_owner")

    @property
    def database_keeper_url(self) -> str:
        """As faas_keeper, the role of the outbox relay and of retention."""
        return self._role("faas_keeper")

    @property
    def redis_url(self) -> str:
        return self._server("valkey").url

    @property
    def local_models_url(self) -> str:
        return self._server("models").url

    @property
    def nats(self) -> Server:
        return self._server("nats")

    @property
    def postgres(self) -> Server:
        return self._server("postgres")

    @property
    def valkey(self) -> Server:
        return self._server("valkey")

    @property
    def models(self) -> Server:
        return self._server("models")

    def environ(self) -> dict[str, str]:
        """The settings with which every process of the platform finds these servers."""
        found = {"FAAS_HOME": str(self.home)}
        if "nats" in self.servers:
            found["NATS_URL"] = self.nats_url
        if self._postgres is not None:
            found["DATABASE_URL"] = self.database_url
            found["DATABASE_OWNER_URL"] = self.database_owner_url
            found["DATABASE_KEEPER_URL"] = self.database_keeper_url
        if "valkey" in self.servers:
            found["REDIS_URL"] = self.redis_url
        if "models" in self.servers:
            found["LOCAL_MODELS_URL"] = self.local_models_url
        return found

    async def _start(self, part: str) -> None:
        self._report(f"starting {part}")
        default = {"nats": nats.PORT, "postgres": postgres.PORT, "valkey": valkey.PORT, "models": local.PORT}[part]
        wanted = default if self._ports is None else self._ports.get(part, default)
        if part == "postgres":
            if not self._bootstrap:
                raise StackError("the postgres part needs bootstrap SQL that makes its roles")
            self._postgres = await postgres.start(
                self.home, bootstrap=self._bootstrap, port=wanted, report=self._report
            )
            server = self._postgres.server
        elif part == "nats":
            server = await nats.start(self.home, port=wanted, report=self._report)
        elif part == "valkey":
            server = await valkey.start(self.home, port=wanted, report=self._report)
        else:
            server = await local.start(self.home, port=wanted, report=self._report)
        self.servers[part] = server
        where = server.url.rpartition("@")[2].rpartition("://")[2]
        moved = wanted and f":{wanted}" not in where
        self._report(f"{part} serves on {where}" + (f" (port {wanted} is in use)" if moved else ""))
        self._started(part)

    def _server(self, part: str) -> Server:
        try:
            return self.servers[part]
        except KeyError:
            raise StackError(f"{part} is not part of this stack, or not started") from None

    def _role(self, role: str) -> str:
        if self._postgres is None:
            raise StackError("postgres is not part of this stack, or not started")
        return self._postgres.urls[role]


def _lock(home: Path) -> int:
    """Held while the stack runs, dropped by the system when this process dies however it dies."""
    handle = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise StackError(f"another faas up runs in {home}; stop it, or set FAAS_HOME to another folder") from error
    return handle
