"""What the handlers of jobs stand on."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.connection import Connection
from store.inbox import Inbox
from store.jobs import Jobs


@dataclass(frozen=True)
class Deps:
    connection: Connection
    jobs: Jobs
    inbox: Inbox
