"""The identity provider's keys: fetched by the clock, kept for a bounded time, never because of what a token says.

The one thing that a token can cause is a look for new keys, when its key id is unknown: one for all,
at most every 10 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from bridge.jwk import MAX_SAID_CHARS, Key, read
from runtime import telemetry
from subjects.contract import Code, Fault

REFRESH_S = 300.0  # a key that the provider takes back opens nothing after so long
RETRY_S = 10.0  # between two fetches, whoever wants them: a failed one, or a key id that is not known
KEPT_S = 6 * 3600.0  # without an answer, the last good keys serve so long
FETCH_WITHIN_S = 5.0
CONNECT_WITHIN_S = 2.0
WAIT_S = 2.0  # a request whose key is unknown waits so long for the look that it caused, or found under way
MAX_WAITING = 64  # requests that wait so, in all; the others are refused at once
MAX_BYTES = 256 * 1024

_log = telemetry.get_logger(__name__)


class Keys:
    """The keys of one address, kept fresh while `running()`. on_change is called when they are others."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, Key] = {}
        self._good_at: float | None = None
        self._began_at = float("-inf")
        self._failures = 0
        self._document: bytes | None = None
        self._wanted = asyncio.Event()
        self._looking = False
        self._round: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = 0
        self.on_change: Callable[[], None] = lambda: None

    def get(self, kid: str) -> Key | None:
        return self._keys.get(kid)

    def count(self) -> int:
        return len(self._keys)

    async def check(self) -> None:
        """For /readyz. Raises Fault(UNAVAILABLE) while there is no key: none came yet, or the last good are too old."""
        if not self._keys:
            raise Fault(Code.UNAVAILABLE, "no key of the identity provider")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps them fresh inside the block. Waits for the first fetch, but no longer than it may take: a bridge
        starts while its provider is away, and says so."""
        async with http_client() as client:
            first = self._round
            task = asyncio.create_task(self._keep(client), name="jwks")
            try:
                await asyncio.wait({first}, timeout=FETCH_WITHIN_S + 1)
                yield
            finally:
                task.cancel()
                await asyncio.wait({task})

    async def look(self) -> None:
        """Look for new keys, unless somebody did in the last 10 s; return when the look has ended, or after 2 s."""
        now = asyncio.get_running_loop().time()
        if self._waiting >= MAX_WAITING:
            return
        if now - self._began_at >= RETRY_S:
            self._wanted.set()
        elif not self._looking:
            return
        self._waiting += 1
        try:
            await asyncio.wait({self._round}, timeout=WAIT_S)
        finally:
            self._waiting -= 1

    async def _keep(self, client: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wanted.clear()
            self._looking, self._began_at = True, loop.time()
            try:
                await self._refresh(client)
            except Exception:  # whatever it was, keys that are never fetched again would serve for ever
                _log.exception("jwks_refresh_raised")
                self._failed("unexpected")
            finally:
                self._looking = False
                ended, self._round = self._round, loop.create_future()
                ended.set_result(None)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), RETRY_S if self._failures else REFRESH_S)

    async def _refresh(self, client: Any) -> None:
        import httpx

        try:
            async with asyncio.timeout(FETCH_WITHIN_S):
                document = await fetch(client, self._url)
            found = read(document)
        except TimeoutError:
            self._failed(f"no answer within {FETCH_WITHIN_S:g} s")
        except httpx.HTTPError as error:
            self._failed(type(error).__name__)
        except ValueError as error:
            self._failed(str(error)[:MAX_SAID_CHARS])
        else:
            if self._failures:
                _log.info("jwks_answers_again", failures=self._failures)
            self._failures, self._good_at = 0, self._began_at
            if document != self._document:
                self._document = document
                for kid, why in found.skipped:
                    _log.warning("jwks_key_skipped", kid=kid, why=why)
            self._replace(found.keys)

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures == 1 or self._failures % 30 == 0:  # every five minutes
            _log.warning("jwks_failed", why=why, failures=self._failures, keys=len(self._keys))
        age_s = None if self._good_at is None else asyncio.get_running_loop().time() - self._good_at
        if self._keys and (age_s is None or age_s > KEPT_S):
            _log.error("jwks_too_old", hours=round(KEPT_S / 3600, 1))
            self._replace({})

    def _replace(self, keys: dict[str, Key]) -> None:
        if keys != self._keys:
            _log.info("jwks_changed", keys={key.kid[:MAX_SAID_CHARS]: key.algorithm for key in keys.values()})
            self._keys = keys
            self.on_change()


def http_client() -> Any:
    """An httpx.AsyncClient with our limits."""
    import httpx  # 0.1 s and 10 MB that a bridge without a provider is spared

    return httpx.AsyncClient(follow_redirects=False, timeout=httpx.Timeout(FETCH_WITHIN_S, connect=CONNECT_WITHIN_S))


async def fetch(client: Any, url: str) -> bytes:
    """The document. Raises httpx.HTTPError, ValueError: not 200, or over 256 KiB."""
    # Not compressed: 256 KiB of that could become 256 MB.
    headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code != 200:  # a redirect too: the address is the operator's to give
            raise ValueError(f"the answer is {response.status_code}, not 200")
        document = bytearray()
        async for piece in response.aiter_raw():
            document += piece
            if len(document) > MAX_BYTES:
                raise ValueError(f"the answer is over {MAX_BYTES} bytes")
    return bytes(document)
