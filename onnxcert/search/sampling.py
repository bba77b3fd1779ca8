"""Falsification without a graph: points of the boxes, evaluated by whatever runs the file.

Where some operator has no rule there are neither gradients nor bounds, but a witness is a witness.
Some points explore: an additive recurrence with the powers of the generalised golden ratio
(Roberts, 2018) fills boxes of few varying inputs evenly, so that even functions that are constant
on small cells are seen everywhere; ranges are stretched by a little and cut, for faces and corners
count most. Others move the best point of their case: a share of its inputs, which shrinks from one
half to a single input, goes to an end of its range or a random way there (after Andriushchenko et
al., *Square Attack*, 2020, without its squares). Moves are the rarer the more were in vain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxcert.arrays import Array, FloatArray
from onnxcert.search.candidates import Candidates
from onnxcert.search.deadline import Deadline
from onnxcert.sets import Box
from onnxcert.verdict import Counterexample

MOST_POINTS = 1 << 15
"""Points of one problem, of all its cases together."""

_FEW_INPUTS = 6
"""More varying inputs than that no sequence fills; their points are random."""

_STRETCH = 0.02
"""How far points reach beyond a box before they are cut, as a share of its width."""

_FIRST_SHARE = 0.5
_SHRINKING = 0.98
"""What is left of the share of inputs that move after a move that did not help."""

_MOST_BETWEEN = 16
"""Points that explore between two moves, at most."""


@dataclass
class _Case:
    """How far the points of one case have come.

    Attributes:
        varying: numbers of the inputs that vary in its box.
        explored: points that were not moved from another.
        violation, best: the least violation so far, and its point.
        share: of the varying inputs, which move next.
        failures: moves in vain since the last that helped.
        waiting: points that explore before the next move.
    """

    varying: Array
    explored: int = 0
    violation: float = np.inf
    best: FloatArray = field(default_factory=lambda: np.zeros(0))
    share: float = _FIRST_SHARE
    failures: int = 0
    waiting: int = 1


@dataclass(frozen=True)
class Sampling:
    """Points of the cases of a problem, one after the other.

    Attributes:
        candidates: evaluates points, and confirms witnesses.
        rng: of all random choices.
        deadline: no point is begun after it.
        report: called with the number of points so far, after each.
    """

    candidates: Candidates
    rng: np.random.Generator
    deadline: Deadline
    report: Callable[[int], None] = lambda count: None

    def run(self) -> tuple[Counterexample | None, int]:
        """A confirmed witness, if one is found, and how many points were tried."""
        problem = self.candidates.cases.problem
        inputs = problem.inputs
        cases = [
            _Case(np.flatnonzero(inputs.lower[box] < inputs.upper[box])) for box in problem.case_box
        ]
        for count in range(MOST_POINTS):
            if self.deadline.expired() or not cases:
                return None, count
            number = count % len(cases)
            box = inputs.take(problem.case_box[number : number + 1])
            case = cases[number]
            moves = case.waiting == 0 and math.isfinite(case.violation)
            point = self._move(case, box) if moves else self._explore(case, box)
            if found := self._try(point, number, case, moved=moves):
                return found, count + 1
            self.report(count + 1)
        return None, MOST_POINTS

    def _try(
        self, point: FloatArray, number: int, case: _Case, *, moved: bool
    ) -> Counterexample | None:
        """Evaluate a point (n_in,) for a case, and keep it if it is the best so far."""
        violation, found = self.candidates.measure(point[None], np.array([[number]]))
        better = bool(violation[0] < case.violation)
        if better:
            case.violation, case.best = float(violation[0]), point
        if moved:
            case.failures = 0 if better else case.failures + 1
            case.share *= 1.0 if better else _SHRINKING
            case.waiting = min(case.failures, _MOST_BETWEEN)
        return found

    def _explore(self, case: _Case, box: Box) -> FloatArray:
        """The next point of a sequence that fills the box: centre, corners if few, and the rest."""
        dimension, number = len(case.varying), case.explored
        case.explored += 1
        case.waiting = max(0, case.waiting - 1)
        if dimension <= _FEW_INPUTS and 0 < number <= 2**dimension:
            share = (number >> np.arange(dimension)) % 2.0
        elif dimension <= _FEW_INPUTS or number == 0:
            steps = _golden_ratio(dimension) ** -np.arange(1.0, dimension + 1)
            share = (0.5 + number * steps) % 1.0
        else:
            share = self.rng.random(dimension)
            if number % 2:
                share = np.round(share)
        share = np.clip((1.0 + 2.0 * _STRETCH) * share - _STRETCH, 0.0, 1.0)
        point: FloatArray = box.lower[0].copy()
        width = (box.upper - box.lower)[0, case.varying]
        point[case.varying] = np.minimum(
            point[case.varying] + share * width, box.upper[0, case.varying]
        )
        return point

    def _move(self, case: _Case, box: Box) -> FloatArray:
        """The best point with some of its inputs elsewhere in their ranges."""
        dimension = len(case.varying)
        point = case.best.copy()
        if dimension == 0:
            return point
        count = max(1, round(case.share * dimension))
        chosen = case.varying[self.rng.choice(dimension, count, replace=False)]
        ends = np.stack([box.lower[0, chosen], box.upper[0, chosen]])
        end = ends[self.rng.integers(0, 2, count), np.arange(count)]
        way = 1.0 if self.rng.random() < 0.5 else self.rng.random(count)
        point[chosen] = np.clip(point[chosen] + way * (end - point[chosen]), *ends)
        return point


def _golden_ratio(dimension: int) -> float:
    """The positive root of x^(d+1) = x + 1."""
    root = 2.0
    for _ in range(60):
        root = (1.0 + root) ** (1.0 / (dimension + 1))
    return root
