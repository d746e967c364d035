"""ServiceHTTPClient: one service of the platform over HTTP, for programs outside it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from client import address, files
from client.config import ClientConfig
from client.errors import ServiceError
from client.stream import EVENT_STREAM, EventStream
from client.transport import Answer, Asked, Content, Transport
from codec import JSON, decode, decode_plain, encode
from codec import headers as h
from subjects import jobs
from subjects.contract import Call, Code, Fault, Model
from subjects.grammar import token as checked

I = TypeVar("I", bound=Model)  # noqa: E741
O = TypeVar("O", bound=Model)  # noqa: E741
Headers = Mapping[str, str]
Params = Mapping[str, str | list[str]]

RESPOND_ASYNC = "respond-async"
UPLOAD = "/api/v1/ingestion/upload"
JOBS = "/api/v1/jobs"
WAIT_STEP_S = 20.0  # one question after a job's end waits so long
MIN_WAIT_STEP_S = 0.2

_trace = TraceContextTextMapPropagator()


class ServiceHTTPClient:
    """`await client.post("generate", json_data={...})`: answers as JSON values, failures as ServiceError.

    path: see client/README.md. What may change something carries an Idempotency-Key, one for all attempts of a call,
    so that it can be asked again when an answer got lost. Made by ServiceClientManager.get_client, or alone.
    """

    def __init__(self, service: str, config: ClientConfig | None = None, *, transport: Transport | None = None) -> None:
        self.service = checked(service, "service")
        self._owned = transport is None
        self._transport = transport or Transport(config or ClientConfig())

    async def __aenter__(self) -> ServiceHTTPClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections, unless they are a manager's."""
        if self._owned:
            await self._transport.close()

    @staticmethod
    def get_headers(
        tenant_id: str | None = None, user_id: str | None = None, correlation_id: str | None = None
    ) -> dict[str, str]:
        """The standard headers of one user-visible action. The token rules: another tenant than its own is FORBIDDEN,
        and the user is told for a reader of logs alone. Without a correlation id one is made."""
        found = {h.TENANT: tenant_id, h.USER: user_id, h.CORRELATION_ID: correlation_id or uuid.uuid4().hex}
        return {name: value for name, value in found.items() if value}

    # -- JSON -----------------------------------------------------------------------------------------------------

    async def get(self, path: str, *, params: Params | None = None, headers: Headers | None = None) -> Any:
        """Raises ServiceError, as each of these."""
        return _json(await self._transport.ask(self._asked("GET", path, headers, params=params)))

    async def post(
        self,
        path: str,
        json_data: Any = None,
        *,
        headers: Headers | None = None,
        params: Params | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """timeout_s: of the whole call. json_data: a JSON value or a Model."""
        return _json(await self._send("POST", path, json_data, headers, params=params, limit_s=timeout_s))

    async def put(self, path: str, json_data: Any = None, *, headers: Headers | None = None) -> Any:
        return _json(await self._send("PUT", path, json_data, headers))

    async def delete(self, path: str, *, params: Params | None = None, headers: Headers | None = None) -> Any:
        return _json(await self._transport.ask(self._asked("DELETE", path, headers, params=params)))

    async def call(
        self, call: Call[I, O], message: I, *, headers: Headers | None = None, timeout_s: float | None = None
    ) -> O:
        """A contract's operation, typed: `await client.call(rag.QUERY, rag.Query(question="..."))`."""
        given = dict(headers or {}) | {h.ACCEPT: JSON}
        if call.long:
            raise Fault(Code.INVALID, f"{call.name} is a job: submit it, then wait for it")
        return _as(call.output, await self._send("POST", call.path, message, given, limit_s=timeout_s))

    # -- streams --------------------------------------------------------------------------------------------------

    def stream(
        self, path: str, json_data: Any = None, *, headers: Headers | None = None, as_job: bool = False
    ) -> EventStream:
        """`async for event in client.stream("query", json_data={...})`. as_job: it survives a cut, and its reader."""
        given = dict(headers or {}) | {h.ACCEPT: EVENT_STREAM}
        if as_job:
            given[h.PREFER] = RESPOND_ASYNC
        config = self._transport.config
        asked = self._asked("POST", path, given, content=_body(json_data), idle_s=config.stream_idle_s, timed=False)
        return EventStream(self._transport, asked)

    def events(self, job_id: str, *, last_id: str = "", headers: Headers | None = None) -> EventStream:
        """A job's output from its beginning, or after an event that was seen."""
        given = dict(headers or {}) | {h.ACCEPT: EVENT_STREAM} | ({h.LAST_EVENT_ID: last_id} if last_id else {})
        path = f"{JOBS}/{checked(job_id, 'job id')}/events"
        asked = self._asked("GET", path, given, idle_s=self._transport.config.stream_idle_s, timed=False)
        return EventStream(self._transport, asked, job_id=job_id, last_id=last_id)

    # -- jobs -----------------------------------------------------------------------------------------------------

    async def submit(
        self,
        path: str,
        json_data: Any = None,
        *,
        key: str | None = None,
        deadline_s: float | None = None,
        headers: Headers | None = None,
    ) -> jobs.Submitted:
        """Make it a durable job. key: the same one is the same job. deadline_s: not started later than that."""
        given = dict(headers or {}) | {h.PREFER: RESPOND_ASYNC}
        if key is not None:
            given[h.IDEMPOTENCY_KEY] = key
        if deadline_s is not None:
            given[h.REQUEST_TIMEOUT] = f"{deadline_s:.3f}"
        return _as(jobs.Submitted, await self._send("POST", path, json_data, given))

    async def wait(self, job_id: str, *, timeout_s: float = 300.0, headers: Headers | None = None) -> jobs.Job:
        """The job once it has ended, however it did. Raises ServiceError(TIMEOUT) when it has not by then."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while True:
            left_s = until - loop.time()
            asked = jobs.WaitForJob(job_id=job_id, wait_s=round(min(WAIT_STEP_S, max(MIN_WAIT_STEP_S, left_s)), 3))
            job = await self.call(jobs.WAIT, asked, headers=headers)
            if job.status in jobs.FINAL:
                return job
            if loop.time() >= until:
                raise ServiceError(Code.TIMEOUT, f"the job {job_id} is still {job.status} after {timeout_s:g} s")

    async def job(self, job_id: str, *, headers: Headers | None = None) -> jobs.Job:
        """The job as it stands. Raises NotFound."""
        return await self.call(jobs.GET, jobs.GetJob(job_id=job_id), headers=headers)

    async def cancel(self, job_id: str, *, headers: Headers | None = None) -> jobs.Job:
        return await self.call(jobs.CANCEL, jobs.CancelJob(job_id=job_id), headers=headers)

    # -- files ----------------------------------------------------------------------------------------------------

    async def upload(
        self,
        source: files.Source,
        *,
        name: str = "",
        fields: Mapping[str, Any] | None = None,
        key: str | None = None,
        progress: files.Progress | None = None,
        headers: Headers | None = None,
        path: str = UPLOAD,
    ) -> Any:
        """Send a file, a piece at a time; gives the answer's JSON. fields: collection, source_id, metadata.

        Repeated only when the source can be opened again. Raises ServiceError, and what the source raises.
        """
        form = await files.Form.of(source, name, fields or {}, progress)
        given = dict(headers or {}) | {h.CONTENT_TYPE: form.content_type}
        if form.length is not None:
            given[h.CONTENT_LENGTH] = str(form.length)
        if key is not None:
            given[h.IDEMPOTENCY_KEY] = key
        limit_s = self._transport.config.transfer_timeout_s
        asked = self._asked(
            "POST", path, given, content=form.body, limit_s=limit_s, attempt_s=limit_s, once=not form.reopens,
            idle_s=self._transport.config.read_timeout_s, timed=False,
        )  # fmt: skip
        return _json(await self._transport.ask(asked))

    async def download(
        self,
        path: str,
        target: Path,
        *,
        params: Params | None = None,
        progress: files.Progress | None = None,
        headers: Headers | None = None,
    ) -> int:
        """What stands at a path into a file, which is there whole or not at all. Gives its size."""
        limit_s = self._transport.config.transfer_timeout_s
        asked = self._asked(
            "GET", path, headers, params=params, limit_s=limit_s, attempt_s=limit_s,
            idle_s=self._transport.config.read_timeout_s,
        )  # fmt: skip
        return await self._transport.attempts(asked, partial(_save, target, progress))

    # -- making a request -----------------------------------------------------------------------------------------

    async def _send(
        self, method: str, path: str, json_data: Any, headers: Headers | None, *, params: Params | None = None,
        limit_s: float | None = None,
    ) -> Answer:  # fmt: skip
        content = _body(json_data)
        return await self._transport.ask(
            self._asked(method, path, headers, params=params, content=content, limit_s=limit_s, attempt_s=limit_s)
        )

    def _asked(
        self, method: str, path: str, headers: Headers | None, *, content: Content = None,
        params: Params | None = None, once: bool = False, timed: bool = True, **limits: float | None,
    ) -> Asked:  # fmt: skip
        place = address.find(self.service, method, path)
        made: dict[str, str] = {h.CORRELATION_ID: uuid.uuid4().hex, h.ACCEPT: JSON}
        if content is not None:
            made[h.CONTENT_TYPE] = JSON
        _trace.inject(made)  # of the caller's current span, if it has one
        if address.changes(method, place.call):
            made[h.IDEMPOTENCY_KEY] = uuid.uuid4().hex
        names = {name.lower(): name for name in made}
        for name, value in (headers or {}).items():
            made.pop(names.get(name.lower(), ""), None)
            made[name] = value
        is_job = RESPOND_ASYNC in made.get(h.PREFER, "") or (place.call is not None and place.call.long)
        return Asked(
            place.service,
            method,
            place.path,
            made,
            content,
            params,
            safe=not once,
            timed=timed and not is_job,
            **limits,
        )


async def _save(target: Path, progress: files.Progress | None, response: httpx.Response) -> int:
    return await files.save(response, target, progress)


def _body(json_data: Any) -> bytes:
    """Raises Fault(INVALID) for what is not JSON."""
    if isinstance(json_data, Model):
        return encode(json_data, JSON)
    try:
        return json.dumps({} if json_data is None else json_data, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault(Code.INVALID, "json_data must be JSON: no NaN, no bytes, no half surrogates") from error


def _json(answer: Answer) -> Any:
    if not answer.body:
        return None
    try:
        return decode_plain(answer.body, JSON)
    except Fault as fault:
        raise _unreadable(answer) from fault


def _as(model: type[O], answer: Answer) -> O:
    try:
        return decode(answer.body, model, JSON)
    except Fault as fault:
        raise _unreadable(answer) from fault


def _unreadable(answer: Answer) -> ServiceError:
    return ServiceError(
        Code.UPSTREAM, "the answer cannot be read: not JSON, or not of its contract", status=answer.status,
        retryable=False, request_id=answer.headers.get(h.REQUEST_ID),
        correlation_id=answer.headers.get(h.CORRELATION_ID),
    )  # fmt: skip
