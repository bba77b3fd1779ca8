"""Rules R1 to R7 and R9: linear lower bounds in float64 that no rounding can make false.

A batch of sets S_1 .. S_B is known by bounds on every scalar of the network. A linear form over
scalars is pulled back, block by block, to the input (CROWN). Nothing is rounded in a direction:

R1  Input boxes hold the exact decimals, rounded outward; a form is least at a corner. Where the
    inputs lie in an ellipsoid, too, one part of the form is bounded over that
    (`onnxcert.checker.balls`).
R2  Affine, and R3, data movement (scalar numbers that occur again). Let g >= a . h + d hold on S
    and |h| <= H. Then g >= p . h + d - sum |a_i - p_i| H_i for *any* floats p (the absorption
    lemma). With p = fl(A W), a coefficient being a sum of at most N products in any order, the
    error is at most gamma_N |A| |W| H: one vector per block, `_noise`, charged with |A|. Stored
    factors that are not exact and the roundings of a binary32 execution, z = W h + b + e with
    |e| <= gamma_n(2^-24) (|W| H + |b|) + underflow, are charged in the same way.
R4, R5  Curves are replaced by lines that hold on the neuron's interval (`onnxcert.checker.curves`).
    With mean m and half difference d of the slopes, A f(z) >= (A m - |A| d) z + offsets.
    Which of the lines is open: the default, what a certificate names, or what an ascent of the
    bound finds (`onnxcert.checker.ascent`); rounding is charged for the lines that are taken.
R15 Products and quotients are replaced by planes (`onnxcert.checker.pairs`) in the same way: of two
    slopes and an offset. Before that, what a product reads is bounded by forms, and of a quotient
    a / b the difference a - c b.
R6  Forward linear forms of few inputs, before the backward ones (`onnxcert.checker.forward`).
R7  If s (z - p) >= 0 on S, then A z >= A z - beta s (z - p) for every beta >= 0.
R16 Where |h_i - m_i| <= r_i holds on S for all scalars of a block, A h >= A m - |A| r. A form ends
    with that at scalars that hardly vary on its set. At inputs it may do so one block earlier,
    where few others vary: a form A over sums W h + b of inputs has at those of F, which hardly
    vary on any set of the batch, A (W_F h_F + b) >= A (W_F m_F + b) - |A| (|W_F| r_F), and goes on
    to the others only. The floats c that stand for W_F m_F + b are off by at most
    gamma_{N+1} (|W_F| |m_F| + |b|), and A c, a sum of n, by gamma_n of the same; so
    gamma (|W_F| |m_F| + |b|) is added to |W_F| r_F with `Bounder.gamma`, four times the gamma of
    any sum. What the block may be off (`Relaxation.noise`) is charged as ever: that bounds the
    coefficients of the others, inexact factors, and executions, whose error is one of the sum.
R18 Relus below planes over what their sums read (`onnxcert.checker.tilts`), instead of chords.
R19 Sums of relus of one number as curves (`onnxcert.checker.pieces`).
R20 Bounds where a case holds (`onnxcert.checker.proof`).
R21 Scalars that no row depends on are left out (`onnxcert.checker.needed`).
R22 Networks written over the neurons that are unstable on a set (`onnxcert.checker.folding`), with
    lower lines for each row.
R23 Equal and opposite scalars, of which one is read (`onnxcert.checker.equals`).
R9  A scalar whose lower bound exceeds its upper bound: S is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

import numpy as np

from onnxcert.checker import curves, pairs, pieces
from onnxcert.checker.balls import Balls
from onnxcert.checker.coefficients import Coefficients, Part, Pending, add, times
from onnxcert.checker.curves import TINY, Array, U
from onnxcert.checker.equals import merged_equals
from onnxcert.checker.errors import Expired
from onnxcert.checker.forward import Forms, parallel, varies
from onnxcert.checker.layered import Layered
from onnxcert.checker.needed import needed
from onnxcert.checker.network import (
    Affine,
    Block,
    Curve,
    Entries,
    Network,
    Pair,
    Pick,
    Product,
    Term,
    distinct,
    pays_sparse,
)

SLACK = 1 + 1e-6
"""Covers the rounding of error terms themselves."""

_NUMBERS = 1 << 18
"""Float64 numbers in a row block; its temporaries stay in cache."""

_FEWEST = 1 << 16
"""The same from which on a block is worth a pass of its own."""

_FIXED = 2.0**-36
"""A scalar whose range is no larger than this share of its block's largest number is a number and
its roundings."""

_AT_FEW = -1
"""Where rows over the few inputs that vary stand among those over blocks."""

_FEW = 0.5
"""Forms end at inputs before a block that reads them where no larger share of the inputs varies."""

_LARGEST_MATRIX = 1 << 24

_REPEATS = 8
"""How often scalars are picked before their sums get no backward rows."""

_SINGLE = 2.0**-24
_RANGE = 2.0**60
"""Sums of magnitudes beyond this, and errors below its inverse, are left to binary32 to spoil.

Executors may multiply by alpha, 1 / n or a normalisation's factor last, where the network here has
it in the weights; the reader refuses such factors beyond 2^60 and below 2^-60, so that nothing
overflows within this range and what underflows is less than its inverse.
"""


def gamma(n: float, unit: float = U) -> float:
    """Higham's bound of the relative error of n roundings."""
    return n * unit / (1 - n * unit)


Contract = Callable[[Affine, Affine], Affine | None]
"""From a block and the only one that it reads to one that does both, or None."""


class Above(Protocol):
    """Planes above neurons of a curve: `onnxcert.checker.tilts.Tilt`."""

    @property
    def position(self) -> Array:
        """(N,) of the neurons in their layer, increasing."""

    def take(self, rows: Array, active: Array, pending: Pending) -> tuple[Array, Array, Array]:
        """Move rows to the planes; see there."""


