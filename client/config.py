"""What a client is told: address, token and every limit, with defaults that suit a program beside the platform."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

BRIDGE_URL = "BRIDGE_URL"
TOKEN = "FAAS_TOKEN"
DEFAULT_URL = "http://127.0.0.1:8080"

Token = str | Callable[[], str | Awaitable[str]]


@dataclass(frozen=True)
class ClientConfig:
    """All seconds and counts are bounds. base_url, token: absent = BRIDGE_URL and FAAS_TOKEN of the environment.

    token may be a function, also an async one: it is asked before each attempt, and keeps its tokens itself.
    """

    base_url: str = ""
    token: Token | None = None

    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    """One attempt, until its whole answer is here; the bridge is told a little less (`Request-Timeout`)."""
    total_timeout_s: float = 120.0
    """One call, with all its attempts and the pauses between them."""
    transfer_timeout_s: float = 900.0
    """The same for an upload or a download."""

    max_attempts: int = 4
    backoff_from_s: float = 0.1
    """The first pause is random from 0 to this, each further one to twice the last (full jitter)."""
    backoff_to_s: float = 5.0

    stream_timeout_s: float = 3600.0
    stream_idle_s: float = 45.0
    """Without a byte; the bridge sends a heartbeat every 15 s."""
    max_rejoins: int = 8
    """Of a job's stream, one after another without an event between them."""

    breaker_failures: int = 5
    """One after another; then the service is not asked for breaker_open_s."""
    breaker_open_s: float = 10.0

    max_connections: int = 100
    max_idle_connections: int = 20
    idle_connection_s: float = 30.0
    """Less than the 75 s after which the bridge closes one: a request never meets a closing connection."""
    max_answer_bytes: int = 8 * 1024 * 1024

    def resolved(self) -> ClientConfig:
        """The same with what the environment says where nothing was given."""
        url = self.base_url or os.environ.get(BRIDGE_URL) or DEFAULT_URL
        return replace(self, base_url=url.rstrip("/"), token=self.token or os.environ.get(TOKEN) or None)
