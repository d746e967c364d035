"""The formats, their limits, and which one a message is in."""

from __future__ import annotations

from subjects.contract import Code, Fault

MSGPACK = "application/msgpack"
JSON = "application/json"
PROTOBUF = "application/x-protobuf"
CONTENT_TYPES = (MSGPACK, JSON, PROTOBUF)

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_ITEMS = 100_000
MAX_KEYS = 10_000  # of one map
MAX_INT, MIN_INT = 2**63 - 1, -(2**63)


def invalid(detail: str) -> Fault:
    return Fault(Code.INVALID, detail)


def content_type_of(value: str | None, default: str = MSGPACK) -> str:
    """The format that a Content-Type names; without its parameters. Raises Fault(INVALID) for others."""
    if value is None or value in CONTENT_TYPES:
        return value or default
    bare = value.partition(";")[0].strip().lower()
    if bare in CONTENT_TYPES:
        return bare
    raise invalid(f"Content-Type must be {', '.join(CONTENT_TYPES[:-1])} or {PROTOBUF}")


def negotiate(accept: str | None, default: str) -> str:
    """The format for a reply: the best of ours that Accept names, else default."""
    if accept is None or accept in CONTENT_TYPES:
        return accept or default
    best, best_quality = default, 0.0
    for part in accept[:1024].split(","):
        name, _, parameters = part.partition(";")
        bare = name.strip().lower()
        if bare in CONTENT_TYPES and (quality := _quality(parameters)) > best_quality:
            best, best_quality = bare, quality
    return best


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
