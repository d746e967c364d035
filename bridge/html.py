"""Pages that need nothing from elsewhere: escaped text, one style, one small script, a policy that allows no more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

Json = dict[str, Any]

STYLE = resources.files("bridge").joinpath("static/docs.css").read_text(encoding="utf-8")
SCRIPT = resources.files("bridge").joinpath("static/docs.js").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Entry:
    """A line of the list at the side. verb: what kind of thing it is, by its colour; found: more words that find it."""

    ident: str
    verb: str
    text: str
    found: str = ""


def page(title: str, about: str, groups: Iterable[tuple[str, list[Entry]]], body: str) -> bytes:
    """A whole page. body is HTML, everything else text."""
    listed = "".join(
        f"<div><h2>{escape(name)}</h2><ul>{''.join(map(_listed, entries))}</ul></div>" for name, entries in groups
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<nav aria-label="Operations"><h1>{escape(title)}</h1><p>{about}</p>'
        '<input id="find" type="search" placeholder="Find an operation" aria-label="Find an operation" hidden>'
        f"{listed}</nav><main>{body}</main><script>{SCRIPT}</script></body></html>"
    ).encode()


def _listed(entry: Entry) -> str:
    words = escape(f"{entry.verb} {entry.text} {entry.found}", quote=True)
    link = f'<a href="#{escape(entry.ident)}">{verb(entry.verb)}<code>{escape(entry.text)}</code></a>'
    return f'<li data-find="{words}">{link}</li>'


def verb(name: str) -> str:
    return f'<span class="verb {escape(name)}">{escape(name)}</span>' if name else ""


def text(given: str) -> str:
    """The little of Markdown that our documents use: paragraphs, **bold** and `code`."""
    return "".join(f"<p>{line(part)}</p>" for part in given.strip().split("\n\n") if part)


def line(given: str) -> str:
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(given, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)


def code(given: str) -> str:
    return f"<pre><code>{escape(given, quote=False)}</code></pre>"


def pretty(value: Any) -> str:
    return code(json.dumps(value, indent=2, ensure_ascii=False))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """head is text, cells are HTML. Nothing when there are no rows."""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    if not lines:
        return ""
    named = "".join(f"<th>{escape(each)}</th>" for each in head)
    return f'<div class="wide"><table><thead><tr>{named}</tr></thead><tbody>{lines}</tbody></table></div>'


def folded(title: str, body: str, *, unfolded: bool = False) -> str:
    """Nothing when there is nothing inside."""
    return f"<details{' open' * unfolded}><summary>{escape(title)}</summary>{body}</details>" if body else ""
