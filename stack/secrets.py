"""Passwords of the embedded default: made once, kept in a folder of their own, readable by their owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

SECRET_BYTES = 32


def secret(home: Path, name: str) -> str:
    """The secret of this name in home/secrets; made when it is not there yet."""
    folder = home / "secrets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    try:
        # Exclusive: of two processes that find nothing, one writes and the other reads what was written.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        value = secrets.token_urlsafe(SECRET_BYTES)
        file.write(value + "\n")
    return value
