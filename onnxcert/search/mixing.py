"""Neuron splits in boxes that input splits have made.

Halving an input tightens all bounds at once, but where few neurons of a box are unstable they are
what its bound lacks, and splits of just those close it, while by halves it takes hundreds of boxes.
A network of 1,048 neurons over eight inputs has three to nine of 264 relus unstable in boxes whose
bound is -1 to -5: neuron splits close them in 0.05 to 2 seconds, input splits of the same boxes
take 20 to more than 2,000 boxes.

So the search by input splits stops now and then, at times that grow with it. A few of its worst
boxes are handed to neuron splits, as many others are split further for as long as that took. Once
neuron splits are quicker all boxes that are left are handed over, worst first, and those that take
much longer than the others before are halved: they choose between both ways one by one. Waiting
until halves of all boxes would not be closed any quicker made 1,600 boxes of 350, each of which
took more than half as long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

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

_FAILURES = 1
"""Of these, how many neuron splits may leave open."""

_LEAST_SECONDS = 0.25
"""Seconds that neuron splits may take in one box, at least."""

_SHARE = 0.02
"""The same as a share of the time that input splits have taken."""

_OUTLIER = 4.0
"""How many times the mean time of a box neuron splits may take before the box is halved."""

_LATER = 2.0
"""How many times longer the search is when both ways are compared again: ACAS Xu 1_1 prop 6 pays
0.12 of 5 CPU seconds for that."""


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
        if "fold" in batch and batch["fold"][0] >= 0:
            return None  # over a folded network boxes are bounded at a fraction of the cost
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
        race: splits inputs below given boxes, for one batch and then for some seconds: None where
            that closed them all, INCOMPLETE where a box could not be split and is lost, another
            reason where some are left, or a witness.
        deadline: of the run.
        found: a witness.
        stuck: whether there were boxes that could not be split, so that nothing is refuted.
    """

    frontier: Frontier
    closer: BoxCloser
    race: Callable[[Frontier, float], Counterexample | Reason | None]
    deadline: Deadline
    found: Counterexample | None = None
    stuck: bool = False
    _elapsed: float = 0.0
    _next: float = 0.0
    _handing: bool = False
    _closed: int = 0
    _gained: float = 0.0
    _lost: float = 0.0

    def __post_init__(self) -> None:
        self._last, self._next = self.deadline.elapsed, _PATIENCE

    def enough(self) -> bool:
        """Between two batches of the search: close some boxes; whether a witness was found."""
        self._elapsed += self.deadline.elapsed - self._last  # of input splits, that is
        if not self._handing and self._elapsed >= self._next:
            self._compare()
        while self._handing and len(self.frontier) and not self._is_over:
            self._close_or_halve()
        self._last = self.deadline.elapsed
        return self.found is not None

    @property
    def _is_over(self) -> bool:
        return self.found is not None or self.deadline.expired()

    @property
    def _patience(self) -> float:
        """Seconds that one box may take."""
        return max(_LEAST_SECONDS, _SHARE * self._elapsed)

    def _compare(self) -> None:
        """Try both ways to split on a few of the worst boxes each."""
        self._next, patience = _LATER * self._elapsed, self._patience
        if len(self.frontier) < 2 * _SAMPLE:
            return
        rivals, back = Frontier(), Frontier()
        rivals.push(*self.frontier.pop_half(_SAMPLE))
        self._closed, self._gained, self._lost = 0, 0.0, 0.0
        while self._closed < _SAMPLE - len(back) and len(back) <= _FAILURES and not self._is_over:
            failed = self._close(patience)
            if failed is not None:
                back.push(*failed)
        lost = (
            len(back) > _FAILURES or self._is_over or self._race(rivals, self._gained + self._lost)
        )
        self._put_back(rivals)
        self._put_back(back)
        self._handing = not lost and not self._is_over
        if self._handing:
            mean, count = self._gained / self._closed, len(self.frontier)
            _log.info("neuron splits close boxes in %.2g s: %d are handed over", mean, count)

    def _race(self, boxes: Frontier, seconds: float) -> bool:
        """Whether splits of inputs close some boxes in a time."""
        answer = self.race(boxes, seconds)
        if isinstance(answer, Counterexample):
            self.found = answer
        self.stuck |= answer is Reason.INCOMPLETE
        return answer is None

    def _close_or_halve(self) -> None:
        """Close the worst box, or have it halved; inputs are split again if that is no success."""
        mean = self._gained / self._closed
        failed = self._close(max(_OUTLIER * mean, self._patience))
        if failed is None:
            return
        halves = Frontier()
        halves.push(*failed)
        if not self._is_over:
            self._race(halves, 0.0)
        self._put_back(halves)
        if self._lost > self._gained:
            self._handing, self._next = False, _LATER * self._elapsed

    def _put_back(self, boxes: Frontier) -> None:
        if len(boxes):
            self.frontier.push(*boxes.pop_scored(len(boxes)))

    def _close(self, seconds: float) -> tuple[Batch, Array] | None:
        """Close the worst box in about the given time; the box and its score if that fails."""
        batch, score = self.frontier.pop_scored(1)
        started = self.deadline.elapsed
        limit = self.deadline.slice(seconds)
        trees = self.closer.close(batch, limit.expired)
        spent = self.deadline.elapsed - started
        if isinstance(trees, NeuronTrees):
            self._closed, self._gained = self._closed + 1, self._gained + spent
            self.closer.boxes.trees.hand(int(batch["node"][0]), trees)
            return None
        self._lost += spent
        if isinstance(trees, Counterexample):
            self.found = trees
        return batch, score
