"""up: starts the platform with progress, says how to reach it, and supervises it until Ctrl-C."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli import DEMO_TENANT, session, tokens
from cli.platform import Platform
from runtime.settings import Settings
from stack import StackError
from subjects.contract import Fault

FAILED_EXIT = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(*, split: bool) -> int:
    """The exit code: 0 when it was asked to stop, 1 when it could not start."""
    settings = session.load()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return asyncio.run(_up(settings, split, console))


async def _up(settings: Settings, split: bool, console: Console) -> int:
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    started = time.monotonic()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        bar = progress.add_task("starting", total=None)

        def report(text: str) -> None:
            progress.console.print(escape(text), style="dim")

        def step() -> None:
            progress.advance(bar)

        platform = Platform(settings.faas_home, split=split, port=settings.bridge_port, report=report, step=step)
        progress.update(bar, total=platform.steps())
        starting = asyncio.create_task(platform.__aenter__())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        try:
            await starting
        except asyncio.CancelledError:
            return 0
        except (StackError, Fault) as error:
            progress.console.print(f"[red]cannot start:[/red] {escape(str(error))}")
            return FAILED_EXIT
    try:
        console.print(f"ready after {time.monotonic() - started:.1f} s", style="bold")
        _greet(platform)
        await stopping
    finally:
        console.print("stopping", style="dim")
        await platform.stop()
    return 0


def _greet(platform: Platform) -> None:
    """URL, token and three commands, on standard output: ready to be copied or read by a script."""
    token = tokens.sign(platform.settings(), DEMO_TENANT)
    file = shlex.quote(_shown(platform.home / "env"))
    faas = _command()
    ask = """'{"question": "What does the document say?"}'"""
    say = [
        f"URL     {platform.url}   (try {platform.url}/docs)",
        f"token   {token}",
        f"        tenant {DEMO_TENANT}, for {tokens.DEVELOPMENT_HOURS:g} hours; more with `{faas} token`",
        f"logs    {platform.home / 'logs'}",
        "",
        "three commands to try, in another terminal:",
        f"  set -a; . {file}; set +a; export TOKEN=$({faas} token)",
        f'  curl -H "Authorization: Bearer $TOKEN" -F file=@README.md {platform.url}/api/v1/ingestion/upload',
        f"  {faas} call rag.query {ask} --stream",
        "",
        "Ctrl-C ends everything.",
    ]
    print("\n".join(say), flush=True)
    sys.stdout.flush()


def _command() -> str:
    """How to call us from a shell: by name when that finds this installation, else by path."""
    script = Path(sys.executable).with_name("faas")
    if not script.exists():
        return shlex.join([sys.executable, "-m", "cli"])
    return "faas" if shutil.which("faas") == str(script) else shlex.quote(_shown(script))


def _shown(path: Path) -> str:
    """Relative to where we are, when it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
