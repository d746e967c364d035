"""The message of a resource route: path parameters, query and body become one message of the contract."""

from __future__ import annotations

from typing import Any, get_args, get_origin
from urllib.parse import parse_qsl

from pydantic import ValidationError

from bridge.exchange import Exchange
from codec import MSGPACK, decode_plain, encode
from codec.messages import refused
from subjects.contract import AnyCall, Code, Fault, FieldError, Model

MAX_QUERY_FIELDS = 256
MAX_QUERY_BYTES = 16 * 1024


def from_query(call: AnyCall, exchange: Exchange) -> Model:
    """GET and DELETE: query names are field names, repeated for lists. Raises Fault(INVALID)."""
    fields = call.input.model_fields
    given: dict[str, Any] = dict(exchange.params)
    for name, value in _pairs(exchange.query):
        if name not in fields:
            raise _bad(name, "no such field")
        if name in exchange.params:
            raise _bad(name, "is given by the path")
        if _is_list(fields[name].annotation):
            given.setdefault(name, []).append(value)
        elif name in given:
            raise _bad(name, "given twice")
        else:
            given[name] = value
    return _message(call, given)


def from_body(call: AnyCall, exchange: Exchange, body: bytes) -> Model:
    """PUT, POST, PATCH: the body with the path's fields; another value for one of these is INVALID."""
    given = decode_plain(body, exchange.content_type, call.input) if body else {}
    if not isinstance(given, dict):
        raise Fault(Code.INVALID, "the body must be an object")
    for name, value in exchange.params.items():
        if name in given and str(given[name]) != value:
            raise _bad(name, "is another value than the path's")
        given[name] = value
    return _message(call, given)


def _message(call: AnyCall, given: dict[str, Any]) -> Model:
    # Text of a path or query may stand for a number here; the worker reads the written message strictly.
    try:
        message: Model = call.input.model_validate(given)
    except ValidationError as error:
        raise refused(error) from error
    decode_plain(encode(message, MSGPACK), MSGPACK)
    return message


def _pairs(query: bytes) -> list[tuple[str, str]]:
    if len(query) > MAX_QUERY_BYTES:
        raise Fault(Code.INVALID, f"the query is over {MAX_QUERY_BYTES} bytes")
    if not query:
        return []
    try:
        return parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError as error:
        raise Fault(Code.INVALID, "the query cannot be read") from error


def _is_list(annotation: Any) -> bool:
    if get_origin(annotation) in (list, set, frozenset, tuple):
        return True
    return any(_is_list(each) for each in get_args(annotation))


def _bad(name: str, message: str) -> Fault:
    return Fault(
        Code.INVALID, "the request does not match its contract", errors=[FieldError(path=name[:200], message=message)]
    )
