"""Neuron splits in boxes that input splits have made.

Halving an input tightens all bounds at once, but where few neurons of a box are unstable they are
what its bound lacks, and splits of just those close it, while by halves it takes hundreds of boxes.
A network of 1,048 neurons over eight inputs has three to nine of 264 relus unstable in boxes whose
bound is -1 to -5: neuron splits close them in 0.05 to 2 seconds, input splits of the same boxes
take 20 to more than 2,000 boxes.

So the search by input splits stops now and then, at times that grow with it. A few of its worst
boxes are handed to neuron splits, as many others are split further for as long as that took. Once
neuron splits are quicker, and splitting all boxes once more would not make them so much quicker
that it pays, all boxes that are left are handed over, worst first. Inputs are split again when one
of them is not closed in many times the mean time of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxcert.arrays import Array, array_module, to_host
from onnxcert.bounds.optimised import MOST_PLANES, FreeRelaxation, Start, optimise
from onnxcert.proof.trace import NeuronTrees, free_neurons
from onnxcert.search.deadline import Deadline
from onnxcert.search.frontier import Batch, Frontier
from onnxcert.search.input_split import InputSplit
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.verdict import Counterexample, Reason

_log = logging.getLogger(__name__)

_PATIENCE = 3.0
"""Seconds of input splits before neuron splits are tried."""

_SAMPLE = 4
"""Boxes that both ways to split are tried on, each on its own."""

_LEAST_SECONDS = 0.25
"""Seconds that neuron splits may take in one box, at least."""

_SHARE = 0.02
"""The same as a share of the time that input splits have taken."""

_OUTLIER = 8.0
"""How many times the mean time of a box neuron splits may take before inputs are split again."""

_LATER = 1.3
"""How many times longer the search is when both ways are compared again."""

_MUCH_LATER = 2.0
"""The same after neuron splits have failed or lost: 0.12 of 5 CPU seconds of ACAS Xu 1_1 prop 6."""


@dataclass(frozen=True, eq=False)
class BoxCloser:
    """Closes single boxes by neuron splits.

    Attributes:
        boxes: the search by input splits that they come from.
        slope_steps, branch_steps: ascent steps for the cases of a box, and for subproblems.
        record: told of cases (K, 1) and their bounds (K, 1) in a box.
        search: searches from given roots until it is told to stop.
    """

    boxes: InputSplit
    slope_steps: int
    branch_steps: int
    record: Callable[[Array, Array], None]
    search: Callable[[NeuronSplit, Batch, Callable[[], bool]], Counterexample | Reason | None]

    def close(
        self, batch: Batch, expired: Callable[[], bool]
    ) -> NeuronTrees | Counterexample | None:
        """Closed trees of all cases of one box, a witness, or None where time was up.

        Args:
            batch: one subproblem of the search by input splits.
            expired: asked before every batch of subproblems.
        """
        graph, cases = self.boxes.graph, self.boxes.cases
        unit = self.boxes.execution_unit
        bounds = self.boxes.bounds(batch, expired)
        if expired() or bounds.empty[0]:
            return None  # nothing is in it: for input splits to see
        free = FreeRelaxation.build(graph, bounds.boxes, unit, planes=MOST_PLANES)
        trees = NeuronTrees(cases.problem, graph, free_neurons(free, bounds.boxes), (graph, []), {})
        numbers = batch["cases"][0]
        numbers = numbers[numbers >= 0]
        forms, xp = cases.forms(numbers[:, None]), array_module(numbers)
        lower = forms.pull(bounds.relaxation).lower
        found = optimise(
            free,
            forms,
            bounds.boxes[graph.output],
            Start.at_form(xp.where(forms.used, lower, xp.inf).argmin(axis=1), forms),
            steps=self.slope_steps,
            expired=expired,
        )
        self.record(numbers[:, None], found.lower[:, None])
        refuted = to_host(found.lower > 0)
        closed = trees.plant(cases.problem.case_disjunct[to_host(numbers)[refuted]])
        trees.close(closed, found.best, np.flatnonzero(refuted), np.zeros((len(closed), 0)))
        if refuted.all():
            return trees
        left = found.take(xp.flatnonzero(~(found.lower > 0))).best
        brancher = NeuronSplit(
            graph,
            cases,
            to_host(numbers)[~refuted],
            bounds.boxes,
            Start(left.positions, {}, left.weights, left.anchor),
            self.branch_steps,
            trees,
            unit,
        )
        answer = self.search(brancher, brancher.roots(), expired)
        if isinstance(answer, Counterexample):
            return answer
        return trees if answer is None else None


@dataclass(eq=False)
class Mixing:
    """Hands boxes of a search by input splits over to neuron splits where these are quicker.

    Attributes:
        frontier: the open boxes.
        closer: closes single boxes.
        race: splits inputs below given boxes for some seconds; whether that closed them all, or a
            witness. What is left is put back.
        deadline: of the run.
        found: a witness.
        count: boxes closed.
    """

    frontier: Frontier
    closer: BoxCloser
    race: Callable[[Frontier, float], bool | Counterexample]
    deadline: Deadline
    found: Counterexample | None = None
    count: int = 0
    _seconds: float = 0.0
    _next: float = 0.0
    _mean: float = 0.0
    _handing: bool = False
    _total: float = field(default=np.inf)

    def __post_init__(self) -> None:
        self._started, self._next = self.deadline.elapsed, _PATIENCE

    def enough(self) -> bool:
        """Between two batches of the search: close some boxes; whether a witness was found."""
        if not self._handing and self._elapsed >= self._next:
            before = self.deadline.elapsed
            self._compare()
            self._seconds += self.deadline.elapsed - before
        while self._handing and len(self.frontier) and not self.deadline.expired():
            if not self._close(_OUTLIER * self._mean):
                self._handing, self._next = False, _LATER * self._elapsed
        return self.found is not None

    @property
    def _elapsed(self) -> float:
        """Seconds of input splits so far."""
        return self.deadline.elapsed - self._started - self._seconds

    def _compare(self) -> None:
        """Try both ways to split on a few of the worst boxes each."""
        elapsed = self._elapsed
        self._next = _MUCH_LATER * elapsed
        if len(self.frontier) < 2 * _SAMPLE:
            return
        others, scores = self.frontier.pop_half(_SAMPLE)
        started = self.deadline.elapsed
        closed = all(self._close(0.0) for _ in range(_SAMPLE))
        taken = self.deadline.elapsed - started
        rivals = Frontier()
        rivals.push(others, scores)
        won: bool | Counterexample = False
        if closed and not self.deadline.expired():
            won = self.race(rivals, taken)
        if len(rivals):
            self.frontier.push(*rivals.pop_scored(len(rivals)))
        if isinstance(won, Counterexample):
            self.found = won
        if self.found or not closed or won:
            return
        self._mean, self._next = taken / _SAMPLE, _LATER * elapsed
        rest = len(self.frontier) * self._mean
        last, self._total = self._total, rest + elapsed
        self._handing = rest < elapsed or self._total >= last
        _log.info(
            "neuron splits close boxes in %.2g s, %d are open%s",
            self._mean,
            len(self.frontier),
            ": they are handed over" if self._handing else "",
        )

    def _close(self, seconds: float) -> bool:
        """Close the worst box in about the given time; put it back if that fails."""
        batch, score = self.frontier.pop_scored(1)
        started = self.deadline.elapsed
        seconds = max(seconds, _LEAST_SECONDS, _SHARE * self._elapsed)
        limit = started + seconds
        trees = self.closer.close(
            batch, lambda: self.deadline.elapsed > limit or self.deadline.expired()
        )
        self._seconds += self.deadline.elapsed - started if self._handing else 0.0
        if isinstance(trees, Counterexample):
            self.found = trees
        if not isinstance(trees, NeuronTrees):
            self.frontier.push(batch, score)
            return False
        self.count += 1
        self.closer.boxes.trees.hand(int(batch["node"][0]), trees)
        return True
