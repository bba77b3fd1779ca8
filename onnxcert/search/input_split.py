"""Branch and bound over inputs, for networks with few of them.

A subproblem is a box with the cases still open on it, and what its parent knew about every
pre-activation: intersecting with that keeps a child at least as tight as its parent and leaves
most neurons stable, so that only the rest get backward rows. A box is cut in the middle of the
input where the linear forms of its worst case vary most over the box: coefficients times width,
the "smear" of interval analysis (Kearfott, *Rigorous Global Search*, 1996). Summing over all rows
of the case beats the steepest single row, and the best combination is no guide at all: on a thin
unsafe set (five rows in three dimensions) the sum needed 12 thousand boxes where the best row left
15 thousand open after 16 thousand closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from onnxcert.arrays import Array, IntArray, array_module, concatenate, to_host
from onnxcert.bounds.crown import crown_bounds
from onnxcert.graph import Graph
from onnxcert.proof.trace import NOTHING, InputTrees
from onnxcert.search.branching import Bounded, Brancher, Children
from onnxcert.search.cases import Cases
from onnxcert.search.clipping import clip_box, combine_rows
from onnxcert.search.frontier import Batch, take
from onnxcert.sets import Box

_KNOWN_LIMIT = 20_000
"""Pre-activations up to which a subproblem remembers its parent's bounds."""

_THINNEST = 1 / 32
"""An input cut to less than this share of the widest one, both relative to the root, has to wait.

The steepness of forms says nothing of an input on which only the relaxation gap depends: with lines
that happen to be flat there, one steep input would be halved until nothing is left of it.
"""


@dataclass(frozen=True)
class _State:
    """What `InputSplit.bound` leaves for `InputSplit.split`.

    Attributes:
        steepness: sum of the absolute coefficients of the worst case's forms, (B, n_in).
        open_cases: (B, C), -1 where refuted.
        box: the part of each box that the linear bounds leave to the open cases.
        known: bounds of pre-activations for the children.
        weights: of the rows in the best bound of each case, (B, C, R).
        combined: rows of the batch, numbers of cases, and weights of the sums that refute them.
    """

    steepness: Array
    open_cases: Array
    box: Box
    known: Batch
    weights: Array
    combined: tuple[Array, Array, Array]


