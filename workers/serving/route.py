"""The vocabulary of a worker's table: what it serves, what it consumes, whom it may call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from subjects.contract import Call, Event, Model

if TYPE_CHECKING:
    from workers.serving.context import Context
    from workers.serving.host import Host

In = TypeVar("In", bound=Model)
Out = TypeVar("Out", bound=Model)

# The one erased seam: below this line the dispatcher does not know a message's type, only that its contract does.
Handler = Callable[["Context[Any]", Any], Awaitable[Any]]
Lifespan = Callable[["Host"], AbstractAsyncContextManager[Any]]
Need = Literal["database", "valkey", "objects", "pool"]


class Later(Exception):
    """A handler raises it to hand its job back: deliver it again after delay_s, and hold nothing meanwhile.

    Counts neither as a fault nor as a crash. In a request, which cannot be handed back, the handler simply runs again
    after the delay, until the deadline.
    """

    def __init__(self, delay_s: float, reason: str = "") -> None:
        super().__init__(reason or f"again in {delay_s} s")
        self.delay_s = delay_s


@dataclass(frozen=True, eq=False)
class Serve:
    call: Call[Any, Any]
    handler: Handler


@dataclass(frozen=True, eq=False)
class On:
    event: Event[Any]
    handler: Handler


@dataclass(frozen=True, eq=False)
class Route:
    """A handler ready to run: what it takes and gives, and how long it may take."""

    input: type[Model]
    output: type[Model] | None
    handler: Handler
    timeout_s: float
    streams: bool = False
    long: bool = False


def serve(call: Call[In, Out], handler: Callable[[Context[Any], In], Awaitable[Out]]) -> Serve:
    """This handler answers this operation, as a request and as a job."""
    return Serve(call, handler)


def on(event: Event[In], handler: Callable[[Context[Any], In], Awaitable[None]]) -> On:
    """This handler hears this event, each at least once, in effect once."""
    return On(event, handler)


@dataclass(frozen=True, eq=False)
class Worker:
    """A component's table.

    lifespan opens its Deps. calls lists the contracts that it may call; the client refuses others. keys says where
    the claim of a request's Idempotency-Key lives: the database, Valkey (24 h, best effort) or nowhere. Jobs and
    events always use the database.
    """

    name: str
    lifespan: Lifespan
    serves: Sequence[Serve]
    consumes: Sequence[On] = ()
    calls: Sequence[Call[Any, Any]] = ()
    keys: Literal["database", "valkey", "nowhere"] = "database"
    needs: frozenset[Need] = field(default=frozenset({"database"}))

    def __post_init__(self) -> None:
        for route in self.serves:
            if route.call.component != self.name:
                raise ValueError(f"worker {self.name} cannot serve {route.call.name}")
        if len({route.call.operation for route in self.serves}) != len(self.serves):
            raise ValueError(f"worker {self.name} serves an operation twice")
        if (self.consumes or self.serves_jobs) and "database" not in self.needs:
            raise ValueError(f"worker {self.name} takes jobs or events, so it needs the database")

    @property
    def serves_jobs(self) -> bool:
        return any(route.call.job for route in self.serves)
