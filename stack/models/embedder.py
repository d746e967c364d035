"""Text to vector: all-MiniLM-L6-v2 as a fused int8 graph, one text a run, two threads."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stack.models import files
from stack.models.overload import Overloaded

NAME = "minilm"
DIMENSIONS = 384
MAX_TOKENS = 256  # what the model was trained for; the rest of a text is cut off
MAX_CHARACTERS = 16_384  # more than any 256 tokens of prose; spares the tokenizer a book
MAX_WAITING_REQUESTS = 256
THREADS = 2
BUILD_LIMIT_S = 120.0
PARAPHRASE = ("I forgot my password, how can I change it?", "How do I reset my password?", "The stock market fell.")
"""Two texts that say the same and one that does not: a graph that cannot tell is damaged."""

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """Vectors of length 1 in the order of the texts, and how many tokens were read."""

    vectors: list[Vector]
    tokens: int


class Embedder:
    """One text a run: with dynamic quantisation the scale is that of the whole batch, so a text's vector would depend
    on its neighbours and on padding (cosine .98). From 30 tokens upwards a batch of 8 is no faster (100 against 101
    texts of 240 tokens a second on two cores), so the vector of a text is simply always the same."""

    def __init__(self, graph: Path, folder: Path, revision: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
        self.revision = revision
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._turn = asyncio.Lock()
        self._requests = 0

    async def embed(self, texts: list[str]) -> Embedded:
        """Vectors of the texts. Requests take turns text by text: a question does not wait for a document.

        Raises Overloaded when MAX_WAITING_REQUESTS are under way.
        """
        if self._requests >= MAX_WAITING_REQUESTS:
            raise Overloaded("too many embedding requests wait")
        self._requests += 1
        try:
            vectors, tokens = [], 0
            for text in texts:
                async with self._turn:
                    vector, count = await asyncio.get_running_loop().run_in_executor(self._thread, self.vector, text)
                vectors.append(vector)
                tokens += count
            return Embedded(vectors, tokens)
        finally:
            self._requests -= 1

    def vector(self, text: str) -> tuple[Vector, int]:
        """The text's vector and its tokens; blocks for 1 to 15 ms."""
        ids = self._tokenizer.encode(text[:MAX_CHARACTERS]).ids
        row = np.array([ids], np.int32)
        (vectors,) = self._session.run(None, {"input_ids": row, "mask": np.ones_like(row)})
        return np.asarray(vectors, np.float32)[0], len(ids)

    def works(self) -> bool:
        """Whether paraphrases are near and other texts far."""
        one, same, other = (self.vector(text)[0] for text in PARAPHRASE)
        return float(one @ same) > 0.7 and abs(float(one @ other)) < 0.3

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def load(cache: Path) -> Embedder:
    """The model from the cache; built there first when it is absent or damaged (2 to 5 s).

    Raises files.ModelMissing, and RuntimeError when even a fresh graph does not work.
    """
    folder = files.embedding_folder()
    revision = files.revision(folder)
    graph = cache / f"minilm-{revision}.onnx"
    if graph.exists():
        kept = _open(graph, folder, revision)
        if kept is not None:
            return kept
    _build(folder / "model.safetensors", graph)
    fresh = _open(graph, folder, revision)
    if fresh is None:
        raise RuntimeError("the embedding graph was built and still tells no paraphrase from another text")
    return fresh


def _open(graph: Path, folder: Path, revision: str) -> Embedder | None:
    try:
        embedder = Embedder(graph, folder, revision)
    except Exception:  # onnxruntime has no common class for a file that it cannot read
        return None
    if embedder.works():
        return embedder
    embedder.close()
    return None


def _build(weights: Path, graph: Path) -> None:
    """In a process of its own: building takes 400 MB that this process would never give back."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_build_here, weights, graph).result(BUILD_LIMIT_S)


def _build_here(weights: Path, graph: Path) -> None:
    from stack.models.graph import build  # onnx and the quantiser, which only the build needs

    build(weights, graph)
