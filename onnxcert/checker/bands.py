"""Products with matrices that are zero outside of bands.

The rows of a folded network (rule R22) are about what their neurons see of an image. With
neighbours side by side some columns of such a matrix are not zero in few runs of rows only, and the
other way round; a product needs no others. Left out are products with zero, which add nothing: sums
of fewer numbers keep the error terms of longer ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxcert.checker.network import Array

_WIDTH, _GAP = 64, 16
"""Columns of a band, and the shortest run of zeros that is left out."""

_MOST = 0.6
"""Share of a matrix from which on all of it is multiplied."""

_SMALLEST = 200
"""Lengths of matrices for which bands are looked for."""

Band = tuple[slice, list[slice]]
"""Some columns, and the runs of rows outside of which they are zero; or the other way round."""


@dataclass(frozen=True, eq=False)
class Bands:
    """A matrix (n, m) with its bands, looked for when they are needed.

    Attributes:
        like: a matrix whose bands these are, too: it is zero only where this one is. None for none.
    """

    matrix: Array
    like: Bands | None = None

    @cached_property
    def _columns(self) -> list[Band] | None:
        return _find(self.matrix != 0) if self.like is None else self.like._columns

    @cached_property
    def _rows(self) -> list[Band] | None:
        return _find(self.matrix.T != 0) if self.like is None else self.like._rows

    @property
    def single(self) -> Bands:
        """The same in binary32."""
        return Bands(self.matrix.astype(np.float32), self)

    def after(self, rows: Array) -> Array:
        """Rows (R, n) times the matrix."""
        return _times(rows, self.matrix, self._columns)

    def add_after(self, rows: Array, onto: Array) -> None:
        """Add that to other rows (R, m), in place."""
        if self._columns is None:
            onto += rows @ self.matrix
            return
        for band, runs in self._columns:
            for run in runs:
                onto[:, band] += rows[:, run] @ self.matrix[run, band]

    def before(self, values: Array) -> Array:
        """The matrix times each of several vectors (R, m)."""
        return _times(values, self.matrix.T, self._rows)


def _find(used: Array) -> list[Band] | None:
    """Bands of columns with the runs of rows that are used there; None if they do not pay."""
    bands, left = list[Band](), 0
    if min(used.shape) < _SMALLEST:
        return None
    for start in range(0, used.shape[1], _WIDTH):
        band = slice(start, min(start + _WIDTH, used.shape[1]))
        rows = np.flatnonzero(used[:, band].any(axis=1))
        if len(rows):
            parts = np.split(rows, np.flatnonzero(np.diff(rows) > _GAP) + 1)
            runs = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
            left += (band.stop - start) * sum(run.stop - run.start for run in runs)
            bands.append((band, runs))
    return bands if left <= _MOST * used.size else None


def _times(left: Array, right: Array, bands: list[Band] | None) -> Array:
    if bands is None:
        return np.asarray(left @ right)
    made = np.zeros((len(left), right.shape[1]), left.dtype)
    for band, (first, *others) in bands:
        made[:, band] = left[:, first] @ right[first, band]
        for run in others:
            made[:, band] += left[:, run] @ right[run, band]
    return made
