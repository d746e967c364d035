"""Prints the part of requirements.lock that some extras need, with its hashes: `python deploy/locked.py gateway,local`.

The lock holds every extra. Who needs whom stands in its `# via` lines: no index is asked, nothing is resolved anew.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDS_IT = "setuptools"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def name_of(requirement: str) -> str:
    """`PyJWT[crypto]>=2` -> `pyjwt`."""
    found = _NAME.match(requirement)
    if found is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def entries(lock: str) -> dict[str, tuple[str, set[str]]]:
    """Package -> (its lines, the packages that want it)."""
    found: dict[str, tuple[str, set[str]]] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock):
        if not _NAME.match(block) or "==" not in block.partition("\n")[0]:
            continue
        lines = [line for line in block.splitlines() if not line.lstrip().startswith("#")]
        said = (line.strip().lstrip("#").strip().removeprefix("via").strip() for line in block.splitlines()[1:])
        wanted_by = {name_of(each) for each in said if _NAME.match(each)}
        found[name_of(block)] = "\n".join(lines), wanted_by
    return found


def chosen(extras: list[str]) -> dict[str, str]:
    """Package -> its lines, for the project with these extras. Raises KeyError on an extra that there is not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], BUILDS_IT]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    locked = entries((ROOT / "requirements.lock").read_text())
    found, left = set[str](), {name_of(each) for each in wanted}
    while left:
        found |= left
        left = {name for name, (_, wanted_by) in locked.items() if wanted_by & left} - found
    return {name: lines for name, (lines, _) in locked.items() if name in found}


if __name__ == "__main__":
    print("\n".join(chosen([each for each in sys.argv[1].split(",") if each]).values()))