@dataclass
class Relaxation:
    """A batch of sets with a line on either side of every curve.

    Attributes:
        lower, upper: (B, scalars + 1) bounds of every scalar; the last is the constant zero.
        noise: (B, scalars + 1) what the step that makes a scalar may be off, per unit of |row|.
        center, radius, reach: (B, scalars + 1) middle, half width and largest absolute value.
        curves: block number -> mean, half difference, mean offset, half offset plus noise.
        planes: block number -> `pairs.Planes`, with noise in the last.
        tilts: block number -> planes above some of its neurons, and which take them, (B, N).
        fixed: block number -> (B, n) which of its scalars hardly vary on which sets, if any do not.
        few: (I,) the inputs that vary on some set, where they are few, else None.
        ended: block number -> what its offset and inputs other than ``few`` add to its sums, the
            middle (B, n) and by how much it may be off, and the factors (n, I) of the few.
        varies: (B, scalars + 1) one for scalars that hang on an input that varies, else zero; None
            where all inputs do.
        empty: (B,) whether bounds contradict each other.
        balls: ellipsoids that the inputs lie in, of B sets or of one for all; None for none.
    """

    lower: Array
    upper: Array
    noise: Array
    center: Array
    radius: Array
    reach: Array
    curves: dict[int, tuple[Array, Array, Array, Array]] = field(default_factory=dict)
    planes: dict[int, pairs.Planes] = field(default_factory=dict)
    tilts: dict[int, list[tuple[Above, Array]]] = field(default_factory=dict)
    fixed: dict[int, Array] = field(default_factory=dict)
    few: Array | None = None
    ended: dict[int, tuple[Array, Array, Array]] = field(default_factory=dict)
    varies: Array | None = None
    empty: Array = field(default_factory=lambda: np.zeros(1, bool))
    balls: Balls | None = None

    def meet(self, where: Array | slice, low: Array, high: Array) -> None:
        """Intersect the bounds of some scalars with others that hold, too."""
        self.lower[:, where] = np.maximum(self.lower[:, where], low)
        self.upper[:, where] = np.minimum(self.upper[:, where], high)

    def order(self, span: slice) -> None:
        """Where a lower bound exceeds an upper one: rule R9; any order keeps lines defined."""
        low, high = self.lower[:, span], self.upper[:, span]
        wrong = low > high
        if wrong.any():
            self.empty |= wrong.any(axis=1)
            self.lower[:, span], self.upper[:, span] = np.minimum(low, high), np.maximum(low, high)

    def settle(self, k: int, block: Block, floor: float) -> None:
        """The bounds of block k are final; its numbers count as at least ``floor`` large."""
        span = slice(block.start, block.start + block.size)
        low, high = self.lower[:, span], self.upper[:, span]
        self.center[:, span] = center = 0.5 * (low + high)
        self.radius[:, span] = np.maximum(high - center, center - low)
        self.reach[:, span] = np.maximum(np.maximum(abs(low), abs(high)), floor)

    def copy(self) -> Relaxation:
        """Another one, of which nothing that changes is shared."""
        names = ("lower", "upper", "noise", "center", "radius", "reach", "empty")
        made = replace(self, **{name: getattr(self, name).copy() for name in names})
        for name in ("curves", "planes", "tilts", "fixed", "ended"):
            setattr(made, name, dict(getattr(self, name)))
        return made

    def ends(self, k: int) -> bool:
        """Whether no form gets behind a block on any set, so that it has no lines."""
        return k in self.fixed and bool(self.fixed[k].all())

    def at(self, index: Array, *, lines: bool = True) -> Relaxation:
        """Some of the sets, by their numbers (P,); without ``lines`` none are chosen yet."""
        names = ("lower", "upper", "noise", "center", "radius", "reach", "empty")
        taken = {name: getattr(self, name)[index] for name in names}
        fixed = {k: some[index] for k, some in self.fixed.items()}
        ended = {k: (c[index], r[index], matrix) for k, (c, r, matrix) in self.ended.items()}
        items = self.curves.items() if lines else ()
        chosen = {
            k: (mean[index], half[index], middle[index], gap[index])
            for k, (mean, half, middle, gap) in items
        }
        planes = {k: pairs.take(planes, index) for k, planes in self.planes.items()}
        balls = self.balls and self.balls[index]
        return Relaxation(
            **taken,
            curves=chosen,
            planes=planes,
            fixed=fixed,
            few=self.few,
            ended=ended,
            balls=balls,
        )


@dataclass(frozen=True)
class Form:
    """g(x) >= rows . x + constant on the input boxes: constant (B, R).

    Attributes:
        rows: (B, R, n_in), or (B, R, I) over some of the inputs.
        constant: (B, R).
        few: (I,) those inputs, or None for all.
    """

    rows: Array
    constant: Array
    few: Array | None = None

    def wide(self, n_inputs: int) -> Array:
        """The rows over all inputs, (B, R, n_in)."""
        if self.few is None:
            return self.rows
        made = np.zeros((*self.rows.shape[:2], n_inputs))
        made[:, :, self.few] = self.rows
        return made

    def least(self, low: Array, high: Array, balls: Balls | None = None) -> Array:
        """A lower bound over boxes (B, n_in): (B, R); -inf where arithmetic gave no number.

        Args:
            balls: ellipsoids in which the inputs lie as well, of a batch of B or 1.
        """
        rows = self.rows
        if self.few is not None:
            low, high = low[:, self.few], high[:, self.few]
        if balls is not None:
            used = np.asarray(rows.any(axis=(0, 1)))
            if 2 * used.sum() < len(used):  # rows of a few neurons read a window of an image
                rows, low, high = rows[:, :, used], low[:, used], high[:, used]
                balls = Balls(balls.center[:, used], balls.axes[:, used])
        lower = self._over_boxes(rows, low, high) + self.constant
        if balls is not None:
            # What the boxes are charged with rounding covers that of the difference.
            share, _ = balls.divide(rows, low, high)
            rest = self._over_boxes(rows - share, low, high)
            over_balls = balls.least(share)
            both = rest + over_balls + self.constant
            lower = np.fmax(lower, both - 4 * U * (abs(rest) + abs(over_balls)))
        lower = lower - 8 * U * (abs(self.constant) + abs(lower))
        return np.where(np.isfinite(lower), lower, -np.inf)

    @staticmethod
    def _over_boxes(rows: Array, low: Array, high: Array) -> Array:
        """The least values of rows (B, R, n_in) over boxes."""
        center = 0.5 * (low + high)
        radius = np.maximum(high - center, center - low) * (1 + 4 * U)
        error = 2 * gamma(low.shape[1] + 16) * (abs(center) + radius) + TINY
        value = np.matmul(rows, center[:, :, None]) - np.matmul(
            abs(rows), (radius + SLACK * error)[:, :, None]
        )
        return np.asarray(value[:, :, 0])


@dataclass(frozen=True, eq=False)
class Columns:
    """Neurons with stored slopes: curve block -> (positions, columns), and all sizes."""

    of: Mapping[int, tuple[Array, Array]]
    sizes: Mapping[int, int]

    def before(self, top: int) -> Columns:
        """The columns of the first ``top`` blocks, counted anew."""
        of, end = {}, 0
        for k, (positions, _) in sorted(self.of.items()):
            if k < top:
                of[k] = positions, np.arange(end, end := end + len(positions))
        return Columns(of, self.sizes)

    def positions(self, curve: int, slopes: Array) -> Array:
        """Positions of the free lines of all neurons of a curve: NaN where not stored."""
        result = np.full((len(slopes), self.sizes[curve]), np.nan)
        position, column = self.of[curve]
        result[:, position] = slopes[:, column] / 255.0
        return result


@dataclass(frozen=True, eq=False)
class Hint:
    """Scalars to bound from one side, each with slopes of its own.

    Attributes:
        ids, sign: (K,) scalars of one block, and +1 for lower bounds, -1 for upper ones.
        slopes: (K, C) positions of free lines in 255ths, for the columns before the block.
    """

    ids: Array
    sign: float
    slopes: Array


def merged(network: Network, *, executed: bool, joined: bool = True) -> list[Block]:
    """The blocks, with sums that only one other sum reads moved into that.

    An offset that follows a sum in a block of its own joins it. Two matrices in a row become their
    product if float64 has that exactly, and if no execution makes roundings between them. Scalars
    that nothing reads any more become empty sums. Over the reals sums of relus of one number become
    curves (rule R19), and of equal scalars one is read (R23), if ``joined`` says so.
    """
    blocks = list(network.blocks)
    if joined and not executed:
        blocks = pieces.joined(blocks, partial(_readers, network, blocks))
        blocks = merged_equals(_contracted_all(network, blocks, _offset_moved))
    if executed:
        return _contracted_all(network, blocks, _offset_moved)
    return _contracted_all(network, blocks, _offset_moved, _contracted)


