"""Cases that are refuted by assuming them: rounds of `onnxcert.bounds.narrowing` in a region.

Whether rounds pay shows at once. A case whose bound gains a tenth of what it lacks in the first
round mostly falls within four; one that is further from zero gains less than a hundredth, and goes
on to halves of the region, whose bounds are better. So cases are tried in the order of their
bounds, until one fails; and a bound much lower than that of the last failure is not tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxcert.arrays import Array, IntArray, array_module, to_host
from onnxcert.bounds.narrowing import NarrowedRows, Narrowing
from onnxcert.bounds.optimised import FreeRelaxation, Optimised, Splits, optimise
from onnxcert.graph import Graph
from onnxcert.proof.trace import NeuronTrees, free_neurons
from onnxcert.search.cases import Cases
from onnxcert.sets import Box

_log = logging.getLogger(__name__)

_GAIN = 0.05
"""Share of what a bound lacks that each round must bring."""

_ROUNDS = 12
"""At most."""

_LOWER, _RAISE = 0.8, 1.25
"""A case is not tried where it lacks more than this share of what the last failure lacked; after a
success, of what that lacked."""

_REGIONS = 6.0
"""Refuting all cases of a region may take as long as so many regions."""

_GUESS = 1.5
"""What refuting a case costs beside a region, before one was refuted."""

_NEWEST = 0.2
"""Weight of the last case in the mean of seconds."""

Boxes = Mapping[str, Box]


@dataclass(eq=False)
class Narrower:
    """Refutes open cases of regions, one by one.

    Attributes:
        graph: the network.
        cases: what is to be refuted.
        layer_steps, slope_steps: ascent steps for each row of a layer, and for the case.
        expired: asked before each block of rows.
        execution_unit: unit roundoff of executions for which all bounds hold; 0 for none.
        reach: the most that a case may lack to be tried.
        seconds: that refuting a case took lately, 0 if none was.
    """

    graph: Graph
    cases: Cases
    layer_steps: int
    slope_steps: int
    expired: Callable[[], bool]
    execution_unit: float = 0.0
    reach: float = np.inf
    seconds: float = 0.0

    def run(
        self,
        boxes: Boxes,
        numbers: IntArray,
        found: Optimised,
        path: tuple[IntArray, Splits],
        trees: NeuronTrees,
        cost: float,
    ) -> Array:
        """Refute some of the cases of a region, if all of them together may cost less than halves.

        Args:
            boxes: bounds of every value there, batches of one.
            numbers: (K,) the cases.
            found: their bounds.
            path: neurons (D,) that were split on the way to the region, in the count of the graph,
                and their constraints for each case.
            trees: of the region; they hand over to those of the cases that are refuted.
            cost: seconds that bounds and search of the region took.

        Returns:
            Which cases are refuted: (K,) on the host.
        """
        refuted = np.zeros(len(numbers), dtype=bool)
        lower = to_host(found.lower)
        for number in np.argsort(lower, kind="stable"):
            lacking, left = max(0.0, -float(lower[number])), np.count_nonzero(~refuted)
            dear = left * (self.seconds or _GUESS * cost) > _REGIONS * cost
            if dear or lacking > self.reach or not self.layer_steps or self.expired():
                break
            started = time.monotonic()
            index = array_module(found.lower).asarray([number])
            case = numbers[number : number + 1]
            first = self._refute(boxes, case, found.take(index), (path[0], path[1].take(index)))
            if first is None:
                self.reach = min(self.reach, _LOWER * lacking)
                break
            seconds = time.monotonic() - started
            self.seconds += (seconds - self.seconds) * (_NEWEST if self.seconds else 1.0)
            self.reach = max(self.reach, _RAISE * lacking)
            trees.hand(int(self.cases.problem.case_disjunct[case[0]]), first)
            refuted[number] = True
        return refuted

    def _refute(
        self, boxes: Boxes, case: IntArray, found: Optimised, path: tuple[IntArray, Splits]
    ) -> NeuronTrees | None:
        """The trees of the first round, which hand over to the next one; None if rounds fail."""
        xp = array_module(found.lower)
        forms = self.cases.forms(xp.asarray(case)[:, None])
        neurons, splits = path
        narrowing = Narrowing(
            self.graph, forms, splits, self.layer_steps, self.expired, self.execution_unit
        )
        disjunct = self.cases.problem.case_disjunct[case]
        first: NeuronTrees | None = None
        last: NeuronTrees | None = None
        for _ in range(_ROUNDS):
            trees = self._trees(boxes)
            first = first or trees
            if last is not None:
                last.hand(int(disjunct[0]), trees)

            def record(rows: NarrowedRows, trees: NeuronTrees = trees) -> None:
                multipliers = self._unsigned(neurons, rows.best.multipliers, len(rows.index))
                trees.narrow(rows, multipliers)

            boxes = narrowing.run(boxes, found, record)
            better = found
            empty = any(bool(box.empty.any()) for box in boxes.values())
            if not empty:
                free = FreeRelaxation.build(self.graph, boxes, self.execution_unit, planes=True)
                better = optimise(
                    free,
                    forms,
                    boxes[self.graph.output],
                    replace(found.best, shares={}),
                    splits=splits,
                    steps=self.slope_steps,
                    expired=self.expired,
                )
            if empty or bool(better.lower[0] > 0):
                multipliers = self._unsigned(neurons, better.best.multipliers, 1)
                trees.close(trees.plant(disjunct), better.best, xp.arange(1), multipliers)
                return first
            gained = float(better.lower[0] - found.lower[0])
            _log.debug("case %d narrowed: %g, gained %g", case[0], better.lower[0], gained)
            if not gained >= _GAIN * -float(found.lower[0]) or self.expired():
                break
            found, last = better, trees
        return None

    def _trees(self, boxes: Boxes) -> NeuronTrees:
        free = FreeRelaxation.build(self.graph, boxes, self.execution_unit, planes=True)
        columns = free_neurons(free, boxes)
        return NeuronTrees(self.cases.problem, self.graph, columns, (self.graph, []))

    def _unsigned(self, neurons: IntArray, multipliers: Mapping[str, Array], count: int) -> Array:
        """Multipliers of each split of the path, (count, D); of a neuron's latest one only."""
        result = np.zeros((count, len(neurons)))
        for place, neuron in enumerate(neurons.tolist()):
            name, number = self.graph.locate(neuron)
            if neuron not in neurons[place + 1 :] and name in multipliers:
                result[:, place] = abs(to_host(multipliers[name][:, number]))
        return result
