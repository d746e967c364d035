"""One field of a protobuf message to and from its plain value, bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from codec import reading, writing
from codec.formats import MAX_DEPTH, MAX_ITEMS, MAX_KEYS
from codec.shapes import Form, Map, Message, Repeated, Scalar
from subjects.contract import Fault


class Budget:
    """How many items one message may still have."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_ITEMS

    def spend(self, items: int) -> None:
        self.left -= items
        if self.left < 0:
            raise ValueError(f"more than {MAX_ITEMS} items")


class Runtime(Protocol):
    """What reads and writes one message type."""

    def write(self, value: Any) -> bytes: ...

    def read(self, data: bytes, budget: Budget, level: int) -> Any: ...


Runtimes = Callable[[Message], Runtime]  # asked for when it is needed: a message may hold itself
Take = Callable[[Any, Budget, int], Any]  # what the parser gives -> plain; level: of the container that it stands in
Put = Callable[[Any], Any]  # plain -> what the parser's class takes


# -- plain to bytes ---------------------------------------------------------------------------------------------------


def putter(form: Form, runtime: Runtimes) -> Put | None:
    """What turns a plain value into what the parser's class takes; None = nothing has to."""
    if isinstance(form, Repeated):
        each = putter(form.item, runtime)
        return None if each is None else partial(_put_list, each)
    if isinstance(form, Map):
        each = putter(form.value, runtime)
        return None if each is None else partial(_put_map, each)
    if isinstance(form, Message):
        return lambda value: runtime(form).write(value)
    return {"as is": None, "text": _written_text, "json": _written_json}[form.written]


def _put_list(each: Put, values: Any) -> list[Any]:
    return [each(value) for value in values]


def _put_map(each: Put, values: Any) -> dict[str, Any]:
    return {key: each(value) for key, value in values.items()}


def _written_text(value: Any) -> str:
    text: str = value if type(value) is str else writing.as_text(value)
    return text


def _written_json(value: Any) -> str:
    return writing.write_json(value).decode()


# -- bytes to plain ---------------------------------------------------------------------------------------------------


def taker(form: Form, name: str, runtime: Runtimes) -> Take | None:
    """What turns what the parser gives into a plain value; None = nothing has to. name: of the field."""
    if isinstance(form, Repeated):
        return _take_list(form.item, name, runtime)
    if isinstance(form, Map):
        return _take_map(form.value, name, runtime)
    if isinstance(form, Message):
        return lambda value, budget, level: runtime(form).read(value, budget, level)
    if form.written == "json":
        return lambda value, budget, level: _read_json(value, name, budget, level)
    if form.type == "string":
        return _read_text
    return _read_number if form.type == "double" else None


def _take_list(item: Scalar | Message, name: str, runtime: Runtimes) -> Take:
    each = None if isinstance(item, Message) else taker(item, name, runtime)

    def messages(values: Any, budget: Budget, level: int) -> list[Any]:
        budget.spend(len(values))
        if level >= MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")
        assert isinstance(item, Message)
        read = runtime(item).read
        return [read(value, budget, level + 1) for value in values]

    def plain(values: Any, budget: Budget, level: int) -> list[Any]:
        budget.spend(len(values))
        if level >= MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")
        if each is None:
            return list(values)
        return [each(value, budget, level + 1) for value in values]

    def numbers(values: Any, budget: Budget, level: int) -> list[Any]:
        budget.spend(len(values))
        found = list(values)
        if not math.isfinite(sum(found)) and not all(map(math.isfinite, found)):  # finite ones may sum up to infinity
            raise ValueError("NaN or an infinity")
        return found

    if isinstance(item, Message):
        return messages
    return numbers if each is _read_number else plain


def _take_map(value: Scalar | Message, name: str, runtime: Runtimes) -> Take:
    each = taker(value, name, runtime)

    def plain(values: Any, budget: Budget, level: int) -> dict[str, Any]:
        budget.spend(len(values))
        if len(values) > MAX_KEYS:
            raise ValueError(f"more than {MAX_KEYS} keys in one map")
        if level >= MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")
        found = {}
        for key, inside in values.items():
            _read_text(key, budget, level)
            found[key] = inside if each is None else each(inside, budget, level + 1)
        return found

    return plain


def _read_text(value: str, _budget: Budget, _level: int) -> str:
    if "\0" in value:
        raise ValueError("a NUL character")
    return value


def _read_number(value: float, _budget: Budget, _level: int) -> float:
    if not math.isfinite(value):
        raise ValueError("NaN or an infinity")
    return value


def _read_json(value: str, name: str, budget: Budget, level: int) -> Any:
    data = value.encode()
    try:
        found = reading.parse_json(data, MAX_DEPTH - level)
    except Fault as fault:
        raise ValueError(f"{name}: {fault.detail}") from fault
    marks = data.count(b"[") + data.count(b"{") + data.count(b",")
    # Marks are at least as many as items. Text may be full of them: then what was built is counted.
    budget.spend(marks if marks <= budget.left else reading.check_plain(found))
    return found
