"""Slopes of their own for rows over networks that are folded again (rule R22).

An unstable relu is at least zero and at least its scalar: the lower line of rule R4 has any slope
in [0, 1]. For bounds of a folded network's scalars, each row takes a slope of its own at each
neuron, 0 or 1. They are learned here, on the box on which the network is folded: a pass back gives
the point at which a row is least, one forward through the lines that it took the values there, and
the slopes move along these, a value v by v / (|v| + mean of all |v| of its row and layer) times the
rate. Bounds found on the way serve the layers after.

Nothing that is computed here is believed: any slopes are right. So it is done in binary32, without
error terms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcert.checker.bands import Bands
from onnxcert.checker.curves import Array
from onnxcert.checker.layered import Layer

STEPS = 5
"""Of every row."""

_RATE, _DECAY = 1.0, 0.7

_ROWS = 256
"""At a time."""

_LEAST = np.float32(1e-30)
"""Added to sizes, of which all of a row may be zero."""


@dataclass(frozen=True, eq=False)
class _Lines:
    """Of one layer, all binary32: chord z + bulge above, and slope z below by default."""

    weight: Bands
    offset: Array
    chord: Array
    bulge: Array
    slope: Array


def learn(
    layers: Sequence[Layer],
    known: Sequence[tuple[Array, Array]],
    low: Array,
    high: Array,
    look_at_the_clock: Callable[[], None] = lambda: None,
) -> list[Array]:
    """Slopes of the rows of all layers over a box (n_in,).

    Args:
        layers: in order.
        known: lower and upper bounds (n,) of their scalars.
        low, high: the box.
        look_at_the_clock: called before each pass.

    Returns:
        (2, n, neurons before) booleans for each layer: the rows of lower and of upper bounds.
    """
    box = (0.5 * (low + high)).astype(np.float32), (0.5 * (high - low)).astype(np.float32)
    lines: list[_Lines] = []
    result = []
    for layer, (lower, upper) in zip(layers, known, strict=True):
        parts = list[_Rows]()
        weight = np.concatenate([layer.weight, -layer.weight]).astype(np.float32)
        offset = np.concatenate([layer.offset, -layer.offset]).astype(np.float32)
        for first in range(0, len(weight), _ROWS):
            some = slice(first, first + _ROWS)
            parts.append(rows := _Rows(weight[some], offset[some], lines, box))
            for step in range(STEPS if lines else 0):
                look_at_the_clock()
                rows.move(np.float32(_RATE * _DECAY**step))
        slopes = np.concatenate([rows.slopes > 0.5 for rows in parts])
        result.append(slopes.reshape(2, len(lower), -1))
        below, above = np.concatenate([rows.best for rows in parts]).reshape(2, -1)
        lines.append(_about(layer, np.maximum(lower, below), np.minimum(upper, -above)))
    return result


def _about(layer: Layer, lower: Array, upper: Array) -> _Lines:
    low, high = np.minimum(lower, 0.0), np.maximum(upper, 0.0)
    chord = high / np.where(high > low, high - low, 1.0)
    parts = (layer.offset, chord, -chord * low, 1.0 * (high > -low))
    return _Lines(layer.bands.single, *(part.astype(np.float32) for part in parts))


class _Rows:
    """Some rows of a layer and of their negations, over the layers before.

    Attributes:
        slopes: (R, neurons before), changed in place.
        best: (R,) their bounds so far.
    """

    def __init__(
        self, rows: Array, start: Array, lines: Sequence[_Lines], box: tuple[Array, Array]
    ) -> None:
        self._rows, self._start, self._lines, self._box = rows, start, lines, box
        usual = np.concatenate([np.zeros(0, np.float32), *(line.slope for line in lines)])
        self.slopes = np.repeat(usual[None], len(rows), axis=0)
        ends = np.cumsum([0, *(len(line.chord) for line in lines)])
        self._spans = [slice(*span) for span in itertools.pairwise(ends)]
        self.best = np.full(len(rows), -np.inf)

    def move(self, rate: np.floating) -> None:
        """One pass back and one forward."""
        center, radius = self._box
        rows, constant, inputs = self._rows.copy(), self._start, len(center)
        taken = []
        for line, span in zip(reversed(self._lines), reversed(self._spans), strict=True):
            part = rows[:, inputs + span.start : inputs + span.stop]
            # Sums of products: choices that nobody can predict take several times as long.
            positive = (part > 0).astype(np.float32)
            others = np.float32(1.0) - positive
            slope = positive * self.slopes[:, span] + others * line.chord
            constant = constant + np.minimum(part, 0.0) @ line.bulge
            part *= slope
            constant = constant + part @ line.offset
            line.weight.add_after(part, rows[:, : inputs + span.start])
            taken.append((positive, others, slope))
        over = rows[:, :inputs]
        self.best = np.maximum(self.best, constant + over @ center - abs(over) @ radius)
        values = np.empty_like(rows)
        values[:, :inputs] = center - np.sign(over) * radius
        for line, span, (positive, others, slope) in zip(
            self._lines, self._spans, reversed(taken), strict=True
        ):
            value = line.weight.before(values[:, : inputs + span.start]) + line.offset
            own, size = self.slopes[:, span], abs(value) + _LEAST
            own += value / (size + size.mean(axis=1, keepdims=True)) * positive * rate
            np.clip(own, 0.0, 1.0, out=own)
            value *= slope
            values[:, inputs + span.start : inputs + span.stop] = value + others * line.bulge
