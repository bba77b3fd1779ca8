"""Lower bounds beside the upper ones: gradients at points, and power iteration for norms.

A constant is at least the length of the gradient at any point. Points are drawn, and the steepest
few are moved along the change that their gradients measure. These numbers are computed in floating
point and say how much of a bound may be slack; nothing is ever concluded from them.
"""

from __future__ import annotations

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.graph import Graph
from onnxcert.ops import Affine
from onnxcert.sets import Box

_MOST_GRADIENTS = 1 << 22
"""Numbers of all gradients at once."""

_MOST_DIFFERENCES = 1 << 31
"""Numbers of the differences of gradients at all points."""


def sampled_constants(
    graph: Graph,
    norm: str,
    rng: np.random.Generator,
    *,
    points: int = 256,
    domain: Box | None = None,
) -> tuple[FloatArray, FloatArray]:
    """The largest lengths of gradients that were seen of outputs (m,) and differences (m, m).

    Args:
        graph: the network.
        norm: of the input; the gradient is measured in the dual one.
        rng: draws the points.
        points: how many; fewer where the network has many outputs.
        domain: where they lie; None draws around zero in several sizes.
    """
    size, count = graph.input_size, graph.output_size
    outputs, pairs = np.zeros(count), np.zeros((count, count))
    points = max(1, min(points, _MOST_DIFFERENCES // (count * count * size)))
    chunk = max(1, min(points, _MOST_GRADIENTS // max(1, size * count)))
    for start in range(0, points, chunk):
        rows = min(chunk, points - start)
        if domain is None:
            scale = 10.0 ** rng.uniform(-2.0, 2.0, size=(rows, 1))
            x = scale * rng.normal(size=(rows, size))
        else:
            x = rng.uniform(domain.lower, domain.upper, size=(rows, size))
        for jacobian in jacobians(graph, x):
            outputs = np.maximum(outputs, _dual_length(jacobian, norm))
            for number, row in enumerate(jacobian):
                lengths = _dual_length(row - jacobian[:number], norm)
                pairs[number, :number] = np.maximum(pairs[number, :number], lengths)
    return outputs, pairs + pairs.T


def jacobians(graph: Graph, x: Array) -> FloatArray:
    """Derivatives at points (B, n), (B, m, n), by one backward pass for each output."""
    parts = []
    for number in range(graph.output_size):
        unit = np.zeros(graph.output_size)
        unit[number] = 1.0
        parts.append(graph.gradient(x, lambda y, unit=unit: np.tile(unit, (len(y), 1)))[1])  # type: ignore[misc]
    return np.stack(parts, axis=1)


def _dual_length(gradient: Array, norm: str) -> Array:
    if norm == "inf":
        return np.abs(gradient).sum(axis=1)  # type: ignore[no-any-return]
    if norm == "1":
        return np.abs(gradient).max(axis=1, initial=0.0)  # type: ignore[no-any-return]
    return np.sqrt(np.square(gradient).sum(axis=1))  # type: ignore[no-any-return]


def converging_norm(op: Affine, rng: np.random.Generator, steps: int = 30) -> float:
    """Power iteration: approaches the spectral norm from below."""
    x = rng.normal(size=(1, op.input_sizes[0]))
    found = 0.0
    for _ in range(steps):
        length = float(np.sqrt(np.square(x).sum()))
        if length == 0.0:
            break
        y = op.apply([x / length])
        found = max(found, float(np.sqrt(np.square(y).sum())))
        x = op.transpose(y)[0]
    return found
