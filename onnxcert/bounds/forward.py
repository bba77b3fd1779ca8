"""Forward linear forms: every value as an affine function of few inputs, within a radius.

Over a box of inputs x = c + r t, |t| <= 1, each value is ``T_0 + sum_j T_j t_j + e`` with some
``|e| <= R``: affine arithmetic that keeps the noise symbols of the inputs and collects all others
in one radius (de Figueiredo and Stolfi, *Affine Arithmetic*, 2004; DeepZ, Singh et al., 2018, keeps
them apart). An affine node takes one product for each input that varies and one of absolute
values; a curve takes a pair of lines of equal slope m and adds their distance,

    f(z) in m z + o +- d   =>   T' = m T (+ o for j = 0),   R' = |m| R + d.

Backward bounds (`onnxcert.bounds.backward`) are tighter, but cost a pass for each neuron. Where few
inputs vary and layers are wide, forms leave only a few neurons unstable that intervals could not
decide, and these alone get backward rows: of 53 thousand neurons of a generator and its
discriminator over four varying inputs, 2,800 instead of 20 thousand, in 6 seconds instead of 67.

Rounding. Each coefficient of a product is off by at most ``gamma_n |W| |T_j|``, all together by
``gamma_n |W| sum_j |T_j|``, which is added to what the product of absolute values reads. What
executions round (`onnxcert.bounds.execution`) is a part of the radius as well, and so is what
little inputs vary that are decimals between two floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.bounds.execution import execution_error
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import TINY, Affine, Elementwise, gamma
from onnxcert.sets import Box, Planes

NEURONS_PER_INPUT = 64
"""Neurons of the widest layer for each column of the forms from which on these are worth it."""


@dataclass
class ForwardForms:
    """Forms of all values over a batch of boxes, made node by node.

    Attributes:
        graph: the network.
        unit: unit roundoff of executions that the forms hold for, too; 0 for none.
        forms: value name -> coefficients (B, 1 + V, n), the constant first, and radius (B, n);
            dropped when its last reader has seen it.
    """

    graph: Graph
    unit: float
    forms: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    @classmethod
    def begin(cls, graph: Graph, box: Box, unit: float) -> ForwardForms | None:
        """Forms of the inputs (B, n_in); None where too many of them vary to pay."""
        xp = array_module(box.lower)
        varies = box.varies
        most = int(varies.sum(axis=1).max())  # each box has columns for its own inputs
        widest = max((graph.sizes[name] for name in graph.pre_activations), default=0)
        if NEURONS_PER_INPUT * (most + 2) > widest:
            return None
        slots = xp.argsort(~varies, axis=1, kind="stable")[:, :most]
        center = 0.5 * (box.lower + box.upper)
        radius = xp.maximum(box.upper - center, center - box.lower) * (1.0 + 4.0 * UNIT_ROUNDOFF)
        terms = xp.zeros((len(box), 1 + most, graph.input_size))
        terms[:, 0] = center
        each = xp.arange(len(box))[:, None]
        terms[each, 1 + xp.arange(most), slots] = xp.take_along_axis(radius, slots, axis=1)
        radius[each, slots] = 0.0  # what is left is that of inputs that hardly vary
        return cls(graph, unit, {graph.input: (terms, radius)})

    def add_affine(self, number: int, node: Node, boxes: Mapping[str, Box]) -> Box:
        """Move forms through an affine node: bounds (B, n) of its output.

        Args:
            number: of the node in the graph.
            boxes: bounds of what it reads.
        """
        op = node.op
        assert isinstance(op, Affine)
        xp = array_module(boxes[node.inputs[0]].lower)
        error = 2.0 * gamma(op.error_terms + 4, UNIT_ROUNDOFF)
        read = [self.forms[name] for name in node.inputs]
        batch, columns, _ = read[0][0].shape
        terms = op.apply([part.reshape(batch * columns, -1) for part, _ in read])
        terms = terms.reshape(batch, columns, -1)
        spread = [radius * (1.0 + error) + error * abs(part).sum(axis=1) for part, radius in read]
        radius = op.magnitude.apply(spread) * (1.0 + error) + TINY
        if op.bias is not None:
            terms = terms.copy()  # an operator without factors hands on what it was given
            terms[:, 0] += op.bias
            radius += error * (xp.abs(op.bias) + abs(terms[:, 0]))
        executed = execution_error(self.graph, node, boxes, self.unit)
        if executed is not None:
            radius += executed
        self._keep(number, node, terms, radius)
        return _concretise(terms, radius)

    def add_elementwise(self, number: int, node: Node, boxes: Mapping[str, Box]) -> None:
        """Move forms through a curve, with lines for the bounds ``boxes`` of what it reads."""
        op, source = node.op, boxes[node.inputs[0]]
        assert isinstance(op, Elementwise)
        xp = array_module(source.lower)
        terms, radius = self.forms[node.inputs[0]]
        lines = op.relax(source, op.parallel_position(source))
        slope = 0.5 * (lines.lower_slope + lines.upper_slope)
        # A line beside one of another slope is farthest from it at an end.
        tilts = lines.lower_slope - slope, lines.upper_slope - slope
        low = xp.minimum(tilts[0] * source.lower, tilts[0] * source.upper) + lines.lower_offset
        high = xp.maximum(tilts[1] * source.lower, tilts[1] * source.upper) + lines.upper_offset
        middle, gap = 0.5 * (low + high), 0.5 * (high - low)
        size = (abs(tilts[0]) + abs(tilts[1])) * source.magnitude + abs(low) + abs(high)
        terms = slope[:, None] * terms
        error = 16.0 * UNIT_ROUNDOFF * (size + abs(terms).sum(axis=1)) + TINY
        terms[:, 0] += middle
        radius = abs(slope) * radius * (1.0 + 4.0 * UNIT_ROUNDOFF) + (gap + error)
        executed = execution_error(self.graph, node, boxes, self.unit)
        if executed is not None:
            radius += executed
        self._keep(number, node, terms, radius)

    def add_bivariate(
        self, number: int, node: Node, boxes: Mapping[str, Box], planes: Planes
    ) -> Box:
        """Move forms between the planes of a function of two values: bounds of its output."""
        read = [boxes[name] for name in node.inputs]
        xp = array_module(planes.lower_offset)
        low, high, size = planes.lower_offset, planes.upper_offset, xp.zeros(())
        parts: list[Array] = []
        radius = xp.zeros(())
        for name, box, *slopes in zip(
            node.inputs, read, planes.lower_slopes, planes.upper_slopes, strict=True
        ):
            terms, spread = self.forms[name]
            slope = 0.5 * (slopes[0] + slopes[1])
            tilts = slopes[0] - slope, slopes[1] - slope
            low = low + xp.minimum(tilts[0] * box.lower, tilts[0] * box.upper)
            high = high + xp.maximum(tilts[1] * box.lower, tilts[1] * box.upper)
            size = size + (abs(tilts[0]) + abs(tilts[1])) * box.magnitude
            parts.append(slope[:, None] * terms)
            radius = radius + abs(slope) * spread * (1.0 + 4.0 * UNIT_ROUNDOFF)
        middle, gap = 0.5 * (low + high), 0.5 * (high - low)
        size = size + abs(low) + abs(high) + sum(abs(part).sum(axis=1) for part in parts)
        terms = parts[0] + parts[1]
        terms[:, 0] += middle
        radius = (radius + gap) * (1.0 + 8.0 * UNIT_ROUNDOFF) + 32.0 * UNIT_ROUNDOFF * size + TINY
        executed = execution_error(self.graph, node, boxes, self.unit)
        if executed is not None:
            radius += executed
        self._keep(number, node, terms, radius)
        return _concretise(terms, radius)

    def add_fixed(self, number: int, node: Node, box: Box) -> None:
        """The form of a value that hardly varies: its middle, and the rest as radius."""
        xp = array_module(box.lower)
        terms, _ = self.forms[node.inputs[0]]
        made = xp.zeros((*terms.shape[:2], box.lower.shape[1]))
        made[:, 0] = 0.5 * (box.lower + box.upper)
        error = 4.0 * UNIT_ROUNDOFF * box.magnitude + TINY
        self._keep(number, node, made, box.upper - box.lower + error)

    def _keep(self, number: int, node: Node, terms: Array, radius: Array) -> None:
        self.forms[node.name] = terms, radius
        for name in node.inputs:
            if self.graph.last_use[name] == number:
                self.forms.pop(name, None)


def _concretise(terms: Array, radius: Array) -> Box:
    spread = abs(terms[:, 1:]).sum(axis=1) + radius
    error = 2.0 * gamma(terms.shape[1] + 4, UNIT_ROUNDOFF)
    spread = spread + error * (spread + abs(terms[:, 0])) + TINY
    return Box(terms[:, 0] - spread, terms[:, 0] + spread).defined()
