"""How bounds of linear forms change with the input box: derivatives by both faces of every input.

A backward bound is a function of the box in two ways: the form that arrives at the input is
minimised over the box, and the lines of every neuron follow from its bounds, which are backward
bounds themselves. One reverse pass takes both into account. For a form with rows A over the
outputs of the neurons, coefficients c over the input and minimiser x*, let z be the values before
the neurons when x* is pushed through the lines that the form took. Then

    d bound / d lower face = max(c, 0),        d bound / d upper face = min(c, 0),
    d bound / d slope_i = A_i z_i,             d bound / d offset_i = A_i   (of the line taken),

and slope and offset depend on the bounds (l_i, u_i) of the neuron, whose own derivatives follow by
the same rule one layer down. Layers are visited from the last to the first, so every row is used
once: what a bound is worth to the sum of all forms is known when its turn comes. The derivatives by
the positions of free slopes fall out of the same pass: that is alpha-CROWN (Xu et al., 2021) with
slopes that all rows of one layer share.

Over an ellipsoid the derivative by a semi-axis a_i follows from the Lagrangian: with the share b of
the form that the ellipsoid bounds (`onnxcert.sets.Ball.divide`) it is ``b_i (x*_i - c_i) / a_i``.
Faces that touch the ellipsoid move with the axis, each by half of it; those that cut it stay.

Where an interval bound is better than the backward row, it is what is differentiated. Derivatives
of lines and of intervals of curves are central differences of a thousandth of the width, entry by
entry, so that no operator has to know of them. None of this has to be exact: derivatives say where
to look, bounds are computed afresh wherever they count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from onnxcert.arrays import Array, array_module
from onnxcert.bounds.backward import Pulled, Relaxation, pull_back, pull_units, unstable_neurons
from onnxcert.bounds.crown import CHUNK_NUMBERS
from onnxcert.bounds.execution import enclose
from onnxcert.bounds.optimised import FreeRelaxation, round_down
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import Affine, Elementwise
from onnxcert.sets import Ball, Box, Lines

_STEP = 2.0**-10
"""Of differences, as a share of the width of the interval."""

_LEAST_STEP = 1e-12

_TOUCHING = 1e-9
"""Share of an axis within which a face touches the ellipsoid."""

_KEPT_NUMBERS = 1 << 26
"""Numbers of backward rows that are kept for the reverse pass: 512 MB; others are made again."""

Positions = Mapping[str, Mapping[str, Array]]
"""Value that rows start at -> elementwise node -> positions of its free lines, (B, n).

NaN stands for the default, which follows the bounds of the neuron."""

FORMS = ""
"""The key in `Positions` of the forms themselves: (B x R, n), each form has its own lines."""


@dataclass(frozen=True)
class LineRule:
    """Which lines stand for a curve.

    Attributes:
        begin: an empty relaxation over a box, to which nodes are added in order.
        relax: the lines of a curve over a box, for positions of its free line or the default.
    """

    begin: Callable[[Graph, Box], FreeRelaxation]
    relax: Callable[[Elementwise, Box, Array | None], Lines]


CROWN = LineRule(FreeRelaxation.begin, lambda op, box, position: op.relax(box, position))
"""The lines of the verifier."""


@dataclass(frozen=True, eq=False)
class _Block:
    """Backward rows of some neurons of one layer and one side.

    Attributes:
        relaxation: the lines they went through.
        index: (B, R) numbers of the neurons.
        sign: 1.0 for lower bounds, -1.0 for upper ones.
        taken: (B, R) where the row is the bound that counts.
        pulled: the rows; None where they are made again.
    """

    relaxation: Relaxation
    index: Array
    sign: float
    taken: Array
    pulled: Pulled | None

    def rows(self, start: str) -> Pulled:
        """The rows over every activation."""
        if self.pulled is not None:
            return self.pulled
        return pull_units(self.relaxation, start, self.index, self.sign, keep=True)


@dataclass
class LayerBounds:
    """Bounds of every value over a batch of boxes, and the rows they came from.

    Attributes:
        graph: the network.
        boxes: value -> (B, n).
        positions: those that rows of each layer took.
        free: lines for these bounds; its curves are those of the last layer.
        rule: the lines of every curve.
        blocks: pre-activation -> the rows that bound it.
    """

    graph: Graph
    boxes: dict[str, Box]
    positions: dict[str, dict[str, Array]]
    free: FreeRelaxation
    rule: LineRule = CROWN
    blocks: dict[str, list[_Block]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FormBounds:
    """Lower bounds of forms ``rows . output + offset``, and what their derivatives need.

    Attributes:
        layers: the bounds of the values.
        lower: (B, R), rounding included; -inf where nothing is known.
        positions: of free lines, by elementwise node, (B x R, n).
    """

    layers: LayerBounds
    lower: Array
    positions: Mapping[str, Array]
    _relaxation: Relaxation
    _boxes: Mapping[str, Box]
    _pulled: Pulled


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Those of a weighted sum of bounds.

    Attributes:
        lower, upper: (B, input_size) by the faces of the box.
        positions: by the positions of free lines, as in `Positions`.
    """

    lower: Array
    upper: Array
    positions: dict[str, dict[str, Array]]


