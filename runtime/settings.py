"""Settings: every setting of a process, read from the environment, then from the file that `faas up` writes."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from codec.formats import JSON, MSGPACK, PROTOBUF

DEFAULT_CONCURRENCY = 64
MAX_ENV_FILE_BYTES = 64 * 1024
ENV_FILE = "env"
JWT_SECRET_FILE = "secrets/jwt"

_NEXT_URL = re.compile(r",\s*(?=\w+://)")  # a comma may also stand in a password

Names = Annotated[tuple[str, ...], NoDecode]


class Source(NamedTuple):
    """One setting as `faas doctor` prints it. origin: environment, a file's path, or default."""

    name: str
    value: str
    origin: str


class Settings(BaseSettings):
    """Frozen; the names are those of the environment in lower case. The defaults work against `faas up`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True)

    faas_home: Path = Path(".faas")
    nats_url: str = Field("nats://127.0.0.1:4222", repr=False)
    nats_creds: Path | None = None
    nats_replicas: int = Field(1, ge=1, le=5, description="copies of each stream: 1 on a single node, 3 on a cluster")
    database_url: str = Field("postgresql://faas_app@127.0.0.1:5432/faas", repr=False)
    database_owner_url: str | None = Field(None, repr=False, description="migrations alone")
    database_keeper_url: str | None = Field(None, repr=False, description="outbox relay and keeper alone")
    redis_url: str = Field("redis://127.0.0.1:6379/0", repr=False)
    codec_type: Literal["msgpack", "json", "protobuf"] = "msgpack"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    service_name: str = ""
    service_version: str = "0.1.0"
    bridge_port: int = Field(8080, ge=0, le=65535, validation_alias=AliasChoices("BRIDGE_PORT", "SERVICE_PORT"))
    bridge_host: str = "127.0.0.1"
    bridge_url: str = "http://127.0.0.1:8080"
    probe_port: int | None = Field(None, ge=0, le=65535, description="absent = no probes; 0 = a free one, logged")
    ready_requires: Names = ()
    cors_origins: Names = ()
    jwt_secret: SecretStr | None = Field(None, description="HS256, at least 32 bytes")
    jwt_jwks_url: str | None = Field(None, description="the identity provider's keys; beside JWT_SECRET or instead")
    jwt_audience: str = "motadata-faas"
    jwt_issuer: str = "motadata-faas"
    secrets_key: SecretStr | None = None
    llm_default_model: str = "local/smollm2"
    embed_default_model: str = "local/minilm"
    local_models_url: str = ""
    otel_exporter_otlp_endpoint: str = Field("", description="a collector's base address; empty = nothing is recorded")
    otel_traces_sampler: str = ""
    otel_traces_sampler_arg: str = ""
    shutdown_grace_s: float = Field(20.0, ge=0, le=3600)
    job_ack_wait_s: float = Field(10.0, ge=1, le=600)

    @field_validator("ready_requires", "cors_origins", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _key_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if not parts.hostname or parts.username or parts.password or parts.fragment:
            raise ValueError("must be a URL with a host and without user, password or fragment")
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
            raise ValueError("must begin with https:// (http:// is for loopback alone)")
        return value

    @field_validator("codec_type", "log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @property
    def content_type(self) -> str:
        """What our client and our events are written in; every reader takes all formats."""
        return {"msgpack": MSGPACK, "json": JSON, "protobuf": PROTOBUF}[self.codec_type]

    @classmethod
    def load(cls) -> Settings:
        """The environment first, then the lines of `$FAAS_HOME/env`, then the files of `$FAAS_HOME/secrets`.

        Raises pydantic.ValidationError on a value that cannot be.
        """
        found = _from_files(_home())
        silent: dict[str, Any] = {
            name: found[env][0]
            for name in cls.model_fields
            for env in _env_names(name)
            if env in found and not any(os.environ.get(other) for other in _env_names(name))
        }
        return cls(**silent)

    def concurrency(self, component: str) -> int:
        """How many messages of a component one process works on at a time (`<COMPONENT>_CONCURRENCY`, at least 1)."""
        name = f"{component.upper()}_CONCURRENCY"
        text = os.environ.get(name) or str(DEFAULT_CONCURRENCY)
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {text!r}")
        return int(text)

    def sources(self) -> list[Source]:
        """Each setting with where it came from; what may hold a password is masked."""
        files = _from_files(_home())
        return [self._source(name, files) for name in type(self).model_fields]

    def _source(self, name: str, files: dict[str, tuple[str, str]]) -> Source:
        origin = "default"
        for env in _env_names(name):
            if os.environ.get(env):
                origin = "environment"
                break
            if env in files:
                origin = files[env][1]
        return Source(_env_names(name)[0], _shown(getattr(self, name)), origin)


def _shown(value: Any) -> str:
    """A setting's value for a person to read: secrets and passwords inside URLs are masked."""
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, tuple):
        return ",".join(value)
    text = "" if value is None else str(value)
    return ",".join(map(_masked, _NEXT_URL.split(text)))


def _masked(text: str) -> str:
    scheme, found, rest = text.partition("://")
    if not found or "@" not in rest:
        return text
    credentials, _, address = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}{':********' if colon else ''}@{address}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _home() -> Path:
    return Path(os.environ.get("FAAS_HOME") or Settings.model_fields["faas_home"].default)


def _env_names(field: str) -> tuple[str, ...]:
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(choice for choice in alias.choices if isinstance(choice, str))
    return (field.upper(),)


def _from_files(home: Path) -> dict[str, tuple[str, str]]:
    """Name -> (value, the file it stands in)."""
    found: dict[str, tuple[str, str]] = {}
    for line in _read(home / ENV_FILE).splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = (value.strip().strip("'\""), str(home / ENV_FILE))
    secret = _read(home / JWT_SECRET_FILE).strip()
    if secret and "JWT_SECRET" not in found:
        found["JWT_SECRET"] = (secret, str(home / JWT_SECRET_FILE))
    return found


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_ENV_FILE_BYTES)
    except OSError:  # absent, or not ours to read: then it says nothing
        return ""
