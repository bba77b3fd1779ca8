"""Small networks with every kind of layer, questions about them, and files of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

import onnxcert
from onnxcert import Result, Settings
from tests.checker.makers import dense, spec
from tests.frontend.onnx_models import model_of

Made = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]

CUBE = ([-1.0] * 3, [1.0] * 3)


def _one(operator: str, *constants: Any, **attributes: Any) -> Made:
    names = [f"c{number}" for number in range(len(constants))]
    stored = {name: np.asarray(c, np.float32) for name, c in zip(names, constants, strict=True)}
    return [helper.make_node(operator, ["z", *names], ["h"], **attributes)], stored


def _pair(operator: str) -> Made:
    turned = {"order": np.array([5, 3, 4, 0, 1, 2])}
    gather = helper.make_node("Gather", ["z", "order"], ["t"], axis=1)
    return [gather, helper.make_node(operator, ["z", "t"], ["h"])], turned


def _image(*nodes: onnx.NodeProto, **constants: np.ndarray) -> Made:
    """From a 2 x 3 image ``i`` to ``o``, and flat again."""
    shapes = {"image": np.array([1, 1, 2, 3]), "flat": np.array([1, -1])}
    return [
        helper.make_node("Reshape", ["z", "image"], ["i"]),
        *nodes,
        helper.make_node("Reshape", ["o", "flat"], ["h"]),
    ], shapes | constants


def _attention() -> Made:
    """Three tokens of two numbers, each an average of all, with shares of their products."""
    shapes = {"tokens": np.array([1, 3, 2]), "flat": np.array([1, -1])}
    nodes = [
        helper.make_node("Mul", ["z", "small"], ["f"]),
        helper.make_node("Reshape", ["f", "tokens"], ["i"]),
        helper.make_node("MatMul", ["i", "m"], ["q"]),
        helper.make_node("Transpose", ["i"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "i"], ["o"]),
        helper.make_node("Reshape", ["o", "flat"], ["h"]),
    ]
    return nodes, {"m": _weights(2, 2), "small": np.float32([0.125]), **shapes}


def _residual() -> Made:
    nodes = [
        helper.make_node("Relu", ["z"], ["r"]),
        helper.make_node("MatMul", ["r", "m"], ["s"]),
        helper.make_node("Add", ["s", "z"], ["t"]),
        helper.make_node("Relu", ["t"], ["h"]),
    ]
    return nodes, {"m": _weights(6, 6)}


def _tables() -> Made:
    """Six curves, each a sum of five relus of one number."""
    nodes = [
        helper.make_node("Unsqueeze", ["z", "axis"], ["column"]),
        helper.make_node("Sub", ["column", "knots"], ["from"]),
        helper.make_node("Relu", ["from"], ["parts"]),
        helper.make_node("MatMul", ["parts", "m"], ["h"]),
    ]
    knots = np.float32([-2.0, -0.5, 0.25, 0.5, 2.0])
    weights = np.float32([0.125, 1.0, -1.5, 1.0, -0.5])
    return nodes, {"axis": np.array([2]), "knots": knots, "m": weights}


def _weights(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return (np.round(8 * rng.normal(size=shape)) / 8).astype(np.float32)


LAYERS: dict[str, Made] = {
    "relu": _one("Relu"),
    "leaky": _one("LeakyRelu", alpha=0.25),
    "prelu": _one("PRelu", [[0.25, -0.5, 0.0, 0.125, 1.5, 0.5]]),
    "abs": _one("Abs"),
    "sign": _one("Sign"),
    "floor": _one("Floor"),
    "sigmoid": _one("Sigmoid"),
    "tanh": _one("Tanh"),
    "exp": _one("Exp"),
    "sin": _one("Sin"),
    "cos": _one("Cos"),
    "softmax": _one("Softmax", axis=-1),
    "clip": _one("Clip", -0.5, 0.75),
    "max": _pair("Max"),
    "min": _pair("Min"),
    "maxpool": _image(
        helper.make_node("MaxPool", ["i"], ["o"], kernel_shape=[2, 2], pads=[0, 0, 1, 0])
    ),
    "conv": _image(
        helper.make_node("Conv", ["i", "k"], ["j"], pads=[1, 0, 0, 0]),
        helper.make_node("Relu", ["j"], ["o"]),
        k=_weights(2, 1, 2, 2),
    ),
    "residual": _residual(),
    "tables": _tables(),
    "attention": _attention(),
}
"""Nodes from ``z``, six values, to ``h``, and their constants."""


def network(layer: str, seed: int = 0) -> onnx.ModelProto:
    """``Gemm``, the layer, ``Gemm``: from three values to two."""
    rng = np.random.default_rng(seed)
    nodes, constants = LAYERS[layer]
    width = {"maxpool": 4, "conv": 8}.get(layer, 6)
    stored = {
        name: (np.round(8 * rng.normal(size=shape)) / 8).astype(np.float32)
        for name, shape in {"a": (3, 6), "b": (6,), "v": (width, 2), "w": (2,)}.items()
    }
    whole = [
        helper.make_node("Gemm", ["x", "a", "b"], ["z"]),
        *nodes,
        helper.make_node("Gemm", ["h", "v", "w"], ["y"]),
    ]
    return model_of(whole, {"x": [1, 3]}, ["y"], stored | constants)


def least(
    model: onnx.ModelProto,
    row: Sequence[float],
    low: Sequence[float] = CUBE[0],
    high: Sequence[float] = CUBE[1],
) -> tuple[float, float]:
    """The least value of a row of the outputs on a box, as far as samples tell, and its spread."""
    rng = np.random.default_rng(1)
    points = rng.uniform(low, high, size=(4000, len(low)))
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, len(low))
    points = np.concatenate([points, corners])
    graph = onnxcert.load_model(model).graph
    values = graph.forward(points) @ np.asarray(row)
    spread = float(np.ptp(values))
    for radius in 0.5 ** np.arange(1, 13):
        best = points[np.argsort(values)[:50]]
        step = radius * rng.uniform(-1.0, 1.0, size=(20, *best.shape))
        near = np.clip(best + step, low, high).reshape(-1, len(low))
        points = np.concatenate([best, near])
        values = graph.forward(points) @ np.asarray(row)
    return float(values.min()), spread


@dataclass(frozen=True)
class Files:
    """A model, a specification, and where a certificate is written."""

    model: Path
    spec: Path
    proof: Path

    @classmethod
    def write(cls, folder: Path, model: onnx.ModelProto, text: bytes) -> Files:
        """Files in a folder."""
        files = cls(folder / "m.onnx", folder / "s.vnnlib", folder / "p.onnxcert")
        onnx.save(model, files.model)
        files.spec.write_bytes(text)
        return files

    def verify(
        self,
        *,
        semantics: str = "auto",
        certified: bool = True,
        timeout: float = 60,
        **options: Any,
    ) -> Result:
        """The engine's answer; options are settings."""
        alone = {"attack_restarts": 8, "watch": "off", "parallel": "off"}
        return onnxcert.verify(
            self.model,
            self.spec,
            timeout=timeout,
            semantics=semantics,
            certified=certified,
            certificate=self.proof,
            settings=Settings(**alone | options),
        )

    def check(self) -> str:
        """The checker's line."""
        return str(onnxcert.check(self.proof, self.model, self.spec))


