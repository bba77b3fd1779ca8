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
means, are of no use. A step takes 0.1 CPU seconds, a pass of sound bounds 0.15.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import Array, array_module, concatenate
from onnxcert.ops.bands import Bands

STEPS = 5
"""Of every layer's rows."""

_RATE, _DECAY = 1.0, 0.7

_LEAST = 1e-30
"""Added to sizes, of which all of a row may be zero."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A pre-activation of a folded network, which reads the inputs and the relus before it.

    Attributes:
        name, relu: of the value, and of the relu that reads it.
        weight, offset: (n, m) over the inputs and all neurons before, and (n,).
        lower, upper: (n,) bounds on the box.
    """

    name: str
    relu: str
    weight: Array
    offset: Array
    lower: Array
    upper: Array


@dataclass(frozen=True, eq=False)
class RowSlopes:
    """Slopes 0 or 1 of the lower lines that rows of one sign take.

    Attributes:
        of: pre-activation -> relu -> (n, m) booleans: for the row of each neuron there the slope of
            each neuron here.
    """

    of: Mapping[str, Mapping[str, Array]]

    def at(self, name: str, index: Array) -> dict[str, Array]:
        """Those of the rows of some neurons (B, R): relu -> (B, R, m)."""
        return {relu: table[index] for relu, table in self.of.get(name, {}).items()}


Both = tuple[RowSlopes, RowSlopes]
"""Of rows for lower bounds and of rows for upper ones."""


def learn(
    layers: Sequence[Layer],
    low: Array,
    high: Array,
    expired: Callable[[], bool] = lambda: False,
) -> Both:
    """Learn the slopes of all rows on a box (n_in,).

    Args:
        layers: of a folded network, in order.
        low, high: the box.
        expired: asked before each pass; once True, slopes stay as they are.
    """
    xp = array_module(low)
    lines: list[_Lines] = []
    sides: tuple[dict[str, dict[str, Array]], dict[str, dict[str, Array]]] = ({}, {})
    box = (0.5 * (low + high)).astype(xp.float32), (0.5 * (high - low)).astype(xp.float32)
    for layer in layers:
        lower, upper = layer.lower, layer.upper
        if lines:
            rows = _Rows(layer, lines, box)
            for step in range(STEPS):
                if expired():
                    break
                rows.move(_RATE * _DECAY**step)
            bits, count = rows.slopes > 0.5, len(lower)
            ends = np.cumsum([len(line.chord) for line in lines])[:-1]
            for side, part in zip(sides, (bits[:count], bits[count:]), strict=True):
                columns = xp.split(part, ends, axis=1)
                side[layer.name] = {
                    other.relu: table
                    for other, table in zip(layers[: len(lines)], columns, strict=True)
                }
            lower = xp.maximum(lower, rows.best[:count])
            upper = xp.minimum(upper, -rows.best[count:])
        lines.append(_Lines.over(layer, lower, upper))
    return RowSlopes(sides[0]), RowSlopes(sides[1])


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
        parts = (layer.offset, chord, -chord * low, 1.0 * (high > -low))
        weight = Bands.of(layer.weight.astype(xp.float32))
        return cls(weight, *(part.astype(xp.float32) for part in parts))


class _Rows:
    """The rows of a layer and their negations, over the layers before.

    Attributes:
        slopes: (2 n, neurons before), changed in place.
        best: (2 n,) their bounds so far.
    """

    def __init__(self, layer: Layer, lines: Sequence[_Lines], box: tuple[Array, Array]) -> None:
        xp = array_module(layer.weight)
        self._rows = concatenate([layer.weight, -layer.weight]).astype(xp.float32)
        self._start = concatenate([layer.offset, -layer.offset]).astype(xp.float32)
        self._lines, self._box = lines, box
        usual = concatenate([line.slope for line in lines])
        self.slopes = xp.repeat(usual[None], len(self._rows), axis=0)
        ends = np.cumsum([0, *(len(line.chord) for line in lines)]).tolist()
        self._spans = [slice(*span) for span in itertools.pairwise(ends)]
        self.best = xp.full(len(self._rows), -xp.inf)

    def move(self, rate: float) -> None:
        """One pass back to the inputs and one forward, and a step of every slope."""
        center, radius = self._box
        xp, inputs = array_module(center), len(center)
        rows, constant, taken = self._rows.copy(), self._start, []
        for line, span in zip(reversed(self._lines), reversed(self._spans), strict=True):
            first = inputs + span.start
            part = rows[:, first : inputs + span.stop]  # read for the last time: changed in place
            positive = part > 0
            slope = xp.where(positive, self.slopes[:, span], line.chord)
            constant = constant + xp.minimum(part, 0.0) @ line.offset
            part *= slope
            constant = constant + part @ line.bias
            line.weight.add_after(part, rows[:, :first])
            taken.append((positive, slope))
        over = rows[:, :inputs]
        self.best = xp.maximum(self.best, constant + over @ center - abs(over) @ radius)
        values, none, least = xp.empty_like(rows), xp.float32(0.0), xp.float32(_LEAST)
        values[:, :inputs] = center - xp.sign(over) * radius
        for line, span, (positive, slope) in zip(
            self._lines, self._spans, reversed(taken), strict=True
        ):
            value = line.weight.before(values[:, : inputs + span.start])
            value += line.bias
            own = self.slopes[:, span]
            size = abs(value)
            size += least
            size += size.mean(axis=1, keepdims=True)
            own += (xp.float32(rate) * positive) * (value / size)
            xp.clip(own, 0.0, 1.0, out=own)
            value *= slope
            value += xp.where(positive, none, line.offset)
            values[:, inputs + span.start : inputs + span.stop] = value
