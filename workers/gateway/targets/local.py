"""Vectors from the local models' process, straight over HTTP: as bytes, without litellm's 2 ms and lists of floats."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from subjects.contract import Code, Fault
from subjects.gateway import Usage

MAX_CONNECTIONS = 64
CONNECT_LIMIT_S = 2.0


@dataclass(frozen=True)
class LocalVectors:
    """Little-endian float32 bytes in input order, and the hash of the model that made them."""

    vectors: list[bytes]
    usage: Usage
    revision: str


class LocalModels:
    """The process behind LOCAL_MODELS_URL."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
            trust_env=False,  # a proxy from the environment is not for loopback
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def embed(self, model: str, texts: Sequence[str], *, timeout_s: float) -> LocalVectors:
        """Vectors of the texts. Raises Fault(UNAVAILABLE, EXHAUSTED, TIMEOUT, UPSTREAM, NOT_FOUND)."""
        body = {"model": model, "input": list(texts), "encoding_format": "base64"}
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_LIMIT_S, timeout_s))
        try:
            reply = await self._client.post("/v1/embeddings", json=body, timeout=timeout)
        except httpx.ConnectError as error:
            raise Fault(Code.UNAVAILABLE, "the local models do not answer", retry_after_s=1.0) from error
        except httpx.TimeoutException as error:
            raise Fault(Code.TIMEOUT, "the local models did not answer in time") from error
        except httpx.HTTPError as error:
            raise Fault(Code.UPSTREAM, "the local models broke off") from error
        _check(reply.status_code, model)
        try:
            told = reply.json()
            vectors = [base64.b64decode(row["embedding"]) for row in told["data"]]
            usage = Usage(input=int(told["usage"]["prompt_tokens"]))
            return LocalVectors(vectors, usage, str(told["revision"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(Code.UPSTREAM, "the local models gave no vectors") from error


def _check(status: int, model: str) -> None:
    match status:
        case 200:
            return
        case 404:
            raise Fault(Code.NOT_FOUND, f"there is no local model {model!r}")
        case 429:
            raise Fault(Code.EXHAUSTED, "the local models are busy", retry_after_s=1.0)
        case 503:
            raise Fault(Code.UNAVAILABLE, "the local models are still starting", retry_after_s=1.0)
    raise Fault(Code.UPSTREAM, f"the local models answered {status}")
