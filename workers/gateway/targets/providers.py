"""The adapter to litellm: one upstream hit per call, the truth about how a stream ended, no text of a provider's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from subjects.contract import Code, Fault
from subjects.gateway import Usage
from workers.gateway.targets.faults import as_fault
from workers.gateway.targets.target import Piece, Target, ToolPiece

CLOSE_LIMIT_S = 1.0
ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "LITELLM_MODE": "PRODUCTION"}
ONE_HIT = {"num_retries": 0, "max_retries": 0}  # litellm's own default hits the upstream three times
NOWHERE = "http://127.0.0.1:0"  # nobody can listen there
KEY_PREFIXES = {"bedrock": ("aws",), "sagemaker": ("aws",), "gemini": ("gemini", "google")}


class Providers:
    """litellm, once it is imported."""

    def __init__(self, litellm: Any) -> None:
        self._litellm = litellm

    @classmethod
    async def load(cls) -> Providers:
        """Import litellm in a thread: 4 s and 200 MB, which only this component's process pays."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        litellm = await asyncio.to_thread(_imported)
        await _warmed(litellm)
        return cls(litellm)

    def resolve(self, name: str) -> Target:
        """The target of a model's name. Raises Fault(NOT_FOUND) when the provider is unknown or has no key here."""
        try:
            model, provider, _, _ = self._litellm.get_llm_provider(name)
        except Exception as error:  # litellm raises several unrelated classes for a name that it does not know
            raise Fault(Code.NOT_FOUND, f"there is no model {name!r}: write <provider>/<model>") from error
        full = f"{provider}/{model}"
        missing = self._missing_keys(full, provider)
        if missing is not None:
            raise Fault(Code.NOT_FOUND, f"{full} has no key: set {missing} where the gateway runs")
        return Target(full, provider, full)

    def missing(self, provider: str) -> str | None:
        """What to set for a provider, None when it can be used."""
        return self._missing_keys(f"{provider}/any", provider)

    def priced(self, provider: str) -> list[tuple[str, dict[str, Any]]]:
        """The provider's chat and embedding models by litellm's own table, with what it says of each."""
        return [
            (name.removeprefix(f"{provider}/"), facts)
            for name, facts in self._litellm.model_cost.items()
            if facts.get("litellm_provider") == provider and facts.get("mode") in ("chat", "embedding")
        ]

    def _missing_keys(self, model: str, provider: str) -> str | None:
        """What to set for this provider, None when it is set. A provider that needs no key counts only when its
        address is set: otherwise a caller could make us connect to whatever its default address is."""
        found = self._litellm.validate_environment(model)
        if not found["keys_in_environment"]:
            return " and ".join(found["missing_keys"]) or f"{provider.upper()}_API_KEY"
        prefixes = KEY_PREFIXES.get(provider, (provider.replace("_", ""),))
        if any(name.replace("_", "").lower().startswith(prefixes) for name in os.environ):
            return None
        return f"{provider.upper()}_API_BASE"

    async def stream(self, target: Target, request: dict[str, Any], *, timeout_s: float) -> AsyncGenerator[Piece, None]:
        """The answer's pieces. Closing it closes the upstream.

        Raises Fault; UPSTREAM when the upstream ended without saying why: what came until then is not an answer.
        """
        opened: Any = None
        try:
            opened = await self._litellm.acompletion(
                **request,
                **ONE_HIT,
                model=target.litellm_model,
                api_base=target.api_base,
                api_key=target.api_key,
                stream=True,
                stream_options={"include_usage": True},
                timeout=timeout_s,
                _skip_mcp_handler=True,  # with tools it would import litellm.proxy, and call servers that they name
            )
            async for chunk in opened:
                piece = _piece(chunk)
                if piece is not None:
                    yield piece
            yield _last(opened, target)
        except Fault:
            raise
        except Exception as error:
            raise as_fault(error, target.name) from None  # its text and its chain may hold keys and bodies
        finally:
            if opened is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_LIMIT_S):
                        await opened.aclose()  # without it the upstream goes on generating

    async def embed(
        self, target: Target, texts: Sequence[str], dimensions: int | None, *, timeout_s: float
    ) -> tuple[list[list[float]], Usage]:
        """Vectors in input order. Raises Fault."""
        more = {} if dimensions is None else {"dimensions": dimensions}
        try:
            reply = await self._litellm.aembedding(
                **more,
                **ONE_HIT,
                model=target.litellm_model,
                input=list(texts),
                api_base=target.api_base,
                api_key=target.api_key,
                timeout=timeout_s,
            )
            rows = sorted(reply.data, key=lambda row: int(row["index"]))
            vectors = [[float(value) for value in row["embedding"]] for row in rows]
        except Exception as error:
            raise as_fault(error, target.name) from None
        if len(vectors) != len(texts):
            raise Fault(Code.UPSTREAM, f"{target.name} gave {len(vectors)} vectors for {len(texts)} texts")
        return vectors, usage_of(getattr(reply, "usage", None)) or Usage()

    def cost_usd(self, target: Target, usage: Usage) -> float | None:
        """The price by litellm's own table; None when the model is not in it."""
        details = {"cached_tokens": usage.cache_read, "cache_creation_tokens": usage.cache_write}
        told = self._litellm.Usage(
            prompt_tokens=usage.input + usage.cache_read + usage.cache_write,
            completion_tokens=usage.output + usage.reasoning,
            prompt_tokens_details=details,
            completion_tokens_details={"reasoning_tokens": usage.reasoning},
            cache_creation_input_tokens=usage.cache_write,
            cache_read_input_tokens=usage.cache_read,
        )
        try:
            prompt, completion = self._litellm.cost_per_token(
                model=target.litellm_model, custom_llm_provider=target.provider, usage_object=told
            )
        except Exception:  # litellm raises a bare Exception for a model that it has no price for
            return None
        return float(prompt + completion)


