"""Matrices most of which is zero in blocks: products that leave the blocks out.

A row of a folded network (`onnxcert.bounds.folding`) is about the part of an image that its neuron
sees. With neurons in an order in which neighbours see nearly the same, what a band of rows is about
are a few runs of columns, and what a band of columns is read by are a few runs of rows; a product
needs no others. For cifar_biasfield 23, with 5,914 unstable neurons behind seven convolutions, 12 %
of the multiplications in all backward rows are with numbers other than zero. The last layers see
all of the image; there nothing is left out.

Compressed rows (`onnxcert.ops.sparse`) would leave out more, but take fifty times as long for each
entry as a product of dense blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import Array, array_module, single

_BAND = 64
"""Rows or columns of a band: more see more, and fewer are slower for each entry."""

_GAP = 16
"""Shorter runs of zeros are multiplied."""

_SHARE = 0.6
"""Matrices of which more is left are not worth it."""

Band = tuple[slice, tuple[slice, ...]]
"""Some rows and the runs of columns outside of which they are zero, or the other way round."""


@dataclass(frozen=True, eq=False)
class Bands:
    """A matrix (n, m), and where it is not zero.

    Attributes:
        matrix: all of it.
        rows, columns: bands of either; None where they would not pay.
    """

    matrix: Array
    rows: tuple[Band, ...] | None
    columns: tuple[Band, ...] | None

    @classmethod
    def of(cls, matrix: Array) -> Bands:
        """Look for bands."""
        if array_module(matrix) is not np:  # elsewhere one product is quicker than many small ones
            return cls(matrix, None, None)
        used = matrix != 0
        return cls(matrix, _bands(used), _bands(used.T))

    @property
    def single(self) -> Bands:
        """The same in binary32."""
        return Bands(single(self.matrix), self.rows, self.columns)

    @property
    def pays(self) -> bool:
        """Whether products of rows leave something out."""
        return self.columns is not None

    def after(self, rows: Array) -> Array:
        """Rows (R, n) times the matrix: (R, m)."""
        return _product(rows, self.matrix, self.columns)

    def add_after(self, rows: Array, onto: Array) -> None:
        """Add `after` to other rows (R, m), in place."""
        if self.columns is None:
            onto += rows @ self.matrix
            return
        for band, runs in self.columns:
            for run in runs:
                onto[:, band] += rows[:, run] @ self.matrix[run, band]

    def before(self, values: Array) -> Array:
        """The matrix times each of several vectors (R, m): (R, n)."""
        return _product(values, self.matrix.T, self.rows)


def _bands(used: Array) -> tuple[Band, ...] | None:
    """Bands of rows of a matrix, by where it is not zero."""
    bands: list[Band] = []
    left = 0
    for start in range(0, len(used), _BAND):
        band = slice(start, min(start + _BAND, len(used)))
        places = np.flatnonzero(used[band].any(axis=0))
        parts = np.split(places, np.flatnonzero(np.diff(places) > _GAP) + 1)
        runs = tuple(slice(int(p[0]), int(p[-1]) + 1) for p in parts if len(p))
        left += (band.stop - band.start) * sum(run.stop - run.start for run in runs)
        if runs:
            bands.append((band, runs))
    return tuple(bands) if left <= _SHARE * used.size else None


def _product(left: Array, right: Array, bands: tuple[Band, ...] | None) -> Array:
    """``left @ right`` by bands of the columns of the right matrix."""
    if bands is None:
        return left @ right
    made = np.zeros((len(left), right.shape[1]), left.dtype)
    for band, (first, *others) in bands:
        part = left[:, first] @ right[first, band]
        for run in others:
            part += left[:, run] @ right[run, band]
        made[:, band] = part
    return made
