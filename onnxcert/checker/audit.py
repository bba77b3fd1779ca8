"""Auditing leaves: the last backward pass again, in exact rational arithmetic.

The lines of the curves are taken as the floats they are. Each is tested where its distance from
a piecewise-linear curve or from stairs is extreme, with the bounds of the neuron as they are; from
a power or a reciprocal, where it is extreme from a tangent that lies between the two. Planes are
tested on the edges of the region of a product or a quotient. Then the form is pulled back and
minimised without any rounding, and what comes out must be positive. It goes on to all inputs, also
where the pass ended at those that hardly vary (rule R16): the least value over their box is no
lower than what the rule leaves of it. Meant for a few leaves: it takes hundreds of times as long as
float64.
"""

from __future__ import annotations

import math
import multiprocessing
from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from fractions import Fraction
from typing import Any

import numpy as np

from onnxcert.checker.bounds import Bounder, Relaxation
from onnxcert.checker.curves import CONVEX, Array
from onnxcert.checker.errors import Rejected
from onnxcert.checker.network import (
    TRANSCENDENTAL,
    Affine,
    Block,
    Curve,
    Entries,
    Pair,
    Pick,
    Product,
    Term,
)
from onnxcert.checker.pieces import PIECES, crosses
from onnxcert.checker.tilts import Tilt

_METHODS = multiprocessing.get_all_start_methods()
FORKS = multiprocessing.get_context("fork") if "fork" in _METHODS else None
"""Makes processes that inherit what is in memory and may share some of it; None if none can."""

_MOST = 1 << 62


