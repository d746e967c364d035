"""Settings: the environment first, then the files below FAAS_HOME, then the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from runtime.settings import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
    monkeypatch.delenv("SERVICE_PORT", raising=False)
    monkeypatch.setenv("FAAS_HOME", str(tmp_path))
    return tmp_path


def test_every_setting_has_a_default(home: Path) -> None:
    settings = Settings.load()
    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.bridge_port == 8080
    assert settings.faas_home == home


def test_the_file_speaks_where_the_environment_is_silent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "env").write_text("# addresses\nexport NATS_URL='nats://file:1'\nREDIS_URL=redis://file:2/0\nnonsense\n")
    monkeypatch.setenv("REDIS_URL", "redis://environment:3/0")
    settings = Settings.load()
    assert settings.nats_url == "nats://file:1"
    assert settings.redis_url == "redis://environment:3/0"


def test_the_secret_is_read_from_its_file_unless_it_is_given(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "secrets").mkdir()
    (home / "secrets" / "jwt").write_text("from-the-file\n")
    assert (secret := Settings.load().jwt_secret) is not None
    assert secret.get_secret_value() == "from-the-file"
    monkeypatch.setenv("JWT_SECRET", "given")
    assert (secret := Settings.load().jwt_secret) is not None
    assert secret.get_secret_value() == "given"


def test_either_name_of_the_port_counts_and_the_environment_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "env").write_text("BRIDGE_PORT=1111\n")
    assert Settings.load().bridge_port == 1111
    monkeypatch.setenv("SERVICE_PORT", "2222")
    assert Settings.load().bridge_port == 2222


def test_names_are_separated_by_commas(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READY_REQUIRES", "rag, gateway,")
    assert Settings.load().ready_requires == ("rag", "gateway")


@pytest.mark.parametrize(
    ("name", "value"), [("BRIDGE_PORT", "70000"), ("CODEC_TYPE", "pickle"), ("JOB_ACK_WAIT_S", "0")]
)
def test_what_cannot_be_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings.load()


def test_concurrency_is_a_number_of_at_least_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().concurrency("rag") == 64
    monkeypatch.setenv("RAG_CONCURRENCY", "7")
    assert Settings.load().concurrency("rag") == 7
    for wrong in ("0", "-1", "many"):
        monkeypatch.setenv("RAG_CONCURRENCY", wrong)
        with pytest.raises(ValueError, match="RAG_CONCURRENCY"):
            Settings.load().concurrency("rag")


def test_sources_tell_where_from_and_mask_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "env").write_text("DATABASE_URL=postgresql://faas_app:canary-1@127.0.0.1:1/faas\n")
    monkeypatch.setenv("JWT_SECRET", "canary-2")
    found = {source.name: source for source in Settings.load().sources()}
    assert found["DATABASE_URL"].value == "postgresql://faas_app:********@127.0.0.1:1/faas"
    assert found["DATABASE_URL"].origin == str(home / "env")
    assert (found["JWT_SECRET"].value, found["JWT_SECRET"].origin) == ("********", "environment")
    assert found["NATS_URL"].origin == "default"


def test_every_password_of_several_addresses_is_masked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://faas:canary-1@a:4222, nats://faas:canary-2@b:4222")
    monkeypatch.setenv("REDIS_URL", "redis://:canary-3,canary-4@h:1/0")
    found = {source.name: source.value for source in Settings.load().sources()}
    assert found["NATS_URL"] == "nats://faas:********@a:4222,nats://faas:********@b:4222"
    assert found["REDIS_URL"] == "redis://:********@h:1/0"


def test_printed_settings_hold_no_secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "DATABASE_URL", "DATABASE_OWNER_URL", "DATABASE_KEEPER_URL", "REDIS_URL"):
        monkeypatch.setenv(name, "scheme://u:canary@h/x")
    monkeypatch.setenv("JWT_SECRET", "canary")
    assert "canary" not in repr(Settings.load())
