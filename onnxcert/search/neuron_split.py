"""Branch and bound over neurons, for networks with many inputs.

All subproblems of one input box share the root's bounds; a subproblem is a case and a path of
constraints ``z_i >= p`` or ``z_i <= p``, each with a multiplier that the optimised bounds adjust
(beta-CROWN). Bounding one costs a few backward and forward passes with a single row. The neuron to
split is the one whose relaxation gap, weighted by its row, is largest: an estimate of what the
split would gain (in the spirit of BaBSR, Bunel et al., 2020).

Tried and dropped: bounding both children of the best eight candidates before choosing (filtered
smart branching). On networks of a few thousand neurons it cost more than the smaller tree saved:
9x200 fully connected was done in 21 thousand subproblems and 22 s without it, and with it had 4
thousand subproblems open after 25 s. More ascent steps per subproblem (8, 16 for 4) lost likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import numpy as np

from onnxcert.arrays import Array, array_module, concatenate
from onnxcert.bounds.hints import decode_positions, encode_positions
from onnxcert.bounds.optimised import FreeRelaxation, Optimised, Splits, Start, optimise
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import Elementwise
from onnxcert.proof.trace import NeuronTrees
from onnxcert.search.branching import Bounded, Brancher, Children
from onnxcert.search.cases import Cases
from onnxcert.search.frontier import Batch, take
from onnxcert.sets import Box

_LAST_STEPS = 200
"""Ascent steps for a subproblem without unstable neurons: only multipliers can still help it."""


@dataclass(frozen=True)
class _State:
    """The optimised bounds, and the chosen neuron, its split point and its gap, (B,) each."""

    optimised: Optimised
    neuron: Array
    point: Array
    gain: Array


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
    """

    graph: Graph
    cases: Cases
    open_cases: Array
    root: Mapping[str, Box]
    start: Start
    steps: int
    trees: NeuronTrees
    execution_unit: float = 0.0

    @cached_property
    def _layers(self) -> dict[str, slice]:
        """Pre-activation -> its numbers in the count of all neurons."""
        columns, begin = {}, 0
        for name in self.graph.pre_activations:
            columns[name] = slice(begin, begin + self.graph.sizes[name])
            begin += self.graph.sizes[name]
        return columns

    @property
    def _neurons(self) -> int:
        """Neurons that could be split; at least one column, so that a choice is always defined."""
        return max((columns.stop for columns in self._layers.values()), default=1)

    @cached_property
    def _free(self) -> FreeRelaxation:
        return FreeRelaxation.build(self.graph, self.root, self.execution_unit)

    @property
    def bytes_per_subproblem(self) -> int:
        """About twenty numbers per neuron during an ascent, and rows of the widest layers."""
        neurons = sum(s.stop - s.start for s in self._layers.values())
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
        }
        for name, position in self.start.positions.items():
            batch[f"slope:{name}"] = encode_positions(position)
        return batch

    def bound(self, batch: Batch, expired: Callable[[], bool]) -> Bounded:
        """Apply the path's constraints, then adjust slopes, multipliers and weights."""
        boxes, splits, start = self._prepare(batch)
        free = self._free.with_boxes(boxes)
        forms = self.cases.forms(batch["case"])
        output = self.root[self.graph.output]
        ascend = partial(optimise, free, forms, output, splits=splits, expired=expired)
        result = ascend(start, steps=self.steps)
        gains, points_of = self._gaps(result, boxes)
        hopeless = (gains.max(axis=1) <= 0) & (result.lower <= 0)
        if hopeless.any() and not expired():
            result = ascend(result.best, steps=_LAST_STEPS)
        neuron = gains.argmax(axis=1)
        each = array_module(neuron).arange(len(neuron))
        point, gain = points_of[each, neuron], gains[each, neuron]
        closed = cast(Array, result.lower > 0)  # refutes strict and closed forms alike
        which = array_module(closed).flatnonzero(closed)
        self.trees.close(
            batch["node"][which],
            result.best,
            which,
            self._unsigned(batch["neuron"][which], result.best.multipliers, which),
        )
        return Bounded(
            closed,
            result.lower,
            result.minimiser[~closed],
            batch["case"][~closed],
            batch["case"],
            result.lower[:, None],
            _State(result, neuron, point, gain),
        )

    def _prepare(self, batch: Batch) -> tuple[dict[str, Box], Splits, Start]:
        """Boxes and constraints of the paths, and where the ascent begins."""
        boxes, splits, multipliers = self._apply_paths(batch)
        slopes = {name: decode_positions(batch[f"slope:{name}"]) for name in self._free.default}
        return boxes, splits, Start(slopes, multipliers, batch["weight"], batch["anchor"])

    def _apply_paths(self, batch: Batch) -> tuple[dict[str, Box], Splits, dict[str, Array]]:
        """Boxes of the layers with splits, the splits, and their multipliers."""
        xp = array_module(batch["neuron"])
        count = len(batch["neuron"])
        boxes, signs, points, multipliers = {}, {}, {}, {}
        for name, columns in self._layers.items():
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
            # Smooth neurons may be split repeatedly. Any of their bounds is right, and any of the
            # splits may carry the multiplier, but sign, point and multiplier must be of one split.
            lower[which[above], index[above]] = value[above]
            upper[which[~above], index[~above]] = value[~above]
            latest = xp.full((count, width), -1, dtype=np.int64)
            latest[which, index] = position
            which, index = xp.nonzero(latest >= 0)
            position = latest[which, index]
            sign[which, index] = batch["sign"][which, position]
            point[which, index] = batch["point"][which, position]
            multiplier[which, index] = batch["multiplier"][which, position]
            boxes[name] = Box(lower, upper)
            signs[name], points[name], multipliers[name] = sign, point, multiplier
        return boxes, Splits(signs, points), multipliers

    def _gaps(self, result: Optimised, boxes: Mapping[str, Box]) -> tuple[Array, Array]:
        """Weighted relaxation gap of every neuron, negative where stable, and its split point."""
        xp = array_module(result.lower)
        count = len(result.lower)
        gain = xp.full((count, self._neurons), -1.0)
        point = xp.zeros_like(gain)
        for node in self.graph.nodes:
            if not isinstance(node.op, Elementwise) or node.name not in result.activations:
                continue
            source = node.inputs[0]
            box = boxes.get(source, self.root[source])
            gap, cut = _gap(node, box, result)
            columns = self._layers[source]
            gain[:, columns] = xp.maximum(gain[:, columns], gap)
            point[:, columns] = cut
        return gain, point

    def _inherit(self, batch: Batch, best: Start, index: Array) -> Batch:
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
        assert isinstance(state, _State)
        xp = array_module(bounded.closed)
        is_open = ~bounded.closed
        keep = is_open & (state.gain > 0)
        if not keep.any():
            return Children(None, bounded.score[keep], int(is_open.sum()))
        neuron, point = state.neuron[keep], state.point[keep]
        numbers = self.trees.split(batch["node"][keep], neuron, point)
        sides = []
        for sign, nodes in zip((-1.0, 1.0), numbers, strict=True):
            child = self._inherit(batch, state.optimised.best, keep)
            child["node"] = xp.asarray(nodes)
            self._extend(child, neuron, xp.full(len(nodes), sign), point)
            sides.append(child)
        children = {name: concatenate([side[name] for side in sides]) for name in sides[0]}
        score = bounded.score[keep]
        stuck = int((is_open & ~keep).sum())
        return Children(children, concatenate([score, score]), stuck)

    def _path_multipliers(
        self, neuron: Array, multipliers: Mapping[str, Array], index: Array
    ) -> Array:
        """Read the dense multipliers back at the neurons of each path."""
        xp = array_module(neuron)
        result = xp.zeros(neuron.shape)
        for name, dense in multipliers.items():
            columns = self._layers[name]
            which, position = xp.nonzero((neuron >= columns.start) & (neuron < columns.stop))
            number = neuron[which, position] - columns.start
            result[which, position] = dense[index][which, number]
        return result  # type: ignore[no-any-return]

    def _unsigned(self, neuron: Array, multipliers: Mapping[str, Array], index: Array) -> Array:
        """Multipliers of each path (M, D), NaN for padding.

        A neuron that is split again has its multiplier at the latest split, as `_apply_paths` does.
        """
        xp = array_module(neuron)
        result = abs(self._path_multipliers(neuron, multipliers, index))
        for position in range(neuron.shape[1] - 1):
            later = (neuron[:, position + 1 :] == neuron[:, position : position + 1]).any(axis=1)
            result[later, position] = 0.0
        return xp.where(neuron >= 0, result, xp.nan)  # type: ignore[no-any-return]


def _gap(node: Node, box: Box, result: Optimised) -> tuple[Array, Array]:
    """How far the line in use is from the curve, times the row: (B, n), and the split points."""
    op = node.op
    assert isinstance(op, Elementwise)
    row = result.activations[node.name]
    xp = array_module(row)
    position = result.best.positions.get(node.name)
    lines = op.relax(box, position)
    point = op.split_point(box)
    height = op.value(point)
    above = lines.upper_slope * point + lines.upper_offset - height
    below = height - lines.lower_slope * point - lines.lower_offset
    ends = [
        op.value(end) - lines.lower_slope * end - lines.lower_offset
        for end in (box.lower, box.upper)
    ]
    below = xp.maximum(below, xp.minimum(*ends))
    gap = xp.where(row >= 0, row * below, -row * above)
    return xp.where(op.unstable(box), xp.maximum(gap, 1e-30), -1.0), point
