"""Branch and bound over a few whole numbers, where nothing else of the input varies.

Inputs that only floors read count as whole numbers: indices of what is cut out or overwritten. They
decide by way of tables, about which linear bounds know nothing while several entries are possible,
and of a whole image they would be wanted for every neuron. Where there are fewer combinations than
unstable neurons it is quicker to go down to single ones, which intervals are enough for; and all
entries of a table that are equal need no cuts. So boxes are bounded by intervals, and cut in the
middle of the widest input unless these refute them. The certificate has the cuts without bounds of
what is cut, so that the checker bounds leaves alone. Single points that intervals leave open are
bounded like any other box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from onnxcert.arrays import Array, IntArray, array_module, concatenate, to_host
from onnxcert.bounds.backward import unstable_neurons
from onnxcert.bounds.interval import interval_bounds
from onnxcert.proof.trace import Cut
from onnxcert.search.branching import Bounded, Brancher, Children
from onnxcert.search.frontier import Batch, take
from onnxcert.search.input_split import InputSplit
from onnxcert.sets import Box

MOST_POINTS = 1 << 16
"""Combinations in one box that are gone down to."""


@dataclass(frozen=True)
class _State:
    """What `WholeSplit.bound` leaves for `WholeSplit.split`.

    Attributes:
        open_cases: (B, C), -1 where refuted.
        points: (P,) which boxes of the batch are single points that intervals leave open.
        batch, bounded: what splits any boxes was given of those, and what it made of them.
    """

    open_cases: Array
    points: Array
    batch: Batch
    bounded: Bounded | None


@dataclass(frozen=True)
class WholeSplit(Brancher):
    """Boxes of whole numbers, cut in the middle of the widest.

    A batch holds the sides of inputs that vary, as images are large and whole inputs few.

    Attributes:
        boxes: splits any boxes of the same problem.
    """

    boxes: InputSplit

    @staticmethod
    def over(boxes: InputSplit) -> WholeSplit | None:
        """What splits so; None where other inputs vary, or points are more than neurons."""
        split = WholeSplit(boxes)
        columns = split._columns
        if not len(columns) or not boxes.whole[columns].all():
            return None
        lower, upper = split._root_sides
        points = (upper[:, columns] - lower[:, columns] + 1.0).prod(axis=1)
        if (points > MOST_POINTS).any() or (points > split._unstable(Box(lower, upper))).any():
            return None
        return split

    @cached_property
    def _varying(self) -> IntArray:
        """The inputs that vary, (v,)."""
        return np.flatnonzero(self.boxes.cases.problem.inputs.varies.any(axis=0))

    @cached_property
    def _root_sides(self) -> tuple[Array, Array]:
        """Lower and upper sides of the boxes that are begun with, (R, n_in) each."""
        return self.boxes.root_sides

    @property
    def _columns(self) -> Array:
        """The same where boxes lie."""
        return array_module(self.boxes.cases.offset).asarray(self._varying)  # type: ignore[no-any-return]

    def _unstable(self, box: Box) -> Array:
        """How many neurons intervals leave unstable on boxes, (B,)."""
        graph = self.boxes.graph
        boxes = interval_bounds(graph, box)
        names = graph.pre_activations
        counts = [unstable_neurons(graph, name, boxes[name]).sum(axis=1) for name in names]
        total: Array = sum(counts, array_module(box.lower).zeros(len(box)))
        return total

    @property
    def bytes_per_subproblem(self) -> int:
        """Intervals of all values, and some temporaries."""
        return 8 * 6 * sum(self.boxes.graph.sizes.values())

    def roots(self) -> Batch:
        """One box each, with all of its open cases."""
        boxes, cases = self.boxes.root_cases
        lower, upper = self._root_sides
        xp = array_module(lower)
        return {
            "node": xp.asarray(self.boxes.trees.plant(self.boxes.numbers(cases))),
            "low": lower[:, self._columns],
            "high": upper[:, self._columns],
            "root": xp.arange(len(boxes)),
            "cases": xp.asarray(cases),
        }

    def _sides(self, batch: Batch) -> tuple[Array, Array]:
        """Boxes of all inputs, (B, n_in) each side."""
        lower, upper = (side[batch["root"]] for side in self._root_sides)
        lower[:, self._columns], upper[:, self._columns] = batch["low"], batch["high"]
        return lower, upper

    def bound(self, batch: Batch, expired: Callable[[], bool]) -> Bounded:
        """Intervals of every value, and any bounds for single points that these leave open."""
        graph, cases = self.boxes.graph, batch["cases"]
        xp = array_module(cases)
        box = Box(*self._sides(batch))
        boxes = interval_bounds(graph, box, execution_unit=self.boxes.execution_unit)
        forms = self.boxes.cases.forms(cases)
        lower = forms.over(boxes[graph.output], box)
        refuted = self.boxes.cases.refuted(cases, lower)
        case_lower = xp.where(forms.used, lower, -xp.inf).reshape(*cases.shape, -1).max(axis=2)
        case_lower = xp.where(cases >= 0, case_lower, xp.inf)
        points = xp.flatnonzero(~refuted.all(axis=1) & (batch["low"] == batch["high"]).all(axis=1))
        state = _State(xp.where(refuted, -1, cases), points, {}, None)
        if len(points):
            some = take(batch, points)
            inner = self.boxes.begun(some["node"], box.take(points), state.open_cases[points])
            bounded = self.boxes.bound(inner, expired)
            state = _State(state.open_cases, points, inner, bounded)
            refuted[points] |= bounded.closed[:, None]
            known = inner["cases"] >= 0  # those that intervals leave open
            case_lower[points] = xp.where(known, bounded.case_lower, case_lower[points])
        closed = cast(Array, refuted.all(axis=1))
        middle = xp.floor(0.5 * batch["low"] + 0.5 * batch["high"])
        tried = 0.5 * box.lower + 0.5 * box.upper
        tried[:, self._columns] = middle
        score = xp.where(refuted, xp.inf, case_lower).min(axis=1)
        left = xp.where(refuted, -1, cases)
        return Bounded(closed, score, tried[~closed], left[~closed], cases, case_lower, state)

    def split(self, batch: Batch, bounded: Bounded) -> Children:
        """Halve every open box; points that are open still are stuck."""
        state = bounded.state
        assert isinstance(state, _State)
        xp, trees = array_module(batch["low"]), self.boxes.trees
        stuck = 0
        by_intervals = bounded.closed.copy()
        cut = ~bounded.closed
        if state.bounded is not None:
            by_intervals[state.points] = False
            cut[state.points] = False
            stuck = self.boxes.split(state.batch, state.bounded).stuck
        parent = take(batch | {"cases": state.open_cases, "score": bounded.score}, cut)
        width = parent["high"] - parent["low"]
        where = width.argmax(axis=1)
        nodes = trees.step(
            batch["node"][by_intervals],
            parent["node"],
            self._varying[to_host(where)],
            how=Cut.AT_ONCE,
        )
        each = xp.arange(len(where))
        middle = xp.floor(0.5 * parent["low"][each, where] + 0.5 * parent["high"][each, where])
        low, high = dict(parent), dict(parent)
        low["high"], high["low"] = parent["high"].copy(), parent["low"].copy()
        low["high"][each, where], high["low"][each, where] = middle, middle + 1.0
        low["node"], high["node"] = map(xp.asarray, nodes)
        children = {name: concatenate([low[name], high[name]]) for name in parent}
        score = children.pop("score")
        return Children(children if len(score) else None, score, stuck)
