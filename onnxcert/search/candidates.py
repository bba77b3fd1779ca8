"""From a promising point to a confirmed witness.

The engine computes in its own precision; a witness counts in the precision of the file. So a point
is rounded to the model's element type, clipped to representable numbers inside the box, evaluated
again, and only the most promising few are handed to ``confirm``, which replays the original file
and checks the query exactly. Where an interval is so thin that no number of that type lies inside
it (specifications fix inputs to decimals), a decimal inside it is the witness and its rounding is
what gets replayed, as any runtime that reads the witness would do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray, array_module, to_host
from onnxcert.search.cases import Cases
from onnxcert.sets import Ball
from onnxcert.verdict import Counterexample

Decimals = dict[int, Fraction]
Confirm = Callable[[FloatArray, Decimals], Counterexample | None]

_NEAR = 1e-4
"""Relative violations up to this are worth a replay: binary32 may fall either way."""

_INSIDE = 1e-9
"""How far inside an ellipsoid a witness is put, as a share of its axes."""

_TRIES = 6


def representable_box(
    lower: FloatArray, upper: FloatArray, dtype: type[np.floating]
) -> tuple[FloatArray, FloatArray]:
    """The smallest and the largest ``dtype`` in [lower, upper]; crossed if there is none."""
    low, high = lower.astype(dtype), upper.astype(dtype)
    low = np.where(low < lower, np.nextafter(low, dtype(np.inf)), low)
    high = np.where(high > upper, np.nextafter(high, dtype(-np.inf)), high)
    return low, high


@dataclass
class Candidates:
    """Tests points against the open cases and keeps count.

    Attributes:
        forward: evaluates points (P, n_in) in the engine's precision, (P, n_out).
        cases: what a witness has to satisfy.
        confirm: replays one point (n_in,) on the original file; some of its coordinates may stand
            for decimals that the element type cannot represent.
        dtype: the element type of the model.
        replays_left: how many replays may still be spent.
        follow: takes points that `pursue` tested in vain, to look round them.
    """

    forward: Callable[[Array], Array]
    cases: Cases
    confirm: Confirm
    dtype: type[np.floating] = np.float32
    replays_left: int = 200
    unconfirmed: int = 0
    follow: Callable[[Array, Array], Counterexample | None] = lambda points, cases: None
    _tried: set[bytes] = field(default_factory=set)

    def test(self, points: Array, cases: Array) -> Counterexample | None:
        """Try points (P, n_in), each against its own cases (P, C), -1 for none."""
        known = (cases >= 0).any(axis=1)
        points, cases = points[known], cases[known]
        return None if len(points) == 0 else self.measure(points, cases)[1]

    def measure(self, points: Array, cases: Array) -> tuple[FloatArray, Counterexample | None]:
        """As `test`, of points with at least one case each.

        Returns:
            The least violation of each point, (P,), and a witness if one is among them.
        """
        problem = self.cases.problem
        box = problem.case_box[to_host(cases.max(axis=1))]
        low, high = representable_box(
            problem.inner_lower[box], problem.inner_upper[box], self.dtype
        )
        rounded = np.clip(to_host(points).astype(self.dtype), low, high)
        middle = 0.5 * (problem.lower[box] + problem.upper[box])
        rounded = np.where(low > high, middle.astype(self.dtype), rounded)
        inputs = problem.inputs
        if isinstance(inputs, Ball):
            rounded = _drawn_in(inputs.take(box), rounded, low, high)
        inputs = array_module(points).asarray(rounded, dtype=float)
        outputs = self.forward(inputs)
        violation = to_host(self.cases.violation(inputs, outputs, cases)).min(axis=1)
        scale = 1.0 + to_host(abs(outputs).max(axis=1))
        promising = np.flatnonzero(violation <= _NEAR * scale)
        for index in promising[np.argsort(violation[promising], kind="stable")][:8]:
            thin = np.flatnonzero(low[index] > high[index])
            if found := self.replay(rounded[index], int(box[index]), thin):
                return violation, found
        return violation, None

    def pursue(self, points: Array, cases: Array) -> Counterexample | None:
        """Test points, then hand them to ``follow``; arrays as for `test`."""
        return self.test(points, cases) or self.follow(points, cases)

    def replay(self, point: FloatArray, box: int, thin: IntArray) -> Counterexample | None:
        """Confirm one point (n_in,), rounded already; once, and while there are replays left.

        Args:
            point: of the element type of the model.
            box: its box in the problem.
            thin: inputs that no number of that type lies in.
        """
        key = point.tobytes()
        if key in self._tried or self.replays_left <= 0:
            return None
        self._tried.add(key)
        self.replays_left -= 1
        bounds = self.cases.problem.exact_bounds
        decimals = {int(i): sum(bounds(box, int(i)), Fraction(0)) / 2 for i in thin}
        found = self.confirm(point, decimals)
        self.unconfirmed += found is None
        return found


def _drawn_in(ball: Ball, points: Array, low: FloatArray, high: FloatArray) -> Array:
    """Points (P, n), rounded to their type, that rounding has moved out of an ellipsoid.

    They are drawn towards its centre by a little more than they lie outside, and rounded again.
    """
    for number in range(_TRIES):
        norm = ball.norm(points.astype(np.float64))
        outside = norm > 1.0 - _INSIDE
        if not outside.any():
            break
        factor = norm + (number + 1) * np.maximum(norm - 1.0, _INSIDE)
        drawn = ball.towards_center(points.astype(np.float64), factor).astype(points.dtype)
        fits = outside[:, None] & (low <= high)
        points = np.where(fits, np.clip(drawn, low, high), points)
    return points
