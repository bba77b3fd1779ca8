"""Rule R14: Lipschitz constants of a network, from one quadratic form (LipSDP).

Let x and x' be two inputs. The variables s are the differences between both of every input and of
every neuron's value h = f(z); differences of everything affine, of the z and of the outputs among
it, are linear forms of s. A curve whose slopes lie in [low, high] has

    (h - low z) (h - high z) <= 0.

So with any multipliers t >= 0, one for each neuron, and any weights p > 0 of the inputs,

    s^T P s <= sum_i p_i x_i^2 <= b,    P = diag(p) + sum_k t_k (h_k - low z_k) (h_k - high z_k)^T,

P made symmetric, and b the most that the inputs can add up to: max p for inputs at distance 1 in
the norms 2 and 1, sum p in the maximum norm, sum p_i d_i^2 in a box with half widths d. If P is
positive definite, then |c s|^2 <= b c P^-1 c^T for every linear form c.

Both are shown at once, with no trust in a factorisation. If some matrix X has X P X^T = I + E and
the row sums of |E| are at most eta < 1, then X P X^T >= (1 - eta) I in the order of symmetric
matrices. Hence X is invertible, P is positive definite, P^-1 <= X^T X / (1 - eta), and

    |c s| <= |X c^T| sqrt(b / (1 - eta)).

X is the inverse of a Cholesky factor of P as float64 has it; if that is bad, eta is large.

Neurons whose slopes are all the same, which a domain may bring about, are no variables but forms:
h = low z. So are rectifiers of an earlier rectifier's z or of -z, since relu(-z) = relu(z) - z:
otherwise max(a, b) and min(a, b) together would seem to stretch lengths. Such z are recognised by
following exact changes of sign, not by their numbers.

Rounding. Beside a form its size is computed, the same sums of absolute values. A coefficient that
went through n roundings on its way is off by at most gamma_n times its size; errors of stored
factors are sizes, too, in units of the rounding. The sizes of P's coefficients bound its error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcert.checker.bounds import Bounder, gamma
from onnxcert.checker.curves import BENT, SMOOTH, TINY, Array, U, derivative, steepness
from onnxcert.checker.errors import Rejected
from onnxcert.checker.network import (
    Affine,
    Curve,
    Entries,
    Network,
    Pair,
    Pick,
    Product,
    Term,
    distinct,
    need,
)

WIDEST = 10_000
"""Most variables, and most scalars of a block: 800 MB a matrix, of which there are four or five."""

_MOST_FACTORS, _MOST_HELD = 1 << 23, 4 * WIDEST**2
_PANEL = 256
_SLACK = 1 + 1e-6
"""Covers the rounding of error terms themselves."""

_LOST = 1e-280
"""Added to sizes: with any relative error more than what underflows in a sum."""


def slope_range(block: Curve, low: Array, high: Array) -> tuple[Array, Array]:
    """Between which slopes a curve lies on intervals (n,) each.

    Raises:
        Unusable: it jumps there.
    """
    if block.kind in SMOOTH:
        near = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(abs(low), abs(high)))
        steep = derivative(block.kind, near), derivative(block.kind, np.maximum(-low, high))
        most = 0.25 if block.kind == "sigmoid" else 1.0
        return np.maximum(steep[1] - 64 * U, 0.0), np.minimum(steep[0] + 64 * U, most)
    if block.kind in BENT:
        steep = steepness(block.kind, block.slope, low, high)
        steady = bool(np.isfinite(steep[0] + steep[1]).all())
        need(steady, f"{block.label!r} ({block.kind}) has no Lipschitz constant there")
        return steep
    jumps = {"sign": (low <= 0) & (high >= 0), "floor": np.floor(low) < np.floor(high)}
    jump = block.kind in jumps and jumps[block.kind].any()
    need(not jump, f"{block.label!r} ({block.kind}) has no Lipschitz constant")
    slope = 0.0 if block.slope is None else block.slope
    below, above = (slope, 1.0)
    if block.kind == "abs" or block.kind in jumps:
        below, above = (-1.0, 1.0) if block.kind == "abs" else (0.0, 0.0)
    left = np.where(high <= 0, below, np.minimum(below, above))
    right = np.where(high <= 0, below, np.maximum(below, above))
    return np.where(low >= 0, above, left), np.where(low >= 0, above, right)


@dataclass(frozen=True, eq=False)
class Rows:
    """Linear forms of the variables: coefficients and their sizes, (R, N) each.

    ``roundings`` are those that the rows met after they were made for a block.
    """

    value: Array
    size: Array
    roundings: int = 0

    def __getitem__(self, index: Array) -> Rows:
        return Rows(self.value[index], self.size[index], self.roundings)


class Quadratic:
    """The variables of a network and the matrix P.

    Args:
        network: the network.
        box: lower and upper ends of the inputs that count, (n_in,) each; None for all inputs.

    Attributes:
        neurons: how many values all curves have, in the order of the blocks; multipliers are
            counted like that.
        count: of variables.
        matrix, size: P without its first diagonal, and the sizes of its coefficients.
        outputs: the forms of the outputs.

    Raises:
        Unusable: too large, or not Lipschitz continuous on the box.
    """

    def __init__(self, network: Network, box: tuple[Array, Array] | None = None) -> None:
        self.network = network
        pairs = [block.name for block in network.blocks if isinstance(block, Pair)]
        need(not pairs, f"constants of a product or quotient of computed values: {pairs}")
        self.curves = [block for block in network.blocks if isinstance(block, Curve)]
        self.neurons = sum(block.size for block in self.curves)
        self._need_size(max(len(network.output), *(block.size for block in network.blocks)))
        self._slopes = {block.start: self._range(block, at) for block, at in self._intervals(box)}
        self._number()
        self._need_size(self.count)
        self._last_read = self._readers()

    @staticmethod
    def _need_size(count: int) -> None:
        need(count <= WIDEST, f"constants of {count} variables; the most is {WIDEST}")

    def _need_room(self) -> None:
        """Forms of many blocks may have to be held at once."""
        rows = sum(len(rows.value) for rows in self._rows.values())
        need(rows * self.count <= _MOST_HELD, f"constants with {rows} forms at once")

    def _intervals(self, box: tuple[Array, Array] | None) -> Iterator[tuple[Curve, Any]]:
        """Bounds of what each curve is applied to."""
        if box is None:
            yield from ((block, (-np.inf, np.inf)) for block in self.curves)
            return
        bounder = Bounder(self.network, executed=False, joined=False)
        r = bounder.bound(box[0][None], box[1][None])
        for block in self.curves:
            yield block, (r.lower[0, block.ids], r.upper[0, block.ids])

    def _range(self, block: Curve, at: Any) -> tuple[Array, Array]:
        return slope_range(block, *(np.broadcast_to(end, block.size) for end in at))

    def _number(self) -> None:
        """Which scalars are variables: inputs, and neurons that are neither lines nor twins."""
        network = self.network
        self.variable = np.full(network.size + 1, -1)
        self.variable[: network.n_inputs] = np.arange(network.n_inputs)
        self.twin: dict[int, tuple[int, bool]] = {}
        known: dict[tuple[tuple[int, int], ...], tuple[int, int]] = {}
        end, keys = network.n_inputs, _Signed(network)
        for block in self.curves:
            low, high = self._slopes[block.start]
            bent = low != high
            for place in np.flatnonzero(bent) if block.kind == "relu" else ():
                key, sign = keys.of(int(block.ids[place]))
                first, other = known.setdefault(key, (block.start + int(place), sign))
                if first != block.start + place:
                    self.twin[block.start + int(place)] = first, sign != other
                    bent[place] = False
            places = np.flatnonzero(bent)
            self.variable[block.start + places] = np.arange(end, end + len(places))
            end += len(places)
        self.count = end

    def _readers(self) -> dict[int, int]:
        """Start of a block -> number of the last one that reads it; the outputs come last."""
        starts = np.array([block.start for block in self.network.blocks])
        last: dict[int, int] = {}
        for number, reads in enumerate([*map(_read, self.network.blocks), [self.network.output]]):
            for ids in reads:
                held = distinct(np.searchsorted(starts, ids[ids >= 0], side="right"))
                last |= dict.fromkeys(starts[held - 1].tolist(), number)
        return last

    def assemble(self, multipliers: Array) -> None:
        """Make P and the forms of the outputs; multipliers (neurons,)."""
        self._rows: dict[int, Rows] = {}
        self._roundings = 8
        self.matrix, self.size = np.zeros((2, self.count, self.count))
        column = 0
        for number, block in enumerate(self.network.blocks):
            if isinstance(block, Affine):
                self._rows[block.start] = self._affine(block)
            elif isinstance(block, Curve):
                own = multipliers[column : (column := column + block.size)]
                self._curve(block, own)
            for start in [s for s in self._rows if self._last_read.get(s, -1) <= number]:
                del self._rows[start]
            self._need_room()
        self.outputs = self._gather(self.network.output)

    def _gather(self, ids: Array) -> Rows:
        """The forms of some scalars (R,)."""
        made = Rows(*np.zeros((2, len(ids), self.count)))
        for place, start, part in self._sources(ids):
            if start is None:
                made.value[place, part] = made.size[place, part] = 1.0
            else:
                rows = self._rows[start]
                made.value[place], made.size[place] = rows.value[part], rows.size[part]
        return made

    def _sources(self, ids: Array) -> Iterator[tuple[Array, int | None, Array]]:
        """Scalars sorted by what they are: positions, and variables or a block with its rows."""
        variable = np.where(ids < 0, -1, self.variable[ids])
        plain = np.flatnonzero(variable >= 0)
        if len(plain):
            yield plain, None, variable[plain]
        for start, rows in self._rows.items():
            place = ids - start
            here = np.flatnonzero((ids >= 0) & (variable < 0) & (place >= 0))
            here = here[place[here] < len(rows.value)]
            if len(here):
                yield here, start, place[here]

    def _affine(self, block: Affine) -> Rows:
        made = Rows(*np.zeros((2, block.size, self.count)))
        for term in block.terms:
            self._add(made, term)
        made.size[:] = made.size * _SLACK + _LOST
        return made

    def _add(self, made: Rows, term: Term) -> None:
        """Add a term's part to the forms of a block."""
        out, ids, value, error = _entries(term)
        size = abs(value) + error / U
        if isinstance(term, Pick):
            read = self._gather(ids)
            made.value[:] += value[:, None] * read.value
            made.size[:] += size[:, None] * read.size
            self._roundings += 4
            return
        for place, start, part in self._sources(ids):
            to = out[place], part
            if start is None:
                np.add.at(made.value, to, value[place])
                np.add.at(made.size, to, size[place])
                # Entries that meet in one coefficient: no more than there are in a row.
                self._roundings += int(np.bincount(out[place]).max()) + 4
                continue
            rows = self._rows[start]
            factors = np.zeros((2, len(made.value), len(rows.value)))
            np.add.at(factors[0], to, value[place])
            np.add.at(factors[1], to, size[place])
            made.value[:] += factors[0] @ rows.value
            made.size[:] += factors[1] @ rows.size
            self._roundings += int(np.bincount(out[place]).max()) + len(rows.value) + 4

    def _curve(self, block: Curve, multipliers: Array) -> None:
        low, high = self._slopes[block.start]
        scalars = np.arange(block.start, block.start + block.size)
        bent = self.variable[scalars] >= 0
        if not bent.all():
            self._rows[block.start] = self._lines(block, low)
        h = self.variable[scalars[bent]]
        t, low, high = multipliers[bent, None], low[bent, None], high[bent, None]
        z = self._gather(block.ids[bent])
        self.matrix[h, h] += t[:, 0]
        self.size[h, h] += t[:, 0]
        across, sizes = t * (0.5 * (low + high)) * z.value, t * abs(0.5 * (low + high)) * z.size
        self.matrix[h] -= across
        self.matrix[:, h] -= across.T
        self.size[h] += sizes
        self.size[:, h] += sizes.T
        curved = np.flatnonzero(low * high)
        if len(curved):
            z, weight = z[curved], (t * low * high)[curved]
            self.matrix += z.value.T @ (weight * z.value)
            self.size += z.size.T @ (abs(weight) * z.size)
        self._roundings += len(curved) + 16

    def _lines(self, block: Curve, slope: Array) -> Rows:
        """Forms of neurons that are no variables; those of others are not looked at."""
        made = self._gather(block.ids)
        factor = np.where(self.variable[block.start + np.arange(block.size)] < 0, slope, 0.0)
        mine = [s for s in self.twin if block.start <= s < block.start + block.size]
        place = np.array(mine, np.int64) - block.start
        opposite = np.array([self.twin[s][1] for s in mine], bool)
        factor[place] = opposite  # relu(z) = relu(-z) + z
        # What a steep layer reads may have vanished in a flat line.
        size = made.size * abs(factor)[:, None] * _SLACK + _LOST
        made = Rows(made.value * factor[:, None], size)
        firsts = self.variable[[self.twin[s][0] for s in mine]]
        made.value[place, firsts] += 1.0
        made.size[place, firsts] += 1.0
        return made

    def mixed(self, outputs: Array, inputs: Array) -> Rows:
        """Sums of outputs and inputs: factors (R, m) and (R, n_in)."""
        made = Rows(outputs @ self.outputs.value, abs(outputs) @ self.outputs.size)
        made.value[:, : inputs.shape[1]] += inputs
        made.size[:, : inputs.shape[1]] += abs(inputs)
        return Rows(made.value, made.size * _SLACK + _LOST, outputs.shape[1] + 8)

    def inverse(self, weights: Array) -> Inverse:
        """P^-1 for weights p (n_in,); P itself is used up.

        Raises:
            Rejected: P is not shown to be positive definite.
        """
        inputs, matrix, size = np.arange(self.network.n_inputs), self.matrix, self.size
        matrix[inputs, inputs] += weights
        size[inputs, inputs] += weights
        try:
            root = np.linalg.cholesky(matrix)
            _invert(root)
        except np.linalg.LinAlgError:
            root = np.full((self.count, self.count), np.nan)
        error = _residual(root, matrix)
        absolute = _absolute(root.T, np.ones((self.count, 1)))
        across = _absolute(root, size @ absolute)[:, 0]
        # Coefficients are products of two forms, and are multiplied from either side.
        charge = gamma(2 * self._roundings + 2 * self.count + 64)
        eta = float(((error + charge * across) * _SLACK).max(initial=0.0))
        eta += TINY * (1 + float(absolute.sum())) ** 2  # what underflowed
        if not eta < 1:  # also if it is no number
            raise Rejected("R14", "multiplier", "the matrix is not shown to be positive definite")
        return Inverse(root, math.sqrt(1 / (1 - eta)) * (1 + 8 * U), self._roundings)


