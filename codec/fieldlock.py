"""Field numbers: committed in schemas/fields.lock.json, appended to by `faas contracts --update`, never used twice.

`{"rag.Query": {"1": "optional string question", "2": "reserved old_name", ...}}`. A field whose type changed, or that
was removed, leaves its number reserved, and what takes its place gets a new one: a reader of the old number then finds
nothing there, instead of something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

from codec.folder import SCHEMAS
from codec.shapes import Field, Map, Message, Repeated, Scalar

COMMITTED = SCHEMAS / "fields.lock.json"
RESERVED = "reserved"
NOT_OURS = range(19_000, 20_000)  # protobuf keeps these for itself

Lock = dict[str, dict[str, str]]


@cache
def committed() -> Lock:
    """Raises FileNotFoundError where it is not installed: numbers made up on the way would be read as other fields."""
    found: Lock = json.loads(COMMITTED.read_text(encoding="utf-8"))
    return found


def declaration(message: Message, field: Field) -> str:
    """A field as the lock knows it: `optional string key`. Free-form JSON is called json, though it is a string."""
    form = field.form
    if isinstance(form, Map):
        return f"map<string, {type_name(form.value)}> {field.name}"
    if isinstance(form, Repeated):
        return f"repeated {type_name(form.item)} {field.name}"
    return f"{'oneof' if message.kind == 'choice' else 'optional'} {type_name(form)} {field.name}"


def type_name(form: Scalar | Message) -> str:
    if isinstance(form, Message):
        return form.name
    return "json" if form.written == "json" else form.type


def numbers(message: Message, lock: Lock) -> dict[str, int]:
    """The number of each field; one that the lock does not have yet gets the number that an update would give it."""
    known = lock.get(message.name, {})
    by_declaration = {text: int(number) for number, text in known.items() if not text.startswith(f"{RESERVED} ")}
    last, found = max(map(int, known), default=0), {}
    for field in message.fields:
        number = by_declaration.get(declaration(message, field))
        if number is None:
            last = NOT_OURS.stop if last + 1 in NOT_OURS else last + 1
            number = last
        found[field.name] = number
    return found


def updated(lock: Lock, messages: Iterable[Message]) -> Lock:
    """The lock with every message's fields. What is no longer declared stays, as reserved."""
    made: Lock = {}
    current = {message.name: message for message in messages}
    for name in sorted(lock.keys() | current.keys()):
        message, entries = current.get(name), {}
        if message is not None:
            given = numbers(message, lock)
            entries = {given[field.name]: declaration(message, field) for field in message.fields}
        for number, text in lock.get(name, {}).items():
            entries.setdefault(int(number), f"{RESERVED} {text.split()[-1]}")
        made[name] = {str(number): entries[number] for number in sorted(entries)}
    return made


def text(lock: Lock) -> str:
    return json.dumps(lock, indent=2, ensure_ascii=False) + "\n"
