"""A child process that is started, watched, restarted when it dies, and stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from stack import launch
from stack.leftovers import family, remember

Report = Callable[[str], None]

LAUNCHER = Path(launch.__file__)
RESTART_DELAYS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Between the end of a process and its next start; the last one for every further end in a row."""
CALM_S = 30.0
"""A process that lived this long and then died starts again at the first delay."""
LOG_MAX_BYTES = 50 * 1024 * 1024
LOG_CHECK_S = 30.0
LOG_TAIL_BYTES = 2000


class StackError(Exception):
    """A server of the embedded default could not be started; the text says what to look at."""


@dataclass(frozen=True)
class Program:
    """What to run and how to tell that it works.

    ready answers whether it serves now. user is (uid, gid) to run as. env is the whole environment,
    None = a bare one. death_signal is what it gets when this process
    dies without a word. stop_signal asks it to stop; after stop_grace_s its whole process group is killed.
    """

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    user: tuple[int, int] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    stop_grace_s: float = 3.0
    start_limit_s: float = 30.0
    poll_s: float = 0.02


async def start_all(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Start side by side; when one fails, or we are cancelled, the others are given up at once and have ended after."""
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def spawn(program: Program, log: Path | None) -> asyncio.subprocess.Process:
    """Start the program in a session of its own, its output appended to the log."""
    uid, gid = program.user or (launch.KEEP_USER, launch.KEEP_USER)
    head = [
        sys.executable,
        "-I",
        "-S",
        str(LAUNCHER),
        str(os.getpid()),
        str(int(program.death_signal)),
        str(uid),
        str(gid),
    ]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else None
    try:
        return await asyncio.create_subprocess_exec(
            *head,
            *program.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(program.env) if program.env is not None else _bare_environment(),
            cwd=program.cwd,
            start_new_session=True,
        )
    finally:
        if output is not None:
            os.close(output)


class Server:
    """One supervised program. After start() it serves; when it dies it is started again, with growing delays."""

    def __init__(self, program: Program, url: str, *, home: Path, report: Report | None = None) -> None:
        self.program = program
        self.url = url
        self.restarts = 0
        self._log = home / "logs" / f"{program.name}.log"
        self._pid_file = home / "run" / f"{program.name}.json"
        self._report = report or (lambda _: None)
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def pid(self) -> int:
        if self._process is None:
            raise StackError(f"{self.name} is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start and wait until it serves. Raises StackError with the end of its log."""
        await self._start_once()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    async def serving(self, limit_s: float = 30.0) -> None:
        """Wait until it serves (again)."""
        await asyncio.wait_for(self._serving.wait(), limit_s)

    async def restart(self) -> None:
        """Stop the process and wait until its successor serves on the same port."""
        process, self._serving = self._process, asyncio.Event()
        if process is not None:
            await _end(process, self.program)
        await self.serving()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of its group and below: SIGKILL, SIGSTOP, SIGCONT..."""
        if number == signal.SIGKILL:
            self._serving.clear()
        for process in family(self.pid):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    async def stop(self) -> None:
        """End the process; bounded by its grace period plus one second."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        if self._process is not None:
            await _end(self._process, self.program)
            self._process = None
        self._pid_file.unlink(missing_ok=True)

    async def _start_once(self) -> None:
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pid_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _bound_log(self._log)
        self._process = await spawn(self.program, self._log)
        remember(self._pid_file, self._process.pid)
        try:
            await self._wait_ready(self._process)
        except BaseException:
            await _end(self._process, self.program)
            raise
        self._serving.set()

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + self.program.start_limit_s
        while not await self.program.ready():
            if process.returncode is not None:
                raise StackError(f"{self.name} ended with status {process.returncode}: {self._tail()}")
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} does not answer after {self.program.start_limit_s:g} s: {self._tail()}")
            await asyncio.sleep(self.program.poll_s)

    async def _watch(self) -> None:
        in_a_row = 0
        while True:
            started = time.monotonic()
            if self._process is not None:
                status = await self._ended(self._process)
                self._report(f"{self.name} ended with status {status}; starting it again")
            self._serving.clear()
            in_a_row = 1 if time.monotonic() - started > CALM_S else in_a_row + 1
            await asyncio.sleep(RESTART_DELAYS_S[min(in_a_row, len(RESTART_DELAYS_S)) - 1])
            self.restarts += 1
            try:
                await self._start_once()
            except (StackError, OSError) as error:
                self._report(str(error))

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        """Its exit status, once it has one; meanwhile its log is kept within bounds."""
        while True:
            with suppress(TimeoutError):
                return await asyncio.wait_for(process.wait(), LOG_CHECK_S)
            await asyncio.to_thread(_bound_log, self._log)

    def _tail(self) -> str:
        with suppress(OSError):
            return f"{self._log}: ...{self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors='replace').strip()}"
        return str(self._log)


async def _end(process: asyncio.subprocess.Process, program: Program) -> None:
    """Ask it to stop, wait, then kill everything in its group and below."""
    members = family(process.pid)
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(program.stop_signal)
            process.send_signal(signal.SIGCONT)
        try:
            await asyncio.wait_for(process.wait(), program.stop_grace_s)
        except TimeoutError:
            for member in family(process.pid):
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            await process.wait()
    for member in members:
        with suppress(psutil.NoSuchProcess):
            if member.is_running() and member.pid != process.pid:
                member.kill()


def _bare_environment() -> dict[str, str]:
    """A server has no business with the provider keys and secrets of this process."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ} | {"LC_ALL": "C"}


def _bound_log(log: Path) -> None:
    """Keep one predecessor of a log that has grown too large; its writer appends, so it may be cut under its hands."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_MAX_BYTES:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)
