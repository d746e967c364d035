"""Where the committed descriptions of the contracts are."""

from __future__ import annotations

from pathlib import Path

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
UPDATE = "faas contracts --update"
