"""What outside clients rely on changes only on purpose."""

from __future__ import annotations

import difflib

import pytest

from codec import fieldlock, protos, schemas
from codec.folder import UPDATE
from subjects.registry import Registry


def test_the_committed_schemas_are_those_of_the_contracts() -> None:
    committed = schemas.COMMITTED.read_text(encoding="utf-8") if schemas.COMMITTED.exists() else ""
    now = schemas.text()
    if committed != now:
        lines = difflib.unified_diff(
            committed.splitlines(), now.splitlines(), "committed", "contracts", lineterm="", n=2
        )
        changes = "\n".join(list(lines)[:60])
        pytest.fail(f"a contract changed. If outside clients can live with it: {UPDATE}\n{changes}")


def test_every_reference_points_at_a_definition() -> None:
    document = schemas.json_schema()
    prefix = "#/$defs/"

    def references(node: object) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*map(references, node.values()))
        if isinstance(node, list):
            return set().union(*map(references, node))
        return set()

    found = references(document)
    assert found
    assert all(ref.startswith(prefix) for ref in found)
    assert {ref.removeprefix(prefix) for ref in found} == set(document["$defs"])


def test_no_contract_gives_empty_schemas() -> None:
    document = schemas.json_schema(Registry([], []))
    assert document["calls"] == document["events"] == document["$defs"] == {}


def test_the_committed_numbers_and_proto_files_are_those_of_the_contracts() -> None:
    lock = fieldlock.updated(fieldlock.committed(), protos.messages().values())
    assert lock == fieldlock.committed(), f"a contract changed: {UPDATE}"
    committed = {path.name: path.read_text(encoding="utf-8") for path in protos.COMMITTED.glob("*.proto")}
    assert committed == protos.files(lock=lock), f"a contract changed: {UPDATE}"
