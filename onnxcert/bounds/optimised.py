"""Optimised bounds: slopes of free lines and multipliers of split constraints, by ascent.

The bound of a fixed relaxation is a concave, piecewise linear function of its free slopes and of
the multipliers (alpha-CROWN, Xu et al. 2021; beta-CROWN, Wang et al. 2021). Its gradient has a
closed form, so no tape is kept: let x* minimise the form at the input and push x* forward through
the *relaxed* network, taking at each neuron the line that the backward pass took. With z_i the
value before neuron i on that path and A_i the row over its output,

    d bound / d slope_i = (A_i m'_i - |A_i| d'_i) z_i,      d bound / d M_i = - z_i,

where m and d are mean and half difference of the two line slopes, m' and d' their derivatives with
respect to the position of the free line, and M the signed multiplier subtracted from the row of z.
Where a line is a tangent its offset moves as well: the derivative is A_i times that of the line
taken, at z_i; the bound is not concave then, and any iterate holds. One backward pass and one
forward pass per step; the best iterate of each row is kept.

Slopes are numbers in [0, 1] and take steps of one size in every network. A multiplier is worth
comparing only with the row that it is subtracted from, |M_i| <~ |A_i|, so its steps are shares of
|A_i|, and they shrink to a tenth over the ascent, however long it is: a subproblem starts where its
parent ended, and steps that stay large lose that place and find none better in the few there are.

Steps need few digits. In long ascents over many slopes they are taken in binary32, which halves
the memory to move and the time of products, and the best variables are evaluated once more in
binary64. Only that bound, with all rounding charged, is handed out.

The ascent moves fine variables, but every bound is evaluated at a copy rounded to the grid of
`onnxcert.bounds.hints`, and that copy is what is kept: a bound can be had again from what is
written down of it. The gradient is taken at the rounded copy (a straight-through estimate, Bengio
et al., 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module, concatenate, single, singles
from onnxcert.bounds.backward import (
    Curve,
    Multipliers,
    PlanesOfSums,
    Pulled,
    Relaxation,
    Surface,
    pull_back,
)
from onnxcert.bounds.execution import before_rounding, enclose
from onnxcert.bounds.hints import round_multipliers, round_positions
from onnxcert.bounds.tilts import Tilting
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import TINY, Affine, BentLines, Bivariate, Elementwise, gamma
from onnxcert.sets import Ball, Box, Lines

_SLOPE_RATE = 0.25
_MULTIPLIER_RATE = 0.3
_WEIGHT_RATE = 0.1
_SHARE_RATE = 0.25
_DECAY = 0.95
_MULTIPLIER_FALL = 0.1
"""What is left of the multipliers' rate after an ascent."""

ASCENT_NUMBERS = 1 << 19
"""Slopes in one ascent, for callers who have more: 4 MB for each of its dozen arrays."""

_LEAST_WORK = 1 << 17
"""Slopes times steps for which binary32 is quicker; below, calls take the time, and there are more.

Measured on 256x6 and resnet_2b: 1.05 times as fast at 2^17, 0.8 at 2^10, 1.5 at 2^22.
"""

_MOMENTUM, _SECOND_MOMENTUM = 0.9, 0.999

_MOST_TANGENTS = 1 << 13
"""Neurons of a smooth layer with free lines: working tangents out anew is most of a long step.

The exponentials of vit_2023 ibp_3_3_8 are 13,872 in each layer, and lose a tenth of all.
"""

MOST_PLANES = 1 << 13
"""Pairs of numbers whose planes are free where each takes a byte in a proof.

With them vit_2023 pgd_2_3_16 7431 is bounded by 0.086 where slopes alone give -0.019.
"""


def _turn(row: Array, z: Array, mean_step: Array, half_step: Array) -> Array:
    """What a row over the output gains at z as a line turns; entry by entry."""
    gain: Array = (row * mean_step - abs(row) * half_step) * z
    return gain


@dataclass(frozen=True)
class FreeCurve:
    """Lines of an elementwise node as a function of the position s of its free line.

    mean(s) = mean + s mean_step, half(s) = half + s half_step; offsets do not depend on s.
    """

    curve: Curve
    mean_step: Array
    half_step: Array

    def at(self, position: Array) -> Curve:
        """The lines at given positions in [0, 1]; their rounding vector holds for all of them."""
        return Curve(
            self.curve.mean + position * self.mean_step,
            self.curve.half + position * self.half_step,
            self.curve.mean_offset,
            self.curve.half_offset,
        )

    def single(self) -> FreeCurve:
        """The same in binary32."""
        return FreeCurve(self.curve.single(), single(self.mean_step), single(self.half_step))

    def gradient(self, row: Array, z: Array, position: Array) -> Array:
        """d bound / d s for rows (B, n) over the outputs and values before the neurons."""
        del position
        return _turn(row, z, self.mean_step, self.half_step)

    def moving(self, start: Array) -> _Turning:
        """The lines for the rows of an ascent that begins at positions (B, n)."""
        return _Turning(self, start)


@dataclass(frozen=True)
class BentCurve:
    """`FreeCurve` for lines whose offsets depend on the position too.

    Attributes:
        lines: the lines.
        rounding: rounding vector that holds for all positions, (B, n).
    """

    lines: BentLines
    rounding: Array

    def at(self, position: Array) -> Curve:
        """The lines at given positions in [0, 1]."""
        lines = self.lines.at(position)
        return Curve(
            0.5 * (lines.lower_slope + lines.upper_slope),
            0.5 * (lines.upper_slope - lines.lower_slope),
            0.5 * (lines.lower_offset + lines.upper_offset),
            0.5 * (lines.upper_offset - lines.lower_offset) + self.rounding,
        )

    def gradient(self, row: Array, z: Array, position: Array) -> Array:
        """d bound / d s for rows (B, n) over the outputs and values before the neurons."""
        lower, upper = self.lines.gains(position, z)
        return row * array_module(row).where(row >= 0, lower, upper)  # type: ignore[no-any-return]

    def moving(self, start: Array) -> _Bending:
        """The lines for the rows of an ascent that begins at positions (B, n)."""
        return _Bending(self, start)


