"""The bucket `files` as the JetStream API knows it: publish a chunk or a description, look one up, purge."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from runtime import headers
from runtime.connection import Connection
from runtime.streams import FILES_BUCKET, FILES_STREAM
from subjects.contract import Code, Fault

API_TIMEOUT_S = 5.0
DIGEST = "SHA-256="

# Errors of the JetStream API (server/errors.json of nats-server).
WRONG_LAST_SEQUENCE = 10071
NO_MESSAGE = 10037
_FULL = frozenset({10047, 10077, 10122, 10123})  # no storage left, stream full, or at its account's limit


@dataclass(frozen=True)
class Description:
    """The description of an object. sequence: where it stands in the stream; 0 = there is none."""

    nuid: str = ""
    size: int = 0
    sha256: str = ""
    deleted: bool = True
    sequence: int = 0


class Bucket:
    """Every method raises Fault(UNAVAILABLE, TIMEOUT)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def publish(self, subject: str, body: bytes, given: dict[str, str] | None = None) -> int:
        """Publish and wait for the acknowledgement: the sequence; 0 = the expected sequence is not the last.

        Raises also Fault(EXHAUSTED) when the bucket is full.
        """
        block = headers.block(given) if given else b""
        reply = await self._connection.requests.ask(subject, body, block, API_TIMEOUT_S)
        if reply.no_responders:
            raise _no_bucket()
        ack = _object_of(reply.data)
        error = ack.get("error")
        if error is None:
            return int(ack.get("seq", 0))
        if error.get("err_code") == WRONG_LAST_SEQUENCE:
            return 0
        if error.get("err_code") in _FULL:
            raise Fault(Code.EXHAUSTED, "the file store is full: delete files or give it more room")
        raise Fault(Code.UNAVAILABLE, f"the file store refused to write (error {error.get('err_code')})")

    async def look(self, name: str) -> Description:
        question = {"last_by_subj": meta_subject(name)}
        reply = await self._api(f"STREAM.MSG.GET.{FILES_STREAM}", question)
        if "error" in reply:
            if reply["error"].get("err_code") == NO_MESSAGE:
                return Description()
            raise _no_bucket()
        message = reply["message"]
        meta = _object_of(base64.b64decode(message.get("data", "")))
        digest = base64.urlsafe_b64decode(str(meta.get("digest", "")).removeprefix(DIGEST)).hex()
        deleted = bool(meta.get("deleted", False))
        return Description(str(meta.get("nuid", "")), int(meta.get("size", 0)), digest, deleted, int(message["seq"]))

    async def purge(self, subject: str, *, through: int | None = None, timeout_s: float = API_TIMEOUT_S) -> None:
        question: dict[str, Any] = {"filter": subject}
        if through is not None:
            question["seq"] = through + 1
        reply = await self._api(f"STREAM.PURGE.{FILES_STREAM}", question, timeout_s)
        if "error" in reply:
            raise _no_bucket()

    async def _api(self, name: str, question: dict[str, Any], timeout_s: float = API_TIMEOUT_S) -> dict[str, Any]:
        reply = await self._connection.requests.ask(f"$JS.API.{name}", json.dumps(question).encode(), b"", timeout_s)
        if reply.no_responders:
            raise _no_bucket()
        return _object_of(reply.data)


def chunk_subject(nuid: str) -> str:
    return f"$O.{FILES_BUCKET}.C.{nuid}"


def meta_subject(name: str) -> str:
    return f"$O.{FILES_BUCKET}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _object_of(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise Fault(Code.UNAVAILABLE, "the file store gave an answer that cannot be read") from error
    if not isinstance(found, dict):
        raise Fault(Code.UNAVAILABLE, "the file store gave an answer that cannot be read")
    return found


def _no_bucket() -> Fault:
    return Fault(Code.UNAVAILABLE, f"the bucket {FILES_BUCKET} does not answer: is it there? `faas migrate` makes it")
