"""Networks under construction: constants with error bounds, blocks, and nodes of the file."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from onnxcert.checker.errors import Unusable
from onnxcert.checker.network import Affine, Array, Block, Curve, Entries, Pick, Product, Term

_SPARSE_ENTRIES, _SPARSE_DENSITY = 100_000, 0.05

EXTRA = 8
"""Roundings beside those of a product: its offset, a factor of the whole, and a normalisation whose
factor (sum, root, quotient) is worked out or folded into the weights."""


@dataclass(frozen=True, eq=False)
class Known:
    """A constant tensor; ``error`` bounds |exact - value|, None where the value is exact."""

    value: Array
    error: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The ONNX shape."""
        return self.value.shape

    @property
    def is_one(self) -> bool:
        """Whether a product with it changes nothing."""
        return self.error is None and bool((self.value == 1).all())

    def exactly(self) -> Array:
        """The value in its own element type; refused unless exact."""
        if self.error is not None:
            raise Unusable("a decision hangs on a constant that is not exact")
        return self.value

    def numbers(self) -> Known:
        """The same in float64; refused unless finite and representable."""
        kind = self.value.dtype.kind
        value = self.value.astype(np.float64) if kind in "fiub" else np.array(np.nan)
        if not np.isfinite(value).all() or (kind in "iu" and (abs(value) > 2.0**53).any()):
            raise Unusable("a constant is NaN, infinite, too large or no number")
        return Known(value, self.error)

    def moved(self, move: Callable[[Array], Array]) -> Known:
        """The constant with its entries moved."""
        return Known(move(self.value), None if self.error is None else move(self.error))


Operand = Known | Array
ONE, MINUS = Known(np.array(1.0)), Known(np.array(-1.0))
Factored = tuple[Array, Known | None]


def combined(
    step: Callable[[Any, Any], Any], a: Known, b: Known, *, executed: bool = False
) -> Known:
    """The sum, difference, product or quotient of constants, with a bound of what is lost.

    With ``executed`` the bound covers an execution of this step in binary32, too.
    """
    a, b = a.numbers(), b.numbers()
    x, y = np.broadcast_arrays(a.value, b.value)
    ex, ey = (np.zeros(()) if known.error is None else known.error for known in (a, b))
    if step is operator.truediv and (abs(y) <= ey).any():
        raise Unusable("division by zero")
    value = np.asarray(step(x, y))
    stored = value.astype(np.float32).astype(np.float64) if executed else value
    if not np.isfinite(stored).all():
        raise Unusable("a constant overflows")
    unit, tiny = (2.0**-23, 2.0**-126) if executed else (2.0**-52, 1e-300)
    precise = np.frompyfunc(lambda p, q, r: step(Fraction(p), Fraction(q)) == Fraction(r), 3, 1)
    sure = precise(x, y, stored) & (ex == 0) & (ey == 0) & ((value == 0) | (abs(value) >= tiny))
    lost = np.where(sure, 0.0, unit * abs(value) + tiny)
    if step is operator.mul:
        spread = abs(x) * ey + abs(y) * ex + ex * ey
    else:
        spread = (ex + abs(value) * ey) / (abs(y) - ey) if step is operator.truediv else ex + ey
    error = (lost + spread) * (1 + 1e-6)
    return Known(value, error if error.any() else None)