@dataclass(frozen=True)
class InputSplit(Brancher):
    """Boxes, cut at the middle of one input.

    Attributes:
        graph: the network.
        cases: what is to be refuted.
        open_cases: (K,) indices of the cases still open.
        trees: where decisions are noted.
        execution_unit: as in `onnxcert.bounds.crown.crown_bounds`.
    """

    graph: Graph
    cases: Cases
    open_cases: Array
    trees: InputTrees
    execution_unit: float = 0.0

    @cached_property
    def _layers(self) -> dict[str, slice]:
        """Pre-activation -> its columns in the remembered bounds."""
        columns, start = {}, 0
        for node in self.graph.nodes:
            if node.name in self.graph.pre_activations and node.inputs != (self.graph.input,):
                columns[node.name] = slice(start, start + self.graph.sizes[node.name])
                start += self.graph.sizes[node.name]
        return columns if start <= _KNOWN_LIMIT else {}

    @cached_property
    def _scale(self) -> Array:
        """The largest width of each input, 1 where it never varies: (n_in,)."""
        problem = self.cases.problem
        width = (problem.upper - problem.lower).max(axis=0)
        scale = np.where(width > 0, width, 1.0)
        return array_module(self.cases.offset).asarray(scale)  # type: ignore[no-any-return]

    @property
    def bytes_per_subproblem(self) -> int:
        """Values of every layer, a row block, and the rows of the cases."""
        widest = max(self.graph.sizes.values())
        rows = 4 + int(self.cases.rows.shape[1])
        return int(8 * (6 * sum(self.graph.sizes.values()) + 8 * rows * widest))

    def roots(self) -> Batch:
        """One box each, with all of its open cases."""
        problem = self.cases.problem
        boxes = problem.case_box[self.open_cases]
        used, position, counts = np.unique(boxes, return_inverse=True, return_counts=True)
        cases = np.full((len(used), counts.max()), -1, dtype=np.int64)
        order = np.argsort(position, kind="stable")
        column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        cases[position[order], column] = self.open_cases[order]
        xp = array_module(self.cases.offset)
        batch = {
            "node": xp.asarray(self.trees.plant(self._numbers(cases))),
            "lower": xp.asarray(problem.lower[used]),
            "upper": xp.asarray(problem.upper[used]),
            "cases": xp.asarray(cases),
        }
        return batch | self._nothing_known(len(used))

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
        batch = {
            "node": xp.asarray(np.concatenate(self.trees.step(NOTHING, nodes, chosen))),
            "lower": xp.asarray(np.concatenate([lower, lower])),
            "upper": xp.asarray(np.concatenate([upper, upper])),
            "cases": xp.asarray(np.concatenate([cases, cases])),
        }
        batch["upper"][: len(nodes)][each, chosen] = xp.asarray(middle)
        batch["lower"][len(nodes) :][each, chosen] = xp.asarray(middle)
        return batch | self._nothing_known(count)

    def _nothing_known(self, count: int) -> Batch:
        xp = array_module(self.cases.offset)
        width = sum(s.stop - s.start for s in self._layers.values())
        if not width:
            return {}
        sides = (("known_lower", -xp.inf), ("known_upper", xp.inf))
        return {name: xp.full((count, width), value) for name, value in sides}

    def _numbers(self, cases: Array) -> IntArray:
        """Cases as the whole query counts them, -1 for none."""
        cases = to_host(cases)
        numbers: IntArray = self.cases.problem.case_disjunct[cases]
        return np.where(cases >= 0, numbers, -1)

    def bound(self, batch: Batch, expired: Callable[[], bool]) -> Bounded:
        """CROWN bounds per box, then one backward pass for the rows of all open cases."""
        xp = array_module(batch["lower"])
        box = Box(batch["lower"], batch["upper"])
        known = {
            name: Box(batch["known_lower"][:, columns], batch["known_upper"][:, columns])
            for name, columns in self._layers.items()
        }
        bounds = crown_bounds(
            self.graph, box, known=known, expired=expired, execution_unit=self.execution_unit
        )
        cases = batch["cases"]
        forms = self.cases.forms(cases)
        pulled = forms.pull(bounds.relaxation)
        lower = pulled.lower
        refuted = self.cases.refuted(cases, lower) | bounds.empty[:, None]
        forms_of = pulled.coefficients, lower, forms.used
        clipped, per_case, rows, smear, weights = self._per_case(box, *forms_of, refuted)
        node, column = xp.nonzero((per_case > 0) & xp.isfinite(per_case) & ~refuted)
        combined = node, self._numbers(cases[node, column]), weights[node, column]
        refuted = refuted | (per_case > 0)
        case_lower = xp.where(bounds.empty[:, None], xp.inf, per_case)
        per_case = xp.where(refuted, xp.inf, per_case)
        worst = per_case.argmin(axis=1)
        each = xp.arange(len(cases))
        coefficients = rows[each, worst]
        open_cases = xp.where(refuted, -1, cases)
        closed = cast(Array, refuted.all(axis=1))
        minimiser = xp.where(coefficients >= 0, box.lower, box.upper)
        remembered = {
            f"known_{side}": concatenate(
                [getattr(bounds.boxes[name], side) for name in self._layers], axis=1
            )
            for side in ("lower", "upper")
            if self._layers
        }
        return Bounded(
            closed,
            per_case[each, worst],
            minimiser[~closed],
            open_cases[~closed],
            cases,
            case_lower,
            _State(smear[each, worst], open_cases, clipped, remembered, weights, combined),
        )

    @staticmethod
    def weights(bounded: Bounded) -> Array:
        """Weights of the rows in the best bound of each case, (B, C, R)."""
        assert isinstance(bounded.state, _State)
        return bounded.state.weights

    @staticmethod
    def _per_case(
        box: Box, coefficients: Array, lower: Array, used: Array, refuted: Array
    ) -> tuple[Box, Array, Array, Array, Array]:
        """Clip the boxes and combine the rows of each case.

        Returns:
            the hull of what is left to the cases that are not refuted; per case the best bound
            (B, C), its linear form (B, C, n_in), the sum of absolute coefficients of all its
            forms (B, C, n_in), and the weights of the rows in the best bound (B, C, R).
        """
        xp = array_module(lower)
        count, width = refuted.shape
        coefficients = coefficients.reshape(count, width, -1, coefficients.shape[-1])
        lower, used = lower.reshape(count, width, -1), used.reshape(count, width, -1)
        hull_low, hull_high = xp.full_like(box.lower, xp.inf), xp.full_like(box.lower, -xp.inf)
        best, rows = xp.full((count, width), -xp.inf), xp.zeros_like(coefficients[:, :, 0])
        weights = xp.zeros(used.shape)
        for case in range(width):
            arguments = coefficients[:, case], lower[:, case], used[:, case]
            if used.shape[2] > 1:
                combined = combine_rows(box, *arguments)
                best[:, case], rows[:, case], weights[:, case] = combined
            else:
                best[:, case], rows[:, case] = lower[:, case, 0], coefficients[:, case, 0]
            part = clip_box(box, *arguments)
            empty = (part.lower > part.upper).any(axis=1)
            # What no row refutes alone may still be refuted by several, each from its side.
            best[:, case] = xp.where(empty & ~(best[:, case] > 0), xp.inf, best[:, case])
            keep = ~(refuted[:, case] | empty | (best[:, case] > 0))[:, None]
            hull_low = xp.where(keep, xp.minimum(hull_low, part.lower), hull_low)
            hull_high = xp.where(keep, xp.maximum(hull_high, part.upper), hull_high)
        smear = (abs(coefficients) * used[:, :, :, None]).sum(axis=2)
        return Box(hull_low, hull_high), best, rows, smear, weights

    def split(self, batch: Batch, bounded: Bounded) -> Children:
        """Halve what is left of each open box along its best input."""
        state = bounded.state
        assert isinstance(state, _State)
        xp = array_module(batch["lower"])
        batch = batch | {"lower": state.box.lower, "upper": state.box.upper}
        width = xp.where(bounded.closed[:, None], 0.0, batch["upper"] - batch["lower"])
        gain = state.steepness * width
        relative = width / self._scale
        wide = relative >= _THINNEST * relative.max(axis=1, keepdims=True)
        gain = xp.where(wide, gain, 0.0)
        # Where the forms are flat the widest input is as good as any.
        gain = xp.where(gain.max(axis=1, keepdims=True) > 0, gain, relative)
        middle = xp.where(bounded.closed[:, None], 0.0, batch["lower"]) + 0.5 * width
        inside = (middle > batch["lower"]) & (middle < batch["upper"])
        gain = xp.where(inside, gain, -1.0)
        chosen = gain.argmax(axis=1)
        each = xp.arange(len(chosen))
        divisible = gain[each, chosen] >= 0
        is_open = ~bounded.closed
        keep = is_open & divisible
        parent = take(batch | {"cases": state.open_cases} | state.known, keep)
        parent["cases"] = _pack(parent["cases"])
        position, cut = chosen[keep], middle[each, chosen][keep]
        each = xp.arange(len(position))
        low, high = dict(parent), dict(parent)
        low["upper"] = parent["upper"].copy()
        low["upper"][each, position] = cut
        high["lower"] = parent["lower"].copy()
        high["lower"][each, position] = cut
        nodes, (rows, numbers, weights) = batch["node"], state.combined
        halves = self.trees.step(
            nodes[bounded.closed], parent["node"], position, (nodes[rows], numbers, weights)
        )
        low["node"], high["node"] = map(xp.asarray, halves)
        children = {name: concatenate([low[name], high[name]]) for name in parent}
        score = bounded.score[keep]
        stuck = int((is_open & ~divisible).sum())
        return Children(children if len(position) else None, concatenate([score, score]), stuck)


def _pack(cases: Array) -> Array:
    """Move open cases to the front and drop columns that are -1 everywhere."""
    xp = array_module(cases)
    if cases.shape[1] == 1 or len(cases) == 0:
        return cases
    order = xp.argsort(cases < 0, axis=1, kind="stable")
    width = max(1, int((cases >= 0).sum(axis=1).max()))
    return xp.take_along_axis(cases, order, axis=1)[:, :width]  # type: ignore[no-any-return]