def bound_layers(
    graph: Graph,
    box: Box,
    positions: Positions | None = None,
    *,
    trace: bool = True,
    rule: LineRule = CROWN,
) -> LayerBounds:
    """Backward bounds of every pre-activation, with slopes that the rows of a layer share.

    Args:
        graph: the network.
        box: (B, input_size); a `Ball` for ellipsoids.
        positions: of free lines; the defaults where nothing is said.
        trace: keep what `differentiate` needs.
        rule: the lines of every curve.

    Returns:
        Bounds that hold for the real-valued network in spite of rounding.
    """
    free = rule.begin(graph, box)
    free.relaxation.to_inputs = True
    result = LayerBounds(graph, {graph.input: box}, {}, free, rule)
    round_inputs = isinstance(box, Ball)  # intervals are exact behind a box only
    kept = 0
    for node in graph.nodes:
        result.boxes[node.name] = enclose(graph, node, result.boxes, 0.0)
        free.add(node, result.boxes)
        reads_input_only = node.inputs == (graph.input,)
        if node.name not in graph.pre_activations or (reads_input_only and not round_inputs):
            continue
        chosen = _choose(free, (positions or {}).get(node.name, {}))
        result.positions[node.name] = chosen
        kept = _refine(result, node.name, trace=trace, kept=kept)
    return result


def bound_forms(
    layers: LayerBounds, rows: Array, offset: Array, positions: Positions | None = None
) -> FormBounds:
    """Lower bounds of forms over the output, each with lines of its own.

    Args:
        layers: bounds of every value, batches of B.
        rows: (B, R, output_size).
        offset: (B, R).
        positions: entry `FORMS` is used; defaults where nothing is said.
    """
    batch, count, size = rows.shape
    boxes = {name: _repeat(box, count) for name, box in layers.boxes.items()}
    free = layers.rule.begin(layers.graph, boxes[layers.graph.input])
    free.relaxation.to_inputs = True
    for node in layers.graph.nodes:
        free.add(node, boxes)
    chosen = _choose(free, (positions or {}).get(FORMS, {}))
    pulled = pull_back(
        free.relaxation, layers.graph.output, rows.reshape(batch * count, 1, size), keep=True
    )
    lower = round_down(pulled.lower.reshape(batch, count) + offset)
    return FormBounds(layers, lower, chosen, free.relaxation, boxes, pulled)


def differentiate(bounds: FormBounds, weights: Array) -> Derivatives:
    """Derivatives of ``sum_r weights[:, r] lower[:, r]``; weights (B, R)."""
    run = _Reverse(bounds.layers)
    batch, count = weights.shape
    run.forms(bounds, weights.reshape(batch * count, 1), count)
    for node in reversed(bounds.layers.graph.nodes):
        run.visit(node)
    name = bounds.layers.graph.input
    box, xp = bounds.layers.boxes[name], array_module(weights)
    zero = xp.zeros(box.lower.shape)
    lower, upper = run.faces.get(name, (zero, zero))
    if isinstance(box, Ball):
        # Faces of the box that cut the ellipsoid do not move with its axes.
        axes = (1.0 - _TOUCHING) * box.axes
        lower = xp.where(box.lower <= box.center - axes, lower, 0.0) - 0.5 * run.axes
        upper = xp.where(box.upper >= box.center + axes, upper, 0.0) + 0.5 * run.axes
    return Derivatives(lower, upper, run.positions)


