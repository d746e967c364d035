"""Requests over HTTP: one shared connection pool, attempts with backoff, a circuit breaker for each service."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from client.breaker import Breaker
from client.config import ClientConfig
from client.errors import CircuitOpen, ServiceError, from_answer
from codec import headers as h
from subjects.contract import Code, Fault

T = TypeVar("T")
Content = bytes | Callable[[], AsyncIterator[bytes]] | None

MAX_BREAKERS = 256
MAX_PROBLEM_BYTES = 64 * 1024
ANSWER_GRACE = 0.1
ANSWER_GRACE_S = 1.0
"""The bridge is told a tenth less time than an attempt has, at most 1 s: its 504 comes before our own patience ends."""

_log = logging.getLogger("client")


@dataclass(frozen=True)
class Asked:
    """A request as it is sent, again and again if it must be.

    safe: it may be repeated though its outcome is unknown. timed: `Request-Timeout` is told (not to what becomes a
    job: there it would be the job's deadline). A content that is a function is called for each attempt.
    """

    service: str
    method: str
    path: str
    headers: Mapping[str, str]
    content: Content = None
    params: Mapping[str, str | list[str]] | None = None
    safe: bool = False
    timed: bool = True
    limit_s: float | None = None
    attempt_s: float | None = None
    idle_s: float | None = None


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Shared by the clients of all services. Close it, or use it as a context manager."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config = config.resolved()
        self._breakers: dict[str, Breaker] = {}
        self._http = httpx.AsyncClient(
            base_url=config.base_url,
            limits=httpx.Limits(
                max_connections=config.max_connections,
                max_keepalive_connections=config.max_idle_connections,
                keepalive_expiry=config.idle_connection_s,
            ),
            follow_redirects=False,  # a token goes nowhere else
        )

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Every connection; what is under way fails."""
        await self._http.aclose()

    async def ask(self, asked: Asked) -> Answer:
        """The answer, read whole. Raises ServiceError."""
        return await self.attempts(asked, self._whole)

    async def attempts(self, asked: Asked, use: Callable[[httpx.Response], Awaitable[T]]) -> T:
        """What use() makes of the first good answer, which it must close. Raises the last attempt's ServiceError."""
        limit_s = asked.limit_s or self.config.total_timeout_s
        until = asyncio.get_running_loop().time() + limit_s
        backoff = wait_random_exponential(multiplier=self.config.backoff_from_s, max=self.config.backoff_to_s)

        def pause_s(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            hint_s = error.retry_after_s if isinstance(error, ServiceError) else None
            if hint_s is None:
                return backoff(state)
            return hint_s + random.uniform(0, self.config.backoff_from_s)  # those told the same come one by one

        def again(error: BaseException) -> bool:
            if not isinstance(error, ServiceError) or isinstance(error, CircuitOpen):
                return False
            return not error.sent or (asked.safe and error.retryable)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.config.max_attempts) | stop_before_delay(limit_s),
            wait=pause_s,
            retry=retry_if_exception(again),
            before_sleep=lambda state: _tell(asked, state),
            reraise=True,
        )
        return await retrying(self._attempt, asked, use, until)

    async def _attempt(self, asked: Asked, use: Callable[[httpx.Response], Awaitable[T]], until: float) -> T:
        left_s = until - asyncio.get_running_loop().time()
        attempt_s = max(0.001, min(left_s, asked.attempt_s or self.config.read_timeout_s))
        with self._breaker(asked).attempt(), _as_service_errors(asked):
            async with asyncio.timeout(attempt_s):
                request = self._http.build_request(
                    asked.method,
                    asked.path,
                    headers=await self._headers(asked, attempt_s),
                    content=asked.content() if callable(asked.content) else asked.content,
                    params=asked.params,
                    timeout=httpx.Timeout(
                        asked.idle_s or attempt_s, connect=min(self.config.connect_timeout_s, attempt_s)
                    ),
                )
                response = await self._http.send(request, stream=True)
                try:
                    if not response.is_success:
                        body = await read(response, MAX_PROBLEM_BYTES, cut=True)
                        raise from_answer(response.status_code, response.headers, body)
                    return await use(response)
                except BaseException:
                    await response.aclose()
                    raise

    async def _headers(self, asked: Asked, attempt_s: float) -> dict[str, str]:
        made = {h.REQUEST_ID: uuid.uuid4().hex, **asked.headers}
        given = {name.lower() for name in made}
        if asked.timed and h.REQUEST_TIMEOUT.lower() not in given:
            made[h.REQUEST_TIMEOUT] = f"{attempt_s - min(ANSWER_GRACE_S, attempt_s * ANSWER_GRACE):.3f}"
        if h.AUTHORIZATION.lower() not in given and (token := await self._token()):
            made[h.AUTHORIZATION] = f"Bearer {token}"
        return made

    async def _token(self) -> str:
        token = self.config.token
        if not callable(token):
            return token or ""
        found = token()
        return await found if inspect.isawaitable(found) else found

    async def _whole(self, response: httpx.Response) -> Answer:
        try:
            body = await read(response, self.config.max_answer_bytes)
        finally:
            await response.aclose()
        return Answer(response.status_code, response.headers, body)

    def _breaker(self, asked: Asked) -> Breaker:
        found = self._breakers.get(asked.service)
        if found is None:
            if len(self._breakers) >= MAX_BREAKERS:
                self._breakers.pop(next(iter(self._breakers)))
            found = Breaker(asked.service, self.config.breaker_failures, self.config.breaker_open_s)
            self._breakers[asked.service] = found
        return found


async def read(response: httpx.Response, limit: int, *, cut: bool = False) -> bytes:
    """The body. Raises ServiceError(TOO_LARGE) over the limit, unless it may be cut there."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit:
            if cut:
                break
            raise ServiceError(
                Code.TOO_LARGE, f"the answer is over {limit} bytes", status=response.status_code, retryable=False
            )
    return bytes(body)


@contextmanager
def _as_service_errors(asked: Asked) -> Iterator[None]:
    """What httpx raises, told as a ServiceError. Its texts may hold addresses, and are not passed on."""
    what = f"{asked.method} {asked.path}"
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServiceError(Code.UNAVAILABLE, f"{what}: no connection to the bridge", sent=False) from error
    except httpx.PoolTimeout as error:
        detail = f"{what}: all connections of this client are in use"
        raise ServiceError(Code.EXHAUSTED, detail, sent=False) from error
    except (httpx.TimeoutException, TimeoutError) as error:
        raise ServiceError(Code.TIMEOUT, f"{what}: no answer in time") from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.LocalProtocolError) as error:
        raise Fault(Code.INVALID, f"{what}: the address or a header cannot be sent") from error
    except httpx.HTTPError as error:
        raise ServiceError(Code.UNAVAILABLE, f"{what}: the connection was lost") from error


def _tell(asked: Asked, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    code = error.code.value if isinstance(error, Fault) else "-"
    _log.info("attempt %d of %s %s failed: %s; next in %.2f s", state.attempt_number, asked.method, asked.path, code,
              state.upcoming_sleep)  # fmt: skip
