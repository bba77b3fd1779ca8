"""Bounds of layers where a case holds: what is to be refuted may be assumed on the way.

A case asks for g_r <= 0 for all its rows r, which are linear in the output. All that has to be
refuted are points where this is true, and for those a neuron z_i is at least

    min z_i + sum_r w_r g_r        for any w >= 0,

the bound of one backward pass that starts at the output with ``sum_r w_r g_r`` and takes up e_i
when it reaches z_i (Kotha, Brix, Kolter, Dvijotham and Zhang, *Provably bounding neural network
preimages*, 2023); upper bounds are the same with -e_i. Slopes, weights and the multipliers of
split constraints are variables of one ascent for each neuron. Tighter bounds of layers raise the
bound of the case, which makes the next round tighter still: what is nearly refuted is refuted after
two or three rounds, mostly by bounds that contradict each other, and what is not nearly so gains
nothing at all (`onnxcert.search.narrowing` has the numbers).

The bounds belong to the case, and hold nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxcert.arrays import Array, IntArray, array_module, to_host
from onnxcert.bounds.backward import unstable_neurons
from onnxcert.bounds.intermediate import MOST_POSITIONS, tighten
from onnxcert.bounds.optimised import (
    ASCENT_NUMBERS,
    Forms,
    FreeRelaxation,
    Optimised,
    Sought,
    Splits,
    Start,
    optimise,
)
from onnxcert.graph import Graph
from onnxcert.sets import Box

_RATE = 0.25
"""The first weight of a case is this share of a neuron's width for what its bound lacks of zero."""

_LITTLE = 0.95
"""Share of the widths of the last layer's unstable neurons of which more must go. Where they kept
more, no case of mnist_fc, eran or sri_resnet was refuted in the end."""


@dataclass(frozen=True, eq=False)
class NarrowedRows:
    """Bounds of neurons on one side that became better, and the variables that give them.

    Attributes:
        target: the pre-activation.
        sign: 1.0 for lower bounds, -1.0 for upper ones.
        index: (K,) numbers of the neurons, increasing.
        best: slopes, multipliers and weights, K rows.
    """

    target: str
    sign: float
    index: IntArray
    best: Start


@dataclass(frozen=True, eq=False)
class Narrowing:
    """One round over all layers, for one case.

    Attributes:
        graph: the network.
        forms: the rows of the case, a batch of one.
        splits: what is assumed beyond the case, a batch of one.
        steps: of the ascent for each neuron.
        expired: asked before each block of rows.
        execution_unit: unit roundoff of executions for which all bounds hold; 0 for none.
    """

    graph: Graph
    forms: Forms
    splits: Splits
    steps: int
    expired: Callable[[], bool]
    execution_unit: float = 0.0

    def run(
        self,
        boxes: Mapping[str, Box],
        found: Optimised,
        record: Callable[[NarrowedRows], None] = lambda rows: None,
    ) -> dict[str, Box]:
        """Narrow the bounds of all layers, from the last to the first.

        If the last one gains next to nothing, so would the others, and they are left as they are.

        Args:
            boxes: bounds of every value, batches of one.
            found: a bound of the case over them, not positive; its variables are where the ascents
                begin.
            record: called with all rows that are better than what is known then.

        Returns:
            Bounds of every value at points of the case, nowhere looser; lower bounds above upper
            ones where there is no such point. They follow from the boxes given and the rows
            recorded, one after the other, and from intervals at the end.
        """
        result = dict(boxes)
        columns = sum(self.graph.sizes[name] for name in found.best.positions)
        room, last = MOST_POSITIONS, True
        for name in reversed(list(self.graph.pre_activations)):
            if name == self.graph.input:  # whose bounds are the specification's
                continue
            chosen = self._candidates(name, result[name])
            if len(chosen) == 0:
                continue
            free = FreeRelaxation.build(self.graph, result, self.execution_unit, planes=True)
            if name not in free.relaxation.sums:  # what reads it does not vary
                continue
            size = sum(default.shape[1] for default in free.default.values())
            step = max(8, ASCENT_NUMBERS // max(1, size))
            for start in range(0, len(chosen), step):
                index = chosen[start : start + step]
                for sign in (1.0, -1.0):
                    room -= len(index) * columns
                    if room < 0 or self.expired():
                        return self._enclose(result)
                    rows = self._bound(free, result, name, index, sign, found)
                    result[name] = _take(rows, sign, index, name, result[name], record)
            if result[name].empty.any():
                return result
            after, before = (_width(part[name])[chosen].sum() for part in (result, boxes))
            if last and after > _LITTLE * before:
                break
            last = False
        return self._enclose(result)

    def _candidates(self, name: str, box: Box) -> IntArray:
        """Unstable neurons that no split constrains."""
        unstable = unstable_neurons(self.graph, name, box)[0]
        if name in self.splits.signs:
            unstable &= self.splits.signs[name][0] == 0
        return np.flatnonzero(to_host(unstable))

    def _enclose(self, boxes: Mapping[str, Box]) -> dict[str, Box]:
        return tighten(self.graph, boxes, steps=0, execution_unit=self.execution_unit)

    def _bound(
        self,
        free: FreeRelaxation,
        boxes: Mapping[str, Box],
        name: str,
        index: IntArray,
        sign: float,
        found: Optimised,
    ) -> Optimised:
        """Lower bounds of ``sign * z[index]`` at points of the case."""
        box, count = boxes[name], len(index)
        xp = array_module(box.lower)
        rows = xp.zeros((count, box.lower.shape[1]))
        rows[xp.arange(count), index] = sign
        width = _width(box)[index]
        rate = (_RATE * width / xp.maximum(-found.lower, 1e-30))[:, None]
        every = xp.zeros(count, dtype=int)
        start = found.best.take(every)
        multipliers = {key: rate * value for key, value in start.multipliers.items()}
        start = replace(start, multipliers=multipliers, weights=rate * start.weights, shares={})
        return optimise(
            free,
            self.forms.take(every),
            boxes[self.graph.output],
            start,
            splits=self.splits.take(every),
            steps=self.steps,
            expired=self.expired,
            sought=Sought(name, rows, rate),
        )


def _width(box: Box) -> Array:
    """Widths of a batch of one, (n,)."""
    return (box.upper - box.lower)[0]  # type: ignore[no-any-return]


def _take(
    found: Optimised,
    sign: float,
    index: IntArray,
    name: str,
    box: Box,
    record: Callable[[NarrowedRows], None],
) -> Box:
    """The box with the bounds that are better, which are recorded."""
    lower, upper = box.lower.copy(), box.upper.copy()
    side = lower if sign > 0 else upper
    better = to_host(found.lower > sign * side[0, index])
    improved = index[better]
    if len(improved):
        side[0, improved] = sign * found.lower[better]
        record(NarrowedRows(name, sign, improved, found.best.take(better)))
    return Box(lower, upper)
