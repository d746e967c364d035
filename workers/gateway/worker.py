"""The table of gateway: generate and embed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from subjects import gateway
from workers.gateway.handlers import Deps, embed, generate
from workers.gateway.models import Models
from workers.gateway.targets.local import LocalModels
from workers.gateway.targets.providers import Providers
from workers.serving import Host, Worker, serve


@asynccontextmanager
async def lifespan(host: Host) -> AsyncIterator[Deps]:
    """Imports litellm here, when gateway really starts: whoever only reads this table does not pay for it."""
    providers = await Providers.load()
    local = LocalModels(host.settings.local_models_url)
    try:
        yield Deps(Models(host.settings, providers.resolve), providers, local)
    finally:
        await local.close()


WORKER = Worker(
    "gateway",
    lifespan,
    serves=[serve(gateway.GENERATE, generate), serve(gateway.EMBED, embed)],
    keys="valkey",
    needs=frozenset({"database", "valkey"}),
)
