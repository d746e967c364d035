"""Real servers for every test: one broker, database and cache for the session, on free ports, in a short folder."""

from __future__ import annotations

import gc
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from stack import Stack

if TYPE_CHECKING:
    from runtime.settings import Settings

pytest_plugins = ["tests.lab.fixtures", "tests.e2e.platform"]

ROOT = Path(__file__).resolve().parent.parent
ACK_WAIT_S = 2
"""Redelivery after a crash takes this long; 10 s, the default, would make the crash tests slow."""
ANY_FREE_PORT = 0
WHOLE_PLATFORM = ("tests/e2e/", "tests/chaos/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes (`-n 2`): a file stays together, and all that starts whole platforms stays together."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "platform" if file.startswith(WHOLE_PLATFORM) else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """FAAS_HOME of this session."""
    folder = Path(tempfile.mkdtemp(prefix="faas-t-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(home: Path) -> AsyncIterator[Stack]:
    """nats-server, Postgres (migrated) and Valkey. To hurt them: `stack.nats.restart()`, `.signal(SIGSTOP)`."""
    from store.migrate import migrate

    parts = frozenset({"nats", "postgres", "valkey"})
    bootstrap = (ROOT / "store" / "bootstrap.sql").read_text()
    running = Stack(home, bootstrap=bootstrap, parts=parts, ports=dict.fromkeys(parts, ANY_FREE_PORT))
    try:
        async with running:
            await migrate(running.database_owner_url)
            yield running
    finally:
        running.abandon()


@pytest.fixture(scope="session")
def settings(stack: Stack) -> Settings:
    """Settings that point at the session's servers, whatever the environment says."""
    from runtime.settings import Settings

    found = {name.lower(): value for name, value in stack.environ().items()}
    return Settings.model_validate({**found, "job_ack_wait_s": ACK_WAIT_S, "jwt_secret": "test-" + "x" * 40})


@pytest.fixture(scope="session", autouse=True)
def _logs_stay_as_they_are() -> Iterator[None]:
    """A command that a test runs in this process would make every later test's loggers say errors alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.telemetry.configure", lambda *_: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def _short_pauses() -> None:
    """What earlier modules left alive is not collected again: a long pause would look like a slow server."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tenant() -> str:
    """A tenant that no other test has: nothing needs to be cleaned up."""
    return "t" + uuid.uuid4().hex[:12]
