"""gateway: every model behind one door."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from subjects.contract import Call, Code, Event, EventPayload, Model

MAX_INPUTS = 64
MAX_TEXT = 400_000

Capability = Literal["tools", "images", "json_schema", "reasoning"]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class TextPart(Model):
    type: Literal["text"] = "text"
    text: Text


class ImagePart(Model):
    type: Literal["image"] = "image"
    file_id: str | None = None
    url: str | None = Field(None, description="a data: URL; others are refused")


class FilePart(Model):
    type: Literal["file"] = "file"
    file_id: str


Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]


class ToolCall(Model):
    id: str
    name: str
    arguments: str = Field(description="JSON text, as the model wrote it")


class Message(Model):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text | list[Part] = ""
    name: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None


class CachePolicy(Model):
    mode: Literal["off", "exact", "semantic"] = "off"
    ttl_s: int = Field(300, ge=1, le=30 * 24 * 3600)


class Generate(Model):
    """Exactly one of prompt and messages."""

    prompt: Text | None = None
    messages: list[Message] = Field(default=[], max_length=1000)
    model: str | None = Field(None, max_length=200)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    stop: list[str] = Field(default=[], max_length=8)
    tools: list[dict[str, JsonValue]] = Field(default=[], max_length=128)
    tool_choice: JsonValue = None
    response_format: dict[str, JsonValue] | None = None
    seed: int | None = None
    fallbacks: list[str] = Field(default=[], max_length=8)
    cache: CachePolicy = CachePolicy()
    metadata: dict[str, str] = Field(default={}, max_length=32)

    @model_validator(mode="after")
    def _one_input(self) -> Generate:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give exactly one of prompt and messages")
        return self


class Usage(Model):
    """Tokens in exclusive classes: their sum is what was processed."""

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0


class Attempt(Model):
    """One try at one target. code is absent when it succeeded."""

    model: str
    code: str | None = None
    latency_ms: float = 0


class Generation(Model):
    id: str
    model: str
    provider: str
    message: Message
    finish_reason: str
    usage: Usage
    cost_usd: float | None = Field(None, description="absent = the price is unknown")
    cached: bool = False
    attempts: list[Attempt] = []
    latency_ms: float = 0
    ttft_ms: float | None = None


class GenerationChunk(Model):
    """A piece of the answer's text, or of a tool call."""

    text: str = ""
    tool_calls: list[ToolCall] = []


class Embed(Model):
    input: list[Text] | Text = Field(description="one text or up to 64")
    model: str | None = Field(None, max_length=200)
    dimensions: int | None = Field(None, ge=1, le=8192)
    encoding: Literal["float", "f32"] = "float"

    @model_validator(mode="after")
    def _some_input(self) -> Embed:
        if isinstance(self.input, list) and not 1 <= len(self.input) <= MAX_INPUTS:
            raise ValueError(f"input holds 1 to {MAX_INPUTS} texts")
        return self


class Embeddings(Model):
    """embeddings for encoding float; vectors (little-endian float32, one value a text) for f32; in input order."""

    model: str
    dimensions: int
    embeddings: list[list[float]] = []
    vectors: list[bytes] = []
    usage: Usage = Usage()
    cost_usd: float | None = None
    revision: str = Field("", description="hash of the embedding model's files; vectors of two revisions do not mix")


class ModelInfo(Model):
    """A model as it can be asked for. Limits are in tokens, prices in USD for a million tokens; absent = not known."""

    name: str = Field(description="what a message's `model` may say: <provider>/<model>")
    provider: str
    kind: Literal["chat", "embedding"]
    default: bool = Field(description="what answers when a message names no model")
    local: bool = Field(description="runs on this machine and costs nothing")
    capabilities: list[Capability] = []
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    dimensions: int | None = None
    input_usd_per_million: float | None = None
    output_usd_per_million: float | None = None


class ListModels(Model):
    provider: str | None = Field(None, max_length=64)
    kind: Literal["chat", "embedding"] | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=512)


class ModelList(Model):
    items: list[ModelInfo]
    next_cursor: str | None = None


class Provider(Model):
    """A provider that the platform knows by name. missing: the environment that the gateway would need for it."""

    name: str
    configured: bool
    local: bool
    missing: str | None = None


class ListProviders(Model):
    configured: bool | None = Field(None, description="only those that are, or are not")
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=512)


class ProviderList(Model):
    items: list[Provider]
    next_cursor: str | None = None


class Completed(EventPayload):
    """entity_id is the generation's id."""

    model: str
    provider: str
    usage: Usage
    cost_usd: float | None = None
    latency_ms: float = 0
    ttft_ms: float | None = None
    cached: bool = False
    status: str = "completed"
    metadata: dict[str, str] = {}


MODEL_FAULTS = (Code.NOT_FOUND, Code.UPSTREAM)  # an unknown or keyless model; a provider that failed

GENERATE = Call(
    "gateway", "generate", Generate, Generation, chunk=GenerationChunk, timeout_s=120, mutates=True,
    summary="Answer a prompt or a conversation with any configured model", raises=MODEL_FAULTS,
    example={"prompt": "Say hello in French.", "max_tokens": 20},
    example_reply={
        "id": "gen-5f1c", "model": "local/smollm2", "provider": "local",
        "message": {"role": "assistant", "content": "Bonjour!", "name": None, "tool_calls": [], "tool_call_id": None},
        "finish_reason": "stop",
        "usage": {"input": 12, "cache_read": 0, "cache_write": 0, "output": 4, "reasoning": 0},
        "cost_usd": 0.0, "cached": False,
        "attempts": [{"model": "local/smollm2", "code": None, "latency_ms": 180.0}],
        "latency_ms": 181.2, "ttft_ms": 95.0,
    },
)  # fmt: skip
EMBED = Call(
    "gateway", "embed", Embed, Embeddings, timeout_s=60, summary="Turn texts into vectors", raises=MODEL_FAULTS,
    example={"input": ["The moon is far.", "Mars is farther."]},
    example_reply={
        "model": "local/minilm", "dimensions": 3, "embeddings": [[0.1, -0.2, 0.3], [0.2, 0.1, -0.4]], "vectors": [],
        "usage": {"input": 10, "cache_read": 0, "cache_write": 0, "output": 0, "reasoning": 0}, "cost_usd": 0.0,
        "revision": "5f1c0",
    },
)  # fmt: skip
LIST_MODELS = Call(
    "gateway", "list_models", ListModels, ModelList, timeout_s=10, job=False, http=("GET /api/v1/gateway/models",),
    summary="The models that can be asked here, with their limits and prices", raises=(), example={"kind": "chat"},
    example_reply={
        "items": [{
            "name": "local/smollm2", "provider": "local", "kind": "chat", "default": True, "local": True,
            "capabilities": ["json_schema"], "max_input_tokens": 4096, "max_output_tokens": None, "dimensions": None,
            "input_usd_per_million": 0.0, "output_usd_per_million": 0.0,
        }],
        "next_cursor": None,
    },
)  # fmt: skip
LIST_PROVIDERS = Call(
    "gateway", "list_providers", ListProviders, ProviderList, timeout_s=10, job=False,
    http=("GET /api/v1/gateway/providers",), summary="The providers, and what each still needs to be used here",
    raises=(), example={"configured": False},
    example_reply={
        "items": [{"name": "openai", "configured": False, "local": False, "missing": "OPENAI_API_KEY"}],
        "next_cursor": None,
    },
)  # fmt: skip

COMPLETED = Event("gateway", "completed", Completed)
FAILED = Event("gateway", "failed", Completed)