class Auditor:
    """Bounds some of the refuted cases that it is shown again, chosen at random.

    Args:
        bounder: the network.
        count: how many at most, in this process and its forks together.
        leaves: how many there will be, about.
    """

    def __init__(self, bounder: Bounder, count: int, leaves: int) -> None:
        self.bounder, self.count = bounder, min(count, _MOST)
        self._share = 2 * self.count / max(1, leaves)
        # In memory that forks share; without audits there is nothing to share or to draw.
        self._left = (FORKS or multiprocessing).Value("q", self.count) if count else None
        self._rng = np.random.default_rng() if count else None

    def over(self, bounder: Bounder) -> Auditor:
        """The same auditor for another network, of whose bounds it counts as well."""
        other = copy(self)
        other.bounder = bounder
        return other

    @property
    def done(self) -> int:
        """How many were audited, in this process and its forks together."""
        return self.count - self._left.value if self._left else 0

    def choose(self, candidates: Array) -> Array:
        """Those of the candidates (N, .) that are to be audited; the caller audits them all."""
        if self._left is None or self._rng is None:
            return candidates[:0]
        chosen = candidates[self._rng.random(len(candidates)) < self._share]
        with self._left.get_lock():
            chosen = chosen[: self._left.value]
            self._left.value -= len(chosen)
        return chosen

    def audit(
        self,
        r: Relaxation,
        number: int,
        rows: Mapping[int, Fraction],
        constant: Fraction,
        box: tuple[list[float], list[float]],
    ) -> None:
        """Bound one form over one leaf again.

        Args:
            r, number: a batch of sets with their lines, and which of them.
            rows: scalar -> coefficient; what is subtracted for splits of neurons is in there.
            constant: of the form.
            box: the input box.

        Raises:
            Rejected: a line crosses its curve, or the form is not positive.
        """
        pending = defaultdict(Fraction, rows)
        for k in range(len(self.bounder.blocks) - 1, 0, -1):
            block = self.bounder.blocks[k]
            for i in range(block.size):
                a = pending.pop(block.start + i, Fraction())
                if not a:
                    continue
                if k in r.fixed and r.fixed[k][number % len(r.fixed[k]), i]:
                    sides = r.lower if a > 0 else r.upper
                    constant += a * Fraction(float(sides[number % len(sides), block.start + i]))
                elif isinstance(block, Pair):
                    constant += self._plane(r, number, k, block, i, a, pending)
                elif isinstance(block, Curve) and a < 0 and (found := _above(r, number, k, i)):
                    constant += self._tilted(r, number, block, i, a, found, pending)
                elif isinstance(block, Curve):
                    slope, offset = self._line(r, number, k, block, i, above=a < 0)
                    constant += a * offset
                    pending[int(block.ids[i])] += a * slope
                else:
                    constant += self._sum(r, number, block, i, a, pending)
        pending.pop(-1, None)
        lower = constant + _least(pending, box)
        if lower <= 0 and not self._round(r, number, pending, constant, box):
            raise Rejected("R8", "audit", f"a leaf is not refuted: {float(lower)}")

    @staticmethod
    def _round(
        r: Relaxation,
        number: int,
        rows: Mapping[int, Fraction],
        constant: Fraction,
        box: tuple[list[float], list[float]],
    ) -> bool:
        """Whether a form is positive where the box is cut by an ellipsoid.

        Over that the share b of the form is at least b . c - sqrt(sum (b s)^2).
        """
        if r.balls is None:
            return False
        ball = r.balls[np.array([number % len(r.balls.axes)])]
        low, high = (np.array(side)[None] for side in box)
        form = np.array([[[float(rows.get(i, 0)) for i in range(low.shape[1])]]])
        found, _ = ball.divide(form, low, high)
        share = {i: Fraction(float(found[0, 0, i])) for i in np.flatnonzero(found[0, 0]).tolist()}
        rest = {i: rows.get(i, Fraction()) - share.get(i, 0) for i in {*rows, *share}}
        lower, square = constant + _least(rest, box), Fraction()
        for i, b in share.items():
            lower += b * Fraction(float(ball.center[0, i]))
            square += (b * Fraction(float(ball.axes[0, i]))) ** 2
        return lower > 0 and lower * lower > square

    def _line(
        self, r: Relaxation, number: int, k: int, block: Curve, i: int, *, above: bool
    ) -> tuple[Fraction, Fraction]:
        """Slope and offset of a line, after a test at the ends and the kink."""
        mean, half, middle, gap = (Fraction(x[number % len(x), i]) for x in r.curves[k])
        sign = 1 if above else -1
        slope, offset = mean + sign * half, middle + sign * gap
        low, high = (Fraction(side[number, block.ids[i]]) for side in (r.lower, r.upper))
        if block.kind == PIECES and block.slope is not None:
            if crosses(block.slope[i], sign, slope, offset, low, high):
                raise Rejected("R19", f"audit, {block.label}", "a line crosses its curve")
            return slope, offset
        factor = Fraction(0 if block.slope is None else float(block.slope[i]))
        if block.kind in CONVEX:
            n = -1 if block.kind == "reciprocal" else int(factor)
            if _crosses_power(n, sign, slope, offset, low, high):
                raise Rejected("R4", f"audit, {block.label}", "a line crosses its curve")
            return slope, offset
        if block.kind == "floor":
            if _crosses_stairs(sign, slope, offset, low, high):
                raise Rejected("R4", f"audit, {block.label}", "a line crosses its curve")
            return slope, offset
        for z in (low, high, Fraction(0)):
            if block.kind in TRANSCENDENTAL or not low <= z <= high:
                continue
            value = {
                "relu": max(z, Fraction(0)),
                "leaky": z if z > 0 else factor * z,
                "abs": abs(z),
                "sign": Fraction((z > 0) - (z < 0)),
            }[block.kind]
            if sign * (slope * z + offset - value) < 0:
                raise Rejected("R4", f"audit, {block.label}", "a line crosses its curve")
        return slope, offset

    def _tilted(
        self,
        r: Relaxation,
        number: int,
        block: Curve,
        i: int,
        a: Fraction,
        found: tuple[Tilt, int],
        rows: dict[int, Fraction],
    ) -> Fraction:
        """Replace a relu by a plane above it, after a test; the constant that this adds."""
        tilt, row = found
        used = tilt.reads.used[row]
        scalars = tilt.reads.ids[row, used].tolist()
        plane = dict(zip(scalars, map(Fraction, tilt.factor[row, used]), strict=True))
        offset = Fraction(float(tilt.offset[row]))
        # -z is at least ``below`` + a form of what the plane is about; executions may flush z.
        form: dict[int, Fraction] = defaultdict(Fraction, {int(block.ids[i]): Fraction(-1)})
        below = -Fraction(self.bounder.flushed)
        while others := [j for j, b in form.items() if b and j >= 0 and j not in plane]:
            maker = self.bounder.blocks[int(self.bounder.block_of(np.array(others[:1]))[0])]
            b = form.pop(others[0])
            below += self._sum(r, number, maker, others[0] - maker.start, b, form)
        form.pop(-1, None)
        box = r.lower[number].tolist(), r.upper[number].tolist()
        at_zero = offset + _least(plane, box)
        both = {j: plane.get(j, Fraction()) + form.get(j, Fraction()) for j in {*plane, *form}}
        if at_zero < 0 or offset + below + _least(both, box) < 0:
            raise Rejected("R18", f"audit, {block.label}", "a plane crosses its relu")
        for scalar, factor in plane.items():
            rows[scalar] += a * factor
        return a * offset

    def _plane(
        self,
        r: Relaxation,
        number: int,
        k: int,
        block: Pair,
        i: int,
        a: Fraction,
        rows: dict[int, Fraction],
    ) -> Fraction:
        """Replace a product or quotient by a plane, after a test; the constant that this adds."""
        first, mean, half, middle, gap = (Fraction(x[number % len(x), i]) for x in r.planes[k])
        sign = 1 if a < 0 else -1
        plane = first, mean + sign * half, middle + sign * gap
        ids = block.first[i], block.second[i], block.start + i
        x, y, made = (
            tuple(Fraction(side[number % len(side), scalar]) for side in (r.lower, r.upper))
            for scalar in ids
        )
        crosses = _crosses_product if block.kind == "product" else _crosses_quotient
        if crosses(sign, plane, x, y, made):
            raise Rejected("R15", f"audit, {block.name}", "a plane crosses its surface")
        rows[int(ids[0])] += a * plane[0]
        rows[int(ids[1])] += a * plane[1]
        return a * plane[2]

    def _sum(
        self,
        r: Relaxation,
        number: int,
        block: Block,
        i: int,
        a: Fraction,
        rows: dict[int, Fraction],
    ) -> Fraction:
        """Replace a scalar by what it is the sum of; the constant that this adds."""
        assert isinstance(block, Affine)
        constant, lost = Fraction(), Fraction()
        if self.bounder.executed:
            lost += Fraction(r.noise[number % len(r.noise), block.start + i])
        if block.offset is not None:
            constant += a * Fraction(float(block.offset[i]))
        if block.offset_error is not None:
            lost += Fraction(float(block.offset_error[i]))
        for term in block.terms:
            for scalar, factor, error in _factors(term, i):
                if scalar >= 0:
                    rows[scalar] += a * Fraction(factor)
                    if error:
                        lost += Fraction(error) * Fraction(r.reach[number % len(r.reach), scalar])
        return constant - abs(a) * lost


