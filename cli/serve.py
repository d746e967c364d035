"""worker and bridge: one process of the platform, until SIGTERM."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import typer
import uvloop

from cli import session
from cli.children import components
from runtime.telemetry import configure, get_logger
from subjects.contract import Fault

if TYPE_CHECKING:
    from workers.serving.route import Worker


def workers(names: list[str]) -> None:
    _lean_nats()
    from workers.serving import boot

    known = components()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"no worker {', '.join(unknown)}; there are {', '.join(known)}")
    settings = session.load()
    wanted = list(dict.fromkeys(names or known))
    service = "faas-" + "-".join(wanted)
    if not settings.service_name:
        settings = settings.model_copy(update={"service_name": service})
    configure(settings, service)
    tables: list[Worker] = [importlib.import_module(f"workers.{name}.worker").WORKER for name in wanted]
    _until_stopped(boot.run(tables, settings))


def bridge() -> None:
    _lean_nats()
    from bridge import serve

    settings = session.load()
    configure(settings, "faas-bridge")
    _until_stopped(serve(settings))


def _lean_nats() -> None:
    """nats-py imports aiohttp where it finds it (litellm brings it along), for WebSockets, which we do not speak: 10 MB
    and half a second in each process. It goes without when that cannot be imported."""
    if "aiohttp" in sys.modules:
        return
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        import nats.aio.client  # noqa: F401
    finally:
        del sys.modules["aiohttp"]


def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run it; a Fault goes to the log, and the supervisor sees exit code 1."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except Fault as fault:
        get_logger("cli").error("ended", code=fault.code.value, detail=fault.detail)
        sys.exit(session.FAULT_EXIT)
