"""Operator families: what an analysis may ask of an operator.

All values are flat vectors, batch first: ``(B, n)``. Coefficient rows of backward bounds are
``(K, n)`` with K = subproblems x rows, so a transposed affine map serves bounds and attack
gradients alike.

Rounding. A sum of n products in any order, fused or not, has an error of at most
``gamma_n |A| |x|`` with ``gamma_n = n u / (1 - n u)`` (Higham, *Accuracy and Stability of Numerical
Algorithms*, section 3.1). Every operator says through `error_terms` how many roundings one output
takes; the analyses turn that into bounds that hold for the real-valued network in spite of being
computed in floating point. The same count with u = 2^-24 encloses every binary32 execution, which
is how a lowered graph is compared with onnxruntime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from onnxcert.arrays import (
    Array,
    BoolArray,
    Device,
    Gather,
    Window,
    array_module,
    cast_floats,
    to_device,
)
from onnxcert.sets import Box, Lines, Planes

TINY = 1e-290
"""Absorbs underflow in error bounds: far below any margin, far above what underflow loses."""

LARGEST = float(np.finfo(np.float64).max)
"""What overflows to infinity is at least this, which is a lower bound where infinity is none."""

EXTRA_ROUNDINGS = 8
"""Those of an executor beside the ones of products and sums: the bias, a factor of the whole, and a
normalisation whose factor (sum, root, quotient) is worked out or folded into the weights."""

OPERATORS: list[type[Operator]] = []
"""Every final operator class, in the order of definition; tests walk it."""


def gamma(count: float, unit: float) -> float:
    """Higham's gamma_n: the relative error of a sum of ``count`` roundings of size ``unit``."""
    return count * unit / (1.0 - count * unit)


@dataclass(frozen=True, eq=False)
class Part:
    """What is left of an operator when only some entries of its output are wanted.

    Attributes:
        op: from the entries that are read to those that are made, in their order.
        reads: (n_i,) per input of the whole operator which entries ``op`` reads; ``op`` does not
            have the inputs of which it reads nothing.
        makes: (m,) which entries of the whole output it makes: those wanted, and maybe more.
    """

    op: Operator
    reads: tuple[BoolArray, ...]
    makes: BoolArray


class Operator(ABC):
    """A map from one or more flat vectors to one flat vector. Final subclasses are frozen."""

    takes_maximum: ClassVar[bool] = False
    """Whether the output is the larger of the first two inputs, as the third one makes sure."""

    stacks: ClassVar[bool] = False
    """Whether the inputs stand one after the other in the output, so that squares add up."""

    makes_whole: ClassVar[bool] = False
    """Whether the output is whole numbers, whatever the inputs are."""

    keeps_whole: ClassVar[bool] = False
    """Whether it is if all inputs are, and all numbers that the operator holds."""

    def whole(self, *, of_whole: bool) -> bool:
        """Whether the output is whole numbers, of inputs that are or not."""
        if self.makes_whole or not (of_whole and self.keeps_whole):
            return self.makes_whole
        held = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        return all(bool((x == np.floor(x)).all()) for x in held if isinstance(x, np.ndarray))

    @property
    @abstractmethod
    def input_sizes(self) -> tuple[int, ...]:
        """Lengths of the input vectors."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Length of the output vector."""

    @property
    @abstractmethod
    def error_terms(self) -> int:
        """The number n of roundings in one output coordinate, for gamma_n."""

    @abstractmethod
    def forward(self, inputs: Sequence[Array]) -> Array:
        """Evaluate: arrays (B, n_i) -> (B, m)."""

    @abstractmethod
    def vjp(self, gradient: Array, inputs: Sequence[Array]) -> list[Array]:
        """Vector-Jacobian product: (B, m) -> one (B, n_i) per input."""

    @abstractmethod
    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """Enclose the outputs over the boxes and over all roundings of relative size ``unit``."""

    @classmethod
    @abstractmethod
    def examples(cls, rng: np.random.Generator) -> list[Self]:
        """Two or three instances for the tests that walk the registry."""

    def part(self, wanted: BoolArray) -> Part:
        """What makes some entries of the output, (m,) with at least one: here all of it."""
        del wanted
        reads = tuple(np.ones(size, bool) for size in self.input_sizes)
        return Part(self, reads, np.ones(self.output_size, bool))

    def to(self, device: Device, dtype: Any = np.float64) -> Self:
        """The same operator with its arrays on a device and its floats in another precision."""
        changes: dict[str, object] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, array_module(value).ndarray):
                changes[field.name] = to_device(cast_floats(value, dtype), device)
            elif isinstance(value, Gather):
                changes[field.name] = value.to(device)
            elif isinstance(value, Operator):
                changes[field.name] = value.to(device, dtype)
        return replace(self, **changes) if changes else self  # type: ignore[type-var]