@dataclass(frozen=True, eq=False)
class Inverse:
    """A matrix X with P^-1 <= factor^2 X^T X; ``roundings`` are those of the forms."""

    root: Array
    factor: float
    roundings: int

    def lengths(self, rows: Rows) -> Array:
        """Bounds of forms where s^T P s <= 1: (R,)."""
        made, lost = self._images(rows)
        own = np.square(made).sum(axis=0) * (1 + gamma(len(made) + 16))
        return np.asarray((np.sqrt(own + TINY) + lost) * self.factor * (1 + 16 * U))

    def differences(self, rows: Rows) -> Array:
        """The same of all differences of two forms: (R, R)."""
        made, lost = self._images(rows)
        squares = made.T @ made
        both = np.diagonal(squares)[:, None] + np.diagonal(squares)
        # |made_i|^T |made_j| is at most half of both, so that this covers all sums.
        charge = 4 * gamma(len(made) + 32) * _SLACK * both
        apart = np.sqrt(np.maximum(both - squares - squares.T, 0.0) + charge + TINY)
        return np.asarray((apart + lost[:, None] + lost) * self.factor * (1 + 16 * U))

    def _images(self, rows: Rows) -> tuple[Array, Array]:
        """X c for every form c, (N, R), and a bound of the length of its error, (R,)."""
        share = gamma(self.roundings + rows.roundings + len(self.root) + 16)
        lost = share * _absolute(self.root, rows.size.T)
        lost = np.sqrt(np.square(lost).sum(axis=0)) * _SLACK + math.sqrt(TINY)
        return self.root @ rows.value.T, lost


