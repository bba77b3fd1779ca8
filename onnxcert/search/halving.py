"""Which neuron halves a region: the one whose halves have the best bounds, among a few.

Neurons are ranked by the gap between a curve and the line over it, at the point of a split, times
what the open cases owe to it: directly, by the rows of their bounds, and through the bounds of
later layers (`_trace_back`). The halves of the first dozen are bounded, all in one batch: layers
behind a split by intervals, the cases by two steps of an ascent. With rows for every neuron of
those layers choosing took half of the time of a search, and mnist_fc 256x4 prop 13 was further from
its end after 63 CPU seconds of regions (75 and 85 % with 6 and 12 neurons) than with intervals
after 50 (12 neurons: done; 24: 68 seconds; rows for the best 3 of 24: 64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import Array, IntArray, array_module, concatenate, to_host
from onnxcert.bounds.backward import pull_back
from onnxcert.bounds.execution import enclose
from onnxcert.bounds.optimised import (
    ASCENT_NUMBERS,
    MOST_PLANES,
    FreeRelaxation,
    Optimised,
    Splits,
    Start,
    optimise,
)
from onnxcert.graph import Graph
from onnxcert.ops.base import Elementwise
from onnxcert.search.cases import Cases
from onnxcert.sets import Box

_CANDIDATES = 12
"""Neurons whose halves are bounded before one is chosen."""

_STEPS = 2
"""Steps of the ascent that bounds the cases of a half."""

_MOST_ROWS = 1 << 24
"""Numbers in the rows that trace the influence of one layer's bounds."""

_SENSITIVITY = 0.25
"""How much of a change of a neuron's bounds reaches the line over it, roughly."""

Boxes = Mapping[str, Box]


@dataclass(frozen=True)
class Cut:
    """A neuron to split: its pre-activation, its place there, and the point."""

    name: str
    neuron: int
    point: float


Half = tuple[Cut, float]
"""A cut and the side that is kept: -1 is below the point, 1 above."""