def entrywise_part(op: Operator, wanted: BoolArray) -> Part:
    """`Operator.part` where entry i of the output comes from the entries i of the inputs alone.

    Args:
        op: its ``size`` is the length n; arrays are (n, ...), or (1, ...) and () for all entries.
        wanted: (n,).
    """
    changes: dict[str, object] = {"size": int(wanted.sum())}
    for field in fields(op):  # type: ignore[arg-type]
        value = getattr(op, field.name)
        if isinstance(value, np.ndarray) and value.shape[:1] == wanted.shape:
            changes[field.name] = value[wanted]
    count = len(op.input_sizes)
    return Part(replace(op, **changes), (wanted,) * count, wanted)  # type: ignore[type-var]


_Final = TypeVar("_Final", bound=type[Operator])


def register(cls: _Final) -> _Final:
    """Class decorator: list a final operator in `OPERATORS`."""
    OPERATORS.append(cls)
    return cls


class Affine(Operator):
    """y = A x + b, for one input or several: y = sum_i A_i x_i + b."""

    @property
    def bias(self) -> Array | None:
        """b, shape (m,), or None for zero."""
        return None

    @property
    def bias_parts(self) -> Array | None:
        """At least |b|, (m,): the sum of |terms| where the file has b as a sum of several."""
        return self.bias

    @property
    def roundings(self) -> int:
        """Those that one product or the bias may meet in an executor; 0 where it is exact."""
        return self.error_terms + EXTRA_ROUNDINGS

    @property
    def adds_bias(self) -> bool:
        """Whether the file may mean this as the bias, or normalisation, of products before it."""
        return False

    @abstractmethod
    def apply(self, inputs: Sequence[Array]) -> Array:
        """The linear part A x."""

    @abstractmethod
    def transpose(self, rows: Array) -> list[Array]:
        """A^T applied to rows: (K, m) -> one (K, n_i) per input."""

    @abstractmethod
    def absolute(self) -> Affine:
        """The operator with |A| and |b|."""

    @cached_property
    def magnitude(self) -> Affine:
        """`absolute`, computed once."""
        return self.absolute()

    def forward(self, inputs: Sequence[Array]) -> Array:
        """A x + b."""
        result = self.apply(inputs)
        return result if self.bias is None else result + self.bias

    def vjp(self, gradient: Array, inputs: Sequence[Array]) -> list[Array]:
        """A^T g, wherever the inputs lie."""
        del inputs
        return self.transpose(gradient)

    def transpose_on(self, rows: Array, columns: Array) -> list[tuple[Array, Array | None]]:
        """`transpose` of rows that are zero outside some columns.

        A neuron of a convolution depends on a small window of its input; rows that start there
        stay narrow for some layers, and most of the work of dense rows would go into zeros.

        Args:
            rows: (K, c) values in the given columns of the output.
            columns: (c,) increasing.

        Returns:
            Per input (values (K, c_i), columns (c_i,) or None for all of them).
        """
        xp = array_module(rows)
        dense = xp.zeros((len(rows), self.output_size), rows.dtype)
        dense[:, columns] = rows
        return [(part, None) for part in self.transpose(dense)]

    def one_hot_rows(self, index: Array) -> list[tuple[Array, Array | None]]:
        """`transpose_on` of the unit rows e_i for i in ``index`` (K,): rows of A."""
        xp = array_module(index)
        columns, position = xp.unique(index, return_inverse=True)
        rows = xp.zeros((len(index), len(columns)))
        rows[xp.arange(len(index)), position] = 1.0
        return self.transpose_on(rows, columns)

    def reading(self, entries: Array) -> Affine | None:
        """The products with some entries of the only input, without the bias; None if not simple.

        Args:
            entries: (c,) increasing; what is left reads vectors of that length.
        """
        del entries
        return None

    @property
    def sliding(self) -> Window | None:
        """The window that slides over the only input, an image, to make the output image.

        None where there is no such thing.
        """
        return None

    def over(self, window: Window) -> Affine:
        """The same products for another image, where there is something `sliding`."""
        raise NotImplementedError(f"nothing slides in {type(self).__name__}")

    @property
    def picked(self) -> Array | None:
        """(m,) which entry of the only input each output is, where it is no more than that."""
        return None

    @property
    def adds_entries(self) -> bool:
        """Whether outputs are entries of the inputs, or sums of one of each input, signs aside."""
        return self.picked is not None

    @property
    def adds_neighbours(self) -> tuple[int, float] | None:
        """(k, c) where each output is c times the sum of the next k entries and the bias."""
        return None

    @property
    def diagonal(self) -> tuple[Array, Array] | None:
        """(factor, offset), (n,) each, where y = factor x + offset entry by entry; else None."""
        return None

    def resized(self, size: int) -> Affine | None:
        """The same for vectors of another length, where all entries are treated alike."""
        del size
        return None

    def locality(self, ranks: Sequence[Array | None]) -> Array | None:
        """Ranks of the outputs such that neurons of near rank read near inputs, or None.

        Args:
            ranks: the same of the inputs.
        """
        del ranks
        return None

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """Centre and radius: A c + b, widened by |A| r and by the roundings of both."""
        xp = array_module(boxes[0].lower)
        error = 2.0 * gamma(self.error_terms + 4, unit)
        centers = [0.5 * (box.lower + box.upper) for box in boxes]
        radii = [
            xp.maximum(box.upper - center, center - box.lower)
            for box, center in zip(boxes, centers, strict=True)
        ]
        spread = [
            radius * (1.0 + error) + error * xp.abs(center)
            for radius, center in zip(radii, centers, strict=True)
        ]
        center = self.forward(centers)
        radius = self.magnitude.apply(spread) * (1.0 + error) + TINY
        radius = radius + 4.0 * unit * xp.abs(center)
        if self.bias is not None:
            radius = radius + error * xp.abs(self.bias)
        return Box(center - radius, center + radius)


