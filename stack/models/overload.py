"""The one failure that both models share: more asks than a bounded queue holds."""

from __future__ import annotations


class Overloaded(Exception):
    """Ask again in a moment: answered as 429 with Retry-After."""
