"""Branch and bound over inputs, for networks with few of them.

A subproblem is a box with the cases still open on it, and what its parent knew about every
pre-activation: intersecting with that keeps a child at least as tight as its parent and leaves
most neurons stable, so that only the rest get backward rows. What these bounds do not refute is
tried again with better slopes for the one form that is closest (`onnxcert.bounds.ascent`), and a
box is cut in the middle of the input that counts most for that form and for what its relaxation
loses (`onnxcert.search.steepness`).

Cutting a box several times at once, going by what the last cuts gained, spares inner boxes, but on
ACAS Xu bounds rise by fits and starts: property 2 of 4_2 then takes 18.8 CPU seconds instead of
13.9, and 13.4 if it is done only where four times as many cuts seem to be needed, which gains
nothing elsewhere. It is done over folded networks only.

What was tried, in boxes on ACAS Xu, property 3 of network 1_1, 5 of 1_1, 9 of 3_3, 6 of 1_1, and a
sixteenth of property 2 of 4_2 (four rows in a conjunction): the smear of the form alone takes 4319,
5709, 3419, 9046, 20567. Bounding both halves for every input and taking the best sum of bounds:
1231, over 10000, 2139, 4078, over 25000; while bounds are loose the best first step is a bad guide.
The smear of interval gradients: 10221, 3649, 3545, 5264, 3703. The rule here: 1357, 2609, 2373,
4936, 3007; it changes by 5 % when the losses count half or eight times as much. With the ascent:
523, 1209, 2011, 4762, 775. Clipping inner boxes by the raised forms as well saves 2 to 25 %, for
which a checker would have to raise forms at every node and not only at leaves. On open boxes of
property 2 the exact linear program over all rows refuted none that `combine_rows` did not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from onnxcert.arrays import Array, IntArray, array_module, concatenate, to_host
from onnxcert.bounds.ascent import RATE, STEPS, Raised, raise_forms
from onnxcert.bounds.crown import Bounds, crown_bounds
from onnxcert.bounds.layered import Layered
from onnxcert.graph import Graph
from onnxcert.proof.trace import NOTHING, Cut, InputTrees
from onnxcert.search.branching import Bounded, Brancher, Children
from onnxcert.search.cases import Cases
from onnxcert.search.clipping import clip_box, combine_rows
from onnxcert.search.frontier import Batch, join, take
from onnxcert.search.steepness import MOST_INPUTS, steepness
from onnxcert.sets import Ball, Box

_KNOWN_LIMIT = 1 << 16
"""Pre-activations up to which a subproblem remembers its parent's bounds: 1 MB. With them the
boxes of cifar_biasfield 12, of 29 thousand, have half as many rows and are bounded by -9.2 after
four cuts instead of -13.6."""

_SPARE = 0.25
"""Of a cut that is not planned: bounds may gain more."""

_ASCENT_NUMBERS = 1 << 18
"""Values of all layers in one ascent, so that its temporaries stay in cache."""

_THINNEST = 1 / 32
"""An input cut to less than this share of the widest one, both relative to the root, has to wait.

