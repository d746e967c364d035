"""Finds the workers: every folder of workers/ that has a worker.py with a WORKER table."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

from workers.serving.route import Worker


def names() -> list[str]:
    """The components that have a worker, in alphabetical order."""
    found = pkgutil.iter_modules(importlib.import_module("workers").__path__)
    return sorted(
        m.name
        for m in found
        if m.ispkg and m.name != "serving" and importlib.util.find_spec(f"workers.{m.name}.worker")
    )


def load(name: str) -> Worker:
    """The table of one component. Raises ValueError, with the names that exist, for any other."""
    if name not in names():
        raise ValueError(f"there is no worker {name!r}; there are: {', '.join(names())}")
    worker = importlib.import_module(f"workers.{name}.worker").WORKER
    if not isinstance(worker, Worker):
        raise ValueError(f"workers/{name}/worker.py: WORKER is not a Worker")
    return worker
