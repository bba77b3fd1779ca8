"""Better lines for one form, found without hints (rule R4).

Any position of the free lines is right, so how they are found needs no proof. They begin at the
default; then each moves along the sign of the derivative of the bound: the row A that reaches the
curve, times what the line there gains with its position at the value that arrives when the least
point goes through the lines of the last pass. Steps become shorter, and each pass is a bound. Lines
of smooth curves stay at their default. Planes of products (rule R15) move in the same way, from the
parallel ones in the middle.

A leaf is bounded in other batches than the search met it in, where sums are rounded otherwise. So
that no rounding decides which way a line moves, numbers that cancel count as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxcert.checker import pairs
from onnxcert.checker.bounds import Bounder, Relaxation
from onnxcert.checker.coefficients import Pending
from onnxcert.checker.curves import BENT, Array
from onnxcert.checker.network import Affine, Curve, Pair

STEPS, RATE = 4, 0.5
"""How often lines move, and by how much at first."""

FOLDED_STEPS, FOLDED_RATE = 8, 0.25
"""Over folded networks, where a pass costs little beside the bounds of a box."""

_DECAY = 0.8

_NOTHING = 1e-9
"""Share of the largest part of a form below which a number is taken for a rounding error."""

FormsOf = Callable[[Relaxation], tuple[Pending, Array]]
"""What `Bounder.pull` takes, over a batch of P sets: one form each."""


@dataclass(frozen=True, eq=False)
class Ascent:
    """Passes over a batch of P sets, with other lines each time.

    Attributes:
        bounder: the network.
        base: bounds of every scalar on the sets; its lines are not used.
        steps, rate: after the first pass, and of the first step.
    """

    bounder: Bounder
    base: Relaxation
    steps: int = STEPS
    rate: float = RATE

    def passes(self, form: FormsOf, low: Array, high: Array) -> Iterator[tuple[Relaxation, Array]]:
        """The lines and the bounds (P,) of one pass after the other.

        Args:
            form: the forms to be bounded.
            low, high: the input boxes, (P, n_in).
        """
        curves = {
            k: block
            for k, block in enumerate(self.bounder.blocks)
            if isinstance(block, Curve) and block.kind not in BENT and not self.base.ends(k)
        }
        products = {
            k: block
            for k, block in enumerate(self.bounder.blocks)
            if isinstance(block, Pair) and block.kind == "product" and not self.base.ends(k)
        }
        ends = [self._with_lines({k: np.full((1, 1), end) for k in curves}) for end in (0.0, 1.0)]
        steps = {k: [ends[1].curves[k][i] - ends[0].curves[k][i] for i in (0, 1)] for k in curves}
        r = self.base
        free = {k: 1.0 * (r.upper[:, (ids := curves[k].ids)] > -r.lower[:, ids]) for k in curves}
        turned: dict[int, Array] = {}
        for number in range(self.steps + 1):
            r = self._with_lines(free)
            self.bounder.turn_planes(r, turned)
            rows: dict[int, Array] = {}
            found = self.bounder.pull(r, *form(r), kept=rows)
            yield r, found.least(low, high, r.balls)[:, 0]
            if number == self.steps or not rows.keys() & (curves.keys() | products.keys()):
                return
            rows = {k: row[:, 0] for k, row in rows.items()}
            least = _NOTHING * self._largest(rows)
            if r.balls is not None:
                point = r.balls.divide(found.rows, low, high)[1][:, 0]
            else:
                radius = 0.5 * (high - low)
                side = _signs(found.wide(low.shape[1])[:, 0] * radius, least)
                point = 0.5 * (low + high) - side * radius
            values, rate = self._path(r, rows, point, least), self.rate * _DECAY**number
            for k in rows.keys() & steps.keys():
                row, (mean, half) = rows[k], steps[k]
                gain = (row * mean - abs(row) * half) * values[:, curves[k].ids]
                free[k] = np.clip(free[k] + rate * _signs(gain, least), 0.0, 1.0)
            for k in rows.keys() & products.keys():
                block = products[k]
                read = values[:, block.first], values[:, block.second]
                gain = pairs.turn(*self.bounder.read(r, block), rows[k], *read)
                start = turned.get(k, np.full((1, 1), 0.5))
                turned[k] = np.clip(start + rate * _signs(gain, least), 0.0, 1.0)

    def _largest(self, rows: dict[int, Array]) -> Array:
        """The largest part that a neuron may have in each form, (P, 1): rows over curves (P, n)."""
        parts = []
        for k, row in rows.items():
            block = self.bounder.blocks[k]
            reach = self.base.reach[:, block.start : block.start + block.size]
            parts.append((abs(row) * reach).max(axis=1, keepdims=True))
        return np.max(parts, axis=0)  # type: ignore[no-any-return]

    def _with_lines(self, free: dict[int, Array]) -> Relaxation:
        r = replace(self.base, curves={}, planes=dict(self.base.planes))
        self.bounder.set_lines(r, len(self.bounder.blocks), free)
        return r

    def _path(self, r: Relaxation, rows: dict[int, Array], point: Array, least: Array) -> Array:
        """Points (P, n_in) through the lines that the rows took: a value for every scalar."""
        values = np.zeros(r.lower.shape)
        values[:, : point.shape[1]] = point
        for k, block in enumerate(self.bounder.blocks):
            span = slice(block.start, block.start + block.size)
            if r.ends(k):
                values[:, span] = r.center[:, span]
            elif isinstance(block, Curve):
                mean, half, middle, gap = r.curves[k]
                row = rows.get(k, np.zeros((1, 1)))
                side = _signs(row * (abs(half) * r.reach[:, block.ids] + abs(gap)), least)
                values[:, span] = (mean - side * half) * values[:, block.ids] + middle - side * gap
            elif isinstance(block, Pair):
                k_first, mean, half, middle, gap = r.planes[k]
                row = rows.get(k, np.zeros((1, 1)))
                first, second = values[:, block.first], values[:, block.second]
                side = _signs(row * (abs(half) * r.reach[:, block.second] + abs(gap)), least)
                values[:, span] = k_first * first + (mean - side * half) * second + middle
                values[:, span] -= side * gap
            elif isinstance(block, Affine) and block.maximum is not None:
                values[:, span] = np.maximum(*(values[:, ids] for ids in block.maximum))
            elif isinstance(block, Affine):
                value = 0.0 if block.offset is None else block.offset
                for part in self.bounder.parts[k]:
                    value = value + part.apply(values, part.factors, block.size)
                values[:, span] = value
        return values


def _signs(parts: Array, least: Array) -> Array:
    """-1, 0 or 1 for parts of forms (P, n): 0 for those that are smaller than ``least`` (P, 1)."""
    return np.where(abs(parts) > least, np.sign(parts), 0.0)
