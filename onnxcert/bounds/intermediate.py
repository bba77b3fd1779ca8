"""Optimised bounds of intermediate layers: every unstable neuron gets slopes of its own.

The relaxation of a layer is as loose as its bounds. Optimising the slopes of the output rows alone
leaves those as plain CROWN gave them; alpha-CROWN (Xu et al., 2021) optimises all slopes jointly
against the final bound. Here the layers are taken in order, and each unstable neuron's lower and
upper bound is one row of an ordinary ascent over the layers before it, whose bounds are final by
then. That needs no gradient through bounds, and no neuron has to share its slopes.

A proof repeats these bounds from the slopes of every row, so the rows that improved something are
handed out as they are found. What is too much to be written down is not used either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcert.arrays import Array, IntArray, array_module, to_host
from onnxcert.bounds.backward import unstable_neurons
from onnxcert.bounds.execution import enclose
from onnxcert.bounds.hints import encode_positions
from onnxcert.bounds.optimised import (
    ASCENT_NUMBERS,
    MOST_PLANES,
    Forms,
    FreeRelaxation,
    Optimised,
    Start,
    optimise,
)
from onnxcert.bounds.patches import View, find_patch
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import Bivariate, Elementwise
from onnxcert.sets import Box

MOST_POSITIONS = 1 << 26
"""Slope positions, one byte each, that the rows of one layer may need: 64 MB."""


@dataclass(frozen=True, eq=False)
class RefinedRows:
    """Neurons of one layer with a better bound on one side, and the slopes that give it.

    Attributes:
        index: (K,) numbers of the neurons, increasing.
        positions: elementwise node -> (K, F) uint8, k for the position k/255 of the free line of
            each neuron in `Refinement.columns`.
    """

    index: IntArray
    positions: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Refinement:
    """How the bounds of one layer were found: backward rows with these slopes, on the host.

    The rows hold for the relaxation over the refined bounds of all layers before. Neurons without
    a free line there have only one choice of lines.

    Attributes:
        target: the pre-activation.
        columns: elementwise node between input and target -> (F,) numbers of its neurons with a
            free line, increasing; the nodes in the order of the graph.
        lower, upper: the rows of lower and of upper bounds. An upper bound is minus the lower
            bound of the negated neuron, to which its positions belong.
    """

    target: str
    columns: Mapping[str, IntArray]
    lower: RefinedRows
    upper: RefinedRows

    @property
    def rows(self) -> int:
        """Rows of both sides."""
        return len(self.lower.index) + len(self.upper.index)


def tighten(
    graph: Graph,
    boxes: Mapping[str, Box],
    *,
    steps: int,
    expired: Callable[[], bool] = lambda: False,
    record: Callable[[Refinement], None] = lambda refinement: None,
    execution_unit: float = 0.0,
    behind: str | None = None,
) -> dict[str, Box]:
    """Tighten known bounds of all values over one input box.

    Args:
        graph: the network.
        boxes: bounds of every value, batches of one; they are intersected with what is found.
        steps: ascent steps per row.
        expired: asked before each block of rows; once True, what is known is only propagated.
        record: called for each layer with a better bound, in the order of the graph.
        execution_unit: unit roundoff of executions for which the bounds given hold, and those
            found shall hold; see `onnxcert.bounds.backward.Relaxation`.
        behind: a value whose bounds alone are news; layers that do not depend on it get no rows,
            for those would find what is known already. None for all layers.

    Returns:
        Bounds of every value, nowhere looser; lower bounds above upper ones where the given bounds
        contradict the network, and then those of later layers are as they were. Those of a layer
        follow from the boxes given, from intervals of the layers before, and from the rows
        recorded; nothing else is used.
    """
    result = {graph.input: boxes[graph.input]}
    dependents = {graph.input if behind is None else behind}
    free = FreeRelaxation.begin(graph, result[graph.input], execution_unit, planes=MOST_PLANES)
    columns: dict[str, Array] = {}
    for node in graph.nodes:
        box = enclose(graph, node, result, execution_unit)
        result[node.name] = box.intersect(boxes[node.name])
        if result[node.name].empty.any():
            return dict(boxes) | result
        free.add(node, result)
        if node.name in free.free:
            matters = free_entries(node, result)[0]
            columns[node.name] = array_module(matters).flatnonzero(matters)
        if not dependents.isdisjoint(node.inputs):
            dependents.add(node.name)
        reads_input_only = node.inputs == (graph.input,)
        worthwhile = node.name in graph.worthwhile and not reads_input_only
        worthwhile = worthwhile and node.name in dependents and node.name != behind
        if worthwhile and steps and free.free:
            layer = _Layer(free, node.name, result[node.name], columns, steps, expired)
            layer.run()
            result[node.name] = layer.box
            found = layer.refinement()
            if found.rows:
                record(found)
            if layer.box.empty.any():
                return dict(boxes) | result
    return result


def free_entries(node: Node, boxes: Mapping[str, Box]) -> Array:
    """Whose lines or planes matter over boxes of what a node reads, (B, n) booleans."""
    read = [boxes[name] for name in node.inputs]
    if isinstance(node.op, Bivariate):
        return node.op.bends(read)
    assert isinstance(node.op, Elementwise)
    return node.op.unstable(read[0])


@dataclass(frozen=True)
class _Block:
    """Neurons of one layer that are refined together.

    Attributes:
        index: (K,) their numbers.
        free: the relaxation of the whole network.
        target: the layer.
        box: its bounds.
        view: their patches, or None where they see the whole network.
    """

    index: Array
    free: FreeRelaxation
    target: str
    box: Box
    view: View | None

    @classmethod
    def of(cls, index: Array, free: FreeRelaxation, target: str, box: Box) -> _Block:
        """The block, with patches where those save work."""
        relaxation = free.relaxation
        patch = None if relaxation.left_out else find_patch(relaxation.graph, target, index)
        pixels = 0 if patch is None else int(np.prod(patch.shapes[target][1:]))
        view = None if patch is None else patch.view(None, index % pixels)
        if view is not None and not view.turns(free):
            view = None
        return cls(index, free, target, box, view)

    def bound(self, sign: float, steps: int, expired: Callable[[], bool]) -> Optimised:
        """Optimised lower bounds of ``sign * value[index]``."""
        xp = array_module(self.index)
        count = len(self.index)
        free, box, place = self.free, self.box, self.index
        if self.view is not None:
            free, box = self.view.free_relaxation(free), self.view.box(self.target, box)
            place = self.index // (self.box.lower.shape[1] // box.lower.shape[1])
        rows = xp.zeros((count, 1, box.lower.shape[1]))
        rows[xp.arange(count), 0, place] = sign
        forms = Forms(rows, None, xp.zeros((count, 1)), xp.ones((count, 1), dtype=bool))
        start = Start.at_form(xp.zeros(count, dtype=int), forms)
        target = self.target
        return optimise(free, forms, box, start, target=target, steps=steps, expired=expired)

    def positions(self, name: str, found: Optimised, rows: Array, numbers: Array) -> Array:
        """Positions of the free lines of some neurons (F,) of a node, for some rows: (K', F).

        Those of neurons outside a patch, which do not matter, are the default.
        """
        best = found.best.positions[name][rows]
        if self.view is None:
            return best[:, numbers]
        xp = array_module(best)
        default = self.free.default[name]
        column = xp.full(default.shape[1] + 1, -1)
        column[numbers] = xp.arange(len(numbers))
        column = column[self.view.numbers(name)[rows]]
        row, entry = xp.nonzero(column >= 0)
        result = xp.repeat(default[:, numbers], len(best), axis=0)
        result[row, column[row, entry]] = best[row, entry]
        return result  # type: ignore[no-any-return]


class _Side:
    """Lower or upper bounds of a layer while they are raised or lowered."""

    def __init__(self, bounds: Array, sign: float) -> None:
        self.bounds = bounds.copy()
        self.sign = sign
        self._index: list[IntArray] = []
        self._positions: list[dict[str, Array]] = []

    def take(self, block: _Block, found: Optimised, columns: Mapping[str, Array]) -> int:
        """Use and keep the rows that are better than what is known; the bytes that they take."""
        better = found.lower > self.sign * self.bounds[0, block.index]
        improved = block.index[better]
        if len(improved) == 0:
            return 0
        self.bounds[0, improved] = self.sign * found.lower[better]
        kept = {
            name: to_host(encode_positions(block.positions(name, found, better, numbers)))
            for name, numbers in columns.items()
            if name in found.activations
        }
        self._index.append(to_host(improved))
        self._positions.append(kept)
        return sum(codes.nbytes for codes in kept.values())

    def rows(self) -> RefinedRows:
        """All rows that were kept."""
        if not self._index:
            return RefinedRows(np.zeros(0, dtype=np.int64), {})
        names = self._positions[0]
        return RefinedRows(
            np.concatenate(self._index),
            {name: np.concatenate([block[name] for block in self._positions]) for name in names},
        )


@dataclass
class _Layer:
    """The bounds of one pre-activation while blocks of its unstable neurons are refined."""

    free: FreeRelaxation
    target: str
    box: Box
    columns: Mapping[str, Array]
    steps: int
    expired: Callable[[], bool]
    _sides: tuple[_Side, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._sides = (_Side(self.box.lower, 1.0), _Side(self.box.upper, -1.0))

    def run(self) -> None:
        """Refine block by block until the time or the room for their slopes is used up."""
        unstable = unstable_neurons(self.free.relaxation.graph, self.target, self.box)[0]
        numbers = array_module(unstable).flatnonzero(unstable)
        width = sum(len(columns) for columns in self.columns.values())
        fitting = MOST_POSITIONS // (8 * max(1, width))
        count = max(8, min(ASCENT_NUMBERS // self._slopes(numbers), fitting))
        room = MOST_POSITIONS
        for start in range(0, len(numbers), count):
            index = numbers[start : start + count]
            for side in self._sides:
                if len(index) * width > room or self.expired():
                    return
                block = _Block.of(index, self.free, self.target, self.box)
                found = block.bound(side.sign, self.steps, self.expired)
                room -= side.take(block, found, self.columns)
                self.box = Box(*(side.bounds for side in self._sides))

    def _slopes(self, numbers: Array) -> int:
        """Free lines in one row."""
        view = _Block.of(numbers[:1], self.free, self.target, self.box).view
        sizes = self.free.relaxation.graph.sizes if view is None else view.patch.graph.sizes
        return max(1, sum(sizes[name] for name in self.free.default if name in sizes))

    def refinement(self) -> Refinement:
        """What was found."""
        lower, upper = (side.rows() for side in self._sides)
        used = lower.positions or upper.positions
        columns = {name: to_host(self.columns[name]) for name in used}
        return Refinement(self.target, columns, lower, upper)
