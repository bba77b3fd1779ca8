"""Adjoint: the transpose of another affine operator, with a bias of its own (ConvTranspose)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from onnxcert.arrays import Array, FloatArray, array_module
from onnxcert.ops.base import Affine, register
from onnxcert.ops.convolution import Convolution


@register
@dataclass(frozen=True)
class Adjoint(Affine):
    """y = A^T x + b, where A is the linear part of ``operator`` (one input)."""

    operator: Affine
    offset: FloatArray | None = None

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """The operator's output."""
        return (self.operator.output_size,)

    @property
    def output_size(self) -> int:
        """The operator's input."""
        return self.operator.input_sizes[0]

    @property
    def error_terms(self) -> int:
        """As the operator, whose count covers both directions."""
        return self.operator.error_terms

    @property
    def bias(self) -> Array | None:
        """The offset, one number per output."""
        return self.offset

    def apply(self, inputs: Sequence[Array]) -> Array:
        """A^T x."""
        return self.operator.transpose(inputs[0])[0]

    def transpose(self, rows: Array) -> list[Array]:
        """A applied to the rows."""
        return [self.operator.apply([rows])]

    def absolute(self) -> Adjoint:
        """|A^T| and |b|."""
        offset = None if self.offset is None else array_module(self.offset).abs(self.offset)
        return Adjoint(self.operator.absolute(), offset)

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """Of convolutions, with and without bias."""
        first, second, _ = Convolution.examples(rng)
        return [cls(first, rng.normal(size=first.input_sizes[0])), cls(second)]
