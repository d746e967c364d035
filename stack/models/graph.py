"""Builds the embedding graph: all-MiniLM-L6-v2 in onnxruntime's fused operators, quantised to int8.

The int8 files that are published for this model quantise the weights only and still compute in float32 (22 chunks of
240 tokens a second on two cores). Fused operators (EmbedLayerNormalization, Attention with merged q, k and v,
SkipLayerNormalization, BiasGelu) can be quantised as a whole and give more than twice that.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]
from safetensors.numpy import load_file

LAYERS = 6
HEADS = 12
HIDDEN = 384
LAYER_NORM_EPSILON = 1e-12
OPSET = 17
MICROSOFT = "com.microsoft"

Array = NDArray[np.float32]


class _Graph:
    """Nodes and weights, collected in the order in which they run."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def weight(self, name: str) -> Array:
        return self._weights[name]

    def constant(self, name: str, value: NDArray[np.float32] | NDArray[np.int64]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def stored(self, name: str) -> str:
        return self.constant(name, self.weight(name))

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def fused(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=MICROSOFT, **attributes))
        return output


def _embedding(graph: _Graph) -> str:
    """Word + position + segment, normalised. Every text is segment 0, so its row is folded into the positions."""
    positions = graph.weight("embeddings.position_embeddings.weight")
    segments = graph.weight("embeddings.token_type_embeddings.weight")
    graph.nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            [
                "input_ids",
                "",
                graph.stored("embeddings.word_embeddings.weight"),
                graph.constant("positions", positions + segments[0]),
                "",
                graph.stored("embeddings.LayerNorm.weight"),
                graph.stored("embeddings.LayerNorm.bias"),
                "mask",
            ],
            ["embedded", "lengths"],
            name="embedded",
            domain=MICROSOFT,
            epsilon=LAYER_NORM_EPSILON,
        )
    )
    return "embedded"


def _layer(graph: _Graph, number: int, hidden: str) -> str:
    """One transformer layer: attention, add and norm, feed-forward, add and norm."""
    prefix = f"encoder.layer.{number}"
    parts = [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")]
    merged = np.concatenate([graph.weight(f"{part}.weight").T for part in parts], axis=1)
    bias = np.concatenate([graph.weight(f"{part}.bias") for part in parts])
    attended = graph.fused(
        "Attention",
        [hidden, graph.constant(f"{prefix}.qkv", merged), graph.constant(f"{prefix}.qkv_bias", bias), "lengths"],
        f"{prefix}.attended",
        num_heads=HEADS,
    )
    projected = _dense(graph, f"{prefix}.attention.output.dense", attended)
    normed = _add_and_norm(graph, f"{prefix}.attention.output", projected, hidden)
    widened = _dense(graph, f"{prefix}.intermediate.dense", normed)
    activated = graph.fused(
        "BiasGelu", [widened, graph.stored(f"{prefix}.intermediate.dense.bias")], f"{prefix}.activated"
    )
    narrowed = _dense(graph, f"{prefix}.output.dense", activated)
    return _add_and_norm(graph, f"{prefix}.output", narrowed, normed)


def _dense(graph: _Graph, name: str, value: str) -> str:
    weight = graph.constant(f"{name}.weight", graph.weight(f"{name}.weight").T)
    return graph.node("MatMul", [value, weight], f"{name}.product")


def _add_and_norm(graph: _Graph, name: str, value: str, skip: str) -> str:
    """LayerNorm(value + the dense layer's bias + skip): the bias rides along in the fused operator."""
    inputs = [value, skip]
    inputs += [graph.stored(f"{name}.LayerNorm.weight"), graph.stored(f"{name}.LayerNorm.bias")]
    inputs.append(graph.stored(f"{name}.dense.bias"))
    return graph.fused("SkipLayerNormalization", inputs, f"{name}.normed", epsilon=LAYER_NORM_EPSILON)


def _mean_pool(graph: _Graph, hidden: str) -> str:
    """The mean of the real tokens' vectors, of length 1."""
    last = graph.constant("last_axis", np.array([2], np.int64))
    tokens = graph.constant("token_axis", np.array([1], np.int64))
    mask = graph.node("Cast", ["mask"], "mask_float", to=TensorProto.FLOAT)
    column = graph.node("Unsqueeze", [mask, last], "mask_column")
    kept = graph.node("Mul", [hidden, column], "kept")
    total = graph.node("ReduceSum", [kept, tokens], "total", keepdims=0)
    count = graph.node("ReduceSum", [column, tokens], "count", keepdims=0)
    mean = graph.node("Div", [total, count], "mean")
    return graph.node("LpNormalization", [mean], "embedding", axis=-1, p=2)


def float_graph(weights_file: Path) -> onnx.ModelProto:
    """The float32 graph: (input_ids, mask: int32 [texts, tokens], padded on the right) -> embedding [texts, 384]."""
    graph = _Graph(load_file(weights_file))
    hidden = _embedding(graph)
    for number in range(LAYERS):
        hidden = _layer(graph, number, hidden)
    embedding = _mean_pool(graph, hidden)
    shape = ["texts", "tokens"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "minilm",
            [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in ("input_ids", "mask")],
            [helper.make_tensor_value_info(embedding, TensorProto.FLOAT, ["texts", HIDDEN])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
    )
    model.ir_version = 9
    return model


def build(weights_file: Path, target: Path) -> None:
    """Write the quantised graph to target; it appears there whole or not at all.

    Per channel, because one scale for a whole matrix costs quality that can be measured.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        plain, quantised = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(float_graph(weights_file), plain)
        quantize_dynamic(
            plain,
            quantised,
            op_types_to_quantize=["MatMul", "Attention", "EmbedLayerNormalization"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        os.replace(quantised, target)
