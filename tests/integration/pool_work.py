"""What the pool's tests run in its processes: here, because a process imports the module of its function."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from subjects.contract import Code, Fault


def who() -> int:
    return os.getpid()


def echo(value: Any) -> Any:
    return value


def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


def spin() -> None:
    while True:
        pass


def eat(mebibytes: int) -> int:
    held = [bytearray(1 << 20) for _ in range(mebibytes)]
    return len(held)


def end_with(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)


def refuse() -> None:
    raise Fault(Code.INVALID, "the file is encrypted")


def fail() -> None:
    raise ValueError("secret detail")


def chatter() -> str:
    print("noise that must not be taken for a frame", flush=True)
    os.write(1, b"more noise")
    return sys.stdin.read()


def environment() -> dict[str, str]:
    return dict(os.environ)


def impolite() -> Any:
    return {1, 2}


def spawn_sleeper_and_hang() -> None:
    subprocess.Popen(["sleep", "61.5"])
    time.sleep(60)
