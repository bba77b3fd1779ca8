"""Lines of their own for the rows that bound a folded network's layers, learned once for a box.

The lower line of an unstable relu has any slope in [0, 1]. Backward rows of all neurons share the
default, which looks at the interval alone; with slopes of their own the bounds of layers are much
better, but to find them takes many passes. Two things make that cheap. Slopes learned on a box
serve the boxes in it as well: which way a row is least hardly changes when one of many inputs is
halved. And nothing is lost when they are rounded to 0 or 1, one bit for each row and neuron: at the
best lines the relu is taken as it is at the point where the row is least.

They are learned layer by layer: a pass back gives the row's least point, one forward through the
lines that it took the values v there, and every slope moves by v / (|v| + mean of all |v| of its
row and layer) times the rate, so that slopes whose neuron is nearly at its bend move little. Any
slopes are right, so this may be done in binary32 and without error terms; the checker does the same
(rule R22).

A box of cifar_biasfield 23 with 2,390 unstable neurons, bounded by -1.07 with slopes of a larger
box, has -0.45 after 5 steps from the default, -0.42 after 8, -0.40 after 16 and -0.39 after 32; its
half has -0.09 (-0.76 with the old slopes). Along the signs at rate 0.5, 0.8 as much each time, 8
steps lead to -0.68 and 16 to -0.49. Slopes of the box around are no better start than the default
ones, and gradients with momentum no better than this. Slopes that all rows of a layer share, their
means, are of no use. A step takes 0.07 CPU seconds, a pass of sound bounds 0.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import Array, array_module, concatenate
from onnxcert.bounds.layered import Layer
from onnxcert.ops.bands import Bands
from onnxcert.sets import Box

STEPS = 5
"""Of every layer's rows."""

_RATE, _DECAY = 1.0, 0.7

_ROWS = 256
"""At a time on the host, where their slopes and values stay in cache: all take a fifth longer."""

_LEAST = 1e-30
"""Added to sizes, of which all of a row may be zero."""


def learn(
    layers: Sequence[Layer],
    boxes: Sequence[Box],
    box: Box,
    expired: Callable[[], bool] = lambda: False,
) -> dict[str, Array]:
    """Learn the slopes of all rows on a box.

    Args:
        layers: of a folded network, in order.
        boxes: bounds of their values there, (n,).
        box: (n_in,).
        expired: asked before each pass; once True, slopes stay as they are.

    Returns:
        See `onnxcert.bounds.layered.Layered`; the first layer has none.
    """
    xp = array_module(box.lower)
    lines: list[_Lines] = []
    slopes: dict[str, Array] = {}
    center, radius = 0.5 * (box.lower + box.upper), 0.5 * (box.upper - box.lower)
    single = center.astype(xp.float32), radius.astype(xp.float32)
    for layer, known in zip(layers, boxes, strict=True):
        lower, upper = known.lower, known.upper
        if lines:
            table, best = _learned(layer, lines, single, expired)
            slopes[layer.name] = table
            lower, upper = xp.maximum(lower, best[0]), xp.minimum(upper, -best[1])
        lines.append(_Lines.over(layer, lower, upper))
    return slopes


@dataclass(frozen=True, eq=False)
class _Lines:
    """A layer in binary32 and the lines about its relu: chord z + offset above, slope z below."""

    weight: Bands
    bias: Array
    chord: Array
    offset: Array
    slope: Array

    @classmethod
    def over(cls, layer: Layer, lower: Array, upper: Array) -> _Lines:
        xp = array_module(lower)
        low, high = xp.minimum(lower, 0.0), xp.maximum(upper, 0.0)
        chord = high / xp.where(high > low, high - low, 1.0)
        parts = (layer.sums.offset, chord, -chord * low, 1.0 * (high > -low))
        return cls(layer.sums.bands.single, *(part.astype(xp.float32) for part in parts))


def _learned(
    layer: Layer,
    lines: Sequence[_Lines],
    box: tuple[Array, Array],
    expired: Callable[[], bool],
) -> tuple[Array, Array]:
    """Slopes (2, n, neurons before) of a layer's rows and their negations, and bounds (2, n)."""
    sums, parts = layer.sums, list[_Rows]()
    xp = array_module(sums.weight)
    weight = concatenate([sums.weight, -sums.weight]).astype(xp.float32)
    offset = concatenate([sums.offset, -sums.offset]).astype(xp.float32)
    count = _ROWS if xp is np else len(weight)
    for first in range(0, len(weight), count):
        block = slice(first, first + count)
        parts.append(part := _Rows(weight[block], offset[block], lines, box))
        for step in range(STEPS):
            if expired():
                break
            part.move(_RATE * _DECAY**step)
    slopes = concatenate([part.slopes > 0.5 for part in parts])
    best = concatenate([part.best for part in parts])
    return slopes.reshape(2, len(weight) // 2, -1), best.reshape(2, -1)


class _Rows:
    """Some rows over the layers before, with a constant each.

    Attributes:
        slopes: (R, neurons before), changed in place.
        best: (R,) their bounds so far.
    """

    def __init__(
        self, rows: Array, start: Array, lines: Sequence[_Lines], box: tuple[Array, Array]
    ) -> None:
        xp = array_module(rows)
        self._rows, self._start, self._lines, self._box = rows, start, lines, box
        usual = concatenate([line.slope for line in lines])
        self.slopes = xp.repeat(usual[None], len(rows), axis=0)
        ends = np.cumsum([0, *(len(line.chord) for line in lines)]).tolist()
        self._spans = [slice(*span) for span in itertools.pairwise(ends)]
        self.best = xp.full(len(rows), -xp.inf)

    def move(self, rate: float) -> None:
        """One pass back to the inputs and one forward, and a step of every slope."""
        center, radius = self._box
        xp, inputs = array_module(center), len(center)
        rows, constant, taken, one = self._rows.copy(), self._start, [], xp.float32(1.0)
        for line, span in zip(reversed(self._lines), reversed(self._spans), strict=True):
            first = inputs + span.start
            part = rows[:, first : inputs + span.stop]  # read for the last time: changed in place
            # Sums of products: choices that nobody can predict take several times as long.
            positive = (part > 0).astype(xp.float32)
            others = one - positive
            slope, upper = positive * self.slopes[:, span], others * line.chord
            slope += upper
            constant = constant + xp.minimum(part, 0.0) @ line.offset
            part *= slope
            constant = constant + part @ line.bias
            line.weight.add_after(part, rows[:, :first])
            taken.append((positive, others, slope))
        over = rows[:, :inputs]
        self.best = xp.maximum(self.best, constant + over @ center - abs(over) @ radius)
        values = xp.empty_like(rows)
        values[:, :inputs] = center - xp.sign(over) * radius
        for line, span, (positive, others, slope) in zip(
            self._lines, self._spans, reversed(taken), strict=True
        ):
            value = line.weight.before(values[:, : inputs + span.start])
            value += line.bias
            own = self.slopes[:, span]
            size = abs(value)
            size += xp.float32(_LEAST)
            size += size.mean(axis=1, keepdims=True)
            step = xp.divide(value, size, out=size)
            step *= positive
            step *= xp.float32(rate)
            own += step
            xp.clip(own, 0.0, 1.0, out=own)
            value *= slope
            value += others * line.offset
            values[:, inputs + span.start : inputs + span.stop] = value
