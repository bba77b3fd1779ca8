"""Linear: a dense matrix applied to each of several rows (Gemm, MatMul, sums and means)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, BoolArray, FloatArray, array_module
from onnxcert.ops.base import EXTRA_ROUNDINGS, Affine, Part, register
from onnxcert.sets import Box


@register
@dataclass(frozen=True)
class Linear(Affine):
    """Y = X W + b with X of ``rows`` x k, W of k x m; values are flattened row by row.

    Attributes:
        weight: (k, m).
        offset: (m,), added to each row, or None.
        rows: how many rows of X one value holds.
    """

    weight: FloatArray
    offset: FloatArray | None = None
    rows: int = 1
    keeps_whole: ClassVar[bool] = True

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """rows x k."""
        return (self.rows * self.weight.shape[0],)

    @property
    def output_size(self) -> int:
        """Rows x m."""
        return int(self.rows * self.weight.shape[1])

    @property
    def error_terms(self) -> int:
        """k products forward, m in the transpose, and the bias."""
        return int(max(self.weight.shape)) + 1

    @property
    def roundings(self) -> int:
        """Only the k products forward."""
        return int(self.weight.shape[0]) + EXTRA_ROUNDINGS

    @property
    def adds_neighbours(self) -> tuple[int, float] | None:
        """Where W is one column of equal numbers."""
        depth, width = self.weight.shape
        if width != 1 or not depth or (self.weight != self.weight[0]).any():
            return None
        return depth, float(self.weight[0, 0])

    @property
    def bias(self) -> Array | None:
        """The offset, once per row."""
        if self.offset is None or self.rows == 1:
            return self.offset
        return array_module(self.offset).tile(self.offset, self.rows)  # type: ignore[no-any-return]

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """As for other affine maps; where no weight is negative, end by end.

        Centre and radius lose a lower end that is small beside the upper one, or infinite.
        """
        if not self._rises:
            return super().interval(boxes, unit)
        box = boxes[0]
        lower = super().interval([Box(box.lower, box.lower)], unit).lower
        upper = super().interval([Box(box.upper, box.upper)], unit).upper
        return Box(lower, upper).defined()

    @cached_property
    def _rises(self) -> bool:
        """Whether no weight is negative."""
        return bool((self.weight >= 0).all())

    def apply(self, inputs: Sequence[Array]) -> Array:
        """X W."""
        x = inputs[0]
        product = x.reshape(-1, self.weight.shape[0]) @ self.weight
        return product.reshape(len(x), self.output_size)

    def transpose(self, rows: Array) -> list[Array]:
        """G W^T."""
        product = rows.reshape(-1, self.weight.shape[1]) @ self.weight.T
        return [product.reshape(len(rows), self.input_sizes[0])]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """G W^T with the columns of W that matter, or for the rows of G that are not zero."""
        if self.rows == 1:
            return [(rows @ self.weight[:, columns].T, None)]
        xp, (depth, width) = array_module(rows), self.weight.shape
        used, place = xp.unique(columns // width, return_inverse=True)
        dense = xp.zeros((len(rows), len(used), width), rows.dtype)
        dense[:, place, columns % width] = rows
        product = dense.reshape(-1, width) @ self.weight.T
        targets = (used[:, None] * depth + xp.arange(depth)).ravel()
        return [(product.reshape(len(rows), -1), targets)]

    def one_hot_rows(self, index: Array) -> list[tuple[Array, Array | None]]:
        """Rows of W^T, without multiplying by zeros."""
        if self.rows == 1:
            return [(self.weight.T[index], None)]
        return super().one_hot_rows(index)

    def part(self, wanted: BoolArray) -> Part:
        """The rows of X, and the columns of W, of which something is wanted."""
        table = wanted.reshape(self.rows, -1)
        rows, columns = table.any(axis=1), table.any(axis=0)
        if rows.all() and columns.all():
            return super().part(wanted)
        weight = self.weight[:, columns]
        reads = (weight != 0).any(axis=1)
        if not reads.any():
            reads[0] = True
        offset = None if self.offset is None else self.offset[columns]
        made = Linear(weight[reads], offset, int(rows.sum()))
        return Part(made, (np.outer(rows, reads).ravel(),), np.outer(rows, columns).ravel())

    def reading(self, entries: Array) -> Linear | None:
        """Some rows of W, where it is applied to one vector."""
        return Linear(self.weight[entries]) if self.rows == 1 else None

    def absolute(self) -> Linear:
        """|W| and |b|."""
        xp = array_module(self.weight)
        offset = None if self.offset is None else xp.abs(self.offset)
        return Linear(xp.abs(self.weight), offset, self.rows)

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """With and without bias, one row and several."""
        weight = rng.normal(size=(4, 3))
        return [cls(weight, rng.normal(size=3)), cls(weight, None, 2)]
