"""The whole platform as one value: servers, schema, streams, workers and bridge; started, supervised, ended."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import store
from cli import children, setup
from runtime.settings import ENV_FILE, Settings
from stack import PARTS, Server, Stack
from stack.process import Report, start_all
from stack.secrets import secret

MODELS = "models"
MODEL_PACKAGES = ("xllamacpp", "onnxruntime")
BOOTSTRAP = Path(store.__path__[0]) / "bootstrap.sql"
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
OTHER_STEPS = 1
"""Beside servers and Python children: schema and streams."""


class Platform:
    """`async with Platform(home) as platform`: inside, every component answers; after, no process is left.

    report gets a line for a person; step is called once for each of steps() things that are done. port: of the bridge,
    0 = a free one. Raises stack.StackError, and Fault from the migrations.
    """

    def __init__(
        self,
        home: Path,
        *,
        split: bool = False,
        port: int = 8080,
        ports: dict[str, int] | None = None,
        report: Report | None = None,
        step: Callable[[], None] | None = None,
    ) -> None:
        self.home = home.absolute()
        self.components = children.components()
        self.children: list[Server] = []
        self._groups = children.groups(self.components, split=split)
        self._wanted_port = port
        self._report = report or (lambda _: None)
        self._step = step or (lambda: None)
        parts = PARTS if _models_installed() else PARTS - {MODELS}
        self.stack = Stack(
            home,
            bootstrap=BOOTSTRAP.read_text(),
            parts=parts,
            ports=ports,
            report=self._report,
            started=lambda _: self._step(),
        )

    def steps(self) -> int:
        """How many things are started."""
        return len(self.stack.parts) + OTHER_STEPS + len(self._groups) + 1

    async def __aenter__(self) -> Platform:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Drain and end the Python children, then the servers."""
        await asyncio.gather(*(child.stop() for child in self.children), return_exceptions=True)
        self.children.clear()
        await self.stack.stop()

    def environ(self) -> dict[str, str]:
        """What another process needs to find the platform, and the collector of its traces."""
        collector = {name: os.environ[name] for name in (COLLECTOR,) if os.environ.get(name)}
        return {**self.stack.environ(), "BRIDGE_URL": self.url, **collector}

    def settings(self) -> Settings:
        """Settings that point here."""
        found = {name.lower(): value for name, value in self.environ().items()}
        return Settings.model_validate({**found, "jwt_secret": secret(self.home, "jwt")})

    async def _start(self) -> None:
        secret(self.home, "jwt")
        await self.stack.__aenter__()
        port = children.bridge_port(self._wanted_port)
        if self._wanted_port not in (port, 0):
            self._report(f"port {self._wanted_port} is in use: the bridge listens on {port}")
        self.url = f"http://127.0.0.1:{port}"
        lines = (f"{name}={shlex.quote(value)}\n" for name, value in self.environ().items())
        _write_private(self.home / ENV_FILE, "".join(lines))
        self._report("migrating the database, creating streams")
        await setup.prepare(self.settings())
        self._step()
        self.children = [
            children.worker(
                group, self.environ(), home=self.home, keeper_url=self.stack.database_keeper_url, report=self._report
            )
            for group in self._groups
        ]
        self.children.append(
            children.bridge(self.components, self.environ(), home=self.home, port=port, report=self._report)
        )
        await start_all(map(self._start_child, self.children))

    async def _start_child(self, child: Server) -> None:
        self._report(f"starting {child.name}")
        await child.start()
        self._step()


def _models_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in MODEL_PACKAGES)


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
