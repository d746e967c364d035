"""What a person or a pipe gets to see: tables and colours on a terminal, JSON elsewhere, faults on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subjects.contract import Fault, Model


def wants_json(asked: bool) -> bool:
    return asked or not sys.stdout.isatty()


def model(message: Model, *, as_json: bool) -> None:
    """One result: a line of JSON, or the same in colours."""
    value(message.model_dump(mode="json"), as_json=as_json)


def value(data: Any, *, as_json: bool) -> None:
    text = json.dumps(data, ensure_ascii=False)
    if wants_json(as_json):
        line(text)
    else:
        import rich

        rich.print_json(text)


def line(text: str) -> None:
    """One line, visible at once; a reader that has gone away ends us quietly."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is still buffered has nobody to go to; closing it would raise again while Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def piece(text: str) -> None:
    """Part of a line."""
    sys.stdout.write(text)
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, box=None, header_style="bold")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def fault(problem: Fault) -> None:
    """On standard error: for a person one line, for a pipe the problem document."""
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        console.print(f"[red]{problem.code.value}[/red]", end=" ")
        console.print(problem.detail, markup=False)
        for each in problem.errors:
            console.print(f"  {each.path}: {each.message}", markup=False)
    else:
        from codec import to_problem

        print(to_problem(problem).model_dump_json(exclude_none=True), file=sys.stderr)
