"""The message of a resource route: path parameters, query and body become one message of the contract.

A query is the JSON object that a body would be: names are field names; a number or true/false is written as JSON writes
it; a list repeats its name; whatever else (an object, a list of lists, free-form JSON) is JSON text.
"""

from __future__ import annotations

import re
import types
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import JsonValue

from bridge.exchange import Exchange
from bridge.table import unescaped
from codec import JSON, MSGPACK, decode_plain, encode_plain
from subjects.contract import AnyCall, Code, Fault, FieldError, Model

MAX_QUERY_FIELDS = 256
MAX_QUERY_BYTES = 16 * 1024

TEXT, INTEGER, NUMBER, BOOLEAN, ANYTHING = "text", "integer", "number", "boolean", "json"
SCALARS: dict[Any, str] = {int: INTEGER, float: NUMBER, bool: BOOLEAN}
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})\Z")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?\Z")


def from_query(call: AnyCall, exchange: Exchange) -> tuple[bytes, str]:
    """GET and DELETE: the message's bytes and their format. Raises Fault(INVALID)."""
    model: type[Model] = call.input
    fields = model.model_fields
    given: dict[str, Any] = {name: value_of(model, name, text) for name, text in exchange.params.items()}
    for name, text in _pairs(exchange.query):
        if name not in fields:
            raise _bad(name, "no such field")
        if name in exchange.params:
            raise _bad(name, "is given by the path")
        if kind_of(model, name)[1]:
            given.setdefault(name, []).append(value_of(model, name, text))
        elif name in given:
            raise _bad(name, "given twice")
        else:
            given[name] = value_of(model, name, text)
    return encode_plain(given, JSON), JSON


def from_body(call: AnyCall, exchange: Exchange, body: bytes) -> tuple[bytes, str]:
    """PUT, POST: the body with the path's fields; another value for one of these is INVALID."""
    if exchange.query:
        raise Fault(Code.INVALID, "this route takes no query: the body is the message")
    content_type = exchange.content_type
    model: type[Model] = call.input
    if not exchange.params:
        return body or encode_plain({}, content_type, model), content_type
    given = decode_plain(body, content_type, model) if body else {}
    if not isinstance(given, dict):
        raise Fault(Code.INVALID, "the body must be an object")
    for name, text in exchange.params.items():
        value = value_of(model, name, text)
        if name in given and given[name] != value:
            raise _bad(name, "is another value than the path's")
        given[name] = value
    written = JSON if content_type == JSON else MSGPACK
    return encode_plain(given, written), written


def value_of(model: type[Model], name: str, text: str) -> Any:
    """What a text in a path or query stands for; the text itself where it stands for nothing, for the worker to
    refuse by the field's name."""
    kind, _ = kind_of(model, name)
    if kind == INTEGER and _WHOLE.match(text):
        return int(text)
    if kind == NUMBER and _DECIMAL.match(text):
        return float(text)
    if kind == BOOLEAN and text in ("true", "false"):
        return text == "true"
    if kind == ANYTHING:
        try:
            return decode_plain(text.encode(), JSON)
        except Fault as fault:
            raise _bad(name, "must be JSON text") from fault
    return text


@cache  # contracts are finite, so it is
def kind_of(model: type[Model], name: str) -> tuple[str, bool]:
    """How a field is written in a query, and whether it is a list, which repeats its name."""
    annotation = _bare(model.model_fields[name].annotation)
    if get_origin(annotation) is list:
        inside = _kind(_bare(get_args(annotation)[0]))
        return (ANYTHING, False) if inside == ANYTHING else (inside, True)
    return _kind(annotation), False


def _kind(annotation: Any) -> str:
    if annotation is JsonValue or get_origin(annotation) in (list, dict, Union, types.UnionType):
        return ANYTHING
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return ANYTHING
    return SCALARS.get(annotation, TEXT)


def _bare(annotation: Any) -> Any:
    """Without its limits and without None: what is absent is not written."""
    if annotation is JsonValue:
        return annotation
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bare(args[0])
    if origin in (Union, types.UnionType):
        some = [each for each in args if each is not type(None)]
        return _bare(some[0]) if len(some) == 1 else annotation
    return annotation


def _pairs(query: bytes) -> list[tuple[str, str]]:
    """Names and values, decoded once; `+` is a space, as forms write it. Raises Fault(INVALID)."""
    if len(query) > MAX_QUERY_BYTES:
        raise Fault(Code.INVALID, f"the query is over {MAX_QUERY_BYTES} bytes")
    if not query:
        return []
    pairs = [pair.partition(b"=") for pair in query.split(b"&") if pair]
    if len(pairs) > MAX_QUERY_FIELDS:
        raise Fault(Code.INVALID, f"the query has more than {MAX_QUERY_FIELDS} fields")
    try:
        return [(unescaped(name.replace(b"+", b" ")), unescaped(value.replace(b"+", b" "))) for name, _, value in pairs]
    except ValueError as error:
        raise Fault(Code.INVALID, "the query cannot be read: percent-encode UTF-8") from error


def _bad(name: str, message: str) -> Fault:
    return Fault(
        Code.INVALID, "the request does not match its contract", errors=[FieldError(path=name[:200], message=message)]
    )
