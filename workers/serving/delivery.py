"""One message as it arrived, with what its subject and headers say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg
from runtime.jobs import from_digest

import codec
from codec import headers as names
from runtime.identity import Identity
from subjects import grammar
from subjects.contract import Code, Fault

NO_HEADERS: dict[str, str] = {}


@dataclass
class Delivery:
    """A request, job or event. Parsed in two steps, so that a message with bad headers still gets an answer in its
    own codec: addressed() may raise Fault(INVALID), identified() Fault(INVALID) or Fault(FORBIDDEN)."""

    msg: Msg
    headers: dict[str, str]
    content_type: str
    accept: str

    @classmethod
    def of(cls, msg: Msg) -> Delivery:
        headers: dict[str, str] = msg.headers or NO_HEADERS
        content_type = headers.get(names.CONTENT_TYPE) or sniff(msg.data)
        try:
            accept = codec.negotiate(headers.get(names.ACCEPT), content_type)
        except Fault:
            accept = codec.MSGPACK
        return cls(msg, headers, content_type, accept)

    def addressed(self) -> grammar.Address:
        return grammar.parse(self.msg.subject)

    def identified(self, tenant: str) -> Identity:
        return Identity.from_message(tenant, self.headers)

    @property
    def durable(self) -> bool:
        """Whether it came from a stream, so that it must be acked rather than answered."""
        return self.msg.reply.startswith("$JS.ACK.")

    @property
    def delivered(self) -> int:
        """How often the server has handed this message out, this time included."""
        return int(self._ack_tokens()[-5])

    def job_id(self, address: grammar.Address) -> str:
        """The subject's, or for a plain publish one made from where the message is stored: every delivery finds the
        same."""
        if address.ident:
            return address.ident
        tokens = self._ack_tokens()
        stored = f"{address.tenant}\0{tokens[-7]}\0{tokens[-4]}\0{tokens[-2]}"  # stream, sequence, time of storing
        return from_digest(hashlib.sha256(stored.encode()).digest())

    def _ack_tokens(self) -> list[str]:
        # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>;
        # the form with a domain has one more token at its end.
        tokens = self.msg.reply.split(".")
        if len(tokens) < 9:
            raise Fault(Code.INVALID, "the message has no JetStream reply subject")
        return tokens if len(tokens) == 9 else tokens[:-1]


def sniff(data: bytes) -> str:
    """msgpack where nothing is said; but a body that begins with `{` is JSON: in msgpack that byte is the number 123,
    which is no message."""
    return codec.JSON if data[:1] == b"{" else codec.MSGPACK


def header_safe(value: Any) -> str:
    return str(value).replace("\r", " ").replace("\n", " ")
