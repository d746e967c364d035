"""What the bridge says of itself: the two documents and a page for each, made when they are first asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from bridge import asyncapi, docs_events, docs_http, html, openapi
from bridge.exchange import Exchange
from bridge.table import Route
from codec import JSON
from codec.folder import SCHEMAS
from runtime.settings import Settings
from subjects.registry import Registry

HTML = "text/html; charset=utf-8"
COMMITTED_VERSION = "0.0.0"  # of the committed documents: a release alone does not change them


class Document:
    """One document. It takes a fifth of a second to make, so that is done in a thread, once."""

    def __init__(self, make: Callable[[], bytes], content_type: str, headers: dict[str, str] | None = None) -> None:
        self._make = make
        self._content_type = content_type
        self._headers = {"Cache-Control": "max-age=60", **(headers or {})}
        self._body: bytes | None = None
        self._making = asyncio.Lock()

    async def __call__(self, exchange: Exchange) -> None:
        async with self._making:
            if self._body is None:
                self._body = await asyncio.to_thread(self._make)
        await exchange.respond(200, self._body, self._content_type, self._headers)


class Documents:
    """Of one platform's contracts."""

    def __init__(self, settings: Settings, contracts: Registry) -> None:
        self._settings = settings
        self._contracts = contracts

    @cached_property
    def openapi(self) -> dict[str, Any]:
        return openapi.document(self._settings, self._contracts)

    @cached_property
    def asyncapi(self) -> dict[str, Any]:
        return asyncapi.document(self._settings, self._contracts)

    def routes(self) -> list[Route]:
        """Open to all."""
        made = {
            "/openapi.json": Document(lambda: _dense(self.openapi), JSON),
            "/asyncapi.json": Document(lambda: _dense(self.asyncapi), JSON),
            "/docs": Document(lambda: docs_http.render(self.openapi), HTML, html.HEADERS),
            "/docs/events": Document(lambda: docs_events.render(self.asyncapi), HTML, html.HEADERS),
        }
        return [Route("GET", path, document, public=True) for path, document in made.items()]


def committed(contracts: Registry) -> dict[Path, str]:
    """The files under schemas/ and their text."""
    settings = Settings.model_validate({"service_version": COMMITTED_VERSION})
    made = {"openapi.json": openapi.document, "asyncapi.json": asyncapi.document}
    return {SCHEMAS / name: _readable(document(settings, contracts)) for name, document in made.items()}


def _dense(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _readable(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
