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

from onnxcert.arrays import Array, array_module
from onnxcert.graph import Graph
from onnxcert.search.candidates import Candidates
from onnxcert.search.deadline import Deadline
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

    def search(
        self,
        graph: Graph,
        candidates: Candidates,
        open_cases: Array,
        rng: np.random.Generator,
        deadline: Deadline,
        *,
        rounds: int,
    ) -> Counterexample | None:
        """Run rounds until a witness is confirmed, they are used up or the deadline expires.

        Args:
            graph: the network, in the precision of this attack.
            candidates: tests and confirms points.
            open_cases: (K,) indices of cases that are not refuted yet.
            rng: chooses starts and cases.
            deadline: one more step is not begun after it.
            rounds: at most this many; all open cases get at least one restart before it counts.
        """
        if len(open_cases) == 0 or self.restarts == 0:
            return None
        order = rng.permutation(open_cases)
        position = 0
        while not deadline.expired() and position < max(rounds * self.restarts, len(order)):
            chosen = np.resize(np.roll(order, -position), self.restarts)
            position += self.restarts
            found = self._round(graph, candidates, chosen, rng, deadline)
            if found:
                return found
        return None

    def _round(
        self,
        graph: Graph,
        candidates: Candidates,
        cases: Array,
        rng: np.random.Generator,
        deadline: Deadline,
    ) -> Counterexample | None:
        problem = candidates.cases.problem
        lower, upper = (side[problem.case_box[cases]] for side in (problem.lower, problem.upper))
        x = _starts(lower, upper, rng)
        xp = array_module(candidates.cases.offset)
        x, low, high = (xp.asarray(part, dtype=self.precision) for part in (x, lower, upper))
        width = high - low
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
            x = xp.clip(x - step * width * xp.sign(gradient), low, high)
        final = xp.concatenate([best, x])
        return candidates.test(final, xp.concatenate([case_column, case_column]))


def _starts(lower: Array, upper: Array, rng: np.random.Generator) -> Array:
    """Uniform points, corners, points pushed towards the faces, and one centre."""
    share = rng.random(lower.shape)
    kind = np.arange(len(lower)) % 4
    share = np.where((kind == 1)[:, None], np.round(share), share)
    pushed = np.clip(0.5 + 2.0 * (share - 0.5), 0.0, 1.0)
    share = np.where((kind == 2)[:, None], pushed, share)
    share[0] = 0.5
    starts: Array = lower + share * (upper - lower)
    return starts
