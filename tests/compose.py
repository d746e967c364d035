"""compose.yaml as docker compose reads it: variables put in, merges resolved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "compose.yaml"
EXAMPLE = ROOT / ".env.example"
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[A-Z0-9_]+)(?:(?P<how>:-|:\?)(?P<word>[^}]*))?\})")


def filled(text: str, given: Mapping[str, str]) -> str:
    """`${A:-b}` is b without an A, `${A:?}` must be given, `$$` is a dollar sign. Raises KeyError."""

    def one(found: re.Match[str]) -> str:
        if found["name"] is None:
            return "$"
        value = given.get(found["name"], "")
        if not value and found["how"] == ":?":
            raise KeyError(found["name"])
        return value or (found["word"] or "" if found["how"] == ":-" else "")

    return _VARIABLE.sub(one, text)


def variables() -> set[str]:
    """Every name that the file asks the environment for."""
    return {found["name"] for found in _VARIABLE.finditer(FILE.read_text()) if found["name"]}


def composed(given: Mapping[str, str]) -> dict[str, Any]:
    """The file with these variables."""

    def put_in(value: Any) -> Any:
        if isinstance(value, str):
            return filled(value, given)
        if isinstance(value, list):
            return [put_in(each) for each in value]
        if isinstance(value, dict):
            return {key: put_in(each) for key, each in value.items()}
        return value

    found: dict[str, Any] = put_in(yaml.safe_load(FILE.read_text()))
    return found


def example() -> dict[str, tuple[str, bool]]:
    """Name -> (value, whether it stands behind a #) of .env.example. Raises ValueError on a name that stands twice."""
    found: dict[str, tuple[str, bool]] = {}
    for line in EXAMPLE.read_text().splitlines():
        match = re.fullmatch(r"(#?)([A-Z][A-Z0-9_]*)=(.*)", line)
        if match is None:
            continue
        if match[2] in found:
            raise ValueError(f"{match[2]} stands twice")
        found[match[2]] = match[3], bool(match[1])
    return found
