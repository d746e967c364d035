"""The table of routes: made from the registry, so that a new contract has its route without a line here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from bridge.context import Bridge
from bridge.exchange import Exchange
from bridge.joining import JobEvents, Outputs
from bridge.operation import Operation
from bridge.upload import Upload
from subjects.registry import Registry

Endpoint = Callable[[Exchange], Awaitable[None]]


class Route(NamedTuple):
    """One method and path. public: answered without a token."""

    method: str
    path: str
    endpoint: Endpoint
    public: bool = False


def operations(bridge: Bridge, registry: Registry) -> list[Route]:
    """Every route that needs a token."""
    found = [
        Route("GET", "/api/v1/jobs/{job_id}/events", JobEvents(bridge)),
        Route("GET", "/api/v1/outputs/{output_id}", Outputs(bridge)),
        Route("POST", "/api/v1/ingestion/upload", Upload(bridge)),
    ]
    for call in registry.calls.values():
        if not call.public:
            continue
        found.append(Route("POST", call.path, Operation(bridge, call)))
        for named in call.http:
            method, path = named.split(" ", 1)
            found.append(Route(method, path, Operation(bridge, call, resource=True)))
    return found


class Match(NamedTuple):
    """route None: no such path, or, with allowed methods, no such method."""

    route: Route | None
    params: dict[str, str]
    allowed: tuple[str, ...] = ()


NO_PARAMS: dict[str, str] = {}


class Table:
    """Finds the route of a method and path: a dictionary for fixed paths, then the patterns of the same length."""

    def __init__(self, routes: list[Route]) -> None:
        self._fixed: dict[str, dict[str, Route]] = {}
        self._patterns: dict[int, list[tuple[list[str], Route]]] = {}
        for route in routes:
            parts = route.path.split("/")
            if "{" in route.path:
                self._patterns.setdefault(len(parts), []).append((parts, route))
            elif route.method in self._fixed.setdefault(route.path, {}):
                raise ValueError(f"{route.method} {route.path}: two routes have this path")
            else:
                self._fixed[route.path][route.method] = route

    def find(self, method: str, path: str) -> Match:
        """HEAD is answered as GET where no token is needed."""
        fixed = self._fixed.get(path)
        if fixed is not None:
            found = fixed.get(method)
            if found is None and method == "HEAD" and "GET" in fixed and fixed["GET"].public:
                found = fixed["GET"]
            if found is not None:
                return Match(found, NO_PARAMS)
        allowed = set(fixed or ())
        parts = path.split("/")
        for pattern, route in self._patterns.get(len(parts), ()):
            params = _params(pattern, parts)
            if params is None:
                continue
            if route.method == method:
                return Match(route, params)
            allowed.add(route.method)
        return Match(None, NO_PARAMS, tuple(sorted(allowed)))


def _params(pattern: list[str], parts: list[str]) -> dict[str, str] | None:
    found = {}
    for wanted, given in zip(pattern, parts, strict=True):
        if wanted.startswith("{"):
            if not given:
                return None
            found[wanted[1:-1]] = given
        elif wanted != given:
            return None
    return found
