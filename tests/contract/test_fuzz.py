"""Whatever is sent to a route: never a 500, and every answer is one that the OpenAPI document describes.

`make test` sends a few requests to each operation, the same each time; `make fuzz` many (FUZZ_EXAMPLES), found anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from typing import Any

import hypothesis
import msgpack  # type: ignore[import-untyped]
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from cli.tokens import sign
from runtime.settings import Settings
from tests.contract.fixtures import new_tenant

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FEW = 2
SLOW_S = 5.0
CHECKS: list[CheckFunction] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.missing_required_header,
    checks.unsupported_method,
]
MAY_FAIL = {502, 503, 504}
"""Said of a provider or a part that is away; not that we did not know what to do."""


@schemathesis.serializer("application/msgpack")
def to_msgpack(ctx: Any, value: Any) -> bytes:
    try:
        return bytes(msgpack.packb(value, use_bin_type=True))
    except (ValueError, OverflowError, TypeError):
        return b"\xc1"


@schemathesis.serializer("application/x-protobuf")
def to_protobuf(ctx: Any, value: Any) -> bytes:
    return json.dumps(value, default=str).encode("utf-8", "replace")[:1000]


@schemathesis.deserializer("application/msgpack")
def from_msgpack(ctx: Any, response: Any) -> Any:
    return msgpack.unpackb(response.content)


@schemathesis.deserializer("application/x-protobuf", "text/event-stream", "text/html")
def as_it_is(ctx: Any, response: Any) -> Any:
    return response.content.decode("latin-1")


def fuzz(url: str, token: str) -> list[str]:
    """What was wrong, by operation."""
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    schema = schemathesis.openapi.from_dict(document)
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    wrong: dict[str, str] = {}
    counts: Counter[int] = Counter()
    took: dict[str, float] = {}
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation, began = found.ok(), time.monotonic()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                one(url, session, operation, mode, counts)
            except hypothesis.errors.Unsatisfiable:
                continue  # nothing that it takes could be wrong
            except (Exception, BaseExceptionGroup) as error:
                wrong[f"{operation.label} {mode.value}"] = f"{type(error).__name__}: {error}"[:1500]
        took[operation.label] = time.monotonic() - began
    slowest = sorted(took.items(), key=lambda each: -each[1])[:5]
    print("slowest:", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest))
    print("answers:", dict(sorted(counts.items())))
    return [f"{name}\n{why}" for name, why in wrong.items()]


def one(url: str, session: requests.Session, operation: Any, mode: GenerationMode, counts: Counter[int]) -> None:
    few = EXAMPLES == 0

    @hypothesis.settings(
        max_examples=FEW if few else EXAMPLES, derandomize=few, database=None, deadline=None, print_blob=not few,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate] if few else [Phase.generate, Phase.shrink],
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        began = time.monotonic()
        case.headers = {**(case.headers or {}), "Request-Timeout": "4"}
        case.headers.pop("X-Tenant-ID", None)
        if "wait" in str(case.headers.get("Prefer", "")):  # it would wait as long as it says
            case.headers["Prefer"] = "respond-async, wait=0.2"
        response = case.call(base_url=url, session=session, timeout=20)
        counts[response.status_code] += 1
        assert time.monotonic() - began < SLOW_S, "too slow"
        case.validate_response(response, checks=CHECKS)
        if response.status_code not in MAY_FAIL:
            case.validate_response(response, checks=[not_a_server_error])

    send()


@pytest.mark.timeout(3600 if EXAMPLES else 120)
async def test_every_answer_is_one_that_is_described(bridge_url: str, settings: Settings) -> None:
    wrong = await asyncio.to_thread(fuzz, bridge_url, sign(settings, new_tenant()))
    assert not wrong, "\n\n".join(wrong)
