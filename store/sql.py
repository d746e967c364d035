"""Named SQL: statements live in .sql files, `-- name: get_entry` above each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources

_names: dict[str, str] = {}
"""Statement to `<file>.<name>`, for telemetry: the text itself is told to nobody."""
_name = re.compile(r"^--\s*name:\s*([a-z_][a-z0-9_]*)\s*$", re.MULTILINE)


class Queries:
    """The statements of one file, by attribute: `queries.get_entry`."""

    def __init__(self, source: str, statements: Mapping[str, str]) -> None:
        self._source = source
        self._statements = dict(statements)

    def __getattr__(self, name: str) -> str:
        try:
            return self._statements[name]
        except KeyError:
            raise AttributeError(f"{self._source} has no statement named {name}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)


def load(package: str, filename: str = "queries.sql") -> Queries:
    """Read a package's statements once, at import. Raises ValueError on a duplicate name or an empty statement."""
    source = f"{package}/{filename}"
    text = resources.files(package).joinpath(filename).read_text(encoding="utf-8")
    parts = _name.split(text)
    statements: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in statements:
            raise ValueError(f"{source} names {name} twice")
        statements[name] = body.strip().rstrip(";")
        if not statements[name]:
            raise ValueError(f"{source} has nothing under {name}")
        _names[statements[name]] = f"{_place(package, filename)}.{name}"
    return Queries(source, statements)


def name_of(statement: str) -> str:
    """`<file>.<name>` of a named statement, as `jobs.running` or `rag.search`; else the statement's first word."""
    return _names.get(statement) or statement.lstrip()[:16].partition(" ")[0].upper()


def _place(package: str, filename: str) -> str:
    """A component's queries.sql is called as the component is."""
    stem = filename.removesuffix(".sql")
    return package.rpartition(".")[2] if stem == "queries" else stem