def usage_of(told: Any) -> Usage | None:
    """litellm's usage in exclusive classes: its prompt tokens include the cached, its completion the reasoning ones."""
    if told is None:
        return None
    prompt = getattr(told, "prompt_tokens_details", None)
    completion = getattr(told, "completion_tokens_details", None)
    read, write = _count(prompt, "cached_tokens"), _count(prompt, "cache_creation_tokens")
    reasoning = _count(completion, "reasoning_tokens")
    return Usage(
        input=max(_count(told, "prompt_tokens") - read - write, 0),
        cache_read=read,
        cache_write=write,
        output=max(_count(told, "completion_tokens") - reasoning, 0),
        reasoning=reasoning,
    )


def _count(told: Any, name: str) -> int:
    return int(getattr(told, name, None) or 0)


def _imported() -> Any:
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    return litellm


async def _warmed(litellm: Any) -> None:
    """litellm imports most of itself in its first call, which stops the loop for a second: longer than Valkey's time
    limit, so that the first callers' keys would find it away. Better before anybody is served. Nothing is sent."""
    said = [{"role": "user", "content": "x"}]
    nowhere: dict[str, Any] = {"api_base": NOWHERE, "_skip_mcp_handler": True}
    for way in (nowhere, {"mock_response": "x"}):
        with suppress(Exception):  # the first cannot succeed; what fails in the second, a real call will say better
            opened = await litellm.acompletion(
                **way, **ONE_HIT, model="openai/warm-up", messages=said, api_key="none", stream=True, timeout=1.0
            )
            async for _ in opened:
                pass


def _piece(chunk: Any) -> Piece | None:
    """The text and the tool calls of a chunk; None when it has neither."""
    if not chunk.choices:
        return None
    delta = chunk.choices[0].delta
    tools = tuple(_tool(call) for call in getattr(delta, "tool_calls", None) or ())
    text = getattr(delta, "content", None) or ""
    return Piece(text, tools) if text or tools else None


def _tool(call: Any) -> ToolPiece:
    function = call.function
    return ToolPiece(int(call.index or 0), call.id or "", function.name or "", function.arguments or "")


def _last(opened: Any, target: Target) -> Piece:
    """How it ended. litellm makes a `stop` of its own when the upstream gave no reason: what the upstream said is in
    these two attributes, and its own usage is in its chunks (the one that litellm hands out may be a guess)."""
    reason = opened.received_finish_reason or opened.intermittent_finish_reason
    if not reason:
        raise Fault(Code.UPSTREAM, f"the answer of {target.name} broke off before its end")
    told = next((found for chunk in reversed(opened.chunks) if (found := getattr(chunk, "usage", None))), None)
    return Piece(finish_reason=str(reason), usage=usage_of(told))
