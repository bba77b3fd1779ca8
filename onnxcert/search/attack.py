"""Falsification by projected gradient descent with restarts (Madry et al., 2018), batched.

Each restart pursues one case of the query: it lowers the largest row of that case, which is
positive as long as the point is not a witness. Steps follow the sign of the gradient, scaled by the
width of the box per input, and shrink geometrically; starts alternate between uniform points,
corners and the centre, because piecewise linear networks have their extremes at corners while
narrow witnesses hide inside. Gradients come from the operators' own transposes and derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import Array, array_module, to_host
from onnxcert.graph import Graph
from onnxcert.search.candidates import Candidates
from onnxcert.search.deadline import Deadline
from onnxcert.sets import Ball, Box
from onnxcert.verdict import Counterexample

_FIRST_STEP, _LAST_STEP = 0.25, 0.005
"""Step sizes as shares of the box width."""


@dataclass(frozen=True)
class GradientAttack:
    """Projected gradient descent.

    Attributes:
        restarts: points per round.
        steps: gradient steps per round.
        precision: of the graph it is given; binary32 is twice as fast, and precise enough for
            points that are tested again before they count.
    """

    restarts: int = 64
    steps: int = 40
    precision: type[np.floating] = np.float32

    def round(
        self,
        graph: Graph,
        candidates: Candidates,
        cases: Array,
        rng: np.random.Generator,
        deadline: Deadline,
        points: Array | None = None,
    ) -> Counterexample | None:
        """Descend once from as many points as there are cases.

        Args:
            graph: the network, in the precision of this attack.
            candidates: tests and confirms points.
            cases: (R,) the case that each restart pursues.
            rng: chooses starts.
            deadline: one more step is not begun after it.
            points: (P, n_in) with P <= R, where the first restarts begin.
        """
        problem = candidates.cases.problem
        inputs = problem.inputs.take(problem.case_box[cases])
        x = _starts(inputs, rng, points)
        xp = array_module(candidates.cases.offset)
        x = xp.asarray(x, dtype=self.precision)
        inside = inputs.map(lambda part: xp.asarray(part, dtype=self.precision))
        case_column = xp.asarray(cases)[:, None]
        forms = candidates.cases.forms(case_column)
        rows = forms.rows.astype(self.precision)
        direct = None if forms.input_rows is None else forms.input_rows.astype(self.precision)
        best = x.copy()
        best_loss = xp.full(len(x), xp.inf)
        decay = (_LAST_STEP / _FIRST_STEP) ** (1.0 / max(self.steps - 1, 1))
        for number in range(self.steps):
            if deadline.expired():
                break
            worst = None

            def loss_gradient(outputs: Array, x: Array = x) -> Array:
                nonlocal worst, best, best_loss
                value = xp.where(forms.used, forms.value(outputs, x), -xp.inf)
                worst = value.argmax(axis=1)
                loss = value.max(axis=1)
                better = loss < best_loss
                best = xp.where(better[:, None], x, best)
                best_loss = xp.where(better, loss, best_loss)
                return rows[xp.arange(len(rows)), worst]  # type: ignore[no-any-return]

            _, gradient = graph.gradient(x, loss_gradient)
            if direct is not None:
                gradient = gradient + direct[xp.arange(len(direct)), worst]
            hit = best_loss <= 0
            if number % 8 == 0 and hit.any():
                found = candidates.test(best[hit], case_column[hit])
                if found:
                    return found
            step = _FIRST_STEP * decay**number
            x = _moved(inside, x, gradient, step)
        final = xp.concatenate([best, x])
        return candidates.test(final, xp.concatenate([case_column, case_column]))


_FIRST_POINTS = 8
"""Restarts of a glance; 46 of 48 rows of competitions with a witness need no more. With 64 a round
takes a third of the time of a residual network that its first bounds refute."""

_FIRST_SECONDS = 1.0
"""After so long a first attack begins no further round."""


_EAGER_SECONDS = 10.0
"""What rounds in so long have not found, more of them hardly will."""

_LATER = 0.25
"""Of the share, afterwards."""


@dataclass
class Falsifier:
    """Rounds of an attack that begin as long as they take no more than their share of the time.

    An attack that is scheduled by the clock alone costs most where it is needed least: a query that
    is refuted in three seconds has no use for ten seconds of it. So what it may take grows with
    the run. During branch and bound half of the restarts begin where the bounds of the most
    promising subproblems are attained.

    Attributes:
        attack: what a round is.
        graph: the network, in the precision of the attack.
        rng: chooses starts and cases.
        deadline: of the run.
        share: of the first seconds of the run that all rounds together may take; later on less.
        spent: seconds that they have taken.
    """

    attack: GradientAttack
    graph: Graph
    rng: np.random.Generator
    deadline: Deadline
    share: float
    spent: float = 0.0
    _longest: float = 0.0

    def glance(
        self, candidates: Candidates, open_cases: Array, seconds: float
    ) -> Counterexample | None:
        """A part of a round, in which every case (K,) is pursued, but from few points."""
        if len(open_cases) == 0 or self.attack.restarts == 0:
            return None
        count = min(max(_FIRST_POINTS, len(open_cases)), self.attack.restarts)
        cases = np.resize(self.rng.permutation(open_cases), count)
        return self._timed(candidates, cases, self.deadline.slice(seconds))

    def sweep(
        self, candidates: Candidates, open_cases: Array, seconds: float
    ) -> Counterexample | None:
        """Rounds from random points until all cases (K,) were pursued or it takes too long."""
        if len(open_cases) == 0 or self.attack.restarts == 0:
            return None
        limit, enough = self.deadline.slice(seconds), self.deadline.slice(_FIRST_SECONDS)
        order = self.rng.permutation(open_cases)
        for start in range(0, len(order), self.attack.restarts):
            if start and enough.expired():
                break
            cases = np.resize(np.roll(order, -start), self.attack.restarts)
            if found := self._timed(candidates, cases, limit):
                return found
        return None

    def catch_up(self, candidates: Candidates, open_cases: Array) -> Counterexample | None:
        """Rounds from random points while they are due."""
        while len(open_cases) and self._due():
            cases = self.rng.choice(open_cases, self.attack.restarts)
            if found := self._timed(candidates, cases, self.deadline):
                return found
        return None

    def follow(self, candidates: Candidates, points: Array, cases: Array) -> Counterexample | None:
        """A round, if it is due, of which half begins at points (P, n_in) with cases (P, C)."""
        if len(points) == 0 or not self._due():
            return None
        cases = to_host(cases)
        begun = points[: max(1, self.attack.restarts // 2)]
        own = cases[: len(begun)].max(axis=1)
        others = self.rng.choice(cases[cases >= 0], self.attack.restarts - len(begun))
        return self._timed(candidates, np.concatenate([own, others]), self.deadline, begun)

    def _due(self) -> bool:
        """Whether another round keeps to the share."""
        elapsed = self.deadline.elapsed
        early = min(elapsed, _EAGER_SECONDS)
        allowed = self.share * (early + _LATER * (elapsed - early))
        within = self.spent + self._longest <= allowed and not self.deadline.expired()
        return within and self.attack.restarts > 0

    def _timed(
        self, candidates: Candidates, cases: Array, limit: Deadline, points: Array | None = None
    ) -> Counterexample | None:
        started = self.deadline.elapsed
        try:
            return self.attack.round(self.graph, candidates, cases, self.rng, limit, points)
        finally:
            seconds = self.deadline.elapsed - started
            self.spent += seconds
            whole = seconds * self.attack.restarts / len(cases)  # if it was a part of a round
            self._longest = max(self._longest, whole)


def _moved(inputs: Box, x: Array, gradient: Array, step: float) -> Array:
    """Points (R, n) after a step against gradients, given as a share of the width of their set."""
    if isinstance(inputs, Ball):
        return x + 2.0 * step * (inputs.minimiser(gradient) - x)
    width, xp = inputs.upper - inputs.lower, array_module(x)
    moved: Array = xp.clip(x - step * width * xp.sign(gradient), inputs.lower, inputs.upper)
    return moved


def _starts(inputs: Box, rng: np.random.Generator, points: Array | None) -> Array:
    """Given points first; else uniform ones, corners, some pushed towards the faces, one centre.

    Over an ellipsoid those outside of it are drawn in towards its centre.
    """
    lower, upper = inputs.lower, inputs.upper
    share = rng.random(lower.shape)
    kind = np.arange(len(lower)) % 4
    share = np.where((kind == 1)[:, None], np.round(share), share)
    pushed = np.clip(0.5 + 2.0 * (share - 0.5), 0.0, 1.0)
    share = np.where((kind == 2)[:, None], pushed, share)
    share[0] = 0.5
    starts: Array = lower + share * (upper - lower)
    if points is not None:
        count = len(points)
        starts[:count] = np.clip(to_host(points), lower[:count], upper[:count])
    if isinstance(inputs, Ball):
        starts = inputs.towards_center(starts, np.maximum(inputs.norm(starts), 1.0))
    return starts
