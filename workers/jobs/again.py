"""What it takes to send a message again: its contract, its headers, and changes to what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import codec
from codec import headers as names
from codec.formats import content_type_of
from runtime import tracing
from runtime.identity import new_id
from subjects import registry
from subjects.contract import Code, Fault, FieldError, Model

# Of the message that was: its deadline has passed, its caller's inbox is gone, its trace is another one.
LEFT_BEHIND = frozenset({names.DEADLINE, names.REPLY_TO, names.TRACEPARENT, names.TRACESTATE})
OF_THE_BROKER, OF_THE_LETTER = "nats-", "dead-letter-"
MAX_PARTS = 16


@dataclass(frozen=True)
class Contract:
    """What a message of JOBS or DLQ says by its component and operation. scope None: nobody's leave is needed."""

    model: type[Model]
    kind: Literal["job", "event"]
    scope: str | None
    sent_by_job: bool = True


def contract_of(component: str, operation: str) -> Contract | None:
    """None: no operation and no subscription has this name."""
    known = registry.load()
    call = known.calls.get(f"{component}.{operation}")
    if call is not None:
        return Contract(call.input, "job", call.scope) if call.job else None
    source, _, occurred = operation.partition("-")
    event = known.events.get(f"{source}.{occurred}")
    if event is None:
        return None
    return Contract(event.payload, "event", None, any(each.job for each in known.of(component)))


def headers_again(given: Mapping[str, str]) -> dict[str, str]:
    """The message's own identity, with a request id and a trace of its own, which names the one that was."""
    kept = {
        name: value
        for name, value in given.items()
        if not name.lower().startswith((OF_THE_BROKER, OF_THE_LETTER))
        and name not in LEFT_BEHIND
        and name.isascii()
        and name.isprintable()
    }
    kept[names.REQUEST_ID] = new_id()
    kept[names.TRACEPARENT] = tracing.root()
    was = tracing.valid_traceparent(given.get(names.TRACEPARENT))
    if was is not None:
        kept[names.ORIGINAL_TRACEPARENT] = was
    return kept


def changed(model: type[Model], data: bytes, content_type: str | None, changes: Mapping[str, Any]) -> Model:
    """The message with these values at these paths, checked against its contract.

    Raises Fault(INVALID) that names the path: of no field, through something that has no parts, or a value that the
    contract refuses.
    """
    kind = content_type_of(content_type)
    if kind not in (codec.MSGPACK, codec.JSON):
        data, kind = codec.encode(codec.decode(data, model, kind), codec.MSGPACK), codec.MSGPACK
    value = codec.decode_plain(data, kind)
    for path, new in changes.items():
        _put(value, path, new)
    message = codec.decode(codec.encode_plain(value, kind), model, kind)
    said = message.model_dump()
    for path in changes:
        _look(said, path)
    return message


def body_of(message: Model) -> tuple[bytes, dict[str, str]]:
    """A changed message as it is sent: its bytes, and the headers that tell of them."""
    return codec.encode(message), {names.CONTENT_TYPE: codec.MSGPACK, names.BODY_DIGEST: codec.digest(message)}


def _put(value: Any, path: str, new: Any) -> None:
    *inner, last = _parts(path)
    for part in inner:
        if isinstance(value, dict):
            value = value.setdefault(part, {})
        else:
            value = _item(value, part, path)
    if isinstance(value, dict):
        value[last] = new
    else:
        _item(value, last, path)
        value[int(last)] = new


def _look(value: Any, path: str) -> None:
    for part in _parts(path):
        if isinstance(value, dict):
            if part not in value:
                raise _bad(path, "the message has no such field")
            value = value[part]
        else:
            value = _item(value, part, path)


def _item(value: Any, part: str, path: str) -> Any:
    if not isinstance(value, list):
        raise _bad(path, f"what stands before {part} has no parts")
    if not (part.isascii() and part.isdecimal() and len(part) < 7 and int(part) < len(value)):
        raise _bad(path, f"the list has {len(value)} items, the first is 0")
    return value[int(part)]


def _parts(path: str) -> list[str]:
    parts = path.split(".")
    if len(parts) > MAX_PARTS or not all(parts):
        raise _bad(path, f"a path is 1 to {MAX_PARTS} names with dots between them")
    return parts


def _bad(path: str, message: str) -> Fault:
    shown = path[:200]
    return Fault(Code.INVALID, f"cannot set {shown}: {message}", errors=[FieldError(path=shown, message=message)])
