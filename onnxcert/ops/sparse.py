"""SparseLinear: a matrix that is mostly zeros, stored by its non-zero entries.

Exporters write selections and lattice networks as dense matrices with millions of zeros. Kept
dense they cost memory and time in proportion to the zeros; SciPy's compressed rows cost neither.
SciPy is imported here only, because importing it takes longer than verifying a small network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from onnxcert.arrays import (
    Array,
    BoolArray,
    FloatArray,
    IntArray,
    array_module,
    sparse_module,
)
from onnxcert.ops.base import Affine, Part, register

_ENTRIES = 100_000
"""Matrices with fewer entries stay dense: a dense product is faster at any density."""

_DENSITY = 0.05
"""Largest share of non-zero entries in a matrix that is stored by them."""


def pays_sparse(size: int, used: int) -> bool:
    """Whether a matrix of so many entries, of which so many are not zero, is stored by those."""
    return size >= _ENTRIES and used <= _DENSITY * size


@register
@dataclass(frozen=True)
class SparseLinear(Affine):
    """y = x W + b with W of k x m given by entries ``values[e]`` at ``(row[e], column[e])``."""

    row: IntArray
    column: IntArray
    values: FloatArray
    shape: tuple[int, int]
    offset: FloatArray | None = None
    keeps_whole: ClassVar[bool] = True

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """k."""
        return (self.shape[0],)

    @property
    def output_size(self) -> int:
        """m."""
        return self.shape[1]

    @cached_property
    def error_terms(self) -> int:
        """The fullest column or row and the bias (both directions are summed)."""
        fullest = [
            int(array_module(i).bincount(i).max()) for i in (self.row, self.column) if len(i)
        ]
        return max(fullest, default=0) + 1

    @property
    def bias(self) -> Array | None:
        """The offset."""
        return self.offset

    @cached_property
    def _matrices(self) -> tuple[Any, Any]:
        """W^T and W as compressed rows of the array namespace in use."""
        csr_matrix = sparse_module(self.values).csr_matrix
        columns, rows = self.shape[::-1]
        transposed = csr_matrix((self.values, (self.column, self.row)), shape=(columns, rows))
        return transposed, csr_matrix((self.values, (self.row, self.column)), shape=self.shape)

    def apply(self, inputs: Sequence[Array]) -> Array:
        """X W, computed as (W^T X^T)^T because only sparse-times-dense is fast."""
        xp = array_module(self.values)
        return xp.ascontiguousarray((self._matrices[0] @ inputs[0].T).T)  # type: ignore[no-any-return]

    def transpose(self, rows: Array) -> list[Array]:
        """G W^T."""
        xp = array_module(self.values)
        return [xp.ascontiguousarray((self._matrices[1] @ rows.T).T)]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """G W^T with the columns of W that matter, over the inputs that they read."""
        xp = array_module(rows)
        part = self._matrices[0][columns]
        used = xp.unique(part.indices)
        return [(xp.ascontiguousarray((part[:, used].T @ rows.T).T), used)]

    def part(self, wanted: BoolArray) -> Part:
        """The entries in those columns."""
        kept = wanted[self.column] & (self.values != 0)
        reads = np.zeros(self.shape[0], bool)
        reads[self.row[kept]] = True
        if not reads.any():
            reads[0] = True
        row, column = (np.cumsum(some) - 1 for some in (reads, wanted))
        shape = int(reads.sum()), int(wanted.sum())
        offset = None if self.offset is None else self.offset[wanted]
        made = SparseLinear(
            row[self.row[kept]], column[self.column[kept]], self.values[kept], shape, offset
        )
        return Part(made, (reads,), wanted)

    def absolute(self) -> SparseLinear:
        """|W| and |b|."""
        xp = array_module(self.values)
        offset = None if self.offset is None else xp.abs(self.offset)
        return SparseLinear(self.row, self.column, xp.abs(self.values), self.shape, offset)

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """A few entries with and without bias; one column stays empty."""
        row, column = np.array([0, 1, 3, 3]), np.array([2, 0, 0, 2])
        values = rng.normal(size=4)
        return [
            cls(row, column, values, (5, 3), rng.normal(size=3)),
            cls(row, column, values, (4, 4)),
        ]
