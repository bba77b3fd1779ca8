"""The method of Liu, Tomioka and Cevher (ICML 2019), for comparison.

Curves are put between two *parallel* lines with the slope of the chord, and the outputs are bounded
one by one: the margin of a class is its lower bound minus the other's upper bound. The paper pushes
affine forms forward; pulling rows back through the same lines gives the same bounds (both expand
one product of matrices), only sooner, so that is what is done here. The iteration is that of the
authors' programs: half-widths are squares of the variables; 400 steps of gradient descent on the
augmented Lagrangian

    - sum_i log eps_i + sum_j lambda_j e_j + beta/2 sum_j e_j^2,    e_j = min(g_j, -lambda_j / beta)

with g_j the margin less 1e-4, multipliers moved every 5 steps, beta times 5 every 80 steps; at last
everything shrinks by 1 % at a time until all constraints hold. Boxes are symmetric and know of no
domain; what reaches beyond it is cut off afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxcert.arrays import Array, array_module
from onnxcert.bounds.optimised import FreeRelaxation
from onnxcert.bounds.sensitivity import LineRule
from onnxcert.errors import UsageError
from onnxcert.graph import Node
from onnxcert.ops.base import Elementwise
from onnxcert.ops.s_shaped import SShaped
from onnxcert.ops.two_slope import TwoSlope
from onnxcert.region.solver import Found
from onnxcert.region.task import Margins, Task, Widths
from onnxcert.sets import Box, Lines

STEPS = 400
_RATE = 1e-4
"""1e-3, as the mean over the ten images of a batch takes it."""

_START = 1e-3
_DUAL_EVERY, _PENALTY_EVERY, _PENALTY_FACTOR = 5, 80, 5.0
_DELTA = 1e-4
_SHRINK, _SHRINKINGS = 0.99, 1000
_FLAT = 0.01
"""Chords of smooth curves that are flatter become constants."""


class _Parallel(FreeRelaxation):
    """Lines without freedom."""

    def _add_curve(self, node: Node, op: Elementwise, boxes: dict[str, Box]) -> None:  # type: ignore[override]
        self.relaxation.add_elementwise(node, boxes, parallel_lines(op, boxes[node.inputs[0]]))


def parallel_lines(op: Elementwise, box: Box, position: Array | None = None) -> Lines:
    """Two lines with the slope of the chord.

    Raises:
        UsageError: the curve is none of those that the method knows.
    """
    del position
    xp = array_module(box.lower)
    width = box.upper - box.lower
    rise = op.value(box.upper) - op.value(box.lower)
    chord = xp.where(width > 0, rise / xp.where(width > 0, width, 1.0), 0.0)
    if isinstance(op, TwoSlope):
        left, right = op.slopes
        apart = right - left
        return op.relax(box, xp.clip((chord - left) / xp.where(apart == 0, 1.0, apart), 0.0, 1.0))
    if isinstance(op, SShaped):
        return op.bend(box).with_slope(xp.where(chord < _FLAT, 0.0, chord))
    raise UsageError(f"the paper's method has no lines for {type(op).__name__}")


PARALLEL = LineRule(_Parallel.begin, parallel_lines)


def paper_boxes(
    task: Task,
    *,
    steps: int = STEPS,
    expired: Callable[[], bool] = lambda: False,
    report: Callable[[int, Array], None] = lambda number, volume: None,
) -> Found:
    """Boxes that the paper's method finds; cut at the domain, all certified or empty.

    Args:
        task: as for `Solver`; its domain and weights play no part in the search.
        steps: of gradient descent.
        expired: asked before each step.
        report: as for `Solver`.

    Raises:
        UsageError: a case has several forms, or a curve is unknown to the method.
    """
    if task.rows.shape[2] != 1:
        raise UsageError("the paper's method keeps classes, not conditions of several rows")
    xp = array_module(task.points)
    logits = _Logits(task)
    variable = xp.full(task.points.shape, _START**0.5)
    multiplier = xp.zeros(task.offset.shape[:2])
    penalty = 1.0
    for number in range(steps):
        if expired():
            break
        eps = variable**2
        margins, slope = logits.margins(eps, trace=True)
        gap = margins - _DELTA
        part = xp.minimum(gap, -multiplier / penalty)
        weight = xp.where(gap < -multiplier / penalty, multiplier + penalty * part, 0.0)
        gradient = slope(weight) - 1.0 / eps
        variable = xp.maximum(abs(variable - _RATE * 2.0 * variable * gradient), 1e-9)
        if number % _DUAL_EVERY == _DUAL_EVERY - 1:
            multiplier = multiplier + penalty * part
        if number % _PENALTY_EVERY == _PENALTY_EVERY - 1:
            penalty *= _PENALTY_FACTOR
        report(number, xp.log(eps).sum(axis=1))
    eps = variable**2
    evaluations = steps + logits.shrink(eps)
    return logits.found(eps, steps, evaluations)


class _Logits:
    """Bounds of single outputs over symmetric boxes without a domain."""

    def __init__(self, task: Task) -> None:
        xp = array_module(task.points)
        self.task = task
        rows = task.rows[:, :, 0]
        # The margin e_c - e_j, bounded as two rows.
        both = xp.stack([xp.maximum(rows, 0.0), xp.minimum(rows, 0.0)], axis=2)
        batch, cases, _, size = both.shape
        everywhere = xp.full(task.points.shape, xp.inf)
        self.split = replace(
            task,
            domain=Box(-everywhere, everywhere),
            rows=both.reshape(batch, 2 * cases, 1, size),
            offset=xp.zeros((batch, 2 * cases, 1)),
            rule=PARALLEL,
        )

    def margins(self, eps: Array, *, trace: bool) -> tuple[Array, Callable[[Array], Array]]:
        """Margins (B, K), and the derivative by eps (B, n) of their sum with weights (B, K)."""
        bounds: Margins = self.split.evaluate(Widths(eps, eps), trace=trace)
        pairs = bounds.cases.reshape(len(eps), -1, 2)
        xp = array_module(eps)

        def slope(weights: Array) -> Array:
            by_face = bounds.differentiate(xp.repeat(weights, 2, axis=1))
            return by_face.upper - by_face.lower

        return pairs.sum(axis=2) + self.task.offset[:, :, 0], slope

    def shrink(self, eps: Array) -> int:
        """Shrink boxes in place until they are certified; the number of evaluations."""
        for number in range(_SHRINKINGS):
            bad = self.margins(eps, trace=False)[0].min(axis=1) < _DELTA
            if not bad.any():
                return number + 1
            eps[bad] *= _SHRINK
        bad = self.margins(eps, trace=False)[0].min(axis=1) < _DELTA
        eps[bad] = 0.0
        return _SHRINKINGS + 1

    def found(self, eps: Array, steps: int, evaluations: int) -> Found:
        """The boxes, cut at the domain."""
        xp = array_module(eps)
        widths = Widths(eps, eps).capped(self.task.caps)
        volume = self.task.log_volume(widths)
        unknown = xp.full(len(eps), xp.nan)
        margin = self.margins(eps, trace=False)[0].min(axis=1)
        counts = (xp.full(len(eps), number) for number in (steps, evaluations))
        return Found(widths, volume, unknown, unknown, margin, *counts)
