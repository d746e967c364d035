"""/docs/events: the AsyncAPI document as a page to read."""

from __future__ import annotations

import json
import shlex
from html import escape

from bridge.html import Entry, Json, code, folded, line, page, pretty, text, verb
from bridge.schema_tables import anchor, fields, kind, named, shown

KINDS = (
    ("req", "Requests", "Asked on core NATS; one process of the queue group answers to the inbox."),
    ("job", "Jobs", "Stored by the stream JOBS, whose acknowledgement is the acceptance: done, or a dead letter."),
    ("evt", "Events", "Facts: every subscription sees each at least once, in no order."),
    ("out", "Outputs", "Pieces of answers, and progress."),
    ("dlq", "Dead letters", "What failed for good."),
    ("ctl", "Control", "Said to every worker."),
)
RECEIVED = "The platform receives it: publish there"
SENT = "The platform sends it: subscribe there"


def render(document: Json) -> bytes:
    """The whole page."""
    definitions: Json = document["components"]["schemas"]
    groups: list[tuple[str, list[Entry]]] = []
    body = [f"<h1>{escape(document['info']['title'])}: NATS</h1>", text(document["info"]["description"])]
    by_channel = {
        operation["channel"]["$ref"].rpartition("/")[2]: operation for operation in document["operations"].values()
    }
    for prefix, title, about in KINDS:
        own = [name for name in document["channels"] if name.partition(".")[0] == prefix and name in by_channel]
        entries = []
        body.append(f'<h2 id="kind-{prefix}">{title}</h2><p>{escape(about)}</p>')
        for name in own:
            operation = by_channel[name]
            short = name.partition(".")[2] or name
            entries.append(Entry(f"channel-{name}", operation["action"], short, operation["summary"]))
            body.append(_section(document, name, operation))
        groups.append((title, entries))
    body.append("<h2>Schemas</h2>")
    body += [named(name, schema) for name, schema in definitions.items()]
    groups.append(("schemas", [Entry(anchor(name), "", name) for name in definitions]))
    about = (
        '<a href="/docs">HTTP</a> · Events · <a href="/asyncapi.json">asyncapi.json</a> · '
        f"{escape(document['info']['version'])}"
    )
    return page(document["info"]["title"], about, groups, "".join(body))


def _section(document: Json, name: str, operation: Json) -> str:
    channel = document["channels"][name]
    ident = escape(f"channel-{name}")
    action = operation["action"]
    reply = operation.get("reply")
    answers = ""
    if reply is not None:
        replied = document["channels"][reply["channel"]["$ref"].rpartition("/")[2]]
        answers = f"<h4>Reply</h4>{_messages(document, list(replied['messages']))}"
    messages = _messages(document, list(channel["messages"]))
    return (
        f'<section id="{ident}"><h3>{verb(action)}<a href="#{ident}"><code>{escape(channel["address"])}</code></a></h3>'
        f'<p class="what">{line(operation["summary"])}</p>'
        f'<p class="about">{RECEIVED if action == "receive" else SENT}. {line(channel["description"])}</p>'
        f"<h4>Message</h4>{messages}{answers}{_try(document, name, channel)}</section>"
    )


def _messages(document: Json, names: list[str]) -> str:
    definitions = document["components"]["schemas"]
    told = []
    for name in names:
        message = document["components"]["messages"][name]
        payload = message.get("payload")
        if len(names) > 4:  # the outputs: their operations show them
            told.append(f"{kind(payload)} ({line(message['summary'])})")
            continue
        headers = definitions.get(message.get("headers", {}).get("$ref", "").rpartition("/")[2], {})
        example = next((each["payload"] for each in message.get("examples", [])), None)
        told.append(
            (shown(payload, definitions, title="Fields") if payload else f"<p>{line(message['summary'])}</p>")
            + folded("Headers", fields(headers))
            + (folded("Example", pretty(example)) if example is not None else "")
        )
    if len(names) > 4:
        return f"<p>{'<br>'.join(told)}</p>"
    return "".join(told)


def _try(document: Json, name: str, channel: Json) -> str:
    prefix, _, said = name.partition(".")
    if prefix in ("req", "job"):
        message = document["components"]["messages"][next(iter(channel["messages"]))]
        example = json.dumps(next((each["payload"] for each in message.get("examples", [])), {}), ensure_ascii=False)
        address = f"{prefix}.acme.{said}" + (".order-17" if prefix == "job" else "")
        how = "req" if prefix == "req" else "pub"
        command = f"nats {how} -H Content-Type:application/json {address} {shlex.quote(example)}"
        return f"<h4>Try it</h4>{code(command)}"
    if prefix == "evt":
        return f"<h4>Try it</h4>{code(f'faas tail evt.acme.{said}')}"
    return ""
