"""The other end of the pool: one fresh interpreter that runs one function at a time and can be killed at any point.

Started by its file name, so that it imports nothing but what the function needs. Frames on its stdin and on a private
copy of its stdout are a 4-byte big-endian length and that much msgpack; nothing is ever unpickled.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import queue
import resource
import signal
import struct
import sys
import threading
import traceback
from typing import Any, BinaryIO

import msgpack  # type: ignore[import-untyped]

HEAD = struct.Struct(">I")
MEMORY_EXIT = 70  # the exit code that says: the memory limit was reached
CODE_BYTES = 1 << 30  # address space for mapped libraries, on top of the memory limit
FILE_BYTES = 1 << 30  # largest file that a function may write
NICENESS = 5  # the loop of the worker, and everybody else's, goes first
TRACE_CHARACTERS = 8_000
PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[2])
    requests, replies = _private_pipes()
    _die_with(parent)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, tasks), daemon=True).start()
    _send(replies, {"ready": os.getpid()})
    while True:
        _send(replies, _run(tasks.get()))


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Our two pipes under new numbers; a library that prints or reads then meets stderr and /dev/null."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _die_with(parent: int) -> None:
    """Linux kills us with our parent, even inside a function that never returns; elsewhere the end of stdin does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _read(requests: BinaryIO, tasks: queue.SimpleQueue[dict[str, Any]]) -> None:
    while True:
        head = requests.read(HEAD.size)
        if len(head) < HEAD.size:
            os._exit(0)
        (size,) = HEAD.unpack(head)
        body = requests.read(size)
        if len(body) < size:
            os._exit(0)
        tasks.put(msgpack.unpackb(body, max_str_len=size, max_bin_len=size))


def _run(task: dict[str, Any]) -> dict[str, Any]:
    try:
        function = _find(task["module"], task["name"])
        _limit(task["memory_bytes"])
        result = function(*task["args"])
    except MemoryError:
        os._exit(MEMORY_EXIT)
    except BaseException as error:  # a panic of a Rust library is no Exception
        return _failure(error)
    finally:
        _limit(None)
    return {"result": result}


def _find(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _limit(memory_bytes: int | None) -> None:
    """RLIMIT_DATA counts private writable memory: what a bomb fills. RLIMIT_AS also counts mapped libraries."""
    for kind, extra in ((resource.RLIMIT_DATA, 0), (resource.RLIMIT_AS, CODE_BYTES)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (hard if memory_bytes is None else memory_bytes + extra, hard))


def _failure(error: BaseException) -> dict[str, Any]:
    from subjects.contract import Fault  # only now: pydantic is a tenth of a second

    if isinstance(error, Fault):
        return {"fault": [error.code.value, error.detail]}
    return {"error": "".join(traceback.format_exception(error))[-TRACE_CHARACTERS:]}


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    try:
        body: bytes = msgpack.packb(reply)
    except (TypeError, ValueError, OverflowError) as error:
        body = msgpack.packb({"error": f"the result is not plain data: {error}"})
    except MemoryError:
        os._exit(MEMORY_EXIT)
    replies.write(HEAD.pack(len(body)) + body)
    replies.flush()


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    main()