def _above(r: Relaxation, number: int, k: int, i: int) -> tuple[Tilt, int] | None:
    """The plane that a neuron of a curve takes, and its number among the planes."""
    for tilt, active in r.tilts.get(k, ()):
        row = int(np.searchsorted(tilt.position, i))
        if row < len(tilt.position) and tilt.position[row] == i and active[number, row]:
            assert isinstance(tilt, Tilt)
            return tilt, row
    return None


Ends = tuple[Fraction, ...]
"""A lower and an upper bound."""


def _crosses_stairs(
    sign: int, slope: Fraction, offset: Fraction, low: Fraction, high: Fraction
) -> bool:
    """Whether a line is below floor (sign 1) or above it (sign -1) somewhere in between.

    What is left between them is extreme at an end, or on either side of a jump; what is left at
    jumps changes from the first to the last of them without turning.
    """
    points = [(low, math.floor(low)), (high, math.floor(high))]
    for jump in {math.floor(low) + 1, math.floor(high)} if high >= math.floor(low) + 1 else ():
        points += [(Fraction(jump), jump), (Fraction(jump), jump - 1)]
    return any(sign * (slope * z + offset - value) < 0 for z, value in points)


def _crosses_power(
    n: int, sign: int, slope: Fraction, offset: Fraction, low: Fraction, high: Fraction
) -> bool:
    """Whether a line might be below z^n (sign 1) or above it (sign -1) somewhere in between.

    On a side of zero z^n is convex or concave. What is left between it and the line is extreme at
    the ends there, or at least what is left between its tangent at any point and the line.
    """
    parts = [(low, high)] if n > 0 and n % 2 == 0 else [(low, min(high, Fraction(0)))]
    parts += [] if n > 0 and n % 2 == 0 else [(max(low, Fraction(0)), high)]
    for left, right in parts:
        if left > right:
            continue
        if n < 0 and left <= 0 <= right:
            return True
        is_convex = right > 0 or n % 2 == 0
        ends = [sign * (slope * z + offset - z**n) for z in (left, right)]
        if is_convex != (sign > 0):
            is_left = right <= 0 or (n % 2 == 0 and slope < 0)
            t = left if is_left else right  # where a reciprocal is nearest to level
            if slope or n > 0:
                touch = Fraction((abs(float(slope)) / abs(n)) ** (1.0 / (n - 1)))
                t = min(max(-touch if is_left else touch, left), right)
            ends += [
                sign * (slope * z + offset - t**n - n * t ** (n - 1) * (z - t))
                for z in (left, right)
            ]
        if min(ends) < 0:
            return True
    return False


