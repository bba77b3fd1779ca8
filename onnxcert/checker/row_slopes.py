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

STEPS = 5
"""Of every row."""

_RATE, _DECAY = 1.0, 0.7

_LEAST = np.float32(1e-30)
"""Added to sizes, of which all of a row may be zero."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Scalars that read the inputs and all neurons before, with a relu on each.

    Attributes:
        weight, offset: (n, inputs + neurons before) and (n,).
        lower, upper: (n,) bounds of the scalars.
    """

    weight: Array
    offset: Array
    lower: Array
    upper: Array


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
    low: Array,
    high: Array,
    look_at_the_clock: Callable[[], None] = lambda: None,
) -> list[Array]:
    """Slopes of the rows of all layers over a box (n_in,).

    Args:
        layers: in order.
        low, high: the box.
        look_at_the_clock: called before each pass.

    Returns:
        (2, n, neurons before) booleans for each layer: the rows of lower and of upper bounds.
    """
    box = (0.5 * (low + high)).astype(np.float32), (0.5 * (high - low)).astype(np.float32)
    lines: list[_Lines] = []
    result = []
    for layer in layers:
        count, lower, upper = len(layer.lower), layer.lower, layer.upper
        usual = np.concatenate([np.zeros(0, np.float32), *(line.slope for line in lines)])
        slopes = np.repeat(usual[None], 2 * count, axis=0)
        if lines:
            rows = _Rows(layer, lines, box, slopes)
            for step in range(STEPS):
                look_at_the_clock()
                rows.move(np.float32(_RATE * _DECAY**step))
            lower = np.maximum(lower, rows.best[:count])
            upper = np.minimum(upper, -rows.best[count:])
        result.append((slopes > 0.5).reshape(2, count, -1))
        lines.append(_about(layer, lower, upper))
    return result


def _about(layer: Layer, lower: Array, upper: Array) -> _Lines:
    low, high = np.minimum(lower, 0.0), np.maximum(upper, 0.0)
    chord = high / np.where(high > low, high - low, 1.0)
    parts = (layer.offset, chord, -chord * low, 1.0 * (high > -low))
    weight = Bands(layer.weight.astype(np.float32))
    return _Lines(weight, *(part.astype(np.float32) for part in parts))


class _Rows:
    """The rows of a layer and their negations, over the layers before.

    Attributes:
        slopes: (2 n, neurons before), changed in place.
        best: (2 n,) their bounds so far.
    """

    def __init__(
        self, layer: Layer, lines: Sequence[_Lines], box: tuple[Array, Array], slopes: Array
    ) -> None:
        self._rows = np.concatenate([layer.weight, -layer.weight]).astype(np.float32)
        self._start = np.concatenate([layer.offset, -layer.offset]).astype(np.float32)
        self._lines, self._box, self.slopes = lines, box, slopes
        ends = np.cumsum([0, *(len(line.chord) for line in lines)])
        self._spans = [slice(*span) for span in itertools.pairwise(ends)]
        self.best = np.full(len(slopes), -np.inf)

    def move(self, rate: np.floating) -> None:
        """One pass back and one forward."""
        center, radius = self._box
        rows, constant, inputs = self._rows, self._start, len(center)
        taken = []
        for line, span in zip(reversed(self._lines), reversed(self._spans), strict=True):
            part, rows = rows[:, inputs + span.start :], rows[:, : inputs + span.start]
            positive = part > 0
            slope = np.where(positive, self.slopes[:, span], line.chord)
            constant = constant + np.minimum(part, 0.0) @ line.bulge
            part = part * slope
            constant = constant + part @ line.offset
            rows = rows + line.weight.after(part)
            taken.append((positive, slope))
        self.best = np.maximum(self.best, constant + rows @ center - abs(rows) @ radius)
        values = center - np.sign(rows) * radius
        for line, span, (positive, slope) in zip(
            self._lines, self._spans, reversed(taken), strict=True
        ):
            value = line.weight.before(values) + line.offset
            own = self.slopes[:, span]
            size = abs(value) + _LEAST
            own += rate * (positive * value / (size + size.mean(axis=1, keepdims=True)))
            np.clip(own, 0.0, 1.0, out=own)
            made = slope * value + np.where(positive, np.float32(0.0), line.bulge)
            values = np.concatenate([values, made], axis=1)
