"""Neurons keep the names that the file gives them, whatever order and size the graph has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcert.arrays import Array
from onnxcert.bounds.crown import crown_bounds
from onnxcert.errors import UnsupportedModel
from onnxcert.frontend.model_file import ModelFile
from onnxcert.frontend.onnx import load_model
from onnxcert.graph import Graph
from onnxcert.ops import Elementwise
from onnxcert.passes import drop_dead_neurons
from onnxcert.sets import Box
from tests.frontend.neurons import PLAIN, check_pre_activations
from tests.frontend.onnx_models import integers, model_of, single, weights

FOLDER = Path(os.environ.get("ONNXCERT_BENCHMARKS", ""))
MODELS = sorted(FOLDER.glob("*/**/*.onnx*")) if "ONNXCERT_BENCHMARKS" in os.environ else []

SHAPE = (2, 3, 4)


def floats(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def curves(graph: Graph, x: Array) -> dict[str, tuple[Array, Array]]:
    """Label -> (positions of the neurons, what they read at the point x)."""
    values = {graph.input: x.ravel()[None].astype(float)}
    result = {}
    for node in graph.nodes:
        values[node.name] = node.op.forward([values[name] for name in node.inputs])
        if isinstance(node.op, Elementwise):
            assert node.neurons is not None
            assert node.neurons.label not in result
            positions = node.neurons.at(np.arange(node.op.output_size))
            result[node.neurons.label] = positions, values[node.inputs[0]][0]
    return result


def read_at(graph: Graph, x: Array) -> dict[str, Array]:
    """Label -> what its neurons read at the point x, in the order of the file's tensor."""
    ordered = {}
    for label, (positions, read) in curves(graph, x).items():
        assert sorted(positions) == list(range(len(read)))
        ordered[label] = np.empty(len(read))
        ordered[label][positions] = read
    return ordered


def channels_last() -> onnx.ModelProto:
    """Curves before, between and behind transpositions of a convolution's output."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("Add", ["r", "b"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["g"]),
        helper.make_node("Transpose", ["g"], ["u"], perm=[0, 3, 1, 2]),
        helper.make_node("PRelu", ["t", "p"], ["q"]),
        helper.make_node("Slice", ["q", "one", "three", "two"], ["l"]),
        helper.make_node("Tanh", ["l"], ["y"]),
        helper.make_node("Abs", ["u"], ["z"]),
    ]
    constants = {"w": weights(3, 2, 3, 3), "b": weights(3), "p": np.abs(weights(3))}
    constants |= {"one": integers(1), "two": integers(2), "three": integers(3)}
    return model_of(nodes, {"x": (1, 2, 4, 3)}, ["y", "z"], constants)


def test_permuted_neurons_are_found_in_the_file() -> None:
    proto = channels_last()
    model = load_model(proto)
    orders = [node.neurons.positions for node in model.graph.nodes if node.neurons is not None]
    assert any(positions is not None for positions in orders)
    for seed in range(3):
        feeds = {"x": floats(seed, 1, 2, 4, 3)}
        for graph in (model.graph, model.lowered):
            assert check_pre_activations(graph, proto, feeds) == 36 * 4 + 24


@pytest.mark.parametrize("operator", sorted(PLAIN - {"PRelu"}))
def test_plain_curves(operator: str) -> None:
    proto = single(operator, SHAPE)
    assert check_pre_activations(load_model(proto).graph, proto, {"v0": floats(0, *SHAPE)}) == 24


def test_further_curves_of_a_node_are_numbered() -> None:
    """Clip is x - low, then high - max(x, low); on a transposed tensor, in the file's order."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("Clip", ["t", "low", "high"], ["y"]),
    ]
    constants = {"low": np.array(-0.5, np.float32), "high": np.array(0.75, np.float32)}
    x = floats(1, 3, 4)
    read = read_at(load_model(model_of(nodes, {"x": (3, 4)}, ["y"], constants)).graph, x)
    flat = x.T.ravel().astype(float)
    assert list(read) == ["y", "y/1"]
    np.testing.assert_allclose(read["y"], flat + 0.5)
    np.testing.assert_allclose(read["y/1"], 0.75 - np.maximum(flat, -0.5))


def test_pairs_of_a_maximum_are_in_their_broadcast_shape() -> None:
    """Max(a, b, c, d) is a tree: (a, b), then (c, d), then both."""
    proto = single("Max", (3, 4), (3, 1), (4,), (3, 4))
    parts = [floats(i, *shape) for i, shape in enumerate([(3, 4), (3, 1), (4,), (3, 4)])]
    x = np.concatenate([part.ravel() for part in parts])
    read = read_at(load_model(proto).graph, x)
    a, b, c, d = (part.astype(float) for part in parts)
    assert list(read) == ["y0", "y0/1", "y0/2"]
    np.testing.assert_allclose(read["y0"], (a - b).ravel())
    np.testing.assert_allclose(read["y0/1"], (c - d).ravel())
    last = np.maximum(a, b) - np.maximum(c, d)
    np.testing.assert_allclose(read["y0/2"], last.ravel(), atol=1e-12)


def test_minima_compare_the_negations() -> None:
    """min(a, b) = -max(-a, -b): the curve reads b - a."""
    a, b = floats(0, 3, 4), floats(1, 4)
    read = read_at(load_model(single("Min", (3, 4), (4,))).graph, np.concatenate([a.ravel(), b]))
    np.testing.assert_allclose(read["y0"], (b.astype(float) - a).ravel())


def test_levels_of_a_pooled_maximum() -> None:
    """Taps 0 and 1 against 2 and 3, then the winners."""
    proto = single("MaxPool", (1, 2, 4, 4), kernel_shape=[2, 2], strides=[2, 2])
    x = floats(0, 1, 2, 4, 4).astype(float)
    read = read_at(load_model(proto).graph, x)
    taps = np.stack([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    first = taps[:2] - taps[2:]
    winners = np.maximum(taps[:2], taps[2:])
    assert list(read) == ["y0", "y0/1"]
    np.testing.assert_allclose(read["y0"], first.ravel())
    np.testing.assert_allclose(read["y0/1"], (winners[0] - winners[1]).ravel())


def test_neurons_that_stay_keep_their_positions() -> None:
    proto = model_of(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
            helper.make_node("Relu", ["z"], ["h"]),
            helper.make_node("MatMul", ["h", "v"], ["y"]),
        ],
        {"x": (1, 3)},
        ["y"],
        {"w": weights(3, 20), "b": weights(20), "v": weights(20, 2)},
    )
    graph = load_model(proto).graph
    x = floats(5, 1, 3)
    wide = Box(x.astype(float) - 1e-3, x.astype(float) + 1e-3)
    smaller, _ = drop_dead_neurons(graph, crown_bounds(graph, wide).boxes)
    (positions, _), (whole, _) = curves(smaller, x)["h"], curves(graph, x)["h"]
    assert 0 < len(positions) < len(whole)
    assert check_pre_activations(smaller, proto, {"x": x}) == len(positions)


@pytest.mark.benchmarks
@pytest.mark.skipif(not MODELS, reason="ONNXCERT_BENCHMARKS is not set")
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_neurons_of_the_competition(path: Path) -> None:
    try:
        model = load_model(path)
    except UnsupportedModel:
        pytest.skip("unsupported")
    if any(info.element_type != "float32" for info in model.inputs):
        pytest.skip("not float32")
    feeds = {info.name: 0.5 + 0.1 * floats(0, *info.shape) for info in model.inputs}
    proto = ModelFile.read(path).proto
    check_pre_activations(model.graph, proto, feeds)
