"""From a promising point to a confirmed witness.

The engine computes in its own precision; a witness counts in the precision of the file. So a point
is rounded to the model's element type, clipped to representable numbers inside the box, evaluated
again, and only the most promising few are handed to ``confirm``, which replays the original file and
checks the query exactly. Where a box is so thin that no representable number lies inside it, the
nearest one is used; ``confirm`` decides what that is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxcert.arrays import Array, FloatArray, array_module, to_host
from onnxcert.graph import Graph
from onnxcert.search.cases import Cases
from onnxcert.verdict import Counterexample

Confirm = Callable[[FloatArray], Counterexample | None]

_NEAR = 1e-4
"""Violations up to this, relative to the outputs, are worth a replay: binary32 may fall either way."""


def representable_box(
    lower: FloatArray, upper: FloatArray, dtype: type[np.floating]
) -> tuple[FloatArray, FloatArray]:
    """The smallest and largest numbers of ``dtype`` in [lower, upper], or the nearest if none is."""
    low, high = lower.astype(dtype), upper.astype(dtype)
    low = np.where(low < lower, np.nextafter(low, dtype(np.inf)), low)
    high = np.where(high > upper, np.nextafter(high, dtype(-np.inf)), high)
    middle = (0.5 * (lower + upper)).astype(dtype)
    none = low > high
    return np.where(none, middle, low), np.where(none, middle, high)


@dataclass
class Candidates:
    """Tests points against the open cases and keeps count.

    Attributes:
        graph: the network in the engine's precision.
        cases: what a witness has to satisfy.
        confirm: replays one point (n_in,) on the original file.
        dtype: the element type of the model.
        replays_left: how many replays may still be spent.
    """

    graph: Graph
    cases: Cases
    confirm: Confirm
    dtype: type[np.floating] = np.float32
    replays_left: int = 200
    unconfirmed: int = 0
    _tried: set[bytes] = field(default_factory=set)

    def test(self, points: Array, cases: Array) -> Counterexample | None:
        """Try points (P, n_in), each against its own cases (P, C), -1 for none."""
        problem = self.cases.problem
        first = to_host(cases).max(axis=1)
        points, cases = points[first >= 0], cases[first >= 0]
        if len(points) == 0:
            return None
        box = problem.case_box[first[first >= 0]]
        low, high = representable_box(problem.lower[box], problem.upper[box], self.dtype)
        rounded = np.clip(to_host(points).astype(self.dtype), low, high)
        inputs = array_module(points).asarray(rounded, dtype=float)
        outputs = self.graph.forward(inputs)
        violation = to_host(self.cases.violation(inputs, outputs, cases)).min(axis=1)
        scale = 1.0 + to_host(abs(outputs).max(axis=1))
        promising = np.flatnonzero(violation <= _NEAR * scale)
        for index in promising[np.argsort(violation[promising], kind="stable")][:8]:
            if found := self._replay(rounded[index]):
                return found
        return None

    def _replay(self, point: FloatArray) -> Counterexample | None:
        key = point.tobytes()
        if key in self._tried or self.replays_left <= 0:
            return None
        self._tried.add(key)
        self.replays_left -= 1
        found = self.confirm(point)
        self.unconfirmed += found is None
        return found
