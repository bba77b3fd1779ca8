"""Small models for regions, and what is true of boxes, found by other means."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxcert
from onnxcert.region.regions import Region

MODELS = Path(__file__).resolve().parents[2] / "benchmarks" / "models"
DIGITS = MODELS / "digits.onnx"


def digit() -> np.ndarray:
    """The image that the specifications beside the model are about, flat."""
    return np.asarray(np.load(MODELS / "digit.npy"), dtype=np.float64).ravel()


def dense(sizes: list[int], curve: str, seed: int) -> onnx.ModelProto:
    """Gemm layers with a curve between them."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for number, (rows, columns) in enumerate(pairwise(sizes)):
        arrays = rng.normal(size=(rows, columns)) * 1.5 / np.sqrt(rows), rng.normal(size=columns)
        names = f"w{number}", f"b{number}"
        weights += [
            numpy_helper.from_array(array.astype(np.float32), name)
            for array, name in zip(arrays, names, strict=True)
        ]
        last = number == len(sizes) - 2
        target = "y" if last else f"z{number}"
        nodes.append(helper.make_node("Gemm", [value, *names], [target]))
        value = target
        if not last:
            value = f"h{number}"
            nodes.append(helper.make_node(curve, [target], [value]))
    infos = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("x", sizes[0]), ("y", sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "dense", infos[:1], infos[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def smallest_lead(model: object, region: Region, rng: np.random.Generator) -> float:
    """The smallest lead of the label that gradient descent and random corners find in the box."""
    graph = onnxcert.load_model(model).graph  # type: ignore[arg-type]
    assert region.lower is not None
    assert region.upper is not None
    lower, upper, label = region.lower, region.upper, region.label
    x = lower + np.round(rng.random((60, len(lower)))) * (upper - lower)
    x[:20] = lower + rng.random((20, len(lower))) * (upper - lower)
    least = np.inf
    for number in range(40):
        outputs = graph.forward(x)
        others = np.delete(outputs, label, axis=1)
        least = min(least, float((outputs[:, label] - others.max(axis=1)).min()))
        rival = np.where(np.arange(outputs.shape[1]) == label, -np.inf, outputs).argmax(axis=1)
        push = np.zeros_like(outputs)
        push[:, label] = 1.0
        push[np.arange(len(push)), rival] -= 1.0
        _, gradient = graph.gradient(x, lambda _, push=push: push)
        x = np.clip(x - 0.3 * 0.9**number * (upper - lower) * np.sign(gradient), lower, upper)
    return least