def _invert(triangle: Array) -> None:
    """Replace a lower triangular matrix by its inverse, block by block."""
    half = len(triangle) // 2
    if half < _PANEL // 2:
        triangle[:] = np.tril(np.linalg.inv(triangle))
        return
    _invert(triangle[:half, :half])
    _invert(triangle[half:, half:])
    triangle[half:, :half] = (
        triangle[half:, half:] @ -triangle[half:, :half] @ triangle[:half, :half]
    )


def _absolute(matrix: Array, x: Array) -> Array:
    """|A| x, for x (N, R), by panels of A."""
    panels = range(0, len(matrix), _PANEL)
    return np.concatenate([abs(matrix[i : i + _PANEL]) @ x for i in panels])


def _residual(root: Array, matrix: Array) -> Array:
    """Absolute row sums of X P X^T - I for a lower triangular X and a symmetric P: (N,)."""
    sums = np.zeros(len(root))
    for start in range(0, len(root), _PANEL):
        end = min(start + _PANEL, len(root))
        part = root[start:end, :end] @ matrix[:end, :end] @ root[:end, :end].T
        part[:, start:] -= np.eye(end - start)
        sums[start:end] += abs(part).sum(axis=1)
        sums[:start] += abs(part[:, :start]).sum(axis=0)
    return sums