@dataclass(frozen=True)
class FreePlanes:
    """Planes of a function of two values, linear in their position.

    Attributes:
        ends: those at 0 and at 1, each with all that rounding may cost there. What lies between is
            a mean of both, and as right.
    """

    ends: tuple[Surface, Surface]

    def at(self, position: Array) -> Surface:
        """The planes at given positions in [0, 1]."""
        rest, (first, last) = 1.0 - position, self.ends

        def mix(a: Array, b: Array) -> Array:
            return rest * a + position * b  # type: ignore[no-any-return]

        return Surface(
            (mix(first.mean[0], last.mean[0]), mix(first.mean[1], last.mean[1])),
            (mix(first.half[0], last.half[0]), mix(first.half[1], last.half[1])),
            mix(first.mean_offset, last.mean_offset),
            mix(first.half_offset, last.half_offset),
        )

    def gradient(self, row: Array, read: Sequence[Array]) -> Array:
        """d bound / d position for rows (B, n) and values of both inputs."""
        first, last = (end.taken(row, read) for end in self.ends)
        return row * (last - first)  # type: ignore[no-any-return]

    def moving(self, start: Array) -> _Leaning:
        """The planes for the rows of an ascent that begins at positions (B, n)."""
        return _Leaning(self, start)


class _AllMove:
    """Positions of a node in an ascent that moves all of them; see `_Turning`."""

    def __init__(self, start: Array) -> None:
        self._shape = start.shape
        self.first = start.reshape(-1)
        self.entries = array_module(start).arange(start.size)
        self.rows = self.entries // start.shape[1]

    def spread(self, position: Array) -> Array:
        """Positions as a table, (B, n)."""
        return position.reshape(self._shape)


class _Leaning(_AllMove):
    """The planes of a `FreePlanes` for the rows of an ascent."""

    def __init__(self, free: FreePlanes, start: Array) -> None:
        super().__init__(start)
        self._free = free

    def at(self, position: Array) -> Surface:
        """The planes at given positions."""
        return self._free.at(self.spread(position))

    def gradient(self, row: Array, read: Sequence[Array]) -> Array:
        """d bound / d position for rows (B, n) and values of both inputs."""
        return self._free.gradient(row, read).reshape(-1)


class _Turning:
    """The lines of a `FreeCurve` for the rows of an ascent; only what is free is touched.

    Few neurons of a layer are unstable, so positions, their gradients and moments are kept for
    those alone, as vectors over the free entries of (B, n).

    Attributes:
        entries: (M,) numbers of the free entries.
        rows: (M,) the row of each.
    """

    def __init__(self, free: FreeCurve, start: Array) -> None:
        xp = array_module(start)
        self._start = start
        choice = (free.mean_step != 0) | (free.half_step != 0)
        self.entries = xp.flatnonzero(xp.broadcast_to(choice, start.shape))
        self.rows = self.entries // start.shape[1]
        self._parts = [
            self._of(vector)
            for vector in (free.curve.mean, free.curve.half, free.mean_step, free.half_step)
        ]
        mean, half = (
            xp.broadcast_to(vector, start.shape).copy()
            for vector in (free.curve.mean, free.curve.half)
        )
        self._curve = Curve(mean, half, free.curve.mean_offset, free.curve.half_offset)

    def _of(self, vector: Array) -> Array:
        """Free entries of vectors (B, n) or (1, n)."""
        if len(vector) == len(self._start):
            return vector.take(self.entries)  # type: ignore[no-any-return]
        return vector.take(self.entries % vector.shape[1])  # type: ignore[no-any-return]

    @property
    def first(self) -> Array:
        """Where the positions begin."""
        return self._of(self._start)

    def at(self, position: Array) -> Curve:
        """The lines at given positions; those of an earlier call change with them."""
        mean, half, mean_step, half_step = self._parts
        self._curve.mean.reshape(-1)[self.entries] = mean + position * mean_step
        self._curve.half.reshape(-1)[self.entries] = half + position * half_step
        return self._curve

    def gradient(self, row: Array, z: Array, position: Array) -> Array:
        """d bound / d position for rows (B, n) over the outputs and values before the neurons."""
        del position
        _, _, mean_step, half_step = self._parts
        return _turn(self._of(row), self._of(z), mean_step, half_step)

    def spread(self, position: Array) -> Array:
        """Positions of all neurons, (B, n)."""
        result = round_positions(self._start)
        result.reshape(-1)[self.entries] = position
        return result


class _Bending(_AllMove):
    """The lines of a `BentCurve` for the rows of an ascent."""

    def __init__(self, free: BentCurve, start: Array) -> None:
        super().__init__(start)
        self._free = free

    def at(self, position: Array) -> Curve:
        """The lines at given positions."""
        return self._free.at(self.spread(position))

    def gradient(self, row: Array, z: Array, position: Array) -> Array:
        """d bound / d position for rows (B, n) over the outputs and values before the neurons."""
        return self._free.gradient(row, z, self.spread(position)).reshape(-1)