The steepness of forms says nothing of an input on which only the relaxation gap depends: with lines
that happen to be flat there, one steep input would be halved until nothing is left of it.
"""

_FEW_VALUES = 1 << 14
"""Combinations of whole inputs in one box, up to which these are cut before any others: they look
up tables, on which forms hang in no way that steepness sees."""


@dataclass(frozen=True)
class _State:
    """What `InputSplit.bound` leaves for `InputSplit.split`.

    Attributes:
        steepness: of the worst case's form (`onnxcert.search.steepness`), (B, n_in).
        open_cases: (B, C), -1 where refuted.
        box: the part of each box that the linear bounds leave to the open cases.
        known: bounds of pre-activations for the children.
        weights: of the rows in the best bound of each case, (B, C, R).
        combined: rows of the batch, numbers of cases, and weights of the sums that refute them.
        bounds: of the boxes.
    """

    steepness: Array
    open_cases: Array
    box: Box
    known: Batch
    weights: Array
    combined: tuple[Array, Array, Array]
    bounds: Bounds


@dataclass
class _CaseForms:
    """What linear forms say of each case on each box.

    Attributes:
        lower: best bound, (B, C); infinite where the rows leave nothing of the box.
        coefficients: of the form that has this bound, (B, C, n_in).
        weights: of the rows in it, (B, C, R).
        low, high: the part of the box where all rows can be <= 0, (B, C, n_in).
    """

    lower: Array
    coefficients: Array
    weights: Array
    low: Array
    high: Array

    @classmethod
    def find(
        cls,
        box: Box,
        coefficients: Array,
        lower: Array,
        used: Array,
        shape: tuple[int, int],
        whole: Array,
    ) -> _CaseForms:
        """Clip the boxes and combine the rows of each case.

        Args:
            box: (B, n_in).
            coefficients, lower, used: of rows (B, C x R), and which are there.
            shape: (B, C).
            whole: (n_in,) which inputs are whole numbers.
        """
        xp = array_module(lower)
        size = coefficients.shape[-1]
        coefficients = coefficients.reshape(*shape, -1, size)
        lower, used = lower.reshape(*shape, -1), used.reshape(*shape, -1)
        if isinstance(box, Ball):
            return cls._over_ball(box, coefficients, xp.where(used, lower, -xp.inf))
        best, weights = lower[:, :, 0].copy(), xp.ones(used.shape)
        rows, low, high = (xp.zeros((*shape, size)) for _ in range(3))
        rows[:] = coefficients[:, :, 0]
        for case in range(shape[1]):
            arguments = coefficients[:, case], lower[:, case], used[:, case]
            if used.shape[2] > 1:
                combined = combine_rows(box, *arguments)
                best[:, case], rows[:, case], weights[:, case] = combined
            part = clip_box(box, *arguments)
            low[:, case], high[:, case] = part.lower, part.upper
        if whole.any():
            low[:, :, whole] = xp.ceil(low[:, :, whole])
            high[:, :, whole] = xp.floor(high[:, :, whole])
        # What no row refutes alone may still be refuted by several, each from its side.
        empty = (low > high).any(axis=2) & ~(best > 0)
        return cls(xp.where(empty, xp.inf, best), rows, weights, low, high)

    @classmethod
    def _over_ball(cls, ball: Ball, coefficients: Array, lower: Array) -> _CaseForms:
        """The best row of each case: the bounds are not those over the box, and clip nothing."""
        xp = array_module(lower)
        best = lower.argmax(axis=2)[:, :, None]
        weights = 1.0 * (xp.arange(lower.shape[2]) == best)
        shape = coefficients.shape[:2] + coefficients.shape[3:]
        return cls(
            xp.take_along_axis(lower, best, axis=2)[:, :, 0],
            xp.take_along_axis(coefficients, best[:, :, :, None], axis=2)[:, :, 0],
            weights,
            xp.broadcast_to(ball.lower[:, None], shape).copy(),
            xp.broadcast_to(ball.upper[:, None], shape).copy(),
        )

    def improve(self, node: Array, column: Array, raised: Raised) -> None:
        """Take better bounds of some cases (P,) and the forms that have them."""
        better = raised.lower > self.lower[node, column]
        node, column = node[better], column[better]
        self.lower[node, column] = raised.lower[better]
        self.coefficients[node, column] = raised.coefficients[better]

    def hull(self, still: Array) -> Box:
        """What is left to the cases that are open still; empty where there are none."""
        xp = array_module(still)
        low = xp.where(still[:, :, None], self.low, xp.inf).min(axis=1)
        return Box(low, xp.where(still[:, :, None], self.high, -xp.inf).max(axis=1))


@dataclass(frozen=True)
class InputSplit(Brancher):
    """Boxes, cut at the middle of one input.

    Attributes:
        graph: the network.
        cases: what is to be refuted.
        open_cases: (K,) indices of the cases still open.
        trees: where decisions are noted.
        execution_unit: as in `onnxcert.bounds.crown.crown_bounds`.
        steps, rate: of the ascent.
        most_cuts: of a box before any part of it is bounded.
        layered: the graph as it pulls rows of single neurons back, if it is a folded one.
    """

    graph: Graph
    cases: Cases
    open_cases: Array
    trees: InputTrees
    execution_unit: float = 0.0
    steps: int = STEPS
    rate: float = RATE
    most_cuts: int = 1
    layered: Layered | None = None

    @cached_property
    def layers(self) -> dict[str, slice]:
        """Pre-activation -> its columns in the remembered bounds."""
        columns, start = {}, 0
        for node in self.graph.nodes:
            if node.name in self.graph.pre_activations and node.inputs != (self.graph.input,):
                columns[node.name] = slice(start, start + self.graph.sizes[node.name])
                start += self.graph.sizes[node.name]
        return columns if start <= _KNOWN_LIMIT else {}

    @cached_property
    def _scale(self) -> Array:
        """The largest width of each input, infinite where it hardly varies at all: (n_in,)."""
        inputs = self.cases.problem.inputs
        width = np.where(inputs.varies, inputs.upper - inputs.lower, 0.0).max(axis=0)
        scale = np.where(width > 0, width, np.inf)
        return array_module(self.cases.offset).asarray(scale)  # type: ignore[no-any-return]

    @cached_property
    def whole(self) -> Array:
        """Which inputs may be taken as whole numbers (rule R24 of the checker), (n_in,) booleans.

        Only floors read them, no row does, and no ellipsoid.
        """
        problem = self.cases.problem
        whole = np.zeros(self.graph.input_size, bool)
        whole[self.graph.floored] = True
        if isinstance(problem.inputs, Ball):
            whole[:] = False
        elif problem.input_rows is not None:
            rows = problem.case_rows[to_host(self.open_cases)]
            whole &= ~problem.input_rows[rows[rows >= 0]].any(axis=0)
        return array_module(self.cases.offset).asarray(whole)  # type: ignore[no-any-return]

    @property
    def bytes_per_subproblem(self) -> int:
        """Values of every layer, a row block, and the rows of the cases."""
        widest = max(self.graph.sizes.values())
        rows = 4 + int(self.cases.rows.shape[1]) + min(MOST_INPUTS, self.graph.input_size)
        return int(8 * (6 * sum(self.graph.sizes.values()) + 8 * rows * widest))

    def roots(self) -> Batch:
        """One box each, with all of its open cases."""
        boxes, cases = self.root_cases
        lower, upper = self.root_sides
        xp = array_module(self.cases.offset)
        batch = {
            "node": xp.asarray(self.trees.plant(self.numbers(cases))),
            "lower": lower,
            "upper": upper,
            "cases": xp.asarray(cases),
        }
        return batch | self._ellipsoids(boxes) | self._nothing_known(len(boxes))

    @cached_property
    def root_cases(self) -> tuple[IntArray, IntArray]:
        """Boxes of the problem with open cases (R,), and these, (R, C) with -1 for none."""
        boxes = self.cases.problem.case_box[self.open_cases]
        used, position, counts = np.unique(boxes, return_inverse=True, return_counts=True)
        cases = np.full((len(used), counts.max()), -1, dtype=np.int64)
        order = np.argsort(position, kind="stable")
        column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        cases[position[order], column] = self.open_cases[order]
        return used, cases

    @property
    def root_sides(self) -> tuple[Array, Array]:
        """Lower and upper sides of these boxes, (R, n_in) each, of whole inputs the floors."""
        problem, boxes = self.cases.problem, self.root_cases[0]
        xp = array_module(self.cases.offset)
        sides = (xp.asarray(side[boxes]) for side in (problem.lower, problem.upper))
        lower, upper = (xp.where(self.whole, xp.floor(side), side) for side in sides)
        return lower, upper

    def reopen(self, nodes: Array, lower: Array, upper: Array, cases: Array) -> Batch:
        """Both halves of leaves that turned out not to be refuted, cut at the widest input.

        Args:
            nodes: (B,) leaves of the trees.
            lower, upper: (B, n_in) their boxes.
            cases: (B, C) the cases open there, -1 for none.
        """
        xp = array_module(self.cases.offset)
        chosen = xp.asarray(((upper - lower) / to_host(self._scale)).argmax(axis=1))
        each = np.arange(len(nodes))
        count = 2 * len(nodes)
        middle = 0.5 * lower[each, chosen] + 0.5 * upper[each, chosen]
        below, above = self._ends(xp.asarray(middle), xp.asarray(chosen))
        batch = {
            "node": xp.asarray(np.concatenate(self.trees.step(NOTHING, nodes, chosen))),
            "lower": xp.asarray(np.concatenate([lower, lower])),
            "upper": xp.asarray(np.concatenate([upper, upper])),
            "cases": xp.asarray(np.concatenate([cases, cases])),
        }
        batch["upper"][: len(nodes)][each, chosen] = below
        batch["lower"][len(nodes) :][each, chosen] = above
        inputs = self._ellipsoids(np.tile(self.cases.problem.case_box[cases.max(axis=1)], 2))
        return batch | inputs | self._nothing_known(count)

    def begun(self, nodes: Array, box: Box, cases: Array) -> Batch:
        """Boxes that nothing is known of (B,), with nodes of the trees and open cases (B, C)."""
        batch = {"node": nodes, "lower": box.lower, "upper": box.upper, "cases": cases}
        return batch | self._nothing_known(len(nodes))

    def _ellipsoids(self, numbers: IntArray) -> Batch:
        """What cuts some of the problem's boxes; nothing where it has no ellipsoids."""
        inputs = self.cases.problem.inputs
        if not isinstance(inputs, Ball):
            return {}
        xp = array_module(self.cases.offset)
        return {name: xp.asarray(getattr(inputs, name)[numbers]) for name in ("center", "axes")}

    @staticmethod
    def _inputs(batch: Batch) -> Box:
        if "center" in batch:
            return Ball(batch["lower"], batch["upper"], batch["center"], batch["axes"])
        return Box(batch["lower"], batch["upper"])

    def _nothing_known(self, count: int) -> Batch:
        xp = array_module(self.cases.offset)
        above = {"above": xp.full(count, -xp.inf), "gain": xp.zeros(count)}
        above["cuts"] = xp.ones(count, dtype=np.int64)
        width = sum(s.stop - s.start for s in self.layers.values())
        if not width:
            return above
        sides = (("known_lower", -xp.inf), ("known_upper", xp.inf))
        return above | {name: xp.full((count, width), value) for name, value in sides}

    def numbers(self, cases: Array) -> IntArray:
        """Cases as the whole query counts them, -1 for none."""
        cases = to_host(cases)
        numbers: IntArray = self.cases.problem.case_disjunct[cases]
        return np.where(cases >= 0, numbers, -1)

    def bounds(self, batch: Batch, expired: Callable[[], bool]) -> Bounds:
        """CROWN bounds of every value over each box, and what its parent knew."""
        known = {
            name: Box(batch["known_lower"][:, columns], batch["known_upper"][:, columns])
            for name, columns in self.layers.items()
        }
        return crown_bounds(
            self.graph,
            self._inputs(batch),
            known=known,
            decide=True,
            expired=expired,
            execution_unit=self.execution_unit,
            layered=self.layered,
        )

    def bound(self, batch: Batch, expired: Callable[[], bool]) -> Bounded:
        """CROWN bounds per box, one pass for the rows of all open cases, an ascent for the rest."""
        bounds = self.bounds(batch, expired)
        box = bounds.boxes[self.graph.input]
        cases = batch["cases"]
        xp = array_module(cases)
        forms = self.cases.forms(cases)
        pulled = forms.pull(bounds.relaxation)
        over = forms.over(bounds.boxes[self.graph.output], box)
        best = xp.maximum(pulled.lower, over)
        refuted = self.cases.refuted(cases, best) | bounds.empty[:, None]
        found = _CaseForms.find(
            box, pulled.coefficients, pulled.lower, forms.used, cases.shape, self.whole
        )
        summed = (found.lower > 0) & xp.isfinite(found.lower) & ~refuted
        refuted = refuted | (found.lower > 0)

        node, column = xp.nonzero(~refuted)
        weights = found.weights[node, column]
        raised = self._raise(bounds, cases[node, column], weights, node, expired)
        found.improve(node, column, raised)
        closing = raised.lower > 0
        for table in (summed, refuted):
            table[node[closing], column[closing]] = True

        per_case = xp.where(refuted, xp.inf, found.lower)
        closed = cast(Array, refuted.all(axis=1))
        worst = per_case.argmin(axis=1)
        each = xp.arange(len(cases))
        guide = (column == worst[node]) & ~closed[node]
        steep = xp.zeros_like(box.lower)
        steep[node[guide]] = steepness(
            bounds.relaxation, bounds.boxes, node[guide], raised.take(guide), self._varying(box)
        )
        least = box.minimiser(found.coefficients[each, worst])
        open_cases = xp.where(refuted, -1, cases)
        # One row by itself needs no weight where the box is closed: a leaf is tried without it.
        noted = summed & ((found.weights.shape[2] > 1) | ~closed[:, None])
        node, column = xp.nonzero(noted)
        state = _State(
            steep,
            open_cases,
            found.hull(~refuted),
            self._remembered(bounds),
            found.weights,
            (node, self.numbers(cases[node, column]), found.weights[node, column]),
            bounds,
        )
        case_lower = xp.where(bounds.empty[:, None], xp.inf, found.lower)
        score, points = per_case[each, worst], least[~closed]
        return Bounded(closed, score, points, open_cases[~closed], cases, case_lower, state)

    def _raise(
        self,
        bounds: Bounds,
        cases: Array,
        weights: Array,
        node: Array,
        expired: Callable[[], bool],
    ) -> Raised:
        """Raise sums of the rows of cases (P,), each over the box of a node (P,) of the batch."""
        if len(node) == 0:
            xp = array_module(weights)
            return Raised(xp.zeros(0), xp.zeros((0, self.graph.input_size)), {})
        step = max(1, _ASCENT_NUMBERS // sum(self.graph.sizes.values()))
        parts = []
        for start in range(0, len(node), step):
            part = slice(start, start + step)
            index = node[part]
            boxes = {name: box.take(index) for name, box in bounds.boxes.items()}
            raised = raise_forms(
                self.graph,
                boxes,
                self.cases.forms(cases[part, None]),
                weights[part],
                steps=self.steps,
                rate=self.rate,
                execution_unit=self.execution_unit,
                expired=expired,
            )
            parts.append(raised)
        return Raised.join(parts)

    def _remembered(self, bounds: Bounds) -> Batch:
        return {
            f"known_{side}": concatenate(
                [getattr(bounds.boxes[name], side) for name in self.layers], axis=1
            )
            for side in ("lower", "upper")
            if self.layers
        }

    @staticmethod
    def _varying(box: Box) -> Array:
        vary: Array = array_module(box.lower).flatnonzero(box.varies.any(axis=0))
        return vary

    @staticmethod
    def weights(bounded: Bounded) -> Array:
        """Weights of the rows in the best bound of each case, (B, C, R)."""
        assert isinstance(bounded.state, _State)
        return bounded.state.weights

    @staticmethod
    def bounds_of(bounded: Bounded) -> Bounds:
        """Bounds of all values over the boxes of a batch."""
        assert isinstance(bounded.state, _State)
        return bounded.state.bounds

    def split(self, batch: Batch, bounded: Bounded) -> Children:
        """Halve what is left of each open box along its best input, and again as often as planned.

        What else the batch holds is handed on; ``how`` (B,) is for the certificate, see `Step`.
        """
        state = bounded.state
        assert isinstance(state, _State)
        xp, nodes = array_module(batch["lower"]), batch["node"]
        rows, numbers, weights = state.combined
        sums = nodes[rows], numbers, weights
        batch = {"how": xp.full(len(nodes), Cut.BOUNDED)} | batch | state.known
        batch |= {"lower": state.box.lower, "upper": state.box.upper, "cases": state.open_cases}
        batch |= {"steepness": state.steepness, "score": bounded.score}
        parent = self._plan(take(batch, ~bounded.closed))
        parent["cases"] = _pack(parent["cases"])
        where, middle, divisible = self._middle(parent)
        stuck = int((~divisible).sum())
        parent, where, middle = take(parent, divisible), where[divisible], middle[divisible]
        how = parent.pop("how")
        halves = self.trees.step(nodes[bounded.closed], parent["node"], where, sums, how)
        children = _halves(parent, where, self._ends(middle, where), halves)
        for number in range(1, self.most_cuts):
            where, middle, divisible = self._middle(children)
            again = (children["planned"] > number) & divisible
            if not again.any():
                break
            parent, where, middle = take(children, again), where[again], middle[again]
            halves = self.trees.step(NOTHING, parent["node"], where, how=Cut.AT_ONCE)
            ends = self._ends(middle, where)
            children = join([take(children, ~again), _halves(parent, where, ends, halves)])
        del children["steepness"], children["planned"]
        score = children.pop("score")
        return Children(children if len(score) else None, score, stuck)

    def _ends(self, middle: Array, where: Array) -> tuple[Array, Array]:
        """Where lower halves end and upper halves begin (B,), cut at some inputs (B,)."""
        xp, whole = array_module(middle), self.whole[where]
        below = xp.where(whole, xp.floor(middle), middle)
        return below, xp.where(whole, below + 1.0, middle)

    def _plan(self, boxes: Batch) -> Batch:
        """How often boxes are cut before their parts are bounded, and what the parts know of it."""
        xp, score = array_module(boxes["cuts"]), boxes["score"]
        gain = gain_of_cuts(boxes, score)
        planned = xp.ceil(cuts_left(score, gain) - _SPARE)
        return boxes | {
            "planned": xp.clip(planned, 1.0, self.most_cuts).astype(np.int64),
            "gain": gain,
            "above": score,
            "cuts": xp.zeros_like(boxes["cuts"]),
        }

    def _middle(self, boxes: Batch) -> tuple[Array, Array, Array]:
        """The best input to cut of each box, its middle, and whether it can be cut: (B,) each."""
        low, high = boxes["lower"], boxes["upper"]
        xp, width = array_module(low), high - low
        gain = boxes["steepness"] * width
        relative = width / self._scale
        wide = relative >= _THINNEST * relative.max(axis=1, keepdims=True, initial=0.0)
        gain = xp.where(wide, gain, 0.0)
        # Where the forms are flat the widest input is as good as any.
        gain = xp.where(gain.max(axis=1, keepdims=True, initial=0.0) > 0, gain, relative)
        if self.whole.any():
            values = xp.where(self.whole, width, 0.0)
            few = (values + 1.0).prod(axis=1, keepdims=True) <= _FEW_VALUES
            first = few & (values.max(axis=1, keepdims=True) > 0)
            gain = xp.where(first, values, gain)
        middle = low + 0.5 * width
        inside = xp.where(self.whole, low < high, (middle > low) & (middle < high))
        gain = xp.where(inside, gain, -1.0)
        chosen = gain.argmax(axis=1)
        each = xp.arange(len(chosen))
        return chosen, middle[each, chosen], gain[each, chosen] >= 0


def gain_of_cuts(boxes: Batch, score: Array) -> Array:
    """What one cut gained on the way to boxes with these bounds (B,); zero where nobody knows."""
    xp = array_module(score)
    known = xp.isfinite(score) & xp.isfinite(boxes["above"])
    gain = xp.where(known, score, 0.0) - xp.where(known, boxes["above"], 0.0)
    made: Array = xp.where(known, gain / boxes["cuts"], boxes["gain"])
    return made


def cuts_left(score: Array, gain: Array) -> Array:
    """How many cuts refute a box if each gains as much (B,); 1 where that is nothing."""
    xp = array_module(score)
    rises = (gain > 0) & xp.isfinite(score)
    left: Array = xp.where(rises, -score / xp.where(rises, gain, 1.0), 1.0)
    return left


def _halves(
    parent: Batch, where: Array, ends: tuple[Array, Array], nodes: tuple[IntArray, IntArray]
) -> Batch:
    """Lower halves of boxes, cut at an input, then the upper ones."""
    xp = array_module(where)
    each, low, high = xp.arange(len(where)), dict(parent), dict(parent)
    low["upper"], high["lower"] = parent["upper"].copy(), parent["lower"].copy()
    low["upper"][each, where], high["lower"][each, where] = ends
    low["node"], high["node"] = map(xp.asarray, nodes)
    low["cuts"] = high["cuts"] = parent["cuts"] + 1
    return {name: concatenate([low[name], high[name]]) for name in parent}


def _pack(cases: Array) -> Array:
    """Move open cases to the front and drop columns that are -1 everywhere."""
    xp = array_module(cases)
    if cases.shape[1] == 1 or len(cases) == 0:
        return cases
    order = xp.argsort(cases < 0, axis=1, kind="stable")
    width = max(1, int((cases >= 0).sum(axis=1).max()))
    return xp.take_along_axis(cases, order, axis=1)[:, :width]  # type: ignore[no-any-return]
