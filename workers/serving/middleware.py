"""Who may pass to a handler, and what stands around it as one list: the order in MIDDLEWARE is that of passing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from runtime.identity import Identity
from subjects.contract import Code, Fault
from workers.serving.context import Context
from workers.serving.route import Handler, Later

log = structlog.get_logger("workers.serving")

SLOW_S = 5.0  # a request that took longer is worth a line

Middleware = Callable[[str, Handler], Handler]


def logged(name: str, handler: Handler) -> Handler:
    """One line for each failure and each slow request. None for the rest: at 20,000 requests a second a line each is
    half of the work."""

    async def run(ctx: Context[Any], message: Any) -> Any:
        started = time.perf_counter()
        try:
            result = await handler(ctx, message)
        except Fault as fault:
            level = log.error if fault.code is Code.INTERNAL else log.info
            level("failed", operation=name, code=fault.code.value, detail=fault.detail, took_s=_since(started))
            raise
        if time.perf_counter() - started > SLOW_S and ctx.job_id is None:
            log.info("slow", operation=name, took_s=_since(started))
        return result

    return run


def contained(name: str, handler: Handler) -> Handler:
    """Whatever goes wrong inside becomes a Fault: an unknown exception says only "internal error" to the caller and
    everything to the log; a CancelledError that nobody asked for does not end the task that carries it."""

    async def run(ctx: Context[Any], message: Any) -> Any:
        try:
            return await handler(ctx, message)
        except (Fault, Later):
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if ctx.stop.reason == "caller" and task is not None:
                task.uncancel()
                raise Fault(Code.CANCELLED, "cancelled by its caller") from None
            if ctx.stop.reason is not None or (task is not None and task.cancelling()):
                raise
            log.exception("the handler raised CancelledError by itself", operation=name)
            raise Fault(Code.INTERNAL, "internal error") from None
        except Exception:
            log.exception("unexpected exception", operation=name)
            raise Fault(Code.INTERNAL, "internal error") from None

    return run


def timed(name: str, handler: Handler) -> Handler:
    """Stops at the deadline with TIMEOUT."""

    async def run(ctx: Context[Any], message: Any) -> Any:
        remaining_s = ctx.remaining_s()
        if remaining_s <= 0:
            raise Fault(Code.TIMEOUT, f"{name}: the deadline had passed before it began")
        # A timer that cancels this task: half the price of asyncio.timeout, which every request would pay.
        timer = asyncio.get_running_loop().call_later(remaining_s, ctx.stop.cancel, "deadline")
        try:
            return await handler(ctx, message)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if ctx.stop.reason != "deadline" or task is None:
                raise
            task.uncancel()
            raise Fault(Code.TIMEOUT, f"{name} did not finish before its deadline") from None
        finally:
            timer.cancel()
            if ctx.stop.reason == "deadline":
                ctx.stop.reason = None

    return run


# Outermost first.
MIDDLEWARE: tuple[Middleware, ...] = (logged, contained, timed)


def permit(identity: Identity, name: str) -> None:
    """Refuses a caller without the operation's scope. It stands before everything, not around the handler: the answer
    kept under a key is not for him either, nor what is wrong with his message.

    Raises Fault(FORBIDDEN). Events need no scope: a fact is heard whoever caused it.
    """
    if not identity.allows(name):
        log.info("failed", operation=name, code=Code.FORBIDDEN.value, tenant=identity.tenant, user=identity.user)
        raise Fault(Code.FORBIDDEN, f"{name} needs the scope {name}")


def wrap(name: str, handler: Handler) -> Handler:
    for middleware in reversed(MIDDLEWARE):
        handler = middleware(name, handler)
    return handler


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 4)