class Builder:
    """The blocks so far; methods take and return tensors of scalar numbers.

    Args:
        n_inputs: how many scalars the input block has.
        load: reads a stored tensor.
    """

    def __init__(self, n_inputs: int, load: Callable[[onnx.TensorProto], Array]) -> None:
        self.blocks: list[Block] = [Block(0, n_inputs, "")]
        self.size, self.load = n_inputs, load
        self.types: set[str] = set()
        self._constants: list[Affine] = []
        self.begin("")

    def begin(self, name: str) -> None:
        """Say for which tensor of the file the next blocks are made."""
        self._name, self._curves = name, 0

    def known(self, array: Array) -> Known:
        """A constant of the file; its type counts among those the file computes in."""
        if array.dtype.kind not in "iub":
            self.types.add(str(array.dtype))
        return Known(array)

    def _append(self, block: Block) -> None:
        self.blocks.append(block)
        self.size += block.size

    def affine(
        self,
        layout: Array | tuple[int, ...],
        *picks: Factored,
        terms: Sequence[Term] = (),
        offset: Known | None = None,
        roundings: int = 0,
        maximum: tuple[Array, Array] | None = None,
    ) -> Array:
        """Append an `Affine` block, unless it would change nothing.

        Args:
            layout: shape of the tensor, or for each of its entries the position in the block.
            picks: scalars with their factors, and ``offset``, broadcast to the tensor.
            terms: further ones, in the order of the block.
            roundings, maximum: see `Affine`; an offset may be where the sum of the product that it
                is added to begins, so it takes those roundings, too.
        """
        if isinstance(layout, tuple):
            layout = np.arange(math.prod(layout)).reshape(layout)
        shape, order = layout.shape, np.argsort(layout, axis=None)
        if offset is not None and not offset.value.any() and offset.error is None:
            offset = None
        picks = tuple((ids, None if known and known.is_one else known) for ids, known in picks)
        if (len(picks) == 1 and picks[0][1] is offset is None and not terms) or not layout.size:
            return np.broadcast_to(picks[0][0] if picks else layout, shape)

        def flat(values: Array | None) -> Any:
            return None if values is None else np.broadcast_to(values, shape).ravel()[order]

        def parts(known: Known | None) -> tuple[Any, Any]:
            return (flat(known.numbers().value), flat(known.error)) if known else (None, None)

        made = [Pick(flat(ids), f, error=e) for ids, known in picks for f, e in [parts(known)]]
        if roundings and offset is not None and not terms:
            roundings += max((self._roundings_behind(ids) for ids, _ in picks), default=0)
        terms, size, name = (*terms, *made), layout.size, self._name
        block = Affine(self.size, size, name, terms, *parts(offset), roundings, maximum)
        self._append(block)
        return np.asarray(block.start + layout)

    def _roundings_behind(self, ids: Array) -> int:
        starts = [block.start for block in self.blocks]
        made_by = np.unique(np.searchsorted(starts, ids[ids >= 0], side="right")) - 1
        return max((getattr(self.blocks[k], "roundings", 0) for k in made_by), default=0)

    def curve(self, kind: str, ids: Array, slope: Array | None = None) -> Array:
        """Append a `Curve` block."""
        label = f"{self._name}/{self._curves}" if self._curves else self._name
        start, self._curves = self.size, self._curves + 1
        if ids.size:
            self._append(Curve(start, ids.size, self._name, kind, ids.ravel(), slope, label))
        return np.arange(start, self.size).reshape(ids.shape)

    def linear(
        self,
        layout: Array | tuple[int, ...],
        weight: Known,
        ids: Array,
        *picks: Factored,
        offset: Known | None = None,
    ) -> Array:
        """Append a block with the `Product` of a weight (G, M, K) and numbers (G, K, L)."""
        weight = weight.numbers()
        factors, depth = weight.value, weight.shape[2]
        if (len(factors), depth) != ids.shape[:2]:
            raise Unusable(f"a product of shapes {factors.shape} and {ids.shape}")
        term: Term = Product(ids, factors, error=weight.error)
        single = len(ids) == ids.shape[2] == 1 and weight.error is None
        if single and factors.size >= _SPARSE_ENTRIES:
            out, column = np.nonzero(factors[0])
            if len(out) <= _SPARSE_DENSITY * factors.size:
                term = Entries(ids[0, column, 0], out, factors[0, out, column])
                depth = int(np.bincount(out).max(initial=0))
        return self.affine(layout, *picks, terms=[term], offset=offset, roundings=depth + EXTRA)

    def ids(self, operand: Operand) -> Array:
        """Numbers of a tensor; constants that are not zero become a block without terms."""
        if not isinstance(operand, Known):
            return operand
        known, ids = operand.numbers(), np.full(operand.shape, -1)
        there = known.value != 0 if known.error is None else np.ones(known.shape, bool)
        if there.any():
            offset = known.moved(lambda x: x[there])
            ids[there] = self.affine(offset.shape, offset=offset)
            self._constants.append(self.blocks[-1])  # type: ignore[arg-type]
        return ids

    def moved(self, move: Callable[..., Array], *operands: Operand) -> Operand:
        """Entries of tensors at new places; ``move`` must do nothing but pick and repeat them."""
        known = [operand for operand in operands if isinstance(operand, Known)]
        if len(known) < len(operands):
            return self._settled(np.asarray(move(*map(self.ids, operands))))
        value = np.asarray(move(*(k.value for k in known)))
        if all(k.error is None for k in known):
            return Known(value)
        errors = (np.zeros(k.shape) if k.error is None else k.error for k in known)
        return Known(value, np.asarray(move(*errors)))

    def _settled(self, ids: Array) -> Operand:
        """A constant again, where nothing else is left in a tensor."""
        value, error, left = np.zeros(ids.shape), np.zeros(ids.shape), ids >= 0
        for block in self._constants:
            here = (ids >= block.start) & (ids < block.start + block.size)
            left &= ~here
            for target, stored in ((value, block.offset), (error, block.offset_error)):
                if stored is not None:
                    target[here] = stored[ids[here] - block.start]
        return ids if left.any() else Known(value, error if error.any() else None)

    # Maxima: composites that no executor computes, hence without roundings.

    def negative(self, ids: Array) -> Array:
        """-x."""
        return self.affine(ids.shape, (ids, MINUS))

    def maximum(self, a: Array, b: Array) -> Array:
        """max(a, b) = b + relu(a - b), broadcast."""
        a, b = np.broadcast_arrays(a, b)
        gap = self.curve("relu", self.affine(a.shape, (a, None), (b, MINUS)))
        return self.affine(a.shape, (b, None), (gap, None), maximum=(a.ravel(), b.ravel()))

    def limited(self, ids: Array, limit: Known, sign: int) -> Array:
        """max(x, c) = c + relu(x - c) for sign 1, min(x, c) = c - relu(c - x) for sign -1."""
        shape = np.broadcast_shapes(ids.shape, limit.shape)
        factor = None if sign > 0 else MINUS
        beyond = Known(-sign * limit.numbers().value, limit.error)
        gap = self.curve("relu", self.affine(shape, (ids, factor), offset=beyond))
        return self.affine(shape, (gap, factor), offset=limit)

    def largest(self, row: list[Array]) -> Array:
        """The maximum of tensors as a balanced tree."""
        while len(row) > 1:
            pairs = [self.maximum(a, b) for a, b in zip(row[::2], row[1::2], strict=False)]
            row = pairs + row[2 * len(pairs) :]
        return row[0]

    def largest_row(self, stack: Array) -> Array:
        """The maximum along the first axis: first half against second half, the rest appended."""
        while len(stack) > 1:
            half = len(stack) // 2
            pairs = self.maximum(stack[:half], stack[half : 2 * half])
            stack = np.concatenate([pairs, stack[2 * half :]])
        return np.asarray(stack[0])


