"""Which models there are: names, defaults, and what to set when one is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import lru_cache

from runtime.settings import Settings
from subjects.contract import Code, Fault
from workers.gateway.targets.target import LOCAL, Target

LOCAL_CHAT = frozenset({"smollm2"})
LOCAL_EMBEDDING = frozenset({"minilm"})
LOCAL_KEY = "local"  # the address is loopback and asks for no key, but the client insists on one
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]*(/[A-Za-z0-9][A-Za-z0-9._:@+-]*)*", re.ASCII)
KEPT_NAMES = 256

SMALL_CHAT = (
    ("OPENAI_API_KEY", "openai/gpt-5-mini"),
    ("ANTHROPIC_API_KEY", "anthropic/claude-haiku-4-5"),
    ("GEMINI_API_KEY", "gemini/gemini-2.5-flash"),
    ("MISTRAL_API_KEY", "mistral/mistral-small-latest"),
)
"""The first whose key is set answers when LLM_DEFAULT_MODEL is not set."""


class Models:
    """Names to targets. resolve is the providers' half of it."""

    def __init__(self, settings: Settings, resolve: Callable[[str], Target]) -> None:
        self._local_url = settings.local_models_url.rstrip("/")
        self.default_chat = _default_chat(settings)
        self.default_embedding = settings.embed_default_model
        self._resolve = lru_cache(KEPT_NAMES)(resolve)  # keys come with the process, so they do not change under it

    @property
    def has_local(self) -> bool:
        """Whether the local models run beside this process."""
        return bool(self._local_url)

    def chat(self, name: str | None) -> Target:
        """The target for a model's name; None is the default. Raises Fault(NOT_FOUND, INVALID)."""
        return self._target(name or self.default_chat, LOCAL_CHAT)

    def embedding(self, name: str | None) -> Target:
        """The same for vectors."""
        return self._target(name or self.default_embedding, LOCAL_EMBEDDING)

    def _target(self, name: str, local: frozenset[str]) -> Target:
        if not NAME.fullmatch(name):
            raise Fault(Code.INVALID, "a model's name is <provider>/<model>, as in local/smollm2")
        provider, _, model = name.partition("/")
        if provider == LOCAL:
            return self._local(name, model, local)
        try:
            return self._resolve(name)
        except Fault as fault:
            raise Fault(fault.code, f"{fault.detail}; without a key there is {_listed(local)}") from fault

    def _local(self, name: str, model: str, known: frozenset[str]) -> Target:
        if model not in known:
            raise Fault(Code.NOT_FOUND, f"there is no local model {model!r} for this, only {_listed(known)}")
        if not self._local_url:
            raise Fault(
                Code.NOT_FOUND,
                f"{name} does not run here: start it with `faas up`, or set LOCAL_MODELS_URL or a provider's key",
            )
        return Target(name, LOCAL, f"openai/{model}", f"{self._local_url}/v1", LOCAL_KEY)


def _default_chat(settings: Settings) -> str:
    if "llm_default_model" not in settings.model_fields_set:
        for key, model in SMALL_CHAT:
            if os.environ.get(key):
                return model
    return settings.llm_default_model


def _listed(local: frozenset[str]) -> str:
    return ", ".join(f"{LOCAL}/{model}" for model in sorted(local))
