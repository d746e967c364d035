"""Finds the route of a method and path.

A path is cut at its slashes first and decoded after, once: an encoded slash is a character of its segment and never
cuts. Nothing is tidied: an empty segment, `.` and `..` (encoded or not) name nothing, so no two spellings that a proxy
may read differently reach one resource.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from bridge.exchange import Exchange

Endpoint = Callable[[Exchange], Awaitable[None]]

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Route(NamedTuple):
    """One method and path. public: answered without a token. stream: it has no length, so HEAD is not for it."""

    method: str
    path: str
    endpoint: Endpoint
    public: bool = False
    stream: bool = False


class Match(NamedTuple):
    """route None: no such path, or, with allowed methods, no such method."""

    route: Route | None
    params: dict[str, str]
    allowed: tuple[str, ...] = ()


NO_PARAMS: dict[str, str] = {}
NOTHING = Match(None, NO_PARAMS)


class Table:
    """A dictionary for fixed paths, then the patterns of the same length. HEAD is answered as GET, without the body."""

    def __init__(self, routes: list[Route]) -> None:
        """Raises ValueError when two routes have one method and path."""
        self.routes = routes
        self._fixed: dict[str, dict[str, Route]] = {}
        self._patterns: dict[int, list[tuple[list[str], dict[str, Route]]]] = {}
        for route in routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        if "{" not in route.path:
            methods = self._fixed.setdefault(route.path, {})
        else:
            parts = route.path.split("/")
            same = self._patterns.setdefault(len(parts), [])
            for pattern, _ in same:
                if _shape(pattern) == _shape(parts) and pattern != parts:
                    raise ValueError(f"{route.path}: another route names its parameters differently")
            methods = next((found for pattern, found in same if pattern == parts), {})
            if not methods:
                same.append((parts, methods))
                same.sort(key=lambda each: [part.startswith("{") for part in each[0]])  # what is named comes first
        for method in ("GET", "HEAD") if route.method == "GET" and not route.stream else (route.method,):
            if method in methods:
                raise ValueError(f"{method} {route.path}: two routes have this path")
            methods[method] = route

    def find(self, method: str, path: bytes) -> Match:
        """path: as it came, without the query."""
        parts = None
        if b"%" not in path and path.isascii():
            text = path.decode()
        else:
            parts = _parts(path)
            if parts is None:
                return NOTHING
            text = "/".join(parts) if not any("/" in part for part in parts) else ""
        fixed = self._fixed.get(text)
        if fixed is not None and method in fixed:
            return Match(fixed[method], NO_PARAMS)
        allowed = set(fixed or ())
        parts = parts or text.split("/")
        for pattern, methods in self._patterns.get(len(parts), ()):
            params = _params(pattern, parts)
            if params is None:
                continue
            if method in methods:
                return Match(methods[method], params)
            allowed |= methods.keys()
        return Match(None, NO_PARAMS, tuple(sorted(allowed | {"OPTIONS"}))) if allowed else NOTHING


def unescaped(raw: bytes) -> str:
    """A percent-encoded piece of a path or query, decoded once. Raises ValueError when it cannot be."""
    if b"%" in raw and _BROKEN_ESCAPE.search(raw):
        raise ValueError("a broken escape")
    return unquote_to_bytes(raw).decode()


def _parts(path: bytes) -> list[str] | None:
    try:
        return [unescaped(part) for part in path.split(b"/")]
    except ValueError:
        return None


def _params(pattern: list[str], parts: list[str]) -> dict[str, str] | None:
    found = {}
    for wanted, given in zip(pattern, parts, strict=True):
        if wanted.startswith("{"):
            if given in ("", ".", ".."):
                return None
            found[wanted[1:-1]] = given
        elif wanted != given:
            return None
    return found


def _shape(parts: list[str]) -> list[str]:
    return ["{}" if part.startswith("{") else part for part in parts]
