"""What a caller may do is checked by the worker itself, whoever let the message onto the bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

import codec
from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection
from runtime.identity import MAX_SCOPES_CHARS, Identity
from runtime.jobs import job_id as job_id_of
from runtime.settings import Settings
from stack import Stack
from subjects import grammar
from subjects.contract import AnyCall, Call, Code, Fault, Model
from tests.lab import contract as lab
from tests.lab.fixtures import ended, rows
from workers.serving import Context, Host, Worker, serve
from workers.serving.boot import serving

pytestmark = pytest.mark.usefixtures("served")

LACKING = ["", "lab", "lab.ech", "lab.echo2", "rag.*", "rag.query", "LAB.ECHO", "lab.", ".echo", "echo", "la*",
           "*.echo", "lab.e*", "**", "lab.echo,lab.echo", "lab.*.echo", "lab.count lab.write"]  # fmt: skip


async def asked(connection: Connection, tenant: str, call: AnyCall, body: Any, **headers: str) -> Any:
    """Straight onto the bus, past the bridge and our client. The reply, or its code."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    subject = grammar.request(tenant, call.component, call.operation)
    message = await connection.request(subject, msgpack.packb(body), timeout=5, headers=given)
    return (message.headers or {}).get(h.ERROR_CODE) or msgpack.unpackb(message.data)


async def test_a_request_without_the_scope_is_forbidden(connection: Connection, tenant: str) -> None:
    for scopes in LACKING:
        assert await asked(connection, tenant, lab.ECHO, {"text": "x"}, X_Scopes=scopes) == Code.FORBIDDEN, scopes
    for scopes in ("lab.echo", "lab.*", "*", "rag.query lab.echo"):
        assert (await asked(connection, tenant, lab.ECHO, {"text": "x"}, X_Scopes=scopes))["text"] == "x", scopes
    assert (await asked(connection, tenant, lab.ECHO, {"text": "x"}))["text"] == "x"  # a platform process


async def test_scopes_that_cannot_be_are_refused(connection: Connection, tenant: str) -> None:
    for scopes in ("x" * (MAX_SCOPES_CHARS + 1), "lab.echo\x07"):
        assert await asked(connection, tenant, lab.ECHO, {}, X_Scopes=scopes) == Code.INVALID


async def test_without_the_scope_nothing_is_said_about_the_message(connection: Connection, tenant: str) -> None:
    assert await asked(connection, tenant, lab.ECHO, {"number": "x"}, X_Scopes="") == Code.FORBIDDEN
    assert await asked(connection, tenant, lab.ECHO, {"number": "x"}) == Code.INVALID


async def test_the_answer_kept_under_a_key_is_not_for_who_lacks_the_scope(
    connection: Connection, tenant: str, stack: Stack
) -> None:
    body, key = {"name": "kept"}, {"Idempotency_Key": "k"}
    assert await asked(connection, tenant, lab.WRITE, body, X_Scopes="lab.count", **key) == Code.FORBIDDEN
    assert (await asked(connection, tenant, lab.WRITE, body, **key))["rows"] == 1
    assert await asked(connection, tenant, lab.WRITE, body, X_Scopes="lab.count", **key) == Code.FORBIDDEN
    assert (await asked(connection, tenant, lab.WRITE, body, X_Scopes="lab.write", **key))["rows"] == 1
    assert await rows(stack, tenant, "kept") == 1


async def test_a_chunked_call_without_the_scope_gives_no_chunk(
    connection: Connection, client: Client, tenant: str
) -> None:
    heard: list[bytes] = []
    listening = await connection.listen(f"out.{tenant}.>", lambda subject, *_: heard.append(subject))
    headers = {h.OUTPUT_TO.replace("-", "_"): "o1"}
    assert await asked(connection, tenant, lab.PIECES, {}, X_Scopes="lab.echo", **headers) == Code.FORBIDDEN

    async def pieces() -> None:
        async with client.stream(lab.PIECES, lab.Pieces(), identity=narrow(tenant, "lab.echo")) as stream:
            async for _ in stream:
                pytest.fail("a chunk")

    with pytest.raises(Fault, match=r"lab\.pieces"):
        await pieces()
    await connection.flush()
    assert heard == []
    await listening.unsubscribe()


