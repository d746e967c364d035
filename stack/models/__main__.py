"""Runs the local models: `python -m stack.models --port N --cache-dir DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn

from stack.models.app import create

LOOPBACK = "127.0.0.1"
GRACE_S = 2
BACKLOG = 256


def main() -> None:
    """Serve until SIGTERM; exit status 1 when a model could not be loaded."""
    parser = argparse.ArgumentParser(prog="python -m stack.models", description=__doc__)
    parser.add_argument("--host", default=LOOPBACK, help="the address to listen on; loopback unless said")
    parser.add_argument("--port", type=int, required=True, help="a port; 0 = a free one, logged")
    parser.add_argument("--cache-dir", type=Path, required=True, help="where the embedding graph is kept once built")
    arguments = parser.parse_args()
    failed = False

    def on_failure() -> None:
        nonlocal failed
        failed = server.should_exit = True

    config = uvicorn.Config(
        create(arguments.cache_dir, on_failure=on_failure),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config)
    server.run()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