class _Signed:
    """Scalars followed back through exact changes of sign."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.root, self.sign = np.arange(network.size + 1), np.ones(network.size + 1, np.int64)
        self._starts = [block.start for block in network.blocks]
        for block in network.blocks:
            terms = _plain_terms(block)
            if terms is not None and len(terms) == 1 and (terms[0].ids >= 0).all():
                span, ids = slice(block.start, block.start + block.size), terms[0].ids
                self.root[span] = self.root[ids]
                self.sign[span] = self.sign[ids] * _factors(terms[0])

    def of(self, scalar: int) -> tuple[tuple[tuple[int, int], ...], int]:
        """A key that a scalar and its negative share, and which of both it is."""
        if scalar < 0:
            return ((-1, 1),), 1
        root, sign = int(self.root[scalar]), int(self.sign[scalar])
        block = self.network.blocks[int(np.searchsorted(self._starts, root, side="right")) - 1]
        parts = []
        for term in _plain_terms(block) or ():
            i, factor = int(term.ids[root - block.start]), _factors(term)[root - block.start]
            parts += [(int(self.root[i]), int(sign * factor * self.sign[i]))] if i >= 0 else []
        parts = sorted(parts) or [(root, sign)]
        first = parts[0][1]
        return tuple((root, first * sign) for root, sign in parts), first


def _plain_terms(block: Any) -> list[Pick] | None:
    """The terms of a block that adds and subtracts scalars and does nothing else."""
    if not isinstance(block, Affine) or not block.terms or block.offset is not None:
        return None
    terms = [term for term in block.terms if isinstance(term, Pick) and term.error is None]
    plain = len(terms) == len(block.terms) and all((abs(_factors(t)) == 1).all() for t in terms)
    return terms if plain else None


def _factors(term: Pick) -> Array:
    return np.ones(len(term.ids), np.int64) if term.factor is None else term.factor


def _read(block: Any) -> list[Array]:
    """Numbers of the scalars that a block is made of."""
    if isinstance(block, Curve):
        return [block.ids]
    return [term.ids.ravel() for term in block.terms] if isinstance(block, Affine) else []


def _entries(term: Term) -> tuple[Array, Array, Array, Array]:
    """A term as a sparse matrix: rows, scalars, factors and bounds of their errors, (E,) each."""
    if isinstance(term, Product):
        groups, m, depth = term.weight.shape
        shape = groups, m, depth, term.ids.shape[2]
        need(math.prod(shape) <= _MOST_FACTORS, f"constants of a product of {math.prod(shape)}")
        out: Array = np.arange(groups * m * shape[3]).reshape(groups, m, 1, shape[3])
        ids, value = term.ids[:, None], term.weight[..., None]
        error = (
            np.zeros(1)
            if term.error is None
            else np.broadcast_to(term.error, term.weight.shape)[..., None]
        )
        parts = [np.broadcast_to(part, shape).ravel() for part in (out, ids, value, error)]
        return parts[0], parts[1], parts[2], parts[3]
    if isinstance(term, Entries):
        out, value = term.out, term.value
    else:
        out, value = np.arange(len(term.ids)), np.ones(len(term.ids))
        if isinstance(term, Pick) and term.factor is not None:
            value = term.factor
    error = np.zeros(1) if term.error is None else term.error
    return out, term.ids, value, np.broadcast_to(error, value.shape)
