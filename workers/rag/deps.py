"""What rag's handlers have at hand."""

from __future__ import annotations

from dataclasses import dataclass

from store.objects import Objects


@dataclass(frozen=True)
class Deps:
    objects: Objects
