"""The table of routes: made from the registry, so that a new contract has its route without a line here."""

from __future__ import annotations

from bridge.context import Bridge
from bridge.joining import JobEvents, Outputs
from bridge.operation import Operation
from bridge.table import Route
from bridge.upload import Upload
from subjects.registry import Registry


def operations(bridge: Bridge, registry: Registry) -> list[Route]:
    """Every route that needs a token."""
    found = [
        Route("GET", "/api/v1/jobs/{job_id}/events", JobEvents(bridge), stream=True),
        Route("GET", "/api/v1/outputs/{output_id}", Outputs(bridge), stream=True),
        Route("POST", "/api/v1/ingestion/upload", Upload(bridge)),
    ]
    for call in registry.calls.values():
        if not call.public:
            continue
        found.append(Route("POST", call.path, Operation(bridge, call)))
        for named in call.http:
            method, path = named.split(" ", 1)
            found.append(Route(method, path, Operation(bridge, call, resource=True)))
    return found