class BentLines(ABC):
    """Lines of a curve on a box that turn round no fixed point as the position s goes from 0 to 1.

    Each slope is monotonic in s, and each offset is largest in size at one of the `landmarks`, the
    ends where nothing else is said; so these bound what lies between.
    """

    @abstractmethod
    def at(self, position: Array) -> Lines:
        """The lines at positions (B, n)."""

    @abstractmethod
    def gains(self, position: Array, z: Array) -> tuple[Array, Array]:
        """Derivatives of the lower and the upper line at z with respect to s, arrays (B, n)."""

    def landmarks(self) -> list[Array | float]:
        """Positions, (B, n) or one for all: no line is steeper, no offset larger than there."""
        return [0.0, 1.0]

    def largest(self, zero: Array) -> Lines:
        """A slope and an offset as large as those of any line in size, for both sides.

        Args:
            zero: zeros in the shape of the box, (B, n).
        """
        xp = array_module(zero)
        slope = offset = zero
        for position in self.landmarks():
            end = self.at(position + zero)
            slope = xp.maximum(slope, xp.maximum(abs(end.lower_slope), abs(end.upper_slope)))
            offset = xp.maximum(offset, xp.maximum(abs(end.lower_offset), abs(end.upper_offset)))
        return Lines(slope, offset, slope, offset)


