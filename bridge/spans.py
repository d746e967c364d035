"""Spans of HTTP requests, by the HTTP conventions: the route's template, never the path or a query."""

from __future__ import annotations

from runtime import metrics
from runtime.identity import Identity
from runtime.tracing import Kind, Span, begin, sampled

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SERVER_ERRORS = 500
DURATION = metrics.Histogram(
    "http.server.request.duration",
    "s",
    "From the head of a request to the end of its answer.",
    metrics.SECONDS,
    ("http.request.method", "http.route", "http.response.status_code"),
)


def answering(method: str, route: str, identity: Identity) -> Span | None:
    """Begun once the token was checked: what has no token is counted, and not recorded."""
    if not sampled(identity.traceparent):
        return None
    known = method if method in METHODS else "_OTHER"
    return begin(
        f"{known} {route}".rstrip(),
        Kind.SERVER,
        identity.traceparent,
        {
            "http.request.method": known,
            "http.route": route or None,
            "url.scheme": "http",
            "network.protocol.name": "http",
            "faas.request.id": identity.request_id,
            "faas.correlation.id": identity.correlation_id,
            "faas.tenant.id": identity.tenant,
        },
        tracestate=identity.tracestate,
    )


def answered(span: Span, status: int, error: str = "") -> None:
    """Ends it. What the client did wrong is no error of this server."""
    span.attributes["http.response.status_code"] = status
    span.end(error or (str(status) if status >= SERVER_ERRORS else None))
