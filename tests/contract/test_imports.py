"""The import rule: each floor only from below, no component from another, litellm in the gateway alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOORS: dict[str, frozenset[str]] = {
    "subjects": frozenset(),
    "codec": frozenset({"subjects"}),
    "runtime": frozenset({"subjects", "codec"}),
    "store": frozenset({"subjects", "codec", "runtime"}),
    "workers.serving": frozenset({"subjects", "codec", "runtime", "store"}),
    "bridge": frozenset({"subjects", "codec", "runtime", "store"}),
    "client": frozenset({"subjects", "codec"}),
    "stack": frozenset(),
    "cli": frozenset({"subjects", "codec", "runtime", "store", "stack", "workers.serving", "workers", "bridge"}),
}
COMPONENT = frozenset({"subjects", "codec", "runtime", "store", "workers.serving"})
OURS = {floor.partition(".")[0] for floor in FLOORS}
GATEWAY_ONLY = "litellm"
POOL_ONLY = {"kreuzberg", "onnxruntime", "onnx", "semantic_text_splitter", "xllamacpp", "tokenizers", "llama_cpp"}
"""Heavy: imported inside the functions that run in a pool's child, or in stack/."""


def modules() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def floor_of(dotted: str) -> str:
    """`workers.rag.handlers` -> `workers.rag`; `store.inbox` -> `store`."""
    parts = dotted.split(".")
    return ".".join(parts[:2]) if parts[0] == "workers" and len(parts) > 1 else parts[0]


def imports(tree: ast.AST, module: str) -> list[tuple[str, bool]]:
    """Every imported dotted name, and whether it is imported at the top of the module."""
    top = set(ast.iter_child_nodes(tree))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import; write the whole name"
            found += [(f"{node.module}.{alias.name}", node in top) for alias in node.names]
    return found


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer.startswith("workers.") and importer != "workers.serving":
        return imported in COMPONENT
    allowed = FLOORS[importer]
    return imported in allowed or (importer == "cli" and imported.startswith("workers."))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_the_floors_below(path: Path) -> None:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    importer = floor_of(dotted)
    for name, top in imports(ast.parse(path.read_text()), dotted):
        package = name.partition(".")[0]
        if package in OURS and importer != "workers":
            assert may_import(importer, floor_of(name)), f"{dotted} imports {name}"
        if package == GATEWAY_ONLY:
            assert importer == "workers.gateway", f"{dotted} imports {name}; only the gateway may"
        if package in POOL_ONLY and importer != "stack":
            assert not top, f"{dotted} imports {name} at its top; only inside a function that runs in a pool's child"


def test_the_rule_covers_every_package() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "examples"}
    assert found <= OURS, f"no floor for {found - OURS}"