def _contracted_all(network: Network, blocks: Sequence[Block], *rules: Contract) -> list[Block]:
    """The blocks with those moved into their only reader that a rule moves."""
    blocks, readers = list(blocks), _readers(network, blocks)
    starts = {block.start: k for k, block in enumerate(blocks)}
    for k, block in enumerate(blocks):
        if not isinstance(block, Affine) or len(block.terms) != 1 or not block.terms[0].ids.size:
            continue
        read = distinct(block.terms[0].ids)
        j = starts.get(int(read[0]), k)
        inner = blocks[j]
        whole = np.arange(inner.start, inner.start + inner.size)
        if j == k or not isinstance(inner, Affine) or inner.maximum is not None:
            continue
        # What this block reads nobody else may, and what it leaves out nobody at all.
        alone = np.array_equal(readers[whole], np.isin(whole, read))
        if inner.offset_error is not None or not alone:
            continue
        made = next(filter(None, (rule(block, inner) for rule in rules)), None)
        if made is not None:
            blocks[k], blocks[j] = made, replace(inner, terms=(), offset=None)
    return blocks


def _readers(network: Network, blocks: Sequence[Block]) -> Array:
    """How often each scalar is read; a term reads those it has once."""
    readers = np.zeros(network.size + 1, np.int64)
    np.add.at(readers, network.output, 2)
    for block in blocks:
        lists = [distinct(term.ids) for term in block.terms] if isinstance(block, Affine) else []
        lists += [block.ids] if isinstance(block, Curve) else []
        lists += [block.first, block.second] if isinstance(block, Pair) else []
        lists += (block.maximum or ()) if isinstance(block, Affine) else ()
        for ids in lists:
            np.add.at(readers, ids, 1)
    return readers


def _offset_moved(block: Affine, inner: Affine) -> Affine | None:
    """``inner + offset`` in one block."""
    term = block.terms[0]
    whole = np.arange(inner.start, inner.start + inner.size)
    plain = isinstance(term, Pick) and term.factor is None and np.array_equal(term.ids, whole)
    if not plain or inner.offset is not None:
        return None
    roundings, least = max(inner.roundings, block.roundings), max(inner.least, block.least)
    return replace(block, terms=inner.terms, roundings=roundings, least=least)


def _contracted(block: Affine, inner: Affine) -> Affine | None:
    """The product of two matrices in a row, if it is exact and no larger than both."""
    if len(inner.terms) != 1 or block.maximum is not None:
        return None
    outer, first = _matrix(block.terms[0], block.size), _matrix(inner.terms[0], inner.size)
    if outer is None or first is None:
        return None
    read = outer[1] - inner.start
    if read[0] < 0 or read[-1] >= inner.size:
        return None
    a, (w, ids) = outer[0], (first[0][read], first[1])
    picks = bool(np.isin(a, (-1.0, 0.0, 1.0)).all() and (np.count_nonzero(a, axis=1) <= 1).all())
    if inner.offset is not None and not (picks and block.offset is None):
        return None
    whole = bool((a == np.rint(a)).all() and (w == np.rint(w)).all())
    if not picks and not (whole and (abs(a) @ abs(w)).max(initial=0.0) < 2.0**52):
        return None
    product = a @ w
    if np.count_nonzero(product) > np.count_nonzero(a) + np.count_nonzero(w):
        return None
    offset = block.offset if inner.offset is None else a @ inner.offset[read]
    rows, columns = np.nonzero(product)
    term: Term = Product(ids[None, :, None], weight=product[None])
    if pays_sparse(product.size, len(rows)):
        term = Entries(ids[columns], out=rows, value=product[rows, columns])
    return replace(block, terms=(term,), offset=offset)


def _matrix(term: Term, size: int) -> tuple[Array, Array] | None:
    """A term as a matrix (size, K) over scalars (K,), if it is one and has no errors."""
    if term.error is not None or not term.ids.size:
        return None
    if isinstance(term, Product) and term.ids.shape[0] == term.ids.shape[2] == 1:
        ids = term.ids[0, :, 0]
        return (term.weight[0], ids) if (np.diff(ids) > 0).all() and ids[0] >= 0 else None
    if isinstance(term, Entries):
        ids, column = np.unique(term.ids, return_inverse=True)
        if ids[0] < 0 or size * len(ids) > _LARGEST_MATRIX:
            return None
        matrix = np.zeros((size, len(ids)))
        np.add.at(matrix, (term.out, column), term.value)
        once = len(distinct(term.out * len(ids) + column)) == len(column)
        return (matrix, ids) if once else None
    return None