@dataclass(frozen=True, eq=False)
class Halving:
    """Chooses a cut for open cases over given bounds.

    Attributes:
        graph: the network.
        cases: what is to be refuted.
        expired: asked before each batch.
        execution_unit: unit roundoff of executions for which all bounds hold; 0 for none.
    """

    graph: Graph
    cases: Cases
    expired: Callable[[], bool]
    execution_unit: float

    def choose(
        self, boxes: Boxes, numbers: IntArray, found: Optimised, splits: Splits
    ) -> Cut | None:
        """The cut below which a tree grows least, or None if there is none or no time is left.

        Args:
            boxes: bounds of every value, batches of one.
            numbers: (K,) open cases.
            found: bounds of these cases over the boxes, not refuted.
            splits: what is assumed beyond the boxes, (K, n).
        """
        cuts = self._promising(boxes, found)
        halves = [(cut, sign) for cut in cuts for sign in (-1.0, 1.0)]
        neurons = sum(self.graph.sizes[name] for name in found.best.positions)
        step = max(1, ASCENT_NUMBERS // max(1, neurons * len(numbers)))
        gains: list[Array] = []
        for start in range(0, len(halves), step):
            if self.expired():
                return None
            chunk = halves[start : start + step]
            gains.append(self._gains(chunk, boxes, numbers, found, splits))
        if not gains or self.expired():
            return None
        pairs = to_host(concatenate(gains)).reshape(len(cuts), 2)
        return cuts[int(np.argmin([_growth(*pair) for pair in pairs.tolist()]))]

    def _gains(
        self,
        halves: Sequence[Half],
        boxes: Boxes,
        numbers: IntArray,
        found: Optimised,
        splits: Splits,
    ) -> Array:
        """By how much the mean bound of the cases rises in each half; no further than to zero."""
        xp, count = array_module(found.lower), len(numbers)
        tight, empty = self._enclose(halves, boxes)
        lower = xp.zeros((len(halves), count))
        rest = xp.flatnonzero(~empty)
        if len(rest):
            half, start = xp.repeat(rest, count), found.best
            times = len(rest)
            there = {name: box.take(half) if len(box) > 1 else box for name, box in tight.items()}
            case = xp.tile(xp.asarray(numbers), times)
            result = optimise(
                FreeRelaxation.build(self.graph, there, self.execution_unit, planes=MOST_PLANES),
                self.cases.forms(case[:, None]),
                there[self.graph.output],
                Start(
                    {name: xp.tile(value, (times, 1)) for name, value in start.positions.items()},
                    {name: xp.tile(value, (times, 1)) for name, value in start.multipliers.items()},
                    xp.tile(start.weights, (times, 1)),
                    xp.tile(start.anchor, times),
                ),
                splits=self._splits([halves[h] for h in to_host(rest)], splits, case),
                steps=_STEPS,
                expired=self.expired,
            )
            lower[rest] = result.lower.reshape(times, count)
        return (xp.minimum(lower, 0.0) - found.lower).mean(axis=1)  # type: ignore[no-any-return]

    def _splits(self, halves: Sequence[Half], splits: Splits, cases: Array) -> Splits:
        """Those given and that of each half, for as many cases in every half."""
        xp, times = array_module(cases), len(halves)
        count = len(cases) // times
        signs, points = (
            {name: xp.tile(value, (times, 1)) for name, value in part.items()}
            for part in (splits.signs, splits.points)
        )
        for number, (cut, sign) in enumerate(halves):
            here = slice(number * count, (number + 1) * count)
            for part, value in ((signs, sign), (points, cut.point)):
                if cut.name not in part:
                    part[cut.name] = xp.zeros((times * count, self.graph.sizes[cut.name]))
                part[cut.name][here, cut.neuron] = value
        return Splits(signs, points)

    def _enclose(self, halves: Sequence[Half], boxes: Boxes) -> tuple[dict[str, Box], Array]:
        """Bounds of every value over each half, and which halves are seen to be empty.

        Values before all cuts keep their batch of one.
        """
        xp, count = array_module(boxes[self.graph.output].lower), len(halves)
        known = dict(boxes)
        for name in {cut.name for cut, _ in halves}:
            box = boxes[name].take(xp.zeros(count, dtype=int))
            for number, (cut, sign) in enumerate(halves):
                if cut.name == name:
                    side = box.lower if sign > 0 else box.upper
                    side[number, cut.neuron] = cut.point
            known[name] = box
        result = {self.graph.input: known[self.graph.input]}
        empty = xp.zeros(count, dtype=bool) | result[self.graph.input].empty
        for node in self.graph.nodes:
            box = known[node.name]
            if any(len(result[name]) > 1 for name in node.inputs):
                box = enclose(self.graph, node, result, self.execution_unit).intersect(box)
            result[node.name] = box
            empty = empty | box.empty
        return result, empty

    def _promising(self, boxes: Boxes, found: Optimised) -> list[Cut]:
        """The neurons whose split promises most."""
        xp = array_module(found.lower)
        influence = {name: abs(rows).mean(axis=0) for name, rows in found.activations.items()}
        free = FreeRelaxation.build(self.graph, boxes, self.execution_unit, planes=MOST_PLANES)
        free.choose(free.default)
        ranked: list[tuple[float, Cut]] = []
        for node in reversed(self.graph.nodes):
            op = node.op
            if not isinstance(op, Elementwise) or node.name not in influence:
                continue
            source = node.inputs[0]
            box = boxes[source]
            unstable = xp.flatnonzero(op.unstable(box)[0])
            if len(unstable) == 0:
                continue
            point = op.split_point(box)
            lines = op.relax(box)
            above = lines.upper_slope * point + lines.upper_offset - op.value(point)
            gap = (influence[node.name] * above[0])[unstable]
            for index in xp.argsort(-gap)[:_CANDIDATES].tolist():
                neuron = int(unstable[index])
                ranked.append((float(gap[index]), Cut(source, neuron, float(point[0, neuron]))))
            self._trace_back(free, source, unstable, influence[node.name][unstable], influence)
        ranked.sort(key=lambda entry: -entry[0])
        return [cut for _, cut in ranked[:_CANDIDATES]]

    def _trace_back(
        self,
        free: FreeRelaxation,
        source: str,
        neurons: Array,
        weight: Array,
        influence: dict[str, Array],
    ) -> None:
        """Add what the bounds of some neurons owe to the activations before them."""
        xp = array_module(weight)
        size = max(self.graph.sizes.values())
        kept = xp.argsort(-weight)[: max(1, _MOST_ROWS // size)]
        rows = xp.zeros((1, len(kept), self.graph.sizes[source]))
        rows[0, xp.arange(len(kept)), neurons[kept]] = 1.0
        pulled = pull_back(free.relaxation, source, rows, keep=True)
        for name, traced in pulled.activations.items():
            share = _SENSITIVITY * weight[kept] @ abs(traced[0])
            influence[name] = influence.get(name, 0.0) + share


def _growth(a: float, b: float) -> float:
    """The y for which exp(-a y) + exp(-b y) = 1; infinite unless both are positive."""
    if min(a, b) <= 0.0:
        return math.inf
    low, high = 0.0, math.log(2.0) / min(a, b)
    for _ in range(50):
        middle = 0.5 * (low + high)
        if math.exp(-a * middle) + math.exp(-b * middle) > 1.0:
            low = middle
        else:
            high = middle
    return high