class Elementwise(Operator):
    """y_i = f(x_i); subclasses give the curve and the lines round it."""

    kinks: ClassVar[tuple[float, ...]] = ()
    """Where the slope jumps; between kinks a piecewise linear curve is exact."""

    piecewise_linear: ClassVar[bool] = True
    """Whether the curve is linear between its kinks."""

    continuous: ClassVar[bool] = True
    """Whether the gap between its lines shrinks with the range: a jump's does not."""

    roundings: ClassVar[int] = 0
    """Roundings in one evaluation of the curve; zero where the result is exact."""

    rectifies: ClassVar[bool] = False
    """Whether the curve is max(x, 0)."""

    floors: ClassVar[bool] = False
    """Whether the curve is the largest whole number that is no larger."""

    saturates: ClassVar[bool] = False
    """Whether the curve levels off, so that its roundings are those of one, however small it is."""

    size: int

    @property
    def error_terms(self) -> int:
        """The roundings of the curve itself."""
        return self.roundings

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """One input, as long as the output."""
        return (self.size,)

    @property
    def output_size(self) -> int:
        """The number of neurons."""
        return self.size

    def part(self, wanted: BoolArray) -> Part:
        """Those entries."""
        return entrywise_part(self, wanted)

    @abstractmethod
    def value(self, x: Array) -> Array:
        """f(x), entry by entry."""

    @abstractmethod
    def derivative(self, x: Array) -> Array:
        """f'(x); at a kink any value between the one-sided slopes."""

    @abstractmethod
    def relax(self, box: Box, slope: Array | None = None) -> Lines:
        """Lines below and above the curve on the box.

        Args:
            box: l <= x <= u, arrays (B, n).
            slope: position of the free line in [0, 1], (B, n); None takes the default. Operators
                without a free line ignore it.
        """

    def slope_range(self, box: Box | None = None) -> tuple[Array, Array] | None:
        """The least and the largest slope between any two points of each neuron's interval.

        Args:
            box: the intervals, arrays (B, n); None for the whole line.

        Returns:
            (low, high) that broadcast to the box, or to (n,) without one, rounded outward; None
            where the curve has no such range.
        """
        del box
        return None

    def default_position(self, box: Box) -> Array:
        """The positions whose lines `relax` takes by default, (B, n): 1 where |u| > |l|.

        They mean something only where a free line has freedom.
        """
        return (box.upper > -box.lower).astype(float)

    def parallel_position(self, box: Box) -> Array | None:
        """Positions that make the lines as parallel as can be, (B, n); None for the default."""
        del box
        return None

    def bend(self, box: Box) -> BentLines | None:
        """The lines as a function of their positions, where that is not linear; None elsewhere."""
        del box
        return None

    def unstable(self, box: Box) -> Array:
        """Neurons whose lines are not exact on the box: (B, n) booleans."""
        inside = [(box.lower < kink) & (box.upper > kink) for kink in self.kinks]
        if self.piecewise_linear and inside:
            return np.bitwise_or.reduce(inside) if len(inside) > 1 else inside[0]
        return box.lower < box.upper

    def split_point(self, box: Box) -> Array:
        """Where branching should cut each neuron's interval, (B, n)."""
        middle = 0.5 * (box.lower + box.upper)
        xp = array_module(middle)
        for kink in self.kinks:
            inside = (box.lower < kink) & (box.upper > kink)
            middle = xp.where(inside, kink, middle)
        return middle

    def forward(self, inputs: Sequence[Array]) -> Array:
        """f of the only input."""
        return self.value(inputs[0])

    def vjp(self, gradient: Array, inputs: Sequence[Array]) -> list[Array]:
        """The gradient times the derivative."""
        return [gradient * self.derivative(inputs[0])]

    def interval(self, boxes: Sequence[Box], unit: float) -> Box:
        """The values at the ends: right for curves that never fall, and those override it not."""
        lower, upper = self.value(boxes[0].lower), self.value(boxes[0].upper)
        return self.widen(Box(lower, upper), unit)

    def widen(self, box: Box, unit: float) -> Box:
        """Charge the operator's own roundings to computed end points."""
        if not self.error_terms:
            return box
        xp = array_module(box.lower)
        error = 2.0 * gamma(self.error_terms, unit)
        return Box(
            box.lower - error * xp.abs(box.lower) - TINY,
            box.upper + error * xp.abs(box.upper) + TINY,
        )


class Bivariate(Operator):
    """y_i = f(a_i, b_i) for two computed values; subclasses give the function and planes round it.

    A row over y becomes one over a and one over b, by the lower plane where it is positive and by
    the upper one where it is negative, as a row over a curve takes one of two lines.
    """

    multiplies: ClassVar[bool] = False
    """Whether the function is a b."""

    roundings: ClassVar[int]
    """Roundings in one evaluation of the function."""

    turns: ClassVar[bool] = False
    """Whether it has a pair of planes for every position in [0, 1]."""

    size: int

    @property
    def error_terms(self) -> int:
        """The roundings of the function itself."""
        return self.roundings

    @property
    def input_sizes(self) -> tuple[int, int]:
        """Two inputs, each as long as the output."""
        return self.size, self.size

    @property
    def output_size(self) -> int:
        """The number of pairs."""
        return self.size

    def part(self, wanted: BoolArray) -> Part:
        """Those entries."""
        return entrywise_part(self, wanted)

    @abstractmethod
    def relax(self, boxes: Sequence[Box], made: Box, position: Array | None = None) -> Planes:
        """Planes below and above the function.

        Args:
            boxes: those of a and b, arrays (B, n).
            made: bounds of the function's own values that hold there.
            position: numbers in [0, 1], (B, n), where the function has more than one pair of
                planes; None for the default.
        """

    def moved_by_flushing(self, boxes: Sequence[Box]) -> Array:
        """How far the function moves at most, per unit by which a and b near zero do, (B, n)."""
        return boxes[0].magnitude + boxes[1].magnitude

    @abstractmethod
    def bends(self, boxes: Sequence[Box]) -> Array:
        """Where no plane is the function over the boxes, but for roundings: (B, n) booleans."""

    def center(self, boxes: Sequence[Box], made: Box) -> Array:
        """The c for which bounds of a - c b give bounds of the function; zero where none do."""
        del made
        return array_module(boxes[0].lower).zeros(boxes[0].lower.shape)  # type: ignore[no-any-return]

    def from_difference(self, boxes: Sequence[Box], center: Array, difference: Box) -> Box:
        """Bounds of the function from those of a - c b."""
        raise NotImplementedError(f"{type(self).__name__} is no function of a difference")