@dataclass
class FreeRelaxation:
    """A relaxation whose lines are not chosen yet, over a batch of subproblems.

    Attributes:
        relaxation: rounding vectors and box; its curves are set before each pass.
        free: name of a curve or of a function of two values -> its lines or planes by position;
            those of other nodes are fixed in the relaxation.
        default: the same names -> default positions, (B, n).
        factors: bounds of what functions of two values read and make, for the planes of
            subproblems.
        tilting: relu -> its upper planes, for an ascent that moves their shares.
        leaning: whether planes of products are free, too.
    """

    relaxation: Relaxation
    free: dict[str, FreeCurve | BentCurve | FreePlanes] = field(default_factory=dict)
    default: dict[str, Array] = field(default_factory=dict)
    factors: dict[str, Box] = field(default_factory=dict)
    tilting: dict[str, Tilting] = field(default_factory=dict)
    leaning: bool = False

    @classmethod
    def begin(
        cls, graph: Graph, box: Box, execution_unit: float = 0.0, *, planes: float = 0
    ) -> FreeRelaxation:
        """An empty relaxation over input boxes; `add` the nodes in order.

        Args:
            graph, box, execution_unit: those of `Relaxation`.
            planes: the planes of products are free unless there are more of them than this.
        """
        count = sum(n.op.output_size for n in graph.nodes if isinstance(n.op, Bivariate))
        leaning = count <= planes
        return cls(Relaxation(graph, box, execution_unit), leaning=leaning)

    @classmethod
    def build(
        cls,
        graph: Graph,
        boxes: Mapping[str, Box],
        execution_unit: float = 0.0,
        *,
        planes: float = 0,
    ) -> FreeRelaxation:
        """Lines for the given bounds of every value (batch of B or 1).

        The bounds must hold for executions with this unit roundoff too; ``planes`` as in `begin`.
        """
        result = cls.begin(graph, boxes[graph.input], execution_unit, planes=planes)
        for node in graph.nodes:
            result.add(node, boxes)
        return result

    def add(self, node: Node, boxes: Mapping[str, Box]) -> None:
        """Add the next node, given the bounds of what it reads and makes."""
        if self.relaxation.leave_out(node, boxes[node.name]):
            return
        if isinstance(node.op, Elementwise):
            self._add_curve(node, node.op, boxes)
        elif isinstance(node.op, Bivariate):
            names = (*node.inputs, node.name)
            self.factors.update((name, boxes[name]) for name in names)
            self._add_planes(node, node.op, boxes)
        else:
            self.relaxation.add_affine(node, boxes)

    def _add_planes(self, node: Node, op: Bivariate, boxes: Mapping[str, Box]) -> None:
        whole = self.relaxation
        exact = before_rounding(whole.graph, node, boxes, boxes[node.name], whole.execution_unit)
        read, name = [boxes[name] for name in node.inputs], node.name
        self.relaxation.add_bivariate(node, boxes, op.relax(read, exact))
        if not self.leaning or not op.turns:
            return
        xp, ends = array_module(read[0].lower), list[Surface]()
        middle = self.relaxation.surfaces[name]
        for end in (0.0, 1.0):
            position = xp.full_like(read[0].lower, end)
            self.relaxation.add_bivariate(node, boxes, op.relax(read, exact, position))
            ends.append(self.relaxation.surfaces[name])
        self.relaxation.surfaces[name] = middle
        self.free[name] = FreePlanes((ends[0], ends[1]))
        self.default[name] = xp.full_like(read[0].lower, 0.5)

    def _add_curve(self, node: Node, op: Elementwise, boxes: Mapping[str, Box]) -> None:
        name, box = node.name, boxes[node.inputs[0]]
        bent = op.bend(box)
        if bent is not None and op.size > _MOST_TANGENTS:
            self.relaxation.add_elementwise(node, boxes, op.relax(box))
            return
        if bent is not None:
            self._add_bent(node, op, bent, boxes)
            return
        xp = array_module(box.lower)
        ends = [op.relax(box, xp.full_like(box.lower, position)) for position in (0.0, 1.0)]
        lower, upper = (line.lower_slope for line in ends), (line.upper_slope for line in ends)
        first_lower, last_lower = lower
        first_upper, last_upper = upper
        # The rounding vector must hold for every position: take the steepest of all lines.
        slopes = (first_lower, last_lower, first_upper, last_upper)
        steepest = Lines(
            xp.minimum(xp.minimum(*slopes[:2]), xp.minimum(*slopes[2:])),
            ends[0].lower_offset,
            xp.maximum(xp.maximum(*slopes[:2]), xp.maximum(*slopes[2:])),
            ends[0].upper_offset,
        )
        self.relaxation.add_elementwise(node, boxes, steepest)
        worst = self.relaxation.curves[name]
        curve = Curve(
            0.5 * (first_lower + first_upper),
            0.5 * (first_upper - first_lower),
            worst.mean_offset,
            worst.half_offset,
        )
        lower_step, upper_step = last_lower - first_lower, last_upper - first_upper
        if not (lower_step.any() or upper_step.any()):
            self.relaxation.curves[name] = curve
            return
        self.free[name] = FreeCurve(
            curve, 0.5 * (lower_step + upper_step), 0.5 * (upper_step - lower_step)
        )
        self.default[name] = op.default_position(box)

    def _add_bent(
        self, node: Node, op: Elementwise, lines: BentLines, boxes: Mapping[str, Box]
    ) -> None:
        box = boxes[node.inputs[0]]
        xp = array_module(box.lower)
        # The rounding vector must hold for every position: take the steepest line and the largest
        # offset, twice, so that all of half the difference of the offsets is rounding.
        self.relaxation.add_elementwise(node, boxes, lines.largest(xp.zeros_like(box.lower)))
        rounding = self.relaxation.curves[node.name].half_offset
        free = self.free[node.name] = BentCurve(lines, rounding)
        self.default[node.name] = op.default_position(box)
        # Until lines are chosen: passes over layers before need none of these.
        self.relaxation.curves[node.name] = free.at(self.default[node.name])

    def with_boxes(self, boxes: Mapping[str, Box]) -> FreeRelaxation:
        """The same relaxation with tighter bounds of some pre-activations, (B, n) each.

        Rounding vectors stay those of the wider boxes, which hold all the more. Planes become those
        of the tighter boxes, also where a factor is made by a curve of what became tighter.
        """
        whole = self.relaxation
        relaxation = replace(
            whole,
            curves=dict(whole.curves),
            surfaces=dict(whole.surfaces),
            fixed=dict(whole.fixed),
            tilts=dict(whole.tilts),
            left_out=set(whole.left_out),
        )
        result = replace(
            self,
            relaxation=relaxation,
            free=dict(self.free),
            default=dict(self.default),
        )
        ranges = dict(boxes)
        for node in whole.graph.nodes:
            if node.name in whole.left_out:
                continue
            if isinstance(node.op, Elementwise) and node.inputs[0] in boxes:
                result.free.pop(node.name, None)
                result.default.pop(node.name, None)
                result._add_curve(node, node.op, boxes)
                if node.name in self.factors:
                    made = enclose(whole.graph, node, boxes, whole.execution_unit)
                    known = ranges.get(node.name, self.factors[node.name])
                    ranges[node.name] = made.intersect(known)
            elif isinstance(node.op, Bivariate) and not ranges.keys().isdisjoint(node.inputs):
                result._add_planes(node, node.op, self.factors | ranges)
        return result

    def tilted(self, tilting: Mapping[str, Tilting]) -> FreeRelaxation:
        """The same with upper planes, whose shares an ascent will move."""
        return replace(self, relaxation=replace(self.relaxation, tilts={}), tilting=dict(tilting))

    def single(self) -> FreeRelaxation:
        """The same in binary32 (`Relaxation.single`); all lines must turn."""
        free = {name: line for name, line in self.free.items() if isinstance(line, FreeCurve)}
        whole = self.relaxation
        fixed = {name: c.single() for name, c in whole.curves.items() if name not in free}
        turning = {name: line.single() for name, line in free.items()}
        curves = fixed | {name: line.curve for name, line in turning.items()}
        tilting = {name: tilting.single() for name, tilting in self.tilting.items()}
        default = singles(self.default)
        relaxation = whole.single(curves=curves)
        return FreeRelaxation(relaxation, dict(turning), default, tilting=tilting)

    def choose(self, positions: Mapping[str, Array]) -> None:
        """Set the lines and planes for the next pass."""
        for name, free in self.free.items():
            set_lines(self.relaxation, name, free.at(positions[name]))


