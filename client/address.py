"""Where a request goes, and what the contracts say about it: whether it changes anything, whether it becomes a job."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from subjects.contract import AnyCall, Code, Fault
from subjects.registry import load

ROOT = "/api/v1/"
READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Place(NamedTuple):
    """service: the component in the path, else the client's. call: absent when this package does not know it."""

    path: str
    service: str
    call: AnyCall | None


def find(service: str, method: str, path: str) -> Place:
    """A path with a leading slash is taken as it is; any other is below /api/v1/<service>/.

    Raises Fault(INVALID) on a whole URL and on what would climb out of its place: a token must not go elsewhere.
    """
    whole = path if path.startswith("/") else f"{ROOT}{service}/{path}"
    parts = whole.split("/")
    if whole.startswith("//") or ":" in parts[0] or "://" in whole or {".", ".."} & set(parts) or "\\" in whole:
        raise Fault(Code.INVALID, "give a path: absolute (/api/v1/...) or below the service, without . or ..")
    named = parts[3] if whole.startswith(ROOT) and len(parts) > 3 and parts[3] else service
    return Place(whole, named, _call(method, whole))


def changes(method: str, call: AnyCall | None) -> bool:
    """Whether the request may change something. What nobody knows may."""
    if method in READING:
        return False
    return call is None or call.mutates or call.job


def _call(method: str, path: str) -> AnyCall | None:
    fixed, patterns = _routes()
    found = fixed.get((method, path))
    if found is not None:
        return found
    parts = path.split("/")
    for of_method, pattern, call in patterns:
        if (
            of_method == method
            and len(pattern) == len(parts)
            and all(
                wanted == given or (wanted.startswith("{") and given)
                for wanted, given in zip(pattern, parts, strict=True)
            )
        ):
            return call
    return None


@cache
def _routes() -> tuple[dict[tuple[str, str], AnyCall], list[tuple[str, list[str], AnyCall]]]:
    fixed: dict[tuple[str, str], AnyCall] = {}
    patterns: list[tuple[str, list[str], AnyCall]] = []
    for call in load().calls.values():
        fixed["POST", call.path] = call
        for named in call.http:
            method, path = named.split(" ", 1)
            if "{" in path:
                patterns.append((method, path.split("/"), call))
            else:
                fixed[method, path] = call
    return fixed, patterns