def narrow(tenant: str, *scopes: str) -> Identity:
    return Identity.new(tenant, scopes=frozenset(scopes))


@pytest.mark.parametrize("scopes", [(), ("lab.echo",)])
async def test_a_job_without_the_scope_fails_and_has_no_effect(
    client: Client, identity: Identity, stack: Stack, scopes: tuple[str, ...]
) -> None:
    sender = narrow(identity.tenant, *scopes)
    submitted = await client.submit(lab.WRITE, lab.Write(name="never"), identity=sender)
    job = await ended(client, identity, submitted.job_id)
    assert (job.status, job.fault and job.fault.code) == ("failed", Code.FORBIDDEN)
    assert await rows(stack, identity.tenant, "never") == 0


async def test_a_job_from_a_plain_client_with_no_scopes_fails(
    connection: Connection, client: Client, identity: Identity, stack: Stack
) -> None:
    job_id = job_id_of(identity.tenant, lab.WRITE.name, "plain")
    subject = grammar.job(identity.tenant, "lab", "write", job_id)
    await connection.publish(subject, msgpack.packb({"name": "plain"}), headers={h.SCOPES: ""})
    job = await ended(client, identity, job_id)
    assert (job.status, job.fault and job.fault.code) == ("failed", Code.FORBIDDEN)
    assert await rows(stack, identity.tenant, "plain") == 0


async def test_a_finished_job_does_not_tell_its_result_to_who_lacks_the_scope(
    connection: Connection, client: Client, identity: Identity, stack: Stack
) -> None:
    message = lab.Write(name="told")
    submitted = await client.submit(lab.WRITE, message, identity=identity)
    assert (await ended(client, identity, submitted.job_id)).status == "succeeded"
    inbox, heard = connection.new_inbox(), asyncio.Queue[bytes]()
    listening = await connection.listen(inbox, lambda _subject, _reply, data, _block: heard.put_nowait(data))
    headers = {h.SCOPES: "", h.REPLY_TO: inbox, h.BODY_DIGEST: codec.digest(message)}
    subject = grammar.job(identity.tenant, "lab", "write", submitted.job_id)
    await connection.publish(subject, codec.encode(message), headers=headers)
    said = await asyncio.wait_for(heard.get(), 10)
    assert b"told" not in said
    assert await rows(stack, identity.tenant, "told") == 1
    await listening.unsubscribe()


# -- inner calls -----


class Through(Model):
    call: str


class Reached(Model):
    rows: int


OUTER = Call("outer", "reach", Through, Reached, timeout_s=10, job=False)


async def reach(ctx: Context[None], message: Through) -> Reached:
    if message.call == "count":
        return Reached(rows=(await ctx.call(lab.COUNT, lab.Count(name="x"))).rows)
    await ctx.call(lab.ECHO, lab.Echo())
    return Reached(rows=0)


@asynccontextmanager
async def nothing(_host: Host) -> AsyncIterator[None]:
    yield None


async def test_an_inner_call_needs_the_table_not_the_caller(
    connection: Connection, client: Client, settings: Settings, tenant: str
) -> None:
    """ADR 7: who holds outer.reach gets what that calls, nobody gets more, and the table says what it may call."""
    worker = Worker(
        "outer", nothing, serves=[serve(OUTER, reach)], calls=[lab.COUNT], keys="nowhere", needs=frozenset()
    )
    async with serving([worker], settings, connection):
        holder = narrow(tenant, "outer.reach")
        assert (await client.call(OUTER, Through(call="count"), identity=holder)).rows == 0
        for identity, call, code in (
            (holder, "echo", Code.FORBIDDEN),  # not in the table
            (narrow(tenant, "*"), "echo", Code.FORBIDDEN),  # not even for one who may all
            (narrow(tenant, "lab.count"), "count", Code.FORBIDDEN),  # the inner scope opens no outer door
            (narrow(tenant), "count", Code.FORBIDDEN),
        ):
            started = time.monotonic()
            with pytest.raises(Fault) as raised:
                await client.call(OUTER, Through(call=call), identity=identity)
            assert raised.value.code is code, (identity.scopes, call)
            assert time.monotonic() - started < 2
        with pytest.raises(Fault, match=r"lab\.count"):  # what was lent for the inner call is not kept
            await client.call(lab.COUNT, lab.Count(name="x"), identity=holder)
