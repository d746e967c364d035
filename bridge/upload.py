"""POST /api/v1/ingestion/upload: a file streamed into the object store, then made known to ingestion."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from bridge.context import Bridge, location
from bridge.exchange import Exchange
from bridge.multipart import Form
from codec import decode_plain, encode
from codec import headers as h
from codec.formats import JSON, negotiate
from codec.messages import refused
from runtime.identity import Identity
from runtime.jobs import checked_key
from store.objects import Stored
from subjects import ingestion
from subjects.contract import Code, Fault, FieldError

SCOPE = "ingestion.upload"
MAX_FILE_BYTES = 200 * 1024 * 1024
MAX_FORM_BYTES = MAX_FILE_BYTES + 1024 * 1024  # with its fields and boundaries
UPLOAD_WITHIN_S = 900.0
IDLE_S = 30.0  # without a byte of the body
FIELDS = frozenset({"collection", "source_id", "metadata"})
MAX_NAME_CHARS = 255


class Upload:
    """Holds about 1 MiB of a file at a time."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def __call__(self, exchange: Exchange) -> None:
        """Answers 202 with Uploaded. The same Idempotency-Key and file: the same answer; another file: CONFLICT.

        Raises Fault: FORBIDDEN, INVALID, TOO_LARGE, CONFLICT and those of the object store; SlowBody, Gone.
        """
        identity = exchange.who()
        if not identity.allows(SCOPE):
            raise Fault(Code.FORBIDDEN, f"the token needs the scope {SCOPE}")
        exchange.declared_length(MAX_FORM_BYTES)
        key = exchange.header(h.IDEMPOTENCY_KEY)
        file_id = _file_id(identity.tenant, None if key is None else checked_key(key))
        async with aclosing(exchange.pieces(MAX_FORM_BYTES, idle_s=IDLE_S)) as body:
            form = Form(exchange.header(h.CONTENT_TYPE) or "", body)
            await form.until_file()
            stored, is_new = await self._store(identity, file_id, form, may_be_there=key is not None)
        try:
            uploaded = await self._register(identity, file_id, form, stored, key)
        except Fault as fault:
            if is_new and not fault.retryable:  # it may have been registered, if the answer was lost
                with suppress(Fault):
                    await self._bridge.objects.delete(identity.tenant, file_id)
            raise
        accept = negotiate(exchange.header(h.ACCEPT), JSON)
        await exchange.respond(202, encode(uploaded, accept), accept, location(uploaded.job_id))

    async def _store(self, identity: Identity, file_id: str, form: Form, *, may_be_there: bool) -> tuple[Stored, bool]:
        """Size and digest, and whether this request stored it. A file of the same key is only compared: writing would
        replace a file that is in use before anyone could say CONFLICT."""
        objects = self._bridge.objects
        async with aclosing(form.file()) as pieces:
            if may_be_there and await self._is_there(identity.tenant, file_id):
                return await _digested(pieces), False
            stored = await objects.put(
                identity.tenant, file_id, pieces, max_bytes=MAX_FILE_BYTES, timeout_s=UPLOAD_WITHIN_S
            )
        return stored, True

    async def _is_there(self, tenant: str, file_id: str) -> bool:
        try:
            await self._bridge.objects.stat(tenant, file_id)
        except Fault as fault:
            if fault.code is Code.NOT_FOUND:
                return False
            raise
        return True

    async def _register(
        self, identity: Identity, file_id: str, form: Form, stored: Stored, key: str | None
    ) -> ingestion.Uploaded:
        unknown = sorted(form.fields.keys() - FIELDS)
        if unknown:
            raise _bad(unknown[0], f"the fields are file, {', '.join(sorted(FIELDS))}")
        given: dict[str, Any] = {name: value for name, value in form.fields.items() if value and name != "metadata"}
        given |= {"file_id": file_id, "name": _name(form.file_name), "size": stored.size, "sha256": stored.sha256}
        if metadata := form.fields.get("metadata"):
            given["metadata"] = _metadata(metadata)
        try:
            message = ingestion.Register.model_validate(given)
        except ValidationError as error:
            raise refused(error) from error
        # The operation is for platform processes only: the upload scope stands for it.
        ours = replace(identity, scopes=identity.scopes | {ingestion.REGISTER.scope})
        return await self._bridge.client.call(ingestion.REGISTER, message, identity=ours, key=key or file_id)


async def _digested(pieces: AsyncIterator[bytes]) -> Stored:
    digest, size = hashlib.sha256(), 0
    async for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return Stored(size, digest.hexdigest())


def _file_id(tenant: str, key: str | None) -> str:
    """`f` + 26 base32 characters: of tenant and key, or random."""
    made = secrets.token_bytes(20) if key is None else hashlib.sha256(f"{tenant}\0upload\0{key}".encode()).digest()
    return "f" + base64.b32encode(made).decode().lower()[:26]


def _name(given: str | None) -> str:
    """The last part of the path that a browser may send, without what no file name has."""
    last = (given or "").replace("\\", "/").rpartition("/")[2]
    kept = "".join(char for char in last if char.isprintable() and not "\ud800" <= char <= "\udfff").strip()
    return kept[-MAX_NAME_CHARS:] or "file"


def _metadata(text: str) -> Any:
    try:
        return decode_plain(text.encode(), JSON)
    except Fault as fault:
        raise _bad("metadata", fault.detail) from fault


def _bad(name: str, message: str) -> Fault:
    return Fault(Code.INVALID, "the form is not valid", errors=[FieldError(path=name[:64], message=message)])
