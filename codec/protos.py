"""The contracts as .proto files: one for each component and one for what they share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from pydantic import BaseModel

from codec import fieldlock
from codec.folder import SCHEMAS
from codec.problem import Problem
from codec.shapes import Field, Map, Message, Repeated, Scalar, inside, message_of, reachable
from subjects import registry
from subjects.contract import Empty
from subjects.jobs import Progress, Submitted

COMMITTED = SCHEMAS / "proto"
PACKAGE = "motadata.faas.{component}.v1"
FILE = "faas_{component}.proto"
OF_THE_WIRE: tuple[type[BaseModel], ...] = (Problem, Submitted, Progress, Empty)  # said by the platform itself
_INDENT = "  "


def messages(known: registry.Registry | None = None) -> dict[str, Message]:
    """Every message type of the platform, by name."""
    known = known or registry.load()
    models: list[type[BaseModel]] = [*OF_THE_WIRE, *(event.payload for event in known.events.values())]
    for call in known.calls.values():
        models += [call.input, call.output, *([call.chunk] if call.chunk else [])]
    return reachable(models)


def full_name(message: Message) -> str:
    """`motadata.faas.rag.v1.Answer`."""
    component, _, rest = message.name.partition(".")
    return f"{PACKAGE.format(component=component)}.{rest}"


def named(model: type[BaseModel]) -> str:
    """The same, of a model."""
    return full_name(message_of(model))


def files(known: registry.Registry | None = None, lock: fieldlock.Lock | None = None) -> dict[str, str]:
    """The text of each .proto file by its name."""
    known = known or registry.load()
    lock = fieldlock.committed() if lock is None else lock
    found = messages(known)
    components = sorted({name.partition(".")[0] for name in found})
    return {FILE.format(component=each): _file(each, known, found, lock) for each in components}


def _file(component: str, known: registry.Registry, found: dict[str, Message], lock: fieldlock.Lock) -> str:
    own = {name: message for name, message in found.items() if name.startswith(f"{component}.")}
    used = {each.name.partition(".")[0] for message in own.values() for each in inside(message)} - {component}
    lines = [
        "// Written by `faas contracts --update` from subjects/; not to be edited.",
        *_spoken(component, known),
        "",
        'syntax = "proto3";',
        "",
        f"package {PACKAGE.format(component=component)};",
        "",
        *(f'import "{FILE.format(component=each)}";' for each in sorted(used)),
        *([""] if used else []),
    ]
    for name, message in own.items():
        if name.count(".") == 1:
            lines += [*_message(message, own, lock, 0), ""]
    return "\n".join(lines)


def _spoken(component: str, known: registry.Registry) -> Iterator[str]:
    """Which message is said where."""
    for call in known.of(component):
        chunk = f", in pieces of {call.chunk.__name__}" if call.chunk else ""
        told = f": {call.summary}" if call.summary else ""
        yield f"//   {call.name} {call.input.__name__} -> {call.output.__name__}{chunk}{told}"
    for event in known.events.values():
        if event.component == component:
            yield f"//   event {event.name} {event.payload.__name__}"


def _message(message: Message, own: dict[str, Message], lock: fieldlock.Lock, depth: int) -> Iterator[str]:
    indent = _INDENT * depth
    yield from _comment(message.doc, indent)
    yield f"{indent}message {message.name.rpartition('.')[2]} {{"
    for name, nested in own.items():
        if name.rpartition(".")[0] == message.name:
            yield from _message(nested, own, lock, depth + 1)
    yield from _reserved(message, lock, indent + _INDENT)
    given, choice = fieldlock.numbers(message, lock), message.kind == "choice"
    if choice:
        yield f"{indent}{_INDENT}oneof kind {{"
    inner = indent + _INDENT * (2 if choice else 1)
    for field in message.fields:
        yield from _comment(field.doc + _about(field), inner)
        yield f"{inner}{_declared(field, choice)} {field.name} = {given[field.name]};"
    if choice:
        yield f"{indent}{_INDENT}}}"
    yield f"{indent}}}"


def _reserved(message: Message, lock: fieldlock.Lock, indent: str) -> Iterator[str]:
    current = {field.name for field in message.fields}
    gone = {
        number: text.split()[-1]
        for number, text in lock.get(message.name, {}).items()
        if text.startswith(f"{fieldlock.RESERVED} ")
    }
    if gone:
        yield f"{indent}reserved {', '.join(gone)};"
    names = sorted(set(gone.values()) - current)
    if names:
        quoted = ", ".join(f'"{name}"' for name in names)
        yield f"{indent}reserved {quoted};"


def _declared(field: Field, choice: bool) -> str:
    form = field.form
    if isinstance(form, Map):
        return f"map<string, {_type(form.value)}>"
    if isinstance(form, Repeated):
        return f"repeated {_type(form.item)}"
    return f"optional {_type(form)}" if isinstance(form, Scalar) and not choice else _type(form)


def _type(form: Scalar | Message) -> str:
    return f".{full_name(form)}" if isinstance(form, Message) else form.type


def _about(field: Field) -> str:
    form = field.form.item if isinstance(field.form, Repeated) else field.form
    form = form.value if isinstance(form, Map) else form
    return " (JSON text)" if isinstance(form, Scalar) and form.written == "json" else ""


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in inspect.cleandoc(text).splitlines():
        yield f"{indent}// {re.sub('[^ -~]', '?', line)}".rstrip()
