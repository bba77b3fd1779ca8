"""Networks as numbered scalars: blocks of sums and of curves, in the order of evaluation.

Every scalar that is computed has a number; -1 stands for the constant zero. Data movement
(Reshape, Concat, Slice, padding with zeros, ...) makes no block: it only moves numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcert.checker.errors import Expired, Unusable

Array = NDArray[Any]
_fraction = np.frompyfunc(Fraction, 1, 1)
_floor = np.frompyfunc(math.floor, 1, 1)

TRANSCENDENTAL = ("sigmoid", "tanh", "exp", "sin", "cos")
"""Curves whose values are not rational."""


_SPARSE_FROM, _SPARSE = 5_000, 0.03
"""Matrices of so many factors, of which a smaller share is not zero, are stored by those."""


def need(truth: Any, otherwise: str) -> None:
    """Refuse what is not understood."""
    if not truth:
        raise Unusable(otherwise)


def distinct(values: Array) -> Array:
    """The different values, sorted; without counts, np.unique would first load numpy.ma."""
    return np.unique(values, return_counts=True)[0]


def bounded(shape: Sequence[int], most: int = 1 << 24) -> tuple[int, ...]:
    """The shape; refused if it is negative or has too many entries."""
    shape = tuple(map(int, shape))
    need(min(shape, default=0) >= 0 and math.prod(shape) <= most, f"a tensor of {shape=}")
    return shape


@dataclass(frozen=True, eq=False)
class Term:
    """A part of the sums of an `Affine` block: factors times scalars v[ids].

    Attributes:
        ids: numbers of scalars, int64; -1 is zero.
        error: bounds \\|exact factor - stored factor\\|, broadcast; None where factors are exact.
    """

    ids: Array
    error: Array | None = field(default=None, kw_only=True)

    def apply(self, v: Array, size: int) -> Array:
        """The term's part of the block: scalars (S + 1,), the last one zero -> (size,)."""
        raise NotImplementedError

    @property
    def factors(self) -> Array:
        """All of them."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Pick(Term):
    """y[i] += factor[i] v[ids[i]]: ids (n,), factor (n,) or None for one."""

    factor: Array | None = None

    def apply(self, v: Array, size: int) -> Array:
        """See `Term`."""
        return v[self.ids] if self.factor is None else _like(self.factor, v) * v[self.ids]

    @property
    def factors(self) -> Array:
        """See `Term`."""
        return np.ones(1) if self.factor is None else self.factor


@dataclass(frozen=True, eq=False)
class Product(Term):
    """y[g, m, l] += sum_k weight[g, m, k] v[ids[g, k, l]]: ids (G, K, L), weight (G, M, K).

    Attributes:
        image, where: (G, C, P) and (P, T) for windows of T taps, with K = C T, else None: tap t of
            channel c sees image[g, c, p] at position where[p, t]; L for nowhere.
    """

    weight: Array
    image: Array | None = None
    where: Array | None = None

    @property
    def factors(self) -> Array:
        """See `Term`."""
        return self.weight

    @property
    def is_matrix(self) -> bool:
        """Whether there is one group and one position, and no window."""
        return self.ids.shape[0] == self.ids.shape[2] == 1 and self.image is None

    def apply(self, v: Array, size: int) -> Array:
        """See `Term`; exact numbers are multiplied as integers over a common denominator."""
        if v.dtype != object:
            return np.asarray(np.matmul(self.weight, v[self.ids]).ravel())
        (weight, below), (read, under) = _integers(_like(self.weight, v)), _integers(v[self.ids])
        return np.asarray(np.matmul(weight, read).ravel() * Fraction(1, below * under))


@dataclass(frozen=True, eq=False)
class Entries(Term):
    """y[out[e]] += value[e] v[ids[e]]: a sparse matrix, each array (E,)."""

    out: Array
    value: Array

    def apply(self, v: Array, size: int) -> Array:
        """See `Term`."""
        result = np.zeros(size, v.dtype)
        np.add.at(result, self.out, _like(self.value, v) * v[self.ids])
        return result

    @property
    def factors(self) -> Array:
        """See `Term`."""
        return self.value


def pays_sparse(size: int, used: int) -> bool:
    """Whether a matrix of so many factors, of which so many are not zero, is kept as `Entries`."""
    return size >= _SPARSE_FROM and 0 < used < _SPARSE * size


@dataclass(frozen=True, eq=False)
class Block:
    """Scalars number start .. start + size - 1; ``name`` is the ONNX tensor they are made for."""

    start: int
    size: int
    name: str

    def values(self, v: Array) -> Array:
        """What the block computes: scalars (S + 1,), the last one zero -> (size,)."""
        raise NotImplementedError

    def is_whole(self, whole: Array) -> bool:
        """Whether all that it computes are whole numbers if these scalars are: (S + 1,)."""
        return False

    def reads(self) -> list[Array]:
        """Numbers of what it is made from."""
        return []


@dataclass(frozen=True, eq=False)
class Affine(Block):
    """y = sum of terms + offset.

    Attributes:
        terms: what is summed; none for constants that computed tensors are mixed with.
        offset: (size,) or None for zero; ``offset_error`` bounds \\|exact - stored\\|.
        roundings: how many one product, summand or offset may meet on its way to the output: in
            any order of summation, products rounded or fused; factors and offsets of a node (and
            of the normalisation or offset behind a product) combined beforehand or not. 0 where
            nothing is executed.
        least: in an execution the sum of absolute values counts as that much larger.
        maximum: (a, b) where y = b + relu(a - b) is the maximum of a and b, (size,) numbers each.
    """

    terms: tuple[Term, ...]
    offset: Array | None
    offset_error: Array | None
    roundings: int
    maximum: tuple[Array, Array] | None = None
    least: float = 0.0

    def values(self, v: Array) -> Array:
        """See `Block`."""
        result = np.zeros(self.size, v.dtype) if self.offset is None else _like(self.offset, v)
        for term in self.terms:
            result = result + term.apply(v, self.size)
        return result

    def reads(self) -> list[Array]:
        """See `Block`."""
        return [*(term.ids for term in self.terms), *(self.maximum or ())]

    def is_whole(self, whole: Array) -> bool:
        """See `Block`."""
        held = [np.zeros(1) if self.offset is None else self.offset]
        for term in self.terms:
            if not whole[term.ids].all():
                return False
            held.append(term.factors)
        return self.exact and all((x == np.floor(x)).all() for x in held)

    @property
    def exact(self) -> bool:
        """Whether all factors and offsets are exact."""
        return self.offset_error is None and all(term.error is None for term in self.terms)


class Named:
    """Blocks whose scalars certificates name by their positions: curves and pairs."""

    size: int
    order: Array | None

    @property
    def positions(self) -> int:
        """How many there are in the file."""
        return self.size if self.order is None else len(self.order)

    def at(self, position: Array) -> Array:
        """Numbers in the block of the neurons at positions, -1 for those that are left out."""
        return position if self.order is None else self.order[position]


@dataclass(frozen=True, eq=False)
class Curve(Named, Block):
    """y = f(v[ids]).

    Attributes:
        kind: relu, leaky (x for x >= 0, slope x below), abs, sign, floor, sigmoid, tanh, power
            (x^slope), reciprocal, exp, sin or cos; pieces, see `onnxcert.checker.pieces`.
        ids: (size,) numbers of what f is applied to, in row-major order of the ONNX tensor (for
            maxima: of the broadcast pairs).
        slope: (size,) for leaky and, the same whole number everywhere, for power; (size, .) for
            pieces; else None.
        label: first output of the ONNX node; ``label/1``, ``label/2``, ... for its further curves.
        order: (positions,) number in the block of the neuron at each position, -1 where it is left
            out (`onnxcert.checker.needed`); None where both are one.
    """

    kind: str
    ids: Array
    slope: Array | None
    label: str
    order: Array | None = None

    def reads(self) -> list[Array]:
        """See `Block`."""
        return [self.ids]

    def is_whole(self, whole: Array) -> bool:
        """See `Block`."""
        kept = self.kind in ("relu", "abs") and whole[self.ids].all()
        return self.kind in ("floor", "sign") or bool(kept)

    def values(self, v: Array) -> Array:
        """See `Block`."""
        z = v[self.ids]
        if self.kind == "sigmoid":
            return np.asarray(0.5 * np.tanh(0.5 * z) + 0.5)
        if self.kind in ("tanh", "sin", "cos"):
            return np.asarray(getattr(np, self.kind)(z))
        if self.kind == "exp":
            with np.errstate(over="ignore"):
                return np.asarray(np.exp(z))
        if self.kind == "sign":
            return np.asarray((z > 0).astype(int) - (z < 0).astype(int)).astype(z.dtype)
        if self.kind == "floor":
            return np.asarray(_floor(z) if z.dtype == object else np.floor(z))
        if self.kind == "power" and self.slope is not None:
            return np.asarray(z ** int(self.slope[0]))
        if self.kind == "reciprocal":
            need((z != 0).all(), "division by zero")
            return np.asarray(1 / z)
        if self.kind == "pieces" and self.slope is not None:
            table = _like(self.slope, v)
            weight, factor, shift, _, _ = np.split(table[:, 1:], 5, axis=1)
            reached = factor * z[:, None] + shift
            return np.asarray((weight * reached * (reached > 0)).sum(axis=1) + table[:, 0])
        slope = {"relu": 0, "abs": -1}.get(self.kind)
        below = z * slope if self.slope is None else z * _like(self.slope, v)
        return np.where(z < 0, below, z)


@dataclass(frozen=True, eq=False)
class Pair(Named, Block):
    """y = v[first] v[second], or v[first] / v[second].

    Attributes:
        kind: product or quotient.
        first, second: (size,) numbers of scalars.
        roundings: those of an execution, as for `Affine`; a quotient may be the product with a
            rounded reciprocal.
        label, order: as those of a `Curve`, with which it is counted.
    """

    kind: str
    first: Array
    second: Array
    roundings: int
    label: str
    order: Array | None = None

    def reads(self) -> list[Array]:
        """See `Block`."""
        return [self.first, self.second]

    def is_whole(self, whole: Array) -> bool:
        """See `Block`."""
        return self.kind == "product" and bool(whole[[*self.first, *self.second]].all())

    def values(self, v: Array) -> Array:
        """See `Block`."""
        first, second = v[self.first], v[self.second]
        if self.kind == "product":
            return np.asarray(first * second)
        need((second != 0).all(), "division by zero")
        return np.asarray(first / second)


@dataclass
class Network:
    """A network read from an ONNX file.

    Attributes:
        blocks: in topological order; the first one is the input.
        inputs, outputs: (name, shape, element type) of every input; of every output, then of
            the hidden tensors asked for.
        n_inputs: length of the input vector: all inputs row-major one after the other.
        output: (n_out,) numbers of all outputs, likewise.
        size: how many scalars there are.
        binary32: whether the file computes in binary32 and nothing else, as counts of roundings
            presume.
        folded: whether the file works out constants, which executions round.
        shares: numbers of what each Softmax makes and of what it is applied to, (R, m) each, by
            rows that sum to one.
    """

    blocks: list[Block]
    inputs: list[tuple[str, tuple[int, ...], str]]
    n_inputs: int
    output: Array
    size: int
    outputs: list[tuple[str, tuple[int, ...], str]]
    binary32: bool
    folded: bool = False
    shares: Sequence[tuple[Array, Array]] = ()

    @cached_property
    def floored(self) -> Array:
        """Which inputs nothing but floors reads, (n_in,) booleans."""
        floored, read = np.zeros((2, self.size + 1), bool)
        read[self.output] = True
        for block in self.blocks[1:]:
            kept = floored if isinstance(block, Curve) and block.kind == "floor" else read
            for ids in block.reads():
                kept[ids] = True
        return (floored & ~read)[: self.n_inputs]

    @property
    def families(self) -> Array:
        """The row of a Softmax that an output is from, (n_out,), numbered; -1 for none."""
        return self._unshared()[0][self.output]

    def compared(self) -> Network:
        """What decides comparisons of two shares of one row over the reals: exp grows.

        Shares among the outputs give way to what Softmax was applied to, and blocks that nothing
        reads any more end the network no longer.
        """
        output, blocks = self._unshared()[1][self.output], list(self.blocks)
        read = output.max(initial=-1)
        while len(blocks) > 1 and read < blocks[-1].start:
            blocks.pop()
        size = blocks[-1].start + blocks[-1].size
        return replace(self, blocks=blocks, output=output, size=size, shares=())

    def _unshared(self) -> tuple[Array, Array]:
        """For every scalar its row, and what Softmax makes it from; -1 and itself for others."""
        family, origin, count = np.full(self.size + 1, -1), np.arange(self.size + 1), 0
        origin[-1] = -1
        for made, read in self.shares:
            family[made] = count + np.arange(len(made))[:, None]
            origin[made], count = read, count + len(made)
        return family, origin

    def forward(self, x: Array) -> Array:
        """Evaluate in float64, roundings and all: (B, n_in) -> (B, n_out)."""
        return np.array([self._run(np.asarray(row, np.float64)) for row in x])

    def evaluate(
        self, x: Sequence[Fraction], expired: Callable[[], bool] = lambda: False
    ) -> list[Fraction]:
        """Evaluate exactly.

        Raises:
            Unusable: a factor of the network is known approximately only, a curve has values that
                are not rational, or a divisor is zero.
            Expired: asked before a layer, ``expired`` says that it takes too long.
        """
        for block in self.blocks:
            smooth = isinstance(block, Curve) and block.kind in TRANSCENDENTAL
            if smooth or (isinstance(block, Affine) and not block.exact):
                raise Unusable(f"the values of {block.name!r} are not exact")
        exact = _fraction(np.array([*x, 0], object))[:-1]
        return [Fraction(y) for y in self._run(exact, expired)]

    def _run(self, x: Array, expired: Callable[[], bool] = lambda: False) -> Array:
        if x.shape != (self.n_inputs,):
            raise ValueError(f"an input of shape {x.shape}, not {(self.n_inputs,)}")
        v = np.zeros(self.size + 1, x.dtype)
        v[: self.n_inputs] = x
        for block in self.blocks[1:]:
            if expired():
                raise Expired
            v[block.start : block.start + block.size] = block.values(v)
        return v[self.output]


def _like(factors: Array, v: Array) -> Array:
    """Factors as fractions where the scalars are fractions."""
    return np.asarray(_fraction(factors), object) if v.dtype == object else factors


def _integers(numbers: Array) -> tuple[Array, int]:
    """Fractions as integers over a common denominator."""
    below = math.lcm(*{f.denominator for f in numbers.ravel()})
    scale = np.frompyfunc(lambda f: f.numerator * (below // f.denominator), 1, 1)
    return np.asarray(scale(numbers), object), below
