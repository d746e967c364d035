"""Named places where a test may have this process killed, to prove that nothing is lost or done twice there."""

from __future__ import annotations

import os
import signal

VARIABLE = "FAAS_CRASH_POINT"  # `<point>:<path>`: die there once; the file at path says that it has happened

POINTS = ("before_tx", "mid_tx", "after_commit", "after_publish", "before_ack", "after_dead_letter")

_wanted, _, _mark = os.environ.get(VARIABLE, "").partition(":")


def crash_point(name: str) -> None:
    """Do nothing, unless a test named this point in the environment of this process: then SIGKILL it, once."""
    if name != _wanted:
        return
    try:
        os.close(os.open(_mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
