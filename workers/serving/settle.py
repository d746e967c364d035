"""THE one place that answers and acks."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

import codec
from codec import headers as names
from runtime.connection import Connection
from runtime.crash import crash_point
from runtime.headers import CRLF, LINE, block, lines
from runtime.jobs import ask_stream
from runtime.output import OutputWriter
from subjects.contract import Code, Empty, Fault
from workers.serving.delivery import Delivery
from workers.serving.outcome import Outcome

log = structlog.get_logger("workers.serving")

MAX_REPLY_BYTES = 512 * 1024
_FIRST = {each: LINE + lines({names.CONTENT_TYPE: each}) for each in codec.CONTENT_TYPES}
INBOX_PREFIX = "_INBOX."  # a reply subject is power: an answer to $JS.API... would be a command
DEAD_LETTER_FULL_DELAY_S = 30.0
WRONG_SEQUENCE = 10071  # the dead letter stands already: this is the second try of the same


def is_inbox(subject: str) -> bool:
    """Whether an answer may go there."""
    return subject.startswith(INBOX_PREFIX) and " " not in subject


def answer(
    connection: Connection, to: str, accept: str, outcome: Outcome, request_id: str, correlation_id: str
) -> Fault | None:
    """Reply to a request. One that wants no answer, or wants it where no inbox is, gets none.

    Returns the fault that the request ended in: the outcome's, or that of a reply which cannot be sent.
    """
    if not to:
        return outcome.fault
    if not is_inbox(to):
        log.warning("reply refused: its subject is not an inbox", reply=repr(to))
        return outcome.fault
    fault, headers, body = _reply(outcome, accept, request_id, correlation_id)
    try:
        connection.write(to, body, block=headers)
    except Fault as unsent:
        log.warning("reply not sent", code=unsent.code.value, request_id=request_id)
        return unsent
    return fault


async def end_output(output: OutputWriter, outcome: Outcome, request_id: str, correlation_id: str) -> None:
    """The last chunk says how it ended: with the whole reply, or with the problem."""
    if outcome.fault is not None:
        await output.end("error", codec.to_problem(outcome.fault, request_id, correlation_id))
    else:
        await output.end("done", outcome.reply or Empty())


class _Reply(NamedTuple):
    fault: Fault | None
    headers: bytes
    body: bytes


def _reply(outcome: Outcome, accept: str, request_id: str, correlation_id: str) -> _Reply:
    """What is replied, in the caller's codec."""
    fault = outcome.fault
    if fault is None and outcome.reply is not None:
        try:
            body = codec.encode(outcome.reply, accept)
        except Fault:  # INVALID would blame the caller's message
            log.exception("the reply cannot be encoded", output=type(outcome.reply).__name__)
            fault = Fault(Code.INTERNAL, "internal error")
        else:
            if len(body) <= MAX_REPLY_BYTES:
                first = _FIRST.get(accept) or LINE + lines({names.CONTENT_TYPE: accept})
                return _Reply(None, first + lines({names.REQUEST_ID: request_id}) + CRLF, body)
            fault = Fault(Code.TOO_LARGE, f"the reply has {len(body)} bytes, more than {MAX_REPLY_BYTES}; ask for less")
    fault = fault or Fault(Code.INTERNAL, "internal error")
    headers, body = codec.fault_reply(fault, accept, request_id, correlation_id)
    return _Reply(fault, block(headers), body)


async def settle(connection: Connection, delivery: Delivery, outcome: Outcome, dead_subject: str) -> None:
    """Ack, give back or dead-letter a message of a stream, after its effect stands."""
    crash_point("before_ack")
    match outcome.verdict:
        case "done":
            connection.write(delivery.reply, b"+ACK")
        case "again":
            _give_back(connection, delivery, outcome.delay_s)
        case "dead" | "stray":
            if await _dead_letter(connection, delivery, outcome, dead_subject):
                crash_point("after_dead_letter")
                connection.write(delivery.reply, b"+TERM")
            else:
                _give_back(connection, delivery, DEAD_LETTER_FULL_DELAY_S)
        case "lost":
            log.info("the claim went to another process; leaving the message alone", subject=delivery.subject)


def _give_back(connection: Connection, delivery: Delivery, delay_s: float) -> None:
    nak = b"-NAK " + json.dumps({"delay": int(max(delay_s, 0.0) * 1e9)}).encode()
    connection.write(delivery.reply, nak)


async def _dead_letter(connection: Connection, delivery: Delivery, outcome: Outcome, subject: str) -> bool:
    """Store the message as a dead letter. False when the stream cannot take it: then the original must stay."""
    fault = outcome.fault or Fault(Code.INTERNAL, "internal error")
    headers = {
        **{name: value for name, value in delivery.headers.items() if _is_kept(name)},
        names.CONTENT_TYPE: delivery.content_type,
        names.EXPECTED_SUBJECT_SEQUENCE: "0",
        names.DEAD_CODE: fault.code.value,
        names.DEAD_REASON: names_safe(fault.detail),
        names.DEAD_ATTEMPTS: str(outcome.attempt),
        names.DEAD_AT: datetime.now(UTC).isoformat(),
        names.DEAD_SUBJECT: delivery.subject,
        names.DEAD_SEQUENCE: str(delivery.sequence),
    }
    # The original stays in its stream for a week: where both do not fit into one message, it alone has the body.
    data = delivery.data if len(delivery.data) + len(block(headers)) <= connection.max_payload else b""
    try:
        ack = await ask_stream(connection.requests, subject, data, block(headers))
        error = json.loads(ack.data).get("error")
    except (Fault, ValueError) as failure:
        log.error("dead letter not stored; the message stays", subject=subject, error=str(failure))
        return False
    if error is not None and error.get("err_code") != WRONG_SEQUENCE:
        log.error("dead letter refused; the message stays", subject=subject, error=error.get("description"))
        return False
    log.warning("dead-lettered", subject=subject, code=fault.code.value, detail=fault.detail)
    return True


def _is_kept(name: str) -> bool:
    """Nats-* are commands to the server; a name that we could not write would keep the message from being stored."""
    return not name.lower().startswith("nats-") and name.isascii() and name.isprintable()


def names_safe(text: str) -> str:
    """A header value on one line, ASCII, at most 500 characters."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:500])


def retry_delay_s(faults: int) -> float:
    """Wait before the next attempt after so many retryable faults: 1, 4, 16, 60, 60 s, each with up to 25 % jitter."""
    return DELAYS_S[min(faults, len(DELAYS_S)) - 1] * random.uniform(0.75, 1.25)


DELAYS_S = (1.0, 4.0, 16.0, 60.0, 60.0)
MAX_FAULTS = 6  # the sixth retryable fault is the last
MAX_CRASHES = 3  # the third crash dead-letters without another run
