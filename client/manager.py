"""ServiceClientManager: clients of all services over one connection pool, with one circuit breaker each."""

from __future__ import annotations

from types import TracebackType

from client.config import ClientConfig
from client.http import ServiceHTTPClient
from client.transport import Transport


class ServiceClientManager:
    """`async with ServiceClientManager(config) as services: rag = services.get_client("rag")`"""

    get_headers = staticmethod(ServiceHTTPClient.get_headers)

    def __init__(self, config: ClientConfig | None = None) -> None:
        self._transport = Transport(config or ClientConfig())

    async def __aenter__(self) -> ServiceClientManager:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def get_client(self, service: str) -> ServiceHTTPClient:
        """A client whose relative paths are below /api/v1/<service>/. Costs nothing; it needs no closing.

        Raises Fault(INVALID) on a name that no component can have.
        """
        return ServiceHTTPClient(service, transport=self._transport)

    async def close(self) -> None:
        """Every connection of every client."""
        await self._transport.close()
