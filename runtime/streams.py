"""Streams and consumers: what JetStream keeps, and who reads it. Created when absent, never changed."""

from __future__ import annotations

from dataclasses import replace

from nats.aio.client import Client as Nats
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    ObjectStoreConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError

from runtime import telemetry
from runtime.settings import Settings
from subjects import grammar
from subjects.contract import AnyEvent, Code, Fault

JOBS, EVENTS, DLQ, OUT = "JOBS", "EVENTS", "DLQ", "OUT"
FILES_BUCKET = "files"
FILES_STREAM = f"OBJ_{FILES_BUCKET}"

GIB = 1024**3
STREAM_BYTES = 10 * GIB
FEWEST_STREAM_BYTES = GIB // 4
OUT_BYTES = 256 * 1024**2
OUT_AGE_S = 15 * 60
OUT_CHUNKS_A_SUBJECT = 10_000
EVENTS_AGE_S = 7 * 24 * 3600
DUPLICATE_WINDOW_S = 120
MAX_ACK_PENDING = 10_000  # a nak with delay stays pending: a small number lets a few failing jobs block good ones
API_TIMEOUT_S = 5.0

# Errors of the JetStream API (server/errors.json of nats-server).
STREAM_NAME_IN_USE = 10058
CONSUMER_EXISTS = 10148
CONSUMER_NAME_IN_USE = 10013
_TOO_LITTLE_STORAGE = frozenset({10023, 10028, 10047})

_log = telemetry.get_logger(__name__)


def _kept(name: str, prefix: str) -> StreamConfig:
    return StreamConfig(
        name=name,
        subjects=[f"{prefix}.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_bytes=STREAM_BYTES,
        allow_direct=True,
    )


STREAMS: tuple[StreamConfig, ...] = (
    _kept(JOBS, grammar.JOB),  # discard new and no max age: an accepted job is never dropped to make room
    replace(
        _kept(EVENTS, grammar.EVENT),
        discard=DiscardPolicy.OLD,
        max_age=EVENTS_AGE_S,
        duplicate_window=DUPLICATE_WINDOW_S,
    ),
    _kept(DLQ, grammar.DEAD_LETTER),
    replace(
        _kept(OUT, grammar.OUTPUT),
        storage=StorageType.MEMORY,
        discard=DiscardPolicy.OLD,
        max_age=OUT_AGE_S,
        max_bytes=OUT_BYTES,
        max_msgs_per_subject=OUT_CHUNKS_A_SUBJECT,
    ),
)


async def ensure(connection: Nats, settings: Settings) -> list[str]:
    """Create the streams and the bucket `files` that are absent; change nothing that is there.

    Returns the names of what was created. Raises Fault(UNAVAILABLE) when JetStream does not answer or refuses.
    """
    js = connection.jetstream(timeout=API_TIMEOUT_S)
    created = []
    try:
        for config in STREAMS:
            if await _absent(js, str(config.name)) and await _add(
                js, replace(config, num_replicas=settings.nats_replicas)
            ):
                created.append(str(config.name))
        if await _absent(js, FILES_STREAM):
            await js.create_object_store(FILES_BUCKET, config=ObjectStoreConfig(replicas=settings.nats_replicas))
            created.append(FILES_BUCKET)
    except (NatsError, TimeoutError) as error:
        raise Fault(Code.UNAVAILABLE, "JetStream does not answer or refused to create a stream") from error
    return created


async def _absent(js: JetStreamContext, name: str) -> bool:
    try:
        await js.stream_info(name)
    except NotFoundError:
        return True
    return False


async def _add(js: JetStreamContext, config: StreamConfig) -> bool:
    """False when another process was faster. On a small disk the stream gets half as much room, and half again."""
    while True:
        try:
            await js.add_stream(config)
        except APIError as error:
            if error.err_code == STREAM_NAME_IN_USE:
                return False
            room = config.max_bytes or 0
            if error.err_code not in _TOO_LITTLE_STORAGE or room // 2 < FEWEST_STREAM_BYTES:
                raise
            config = replace(config, max_bytes=room // 2)
            _log.warning("stream_smaller_than_designed", stream=config.name, max_bytes=config.max_bytes)
            continue
        return True


async def ensure_consumer(connection: Nats, stream: str, config: ConsumerConfig) -> bool:
    """Create a durable consumer when it is absent; one that is there stays as it is. Returns whether it was created.

    Raises Fault(UNAVAILABLE) when JetStream does not answer or refuses.
    """
    js = connection.jetstream(timeout=API_TIMEOUT_S)
    try:
        try:
            await js.consumer_info(stream, str(config.durable_name))
        except NotFoundError:
            await js.add_consumer(stream, config)
            return True
    except APIError as error:
        if error.err_code in (CONSUMER_EXISTS, CONSUMER_NAME_IN_USE):
            return False
        raise Fault(Code.UNAVAILABLE, f"JetStream refused the consumer {config.durable_name} of {stream}") from error
    except (NatsError, TimeoutError) as error:
        raise Fault(Code.UNAVAILABLE, "JetStream does not answer") from error
    return False


def jobs_consumer(component: str, settings: Settings) -> ConsumerConfig:
    """The one durable consumer of a component's jobs, in JOBS."""
    return _durable(component, grammar.jobs_of(component), settings)


def event_consumer(component: str, source: str, event: AnyEvent | str, settings: Settings) -> ConsumerConfig:
    """The durable consumer of one subscription, in EVENTS. event: the contract, or the word after the component."""
    occurred = event if isinstance(event, str) else event.occurred
    return _durable(f"{component}-{source}-{occurred}", grammar.events_of(source, occurred), settings)


def _durable(name: str, subject: str, settings: Settings) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=name,
        filter_subject=subject,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=settings.job_ack_wait_s,
        max_deliver=-1,  # the worker decides when a job is given up: the broker's limit would leave it unseen
        max_ack_pending=MAX_ACK_PENDING,
    )
