"""One circuit breaker a service: purgatory's state machine, with one probe at a time when it is half open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from purgatory.domain.model import CLOSED, Context, OpenedState

from client.errors import CircuitOpen, ServiceError
from subjects.contract import Code

PROBE_HINT_S = 1.0  # when somebody else's probe is on its way


class Breaker:
    """Opens after so many outages one after another; asks again, with one request, after open_s.

    Outages are answers of 500 and more, timeouts and lost connections. A refusal (4xx) says that the service is there.
    """

    def __init__(self, service: str, failures: int, open_s: float) -> None:
        self._service = service
        self._open_s = open_s
        self._context = Context(service, failures, open_s)
        self._probing = False

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Raises CircuitOpen instead of entering. One that is cancelled inside says nothing about the service."""
        probe = self._enter()
        try:
            yield
        except ServiceError as error:
            if error.is_outage:
                self._context.handle_exception(error)
            elif error.status is not None:
                self._context.handle_end_request()
            raise
        else:
            self._context.handle_end_request()
        finally:
            self._probing = self._probing and not probe
            self._context.messages.clear()  # for listeners, of which there are none

    def _enter(self) -> bool:
        """Whether this attempt is the probe."""
        if self._context.state == CLOSED:
            return False
        if self._probing:
            raise self._refusal(PROBE_HINT_S)
        try:
            self._context.handle_new_request()
        except OpenedState as state:
            raise self._refusal(max(0.0, state.opened_at + self._open_s - time.time())) from None
        self._probing = True
        return True

    def _refusal(self, after_s: float) -> CircuitOpen:
        detail = f"{self._service} failed repeatedly and is left alone; ask again in {after_s:.1f} s"
        return CircuitOpen(Code.UNAVAILABLE, detail, retryable=True, retry_after_s=after_s, sent=False)