class Bounder:
    """Bounds for one network under one semantics.

    Args:
        executed: whether they shall hold for every binary32 execution.
        expired: asked between blocks of rows; once it says True, `Expired` is raised.
        spherical: whether inputs may lie in ellipsoids; intervals are exact for sums of the inputs
            of a box only.
        joined: whether rule R19 applies; then nothing is said of relus that became a curve.
        layered: the network, if it is a folded one (rule R22), with the slopes of the lower lines
            that forms of single scalars take.
        read: (n_out,) which outputs rows are about; the others, and what only they are made from,
            are left out (rule R21). None for all, and for everything in the network.

    Attributes:
        whole: the network given.
        network: what bounds are made for, with scalars numbered anew if something is left out.
    """

    def __init__(
        self,
        network: Network,
        *,
        executed: bool,
        expired: Callable[[], bool] = lambda: False,
        spherical: bool = False,
        joined: bool = True,
        layered: Layered | None = None,
        read: Array | None = None,
    ) -> None:
        self.layered = layered
        self.whole, self.executed, self.expired = network, executed, expired
        # Executors may take numbers below 2^-126 for zero, before and after every step. As the size
        # of what is read, this charges a product with 2^-24 2^-100 |W|, which is more.
        self.flushed = 2.0**-100 if executed else 0.0
        self.blocks: Sequence[Block] = merged(network, executed=executed, joined=joined)
        if read is not None:
            network = replace(network, blocks=[*self.blocks])
            network = needed(network, read, executed=executed)
            self.blocks = network.blocks
        self.network = network
        self.ends = np.array([block.start + block.size for block in self.blocks])
        self.parts: dict[int, list[Part]] = {}
        self.outputs = Part(Pick(ids=network.output), self.ends)
        fan, depth = np.zeros(network.size), max(block.size for block in self.blocks)
        by_others = set(self.outputs.reads)
        for k, block in enumerate(self.blocks):
            terms = block.terms if isinstance(block, Affine) else ()
            if isinstance(block, Curve):
                terms = (Pick(ids=block.ids),)
            if isinstance(block, Pair):
                terms = (Pick(ids=block.first), Pick(ids=block.second))
            self.parts[k] = [Part(term, self.ends) for term in terms if term.ids.size]
            depth = max(depth, len(terms))
            for part in self.parts[k]:
                np.add.at(fan, part.tally.targets, part.fan)
                depth = max(depth, part.depth)
                if not isinstance(block, Curve):
                    by_others.update(part.reads)
        self.place = self._places()
        self.onward, self.offsets = self._without_constants()
        # Roundings of one coefficient, one dot product or one sum of the forward pass.
        self.gamma = 4 * gamma(max(float(fan.max()), depth) + 32)
        # What sums of one block lose, and the middles and radii that they are made of.
        added = {k: sum(part.added for part in parts) for k, parts in self.parts.items()}
        self.lost = {k: 2 * gamma(n + len(self.parts[k]) + 16) for k, n in added.items()}
        # Rows over folded networks are over all that lies before a layer.
        sizes = [block.size for block in self.blocks]
        self.widest = max(sizes) if layered is None else sum(sizes)
        self.widest_read = max((b.size for b in self.blocks if isinstance(b, Curve)), default=0)
        # Curves that make what products and quotients read.
        factors = [
            p.reads for k, b in enumerate(self.blocks) if isinstance(b, Pair) for p in self.parts[k]
        ]
        self.factors = {k for reads in factors for k in reads}
        # Blocks that only curves read: what they lose is charged there, with the rows at hand.
        self.deferred = set(range(1, len(self.blocks))) - by_others
        self.at_curves = np.zeros(network.size + 1)
        for k in self.deferred:
            self.at_curves[self.ends[k - 1] : self.ends[k]] = 1.0
        self.tracked = self._find_tracked(spherical=spherical)
        self.known_ids = np.concatenate([*(t[0] for t in self.tracked.values()), self.ends[:0]])

    def _find_tracked(
        self, *, spherical: bool
    ) -> dict[int, tuple[Array, list[tuple[Curve, Array]]]]:
        """Scalars worth bounding backward: read by a curve, made from more than the input.

        Returns:
            For each block, in order, their numbers, and which of them the curves read.
        """
        tracked: dict[int, tuple[Array, list[tuple[Curve, Array]]]] = {}
        for block in self.blocks:
            for k in self._worthwhile(block, spherical) if isinstance(block, Curve) else ():
                assert isinstance(block, Curve)
                ids = distinct(block.ids)
                ids = ids[self.block_of(ids) == k]
                known, readers = tracked.get(k, (ids, []))
                tracked[k] = distinct(np.concatenate([known, ids])), [*readers, (block, ids)]
        # What pairs read is bounded when they are met, and remembered with the rest.
        for block in self.blocks:
            for ids in (block.first, block.second) if isinstance(block, Pair) else ():
                for k in map(int, distinct(self.block_of(ids[ids >= 0]))):
                    if isinstance(self.blocks[k], Curve) or not self._is_inner(k, spherical=True):
                        continue
                    some = ids[self.block_of(ids) == k]
                    known, readers = tracked.get(k, (self.ends[:0], []))
                    tracked[k] = distinct(np.concatenate([known, some])), readers
        return dict(sorted(tracked.items()))  # `bound` meets the blocks in order

    def _places(self) -> Array:
        """For every scalar the place of an image that it stands at; 0 for what has none."""
        place = np.zeros(self.network.size + 1, int)
        for k, block in enumerate(self.blocks):
            span = slice(block.start, block.start + block.size)
            if isinstance(block, Curve):
                place[span] = place[block.ids]
            for part in self.parts[k] if isinstance(block, Affine) else ():
                if isinstance(part.term, Product):
                    place[span] = np.arange(block.size) % part.term.ids.shape[2]
                elif isinstance(part.term, Pick):
                    place[span] = place[part.term.ids]
        return place

    def _without_constants(self) -> tuple[dict[int, list[Part]], dict[int, Array | None]]:
        """The parts of each block that forms are pulled back through, and its offset.

        Constants that a sum is mixed with, as the mean of a normalisation, are in the offset: what
        is not exact in their factors, or is rounded here, is charged with the block.
        """
        onward, offsets, value = dict(self.parts), {}, np.full(self.network.size + 1, np.nan)
        value[-1] = 0.0
        for k, block in enumerate(self.blocks):
            if not isinstance(block, Affine):
                continue
            offsets[k] = offset = block.offset
            if not block.terms and offset is not None and block.offset_error is None:
                value[block.start : block.start + block.size] = offset
            for part in (p for p in self.parts[k] if isinstance(p.term, Pick)):
                if np.isfinite(moved := part.factors * value[part.ids]).all():
                    offsets[k] = moved if offsets[k] is None else offsets[k] + moved
                    onward[k] = [p for p in onward[k] if p is not part]
        return onward, offsets

    def _worthwhile(self, block: Curve, spherical: bool) -> list[int]:
        """Blocks that a curve reads and that read more than the inputs of a box; behind other
        curves only if it is bent."""
        found = distinct(self.block_of(block.ids[block.ids >= 0]))
        return [
            int(k)
            for k in found
            if self._is_inner(int(k), spherical=spherical)
            and (isinstance(self.blocks[k], Affine) or block.kind in curves.BENT)
            and not self._repeats(int(k))
        ]

    def _repeats(self, k: int) -> bool:
        """Whether a block only picks scalars, each many times, as the differences of a softmax.

        Their bounds follow nearly as well from those of the scalars.
        """
        parts = self.parts[k]
        if not parts or not all(isinstance(part.term, Pick) for part in parts):
            return False
        picked = distinct(np.concatenate([part.tally.targets for part in parts]))
        return self.blocks[k].size > _REPEATS * len(picked)

    def _is_inner(self, k: int, *, spherical: bool) -> bool:
        """Whether a block is made of more than inputs."""
        return any(spherical or max(p.reads) for p in self.parts[k] if p.reads)

    def block_of(self, ids: Array) -> Array:
        """The numbers of the blocks that scalars belong to."""
        return np.searchsorted(self.ends, ids, side="right")

    # Bounds of all scalars

    def bound(  # noqa: PLR0913 - all but two are hints with defaults
        self,
        low: Array,
        high: Array,
        known: tuple[Array, Array] | None = None,
        *,
        within: tuple[Array, Array] | None = None,
        splits: tuple[Array, Array, Array] | None = None,
        backward: bool = True,
        hints: Mapping[int, Sequence[Hint]] = MappingProxyType({}),
        columns: Columns = Columns({}, {}),
        balls: Balls | None = None,
    ) -> Relaxation:
        """Bound every scalar over input boxes (B, n_in).

        Args:
            known: bounds of ``known_ids`` that hold there (B, len), intersected (rule R11).
            within: bounds of all scalars that hold there, (1, scalars + 1) each; likewise.
            splits: scalars, sides and points (D,) of constraints that hold there (rule R10).
            backward: bound unstable neurons by linear forms, too.
            hints: block -> forms to pull back with slopes of their own, where B is 1.
            columns: the neurons that those slopes belong to.
            balls: ellipsoids that the inputs lie in.
        """
        r = self._begin(low, high, balls)
        # Rows with slopes of their own leave forward forms nothing to gain.
        forms = None
        if self.layered is None or not self.layered.slopes:
            forms = Forms.begin(low, high, self.network.size, self.widest_read, self.gamma)
        column, middle = 0, np.zeros(r.lower.shape)
        for k, block in enumerate(self.blocks):
            span = slice(block.start, block.start + block.size)
            if k:
                r.settle(k - 1, self.blocks[k - 1], self.flushed)
            ids = self.tracked[k][0] if k in self.tracked else self.ends[:0]
            if k and self._ends_here(r, k, block, forms):
                column += len(ids)
                if backward:
                    self._add_middle(r, k, block, middle)
                continue
            if isinstance(block, Affine):
                self._end_inputs(r, k, block)
                if forms is not None:
                    apply = partial(self._sums, k)
                    sides = forms.affine(span, apply, block.offset, r.noise[:, span])
                    r.meet(span, *sides)
            elif isinstance(block, Curve):
                self._curve(r, k, block, forms)
            elif isinstance(block, Pair):
                self._pair(r, k, block, forms, backward=backward)
            if known is not None:
                there = slice(column, column := column + len(ids))
                r.meet(ids, *(side[:, there] for side in known))
            if within is not None and k:
                r.meet(span, *(side[:, span] for side in within))
            if splits is not None and k:
                _split(r, block, *splits)
            for hint in hints.get(k, ()):
                self._repeat(r, k, hint, columns.before(k))
            if backward:
                self._add_middle(r, k, block, middle)
                self._refine(r, k, ids, middle)
            r.order(span)
        r.settle(len(self.blocks) - 1, self.blocks[-1], self.flushed)
        return r

    def _begin(self, low: Array, high: Array, balls: Balls | None) -> Relaxation:
        """What is known over input boxes before any block is met."""
        shape, inputs = (len(low), self.network.size + 1), low.shape[1]
        lower, upper, noise, center, radius, reach = (np.zeros(shape) for _ in range(6))
        empty = np.zeros(len(low), bool) if balls is None else balls.apart(low, high)
        r = Relaxation(lower, upper, noise, center, radius, reach, empty=empty, balls=balls)
        r.lower[:, :inputs], r.upper[:, :inputs] = low, high
        vary = varies(low, high)
        if not vary.all():
            r.varies = np.zeros(shape)
            r.varies[:, :inputs] = vary
        few = np.flatnonzero(vary.any(axis=0))
        r.few = few if balls is None and len(few) <= _FEW * inputs else None
        return r

    def _ends_here(self, r: Relaxation, k: int, block: Block, forms: Forms | None) -> bool:
        """Bound a block by intervals; whether no scalar varies, so that no form gets behind it."""
        span = slice(block.start, block.start + block.size)
        if isinstance(block, Affine):
            low, high = self._affine(r, k, block)
        elif isinstance(block, Curve):
            low, high = self._interval(r, block)
        else:
            assert isinstance(block, Pair)
            low, high = self._executed_pair(r, block)
        r.lower[:, span], r.upper[:, span] = low, high
        varies = self._varying(r, k, block)
        if varies is None or not (fixed := _hardly_varies(low, high) & ~varies).any():
            return False
        r.fixed[k] = fixed
        if not fixed.all():
            return False
        if forms is not None:
            forms.constant(span, low, high)
        return True

    def _end_inputs(self, r: Relaxation, k: int, block: Block) -> None:
        """Prepare rule R16 for the inputs that a block reads."""
        if r.few is None or len(self.onward[k]) != 1:
            return
        (part,) = self.onward[k]
        matrix = part.over(r.few)
        if matrix is None:
            return
        n = self.network.n_inputs
        center, spread = np.zeros(r.center.shape), np.zeros(r.center.shape)
        center[:, :n] = r.center[:, :n]
        spread[:, :n] = r.radius[:, :n] + self.gamma * r.reach[:, :n] + TINY
        center[:, r.few] = spread[:, r.few] = 0.0
        middle = part.apply(center, part.factors, block.size)
        radius = part.apply(spread, part.absolute, block.size)
        if (offset := self.offsets[k]) is not None:
            middle, radius = middle + offset, radius + self.gamma * abs(offset)
        r.ended[k] = middle, radius * SLACK + TINY, matrix

    def _varying(self, r: Relaxation, k: int, block: Block) -> Array | None:
        """Which scalars of a block (B, n) hang on inputs that vary; None where all inputs do.

        Bounds do not tell: a split may leave a neuron only its end, and then what it is made of
        still says which inputs are left.
        """
        if r.varies is None:
            return None
        if isinstance(block, Affine):
            varies = self._sums(k, r.varies, True) > 0
        elif isinstance(block, Curve):
            varies = r.varies[:, block.ids] > 0
        else:
            assert isinstance(block, Pair)
            varies = (r.varies[:, block.first] > 0) | (r.varies[:, block.second] > 0)
        # Whether anything is looked at must not depend on the other sets of a batch.
        varies = varies | (r.varies[:, : self.network.n_inputs] > 0).all(axis=1, keepdims=True)
        r.varies[:, block.start : block.start + block.size] = varies
        return np.asarray(varies)

    def _read_by(self, r: Relaxation, block: Curve) -> pairs.Range:
        """Bounds of what a curve reads, flushed or not."""
        return self._flushed(r.lower[:, block.ids], r.upper[:, block.ids])

    def _flushed(self, low: Array, high: Array) -> pairs.Range:
        """Ranges with what is flushed to zero, which no number crosses on that way."""
        nearer = np.maximum(low - self.flushed, 0.0), np.minimum(high + self.flushed, 0.0)
        return np.where(low > 0, nearer[0], low), np.where(high < 0, nearer[1], high)

    def _interval(self, r: Relaxation, block: Curve) -> pairs.Range:
        """All values of a curve, of executions, too."""
        x = self._read_by(r, block)
        below, above = curves.interval(block.kind, *x, block.slope, self.executed)
        below, above = below - self.flushed, above + self.flushed
        limit = _RANGE if self.executed else np.inf
        return np.where(below >= -limit, below, -np.inf), np.where(above <= limit, above, np.inf)

    def _sums(self, k: int, values: Array, absolute: bool) -> Array:
        """The sums of a block without its offset: scalars (B, S + 1) -> (B, n)."""
        size = self.blocks[k].size
        made = np.zeros((len(values), size))
        for part in self.parts[k]:
            made += part.apply(values, part.absolute if absolute else part.factors, size)
        return made

    def _affine(self, r: Relaxation, k: int, block: Affine) -> tuple[Array, Array]:
        nothing = np.zeros((len(r.lower), block.size))
        value = nothing if block.offset is None else block.offset
        spread, weight = nothing, abs(value)
        inexact = nothing if block.offset_error is None else block.offset_error
        for part in self.parts[k]:
            value = value + part.apply(r.center, part.factors, block.size)
            spread = spread + part.apply(r.radius, part.absolute, block.size)
            weight = weight + part.apply(r.reach, part.absolute, block.size)
            if part.error is not None:
                inexact = inexact + part.apply(r.reach, part.error, block.size)
        if self.executed and block.roundings:
            units = gamma(block.roundings, _SINGLE)
            size = weight + inexact + block.least
            inexact = inexact + units * size + block.roundings / _RANGE
        noise = self.gamma * weight + inexact
        # Written so that NaN counts as too much, and so does what binary32 may not hold.
        right = weight + noise <= (_RANGE if self.executed else np.inf)
        noise = np.where(right, noise * SLACK + TINY, np.inf)
        noise = np.broadcast_to(noise, (len(r.lower), block.size))
        r.noise[:, block.start : block.start + block.size] = noise
        # A coefficient of a row is a sum over all that reads a scalar; here are the block's alone.
        spread = spread + (self.lost[k] * weight + inexact) * SLACK + TINY
        low, high = value - spread, value + spread
        if block.maximum is not None:
            a, b = block.maximum
            low = np.maximum(r.lower[:, a], r.lower[:, b])
            high = np.maximum(r.upper[:, a], r.upper[:, b])
        return np.where(right, low, -np.inf), np.where(right, high, np.inf)

    def _curve(self, r: Relaxation, k: int, block: Curve, forms: Forms | None) -> None:
        span = slice(block.start, block.start + block.size)
        x = self._read_by(r, block)
        r.curves[k] = self._lines(r, k, block, *x, None)
        if forms is not None:
            lines = self._lines(r, k, block, *x, parallel(block.kind, *x))
            forms.curve(span, block.ids, *x, lines)

    def _lines(
        self, r: Relaxation, k: int, block: Curve, low: Array, high: Array, free: Array | None
    ) -> tuple[Array, Array, Array, Array]:
        lower_slope, lower, upper_slope, upper = curves.lines(
            block.kind, low, high, block.slope, free, self.executed
        )
        mean, half = 0.5 * (lower_slope + upper_slope), 0.5 * (upper_slope - lower_slope)
        middle, gap = 0.5 * (lower + upper), 0.5 * (upper - lower)
        steep = abs(mean) + abs(half)
        if self.layered is not None:  # some rows take a line as steep as the relu
            steep = np.where(half != 0, np.maximum(steep, 1.0), steep)
        noise = self.gamma * (steep * np.maximum(abs(low), abs(high)) + abs(middle) + abs(gap))
        noise = noise + steep * r.noise[:, block.ids] * self.at_curves[block.ids]
        gap = gap + noise * SLACK + TINY
        if self.executed:
            gap = gap + (1.0 + steep) * self.flushed
            gap = np.where(steep * r.reach[:, block.ids] + abs(middle) + gap <= _RANGE, gap, np.inf)
        return mean, half, middle, gap

    # Products and quotients

    def _pair(
        self, r: Relaxation, k: int, block: Pair, forms: Forms | None, *, backward: bool
    ) -> None:
        span = slice(block.start, block.start + block.size)
        if backward and block.kind == "product":
            for ids in (block.first, block.second):
                self._refine_factor(r, block, ids)
            made = self._executed_pair(r, block)
        else:
            made = r.lower[:, span], r.upper[:, span]
        if backward and block.kind == "quotient":
            found = self._by_difference(r, k, block, made)
            made = np.maximum(made[0], found[0]), np.minimum(made[1], found[1])
        r.planes[k] = planes = self._planes(r, block, made)
        if forms is not None:
            _, b = self.read(r, block)
            read = block.first, block.second
            low, high = forms.pair(span, read, b, planes)
            made = np.maximum(made[0], low), np.minimum(made[1], high)
        r.lower[:, span], r.upper[:, span] = made

    def read(self, r: Relaxation, block: Pair) -> tuple[pairs.Range, pairs.Range]:
        """Bounds of what a block of pairs reads; executions may flush it."""
        low, high = (
            (r.lower[:, ids] - self.flushed, r.upper[:, ids] + self.flushed)
            for ids in (block.first, block.second)
        )
        return low, high

    def _lost(self, r: Relaxation, block: Pair, size: Array) -> Array:
        """What the roundings of an execution change in values of up to a size."""
        if not self.executed:
            return np.zeros_like(size)
        units = gamma(block.roundings, _SINGLE)
        read = sum(np.maximum(abs(low), abs(high)) for low, high in self.read(r, block))
        lost = units * size + block.roundings * self.flushed * (1.0 + read)
        return np.where(size + read <= _RANGE, lost, np.inf)

    def _executed_pair(
        self, r: Relaxation, block: Pair, exact: pairs.Range | None = None
    ) -> pairs.Range:
        """Bounds for executions from those for what they read, by intervals if none are given."""
        if exact is None:
            exact = pairs.interval(block.kind, *self.read(r, block))
        lost = self._lost(r, block, np.maximum(abs(exact[0]), abs(exact[1]))) * SLACK
        low, high = exact[0] - lost, exact[1] + lost
        return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)

    def _planes(
        self, r: Relaxation, block: Pair, made: pairs.Range, free: Array | None = None
    ) -> pairs.Planes:
        a, b = self.read(r, block)
        made = np.minimum(*made), np.maximum(*made)
        lost = self._lost(r, block, np.maximum(abs(made[0]), abs(made[1]))) * SLACK
        # The bounds are those of executions: what they round lies around them.
        exact = made[0] - lost, made[1] + lost
        k, mean, half, middle, gap = pairs.planes(block.kind, a, b, exact, free)
        reach = [np.maximum(abs(low), abs(high)) for low, high in (a, b)]
        size = abs(k) * reach[0] + (abs(mean) + abs(half)) * reach[1] + abs(middle) + abs(gap)
        gap = gap + self.gamma * size * SLACK + TINY
        if self.executed:
            gap = gap + lost + (abs(k) + abs(mean) + abs(half)) * self.flushed
            gap = np.where(size <= _RANGE, gap, np.inf)
        return k, mean, half, middle, gap

    def _refine_factor(self, r: Relaxation, block: Pair, ids: Array) -> None:
        """Backward bounds of those scalars that a product is far from a plane in."""
        wanted = pairs.bends(block.kind, *self.read(r, block)).any(axis=0)
        ids = distinct(ids[wanted & (ids >= 0)])
        for k in map(int, distinct(self.block_of(ids))):
            if self._behind_curve(k) or not self._is_inner(k, spherical=r.balls is not None):
                continue
            some = ids[self.block_of(ids) == k]
            for index in self._steps(some, len(r.lower)):
                every = np.broadcast_to(index, (len(r.lower), len(index)))
                r.meet(index, self._units(r, k, every, 1.0), -self._units(r, k, every, -1.0))
            crossed = r.lower[:, some] > r.upper[:, some]
            if crossed.any():
                r.empty |= crossed.any(axis=1)
                both = r.lower[:, some], r.upper[:, some]
                r.lower[:, some], r.upper[:, some] = np.minimum(*both), np.maximum(*both)

    def _behind_curve(self, k: int) -> bool:
        """Whether a block is made by curves, or just passes on what they make."""
        block = self.blocks[k]
        if not isinstance(block, Affine) or any(not isinstance(t, Pick) for t in block.terms):
            return isinstance(block, Curve)
        reads = {j for part in self.parts[k] for j in part.reads}
        return len(block.terms) == 1 and all(isinstance(self.blocks[j], Curve) for j in reads)

    def _by_difference(self, r: Relaxation, k: int, block: Pair, made: pairs.Range) -> pairs.Range:
        """Bounds of quotients a / b from forms a - c b."""
        a, b = self.read(r, block)
        c = pairs.center(a, b, made)
        low, high = np.full(c.shape, -np.inf), np.full(c.shape, np.inf)
        size = np.maximum(abs(a[0]), abs(a[1])) + abs(c) * np.maximum(abs(b[0]), abs(b[1]))
        # What is divided may be flushed, which moves the difference.
        start = -2 * self.gamma * size * SLACK - TINY - self.flushed * (1.0 + abs(c))
        n = self.network.n_inputs
        for index in self._steps(np.flatnonzero((c != 0).any(axis=0)), len(c)):
            for sign, side in ((1.0, low), (-1.0, high)):
                rows = np.zeros((len(c), len(index), block.size))
                rows[:, np.arange(len(index)), index] = sign
                pending: Pending = {}
                self.parts[k][0].push(pending, rows.reshape(-1, block.size))
                rows = -c[:, None] * rows
                self.parts[k][1].push(pending, rows.reshape(-1, block.size))
                form = self.pull(r, pending, start[:, index])
                side[:, index] = sign * form.least(r.lower[:, :n], r.upper[:, :n], r.balls)
        found = self._executed_pair(r, block, pairs.from_difference(b, c, (low, high)))
        return np.where(c != 0, found[0], -np.inf), np.where(c != 0, found[1], np.inf)

    def _steps(self, index: Array, count: int) -> list[Array]:
        """Numbers in blocks of rows of bounded size for ``count`` sets."""
        step = max(1, _NUMBERS // (self.widest * count))
        parts = []
        for start in range(0, len(index), step):
            self.look_at_the_clock()
            parts.append(index[start : start + step])
        return parts

    def set_planes(self, r: Relaxation) -> None:
        """Choose the planes by bounds that became tighter, also of what curves make of them."""
        for k, block in enumerate(self.blocks):
            span = slice(block.start, block.start + block.size)
            if isinstance(block, Curve) and k in self.factors:
                x = self._read_by(r, block)
                x = np.minimum(*x), np.maximum(*x)
                below, above = curves.interval(block.kind, *x, block.slope, self.executed)
                r.meet(span, below - self.flushed, above + self.flushed)
                both = r.lower[:, span], r.upper[:, span]
                r.lower[:, span], r.upper[:, span] = np.minimum(*both), np.maximum(*both)
            elif isinstance(block, Pair) and not r.ends(k):
                r.planes[k] = self._planes(r, block, (r.lower[:, span], r.upper[:, span]))

    def turn_planes(self, r: Relaxation, free: Mapping[int, Array]) -> None:
        """Choose planes of products by positions in [0, 1]: block -> (B, n) or (1, 1)."""
        for k, positions in free.items():
            block = self.blocks[k]
            assert isinstance(block, Pair)
            span = slice(block.start, block.start + block.size)
            r.planes[k] = self._planes(r, block, (r.lower[:, span], r.upper[:, span]), positions)

    def replicate(self, r: Relaxation, count: int) -> Relaxation:
        """``count`` copies of a batch of one."""
        shape = (count, r.lower.shape[1])
        lower, upper = (np.broadcast_to(side, shape).copy() for side in (r.lower, r.upper))
        return replace(
            r,
            lower=lower,
            upper=upper,
            curves=dict(r.curves),
            planes=dict(r.planes),
            empty=np.repeat(r.empty, count),
        )

    def set_lines(self, r: Relaxation, top: int, free: Mapping[int, Array]) -> None:
        """Choose the lines of the first ``top`` blocks by the bounds that are there now.

        Args:
            free: block -> (B, n) positions of free lines or planes in [0, 1], NaN for the default.
        """
        for k, block in enumerate(self.blocks[:top]):
            if isinstance(block, Curve) and not r.ends(k):
                low, high = r.lower[:, block.ids], r.upper[:, block.ids]
                r.empty |= (low > high).any(axis=1)
                low, high = self._flushed(np.minimum(low, high), np.maximum(low, high))
                r.curves[k] = self._lines(r, k, block, low, high, free.get(k))
            elif isinstance(block, Pair) and not r.ends(k) and k in free:
                span = slice(block.start, block.start + block.size)
                made = r.lower[:, span], r.upper[:, span]
                position = np.where(np.isnan(free[k]), 0.5, free[k])
                r.planes[k] = self._planes(r, block, made, position)

    def _repeat(self, r: Relaxation, k: int, hint: Hint, columns: Columns) -> None:
        """Pull forms of single scalars back with the slopes of a hint."""
        step = max(1, _NUMBERS // self.network.size)
        for start in range(0, len(hint.ids), step):
            self.look_at_the_clock()
            ids = hint.ids[start : start + step]
            slopes = hint.slopes[start : start + step]
            copies = self.replicate(r, len(ids))
            self.set_lines(copies, k, {c: columns.positions(c, slopes) for c in columns.of})
            found = hint.sign * self._units(copies, k, ids[:, None], hint.sign)[:, 0]
            if hint.sign > 0:
                np.maximum.at(r.lower[0], ids, found)
            else:
                np.minimum.at(r.upper[0], ids, found)

    def _add_middle(self, r: Relaxation, k: int, block: Block, middle: Array) -> None:
        """Roughly what a block computes in the middle of each set; nothing depends on it but which
        of two bounds comes first."""
        span = slice(block.start, block.start + block.size)
        if k and isinstance(block, Affine):
            made = self._sums(k, middle, False)
            middle[:, span] = made if block.offset is None else made + block.offset
        elif isinstance(block, Curve):
            x = middle[:, block.ids]
            below, above = curves.interval(block.kind, x, x, block.slope, self.executed)
            middle[:, span] = 0.5 * (below + above)
        else:
            middle[:, span] = 0.5 * (r.lower[:, span] + r.upper[:, span])

    def _refine(self, r: Relaxation, k: int, ids: Array, middle: Array) -> None:
        """Backward bounds of the tracked scalars of a block that some curve finds unstable.

        Of a relu that is stable any value tells on which side of zero. The bound that shows it
        comes first; then no curve finds the scalar unstable, and the other one is not asked for.
        """
        if not len(ids):
            return
        sign = np.where(middle[:, ids] > 0, 1.0, -1.0)
        unstable = self._unstable(r, k, ids)
        self._refine_side(r, k, ids, unstable, sign)
        self._refine_side(r, k, ids, unstable & self._unstable(r, k, ids), -sign)

    def _unstable(self, r: Relaxation, k: int, ids: Array) -> Array:
        """Which of some scalars of a block a curve finds unstable, (B, N)."""
        unstable = np.zeros(r.lower.shape, bool)
        for block, read in self.tracked[k][1]:
            unstable[:, read] |= curves.unstable(block.kind, r.lower[:, read], r.upper[:, read])
        return unstable[:, ids]

    def _refine_side(self, r: Relaxation, k: int, ids: Array, wanted: Array, sign: Array) -> None:
        """One backward bound of those scalars that are ``wanted`` (B, N): the lower one where the
        sign (B, N) is 1, the upper one where it is -1."""
        # Neurons at one place of an image read one window: taken together their rows stay narrow.
        key = self.place[ids] + ~wanted * len(r.lower[0])
        order = np.argsort(key, axis=1, kind="stable")
        for members, width in _alike(wanted.sum(axis=1), self.widest):
            part = r if len(members) == len(wanted) else r.at(members)
            step = max(1, _NUMBERS // (self.widest * len(members)), 64 // len(members))
            for start in range(0, width, step):
                self.look_at_the_clock()
                index = order[members, start : min(start + step, width)]
                here, some = (members[:, None], ids[index]), (members[:, None], index)
                found = sign[some] * self._units(part, k, ids[index], sign[some])
                for side, better, this in (
                    (r.lower, np.maximum, sign[some] > 0),
                    (r.upper, np.minimum, sign[some] < 0),
                ):
                    use = wanted[some] & this
                    side[here] = np.where(use, better(side[here], found), side[here])

    def look_at_the_clock(self) -> None:
        """Stop if the time is up."""
        if self.expired():
            raise Expired

    def _units(self, r: Relaxation, k: int, ids: Array, sign: float | Array) -> Array:
        """Lower bounds of ``sign * scalar``: ids and signs (B, R) of block k -> (B, R)."""
        block, sign = self.blocks[k], np.broadcast_to(sign, ids.shape)
        pending: Pending = {}
        index = ids - block.start
        n = self.network.n_inputs
        if not isinstance(block, Affine):
            rows = np.zeros((ids.size, block.size))
            rows[np.arange(ids.size), index.ravel()] = sign.ravel()
            start = np.zeros(ids.shape)
            units = Coefficients(rows, None, block.size)
            return self.pull(r, {k: units}, start).least(r.lower[:, :n], r.upper[:, :n], r.balls)
        offset = 0.0 if (all_of := self.offsets[k]) is None else sign * all_of[index]
        noise = np.broadcast_to(r.noise, (len(ids), r.noise.shape[1]))
        start = offset - np.take_along_axis(noise, ids, axis=1) * SLACK
        layer = None if self.layered is None or r.fixed else self.layered.number(k)
        if self.layered is not None and layer is not None:
            rows, moved, size = self.layered.pull(r.curves, layer, index, sign)
            constant = start + moved - self._lost_of(r, abs(start) + size)
            return Form(rows, constant).least(r.lower[:, :n], r.upper[:, :n])
        for part in self.onward[k]:
            part.push_units(pending, index.ravel(), sign.ravel(), block.size)
        return self.pull(r, pending, start).least(r.lower[:, :n], r.upper[:, :n], r.balls)

    # Backward

    def pull(
        self,
        r: Relaxation,
        pending: Pending,
        start: Array,
        multipliers: Mapping[int, Array] = MappingProxyType({}),
        kept: dict[int, Array] | None = None,
    ) -> Form:
        """Pull forms back to the input.

        Args:
            r: the batch, B or 1 sets.
            pending: block -> rows over its scalars, (B x R, n); used up.
            start: (B, R) constants of the forms.
            multipliers: block -> (B, n) to subtract from the rows over its scalars (rule R7); the
                caller charges for them.
            kept: takes the rows that reach the curves: block -> (B, R, n).
        """
        shape = start.shape
        constant, error, size = start, np.zeros(shape), abs(start)
        for k in range(max([*pending, *multipliers], default=0), 0, -1):
            block = self.blocks[k]
            if k in multipliers:
                less = np.broadcast_to(-multipliers[k][:, None], (*shape, block.size))
                add(pending, k, less.reshape(-1, block.size), None, block.size)
            if k not in pending:
                continue
            a = pending.pop(k)
            if k in r.fixed:
                rows = a.wide().reshape(*shape, -1)
                moved, lost = self.end(r, block, rows, r.fixed[k])
                constant, error, size = constant + moved, error + lost, size + abs(moved)
                if r.ends(k):
                    continue
                a = a.over(np.where(r.fixed[k][:, None], 0.0, rows))
            if kept is not None and isinstance(block, Curve | Pair):
                kept[k] = a.wide().reshape(*shape, -1)
            for above, active in r.tilts.get(k, ()):
                rows, moved, lost = above.take(a.wide().reshape(*shape, -1), active, pending)
                constant, size, a = constant + moved, size + lost, a.over(rows)
            a = a.narrowed()
            rows, here = a.values.reshape(*shape, -1), slice(None) if a.used is None else a.used
            parts = [a.values]
            if isinstance(block, Curve | Pair):
                moved, lost, bent = self._bent(r, k, rows, here)
                parts = [part.reshape(a.values.shape) for part in bent]
                constant, size = constant + (moved - lost), size + abs(moved) + abs(lost)
            elif isinstance(block, Affine):
                moved, lost = self._in_sums(r, k, block, rows, here)
                constant, error, size = constant + moved, error + lost, size + abs(moved)
            if k in r.ended:
                ended = r.ended[k][2][here]
                add(pending, _AT_FEW, a.values @ ended, None, ended.shape[1])
                continue
            self.hand_on(k, parts, a.used, pending)
        error = error * SLACK + self._lost_of(r, size)
        return self._at_inputs(r, pending, constant - error, multipliers.get(0))

    def _lost_of(self, r: Relaxation, size: Array) -> Array:
        """What a constant (B, R) loses that is made by adding numbers, their sizes summed up."""
        lost: Array = gamma(8 * len(self.blocks) + 16) * size + TINY
        # Coefficients that underflow are off by up to 2^-1074 for each product in them.
        lost += 1e-300 * r.reach.sum(axis=1)[:, None]
        return lost

    def hand_on(self, k: int, rows: Sequence[Array], used: Array | None, pending: Pending) -> None:
        """Push rows, one array or one for each of two parts, to what a block reads."""
        for last, part in enumerate(self.onward[k], 1 - len(self.onward[k])):
            # What a plain term hands on is the array itself, and to that others add in place.
            made = rows[-1] if last == 0 else rows[0]
            part.push(pending, made.copy() if part.plain and last else made, used)

    def _at_inputs(
        self, r: Relaxation, pending: Pending, constant: Array, split: Array | None
    ) -> Form:
        """The forms over the inputs, of which curves may have ``split`` some (B, n_in)."""
        shape, few = constant.shape, pending.get(_AT_FEW)
        if few is not None and 0 not in pending and split is None:
            return Form(few.values.reshape(*shape, -1), constant, r.few)
        inputs = np.zeros((shape[0] * shape[1], self.network.n_inputs))
        if 0 in pending:
            inputs = pending[0].wide()
        inputs = inputs.reshape(*shape, -1)
        if split is not None:
            inputs = inputs - split[:, None]
        if few is not None:
            at_few = Form(few.values.reshape(*shape, -1), constant, r.few)
            inputs = inputs + at_few.wide(inputs.shape[2])
        return Form(inputs, constant)

    def _in_sums(
        self, r: Relaxation, k: int, block: Affine, rows: Array, here: Array | slice
    ) -> tuple[Array, Array]:
        """What rows (B, R, n) over some sums of a block add to the constant, and to its error."""
        moved, lost, offset = np.zeros(rows.shape[:2]), np.zeros(rows.shape[:2]), self.offsets[k]
        if k not in self.deferred:
            noise = r.noise[:, block.start : block.start + block.size][:, here]
            lost = lost + times(abs(rows), noise)
        if k in r.ended:
            middle, radius, _ = r.ended[k]
            moved, lost = times(rows, middle[:, here]), lost + times(abs(rows), radius[:, here])
        elif offset is not None:
            moved = rows @ offset[here]
        return moved, lost

    def end(self, r: Relaxation, block: Block, rows: Array, fixed: Array) -> tuple[Array, Array]:
        """Rule R16 for rows (B, R, n) over some scalars of a block: value, and what it is off."""
        span = slice(block.start, block.start + block.size)
        center = np.where(fixed, r.center[:, span], 0.0)
        radius = r.radius[:, span] + self.gamma * r.reach[:, span] + TINY
        return times(rows, center), times(abs(rows), np.where(fixed, radius, 0.0))

    @staticmethod
    def _bent(
        r: Relaxation, k: int, rows: Array, here: Array | slice
    ) -> tuple[Array, Array, list[Array]]:
        """What rows (B, R, n) add to the constant at some lines or planes of a block, what is lost
        of it, and the rows over what the block reads."""
        absolute, made = abs(rows), []
        if k in r.planes:
            first, mean, half, middle, gap = (part[:, here] for part in r.planes[k])
            made.append(rows * first[:, None])
        else:
            mean, half, middle, gap = (part[:, here] for part in r.curves[k])
        moved, lost = times(rows, middle), times(absolute, gap)
        absolute *= half[:, None]
        made.append(rows * mean[:, None] - absolute)
        return moved, lost, made


def _hardly_varies(low: Array, high: Array) -> Array:
    """Scalars of a block that are a number and its roundings: (B, n)."""
    reach = np.maximum(abs(low), abs(high)).max(axis=1, keepdims=True)
    return np.asarray((high - low <= _FIXED * reach) & np.isfinite(reach))


def _alike(counts: Array, widest: int) -> Iterator[tuple[Array, int]]:
    """Groups of sets with about as many rows (B,): their numbers and the most rows of one.

    Rows of the same group are padded to that number. Sets with less than half as many are left to
    the next group, unless there are so few rows that a pass of their own is not worth it.
    """
    order = np.argsort(-counts, kind="stable")
    ordered = counts[order]
    start, end = 0, int(np.count_nonzero(counts))
    while start < end:
        width = int(ordered[start])
        alike = int(np.count_nonzero(2 * ordered > width)) - start
        size = max(alike, _FEWEST // (widest * width))
        size = max(1, min(size, _NUMBERS // (widest * width), end - start))
        members = order[start : start + size]
        yield (np.sort(members) if size == len(counts) else members), width
        start += size


def _split(r: Relaxation, block: Block, scalar: Array, side: Array, point: Array) -> None:
    """Intersect with the constraints on scalars of a block."""
    here = (scalar >= block.start) & (scalar < block.start + block.size)
    for neuron, sign, value in zip(scalar[here], side[here], point[here], strict=True):
        if sign > 0:
            r.lower[:, neuron] = np.maximum(r.lower[:, neuron], value)
        else:
            r.upper[:, neuron] = np.minimum(r.upper[:, neuron], value)