def set_lines(relaxation: Relaxation, name: str, chosen: Curve | Surface) -> None:
    """Choose the lines or planes of a node."""
    if isinstance(chosen, Surface):
        relaxation.surfaces[name] = chosen
    else:
        relaxation.curves[name] = chosen


@dataclass(frozen=True)
class Forms:
    """For each of B subproblems R linear forms that would all have to be <= 0.

    Attributes:
        rows: (B, R, m) over the output.
        input_rows: (B, R, input_size) over the input, or None.
        offset: (B, R).
        used: (B, R), False for padding.
    """

    rows: Array
    input_rows: Array | None
    offset: Array
    used: Array

    def single(self) -> Forms:
        """The same in binary32."""
        input_rows = None if self.input_rows is None else single(self.input_rows)
        return Forms(single(self.rows), input_rows, single(self.offset), self.used)

    def take(self, index: Array) -> Forms:
        """Those of some subproblems, which may occur again."""
        input_rows = None if self.input_rows is None else self.input_rows[index]
        return Forms(self.rows[index], input_rows, self.offset[index], self.used[index])

    def combine(self, weights: Array, output: Box, box: Box) -> tuple[Array, Array | None, Array]:
        """Non-negative combination: rows (B, 1, m), input rows, and a constant rounded down."""
        error = 2.0 * gamma(self.rows.shape[1] + 4, UNIT_ROUNDOFF)
        mixed = weights[:, None]
        rows = mixed @ self.rows
        slack = ((mixed @ abs(self.rows))[:, 0] * output.magnitude).sum(axis=1)
        slack = slack + (weights * abs(self.offset)).sum(axis=1)
        input_rows = None
        if self.input_rows is not None:
            input_rows = mixed @ self.input_rows
            slack = slack + ((mixed @ abs(self.input_rows))[:, 0] * box.magnitude).sum(axis=1)
        return rows, input_rows, (weights * self.offset).sum(axis=1) - error * slack

    def pull(self, relaxation: Relaxation) -> Pulled:
        """Bound every form by itself: (B, R) lower bounds, -inf for padding."""
        pulled = pull_back(
            relaxation, relaxation.graph.output, self.rows, input_rows=self.input_rows
        )
        lower = round_down(pulled.lower + self.offset)
        xp = array_module(lower)
        return replace(pulled, lower=xp.where(self.used, lower, -xp.inf))

    def over(self, output: Box, box: Box) -> Array:
        """Bound every form by intervals: (B, R) lower bounds, -inf for padding.

        Where curves level off, intervals know that values keep to one side of a number, and lines
        do not.

        Args:
            output, box: bounds of what the forms speak about, (B, .) or (1, .) each.
        """
        lower, size = self.offset, abs(self.offset)
        for rows, read in ((self.rows, output), (self.input_rows, box)):
            if rows is None:
                continue
            xp = array_module(rows)
            # Zero times infinity is zero here.
            upper = xp.where(rows < 0, read.upper[:, None], 0.0)
            parts = rows * xp.where(rows > 0, read.lower[:, None], upper)
            lower, size = lower + parts.sum(axis=2), size + abs(parts).sum(axis=2)
        count = self.rows.shape[2] + box.lower.shape[1] + 8
        lower = lower - 2.0 * gamma(count, UNIT_ROUNDOFF) * size - TINY
        used = self.used & ~xp.isnan(lower)
        return xp.where(used, lower, -xp.inf)  # type: ignore[no-any-return]

    def value(self, outputs: Array, inputs: Array) -> Array:
        """The forms at given points: (B, R)."""
        result = (self.rows @ outputs[:, :, None])[:, :, 0] + self.offset
        if self.input_rows is not None:
            result = result + (self.input_rows @ inputs[:, :, None])[:, :, 0]
        return result


