"""Finds every contract in this package; refuses duplicates and bad names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any

import subjects
from subjects import grammar
from subjects.contract import Call, Event, Model

VOCABULARY = {"contract", "grammar", "registry"}


class Registry:
    """Calls and events by name (`component.operation`)."""

    def __init__(self, calls: Iterable[Call[Any, Any]], events: Iterable[Event[Any]]) -> None:
        self.calls: dict[str, Call[Any, Any]] = {}
        self.events: dict[str, Event[Any]] = {}
        for call in calls:
            _check(call.name, (call.component, call.operation), self.calls)
            self.calls[call.name] = call
        for event in events:
            _check(event.name, (event.component, event.occurred), self.events)
            self.events[event.name] = event

    @property
    def components(self) -> list[str]:
        return sorted({call.component for call in self.calls.values()})

    def said_at(self, address: grammar.Address) -> type[Model] | None:
        """The model of what is said at a subject, where the subject tells it: a request, a job, an event, a dead letter
        (which is the message that died)."""
        name = f"{address.component}.{address.operation}"
        if address.kind == grammar.EVENT:
            return self.events[name].payload if name in self.events else None
        if address.kind in (grammar.REQUEST, grammar.JOB, grammar.DEAD_LETTER):
            return self.calls[name].input if name in self.calls else None
        return None

    def of(self, component: str) -> list[Call[Any, Any]]:
        return [call for call in self.calls.values() if call.component == component]


def _check(name: str, tokens: tuple[str, ...], seen: dict[str, Any]) -> None:
    if not all(map(grammar.is_token, tokens)):
        raise ValueError(f"{name}: each part must match {grammar.TOKEN}")
    if name in seen:
        raise ValueError(f"{name}: two contracts have this name")


@cache
def load() -> Registry:
    """Import every contract file of this package, in alphabetical order, and collect its constants."""
    calls: dict[int, Call[Any, Any]] = {}
    events: dict[int, Event[Any]] = {}
    for found in sorted(pkgutil.iter_modules(subjects.__path__), key=lambda m: m.name):
        if found.name in VOCABULARY:
            continue
        module = importlib.import_module(f"subjects.{found.name}")
        for value in vars(module).values():
            # Keyed by identity: a file may import another component's constant, which is then found twice.
            if isinstance(value, Call):
                calls[id(value)] = value
            elif isinstance(value, Event):
                events[id(value)] = value
    return Registry(calls.values(), events.values())
