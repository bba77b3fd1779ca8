"""Bounds of single forms, raised by a few steps of the free slopes: no hints, no memory.

Default slopes ignore what is asked of them. Over small boxes, where a handful of neurons is still
unstable, most of the distance between bound and truth is their doing, and a few passes of one row
each cost little beside the backward rows of all layers. The rule is so simple that a checker can
repeat it without being told any slopes: begin at the default, and four times move every free slope
by a fixed rate along the sign of its derivative (signSGD: Bernstein et al., 2018), with the
derivative in the closed form of `onnxcert.bounds.optimised`. The rates 0.5 x 0.8^t let a slope
cross its whole range; the best of the five bounds counts. Derivatives that cancel count as zero:
what is left of them are rounding errors, and those of the checker are others. Planes of products
turn in the same way, from parallel ones at the middle of their range.

Over folded networks (`onnxcert.search.folded_split`), where thousands of neurons are unstable, 8
steps from rate 0.25 are as good as 16 from 0.5: -0.41 where the default has -0.56, and 128 steps
-0.37.

Frank-Wolfe steps towards the signs closed 10 % fewer boxes with twice the passes, gradients scaled
by their largest entry as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxcert.arrays import Array, array_module, concatenate
from onnxcert.bounds.backward import Pulled, pull_back
from onnxcert.bounds.optimised import Forms, FreeCurve, FreePlanes, FreeRelaxation, round_down
from onnxcert.graph import Graph
from onnxcert.ops.base import Bivariate, Elementwise
from onnxcert.sets import Ball, Box

STEPS, RATE = 4, 0.5
"""Steps after the first pass, and the rate of the first one."""

_DECAY = 0.8

_NOTHING = 1e-9
"""Share of the largest part of a form below which a number is taken for a rounding error."""


@dataclass(frozen=True)
class Raised:
    """The best pass for each form.

    Attributes:
        lower: (P,) lower bounds, -inf where nothing is known.
        coefficients: (P, input_size) of the linear form over the input.
        activations: elementwise node -> (P, n) rows over its output.
    """

    lower: Array
    coefficients: Array
    activations: dict[str, Array]

    def take(self, index: Array) -> Raised:
        """Some of the forms."""
        activations = {name: rows[index] for name, rows in self.activations.items()}
        return Raised(self.lower[index], self.coefficients[index], activations)

    @staticmethod
    def join(parts: Sequence[Raised]) -> Raised:
        """All forms of some batches over the same network.

        A value that is the same all over some batch has no rows there; they count as zero.
        """
        if len(parts) == 1:
            return parts[0]
        widths = {n: rows.shape[1] for part in parts for n, rows in part.activations.items()}
        return Raised(
            concatenate([part.lower for part in parts]),
            concatenate([part.coefficients for part in parts]),
            {
                name: concatenate([part.rows(name, width) for part in parts])
                for name, width in widths.items()
            },
        )

    def rows(self, name: str, width: int) -> Array:
        """The rows (P, width) over a node's output, zero where none reached it."""
        none = array_module(self.lower).zeros((len(self.lower), width))
        return self.activations.get(name, none)  # type: ignore[no-any-return]


def raise_forms(
    graph: Graph,
    boxes: Mapping[str, Box],
    forms: Forms,
    weights: Array,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    execution_unit: float = 0.0,
    expired: Callable[[], bool] = lambda: False,
) -> Raised:
    """Raise the lower bounds of weighted sums of forms.

    Args:
        graph: the network.
        boxes: bounds of every value, batches of P.
        forms: (P, R) forms.
        weights: (P, R), non-negative.
        steps: how often the slopes are moved; 0 only evaluates.
        rate: by how much at first.
        execution_unit: unit roundoff of executions for which the bounds given hold, and those
            found shall hold.
        expired: asked before each step.
    """
    xp = array_module(weights)
    free = FreeRelaxation.build(graph, boxes, execution_unit, planes=math.inf)
    relaxation = free.relaxation
    rows, input_rows, constant = forms.combine(weights, boxes[graph.output], relaxation.box)
    positions = dict(free.default)
    best: Raised | None = None
    for number in range(steps + 1):
        free.choose(positions)
        pulled = pull_back(relaxation, graph.output, rows, input_rows=input_rows, keep=True)
        lower = xp.nan_to_num(round_down(pulled.lower[:, 0] + constant), nan=-xp.inf)
        best = _better(best, pulled, lower)
        moves = any(isinstance(some, FreeCurve | FreePlanes) for some in free.free.values())
        fixed = not moves or not pulled.activations
        if number == steps or fixed or bool((best.lower > 0).all()) or expired():
            break
        _move(free, boxes, pulled, positions, rate * _DECAY**number)
    assert best is not None
    return best


