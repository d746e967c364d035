"""Validators that read a contract as the wire means it: text is text, a number is a number.

Pydantic would also take "12" for a number (so 2^64 and NUL would come in by the back door, as text for a number or
bytes for text), and a list of 100,000 wrong items would become 100,000 errors before anyone could say no.
"""

from __future__ import annotations

import base64
import binascii
from functools import cache
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import CoreSchema, PydanticCustomError, SchemaValidator

_STRICT = frozenset({"int", "float", "bool", "str", "bytes"})
_SEQUENCES = frozenset({"list", "tuple", "set", "frozenset"})
_ONE_INSIDE = ("schema", "items_schema", "keys_schema", "values_schema", "lax_schema", "strict_schema")
_MANY_INSIDE = ("fields", "choices", "definitions", "steps")


@cache
def validator(model: type[BaseModel], *, base64_bytes: bool, first_error: bool) -> SchemaValidator:
    """base64_bytes: bytes stand as base64 text (JSON). first_error: of each list, name only the first bad item."""
    strict = _strict(model.__pydantic_core_schema__, base64_bytes, first_error)
    # Prebuilt validators of the models inside would be the lax ones.
    return SchemaValidator(cast(CoreSchema, strict), _use_prebuilt=False)


def _strict(schema: Any, base64_bytes: bool, first_error: bool) -> Any:
    """A copy of a core schema, strict in its leaves. What has no place in contracts is left as it is."""
    if isinstance(schema, list):
        return [_strict(each, base64_bytes, first_error) for each in schema]
    if isinstance(schema, tuple):  # a choice with its label
        return (_strict(schema[0], base64_bytes, first_error), *schema[1:])
    kind = schema.get("type")
    if kind == "json-or-python":
        return _strict(schema["python_schema"] | _reference(schema), base64_bytes, first_error)
    made = dict(schema)
    for name in _ONE_INSIDE:
        if isinstance(made.get(name), dict):
            made[name] = _strict(made[name], base64_bytes, first_error)
    for name in _MANY_INSIDE:
        inside = made.get(name)
        if isinstance(inside, dict):
            made[name] = {key: _strict(each, base64_bytes, first_error) for key, each in inside.items()}
        elif isinstance(inside, list):
            made[name] = _strict(inside, base64_bytes, first_error)
    if kind in _STRICT:
        made["strict"] = True
    if kind in _SEQUENCES and first_error:
        made["fail_fast"] = True
    if kind == "bytes" and base64_bytes:
        return {"type": "function-before", "function": {"type": "no-info", "function": _from_base64}, "schema": made}
    return made


def _reference(schema: dict[str, Any]) -> dict[str, Any]:
    return {"ref": schema["ref"]} if "ref" in schema else {}


def _from_base64(value: Any) -> Any:
    """Standard or URL-safe, with padding. Anything but text is left for the bytes check to refuse."""
    if not isinstance(value, str):
        return None
    try:
        if "-" in value or "_" in value:
            if "+" in value or "/" in value:
                raise PydanticCustomError("base64", "Both alphabets of base64 in one value")
            return base64.b64decode(value, altchars=b"-_", validate=True)
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise PydanticCustomError("base64", "Not base64 with padding") from None
