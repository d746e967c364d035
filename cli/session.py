"""Runs one command against the platform: settings, one connection, a typed client, and exit code 1 on a Fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from cli import show
from subjects.contract import Code, Fault

if TYPE_CHECKING:
    from runtime.client import Client
    from runtime.connection import Connection
    from runtime.settings import Settings

FAULT_EXIT = 1
INTERRUPTED_EXIT = 130
CONNECT_LIMIT_S = 3.0
FLUSH_LIMIT_S = 1.0
"""What a command waits at its end for a collector."""
NAME = "faas-cli"

Result = TypeVar("Result")


def load() -> Settings:
    """The settings; wrong ones are a usage error that names them."""
    from pydantic import ValidationError

    from runtime.settings import Settings

    try:
        return Settings.load()
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise typer.BadParameter(f"settings: {wrong}") from error


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it to its end. A Fault is shown and ends the command with 1, Ctrl-C with 130."""
    try:
        return asyncio.run(work)
    except Fault as fault:
        show.fault(fault)
        raise typer.Exit(FAULT_EXIT) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED_EXIT) from None


@contextmanager
def faults() -> Iterator[None]:
    """A Fault inside is shown and ends the command with 1."""
    try:
        yield
    except Fault as fault:
        show.fault(fault)
        raise typer.Exit(FAULT_EXIT) from None


def ask(asking: Callable[[Client], Awaitable[None]]) -> None:
    """Run it with a client of the platform that the settings name."""
    settings = load()

    async def work() -> None:
        async with client(settings) as opened:
            await asking(opened)

    run(work())


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Connection]:
    """One connection for this command. Raises Fault(UNAVAILABLE) that says how to start the platform."""
    from runtime.connection import connect
    from runtime.otlp import exporting
    from runtime.telemetry import configure

    configure(settings.model_copy(update={"log_level": "error"}), NAME)
    async with exporting(settings, NAME, with_metrics=False, flush_s=FLUSH_LIMIT_S):
        try:
            connection = await connect(settings, name=NAME, within_s=CONNECT_LIMIT_S)
        except Fault as fault:
            if fault.code is Code.UNAVAILABLE:
                raise Fault(
                    Code.UNAVAILABLE, f"no NATS at {settings.nats_url}: run `faas up`, or set NATS_URL"
                ) from fault
            raise
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def client(settings: Settings) -> AsyncIterator[Client]:
    from runtime.client import Client

    async with connected(settings) as connection:
        yield Client(connection, settings, source=NAME)
