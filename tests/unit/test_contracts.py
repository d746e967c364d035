"""Rules that every contract keeps, so that each of them has one meaning in every codec and language."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, JsonValue
from pydantic.fields import FieldInfo

from subjects import registry
from subjects.contract import AnyCall, AnyEvent, EventPayload, Model

KNOWN = registry.load()
CALLS = [pytest.param(call, id=call.name) for call in KNOWN.calls.values()]
EVENTS = [pytest.param(event, id=event.name) for event in KNOWN.events.values()]
SCALARS = (str, int, float, bool, bytes, type(None), datetime, UUID, Decimal)
METHODS = {"GET", "POST", "PUT", "DELETE"}
MAX_TIMEOUT_S, MAX_JOB_TIMEOUT_S = 300, 6 * 3600
IRREGULAR_PAST = {"lost", "sent", "begun", "broken", "built", "left", "met", "put", "run", "set", "shut"}


def faults_of(annotation: Any, where: str, discriminated: bool = False) -> Iterator[str]:
    """What is wrong with a field's type, with its path."""
    if annotation is JsonValue:
        return
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from faults_of(args[0], where, discriminated or any(map(names_its_kind, args[1:])))
    elif origin in (Union, types.UnionType):
        yield from faults_of_union(args, where, discriminated)
    elif origin is dict:
        if not is_text(args[0]):
            yield f"{where}: dict keys must be strings, not {args[0]}"
        yield from faults_of(args[1], f"{where}.*")
    elif origin is list:
        yield from faults_of(args[0], f"{where}[]")
    elif origin is Literal:
        if len({type(value) for value in args}) > 1 or not isinstance(args[0], str | int):
            yield f"{where}: a Literal of one kind, strings or integers"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not issubclass(annotation, Model):
            yield f"{where}: {annotation.__name__} is no subjects.contract.Model"
    elif not (isinstance(annotation, type) and (annotation in SCALARS or issubclass(annotation, StrEnum))):
        yield f"{where}: {annotation} has no fixed form on the wire"


def faults_of_union(args: tuple[Any, ...], where: str, discriminated: bool) -> Iterator[str]:
    bare = [strip(arg) for arg in args]
    if bytes in bare and any(map(is_text, bare)):
        yield f"{where}: bytes | str cannot be told apart in JSON"
    models = [arg for arg in bare if isinstance(arg, type) and issubclass(arg, BaseModel)]
    if len(models) > 1 and not discriminated:
        yield f"{where}: a union of models needs Field(discriminator=...)"
    for arg in args:
        yield from faults_of(arg, where)


def names_its_kind(extra: Any) -> bool:
    return isinstance(extra, FieldInfo) and extra.discriminator is not None


def strip(annotation: Any) -> Any:
    return strip(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def is_text(annotation: Any) -> bool:
    bare = strip(annotation)
    return bare is str or (isinstance(bare, type) and issubclass(bare, StrEnum)) or get_origin(bare) is Literal


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif annotation is not JsonValue:
        for arg in get_args(annotation):
            yield from models_in(arg)


def reachable(roots: list[type[BaseModel]]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    while roots:
        model = roots.pop()
        if model not in found:
            found.append(model)
            for field in model.model_fields.values():
                roots.extend(models_in(field.annotation))
    return found


def models() -> list[type[BaseModel]]:
    roots: list[type[BaseModel]] = [event.payload for event in KNOWN.events.values()]
    for call in KNOWN.calls.values():
        roots += [call.input, call.output, *([call.chunk] if call.chunk else [])]
    return sorted(reachable(roots), key=lambda model: (model.__module__, model.__name__))


def faults_of_model(model: type[BaseModel]) -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        where = f"{model.__name__}.{name}"
        found += faults_of(field.annotation, where, field.discriminator is not None)
        if not field.is_required() and field.default and says_by_absence(field.annotation):
            found.append(
                f"{where}: protobuf says None, and an empty list, by leaving the field out: make it the default"
            )
    return found


def says_by_absence(annotation: Any) -> bool:
    return annotation is JsonValue or get_origin(annotation) in (list, dict) or type(None) in get_args(annotation)


@pytest.mark.parametrize("model", models(), ids=lambda model: f"{model.__module__.split('.')[-1]}.{model.__name__}")
def test_every_field_has_one_form_on_the_wire(model: type[BaseModel]) -> None:
    assert faults_of_model(model) == []
    assert issubclass(model, Model)
    assert model.model_config.get("frozen") is True
    assert model.model_config.get("extra") == "ignore", "unknown fields are ignored: old readers, new writers"
    assert model.model_config.get("allow_inf_nan") is False


def test_the_rules_refuse_what_they_are_for() -> None:
    class One(Model):
        kind: Literal["one"] = "one"

    class Two(Model):
        kind: Literal["two"] = "two"

    class Loose(BaseModel):
        pass

    class Bad(Model):
        a: bytes | str
        b: list[One | Two]
        c: dict[int, str]
        d: Loose
        e: set[str]
        f: Any
        g: int | None = 3
        h: list[str] = ["x"]
        good: Annotated[One | Two, Field(discriminator="kind")]
        fine: dict[str, JsonValue] | None = None

    assert sorted({fault.partition(":")[0] for fault in faults_of_model(Bad)}) == [
        "Bad.a", "Bad.b[]", "Bad.c", "Bad.d", "Bad.e", "Bad.f", "Bad.g", "Bad.h",
    ]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_every_call_has_sane_bounds(call: AnyCall) -> None:
    assert 1 <= call.timeout_s <= MAX_TIMEOUT_S
    assert call.timeout_s <= call.job_timeout_s <= MAX_JOB_TIMEOUT_S
    assert not call.long or call.job, "what answers 202 must make sense as a job"


@pytest.mark.parametrize("call", CALLS)
def test_a_read_changes_nothing_and_is_no_job(call: AnyCall) -> None:
    if re.match(r"(get|list)(_|$)", call.operation):
        assert not call.mutates
        assert not call.job
        assert not call.long


@pytest.mark.parametrize("call", CALLS)
def test_every_further_route_names_fields_of_its_input(call: AnyCall) -> None:
    assert call.public or not call.http
    for route in call.http:
        method, _, path = route.partition(" ")
        assert method in METHODS
        assert path.startswith("/api/v1/")
        assert set(re.findall(r"{(\w+)}", path)) <= set(call.input.model_fields)
        assert method != "GET" or not call.mutates


def test_no_two_calls_share_a_route() -> None:
    routes = [f"POST {call.path}" for call in KNOWN.calls.values() if call.public]
    routes += [re.sub(r"{\w+}", "{}", route) for call in KNOWN.calls.values() for route in call.http]
    assert len(routes) == len(set(routes))


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_a_past_fact_about_an_entity(event: AnyEvent) -> None:
    last = event.occurred.split("_")[-1]
    assert last.endswith("ed") or last in IRREGULAR_PAST, "events are past tense"
    assert issubclass(event.payload, EventPayload)


@pytest.mark.parametrize("call", CALLS)
def test_the_schema_of_every_call_can_be_made(call: AnyCall) -> None:
    for model in (call.input, call.output, call.chunk):
        if model is not None:
            assert model.model_json_schema()["type"] == "object"
