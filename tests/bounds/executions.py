"""Binary32 executions of a network, with every order of summation that an executor may choose."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcert.arrays import Array, Device
from onnxcert.graph import Graph
from onnxcert.ops import Concat, LeakyRelu, Linear, Maximum, Multiply, Scale, Select
from onnxcert.ops.base import Affine, Bivariate, Elementwise
from tests.oracles import matrices

BINARY32 = 2.0**-24
SMALLEST_NORMAL = np.float32(2.0**-126)

Terms = list[tuple[np.float32, np.float32]]
"""Factors of the products that one output is the sum of; a bias is a product with one."""


def with_float32_weights(graph: Graph) -> Graph:
    """The network as a float32 file would hold it."""
    return graph.to(Device(), np.float32).to(Device(), np.float64)


class Execution:
    """One executor: random associations, with or without fused operations and flushing.

    Biases behind a product are sometimes added in the midst of its sum.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.fuses, self.flushes, self.folds_bias = (rng.random(3) < 0.5).tolist()

    def run(self, graph: Graph, x: Array) -> dict[str, Array]:
        """All values, in float64, at a point whose numbers fit binary32."""
        values = {graph.input: x.astype(np.float32)}
        sums: dict[str, list[Terms]] = {}
        with np.errstate(all="ignore"):
            for node in graph.nodes:
                read = [values[name] for name in node.inputs]
                if isinstance(node.op, Elementwise):
                    values[node.name] = self.curve(node.op, read[0])
                elif isinstance(node.op, Bivariate):
                    values[node.name] = self.pair(node.op, *read)
                elif isinstance(node.op, Maximum):
                    values[node.name] = np.maximum(read[0], read[1])
                elif isinstance(node.op, (Select, Concat)):
                    exact = node.op.forward([v[None].astype(float) for v in read])
                    values[node.name] = exact[0].astype(np.float32)
                else:
                    assert isinstance(node.op, Affine)
                    terms = self.terms(node.op, read)
                    bare = isinstance(node.op, Scale) and node.op.factor is None
                    before = sums.get(node.inputs[0])
                    if bare and before is not None and self.folds_bias:
                        terms = [a + b[1:] for a, b in zip(before, terms, strict=True)]
                    if isinstance(node.op, Linear):
                        sums[node.name] = terms
                    values[node.name] = np.array([self.add_up(t) for t in terms], np.float32)
        return {name: value.astype(float) for name, value in values.items()}

    def curve(self, op: Elementwise, z: Array) -> Array:
        """f in binary32; smooth curves are off by some units of one."""
        if isinstance(op, LeakyRelu):
            product = np.asarray(op.slope, np.float32) * z
            return np.where(z > 0, z, self.flush(product)).astype(np.float32)
        value = op.value(self.flush(z).astype(float)).astype(np.float32)
        if op.piecewise_linear:
            return value
        noise = self.rng.integers(-8, 9, size=len(z)) * np.float32(BINARY32)
        if not op.saturates:
            noise *= value
        return self.flush((value + noise).astype(np.float32))

    def pair(self, op: Bivariate, a: Array, b: Array) -> Array:
        """A product, or a quotient, which may be the product with a rounded reciprocal."""
        a, b = self.flush(a), self.flush(b)
        if isinstance(op, Multiply):
            return self.flush((a * b).astype(np.float32))
        if self.rng.random() < 0.5:
            return self.flush((a / b).astype(np.float32))
        inverse = self.flush((np.float32(1.0) / b).astype(np.float32))
        return self.flush((a * inverse).astype(np.float32))

    def terms(self, op: Affine, read: list[Array]) -> list[Terms]:
        rows = [matrix.astype(np.float32) for matrix in matrices(op)]
        result: list[Terms] = []
        for i in range(op.output_size):
            terms = [
                (weights[i, j], x[j])
                for weights, x in zip(rows, read, strict=True)
                for j in np.flatnonzero(weights[i])
            ]
            if op.bias is not None:
                terms.append((np.float32(op.bias[i]), np.float32(1.0)))
            result.append(terms)
        return result

    def add_up(self, terms: Terms) -> np.float32:
        """The sum in any association: random pairs are joined until one is left."""
        order = [terms[k] for k in self.rng.permutation(len(terms))]
        if self.rng.random() < 0.5:  # one after the other
            total = np.float32(0.0)
            for weight, x in order:
                total = self.join(total, weight, x)
            return total
        parts = [self.product(weight, x) for weight, x in order]
        while len(parts) > 1:
            k = int(self.rng.integers(len(parts) - 1))
            parts[k : k + 2] = [self.flush(parts[k] + parts[k + 1])]
        return parts[0] if parts else np.float32(0.0)

    def product(self, weight: np.float32, x: np.float32) -> np.float32:
        return self.flush(self.flush(weight) * self.flush(x))

    def join(self, total: np.float32, weight: np.float32, x: np.float32) -> np.float32:
        if not self.fuses:
            return self.flush(total + self.product(weight, x))
        exact = float(self.flush(weight)) * float(self.flush(x))  # 48 digits fit
        return self.flush(np.float32(float(total) + exact))

    def flush(self, value: Any) -> Any:
        """Subnormal numbers become zero where the executor does so."""
        if not self.flushes:
            return value
        return np.where(abs(value) < SMALLEST_NORMAL, np.float32(0.0), value)[()]