def _better(best: Raised | None, pulled: Pulled, lower: Array) -> Raised:
    """The better of two passes for each form."""
    coefficients = pulled.coefficients[:, 0]
    activations = {name: rows[:, 0] for name, rows in pulled.activations.items()}
    if best is None:
        return Raised(lower, coefficients, activations)
    xp = array_module(lower)
    better = lower > best.lower
    choice = better[:, None]
    return Raised(
        xp.where(better, lower, best.lower),
        xp.where(choice, coefficients, best.coefficients),
        {
            name: xp.where(choice, rows, best.activations[name])
            for name, rows in activations.items()
        },
    )


def _move(
    free: FreeRelaxation,
    boxes: Mapping[str, Box],
    pulled: Pulled,
    positions: dict[str, Array],
    rate: float,
) -> None:
    """Push the minimiser through the lines that the pass took and move the slopes by ``rate``."""
    relaxation = free.relaxation
    graph, box = relaxation.graph, relaxation.box
    xp = array_module(box.lower)
    rows = {name: row[:, 0] for name, row in pulled.activations.items()}
    parts = [(abs(row) * boxes[n].magnitude).max(axis=1, keepdims=True) for n, row in rows.items()]
    least = _NOTHING * xp.max(xp.stack(parts), axis=0)
    if isinstance(box, Ball):
        point = box.minimiser(pulled.coefficients[:, 0])
    else:
        radius = 0.5 * (box.upper - box.lower)
        point = 0.5 * (box.lower + box.upper)
        point = point - _signs(pulled.coefficients[:, 0] * radius, least) * radius
    values = {graph.input: point}
    for node in graph.nodes:
        read = [values[name] for name in node.inputs]
        if isinstance(node.op, Bivariate) and node.name in rows:
            row = rows[node.name]
            values[node.name] = relaxation.surfaces[node.name].taken(row, read)
            planes = free.free.get(node.name)
            if isinstance(planes, FreePlanes):
                gain = planes.gradient(row, read)
                moved = positions[node.name] + rate * _signs(gain, least)
                positions[node.name] = xp.clip(moved, 0.0, 1.0)
            continue
        if not isinstance(node.op, Elementwise) or node.name not in rows:
            values[node.name] = node.op.forward(read)
            continue
        row, z, curve = rows[node.name], read[0], relaxation.curves[node.name]
        apart = abs(curve.half) * boxes[node.inputs[0]].magnitude + abs(curve.half_offset)
        side = _signs(row * apart, least)
        slope = curve.mean - side * curve.half
        values[node.name] = slope * z + (curve.mean_offset - side * curve.half_offset)
        line = free.free.get(node.name)
        if isinstance(line, FreeCurve):  # tangents of smooth curves stay at their default
            gain = line.gradient(row, z, positions[node.name])
            moved = positions[node.name] + rate * _signs(gain, least)
            positions[node.name] = xp.clip(moved, 0.0, 1.0)


def _signs(parts: Array, least: Array) -> Array:
    """-1, 0 or 1 for parts of forms (P, n): 0 for those that are smaller than ``least`` (P, 1)."""
    xp = array_module(parts)
    return xp.where(abs(parts) > least, xp.sign(parts), 0.0)  # type: ignore[no-any-return]
