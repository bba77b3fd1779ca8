"""Branch and bound over neurons, for networks with many inputs.

All subproblems of one input box share the root's bounds; a subproblem is a case and a path of
constraints ``z_i >= p`` or ``z_i <= p``, each with a multiplier that the optimised bounds adjust
(beta-CROWN). Bounding one costs a few backward and forward passes with a single row. The neuron to
split is the one with the largest gap between the line in use and the curve, at the point of the
split, weighted by its row. For relus that is the offset of the chord, |A_i| u_i |l_i| / (u_i - l_i)
where A_i < 0 (the intercept score of Bunel et al., *Branch and Bound for Piecewise Linear Neural
Network Verification*, 2020): where A_i > 0 the line goes through the kink, its slope is optimised,
and a split gains nothing that the ascent could not. Rows change sign below a split, so where no
gap is left the same product without regard to the sign decides. The rows are those of the last
step, not of the best: what is best so far may be the parent's bound, and then the same choice would
be made from the same rows again and again.

Tried and dropped, each with one run on five networks: bounding both children of the best three to
five candidates before choosing (filtered smart branching; De Palma et al., 2021) closed one
convolutional network with 591 subproblems for 663, in a third more time, and took longer on the
other four, three of which it had not done in the time that was enough without it. Scores from the
values on the relaxed path, averaged over the steps, which estimate the gains of both children: 1020
for 718 on a residual network. Rows averaged over the steps: no difference. A new multiplier that
starts where it keeps the parent's bound: the same trees, for zero does that already for neurons
whose chord is in use. Six steps for four: smaller trees on some, sooner done on none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxcert.arrays import Array, array_module, concatenate
from onnxcert.bounds.hints import decode_positions, encode_positions
from onnxcert.bounds.optimised import (
    MOST_PLANES,
    FreeRelaxation,
    Optimised,
    Splits,
    Start,
    optimise,
)
from onnxcert.bounds.tilts import Tilts
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import Elementwise
from onnxcert.proof.trace import NeuronTrees
from onnxcert.search.branching import Bounded, Brancher, Children
from onnxcert.search.cases import Cases
from onnxcert.search.frontier import Batch, take
from onnxcert.sets import Box

_OTHER_SIDE = 1e-3
"""Share of the gap of both lines in the score, so that it decides only where no gap is in use."""

_LAST_STEPS = 200
"""Ascent steps for a subproblem without unstable neurons: only multipliers can still help it."""


@dataclass(frozen=True)
class _State:
    """What was left after a first bound: optimised bounds, and where to split.

    Attributes:
        index: (M,) numbers in the batch.
        optimised: of those.
        neuron, point, score: (M,) the chosen neuron, its split point and its score.
        tilted: (M,) whether planes were taken.
    """

    index: Array
    optimised: Optimised
    neuron: Array
    point: Array
    score: Array
    tilted: Array


@dataclass(frozen=True)
class NeuronSplit(Brancher):
    """Paths of neuron splits below one input box.

    Attributes:
        graph: the network, or what is left of it on the box.
        cases: what is to be refuted.
        open_cases: (K,) cases still open; all of one box.
        root: bounds of every value over that box (a batch of one).
        start: root slopes and weights of the open cases, as the root's ascent left them.
        steps: ascent steps per subproblem.
        trees: where decisions and hints are noted.
        execution_unit: unit roundoff of executions for which the root's bounds hold, and those of
            subproblems shall hold.
        tilts: upper planes of some of the cases.
    """

    graph: Graph
    cases: Cases
    open_cases: Array
    root: Mapping[str, Box]
    start: Start
    steps: int
    trees: NeuronTrees
    execution_unit: float = 0.0
    tilts: Tilts | None = None

    @property
    def _neurons(self) -> int:
        """Neurons that could be split; at least one column, so that a choice is always defined."""
        return max((columns.stop for columns in self.graph.numbering.values()), default=1)

    @cached_property
    def _free(self) -> FreeRelaxation:
        return FreeRelaxation.build(self.graph, self.root, self.execution_unit, planes=MOST_PLANES)

    @property
    def bytes_per_subproblem(self) -> int:
        """About twenty numbers per neuron during an ascent, and rows of the widest layers."""
        neurons = sum(s.stop - s.start for s in self.graph.numbering.values())
        return int(8 * (20 * neurons + 8 * max(self.graph.sizes.values())))

    def roots(self) -> Batch:
        """One subproblem per open case, with an empty path."""
        xp = array_module(self.cases.offset)
        count = len(self.open_cases)
        numbers = self.cases.problem.case_disjunct[self.open_cases]
        batch = {
            "node": xp.asarray(self.trees.plant(numbers)),
            "case": xp.asarray(self.open_cases)[:, None],
            "neuron": xp.full((count, 0), -1, dtype=np.int64),
            "sign": xp.zeros((count, 0)),
            "point": xp.zeros((count, 0)),
            "multiplier": xp.zeros((count, 0)),
            "weight": self.start.weights,
            "anchor": self.start.anchor,
            "tilted": self._have_planes(xp.asarray(self.open_cases)),
        }
        for name, position in self.start.positions.items():
            batch[f"slope:{name}"] = encode_positions(position)
        return batch

    def bound(self, batch: Batch, expired: Callable[[], bool]) -> Bounded:
        """Bound with what the parents found, then adjust slopes, multipliers and weights."""
        first, batch = self._evaluate(batch, expired)
        lower = first.lower.copy()
        xp = array_module(lower)
        # Most that are refuted need no step (83 to 95 % on three networks); the others go on alone.
        rest = xp.flatnonzero(~(lower > 0))
        state = None
        if len(rest):
            state = self._ascend(take(batch, rest), rest, expired)
            lower[rest] = state.optimised.lower
        # Not before: a batch that runs out of memory is bounded again, and may leave nothing here.
        self._close(batch, first)
        if state is not None:
            self._close(take(batch, rest), state.optimised)
        closed = lower > 0  # refutes strict and closed forms alike
        points, point_cases = first.minimiser[:0], batch["case"][:0]
        if state is not None:
            still = ~closed[rest]
            points, point_cases = state.optimised.minimiser[still], batch["case"][rest[still]]
        return Bounded(closed, lower, points, point_cases, batch["case"], lower[:, None], state)

    def _have_planes(self, cases: Array) -> Array:
        """Which cases (B,) have planes."""
        xp = array_module(cases)
        if self.tilts is None:
            return xp.zeros(len(cases), dtype=bool)  # type: ignore[no-any-return]
        return xp.isin(cases, self.tilts.cases)  # type: ignore[no-any-return]

    def _evaluate(self, batch: Batch, expired: Callable[[], bool]) -> tuple[Optimised, Batch]:
        """Bounds of a batch without a step, and the batch with the better of planes and chords.

        Planes are those of the root: below many splits the chords of some may be better again.
        """
        first, _ = self._optimise(batch, 0, expired)
        if self.tilts is None:
            return first, batch
        xp = array_module(first.lower)
        others = xp.flatnonzero(~(first.lower > 0) & self._have_planes(batch["case"][:, 0]))
        if len(others) == 0:
            return first, batch
        turned = take(batch, others)
        turned["tilted"] = ~turned["tilted"]
        second, _ = self._optimise(turned, 0, expired)
        better = second.lower > first.lower[others]
        tilted = batch["tilted"].copy()
        tilted[others] ^= better
        first = first.replaced(others[better], second.take(better))
        return first, dict(batch) | {"tilted": tilted}

    def _ascend(self, batch: Batch, index: Array, expired: Callable[[], bool]) -> _State:
        """Optimise, and choose neurons."""
        result, boxes = self._optimise(batch, self.steps, expired)
        scores, points = self._scores(result, boxes)
        hopeless = (scores.max(axis=1) <= 0) & (result.lower <= 0)
        if hopeless.any() and not expired():
            again = self._inherit(batch, result.best, slice(None))
            result, _ = self._optimise(again, _LAST_STEPS, expired)
        neuron = scores.argmax(axis=1)
        each = array_module(neuron).arange(len(neuron))
        return _State(
            index, result, neuron, points[each, neuron], scores[each, neuron], batch["tilted"]
        )

    def _optimise(
        self, batch: Batch, steps: int, expired: Callable[[], bool]
    ) -> tuple[Optimised, dict[str, Box]]:
        """Bounds of a batch, and the boxes of the layers that its paths split."""
        boxes, splits, start = self._prepare(batch)
        forms = self.cases.forms(batch["case"])
        output = self.root[self.graph.output]
        free = self._free.with_boxes(boxes)
        if self.tilts is not None:
            xp = array_module(batch["tilted"])
            case = xp.where(batch["tilted"], batch["case"][:, 0], -1)
            free.relaxation.tilts.update(self.tilts.over(case, self.graph, self.root, boxes))
        result = optimise(free, forms, output, start, splits=splits, steps=steps, expired=expired)
        return result, boxes

    def _close(self, batch: Batch, found: Optimised) -> None:
        """Note the leaves that a batch's bounds refute."""
        which = array_module(found.lower).flatnonzero(found.lower > 0)
        path = batch["neuron"][which], batch["sign"][which]
        multipliers = self._unsigned(*path, found.best.multipliers, which)
        tilted = batch["tilted"][which]
        self.trees.close(batch["node"][which], found.best, which, multipliers, tilted)

    def _prepare(self, batch: Batch) -> tuple[dict[str, Box], Splits, Start]:
        """Boxes and constraints of the paths, and where the ascent begins."""
        boxes, splits, multipliers = self._apply_paths(batch)
        slopes = {name: decode_positions(batch[f"slope:{name}"]) for name in self._free.default}
        return boxes, splits, Start(slopes, multipliers, batch["weight"], batch["anchor"])

    def _apply_paths(self, batch: Batch) -> tuple[dict[str, Box], Splits, dict[str, Array]]:
        """Boxes of the layers with splits, the splits, and their multipliers."""
        xp = array_module(batch["neuron"])
        count = len(batch["neuron"])
        boxes, signs, points, others, multipliers = {}, {}, {}, {}, {}
        for name, columns in self.graph.numbering.items():
            here = (batch["neuron"] >= columns.start) & (batch["neuron"] < columns.stop)
            which, position = xp.nonzero(here)
            if len(which) == 0:
                continue
            root = self.root[name]
            width = columns.stop - columns.start
            lower = xp.repeat(root.lower, count, axis=0)
            upper = xp.repeat(root.upper, count, axis=0)
            sign, point, multiplier = (xp.zeros((count, width)) for _ in range(3))
            index = batch["neuron"][which, position] - columns.start
            value = batch["point"][which, position]
            above = batch["sign"][which, position] > 0
            # Neurons may be split repeatedly, unless they are relus. The latest split on a side is
            # the tightest; the multiplier, of one side or the other, is the one that they have.
            lower[which[above], index[above]] = value[above]
            upper[which[~above], index[~above]] = value[~above]
            sign[which[above], index[above]] = 1.0
            is_above = sign > 0
            sign[which[~above], index[~above]] = -1.0
            both = is_above & (sign < 0)
            sign[both] = 2.0
            point += xp.where(is_above, lower, xp.where(sign < 0, upper, 0.0))
            carried = batch["multiplier"][which, position]
            order = xp.argsort(abs(carried), kind="stable")  # of a new split it is zero
            multiplier[which[order], index[order]] = carried[order]
            boxes[name] = Box(lower, upper)
            signs[name], points[name], multipliers[name] = sign, point, multiplier
            if both.any():
                others[name] = xp.where(both, upper, point)
        return boxes, Splits(signs, points, others), multipliers

    def _scores(self, result: Optimised, boxes: Mapping[str, Box]) -> tuple[Array, Array]:
        """Score of every neuron, negative where stable, and its split point."""
        xp = array_module(result.lower)
        count = len(result.lower)
        score = xp.full((count, self._neurons), -1.0)
        point = xp.zeros_like(score)
        for node in self.graph.nodes:
            if not isinstance(node.op, Elementwise) or node.name not in result.activations:
                continue
            source = node.inputs[0]
            box = boxes.get(source, self.root[source])
            found, cut = _score(node, box, result)
            columns = self.graph.numbering[source]
            score[:, columns] = xp.maximum(score[:, columns], found)
            point[:, columns] = cut
        return score, point

    def _inherit(self, batch: Batch, best: Start, index: Array | slice) -> Batch:
        """Subproblems of a batch with the slopes, multipliers and weights of their best bound."""
        parent = take(batch, index)
        parent["weight"] = best.weights[index]
        for name, position in best.positions.items():
            parent[f"slope:{name}"] = encode_positions(position[index])
        parent["multiplier"] = self._path_multipliers(parent["neuron"], best.multipliers, index)
        return parent

    @staticmethod
    def _extend(batch: Batch, neuron: Array, sign: Array, point: Array) -> None:
        """Append one split to every path, with a multiplier of zero."""
        xp = array_module(neuron)
        columns = {"neuron": neuron, "sign": sign, "point": point, "multiplier": 0.0 * sign}
        for name, value in columns.items():
            batch[name] = xp.concatenate([batch[name], value[:, None]], axis=1)

    def split(self, batch: Batch, bounded: Bounded) -> Children:
        """Both sides of the chosen neuron, starting from the parent's slopes and multipliers."""
        state = bounded.state
        if state is None:
            return Children(None, bounded.score[:0], 0)
        assert isinstance(state, _State)
        xp = array_module(bounded.closed)
        is_open = ~bounded.closed[state.index]
        keep = is_open & (state.score > 0)
        if not keep.any():
            return Children(None, bounded.score[:0], int(is_open.sum()))
        chosen = state.index[keep]
        neuron, point = state.neuron[keep], state.point[keep]
        numbers = self.trees.split(batch["node"][chosen], neuron, point)
        parents = self._inherit(take(batch, state.index), state.optimised.best, keep)
        parents["tilted"] = state.tilted[keep]
        sides = []
        for sign, nodes in zip((-1.0, 1.0), numbers, strict=True):
            child = dict(parents) | {"node": xp.asarray(nodes)}
            self._extend(child, neuron, xp.full(len(nodes), sign), point)
            sides.append(child)
        children = {name: concatenate([side[name] for side in sides]) for name in sides[0]}
        score = bounded.score[chosen]
        stuck = int((is_open & ~keep).sum())
        return Children(children, concatenate([score, score]), stuck)

    def _path_multipliers(
        self, neuron: Array, multipliers: Mapping[str, Array], index: Array | slice
    ) -> Array:
        """Read the dense multipliers back at the neurons of each path."""
        xp = array_module(neuron)
        result = xp.zeros(neuron.shape)
        for name, dense in multipliers.items():
            columns = self.graph.numbering[name]
            which, position = xp.nonzero((neuron >= columns.start) & (neuron < columns.stop))
            number = neuron[which, position] - columns.start
            result[which, position] = dense[index][which, number]
        return result  # type: ignore[no-any-return]

    def _unsigned(
        self, neuron: Array, sign: Array, multipliers: Mapping[str, Array], index: Array
    ) -> Array:
        """Multipliers of each path (M, D), NaN for padding.

        A neuron that is split again has its multiplier at the latest split on the side that it is
        for, as `_apply_paths` does.
        """
        xp = array_module(neuron)
        signed = self._path_multipliers(neuron, multipliers, index)
        result = abs(signed) * (signed * sign > 0)
        # Few paths split a neuron again on one side: the same number twice in a row of these.
        sides = xp.where(neuron >= 0, 2 * neuron + (sign > 0), -1 - xp.arange(neuron.shape[1]))
        ordered = xp.sort(sides, axis=1)
        twice = xp.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        some = sides[twice]
        for position in range(neuron.shape[1] - 1 if len(twice) else 0):
            again = (some[:, position + 1 :] == some[:, position : position + 1]).any(axis=1)
            result[twice[again], position] = 0.0
        return xp.where(neuron >= 0, result, xp.nan)  # type: ignore[no-any-return]


def _score(node: Node, box: Box, result: Optimised) -> tuple[Array, Array]:
    """How far the line in use is from the curve, times the row: (B, n), and the split points."""
    op = node.op
    assert isinstance(op, Elementwise)
    row = result.activations[node.name]
    xp = array_module(row)
    lines = op.relax(box, result.best.positions.get(node.name))
    point = op.split_point(box)
    height = op.value(point)
    above = lines.upper_slope * point + lines.upper_offset - height
    below = height - lines.lower_slope * point - lines.lower_offset
    if not op.piecewise_linear:  # a tangent at the split point has its gap elsewhere
        ends = [
            op.value(end) - lines.lower_slope * end - lines.lower_offset
            for end in (box.lower, box.upper)
        ]
        below = xp.maximum(below, xp.minimum(*ends))
    score = abs(row) * (xp.where(row >= 0, below, above) + _OTHER_SIDE * xp.maximum(below, above))
    return xp.where(op.unstable(box), xp.maximum(score, 1e-30), -1.0), point
