"""The table of gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from subjects import gateway
from workers.gateway.catalogue import Catalogue
from workers.gateway.handlers import Deps, embed, generate, list_models, list_providers
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
        models = Models(host.settings, providers.resolve)
        yield Deps(models, providers, local, Catalogue(models, providers))
    finally:
        await local.close()


WORKER = Worker(
    "gateway",
    lifespan,
    serves=[
        serve(gateway.GENERATE, generate),
        serve(gateway.EMBED, embed),
        serve(gateway.LIST_MODELS, list_models),
        serve(gateway.LIST_PROVIDERS, list_providers),
    ],
    keys="valkey",
    needs=frozenset({"database", "valkey"}),
)
