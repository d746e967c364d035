"""The command line: exit codes, JSON for pipes, processes that know no more than they must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from cli import children, contracts
from cli.tokens import known_scopes
from cli.watch import PATTERN
from codec import protos, schemas

ROOT = Path(__file__).resolve().parents[2]
QUICK_S = 1.5
NOWHERE = {"NATS_URL": "nats://127.0.0.1:1", "FAAS_HOME": "/nonexistent"}


def faas(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **NOWHERE, **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("call", "rag.nothing"),
        ("call", "cache.get", '{"key": "k"}', "--stream"),
        ("submit", "jobs.get"),
        ("worker", "nobody"),
        ("tail", "evt..x"),
        ("bench", "rag.nothing"),
        ("jobs", "ls", "--status", "nosuch"),
        ("contracts", "--format", "cobol"),
        ("nonsense",),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert faas(*arguments).returncode == 2


def test_a_message_that_does_not_fit_its_contract_is_a_fault_with_the_path() -> None:
    done = faas("call", "rag.query", '{"top_k": 5}')
    assert done.returncode == 1
    assert json.loads(done.stderr)["errors"][0]["path"] == "question"


@pytest.mark.parametrize(
    "arguments", [("dlq", "ls", "--tenant", "A B"), ("contracts", "--format", "proto", "-o", "/dev/null/x")]
)
def test_what_no_command_foresaw_is_told_on_a_line(arguments: tuple[str, ...]) -> None:
    done = faas(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr


def test_without_a_broker_the_fault_says_what_to_do() -> None:
    done = faas("call", "jobs.list")
    assert done.returncode == 1
    assert "faas up" in json.loads(done.stderr)["detail"]


@pytest.mark.parametrize(
    ("wrong", "hint"), [("rag.qery", "rag.query"), ("ragg.*", "rag.*"), ("rag", "rag.*"), ("rag.query *.query", "*")]
)
def test_a_scope_that_no_operation_has_is_refused_with_those_like_it(wrong: str, hint: str) -> None:
    with pytest.raises(ValueError, match="no operation has the scope") as raised:
        known_scopes(wrong)
    assert hint in str(raised.value)
    assert known_scopes("rag.query, cache.*") == "rag.query cache.*"
    assert known_scopes("*") == "*"


def test_a_token_for_an_unknown_scope_is_wrong_usage() -> None:
    done = faas("token", "--scopes", "rag.qery", JWT_SECRET="s" * 32)
    assert (done.returncode, done.stdout) == (2, "")


def test_help_is_quick() -> None:
    started = time.monotonic()
    assert faas("--help").returncode == 0
    assert time.monotonic() - started < QUICK_S


def test_a_setting_that_cannot_be_is_wrong_usage_and_is_named() -> None:
    done = faas("doctor", BRIDGE_PORT="99999999")
    assert done.returncode == 2
    assert "BRIDGE_PORT" in done.stderr


def test_contracts_are_json_when_piped() -> None:
    assert "rag.query" in json.loads(faas("contracts").stdout)["calls"]


@pytest.mark.parametrize("pattern", ["evt.demo.>", "out.demo.*", "req.*.rag.query", ">", "$SRV.PING"])
def test_a_pattern_of_subjects_is_accepted(pattern: str) -> None:
    assert PATTERN.match(pattern)


@pytest.mark.parametrize("pattern", ["", ".", "a..b", "a.>.b", "a b", "a\n", "*x", "a.b>"])
def test_a_pattern_that_no_subject_can_have_is_refused(pattern: str) -> None:
    assert not PATTERN.match(pattern)


def test_the_gateway_is_alone_and_the_others_share_a_process() -> None:
    names = ["cache", "gateway", "jobs", "rag"]
    assert children.groups(names, split=False) == [["gateway"], ["cache", "jobs", "rag"]]
    assert children.groups(names, split=True) == [[name] for name in names]


def test_only_the_gateway_gets_provider_keys_and_only_jobs_the_keepers_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    told = {"DATABASE_OWNER_URL": "owner", "DATABASE_KEEPER_URL": "keeper", "NATS_URL": "nats"}
    made = {
        name: dict(children.worker([name], told, home=tmp_path, keeper_url="keeper").program.env or {})
        for name in ("gateway", "jobs", "rag")
    }
    assert {name for name, env in made.items() if "OPENAI_API_KEY" in env} == {"gateway"}
    assert {name for name, env in made.items() if "DATABASE_KEEPER_URL" in env} == {"jobs"}
    assert not [name for name, env in made.items() if "DATABASE_OWNER_URL" in env]


def test_proto_files_are_written_as_they_are_committed(tmp_path: Path) -> None:
    contracts.run("proto", tmp_path / "proto", update=False, release=False)
    made = {path.name: path.read_text() for path in (tmp_path / "proto").iterdir()}
    assert made == {path.name: path.read_text() for path in protos.COMMITTED.glob("*.proto")}
    contracts.run("jsonschema", tmp_path / "schema.json", update=False, release=False)
    assert (tmp_path / "schema.json").read_text() == schemas.COMMITTED.read_text()
    with pytest.raises(typer.BadParameter):
        contracts.run("wsdl", None, update=False, release=False)


def test_a_process_carries_no_websockets() -> None:
    program = """
import sys
from cli import serve
serve._lean_nats()
import workers.serving.boot, bridge.app
assert "aiohttp" not in sys.modules
import aiohttp  # for who wants it
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=30)
