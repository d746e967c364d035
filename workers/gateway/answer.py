"""An answer as it grows: joined text, tool calls, usage; and what a cut one costs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from subjects.gateway import Generate, Message, TextPart, ToolCall, Usage
from workers.gateway.targets.target import Piece, Target

CHARACTERS_A_TOKEN = 4  # English prose; used only when the provider told no usage


@dataclass
class Answer:
    """What one attempt has brought so far."""

    target: Target
    began: float = field(default_factory=time.perf_counter)
    ttft_ms: float | None = None
    finish_reason: str | None = None
    told: Usage | None = None
    _texts: list[str] = field(default_factory=list)
    _tools: dict[int, ToolCall] = field(default_factory=dict)

    @property
    def started(self) -> bool:
        """Whether anything of it has reached the caller."""
        return self.ttft_ms is not None

    @property
    def latency_ms(self) -> float:
        return (time.perf_counter() - self.began) * 1000

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [self._tools[index] for index in sorted(self._tools)]

    def add(self, piece: Piece) -> None:
        if self.ttft_ms is None and (piece.text or piece.tools):
            self.ttft_ms = self.latency_ms
        if piece.text:
            self._texts.append(piece.text)
        for tool in piece.tools:
            known = self._tools.get(tool.index, ToolCall(id="", name="", arguments=""))
            self._tools[tool.index] = ToolCall(
                id=known.id or tool.id, name=known.name or tool.name, arguments=known.arguments + tool.arguments
            )
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.told = piece.usage or self.told

    def message(self) -> Message:
        return Message(role="assistant", content=self.text, tool_calls=self.tool_calls)

    def usage(self, asked: Generate) -> Usage:
        """The provider's own figures; for an answer that was cut before it told them, an estimate by length."""
        if self.told is not None:
            return self.told
        written = len(self.text) + sum(len(call.arguments) for call in self.tool_calls)
        return Usage(input=_tokens(_length(asked)), output=max(_tokens(written), min(len(self._texts), written)))


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_A_TOKEN)


def _length(asked: Generate) -> int:
    if asked.prompt is not None:
        return len(asked.prompt)
    parts = [
        each.content if isinstance(each.content, list) else [TextPart(text=each.content)] for each in asked.messages
    ]
    return sum(len(part.text) for content in parts for part in content if isinstance(part, TextPart))
