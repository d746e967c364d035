"""What a worker process has open: one connection, one pool of each kind, shared by the components in it."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from runtime.client import Client
from runtime.connection import Connection
from runtime.settings import Settings
from store.database import Database
from store.inbox import Inbox
from store.jobs import Jobs
from store.objects import Objects
from store.outbox import Outbox
from store.steps import Steps
from store.valkey import Valkey
from subjects.contract import Call, Code, Fault
from workers.serving.facts import Facts
from workers.serving.pool import Pool
from workers.serving.route import Need
from workers.serving.running import Running
from workers.serving.slots import Gate

T = TypeVar("T")

DATABASE_CONNECTIONS = 16  # a process; one transaction each, none held while a handler works


@dataclass(frozen=True)
class Books:
    """The tables that every worker writes."""

    inbox: Inbox
    outbox: Outbox
    jobs: Jobs
    steps: Steps


@dataclass(frozen=True)
class Host:
    """Open clients of this process. A component that did not name a need in its table must not ask for it."""

    settings: Settings
    connection: Connection
    client: Client
    owner: str
    facts: Facts
    maybe_database: Database | None = None
    maybe_valkey: Valkey | None = None
    maybe_objects: Objects | None = None
    maybe_pool: Pool | None = None
    maybe_books: Books | None = None
    running: Running = field(default_factory=Running)
    gate: Gate = field(default_factory=Gate)

    @property
    def database(self) -> Database:
        return _needed(self.maybe_database, "database")

    @property
    def valkey(self) -> Valkey:
        return _needed(self.maybe_valkey, "valkey")

    @property
    def objects(self) -> Objects:
        return _needed(self.maybe_objects, "objects")

    @property
    def pool(self) -> Pool:
        return _needed(self.maybe_pool, "pool")

    @property
    def books(self) -> Books:
        return _needed(self.maybe_books, "database")

    def client_for(self, component: str, calls: Collection[Call[Any, Any]]) -> Client:
        """A client that speaks as this component and may make these calls only."""
        return Client(self.connection, self.settings, source=component, calls=calls)


def _needed(value: T | None, need: Need) -> T:
    if value is None:
        raise Fault(Code.INTERNAL, f"this process was opened without {need}: name it in the worker's needs")
    return value


@asynccontextmanager
async def open_host(settings: Settings, needs: frozenset[Need], connection: Connection) -> AsyncIterator[Host]:
    """Open what the tables of this process need; close in the opposite order. The connection stays the caller's."""
    async with AsyncExitStack() as stack:
        client = Client(connection, settings, source=settings.service_name or "worker")
        database = books = valkey = objects = pool = None
        if "database" in needs:
            database = await Database.open(settings.database_url, max_size=DATABASE_CONNECTIONS, name=client.source)
            stack.push_async_callback(database.close)
            outbox = await stack.enter_async_context(Outbox(database, client))
            books = Books(Inbox(database), outbox, Jobs(database), Steps(database))
        if "valkey" in needs:
            valkey = await Valkey.open(settings.redis_url)
            stack.push_async_callback(valkey.close)
        if "objects" in needs:
            objects = Objects(connection)
        if "pool" in needs:
            pool = Pool()
            stack.push_async_callback(pool.close)
        facts = await stack.enter_async_context(Facts(client))
        owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        yield Host(settings, connection, client, owner, facts, database, valkey, objects, pool, books)