@dataclass
class Node:
    """A node of the file; remembers what was read of it."""

    net: Builder
    operator: str
    version: int
    attributes: dict[str, Any]
    operands: list[Operand | None]
    outputs: int
    _read: set[int | str] = field(default_factory=set)

    def attr(self, name: str, default: Any = None, *allowed: Any) -> Any:
        """An attribute; refused unless among the allowed values, if there are any."""
        self._read.add(name)
        value = self.attributes.get(name, default)
        if allowed and value not in allowed:
            raise Unusable(f"{name}={value}")
        return value

    def flag(self, name: str, default: int) -> bool:
        """An attribute that is 0 or 1."""
        return bool(self.attr(name, default, 0, 1))

    def has(self, position: int) -> bool:
        """Whether an input is there."""
        self._read.add(position)
        return position < len(self.operands) and self.operands[position] is not None

    def operand(self, position: int) -> Operand:
        """An input, constant or computed."""
        found = self.operands[position] if self.has(position) else None
        if found is None:
            raise Unusable(f"input {position} is missing")
        return found

    def ids(self, position: int) -> Array:
        """The numbers of an input."""
        return self.net.ids(self.operand(position))

    def known(self, position: int) -> Known:
        """An input that must be constant."""
        operand = self.operand(position)
        if not isinstance(operand, Known):
            raise Unusable(f"input {position} is computed")
        return operand

    def integers(self, position: int, attribute: str, *default: Any) -> Any:
        """A list of integers that are an input in newer versions, an attribute in older ones."""
        value = self.attr(attribute)
        if self.has(position):
            value = self.known(position).exactly().ravel()
        if value is None:
            (value,) = default or (self.operand(position),)
        return None if value is None else [operator.index(item) for item in np.atleast_1d(value)]

    def shape(self) -> tuple[int, ...]:
        """What all inputs broadcast to."""
        shapes = (self.operand(i).shape for i in range(len(self.operands)))
        return bounded(np.broadcast_shapes(*shapes))

    def unread(self) -> list[int | str]:
        """Attributes and inputs that nobody asked for."""
        given = [i for i, operand in enumerate(self.operands) if operand is not None]
        names: list[int | str] = [*given, *self.attributes]
        return [name for name in names if name not in self._read]


def bounded(shape: Sequence[int], most: int = 1 << 24) -> tuple[int, ...]:
    """The shape; refused if it is negative or has too many entries."""
    if any(n < 0 for n in shape) or math.prod(shape) > most:
        raise Unusable(f"a tensor of shape {list(shape)}")
    return tuple(int(n) for n in shape)
