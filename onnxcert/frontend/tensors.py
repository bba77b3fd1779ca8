"""Values while a model is read: arrays that are known, and entries of vectors that are not.

A tensor that depends on the input is a *view*: an array in the tensor's ONNX shape that says for
every entry which entry of a flat vector of the graph it is. Reshape, Transpose, Slice, Split, Pad,
Expand and their like then are NumPy operations on that array of positions and make no node at
all; chains of them, as exporters love to write, cost one `Select` at most, and none where a
channels-last model transposes forth and back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray

Shape = tuple[int, ...]


MOST_ENTRIES = 1 << 24
"""Largest tensor that a node may make: 128 MB in float64. Stored weights may be larger."""


def checked_size(shape: Sequence[int]) -> None:
    """Refuse a tensor that no memory holds before NumPy tries to make it.

    Raises:
        ValueError: the shape has more than `MOST_ENTRIES` entries.
    """
    if math.prod(shape) > MOST_ENTRIES:
        raise ValueError(f"a tensor of shape {list(shape)} is too large")


class NoRule(Exception):  # noqa: N818 - a finding that is collected, not a failure
    """A node is well formed, but no rule covers it; the message says what is not covered."""


@dataclass(frozen=True, eq=False)
class Constant:
    """An array known when the model is read, in the element type of the file or in float64."""

    array: Array

    @property
    def shape(self) -> Shape:
        """The ONNX shape."""
        return self.array.shape

    @cached_property
    def numbers(self) -> FloatArray:
        """The array in float64, exactly.

        Raises:
            ValueError: an entry is infinite or not a number, or the array holds no numbers.
        """
        if self.array.dtype.kind not in "fiub":
            raise ValueError(f"a constant has elements of type {self.array.dtype}")
        with np.errstate(invalid="ignore"):  # signalling NaNs are refused like all others
            numbers = self.array.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError("a constant holds NaN or infinity")
        return numbers


@dataclass(frozen=True, eq=False)
class Tensor:
    """Entries of a flat vector of the graph, in an ONNX shape.

    Attributes:
        source: the vector's name.
        size: its length.
        index: for every entry its position in the vector, or -1 for a constant.
        fill: those constants (zero elsewhere), or None where there are none.
    """

    source: str
    size: int
    index: IntArray
    fill: FloatArray | None = None

    @classmethod
    def whole(cls, source: str, shape: Shape) -> Tensor:
        """All entries of a vector in their order."""
        size = int(np.prod(shape, dtype=np.int64))
        return cls(source, size, np.arange(size).reshape(shape))

    @property
    def shape(self) -> Shape:
        """The ONNX shape."""
        return self.index.shape

    @cached_property
    def is_permutation(self) -> bool:
        """Whether every entry of the vector is here exactly once, and nothing else."""
        if self.fill is not None or self.index.size != self.size:
            return False
        return bool((np.bincount(self.index.ravel(), minlength=self.size) == 1).all())

    @cached_property
    def is_whole(self) -> bool:
        """Whether these are all entries of the vector in their order."""
        if self.fill is not None or self.index.size != self.size:
            return False
        return bool((self.index.ravel() == np.arange(self.size)).all())

    def settled(self) -> Operand:
        """A constant if nothing but constants is left here, else the tensor itself."""
        if self.fill is not None and bool((self.index < 0).all()):
            return Constant(self.fill)
        return self

    def to_source_order(self, values: FloatArray) -> FloatArray:
        """Bring per-entry values (broadcast to `shape`) into the order of the vector.

        Only for permutations.
        """
        result = np.empty(self.size)
        result[self.index.ravel()] = np.broadcast_to(values, self.shape).ravel()
        return result


Operand = Constant | Tensor
