"""What the lab can be asked."""

from __future__ import annotations

from subjects.contract import Call, Code, Event, EventPayload, Model


class Echo(Model):
    text: str = ""
    number: int = 0


class Echoed(Model):
    text: str
    number: int
    tenant: str
    user: str | None = None
    served_by: int = 0


class Write(Model):
    """Add one row `name` to lab_effects, after failing `faults` times, dying `deaths` times, sleeping sleep_s."""

    name: str
    sleep_s: float = 0
    fault: Code | None = None
    faults: int = 0
    die: bool = False
    counter: str = ""


class Written(Model):
    name: str
    rows: int


class Count(Model):
    name: str


class Counted(Model):
    rows: int
    heard: int


class Pieces(Model):
    pieces: int = 5
    pause_s: float = 0.0
    counter: str = ""


class Piece(Model):
    text: str


class Whole(Model):
    text: str


class Steps(Model):
    name: str
    steps: int = 3
    die_after: int = 0
    counter: str


class Happened(EventPayload):
    name: str


ECHO = Call("lab", "echo", Echo, Echoed, timeout_s=5)
WRITE = Call("lab", "write", Write, Written, timeout_s=20, mutates=True)
COUNT = Call("lab", "count", Count, Counted, timeout_s=5, job=False)
PIECES = Call("lab", "pieces", Pieces, Whole, chunk=Piece, timeout_s=30)
STEPS = Call("lab", "steps", Steps, Written, timeout_s=30, mutates=True, long=True)
BROKEN = Call("lab", "broken", Echo, Echoed, timeout_s=5)
CANCELS_ITSELF = Call("lab", "cancels_itself", Echo, Echoed, timeout_s=5)

WRITTEN = Event("lab", "written", Happened)
CALLS = [ECHO, WRITE, COUNT, PIECES, STEPS, BROKEN, CANCELS_ITSELF]
