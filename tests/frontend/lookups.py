"""Models that look things up by whole inputs: indices, masks and comparisons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.frontend.onnx_models import integers, model_of

WHOLE = {"to": TensorProto.INT64}


@dataclass(frozen=True)
class Lookup:
    """A model with inputs ``i`` (count,) that are indices and ``x`` (width,), and their limits."""

    proto: onnx.ModelProto
    lower: np.ndarray
    upper: np.ndarray

    def limits(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As a specification has them."""
        return self.lower[columns], self.upper[columns]

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Points of the box, of which some are at whole numbers, (count, n)."""
        points = rng.uniform(self.lower, self.upper, (count, len(self.lower))).astype(np.float32)
        whole = np.clip(np.round(points), self.lower, self.upper)
        return np.where(rng.random(points.shape) < 0.5, whole, points).astype(np.float64)


def _index(name: str, number: int) -> list[onnx.NodeProto]:
    """One entry of ``i`` as a whole number of shape (1,)."""
    return [
        helper.make_node("Slice", ["i", f"at{number}", f"at{number + 1}"], [name + "_f"]),
        helper.make_node("Cast", [name + "_f"], [name], **WHOLE),
    ]


def _behind(source: str, width: int, rng: np.random.Generator) -> tuple[list, dict]:
    """A small network behind a tensor (width,)."""
    nodes = [
        helper.make_node("MatMul", [source, "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    constants = {
        "w1": rng.normal(size=(width, 4)).astype(np.float32),
        "w2": rng.normal(size=(4, 2)).astype(np.float32),
    }
    return nodes, constants


def _model(
    nodes: list[onnx.NodeProto],
    source: str,
    width: int,
    whole: list[tuple[float, float]],
    rng: np.random.Generator,
    more: dict[str, np.ndarray],
    **options: int,
) -> Lookup:
    behind, constants = _behind(source, options.get("made", width), rng)
    ends = {f"at{k}": integers(k) for k in range(len(whole) + 1)}
    inputs = {"i": (len(whole),), "x": (width,)}
    proto = model_of([*nodes, *behind], inputs, ["y"], constants | ends | more)
    lower = np.array([low for low, _ in whole] + [-0.25] * width)
    upper = np.array([high for _, high in whole] + [0.5] * width)
    return Lookup(proto, lower, upper)


def cut_out(rng: np.random.Generator) -> Lookup:
    """x[i : i + 3], with an i that is not whole at its limits."""
    nodes = [
        *_index("a", 0),
        helper.make_node("Add", ["a", "three"], ["b"]),
        helper.make_node("Slice", ["t", "a", "b"], ["part"]),
        helper.make_node("Mul", ["part", "x"], ["v"]),
    ]
    more = {"three": integers(3), "t": rng.normal(size=9).astype(np.float32)}
    return _model(nodes, "v", 3, [(0.5, 5.25)], rng, more)


def masked(rng: np.random.Generator) -> Lookup:
    """Two entries at (i, j) of a mask are overwritten; beyond the end nothing is."""
    nodes = [
        *_index("a", 0),
        *_index("b", 1),
        helper.make_node("Add", ["a", "one"], ["c"]),
        helper.make_node("Slice", ["rows", "a", "c"], ["row"]),  # empty from 3 on
        helper.make_node("Unsqueeze", ["row", "one"], ["row2"]),
        helper.make_node("Shape", ["row2"], ["size"]),
        helper.make_node("Expand", ["b", "size"], ["column"]),
        helper.make_node("Concat", ["row2", "column"], ["place"], axis=1),
        helper.make_node("Shape", ["row"], ["count"]),
        helper.make_node("Expand", ["value", "count"], ["values"]),
        helper.make_node("ScatterND", ["ones", "place", "values"], ["mask"]),
        helper.make_node("Reshape", ["mask", "flat"], ["m"]),
        helper.make_node("Mul", ["m", "x"], ["v"]),
    ]
    more = {
        "one": integers(1),
        "rows": integers(0, 1, 2),
        "flat": integers(-1),
        "value": np.array([0.25], np.float32),
        "ones": np.ones((3, 4), np.float32),
    }
    return _model(nodes, "v", 12, [(0.0, 4.0), (0.0, 3.0)], rng, more)


def negative(rng: np.random.Generator, low: float = -3.5) -> Lookup:
    """Entry i of a table, counted from the end where i is negative; casts go towards zero."""
    nodes = [
        *_index("a", 0),
        helper.make_node("Gather", ["t", "a"], ["part"]),
        helper.make_node("Reshape", ["part", "flat"], ["p"]),
        helper.make_node("Add", ["p", "x"], ["v"]),
    ]
    more = {"flat": integers(-1), "t": rng.normal(size=(5, 3)).astype(np.float32)}
    return _model(nodes, "v", 3, [(low, 2.75)], rng, more)


def nearly_negative(rng: np.random.Generator) -> Lookup:
    """As before where no i below zero is left by the cast, but some are read by it."""
    return negative(rng, low=-0.5)


def compared(rng: np.random.Generator) -> Lookup:
    """Whether i is less than, or is, j; and i itself as a number."""
    nodes = [
        *_index("a", 0),
        *_index("b", 1),
        helper.make_node("Less", ["a", "b"], ["less"]),
        helper.make_node("Equal", ["a", "b"], ["same"]),
        helper.make_node("Or", ["less", "same"], ["either"]),
        helper.make_node("Where", ["either", "a", "b"], ["smaller"]),
        *(
            helper.make_node("Cast", [name], [name + "_n"], to=TensorProto.FLOAT)
            for name in ("a", "same", "smaller")
        ),
        helper.make_node("Concat", ["a_n", "same_n", "smaller_n"], ["n"], axis=0),
        helper.make_node("Add", ["n", "x"], ["v"]),
    ]
    return _model(nodes, "v", 3, [(0.0, 3.0), (1.0, 2.5)], rng, {})


def labelled(rng: np.random.Generator) -> Lookup:
    """Whether the largest of some sums is that of the label, which may have one value only."""
    nodes = [
        helper.make_node("Slice", ["i", "at0", "at1"], ["label"]),
        helper.make_node("MatMul", ["x", "w0"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=0),
        helper.make_node("Cast", ["best"], ["best_n"], to=TensorProto.FLOAT),
        helper.make_node("Equal", ["best_n", "label"], ["right"]),
        helper.make_node("Cast", ["right"], ["right_n"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["right_n", "x"], ["v"]),
    ]
    more = {"w0": rng.normal(size=(3, 4)).astype(np.float32)}
    return _model(nodes, "v", 3, [(2.0, 2.0)], rng, more)


def known(rng: np.random.Generator) -> Lookup:
    """Comparisons of inputs that may have one value only."""
    nodes = [
        helper.make_node("Slice", ["i", "at0", "at1"], ["a"]),
        helper.make_node("Slice", ["i", "at1", "at2"], ["b"]),
        *(
            helper.make_node(operator, ["a", "b"], [operator])
            for operator in ("Equal", "Greater", "LessOrEqual")
        ),
        *(
            helper.make_node("Cast", [operator], [operator + "_n"], to=TensorProto.FLOAT)
            for operator in ("Equal", "Greater", "LessOrEqual")
        ),
        helper.make_node("Concat", ["Equal_n", "Greater_n", "LessOrEqual_n"], ["n"], axis=0),
        helper.make_node("Add", ["n", "x"], ["v"]),
    ]
    limits = [(1.5, 1.5), (rng.integers(1, 3) - 0.5,) * 2]
    return _model(nodes, "v", 3, limits, rng, {})


KINDS = (cut_out, masked, negative, nearly_negative, compared, labelled, known)