def _crosses_product(sign: int, plane: Ends, x: Ends, y: Ends, made: Ends) -> bool:
    """Whether a plane is below a product (sign 1) or above it (sign -1) at a corner."""
    del made
    return any(sign * (plane[0] * a + plane[1] * b + plane[2] - a * b) < 0 for a in x for b in y)


def _crosses_quotient(sign: int, plane: Ends, x: Ends, y: Ends, made: Ends) -> bool:
    """The same for x / y with bounds of it.

    For one y what is between is linear in x, hence extreme where x is at one of its bounds or at
    one that follows from those of the quotient; times y > 0 that is a polynomial in y.
    """
    k, m, offset = plane
    if y[1] < 0:
        k, m, x, y = -k, -m, (-x[1], -x[0]), (-y[1], -y[0])
    if y[0] <= 0:
        return True
    turns = {a / q for a in x for q in made if q}
    knots = sorted({*y, *(b for b in turns if y[0] < b < y[1])})
    for left, right in zip(knots, [*knots[1:], knots[-1]], strict=True):
        middle = (left + right) / 2
        if max(x[0], made[0] * middle) > min(x[1], made[1] * middle):
            continue  # nothing is there
        for a, q, is_low in ((x[0], made[0], True), (x[1], made[1], False)):
            by_quotient = (q * middle > a) if is_low else (q * middle < a)
            # times y: c2 y^2 + c1 y + c0
            c2, c1, c0 = (k * q + m, offset - q, 0) if by_quotient else (m, k * a + offset, -a)
            places = {left, right}
            if c2 and left < (top := -c1 / (2 * c2)) < right:
                places.add(top)
            if any(sign * ((c2 * b + c1) * b + c0) < 0 for b in places):
                return True
    return False


def _least(rows: Mapping[int, Fraction], box: tuple[list[float], list[float]]) -> Fraction:
    """The least value of a linear form over a box."""
    corners = ((i, box[0][i] if a > 0 else box[1][i]) for i, a in rows.items())
    return sum((rows[i] * Fraction(x) for i, x in corners), Fraction())


def _factors(term: Term, i: int) -> list[tuple[int, float, float]]:
    """Scalars, factors and their errors in one output of a term."""
    at: Any
    if isinstance(term, Product):
        _, rows, _ = term.weight.shape
        g, rest = divmod(i, rows * term.ids.shape[2])
        row, place = divmod(rest, term.ids.shape[2])
        ids, factors, at = term.ids[g, :, place], term.weight[g, row], (g, row)
        shape = term.weight.shape
    elif isinstance(term, Entries):
        at = np.flatnonzero(term.out == i)
        ids, factors, shape = term.ids[at], term.value[at], term.value.shape
    else:
        assert isinstance(term, Pick)
        at, ids, shape = [i], term.ids[[i]], term.ids.shape
        factors = np.ones(1) if term.factor is None else np.broadcast_to(term.factor, shape)[at]
    errors = np.zeros(len(ids)) if term.error is None else np.broadcast_to(term.error, shape)[at]
    return list(zip(ids.tolist(), factors.tolist(), errors.tolist(), strict=True))
