"""Sin: the sine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from onnxcert.arrays import Array, array_module
from onnxcert.ops.base import register
from onnxcert.ops.sinusoid import Sinusoid


@register
@dataclass(frozen=True)
class Sin(Sinusoid):
    """sin(x), x in radians."""

    size: int
    phase: ClassVar[float] = 0.0

    def value(self, x: Array) -> Array:
        """sin(x)."""
        return array_module(x).sin(x)  # type: ignore[no-any-return]

    def derivative(self, x: Array) -> Array:
        """cos(x)."""
        return array_module(x).cos(x)  # type: ignore[no-any-return]

    @classmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """One size is like another."""
        del rng
        return [cls(4)]
