"""The AsyncAPI document, made from the registry: what is said over NATS, where, and with which headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from codec import CONTENT_TYPES, MSGPACK
from codec import headers as h
from codec.problem import Problem
from codec.protos import named
from codec.schemas import Schemas
from runtime.settings import Settings
from subjects import grammar, jobs
from subjects.contract import AnyCall, AnyEvent, Code, Model
from subjects.registry import Registry

VERSION = "3.0.0"
REF = "#/components/schemas/{model}"
Json = dict[str, Any]

ABOUT = """Four ways to say the same thing: a request for an answer now, a job that is done whatever dies, an event that
every subscription sees, and an output that is read in pieces. The tenant is the second token of every subject, so one
prefix is one permission. Each token matches `^[a-z0-9][a-z0-9_-]{0,62}$`.

`Content-Type` says the format of a message: msgpack (assumed when it is absent), JSON or protobuf. A failed reply
carries a problem document and the headers `Nats-Service-Error-Code` and `Nats-Service-Error`.
"""
PARAMETERS = {
    "tenant": "the tenant that speaks, or is spoken to",
    "job_id": "`j` and 26 base32 characters of SHA-256(tenant NUL component.operation NUL Idempotency-Key), or random",
    "output_id": "an output id that the caller made, or the id of a job",
    "component": "the component of the dead job",
    "operation": "its operation",
    "redrive": "how often it had been redriven",
    "id": "the id of a request, output or job",
}
TEXT = {"type": "string"}
HEADERS: dict[str, Json] = {
    h.CONTENT_TYPE: {"type": "string", "enum": sorted(CONTENT_TYPES), "default": MSGPACK},
    h.ACCEPT: {"type": "string", "description": "the format wanted for the reply; absent = as the request"},
    h.TENANT: {"type": "string", "description": "optional; must be the subject's tenant"},
    h.USER: {"type": "string", "description": "who asks"},
    h.SCOPES: {"type": "string", "description": "what they may do, separated by spaces"},
    h.CORRELATION_ID: {"type": "string", "description": "of the user's action; carried through everything"},
    h.REQUEST_ID: {"type": "string", "description": "of this message; echoed in the reply"},
    h.IDEMPOTENCY_KEY: {"type": "string", "description": "the same key = the same effect and answer, for 8 days"},
    h.BODY_DIGEST: {"type": "string", "description": "SHA-256 of the message as canonical JSON without unset fields"},
    h.DEADLINE: {"type": "string", "pattern": "^[0-9]+$", "description": "absolute unix milliseconds"},
    h.TRACEPARENT: {"type": "string", "description": "W3C trace context"},
    h.TRACESTATE: TEXT,
    h.OUTPUT_TO: {"type": "string", "description": "an output id of the same tenant: publish pieces there"},
    h.REPLY_TO: {"type": "string", "description": "an `_INBOX.` subject that is sent the result as well"},
    h.REPLAY: {"type": "string", "description": "the replay that sent it again"},
    h.ERROR_CODE: {"type": "string", "enum": [code.value for code in Code]},
    h.ERROR: {"type": "string", "description": "one line for a human"},
    h.RETRY_AFTER: {"type": "string", "pattern": "^[0-9]+$", "description": "whole seconds"},
    h.CHUNK: {"type": "string", "pattern": "^[0-9]+$", "description": "1, 2, 3 ... without gaps"},
    h.ATTEMPT: {"type": "string", "pattern": "^[0-9]+$", "description": "a new attempt voids what came before"},
    h.CHUNK_END: {"type": "string", "enum": ["done", "error"], "description": "on the last piece"},
    h.EXPECTED_SUBJECT_SEQUENCE: {"const": "0", "description": "stores the job unless its subject holds one"},
    h.MESSAGE_ID: {"type": "string", "description": "the event's own id"},
    h.DEAD_CODE: TEXT,
    h.DEAD_REASON: TEXT,
    h.DEAD_ATTEMPTS: TEXT,
    h.DEAD_AT: TEXT,
    h.DEAD_SUBJECT: TEXT,
}
_WHO = (h.CONTENT_TYPE, h.TENANT, h.USER, h.SCOPES, h.CORRELATION_ID, h.REQUEST_ID, h.TRACEPARENT, h.TRACESTATE)
_ASKED = (*_WHO, h.IDEMPOTENCY_KEY, h.BODY_DIGEST, h.DEADLINE, h.OUTPUT_TO)
SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # those that may be there, and those of them that are
    "RequestHeaders": ((*_ASKED, h.ACCEPT), ()),
    "JobHeaders": ((*_ASKED, h.REPLY_TO, h.REPLAY, h.EXPECTED_SUBJECT_SEQUENCE), ()),
    "ReplyHeaders": ((h.CONTENT_TYPE, h.REQUEST_ID, h.CORRELATION_ID), (h.CONTENT_TYPE,)),
    "FaultHeaders": (
        (h.CONTENT_TYPE, h.REQUEST_ID, h.CORRELATION_ID, h.ERROR_CODE, h.ERROR, h.RETRY_AFTER),
        (h.CONTENT_TYPE, h.ERROR_CODE, h.ERROR),
    ),
    "EventHeaders": ((*_WHO, h.MESSAGE_ID), (h.CONTENT_TYPE,)),
    "PieceHeaders": ((h.CONTENT_TYPE, h.CHUNK, h.ATTEMPT, h.CHUNK_END), (h.CONTENT_TYPE, h.CHUNK, h.ATTEMPT)),
    "DeadLetterHeaders": (
        (*_ASKED, h.DEAD_CODE, h.DEAD_REASON, h.DEAD_ATTEMPTS, h.DEAD_AT, h.DEAD_SUBJECT), (h.DEAD_CODE, h.DEAD_REASON)
    ),
}  # fmt: skip


def document(settings: Settings, registry: Registry) -> Json:
    """AsyncAPI 3.0."""
    return _Maker(settings, registry).made()


class _Maker:
    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._calls = list(registry.calls.values())
        self._events = list(registry.events.values())
        written: set[type[Model]] = {Problem, jobs.Progress, *(event.payload for event in self._events)}
        written |= {model for call in self._calls for model in (call.output, call.chunk) if model is not None}
        self._schemas = Schemas({call.input for call in self._calls}, written, ref=REF)
        self._channels: Json = {}
        self._operations: Json = {}
        self._messages: Json = {}

    def made(self) -> Json:
        self._say("problem", Problem, "FaultHeaders", "Why there is no answer")
        for call in self._calls:
            self._request(call)
            if call.job:
                self._job(call)
        for event in self._events:
            self._event(event)
        self._outputs()
        self._dead_letters()
        self._cancels()
        definitions = {name: _plain(each) for name, each in self._schemas.definitions.items()}
        return {
            "asyncapi": VERSION,
            "info": {
                "title": "Motadata FaaS",
                "version": self._settings.service_version,
                "description": ABOUT,
                "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            },
            "defaultContentType": MSGPACK,
            "servers": {
                "nats": {
                    "host": "{host}:{port}",
                    "protocol": "nats",
                    "description": "nats-server 2.11 or newer with JetStream",
                    "variables": {
                        "host": {"default": "127.0.0.1", "description": "NATS_URL"},
                        "port": {"default": "4222"},
                    },
                }
            },
            "channels": dict(sorted(self._channels.items())),
            "operations": dict(sorted(self._operations.items())),
            "components": {
                "messages": dict(sorted(self._messages.items())),
                "schemas": dict(sorted((definitions | _header_sets()).items())),
            },
        }

    def _say(
        self, name: str, model: type[Model] | None, headers: str, summary: str, *, read: bool = False,
        example: Any = None,
    ) -> None:  # fmt: skip
        made: Json = {"name": name, "summary": summary, "headers": {"$ref": REF.format(model=headers)}}
        if model is not None:
            made["payload"] = self._schemas.read(model) if read else self._schemas.written(model)
            made["x-protobuf"] = named(model)
        if example is not None:
            made["examples"] = [{"payload": example}]
        self._messages[name] = made

    def _channel(self, name: str, address: str | None, messages: Iterable[str], description: str) -> None:
        made: Json = {
            "address": address,
            "description": description,
            "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in sorted(messages)},
        }
        if address is not None:
            told = {key: {"description": said} for key, said in PARAMETERS.items() if f"{{{key}}}" in address}
            made |= {"servers": [{"$ref": "#/servers/nats"}], "parameters": told}
        self._channels[name] = made

    def _operation(self, name: str, action: str, channel: str, summary: str, **more: Any) -> None:
        messages = [{"$ref": f"#/channels/{channel}/messages/{each}"} for each in self._channels[channel]["messages"]]
        self._operations[name] = {
            "action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary, "messages": messages,
            **more,
        }  # fmt: skip

    def _request(self, call: AnyCall) -> None:
        name, summary = call.name, call.summary or call.operation.replace("_", " ").capitalize()
        who = "" if call.public else " Platform processes only: it has no HTTP route."
        self._say(f"{name}.input", call.input, "RequestHeaders", summary, read=True, example=call.example)
        self._say(f"{name}.output", call.output, "ReplyHeaders", f"The answer of {name}", example=call.example_reply)
        if call.chunk is not None:
            self._say(f"{name}.chunk", call.chunk, "PieceHeaders", f"A piece of the answer of {name}")
        self._channel(
            f"req.{name}", f"{grammar.REQUEST}.{{tenant}}.{name}", [f"{name}.input"],
            f"Core NATS, queue group `{call.component}`. At most {call.timeout_s:g} s.{who}",
        )  # fmt: skip
        self._channel(f"req.{name}.reply", None, [f"{name}.output", "problem"], "The inbox that the request names.")
        reply = {
            "channel": {"$ref": f"#/channels/req.{name}.reply"},
            "messages": [
                {"$ref": f"#/channels/req.{name}.reply/messages/{each}"} for each in (f"{name}.output", "problem")
            ],
        }
        self._operation(name, "receive", f"req.{name}", summary, reply=reply, tags=[{"name": call.component}])

    def _job(self, call: AnyCall) -> None:
        name = call.name
        self._say(f"{name}.job", call.input, "JobHeaders", f"{name} as a job", read=True, example=call.example)
        self._channel(
            f"job.{name}", f"{grammar.JOB}.{{tenant}}.{name}.{{job_id}}", [f"{name}.job"],
            f"Stream JOBS; its PubAck is the acceptance. At most {call.job_timeout_s:g} s an attempt.",
        )  # fmt: skip
        self._operation(f"{name}.job", "receive", f"job.{name}", f"{name} as a job", tags=[{"name": call.component}])

    def _event(self, event: AnyEvent) -> None:
        name = event.name
        self._say(name, event.payload, "EventHeaders", event.summary or name.replace("_", " "))
        address = f"{grammar.EVENT}.{{tenant}}.{name}"
        self._channel(f"evt.{name}", address, [name], "Stream EVENTS: every subscription sees it at least once.")
        self._operation(
            f"evt.{name}", "send", f"evt.{name}", f"Told when it stands: {name}", tags=[{"name": event.component}]
        )

    def _outputs(self) -> None:
        pieces = [each for each in self._messages if each.endswith((".chunk", ".output"))]
        self._say("progress", jobs.Progress, "PieceHeaders", "How far a job is")
        self._channel(
            "out", f"{grammar.OUTPUT}.{{tenant}}.{{output_id}}", [*pieces, "progress", "problem"],
            "Core NATS, kept by stream OUT for 15 minutes. The last piece has Chunk-End: the answer, or a problem.",
        )  # fmt: skip
        self._operation(
            "out", "send", "out", "An answer in pieces, or the progress of a job", tags=[{"name": "outputs"}]
        )

    def _dead_letters(self) -> None:
        made: Json = {
            "name": "dead_letter", "summary": "A message that could not be worked on, as it came",
            "headers": {"$ref": REF.format(model="DeadLetterHeaders")}, "payload": {},
        }  # fmt: skip
        self._messages["dead_letter"] = made
        address = f"{grammar.DEAD_LETTER}.{{tenant}}.{{component}}.{{operation}}.{{job_id}}.{{redrive}}"
        self._channel("dlq", address, ["dead_letter"], "Stream DLQ, kept for 30 days.")
        self._operation("dlq", "send", "dlq", "What failed for good", tags=[{"name": "jobs"}])

    def _cancels(self) -> None:
        self._messages["cancel"] = {"name": "cancel", "summary": "Says nothing: its subject does", "payload": {}}
        self._channel(
            "ctl.cancel", f"{grammar.CONTROL}.{{tenant}}.cancel.{{id}}", ["cancel"], "Core NATS; every worker hears it."
        )
        self._operation("cancel", "receive", "ctl.cancel", "Stop a request, output or job", tags=[{"name": "jobs"}])


def _header_sets() -> Json:
    return {
        name: {
            "type": "object",
            "properties": {each: HEADERS[each] for each in some},
            **({"required": list(needed)} if needed else {}),
        }
        for name, (some, needed) in SETS.items()
    }


def _plain(schema: Any) -> Any:
    """AsyncAPI means something else by `discriminator`; the constants in the branches say as much."""
    if isinstance(schema, dict):
        return {key: _plain(each) for key, each in schema.items() if key != "discriminator" or "mapping" not in each}
    return [_plain(each) for each in schema] if isinstance(schema, list) else schema