@dataclass(frozen=True)
class Start:
    """Where an ascent begins, and what it hands to the children of a subproblem.

    Attributes:
        positions: elementwise node -> (B, n) positions of the free lines.
        multipliers: pre-activation -> (B, n) signed multipliers.
        weights: (B, R) non-negative weights of the forms.
        anchor: (B,) the form whose weight stays at one. Normalising the weights instead would let
            a form that is never negative pull every bound to zero and hide all progress.
        shares: relu -> (B, N, p) shares of its upper planes (`onnxcert.bounds.tilts`).
    """

    positions: Mapping[str, Array]
    multipliers: Mapping[str, Array]
    weights: Array
    anchor: Array
    shares: Mapping[str, Array] = field(default_factory=dict)

    def take(self, index: Array) -> Start:
        """The variables of some subproblems."""
        parts = (self.positions, self.multipliers, self.shares)
        positions, multipliers, shares = (
            {name: value[index] for name, value in part.items()} for part in parts
        )
        return Start(positions, multipliers, self.weights[index], self.anchor[index], shares)

    @classmethod
    def at_form(cls, anchor: Array, forms: Forms) -> Start:
        """Default slopes, no multipliers, and only one form."""
        xp = array_module(anchor)
        weights = xp.zeros(forms.used.shape)
        weights[xp.arange(len(anchor)), anchor] = 1.0
        return cls({}, {}, weights, anchor)


@dataclass(frozen=True)
class Optimised:
    """Result of `optimise`, one row per subproblem.

    Attributes:
        lower: (B,) best lower bounds of the combined forms; positive refutes the subproblem.
        best: slopes, multipliers and weights of that bound, all on the grid of
            `onnxcert.bounds.hints`; evaluated again (no steps) they give the same bound.
        activations: elementwise node -> (B, n) rows after the last step, maybe in binary32.
        minimiser: (B, input_size), the input at which the form is smallest then, likewise.
    """

    lower: Array
    best: Start
    activations: dict[str, Array]
    minimiser: Array

    def take(self, index: Array) -> Optimised:
        """That of some subproblems."""
        rows = {name: row[index] for name, row in self.activations.items()}
        return Optimised(self.lower[index], self.best.take(index), rows, self.minimiser[index])

    def replaced(self, index: Array, other: Optimised) -> Optimised:
        """The same with other results for some subproblems, but for multipliers and shares."""
        lower, minimiser = self.lower.copy(), self.minimiser.copy()
        weights = self.best.weights.copy()
        lower[index], minimiser[index] = other.lower, other.minimiser
        weights[index] = other.best.weights
        positions = {name: value.copy() for name, value in self.best.positions.items()}
        for name, value in other.best.positions.items():
            positions[name][index] = value
        rows = {name: row.copy() for name, row in self.activations.items()}
        for name, row in other.activations.items():
            rows[name][index] = row
        best = replace(self.best, positions=positions, weights=weights)
        return Optimised(lower, best, rows, minimiser)


class _Ascent:
    """Projected Adam on one array (Kingma and Ba, 2015).

    Attributes:
        values: the variables.
        rate: size of the first step.
        decay: ratio of a step's size to that of the step before.
    """

    def __init__(self, values: Array, rate: float, decay: float = _DECAY) -> None:
        self.values = values
        self.rate = rate
        self.decay = decay
        self._first, self._second = 0.0 * values, 0.0 * values

    def step(self, number: int, gradient: Array, unit: Array | float = 1.0) -> Array:
        """The proposed new values, not yet projected; ``unit`` is what the rate is a share of."""
        first, second = self._first, self._second
        first *= _MOMENTUM
        first += (1.0 - _MOMENTUM) * gradient
        second *= _SECOND_MOMENTUM
        second += (1.0 - _SECOND_MOMENTUM) * gradient * gradient
        rate = self.rate * self.decay**number / (1.0 - _MOMENTUM ** (number + 1))
        scale = (second / (1.0 - _SECOND_MOMENTUM ** (number + 1))) ** 0.5 + 1e-12
        return self.values + unit * (rate * first / scale)


@dataclass(frozen=True)
class Splits:
    """Split constraints ``sign (z - point) >= 0`` on pre-activations, arrays (B, n) by name.

    A neuron that is split again lies between two points, and its multiplier may have either sign.

    Attributes:
        signs: -1, 0 for none, or 1; 2 for both.
        points: where the neurons were split; for both, the point below.
        others: pre-activation -> for both, the point above, where there are any.
    """

    signs: Mapping[str, Array] = field(default_factory=dict)
    points: Mapping[str, Array] = field(default_factory=dict)
    others: Mapping[str, Array] = field(default_factory=dict)

    def single(self) -> Splits:
        """The same in binary32."""
        return Splits(singles(self.signs), singles(self.points), singles(self.others))

    def take(self, index: Array) -> Splits:
        """Those of some subproblems, which may occur again."""
        parts = (self.signs, self.points, self.others)
        return Splits(*({name: value[index] for name, value in part.items()} for part in parts))

    def charged(self, name: str, value: Array) -> Multipliers:
        """Signed multipliers (B, n) of a pre-activation with the points that they belong to."""
        points = self.points[name]
        if name in self.others:
            above = (self.signs[name] == 2) & (value < 0)
            points = array_module(value).where(above, self.others[name], points)
        return Multipliers(value, points)


@dataclass(frozen=True)
class Sought:
    """Rows whose bounds are wanted where the forms are <= 0, beside any weight of the forms.

    What is bounded is ``row . z + sum_r w_r g_r`` with w >= 0, which is at most row . z there.

    Attributes:
        name: the pre-activation z.
        rows: (B, n) over it, zero at neurons that a split constrains.
        rate: (B, 1) a weight of the forms that is neither much too small nor too large.
    """

    name: str
    rows: Array
    rate: Array

    def single(self) -> Sought:
        """The same in binary32."""
        return Sought(self.name, single(self.rows), single(self.rate))

    def among(self, splits: dict[str, Multipliers]) -> dict[str, Multipliers]:
        """Multipliers by pre-activation with these rows: A z + row z = A z - (-row) (z - 0)."""
        known = splits.get(self.name)
        if known is None:
            return splits | {self.name: Multipliers(-self.rows, 0.0 * self.rows)}
        return splits | {self.name: Multipliers(known.value - self.rows, known.point)}


@dataclass
class _Values:
    """Values of all variables of an ascent, on the grid.

    Attributes:
        positions: (P,) of all free lines, node after node.
        multipliers: (S,) of all splits, one pre-activation after the other.
        weights: (B, R).
        shares: (B, N, p) by node.
    """

    positions: Array
    multipliers: Array
    weights: Array
    shares: Mapping[str, Array]


