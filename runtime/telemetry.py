"""Logs, with the ids of the message that is being handled and the span that is current."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from runtime import tracing
from runtime.settings import Settings

_ids: ContextVar[Mapping[str, str | int | None]] = ContextVar("ids", default=MappingProxyType({}))
_QUIET = ("nats", "asyncio", "httpx", "httpcore", "urllib3", "LiteLLM")


def configure(settings: Settings, service: str) -> None:
    """Write structured logs to stderr, one JSON object a line (LOG_FORMAT=console: for a person).

    Records of the standard library's logging take the same way, from WARNING on for chatty libraries.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        with_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service(settings.service_name or service, settings.service_version),
    ]
    last = _renderers(settings)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class _Stderr:
    """stderr as it is when a line is written: whoever embeds us may have put another in its place."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _renderers(settings: Settings) -> list[Processor]:
    if settings.log_format == "console":
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]


def _service(name: str, version: str) -> Processor:
    def add(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"], event["version"] = name, version
        return event

    return add


def get_logger(name: str) -> FilteringBoundLogger:
    return cast(FilteringBoundLogger, structlog.get_logger(module=name))


def bind(**ids: str | int | None) -> None:
    """Put ids on every further log line of this task. Call it inside the task of one message: bound outside, one
    tenant's ids would stand in the next one's lines."""
    _ids.set({**_ids.get(), **ids})


def with_ids(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The ids of the message that this task handles, and its span's."""
    # One variable with all ids, read when a line is written: most messages write none.
    for name, value in _ids.get().items():
        if value is not None:
            event.setdefault(name, value)
    span = tracing.current()
    if span is not None:
        event.setdefault("span_id", span.span_id)
    return event
