"""One message as it arrived, with what its subject and headers say."""

from __future__ import annotations

from dataclasses import dataclass

import codec
from codec import headers as names
from codec.formats import content_type_of
from runtime import headers
from runtime.identity import Identity
from runtime.jobs import redrive_of, stored_id
from runtime.message_spans import Attempt
from subjects import grammar
from subjects.contract import Code, Fault

MAX_DIGEST_CHARS = 128


@dataclass
class Delivery:
    """A request, job or event. Parsed in two steps, so that a message with bad headers still gets an answer in its
    own codec: addressed() may raise Fault(INVALID), identified() Fault(INVALID) or Fault(FORBIDDEN)."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str]
    content_type: str
    accept: str

    @classmethod
    def of(cls, subject: bytes, reply: bytes, data: bytes, block: bytes | None) -> Delivery:
        """Read what the broker delivered. Raises ValueError when subject, reply or header block are no text."""
        given = headers.parse(block) if block else {}
        content_type = given.get(names.CONTENT_TYPE) or sniff(data)
        try:
            default = content_type_of(content_type)
        except Fault:  # decoding will refuse it: that refusal must go out in a codec that there is
            default = codec.MSGPACK
        accept = codec.negotiate(given.get(names.ACCEPT), default)
        return cls(subject.decode(), reply.decode(), data, given, content_type, accept)

    def addressed(self) -> grammar.Address:
        return grammar.parse(self.subject)

    def identified(self, tenant: str) -> Identity:
        return Identity.from_message(tenant, self.headers)

    @property
    def durable(self) -> bool:
        """Whether it came from a stream, so that it must be acked rather than answered."""
        return self.reply.startswith("$JS.ACK.")

    @property
    def delivered(self) -> int:
        """How often the server has handed this message out, this time included."""
        return int(self._ack_tokens()[-5])

    @property
    def sequence(self) -> int:
        """Its number in its stream."""
        return int(self._ack_tokens()[-4])

    @property
    def redrive(self) -> int:
        """How often the job was dead before this message of it; 0 for one that was not redriven."""
        return redrive_of(self.headers)

    def job_id(self, address: grammar.Address) -> str:
        """The subject's, or for a plain publish one made from where the message is stored: every delivery finds the
        same."""
        if address.ident:
            return address.ident
        return self.stored_id(address.tenant)

    def stored_id(self, tenant: str) -> str:
        """An id of this one stored message, the same at every delivery."""
        tokens = self._ack_tokens()
        return stored_id(f"{tenant}\0{tokens[-7]}\0{tokens[-4]}\0{tokens[-2]}")  # stream, sequence, time of storing

    def attempt(self) -> Attempt:
        """Which delivery of which stored message this is. Raises Fault(INVALID) for what no stream delivered."""
        tokens = self._ack_tokens()
        return Attempt(".".join((tokens[-7], tokens[-6], tokens[-4], tokens[-2])), int(tokens[-5]))

    @property
    def digest(self) -> str:
        """Body-Digest; empty when it is absent or cannot be one."""
        value = self.headers.get(names.BODY_DIGEST, "")
        return value if len(value) <= MAX_DIGEST_CHARS and value.isprintable() else ""

    def _ack_tokens(self) -> list[str]:
        # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>;
        # the form with a domain has one more token at its end.
        tokens = self.reply.split(".")
        if len(tokens) < 9:
            raise Fault(Code.INVALID, "the message has no JetStream reply subject")
        return tokens if len(tokens) == 9 else tokens[:-1]


def sniff(data: bytes) -> str:
    """msgpack where nothing is said; but a body that begins with `{` is JSON: in msgpack that byte is the number 123,
    which is no message."""
    return codec.JSON if data[:1] == b"{" else codec.MSGPACK
