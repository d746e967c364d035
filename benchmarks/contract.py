"""The component that is measured: it does nothing, so that what is measured is the platform."""

from __future__ import annotations

from subjects.contract import Call, Empty, Model

TENANT = "bench"


class Echo(Model):
    """Eight fields of the usual kinds."""

    id: str = "0195a0c2-7c1e-7b44-9a54-4b8f6f0a7d11"
    name: str = "a question of ordinary length"
    number: int = 42
    ratio: float = 0.5
    flag: bool = True
    note: str | None = None
    tags: list[str] = ["one", "two"]
    counts: dict[str, int] = {"a": 1, "b": 2}


ECHO = Call("bench", "echo", Echo, Echo, timeout_s=5, job=False)
NOOP = Call("bench", "noop", Echo, Empty, timeout_s=5, mutates=True)
EIGHT_FIELDS = Echo()
EIGHT_FIELDS = Echo.model_validate(EIGHT_FIELDS.model_dump())  # each field set, so each is sent
