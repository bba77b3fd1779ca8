"""Arrays of exact decimal numbers, and their neighbours in binary64.

A literal such as ``0.0505005568265915`` is the integer 505005568265915 over 10**16. Nineteen
digits fit an ``int64``, so millions of literals cost nine bytes each and stay exact; the few that
do not fit are kept as fractions beside the array.

What the engine needs is the largest binary64 number not above each decimal (``floor``) and the
smallest not below it (``ceil``). With m < 2**53 and k <= 22 the quotient q = m / 10**k of two exact
doubles is correctly rounded (Clinger 1990), and the error-free product q * 10**k = p + e (Dekker
1971) makes m - p - e exact, whose sign says on which side of the literal q lies. Larger m are split
in two parts and q is moved by at most a few steps. Converting through ``Fraction`` gives the same
numbers, and is what the tests compare with, but takes a hundred times as long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcert.arrays import BoolArray, FloatArray

LARGEST_MANTISSA = 2**63 - 1024
"""Below this an integer rounds to a double that converts back to int64 without overflow."""

LARGEST_SCALE = 22
"""10**22 is the largest power of ten that is a binary64 number."""

INFINITE = -128
"""The scale that marks a missing bound; the sign of the mantissa says on which side."""

_BLOCK = 2**18
"""How many numbers are converted at a time, which bounds the memory for intermediate results."""

_POWERS = 10.0 ** np.arange(LARGEST_SCALE + 1)
_SPLITTER = 2.0**27 + 1.0
_EXACT_LIMIT = 2**53


def round_down(value: Fraction) -> float:
    """The largest binary64 number (or -inf) not above the value."""
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf if value > 0 else -math.inf
    if math.isinf(nearest):
        return math.nextafter(math.inf, 0) if value > 0 else -math.inf
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)


def round_up(value: Fraction) -> float:
    """The smallest binary64 number (or inf) not below the value."""
    return 0.0 - round_down(-value)  # not minus zero


@dataclass(frozen=True)
class Decimals:
    """Exact numbers ``mantissa / 10**scale``, any shape.

    Attributes:
        mantissa: int64.
        scale: int8; ``INFINITE`` marks plus or minus infinity.
        exceptions: exact values, by position in row-major order, of those that do not fit.
        floor: the largest binary64 number not above each.
        inexact: where ``floor`` is not the value itself, so that ``ceil`` is the next number.
    """

    mantissa: NDArray[np.int64]
    scale: NDArray[np.int8]
    exceptions: Mapping[int, Fraction] = field(default_factory=dict)
    floor: FloatArray = field(init=False, compare=False)
    inexact: BoolArray = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Compute the neighbours once; they are read far more often than the exact values."""
        mantissa, scale = self.mantissa.ravel(), self.scale.ravel()
        floor, inexact = np.empty(mantissa.shape), np.empty(mantissa.shape, dtype=np.bool_)
        for start in range(0, len(mantissa), _BLOCK):
            block = slice(start, start + _BLOCK)
            floor[block], inexact[block] = _floor(mantissa[block], scale[block])
        for position, value in self.exceptions.items():
            floor[position] = round_down(value)
            inexact[position] = math.isinf(floor[position]) or floor[position] != value
        object.__setattr__(self, "floor", floor.reshape(self.mantissa.shape))
        object.__setattr__(self, "inexact", inexact.reshape(self.mantissa.shape))

    @classmethod
    def from_fractions(cls, values: Sequence[Fraction]) -> Decimals:
        """A vector of finite numbers."""
        fitted = [fit(value) for value in values]
        pairs = np.array([pair or (0, 0) for pair in fitted], np.int64).reshape(-1, 2)
        odd = {k: value for k, value in enumerate(values) if fitted[k] is None}
        return cls(pairs[:, 0], pairs[:, 1].astype(np.int8), odd)

    def reshape(self, *shape: int) -> Decimals:
        """The same numbers in another shape, in row-major order."""
        return replace(self, mantissa=self.mantissa.reshape(shape), scale=self.scale.reshape(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.mantissa.shape

    @property
    def ceil(self) -> FloatArray:
        """The smallest binary64 number not below each."""
        return next_up(self.floor, self.inexact)

    def exact(self, position: tuple[int, ...]) -> Fraction | None:
        """The value itself; ``None`` for infinity."""
        flat = int(np.ravel_multi_index(position, self.shape))
        if flat in self.exceptions:
            return self.exceptions[flat]
        scale = int(self.scale[position])
        return None if scale == INFINITE else Fraction(int(self.mantissa[position]), 10**scale)


def next_up(floor: FloatArray, inexact: BoolArray) -> FloatArray:
    """The upper neighbours that belong to ``floor``."""
    with np.errstate(over="ignore"):  # infinity is above the largest number, as it should be
        return np.where(inexact, np.nextafter(floor, np.inf), floor)


def fit(value: Fraction) -> tuple[int, int] | None:
    """The value as ``(mantissa, scale)``, or ``None`` if it is no decimal of that size."""
    twos, rest = _remove(value.denominator, 2)
    fives, rest = _remove(rest, 5)
    scale = max(twos, fives)
    if rest != 1 or scale > LARGEST_SCALE:
        return None
    mantissa = value.numerator * (10**scale // value.denominator)
    return (mantissa, scale) if abs(mantissa) < LARGEST_MANTISSA else None


def _remove(number: int, prime: int) -> tuple[int, int]:
    """How often the prime divides (stopped once it is too often to matter), and the cofactor."""
    count = 0
    while number % prime == 0 and count <= LARGEST_SCALE:
        number //= prime
        count += 1
    return count, number


def _floor(
    mantissa: NDArray[np.int64], scale: NDArray[np.int8]
) -> tuple[NDArray[np.float64], BoolArray]:
    """``(floor, inexact)`` of ``mantissa / 10**scale``; vectors of one length."""
    infinite = scale == INFINITE
    magnitude = np.abs(mantissa)
    power = _POWERS[np.where(infinite, 0, scale)]
    high = magnitude.astype(np.float64)
    low = (magnitude - high.astype(np.int64)).astype(np.float64)
    quotient = high / power
    side = _side(quotient, power, high, low)
    large = np.flatnonzero(magnitude >= _EXACT_LIMIT)
    if len(large):
        quotient[large], side[large] = _settle(
            quotient[large], side[large], power[large], high[large], low[large]
        )
    inexact = (side != 0) & ~infinite
    # From here side < 0 means that the literal is below the quotient, and in magnitude.
    below = np.where(side < 0, np.nextafter(quotient, -np.inf), quotient)
    above = np.where(side > 0, np.nextafter(quotient, np.inf), quotient)
    floor = np.where(mantissa < 0, -above, below)
    floor[infinite] = np.sign(mantissa[infinite]) * np.inf
    return floor, inexact


def _side(
    quotient: NDArray[Any], power: NDArray[Any], high: NDArray[Any], low: NDArray[Any]
) -> NDArray[Any]:
    """Sign of ``(high + low) / power - quotient``, exactly, for quotients that are close."""
    product = quotient * power
    scaled = quotient * _SPLITTER
    a = scaled - (scaled - quotient)
    b = quotient - a
    scaled = power * _SPLITTER
    c = scaled - (scaled - power)
    d = power - c
    error = ((a * c - product) + a * d + b * c) + b * d
    rest = (high - product) + low
    sign: NDArray[np.int8] = (rest > error).astype(np.int8) - (rest < error).astype(np.int8)
    return sign


def _settle(
    quotient: NDArray[Any],
    side: NDArray[Any],
    power: NDArray[Any],
    high: NDArray[Any],
    low: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Move quotients whose rounding erred twice until they are a neighbour of the literal."""
    while True:
        stepped = np.nextafter(quotient, np.where(side > 0, np.inf, -np.inf))
        stepped_side = _side(stepped, power, high, low)
        move = (side != 0) & ((stepped_side == side) | (stepped_side == 0))
        if not move.any():
            return quotient, side
        quotient = np.where(move, stepped, quotient)
        side = np.where(move, stepped_side, side)
