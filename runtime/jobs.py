"""Job ids and the submit protocol: a job is accepted by one publish, and by no database."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Mapping

from codec import headers as h
from runtime import headers
from runtime.requests import Reply, Requests
from subjects.contract import Code, Fault

ID_CHARS = 26
MAX_KEY_CHARS = 256
MAX_REDRIVE_DIGITS = 6
STORED_WITHIN_S = 2.0
LOOK_EVERY_S = 0.05
ACK_TIMEOUT_S = 5.0

# Errors of a publish (server/errors.json of nats-server).
WRONG_LAST_SEQUENCE = 10071
IN_FLIGHT = 10164
_FULL = frozenset({10002, 10023, 10028, 10047, 10077})


def job_id(tenant: str, call_name: str, key: str | None) -> str:
    """`j` + 26 base32 characters: of the hash of tenant, operation and key, or random without a key."""
    if key is None:
        return f"j{_base32(secrets.token_bytes(20))}"
    named = "\0".join((tenant, call_name, key)).encode("utf-8", "replace")  # bad ones are refused by the subject
    return f"j{_base32(hashlib.sha256(named).digest())}"


def stored_id(stored: str) -> str:
    """An id of the same form for a message that came without one, made from the words that say where it is stored."""
    return f"j{_base32(hashlib.sha256(stored.encode()).digest())}"


def redrive_of(given: Mapping[str, str]) -> int:
    """The number of the redrive that sent this message, 0 when none did."""
    said = given.get(h.REDRIVE, "")
    return int(said) if said.isascii() and said.isdecimal() and len(said) <= MAX_REDRIVE_DIGITS else 0


def run_key(job_id: str, redrive: int) -> str:
    """The key of a job's effect: its id; each redrive runs anew under one of its own."""
    return f"{job_id}#{redrive}" if redrive else job_id


def output_id() -> str:
    """`o` + 26 random base32 characters."""
    return f"o{_base32(secrets.token_bytes(20))}"


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().lower()[:ID_CHARS]


def checked_key(key: str) -> str:
    """The Idempotency-Key itself. Raises Fault(INVALID) when it is empty, longer than 256, or not printable."""
    if not key or len(key) > MAX_KEY_CHARS or not key.isprintable():
        raise Fault(Code.INVALID, f"{h.IDEMPOTENCY_KEY} must be 1 to {MAX_KEY_CHARS} printable characters")
    return key


async def publish_first(requests: Requests, subject: str, payload: bytes, given: Mapping[str, str]) -> bool:
    """Store a job unless its subject holds one. Returns whether it is a duplicate.

    given must not hold Nats-* headers. Raises Fault: CONFLICT (stored under the same id with another Body-Digest),
    EXHAUSTED (the stream is full), UNAVAILABLE, TIMEOUT (then it may be stored or not: submit again, same key).
    """
    stored = await publish_or_find(requests, subject, payload, given)
    if stored is None:
        return False
    theirs, ours = stored.headers.get(h.BODY_DIGEST), given.get(h.BODY_DIGEST)
    same = theirs == ours if theirs is not None and ours is not None else stored.data == payload
    if not same:
        raise Fault(Code.CONFLICT, f"this {h.IDEMPOTENCY_KEY} was used for another body; use a new key")
    return True


async def publish_or_find(requests: Requests, subject: str, payload: bytes, given: Mapping[str, str]) -> Reply | None:
    """Store a job unless its subject holds one: then the one that is stored. Raises Fault as publish_first, without
    CONFLICT."""
    block = headers.block({**given, h.EXPECTED_SUBJECT_SEQUENCE: "0"})
    code = _error_of(await ask_stream(requests, subject, payload, block))
    if code == 0:
        return None
    if code not in (WRONG_LAST_SEQUENCE, IN_FLIGHT):
        raise _refused(code)
    return await _once_stored(requests, subject, wait_s=STORED_WITHIN_S)


async def publish_kept(requests: Requests, subject: str, payload: bytes, given: Mapping[str, str]) -> None:
    """Store any message in the stream of its subject. Raises Fault as publish_first, without CONFLICT."""
    code = _error_of(await ask_stream(requests, subject, payload, headers.block(given)))
    if code:
        raise _refused(code)


async def ask_stream(requests: Requests, subject: str, payload: bytes, block: bytes) -> Reply:
    """Publish and wait for the stream's answer at most 5 s. Raises Fault(UNAVAILABLE) when no stream listens."""
    reply = await requests.ask(subject, payload, block, ACK_TIMEOUT_S)
    if reply.no_responders:
        raise Fault(Code.UNAVAILABLE, "no stream takes this subject: run `faas migrate`, or JetStream is starting")
    return reply


async def last_of(requests: Requests, stream: str, subject: str) -> Reply | None:
    """The last stored message of one subject, with its own headers beside Nats-*; None when there is none."""
    reply = await ask_stream(requests, f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", b"")
    status = reply.headers.get(headers.STATUS)
    if status == "404":
        return None
    if status is not None:
        raise Fault(Code.UNAVAILABLE, f"stream {stream} does not give its messages")
    return reply


async def _once_stored(requests: Requests, subject: str, *, wait_s: float) -> Reply:
    """Another publisher's message may still be on its way to the replica that answers."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while True:
        found = await last_of(requests, "JOBS", subject)
        if found is not None:
            return found
        if loop.time() > until:
            raise Fault(Code.UNAVAILABLE, "the same job is being accepted; submit again with the same key")
        await asyncio.sleep(LOOK_EVERY_S)


def _error_of(ack: Reply) -> int:
    """The error code of a PubAck, 0 when the message is stored. Raises Fault(UNAVAILABLE) on what is no PubAck."""
    try:
        said = json.loads(ack.data)
        if "error" in said:
            return int(said["error"].get("err_code") or -1)
        return 0 if said["seq"] else -1
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Fault(Code.UNAVAILABLE, "the stream's answer cannot be read") from error


def _refused(code: int) -> Fault:
    if code in _FULL:
        return Fault(Code.EXHAUSTED, "the stream is full; nothing was accepted", retry_after_s=30)
    return Fault(Code.UNAVAILABLE, f"the stream refused the message (JetStream error {code})")