def hard(folder: Path, margin: float = 0.01) -> Files:
    """A question whose trees over inputs and over neurons have ten leaves and more."""
    model, box = dense([4, 6, 6, 1], 4), ([-1.0] * 4, [1.0] * 4)
    low, spread = least(model, [1.0], *box)
    return Files.write(folder, model, spec((*box, [([1.0], low - margin * spread)])))


VERSION_2 = """(vnnlib-version <2.0>)
(declare-network N
  (declare-input X {kind} [1,3])
  {hidden}
  (declare-output Y {kind} [1,2]))
(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0)))
(assert (and (>= X[0,1] -1.0) (<= X[0,1] 1.0)))
(assert (and (>= X[0,2] -1.0) (<= X[0,2] 1.0)))
{asked}
"""


def version_2(asked: str, kind: str = "real", hidden: str = "") -> bytes:
    """VNN-LIB 2.0 text over the cube for the networks here; ``asked`` are further assertions."""
    return VERSION_2.format(asked=asked, kind=kind, hidden=hidden).encode()


def halves(folder: Path, model: onnx.ModelProto, row: list[float], margin: float) -> Files:
    """Two questions about each half of a box."""
    size, boxes = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value, list[Any]()
    for low, high in (([-1.0] * size, [0.0] + [1.0] * (size - 1)), ([0.0] * size, [1.0] * size)):
        bound, spread = least(model, row, low, high)
        boxes += [(low, high, [(row, bound - part * margin * spread)]) for part in (1, 2)]
    return Files.write(folder, model, spec(*boxes, outputs=len(row)))
