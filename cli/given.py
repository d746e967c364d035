"""What several commands take as text: moments, ranges of the stream, changes to a message."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])\Z")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
RANGE = re.compile(r"(\d{1,18}):(\d{1,18})?\Z")


def moment(text: str, option: str) -> datetime:
    """`2h`, `7d` ago, or an ISO date or time (UTC where no zone stands)."""
    found = DURATION.match(text)
    try:
        if found is not None:
            return datetime.now(UTC) - timedelta(**{UNITS[found[2]]: float(found[1])})
        said = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{option}: `2h`, `7d`, or an ISO time such as 2026-01-31T12:00Z") from error
    return said if said.tzinfo is not None else said.replace(tzinfo=UTC)


def sequences(text: str) -> dict[str, int]:
    """`A:B`, both included, or `A:` for all from there on."""
    found = RANGE.match(text)
    if found is None:
        raise typer.BadParameter("--seq: two numbers of the stream with a colon between them, such as 1200:1300")
    bounds = {"first_sequence": int(found[1])}
    if found[2]:
        bounds["last_sequence"] = int(found[2])
    return bounds


def changes(said: Sequence[str]) -> dict[str, Any]:
    """`path=value` each; a value that is no JSON is text."""
    made: dict[str, Any] = {}
    for each in said:
        path, equals, value = each.partition("=")
        if not equals or not path:
            raise typer.BadParameter(f"--set: PATH=VALUE, not {each!r}")
        try:
            made[path] = json.loads(value)
        except ValueError:
            made[path] = value
    return made
