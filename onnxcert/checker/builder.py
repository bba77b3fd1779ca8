"""Networks under construction: constants with error bounds, and the blocks so far.

What a specification multiplies is appended to the network (`with_products`): rows about products
are then rows about its outputs."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial, reduce
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcert.checker.network import (
    Affine,
    Array,
    Block,
    Curve,
    Entries,
    Network,
    Pair,
    Pick,
    Product,
    Term,
    bounded,
    distinct,
    need,
)

EXTRA = 8
"""Roundings beside those of a product: its offset, a factor of the whole, and a normalisation whose
factor (sum, root, quotient) is worked out or folded into the weights."""

Unit = tuple[float, float]
EXECUTED, STORED = (2.0**-23, 2.0**-126), (2.0**-51, 1e-300)
"""Relative and absolute error of a step in binary32, be numbers flushed or not, and in float64."""

_LONGEST, _LARGEST = 1 << 16, 2.0**100
"""Limits for constants that are summed: in them no sum overflows, and roundings add up."""


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
    def spread(self) -> Array:
        """The error, zero where the value is exact."""
        return np.broadcast_to(0.0 if self.error is None else self.error, self.shape)

    def numbers(self) -> Known:
        """The same in float64; refused unless finite and representable."""
        kind = self.value.dtype.kind
        value = self.value.astype(np.float64) if kind in "fiub" else np.array(np.nan)
        large = kind in "iu" and (abs(value) > 2.0**53).any()
        need(np.isfinite(value).all() and not large, "a constant is NaN, infinite or no number")
        return Known(value, self.error)

    def moved(self, move: Callable[[Array], Array]) -> Known:
        """The constant with its entries moved."""
        return Known(move(self.value), None if self.error is None else move(self.error))


Operand = Known | Array
ZERO, ONE, MINUS = (Known(np.array(n)) for n in (0.0, 1.0, -1.0))


def exact(operand: Any) -> Any:
    """The value of a constant; what is no tensor, being an attribute or left out, as it is."""
    need(not isinstance(operand, np.ndarray), "an input that must be constant is computed")
    need(getattr(operand, "error", None) is None, "a decision hangs on an inexact constant")
    return operand.value if isinstance(operand, Known) else operand


_CALCULATIONS: dict[str, tuple[Callable[..., Any], Callable[..., bool]]] = {
    "Add": (operator.add, lambda r, x, y: r == x + y),
    "Sub": (operator.sub, lambda r, x, y: r == x - y),
    "Mul": (operator.mul, lambda r, x, y: r == x * y),
    "Div": (operator.truediv, lambda r, x, y: r * y == x),
    "Sqrt": (np.sqrt, lambda r, x: r * r == x),
}
"""Operator -> (function, whether a result is exact)."""


def calculated(name: str, *operands: Known, unit: Unit = STORED) -> Known:
    """A function of constants; its error covers the steps of executions with this unit.

    All functions are monotone in every operand, hence extreme at corners of the box of operands.
    """
    (step, proves), known = _CALCULATIONS[name], [k.numbers() for k in operands]
    x = np.broadcast_arrays(*(k.value for k in known))
    e = [np.broadcast_to(k.spread, x[0].shape) for k in known]
    need(name != "Div" or (abs(x[-1]) > e[-1]).all(), "division by zero")
    ends = [
        [np.where(r, np.nextafter(v + s * r, s * np.inf), v) for s in (-1, 1)]
        for v, r in zip(x, e, strict=True)
    ]
    value, corners = np.asarray(step(*x)), np.array([step(*corner) for corner in product(*ends)])
    stored = value if unit is STORED else value.astype(np.float32).astype(np.float64)
    need(np.isfinite([*corners, stored]).all(), "a constant overflows, or has no root")
    is_exact = np.frompyfunc(lambda *numbers: proves(*map(Fraction, numbers)), len(x) + 1, 1)
    sure = np.asarray(is_exact(stored, *x), bool) & ((value == 0) | (abs(value) >= unit[1]))
    error = abs(corners - value).max(0) + unit[0] * abs(corners).max(0) + unit[1]
    error = np.where(sure & ~np.any(e, axis=0), 0.0, error)
    return Known(value, error if error.any() else None)


def multiplied(a: Known, b: Known, unit: Unit = STORED) -> Known:
    """A B for constants (.., M, K) and (.., K, L); its error covers executions with this unit.

    In any order a sum of K products is off by no more than K units of |A| |B|, each factor as large
    as it may be, and by what each product and each factor may lose that is flushed to zero. Where
    |A| |B| is zero nothing is rounded.
    """
    a, b, depth = a.numbers(), b.numbers(), a.shape[-1]
    first, second = abs(a.value) + a.spread, abs(b.value) + b.spread
    size, lost = first @ second, abs(a.value) @ b.spread + a.spread @ second
    need(depth <= _LONGEST and (size < _LARGEST).all(), "a constant overflows")
    flushed = depth + first.sum(-1, keepdims=True) + second.sum(-2, keepdims=True)
    error = lost + (depth + 4) * unit[0] * size + unit[1] * flushed
    error = np.where((first > 0) @ (second > 0), error, 0.0)
    return Known(a.value @ b.value, error if error.any() else None)


_EXACT: dict[str, Callable[..., Any]] = {
    "Abs": np.abs, "And": np.logical_and, "Ceil": np.ceil, "Equal": np.equal, "Floor": np.floor,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less,
    "LessOrEqual": np.less_equal, "Max": np.maximum, "Min": np.minimum, "Neg": np.negative,
    "NonZero": lambda x: np.array(np.nonzero(x)), "Not": np.logical_not, "Or": np.logical_or,
    "Relu": partial(np.maximum, 0), "Sign": np.sign, "Xor": np.logical_xor,
}  # fmt: skip
_NEAR = {"Abs", "Max", "Min", "Neg", "Relu"}
"""Those whose results are no farther apart than their operands."""

FOLDED = _CALCULATIONS.keys() | _EXACT.keys()
"""Operators that `fold` knows."""


def fold(name: str, *operands: Known, unit: Unit = STORED) -> Known:
    """What a node of `FOLDED` makes of constants, in executions with this unit."""
    shape = bounded(np.broadcast_shapes(*(k.shape for k in operands)))
    if name in _EXACT:
        errors = [np.broadcast_to(k.error, shape) for k in operands if k.error is not None]
        near, function = name in _NEAR, _EXACT[name]
        values = [k.value if near else exact(k) for k in operands]
        made = np.asarray(function(*values) if len(values) == 1 else reduce(function, values))
        return Known(made, np.maximum.reduce(errors) if errors else None)
    if any(k.value.dtype.kind not in "iu" for k in operands):
        return calculated(name, *operands, unit=unit)
    x, y = map(exact, operands)
    if name != "Div":
        return Known(np.asarray(_CALCULATIONS[name][0](x, y)))
    need(y.all(), "division by zero")
    return Known(np.asarray(np.sign(x) * np.sign(y) * (abs(x) // abs(y))))  # towards zero


class Builder:
    """The blocks so far; methods take and return tensors of scalar numbers.

    Args:
        n_inputs: how many scalars the input block has.
        unit: of the executions that constants worked out in the file are to cover, beside their
            exact values.
        limits: the least and the largest value of some inputs; None where nothing is known.

    Attributes:
        folded: whether there are such constants.
        kinds: element types of the computed operands of a node.
        sums: how many there are of whole numbers that are computed.
    """

    def __init__(
        self,
        n_inputs: int,
        unit: Unit = STORED,
        limits: Callable[[Array], tuple[Array, Array]] | None = None,
    ) -> None:
        self.blocks: list[Block] = [Block(0, n_inputs, "")]
        self.size = n_inputs
        self.enter("", None)
        self.unit, self.folded, self.limits = unit, False, limits
        self._whole, self.kinds, self.sums = np.zeros(n_inputs, bool), list[str](), 0
        self.types: set[str] = set()
        self.shares: list[tuple[Array, Array]] = []
        self.begin("")

    def enter(self, prefix: str, directory: Path | None) -> None:
        """Say what comes before the names of the next blocks, and where external data may lie."""
        self._prefix, self.directory = prefix, directory

    def begin(self, name: str, version: int = 0, outputs: int = 1) -> None:
        """Say for which tensor the next blocks are made, and of what node."""
        self._name, self._curves = self._prefix + name, 0
        self.version, self.outputs = version, outputs

    def known(self, array: Array) -> Known:
        """A constant of the file; its type counts among those the file computes in."""
        if array.dtype.kind not in "iub":
            self.types.add(str(array.dtype))
        return Known(array)

    def executed_apart(self, *factors: Known) -> None:
        """Factors that executors multiply by on their own, and that the blocks hold combined.

        Beyond 2^60 or below 2^-60 what lies between them may overflow or vanish in binary32
        although the product does neither; then nothing is claimed for executions.
        """
        size = abs(np.concatenate([factor.value.ravel() for factor in factors]))
        if ((size > 2.0**60) | ((size < 2.0**-60) & (size > 0))).any():
            self.types.add("a factor out of range")

    def load(self, tensor: onnx.TensorProto) -> Known:
        """A stored tensor."""
        bounded(tensor.dims)
        is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
        need(self.directory or not is_external, "external data")
        return self.known(onnx.numpy_helper.to_array(tensor, str(self.directory)))

    def _append(self, block: Block) -> None:
        self.blocks.append(block)
        self.size += block.size

    def _behind(self, ids: Array) -> list[Block]:
        """The blocks that make some scalars."""
        made = np.searchsorted([block.start for block in self.blocks], ids[ids >= 0], side="right")
        return [self.blocks[k - 1] for k in distinct(made)]

    def affine(
        self,
        layout: Array | tuple[int, ...],
        *picks: tuple[Array, Known],
        terms: Sequence[Term] = (),
        offset: Known = ZERO,
        roundings: int = 0,
        maximum: tuple[Array, Array] | None = None,
        least: float = 0.0,
    ) -> Array:
        """Append an `Affine` block, unless it would change nothing.

        Args:
            layout: shape of the tensor, or for each of its entries the position in the block.
            picks: scalars with their factors, and ``offset``, broadcast to the tensor.
            terms: further ones, in the order of the block.
            roundings, maximum, least: see `Affine`; an offset may be where the sum of the product
                that it is added to begins, so it takes those roundings, too.
        """
        if isinstance(layout, tuple):
            layout = np.arange(math.prod(layout)).reshape(layout)
        shape, order = layout.shape, np.argsort(layout, axis=None)

        def flat(values: Array) -> Array:
            return np.asarray(np.broadcast_to(values, shape).ravel()[order])

        def parts(known: Known, neutral: float) -> tuple[Any, Any]:
            if known.error is None and (known.value == neutral).all():
                return None, None
            return flat(known.numbers().value), None if known.error is None else flat(known.error)

        made = [(ids, *parts(factor, 1)) for ids, factor in picks]
        fixed, error = parts(offset, 0)
        alone = len(made) == 1 and made[0][1] is fixed is None and not terms
        if not layout.size or (alone and not least):
            return np.broadcast_to(made[0][0] if made else layout, shape)
        if roundings and fixed is not None and not terms:
            behind = [block for ids, _ in picks for block in self._behind(ids)]
            roundings += max((getattr(block, "roundings", 0) for block in behind), default=0)
        terms = (*terms, *(Pick(flat(ids), factor, error=e) for ids, factor, e in made))
        start, size = self.size, layout.size
        block = Affine(start, size, self._name, terms, fixed, error, roundings, maximum, least)
        self._append(block)
        return np.asarray(start + layout)

    def curve(self, kind: str, ids: Array, slope: Array | None = None) -> Array:
        """Append a `Curve` block."""
        start, label = self.size, self._label()
        if ids.size:
            self._append(Curve(start, ids.size, self._name, kind, ids.ravel(), slope, label))
        return np.arange(start, self.size).reshape(ids.shape)

    def pair(self, kind: str, first: Array, second: Array) -> Array:
        """Append a `Pair` block; both of one shape."""
        start, label = self.size, self._label()
        if first.size:
            parts = first.ravel(), second.ravel()
            self._append(Pair(start, first.size, self._name, kind, *parts, EXTRA, label))
        return np.arange(start, self.size).reshape(first.shape)

    def is_whole(self, ids: Array) -> bool:
        """Whether some scalars are whole numbers, whatever the inputs are; what follows from floors
        and signs is known."""
        known = np.ones(self.size + 1, bool)
        known[: len(self._whole)] = self._whole
        for block in self.blocks:
            if block.start >= len(self._whole):
                known[block.start : block.start + block.size] = block.is_whole(known)
        self._whole = known[:-1]
        return bool(known[ids].all())

    def _label(self) -> str:
        """What certificates call the next curve or pair."""
        label = f"{self._name}/{self._curves}" if self._curves else self._name
        self._curves += 1
        return label

    def linear(
        self,
        layout: Array | tuple[int, ...],
        weight: Known,
        ids: Array,
        *picks: Any,
        windows: Sequence[Array] = (),
        **more: Any,
    ) -> Array:
        """Append a block with the `Product` of a weight (G, M, K) and numbers (G, K, L).

        Args:
            layout, picks, more: as those of `affine`.
            windows: image and where, if there are windows; see `Product`.
        """
        weight = weight.numbers()
        factors, depth = weight.value, weight.shape[2]
        need((len(factors), depth) == ids.shape[:2], f"product of {factors.shape} and {ids.shape}")
        term: Term = Product(ids, factors, *windows, error=weight.error)
        single = len(ids) == ids.shape[2] == 1 and weight.error is None and factors.size >= 5000
        if single and np.count_nonzero(factors) < 0.03 * factors.size:
            out, column = np.nonzero(factors[0])
            term = Entries(ids[0, column, 0], out, factors[0, out, column])
            depth = int(np.bincount(out).max(initial=0))
        return self.affine(layout, *picks, terms=[term], roundings=depth + EXTRA, **more)

    def ids(self, operand: Operand) -> Array:
        """Numbers of a tensor; constants that are not zero become a block without terms."""
        if not isinstance(operand, Known):
            return operand
        known, ids = operand.numbers(), np.full(operand.shape, -1)
        there = known.value != 0 if known.error is None else np.ones(known.shape, bool)
        if there.any():
            offset = known.moved(lambda x: x[there])
            ids[there] = self.affine(offset.shape, offset=offset)
        return ids

    def moved(self, move: Callable[..., Array], *operands: Operand) -> Operand:
        """Entries of tensors at new places; ``move`` picks and repeats them, or has -1 for zero."""
        known = [operand for operand in operands if isinstance(operand, Known)]
        sizes = [k.value.size for k in known]
        if len(known) < len(operands):
            return self._settled(np.asarray(move(*map(self.ids, operands))))
        places = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        made = np.asarray(move(*(p.reshape(k.shape) for p, k in zip(places, known, strict=True))))
        bounded(made.shape)

        def taken(parts: Sequence[Array]) -> Array:
            # What is stored in binary32 may stand beside what was worked out in float64.
            zero = np.zeros(1, np.result_type(*parts))
            return np.asarray(np.concatenate([*map(np.ravel, parts), zero], dtype=zero.dtype)[made])

        is_exact = all(k.error is None for k in known)
        return Known(
            taken([k.value for k in known]), None if is_exact else taken([k.spread for k in known])
        )

    def _settled(self, ids: Array) -> Operand:
        """A constant again, where nothing else is left in a tensor."""
        bounded(ids.shape)
        value, error = np.zeros((2, self.size + 1))
        for block in self._behind(ids):
            if not isinstance(block, Affine) or block.terms or block.offset is None:
                return ids
            known = Known(block.offset, block.offset_error)
            span = slice(block.start, block.start + block.size)
            value[span], error[span] = known.value, known.spread
        return Known(value[ids], error[ids] if error.any() else None)

    # Maxima: composites that no executor computes, hence without roundings.

    def negative(self, ids: Array) -> Array:
        """-x."""
        return self.affine(ids.shape, (ids, MINUS))

    def maximum(self, a: Array, b: Array) -> Array:
        """max(a, b) = b + relu(a - b), broadcast."""
        a, b = np.broadcast_arrays(a, b)
        gap = self.curve("relu", self.affine(a.shape, (a, ONE), (b, MINUS)))
        return self.affine(a.shape, (b, ONE), (gap, ONE), maximum=(a.ravel(), b.ravel()))

    def limited(self, ids: Array, limit: Known, sign: int) -> Array:
        """max(x, c) = c + relu(x - c) for sign 1, min(x, c) = c - relu(c - x) for sign -1."""
        shape = np.broadcast_shapes(ids.shape, limit.shape)
        factor, beyond = (ONE, MINUS)[sign < 0], Known(-sign * limit.numbers().value, limit.error)
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


def with_products(network: Network, products: Sequence[tuple[int, ...]]) -> Network:
    """The network with products of inputs (v) and outputs (``~v``) behind its outputs.

    Powers of one number first, as curves, then products of different ones from left to right.

    Args:
        products: those of fewer different numbers first.
    """
    if not products:
        return network
    net = Builder(network.n_inputs)
    net.blocks, net.size = [*network.blocks], network.size

    def rank(v: int) -> tuple[bool, int]:
        return v < 0, max(v, ~v)

    counted = [Counter(sorted(product, key=rank)) for product in products]
    numbers = sorted({v for count in counted for v in count}, key=rank)
    made = {(v, 1): v if v >= 0 else int(network.output[~v]) for v in numbers}
    for n in sorted({n for count in counted for n in count.values()} - {1}):
        raised = [v for v in numbers if any(count[v] == n for count in counted)]
        net.begin(f"power {n} of the query")
        ids = net.curve("power", np.array([made[v, 1] for v in raised]), np.full(len(raised), n))
        made.update(zip(((v, n) for v in raised), ids.tolist(), strict=True))
    output = [network.output]
    net.begin("products of the query")
    for width in sorted({len(count) for count in counted}):
        factors = np.array([[made[f] for f in c.items()] for c in counted if len(c) == width])
        ids = factors[:, 0]
        for others in factors.T[1:]:
            ids = net.pair("product", ids, others)
        output.append(ids)
    return replace(network, blocks=net.blocks, output=np.concatenate(output), size=net.size)
