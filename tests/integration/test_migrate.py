"""The rules of migrations: each once, all or nothing, never edited."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import asyncpg
import pytest

from stack import Stack
from store.migrate import Migration, discover, migrate
from subjects.contract import Code, Fault


def named(sql: str) -> Migration:
    return Migration(f"test{uuid.uuid4().hex[:8]}/0001_things", sql)


async def test_a_second_run_changes_nothing(stack: Stack) -> None:
    assert await migrate(stack.database_owner_url) == []


async def test_two_at_once_apply_each_file_once(stack: Stack) -> None:
    table = f"things_{uuid.uuid4().hex[:8]}"
    migration = named(f"CREATE TABLE {table} (tenant_id text); SELECT enable_tenancy('{table}')")
    runs = await asyncio.gather(*(migrate(stack.database_owner_url, migrations=[migration]) for _ in range(3)))
    assert sorted(map(len, runs)) == [0, 0, 1]


async def test_a_file_that_fails_leaves_no_trace(stack: Stack) -> None:
    table = f"things_{uuid.uuid4().hex[:8]}"
    broken = named(
        f"CREATE TABLE {table} (tenant_id text); SELECT enable_tenancy('{table}'); SELECT 1 / no_such_column"
    )
    with pytest.raises(asyncpg.UndefinedColumnError):
        await migrate(stack.database_owner_url, migrations=[broken])
    repaired = Migration(broken.name, f"CREATE TABLE {table} (tenant_id text); SELECT enable_tenancy('{table}')")
    assert await migrate(stack.database_owner_url, migrations=[repaired]) == [broken.name]


async def test_an_applied_file_that_was_edited_is_refused(stack: Stack) -> None:
    first = named("SELECT 1")
    await migrate(stack.database_owner_url, migrations=[first])
    with pytest.raises(Fault) as raised:
        await migrate(stack.database_owner_url, migrations=[Migration(first.name, "SELECT 2")])
    assert raised.value.code is Code.CONFLICT


async def test_only_the_owner_migrates(stack: Stack) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await migrate(stack.database_url, migrations=[named("SELECT 1")])


def test_the_platform_comes_first_then_each_component_in_order(tmp_path: Path) -> None:
    for name in (
        "workers/zeta/migrations/0001_a.sql",
        "workers/zeta/migrations/0002_b.sql",
        "store/migrations/0001_x.sql",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("SELECT 1")
    assert [migration.name for migration in discover(tmp_path)] == ["store/0001_x", "zeta/0001_a", "zeta/0002_b"]
    (tmp_path / "workers/zeta/migrations/0002_c.sql").write_text("SELECT 1")
    with pytest.raises(Fault):
        discover(tmp_path)


def test_the_platform_has_its_own() -> None:
    assert [found.name for found in discover()][:2] == ["store/0001_tenancy", "store/0002_books"]