def _repeat(box: Box, count: int) -> Box:
    xp = array_module(box.lower)
    return box.take(xp.repeat(xp.arange(len(box)), count))


def _choose(free: FreeRelaxation, wanted: Mapping[str, Array]) -> dict[str, Array]:
    """Set the lines for rows that start now, and say which they are."""
    chosen = {}
    for name, default in free.default.items():
        position = wanted.get(name, default)
        xp = array_module(position)
        chosen[name] = xp.where(xp.isnan(position), default, position)
    free.choose(chosen)
    return chosen


def _refine(layers: LayerBounds, name: str, *, trace: bool, kept: int) -> int:
    """Intersect the bounds of a layer with its backward rows; the numbers kept so far."""
    box = layers.boxes[name]
    xp = array_module(box.lower)
    unstable = unstable_neurons(layers.graph, name, box)
    most = int(unstable.sum(axis=1).max())
    if most == 0:
        return kept
    relaxation = layers.free.relaxation
    relaxation = replace(relaxation, curves=dict(relaxation.curves))
    order = xp.argsort(~unstable, axis=1, kind="stable")[:, :most]
    lower, upper = box.lower.copy(), box.upper.copy()
    before = layers.graph.input_size + sum(layers.graph.sizes[node] for node in relaxation.curves)
    widest = max(layers.graph.sizes.values())
    step = max(1, CHUNK_NUMBERS // (widest * len(box)))
    blocks: list[_Block] = []
    for start in range(0, most, step):
        index = order[:, start : start + step]
        here = xp.arange(len(box))[:, None], index
        for sign, target in ((1.0, lower), (-1.0, upper)):
            room = kept + index.size * before <= _KEPT_NUMBERS
            pulled = pull_units(relaxation, name, index, sign, keep=trace and room)
            old = target[here]
            taken = (pulled.lower > sign * old) & unstable[here]
            target[here] = xp.where(taken, sign * pulled.lower, old)
            if trace:
                kept += index.size * before if room else 0
                blocks.append(_Block(relaxation, index, sign, taken, pulled if room else None))
    layers.boxes[name] = Box(lower, upper)
    layers.blocks[name] = blocks
    return kept


class _Reverse:
    """What bounds are worth to the forms, collected from the last layer to the first.

    Attributes:
        faces: value -> derivatives by its lower and its upper bounds, (B, n) each.
        positions: derivatives by positions.
        axes: derivatives by the semi-axes of ellipsoids, (B, n), as far as forms hang on them.
    """

    def __init__(self, layers: LayerBounds) -> None:
        self.layers = layers
        self.graph = layers.graph
        self.faces: dict[str, tuple[Array, Array]] = {}
        self.positions: dict[str, dict[str, Array]] = {}
        self.axes: Array | float = 0.0

    def add(self, name: str, lower: Array, upper: Array) -> None:
        """Add derivatives by the bounds of a value."""
        if name in self.faces:
            old = self.faces[name]
            lower, upper = old[0] + lower, old[1] + upper
        self.faces[name] = (lower, upper)

    def forms(self, bounds: FormBounds, weights: Array, count: int) -> None:
        """The forms themselves: one row for each of B x R repeated boxes."""
        layers = self.layers
        gains = _Gains(
            layers.rule,
            bounds._relaxation,
            bounds._boxes,
            bounds._pulled,
            weights,
        )
        gains.run()
        self.axes += gains.axes.reshape(-1, count, gains.axes.shape[1]).sum(axis=1)
        positions: dict[str, Array] = {}
        for name, (lower, upper) in gains.by_bounds(bounds.positions, positions):
            shape = (-1, count, lower.shape[1])
            self.add(name, lower.reshape(shape).sum(axis=1), upper.reshape(shape).sum(axis=1))
        self.positions[FORMS] = positions

    def visit(self, node: Node) -> None:
        """Hand what the bounds of a node's output are worth to what they were computed from."""
        if node.name not in self.faces:
            return
        lower, upper = self.faces.pop(node.name)
        blocks = self.layers.blocks.get(node.name, ())
        if blocks:
            xp = array_module(lower)
            sides = {1.0: lower.copy(), -1.0: upper.copy()}
            positions: dict[str, Array] = {}
            for block in blocks:
                side = sides[block.sign]
                here = xp.arange(len(side))[:, None], block.index
                weights = block.sign * side[here] * block.taken
                side[here] = xp.where(block.taken, 0.0, side[here])
                self._rows(node.name, block, weights, positions)
            self.positions[node.name] = positions
            lower, upper = sides[1.0], sides[-1.0]
        if lower.any() or upper.any():
            self._interval(node, lower, upper)

    def _rows(self, start: str, block: _Block, weights: Array, positions: dict[str, Array]) -> None:
        if not weights.any():
            return
        layers = self.layers
        rows = block.rows(start)
        gains = _Gains(layers.rule, block.relaxation, layers.boxes, rows, weights)
        gains.run()
        self.axes += gains.axes
        for name, (lower, upper) in gains.by_bounds(self.layers.positions[start], positions):
            self.add(name, lower, upper)

    def _interval(self, node: Node, lower: Array, upper: Array) -> None:
        """Derivatives of interval bounds: centre and radius of affine maps, ends of curves."""
        op = node.op
        if isinstance(op, Elementwise):
            box = self.layers.boxes[node.inputs[0]]
            parts = _differences(op, box, lambda moved: _ends(op.interval([moved], 0.0)))
            by_end = [lower * below + upper * above for below, above in parts]
            self.add(node.inputs[0], by_end[0], by_end[1])
            return
        assert isinstance(op, Affine)
        middle = op.transpose(lower + upper)
        spread = op.magnitude.transpose(upper - lower)
        for name, center, radius in zip(node.inputs, middle, spread, strict=True):
            self.add(name, 0.5 * (center - radius), 0.5 * (center + radius))


class _Gains:
    """Derivatives of weighted rows by the faces of the box and by the lines of every neuron.

    Args:
        rule: which lines curves have.
        relaxation: the lines that the rows went through.
        boxes: bounds of every value.
        pulled: the rows, (B, R, n).
        weights: (B, R).
    """

    def __init__(
        self,
        rule: LineRule,
        relaxation: Relaxation,
        boxes: Mapping[str, Box],
        pulled: Pulled,
        weights: Array,
    ) -> None:
        self.rule = rule
        self.relaxation = relaxation
        self.graph = relaxation.graph
        self.boxes = boxes
        self.pulled = pulled
        self.weights = weights
        self.lines: dict[str, Lines] = {}
        zero = array_module(weights).zeros(relaxation.box.lower.shape)
        self.lower = self.upper = self.axes = zero

    def run(self) -> None:
        """Push the minimisers through the lines."""
        graph, box = self.graph, self.relaxation.box
        xp = array_module(self.weights)
        coefficients = self.pulled.coefficients
        if isinstance(box, Ball):
            share, points = box.divide(coefficients)
            axes = box.axes[:, None]
            away = xp.where(
                axes > 0, (points - box.center[:, None]) / xp.maximum(axes, 1e-290), 0.0
            )
            self.axes = self._sum(share * away)
            values = {graph.input: points}
        else:
            negative = xp.minimum(coefficients, 0.0)
            self.upper = self._sum(negative)
            self.lower = self._sum(coefficients) - self.upper
            faces = xp.where(coefficients < 0, box.upper[:, None], box.lower[:, None])
            values = {graph.input: faces}
        shape = self.weights.shape
        needed = _ancestors(graph, self.pulled.activations)
        for node in graph.nodes:
            if node.name not in needed:
                continue
            if isinstance(node.op, Elementwise):
                values[node.name] = self._through(node, values[node.inputs[0]])
                continue
            flat = [values[name].reshape(shape[0] * shape[1], -1) for name in node.inputs]
            values[node.name] = node.op.forward(flat).reshape(*shape, -1)

    def _sum(self, rows: Array) -> Array:
        """Weighted sums of rows (B, R, n) -> (B, n)."""
        return (self.weights[:, None] @ rows)[:, 0]

    def _through(self, node: Node, z: Array) -> Array:
        """Note what the lines of a node are worth; the values behind it."""
        curve = self.relaxation.curves[node.name]
        rows = self.pulled.activations[node.name]
        xp = array_module(rows)
        below = xp.minimum(rows, 0.0)
        upper_slope, upper_offset = self._sum(below * z), self._sum(below)
        slope, offset = self._sum(rows * z), self._sum(rows)
        self.lines[node.name] = Lines(
            slope - upper_slope, offset - upper_offset, upper_slope, upper_offset
        )
        lower = rows >= 0
        mean, half = curve.mean[:, None], curve.half[:, None]
        shift, apart = curve.mean_offset[:, None], curve.half_offset[:, None]
        taken: Array = xp.where(lower, mean - half, mean + half) * z
        taken += xp.where(lower, shift - apart, shift + apart)
        return taken

    def by_bounds(
        self, positions: Mapping[str, Array], by_position: dict[str, Array]
    ) -> Iterator[tuple[str, tuple[Array, Array]]]:
        """Derivatives by bounds of the input and of pre-activations; those by positions are added
        to ``by_position``."""
        yield self.graph.input, (self.lower, self.upper)
        for node in self.graph.nodes:
            if node.name not in self.lines:
                continue
            assert isinstance(node.op, Elementwise)
            op, box, worth = node.op, self.boxes[node.inputs[0]], self.lines[node.name]
            position = positions.get(node.name)

            def relax(
                moved: Box, at: Array | None = position, op: Elementwise = op
            ) -> tuple[Array, ...]:
                return _parts(self.rule.relax(op, moved, at))

            parts = [_dot(worth, part) for part in _differences(op, box, relax)]
            yield node.inputs[0], (parts[0], parts[1])
            if position is None:
                continue
            xp = array_module(position)
            ends = [xp.clip(position + step, 0.0, 1.0) for step in (-_STEP, _STEP)]
            before, after = (relax(box, at) for at in ends)
            change = _dot(worth, _quotient(before, after, ends[1] - ends[0]))
            old = by_position.get(node.name)
            by_position[node.name] = change if old is None else old + change


def _ancestors(graph: Graph, curves: Mapping[str, Array]) -> set[str]:
    """The nodes that the neurons of these curves depend on, and the curves."""
    needed = set(curves)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(name for name in node.inputs if name != graph.input)
    return needed


def _differences(
    op: Elementwise, box: Box, function: Callable[[Box], tuple[Array, ...]]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Derivatives of what is made of a box by its lower and by its upper ends, entry by entry."""
    xp = array_module(box.lower)
    width = box.upper - box.lower

    def step(end: Array) -> Array:
        size = _STEP * width
        for kink in op.kinks:  # a difference across a kink says nothing
            size = xp.minimum(size, 0.5 * abs(end - kink))
        return xp.maximum(size, _LEAST_STEP * (1.0 + abs(end)))  # type: ignore[no-any-return]

    low, high = step(box.lower), step(box.upper)
    return (
        _quotient(
            function(Box(box.lower - low, box.upper)),
            function(Box(box.lower + low, box.upper)),
            2.0 * low,
        ),
        _quotient(
            function(Box(box.lower, box.upper - high)),
            function(Box(box.lower, box.upper + high)),
            2.0 * high,
        ),
    )


def _quotient(
    before: tuple[Array, ...], after: tuple[Array, ...], step: Array
) -> tuple[Array, ...]:
    return tuple((b - a) / step for a, b in zip(before, after, strict=True))


def _ends(box: Box) -> tuple[Array, ...]:
    return box.lower, box.upper


def _parts(lines: Lines) -> tuple[Array, ...]:
    return lines.lower_slope, lines.lower_offset, lines.upper_slope, lines.upper_offset


def _dot(worth: Lines, change: tuple[Array, ...]) -> Array:
    products = [a * b for a, b in zip(_parts(worth), change, strict=True)]
    return products[0] + products[1] + products[2] + products[3]  # type: ignore[no-any-return]
