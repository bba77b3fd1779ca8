"""Select: pick, repeat and reorder entries (Transpose, Slice, Gather, Expand, Pad, Resize, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, BoolArray, FloatArray, Gather, IntArray, array_module
from onnxcert.ops.base import Affine, Part, register
from onnxcert.sets import Box


@register
@dataclass(frozen=True)
class Select(Affine):
    """y[j] = x[index[j]], or ``fill[j]`` where index[j] is -1."""

    gather: Gather
    fill: FloatArray | None = None
    keeps_whole: ClassVar[bool] = True

    @classmethod
    def of(cls, index: IntArray, size: int, fill: float = 0.0) -> Self:
        """Build from flat indices into a vector of length ``size``."""
        index = np.asarray(index, dtype=np.int64)
        offset = np.where(index < 0, fill, 0.0) if fill and (index < 0).any() else None
        return cls(Gather.build(index, size), offset)

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """Length of x."""
        return (self.gather.size,)

    @property
    def output_size(self) -> int:
        """Number of indices."""
        return len(self.gather.index)

    @property
    def error_terms(self) -> int:
        """Exact forward; the transpose sums as many rows as one entry is read."""
        return max((table.shape[1] for _, table in self.gather.groups), default=1) - 1

    @property
    def bias(self) -> Array | None:
        """The fill of padded entries."""
        return self.fill

    @property
    def picked(self) -> Array | None:
        """The indices, unless some entries are filled in."""
        return None if self.fill is not None or (self.gather.index < 0).any() else self.gather.index

    @property
    def roundings(self) -> int:
        """None: values are only moved."""
        return 0

    def apply(self, inputs: Sequence[Array]) -> Array:
        """Gather."""
        return self.gather.apply(inputs[0])

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The intervals of what is picked, which nothing is added to."""
        del unit
        return boxes[0].map(lambda side: self.forward([side]))

    def transpose(self, rows: Array) -> list[Array]:
        """Sum what each entry was copied to."""
        return [self.gather.adjoint(rows)]

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """Move each column to its source; sources that are read once need no sum."""
        xp = array_module(rows)
        sources = self.gather.index[columns]
        if (sources < 0).any():
            rows, sources = rows[:, sources >= 0], sources[sources >= 0]
        order = xp.argsort(sources, kind="stable")
        sources = sources[order]
        first = xp.concatenate([xp.ones(1, bool), sources[1:] > sources[:-1]])[: len(sources)]
        if first.all():
            return [(rows[:, order], sources)]
        return super().transpose_on(rows, columns[self.gather.index[columns] >= 0])

    def locality(self, ranks: Sequence[Array | None]) -> Array | None:
        """The rank of what is picked."""
        return None if ranks[0] is None else ranks[0][self.gather.index]

    def part(self, wanted: BoolArray) -> Part:
        """The indices of those entries."""
        index = self.gather.index[wanted]
        reads = np.zeros(self.gather.size, bool)
        reads[index[index >= 0]] = True
        if not reads.any():
            reads[0] = True
        number = np.where(index >= 0, (np.cumsum(reads) - 1)[index], -1)
        fill = None if self.fill is None else self.fill[wanted]
        return Part(Select(Gather.build(number, int(reads.sum())), fill), (reads,), wanted)

    def absolute(self) -> Select:
        """The map itself is non-negative."""
        fill = None if self.fill is None else array_module(self.fill).abs(self.fill)
        return Select(self.gather, fill)

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """A permutation, repetitions, and padding with a value."""
        return [
            cls.of(rng.permutation(5), 5),
            cls.of(np.array([0, 0, 2, 1, 2, 2]), 4),
            cls.of(np.array([-1, 0, 1, -1]), 2, fill=1.5),
        ]