class _Entries:
    """Numbers of entries in arrays (B, n) of several names, one name after the other.

    Attributes:
        place: name -> where its entries are among all.
        numbers: name -> (M,) numbers of its entries in the flat array.
        rows: the row of each entry of all, (sum M,).
    """

    def __init__(self, numbers: Mapping[str, Array], sizes: Mapping[str, int], like: Array) -> None:
        self.numbers = numbers
        self.place: dict[str, slice] = {}
        rows, begin = [like[:0].astype(int)], 0
        for name, entries in numbers.items():
            self.place[name] = slice(begin, begin + len(entries))
            begin += len(entries)
            rows.append(entries // sizes[name])
        self.rows = concatenate(rows)

    def gather(self, arrays: Mapping[str, Array], like: Array) -> Array:
        """The entries of all arrays, as a copy in the precision of ``like``."""
        parts = [arrays[name].take(entries) for name, entries in self.numbers.items()]
        return concatenate([like[:0], *parts]).astype(like.dtype)


class _Variables:
    """The three groups of variables of an ascent, and the best values seen.

    A step costs as many calls of the array library as there are groups, however many nodes: for
    small networks these calls are what takes time.

    Attributes:
        lines: elementwise node -> its free lines.
        slopes, multipliers, weights: the ascents.
        splits: which entries of pre-activations have multipliers.
        chosen: the variables on the grid, where the bound is evaluated.
        lower: (B,) best bounds so far.
    """

    def __init__(self, task: _Task, start: Start, steps: int) -> None:
        xp = array_module(task.forms.rows)
        count, dtype = len(task.forms.rows), task.forms.rows.dtype
        free, signs, known = task.free, task.splits.signs, start.positions
        self.lower = xp.full(count, -xp.inf, dtype)
        self.lines: dict[str, _Turning | _Bending | _Leaning] = {}
        for name, line in free.free.items():
            default = free.default[name]
            first = xp.broadcast_to(known.get(name, default), (count, default.shape[1]))
            self.lines[name] = line.moving(first.astype(dtype, order="C"))
        sizes = task.free.relaxation.graph.sizes
        self._free = _Entries(
            {n: line.entries for n, line in self.lines.items()}, sizes, self.lower
        )
        firsts = [line.first for line in self.lines.values()]
        self.slopes = _Ascent(concatenate([self.lower[:0], *firsts]), _SLOPE_RATE)
        self.splits = _Entries({n: xp.flatnonzero(s) for n, s in signs.items()}, sizes, self.lower)
        self._signs = self.splits.gather(signs, self.lower)
        self._points = self.splits.gather(task.splits.points, self.lower)
        others = {**task.splits.points, **task.splits.others}
        self._others = self.splits.gather(others, self.lower) if task.splits.others else None
        begin = {
            name: start.multipliers.get(name, xp.zeros(sign.shape)) for name, sign in signs.items()
        }
        fall = _MULTIPLIER_FALL ** (1.0 / max(1, steps))
        self.multipliers = _Ascent(self.splits.gather(begin, self.lower), _MULTIPLIER_RATE, fall)
        self.weights = _Ascent(start.weights.astype(dtype), _WEIGHT_RATE)
        self.anchor = start.anchor
        self._dense = {name: xp.zeros(sign.shape, dtype) for name, sign in signs.items()}
        self.shares = {
            name: _Ascent(
                xp.broadcast_to(first, (count, *first.shape[1:])).astype(dtype), _SHARE_RATE
            )
            for name, tilting in free.tilting.items()
            for first in [start.shares.get(name, tilting.chord)]
        }
        self._best = self.chosen = self._rounded()

    def _rounded(self) -> _Values:
        return _Values(
            round_positions(self.slopes.values),
            round_multipliers(self.multipliers.values),
            round_multipliers(self.weights.values),
            {name: round_positions(ascent.values) for name, ascent in self.shares.items()},
        )

    def choose(self) -> None:
        """Round the variables as they are now."""
        self.chosen = self._rounded()

    def positions(self, name: str) -> Array:
        """Those of a node's free lines, as chosen."""
        return self.chosen.positions[self._free.place[name]]

    def dense_multipliers(self) -> dict[str, Array]:
        """Pre-activation -> (B, n) multipliers as chosen; the next call changes them."""
        return self._spread_multipliers(self.chosen)

    def _spread_multipliers(self, values: _Values) -> dict[str, Array]:
        for name, entries in self.splits.numbers.items():
            part = values.multipliers[self.splits.place[name]]
            self._dense[name].reshape(-1)[entries] = part
        return self._dense

    def keep_better(self, lower: Array) -> None:
        """Keep what is chosen where its bound is the best so far."""
        better = lower > self.lower
        self.lower = array_module(lower).where(better, lower, self.lower)
        if better.all():
            self._best = self.chosen
            return
        best, chosen = self._best, self.chosen
        changed = better[self._free.rows]
        best.positions[changed] = chosen.positions[changed]
        changed = better[self.splits.rows]
        best.multipliers[changed] = chosen.multipliers[changed]
        best.weights[better] = chosen.weights[better]
        for name, shares in chosen.shares.items():
            best.shares[name][better] = shares[better]

    def result(self) -> Start:
        """The best variables, of all neurons."""
        positions = {
            name: line.spread(self._best.positions[self._free.place[name]])
            for name, line in self.lines.items()
        }
        multipliers = self._spread_multipliers(self._best)
        return Start(positions, multipliers, self._best.weights, self.anchor, self._best.shares)

    def turn(self, number: int, gradients: Mapping[str, Array]) -> None:
        """Move slopes along their gradients, by node; those of other nodes stay."""
        slopes = self.slopes
        gradient = 0.0 * slopes.values
        for name, part in gradients.items():
            gradient[self._free.place[name]] = part
        slopes.values = slopes.step(number, gradient).clip(0.0, 1.0)

    def press(self, number: int, heights: Mapping[str, Array], sizes: Mapping[str, Array]) -> None:
        """Move multipliers, given values before the neurons and sizes of rows, by pre-activation.

        Both hold the entries that are split; those of other pre-activations stay.
        """
        multipliers = self.multipliers
        gradient, unit = 0.0 * multipliers.values, 0.0 * multipliers.values
        for name, height in heights.items():
            place = self.splits.place[name]
            gradient[place] = self._pressed(place, height) - height
            unit[place] = sizes[name]
        moved = multipliers.step(number, gradient, unit)
        right = moved * self._signs > 0
        multipliers.values = moved * (right if self._others is None else right | (self._signs == 2))

    def _pressed(self, place: slice, height: Array) -> Array:
        """The points that multipliers push to; where one may have either sign and has none, the
        nearest of what lies between."""
        points = self._points[place]
        if self._others is None:
            return points
        xp, others = array_module(height), self._others[place]
        value = self.multipliers.values[place]
        between = xp.minimum(xp.maximum(height, points), others)
        both = xp.where(value > 0, points, xp.where(value < 0, others, between))
        return xp.where(self._signs[place] == 2, both, points)  # type: ignore[no-any-return]

    def lean(self, name: str, number: int, gradient: Array) -> None:
        """Move the shares of a node's planes along their gradient."""
        self.shares[name].values = self.shares[name].step(number, gradient).clip(0.0, 1.0)

    def weigh(
        self, number: int, gradient: Array, used: Array, sought: Sought | None = None
    ) -> None:
        """Move the weights of the forms, all but the anchors'; beside what is sought, all."""
        xp = array_module(gradient)
        rate = 1.0 if sought is None else sought.rate
        weights = xp.maximum(self.weights.step(number, gradient, rate), 0.0) * used
        if sought is None:
            weights[xp.arange(len(weights)), self.anchor] = 1.0
        self.weights.values = weights


def optimise(  # noqa: PLR0913 - all but four are keywords with defaults
    free: FreeRelaxation,
    forms: Forms,
    output: Box,
    start: Start,
    *,
    target: str | None = None,
    splits: Splits | None = None,
    steps: int = 20,
    expired: Callable[[], bool] = lambda: False,
    sought: Sought | None = None,
) -> Optimised:
    """Raise lower bounds of non-negative combinations of the forms, one per subproblem.

    A positive bound of ``sum_r w_r g_r`` with w >= 0 shows that not all g_r can be <= 0, so the
    weights are variables of the ascent like slopes and multipliers; their gradient is the value of
    the forms at the end of the relaxed path.

    Args:
        free: the relaxation, batch B or 1.
        forms: what is to be refuted.
        output: bounds of the value that the forms speak about.
        start: where the ascent begins; rounded to the grid before anything is evaluated.
        target: that value; None for the network's output.
        splits: what the subproblems assume beyond their boxes.
        steps: ascent steps; 0 only evaluates.
        expired: asked before each step.
        sought: rows to be bounded where the forms hold, instead of the forms themselves.
    """
    target = target or free.relaxation.graph.output
    task = _Task(free, forms, output, target, splits or Splits(), sought)
    if not task.shortened(steps):
        return _ascend(task, start, steps, expired)
    with np.errstate(all="ignore"):  # what binary32 cannot hold raises no bound
        found = _ascend(task.single(), start, steps, expired)
    # Not the rows and minimisers of the best variables: those of the last are better to branch by.
    last = _ascend(task, found.best, 0, expired)
    return replace(found, lower=last.lower, best=last.best)


@dataclass(frozen=True)
class _Task:
    """What an ascent raises, and over what; see `optimise`."""

    free: FreeRelaxation
    forms: Forms
    output: Box
    target: str
    splits: Splits
    sought: Sought | None = None

    def shortened(self, steps: int) -> bool:
        """Whether so many steps take less time in binary32.

        Tangents of smooth curves are worked out anew at each step, to the last digit of binary64,
        and so is where an ellipsoid meets a box.
        """
        work = steps * len(self.forms.rows) * sum(v.shape[1] for v in self.free.default.values())
        turning = all(isinstance(line, FreeCurve) for line in self.free.free.values())
        return turning and work >= _LEAST_WORK and not isinstance(self.free.relaxation.box, Ball)

    def single(self) -> _Task:
        """The same in binary32; all lines must turn."""
        free, output = self.free.single(), self.output.map(single)
        sought = None if self.sought is None else self.sought.single()
        forms, splits = self.forms.single(), self.splits.single()
        return _Task(free, forms, output, self.target, splits, sought)

    def settled(self, lower: Array) -> bool:
        """Whether no bound need rise any more."""
        return self.sought is None and bool((lower > 0.0).all())


def _ascend(task: _Task, start: Start, steps: int, expired: Callable[[], bool]) -> Optimised:
    """The ascent in the precision of the task's arrays."""
    splits, relaxation = task.splits, task.free.relaxation
    variables = _Variables(task, start, steps)
    for number in range(steps + 1):
        for name, line in variables.lines.items():
            set_lines(relaxation, name, line.at(variables.positions(name)))
        for name, tilting in task.free.tilting.items():
            relaxation.tilts[name] = tilting.tilt(variables.chosen.shares[name])
        weights = variables.chosen.weights
        rows, input_rows, constant = task.forms.combine(weights, task.output, relaxation.box)
        multipliers = {
            name: splits.charged(name, value)
            for name, value in variables.dense_multipliers().items()
        }
        if task.sought is not None:
            multipliers = task.sought.among(multipliers)
        pulled = pull_back(
            relaxation,
            task.target,
            rows,
            input_rows=input_rows,
            multipliers=multipliers,
            keep=True,
        )
        lower = pulled.lower[:, 0] + constant
        variables.keep_better(round_down(lower))
        minimiser = relaxation.box.minimiser(pulled.coefficients[:, 0])
        if number == steps or task.settled(variables.lower) or expired():
            break
        _step(task, pulled, minimiser, variables, number)
        variables.choose()
    activations = {name: rows[:, 0] for name, rows in pulled.activations.items()}
    return Optimised(variables.lower, variables.result(), activations, minimiser)


def round_down(total: Array) -> Array:
    """Charge the rounding of the sum that made each entry."""
    return total - 4.0 * UNIT_ROUNDOFF * abs(total)  # type: ignore[no-any-return]


def _row_sizes(graph: Graph, name: str, entries: Array, pulled: Pulled) -> Array:
    """|A_i| over what is made of entries of a pre-activation, summed over its curves."""
    size = 0.0 * entries
    for node in graph.pre_activations[name]:
        if node.name in pulled.activations:
            size = size + abs(pulled.activations[node.name].take(entries))
    return size


def _on_line(curve: Curve, row: Array, z: Array) -> Array:
    """The line that a backward pass took, at z; arrays (B, n)."""
    xp = array_module(row)
    sign = xp.copysign(xp.ones((), row.dtype), row)
    value = sign * curve.half
    xp.subtract(curve.mean, value, out=value)
    value *= z
    value += curve.mean_offset
    sign *= curve.half_offset
    value -= sign
    return value  # type: ignore[no-any-return]


class _Path:
    """The minimiser's way through the lines and planes that a backward pass took.

    Attributes:
        values: value name -> (B, n), as far as they are known and needed.
        turns: node with free lines or planes -> what its positions gain.
        leans: relu with free planes above it -> what their shares gain.
    """

    def __init__(
        self, task: _Task, pulled: Pulled, minimiser: Array, variables: _Variables
    ) -> None:
        self._relaxation, self._pulled, self._variables = task.free.relaxation, pulled, variables
        self.graph = graph = task.free.relaxation.graph
        self.values = {graph.input: minimiser}
        self.turns: dict[str, Array] = {}
        self.leans: dict[str, Array] = {}
        self._tilting = task.free.tilting
        self._matrices: dict[str, PlanesOfSums] = {}
        for name, found in graph.matrix_products.items():
            planes = self._relaxation.planes_of_sums(name)
            is_free = found.product in variables.lines
            if planes is not None and found.product in pulled.activations and not is_free:
                self._matrices[name] = planes
        multiplied = [planes.of for planes in self._matrices.values()]
        self._passed = {name for found in multiplied for name in (found.product, *found.pairs)}
        self._kept = {task.target, *(name for found in multiplied for name in found.sources)}
        self._kept |= {tilt.source for tilt in self._relaxation.tilts.values()}

    def follow(self, position: int, node: Node) -> bool:
        """Go through the next node; whether it is between the input and the forms."""
        made = self._value(node)
        if made is None:
            return False
        self.values[node.name] = made
        for source in node.inputs:
            if self.graph.last_use[source] == position and source not in self._kept:
                self.values.pop(source, None)
        return True

    def _value(self, node: Node) -> Array | None:
        name, values = node.name, self.values
        if name in self._matrices:
            return self._of_matrices(node, self._matrices[name])
        if name in self._passed or not all(source in values for source in node.inputs):
            return None
        read = [values[source] for source in node.inputs]
        fixed = self._relaxation.fixed.get(name)
        if fixed is not None and fixed.whole:
            shape = len(read[0]), node.op.output_size
            return array_module(read[0]).broadcast_to(fixed.center, shape)  # type: ignore[no-any-return]
        bent = isinstance(node.op, Elementwise | Bivariate)
        if name in self._pulled.activations and bent:
            return self._on_piece(name, self._pulled.activations[name][:, 0], read)
        return None if isinstance(node.op, Elementwise) else node.op.forward(read)

    def _on_piece(self, name: str, row: Array, read: Sequence[Array]) -> Array:
        """The line or plane that a row took."""
        line = self._variables.lines.get(name)
        if isinstance(line, _Leaning):
            self.turns[name] = line.gradient(row, read)
        elif line is not None:
            self.turns[name] = line.gradient(row, read[0], self._variables.positions(name))
        if len(read) == 1:
            made = _on_line(self._relaxation.curves[name], row, read[0])
            return self._on_plane(name, row, made) if name in self._relaxation.tilts else made
        return self._relaxation.surfaces[name].taken(row, read)

    def _on_plane(self, name: str, row: Array, made: Array) -> Array:
        """The planes above relus that a row took, and the lines of the others."""
        tilt = self._relaxation.tilts[name]
        source = self.values[tilt.source]
        if name in self._tilting:
            self.leans[name] = self._tilting[name].gradient(row, source)
        return tilt.taken(row, made, source)

    def _of_matrices(self, node: Node, planes: PlanesOfSums) -> Array | None:
        """The planes of all products in a product of matrices, summed up."""
        found, op = planes.of, node.op
        assert isinstance(op, Affine)
        row = self._pulled.activations[found.product][:, 0, :: found.depth]
        signs = array_module(row).where(row >= 0, 1.0, -1.0).astype(row.dtype)
        made = found.factor * planes.values([self.values[name] for name in found.sources], signs)
        return made if op.bias is None else made + op.bias


def _step(
    task: _Task, pulled: Pulled, minimiser: Array, variables: _Variables, number: int
) -> None:
    """Push the minimiser through the chosen lines and move all variables along the gradient."""
    forms, target, splits = task.forms, task.target, task.splits
    path = _Path(task, pulled, minimiser, variables)
    heights: dict[str, Array] = {}
    sizes: dict[str, Array] = {}
    for position, node in enumerate(path.graph.nodes):
        name = node.name
        if not path.follow(position, node):
            continue
        if name in splits.signs:
            entries = variables.splits.numbers[name]
            heights[name] = path.values[name].take(entries)
            sizes[name] = _row_sizes(path.graph, name, entries, pulled)
        if name == target:
            break
    variables.turn(number, path.turns)
    for name, gradient in path.leans.items():
        variables.lean(name, number, gradient)
    variables.press(number, heights, sizes)
    weighed = forms.rows.shape[1] > 1 or task.sought is not None
    if weighed and target in path.values:
        xp = array_module(minimiser)
        gradient = xp.where(forms.used, forms.value(path.values[target], minimiser), 0.0)
        variables.weigh(number, gradient, forms.used, task.sought)
