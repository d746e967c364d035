"""The platform over HTTP, for programs outside it: retries, circuit breaker, streams, jobs, files."""

from client.config import ClientConfig
from client.errors import CircuitOpen, Conflict, NotFound, ServiceError
from client.http import ServiceHTTPClient
from client.manager import ServiceClientManager
from client.sse import Chunk, Done, Event, Failed, Restart
from client.stream import EventStream

__all__ = [
    "Chunk",
    "CircuitOpen",
    "ClientConfig",
    "Conflict",
    "Done",
    "Event",
    "EventStream",
    "Failed",
    "NotFound",
    "Restart",
    "ServiceClientManager",
    "ServiceError",
    "ServiceHTTPClient",
]
