"""A model as the gateway calls it, and the pieces in which its answer comes."""

from __future__ import annotations

from dataclasses import dataclass

from subjects.gateway import Usage

LOCAL = "local"


@dataclass(frozen=True)
class Target:
    """name is `<provider>/<model>` as callers write it; api_base and api_key are ours or absent, never a caller's."""

    name: str
    provider: str
    litellm_model: str
    api_base: str | None = None
    api_key: str | None = None

    @property
    def local(self) -> bool:
        return self.provider == LOCAL


@dataclass(frozen=True)
class ToolPiece:
    """A piece of the tool call with this index: its id and name come once, its arguments bit by bit."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer. The last one alone has finish_reason, and the usage if the provider told it."""

    text: str = ""
    tools: tuple[ToolPiece, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
