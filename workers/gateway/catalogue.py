"""What can be asked here: the local models, and those of every provider that has its key."""

from __future__ import annotations

from typing import Any, Literal

from store import cursors
from subjects import gateway
from subjects.gateway import Capability, ModelInfo, Provider
from workers.gateway.models import LOCAL_CHAT, LOCAL_EMBEDDING, Models
from workers.gateway.targets.providers import Providers
from workers.gateway.targets.target import LOCAL

KNOWN = (
    "anthropic", "azure", "bedrock", "cohere", "deepseek", "gemini", "groq", "mistral", "ollama", "openai",
    "openrouter", "together_ai", "vertex_ai", "xai",
)  # fmt: skip
"""Looked up by name: to ask litellm about all of its own would connect to some. Others work, but are not listed."""
LOCAL_CONTEXT = 4096
LOCAL_DIMENSIONS = 384
LOCAL_EMBEDDING_TOKENS = 256
MILLION = 1_000_000
CAPABILITIES: tuple[tuple[str, Capability], ...] = (
    ("supports_function_calling", "tools"),
    ("supports_vision", "images"),
    ("supports_response_schema", "json_schema"),
    ("supports_reasoning", "reasoning"),
)


class Catalogue:
    """Made once: keys come with the process, so nothing of it changes."""

    def __init__(self, models: Models, providers: Providers) -> None:
        self._defaults = {models.default_chat, models.default_embedding}
        here = Provider(
            name=LOCAL,
            configured=models.has_local,
            local=True,
            missing=None if models.has_local else "LOCAL_MODELS_URL",
        )
        others = [(name, providers.missing(name)) for name in KNOWN]
        self.providers = [here] + [
            Provider(name=name, configured=missing is None, local=False, missing=missing) for name, missing in others
        ]
        self.models = self._local() if models.has_local else []
        for name, missing in others:
            if missing is None:
                self.models += [self._info(name, model, facts) for model, facts in providers.priced(name)]
        self.providers.sort(key=lambda each: each.name)
        self.models.sort(key=lambda each: each.name)

    def list_models(self, message: gateway.ListModels) -> gateway.ModelList:
        """By name. Raises Fault(INVALID) on a cursor that is not ours."""
        after = _after(message.cursor)
        left = [
            each for each in self.models
            if each.name > after and message.kind in (None, each.kind) and message.provider in (None, each.provider)
        ]  # fmt: skip
        page = left[: message.limit]
        return gateway.ModelList(items=page, next_cursor=cursors.make(page[-1].name) if len(left) > len(page) else None)

    def list_providers(self, message: gateway.ListProviders) -> gateway.ProviderList:
        """By name. Raises Fault(INVALID) on a cursor that is not ours."""
        after = _after(message.cursor)
        left = [
            each for each in self.providers
            if each.name > after and message.configured in (None, each.configured)
        ]  # fmt: skip
        page = left[: message.limit]
        more = cursors.make(page[-1].name) if len(left) > len(page) else None
        return gateway.ProviderList(items=page, next_cursor=more)

    def _local(self) -> list[ModelInfo]:
        free: dict[str, Any] = {"local": True, "provider": LOCAL, "input_usd_per_million": 0.0}
        chat = [
            ModelInfo(
                name=f"{LOCAL}/{name}", kind="chat", default=f"{LOCAL}/{name}" in self._defaults,
                capabilities=["json_schema"], max_input_tokens=LOCAL_CONTEXT, output_usd_per_million=0.0, **free,
            )
            for name in LOCAL_CHAT
        ]  # fmt: skip
        return chat + [
            ModelInfo(
                name=f"{LOCAL}/{name}", kind="embedding", default=f"{LOCAL}/{name}" in self._defaults,
                max_input_tokens=LOCAL_EMBEDDING_TOKENS, dimensions=LOCAL_DIMENSIONS, **free,
            )
            for name in LOCAL_EMBEDDING
        ]  # fmt: skip

    def _info(self, provider: str, model: str, facts: dict[str, Any]) -> ModelInfo:
        kind: Literal["chat", "embedding"] = "chat" if facts["mode"] == "chat" else "embedding"
        name = f"{provider}/{model}"
        return ModelInfo(
            name=name,
            provider=provider,
            kind=kind,
            default=name in self._defaults,
            local=False,
            capabilities=[named for fact, named in CAPABILITIES if facts.get(fact)],
            max_input_tokens=_whole(facts.get("max_input_tokens")),
            max_output_tokens=_whole(facts.get("max_output_tokens")) if kind == "chat" else None,
            dimensions=_whole(facts.get("output_vector_size")),
            input_usd_per_million=_price(facts.get("input_cost_per_token")),
            output_usd_per_million=_price(facts.get("output_cost_per_token")) if kind == "chat" else None,
        )


def _after(cursor: str | None) -> str:
    return "" if cursor is None else str(cursors.read(cursor, str)[0])


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def _price(value: Any) -> float | None:
    return round(float(value) * MILLION, 6) if isinstance(value, int | float) else None
