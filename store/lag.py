"""Tells when a consumer of events falls so far behind that the stream is about to remove what it has not seen."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import asyncpg
import structlog
from nats.errors import Error as NatsError
from nats.js.api import ConsumerInfo, StreamInfo
from nats.js.errors import NotFoundError

from runtime import metrics
from runtime.connection import Connection
from runtime.stored import read_batch
from runtime.streams import API_TIMEOUT_S, EVENTS
from store.sweep import consumers_of
from subjects.contract import Code, Fault

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]

LIMIT = 0.8
"""Share of what EVENTS keeps, by age or by bytes, whichever is nearer."""
LAG = metrics.Observed(
    "faas.consumer.lag", "", "How much of what EVENTS keeps a consumer is behind; from 1 on it loses events.", "gauge",
    ("faas.consumer",),
)  # fmt: skip

_log = structlog.get_logger("store.lag")


class Lag:
    """Looks at the consumers of EVENTS. /metrics of the process that leads tells what the last look found."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._shares: dict[str, float] = {}

    def read(self) -> list[tuple[tuple[str], float]]:
        """For LAG.watch()."""
        return [((name,), share) for name, share in list(self._shares.items())]

    def forget(self) -> None:
        """Another process looks from now on."""
        self._shares = {}

    async def look(self, _: _Connection) -> None:
        """Warn of each consumer at or over LIMIT. Raises Fault(UNAVAILABLE, TIMEOUT)."""
        js = self._connection.jetstream(timeout=API_TIMEOUT_S)
        try:
            info = await js.stream_info(EVENTS)
            consumers = await consumers_of(js, EVENTS)
        except NotFoundError:
            self._shares = {}
            return
        except (NatsError, TimeoutError) as error:
            raise Fault(Code.UNAVAILABLE, "JetStream does not answer") from error
        shares = {consumer.name: await self._share(info, consumer) for consumer in consumers}
        self._shares = shares
        for name, share in shares.items():
            if share >= LIMIT:
                _log.warning("consumer_lags", consumer=name, lag=round(share, 3), limit=LIMIT)

    async def _share(self, info: StreamInfo, consumer: ConsumerInfo) -> float:
        if not consumer.num_pending and not consumer.num_ack_pending:
            return 0.0
        floor = consumer.ack_floor.stream_seq if consumer.ack_floor is not None else 0
        of = consumer.config.filter_subject or ">"
        # The floor may stand at an event that is gone: what counts is the first that is still there.
        oldest = await read_batch(self._connection, EVENTS, of, floor + 1, 1)
        if not oldest:
            return 0.0
        age_s = (datetime.now(UTC) - oldest[0].stored_at).total_seconds()
        return behind(info, oldest[0].sequence, age_s)


def behind(info: StreamInfo, sequence: int, age_s: float) -> float:
    """The share of what the stream keeps that lies behind a consumer whose next message has this number and age.

    Bytes are taken as spread evenly over the messages.
    """
    kept_s, kept_bytes, state = info.config.max_age or 0, info.config.max_bytes or 0, info.state
    by_age = age_s / kept_s if kept_s > 0 else 0.0
    messages = max(1, state.last_seq - state.first_seq + 1)
    waiting = (state.last_seq - sequence + 1) / messages * state.bytes
    by_bytes = waiting / kept_bytes if kept_bytes > 0 else 0.0
    return max(by_age, by_bytes)
