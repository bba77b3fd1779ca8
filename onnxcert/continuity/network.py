"""A graph as the analyses of constants see it: affine maps, and curves with the range of slopes.

A curve whose slopes lie in [low, high] is written ``f(z) = mid z + rad g(z)`` where |g(z) - g(z')|
<= |z - z'|. For a curve with one kink at zero g is the absolute value, so two curves of z and of -z
share it: max(a, b) and min(a, b) = -max(-a, -b) are then what sorting a pair is, a map that keeps
lengths, although the graph has two rectifiers for them. Such nodes are called twins; they are
recognised by following selections and changes of sign back to common values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, singledispatch

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, FloatArray, IntArray
from onnxcert.bounds.crown import crown_bounds
from onnxcert.errors import UnsupportedModel
from onnxcert.graph import Graph, Node
from onnxcert.ops import Affine, Elementwise, Operator, Scale, Select, Sum
from onnxcert.ops.two_slope import TwoSlope
from onnxcert.sets import Box

_LARGEST_WHOLE = float(1 << 20)


@dataclass(frozen=True, eq=False)
class Slopes:
    """The slopes of one elementwise node between any two inputs, arrays (n,).

    Attributes:
        low, high: the range.
        mid, rad: ``f = mid z + rad g``, exactly where ``even``, else as an inequality that covers
            the rounding of both.
        even: whether g is the absolute value.
    """

    low: FloatArray
    high: FloatArray
    mid: FloatArray
    rad: FloatArray
    even: bool

    @property
    def largest(self) -> FloatArray:
        """The Lipschitz constant of each neuron."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @classmethod
    def of(cls, op: Elementwise, box: Box | None) -> Slopes | None:
        """Those of an operator over a box (1, n) or everywhere; None where there are none."""
        found = op.slope_range(box)
        if found is None:
            return None
        low, high = (np.array(np.broadcast_to(side, (1, op.size))[0]) for side in found)
        mid = 0.5 * (low + high)
        rad = np.maximum(high - mid, mid - low) * (1.0 + 4.0 * UNIT_ROUNDOFF)
        rad = np.where(low == high, 0.0, rad)
        even = False
        if isinstance(op, TwoSlope):
            left, right = (np.broadcast_to(side, op.size) for side in op.slopes)
            whole = [side == np.round(side) for side in (left, right)]
            whole += [np.abs(side) < _LARGEST_WHOLE for side in (left, right)]
            even = all(bool(part.all()) for part in whole)
            if even:
                rad = np.where(low == high, 0.0, 0.5 * (right - left))
        return cls(low, high, mid, rad, even)


@dataclass(frozen=True, eq=False)
class View:
    """A value as entries of another one, each with the same sign."""

    sign: int
    root: str
    index: IntArray

    def is_negative_of(self, other: View) -> bool:
        """Whether this is exactly minus the other."""
        return self.sign == -other.sign and self._same_entries(other)

    def _same_entries(self, other: View) -> bool:
        return self.root == other.root and np.array_equal(self.index, other.index)


@singledispatch
def _as_view(op: Operator) -> tuple[int, IntArray | None] | None:
    """(sign, index or None for all) of an operator that only picks entries and changes signs."""
    del op
    return None


@_as_view.register
def _(op: Select) -> tuple[int, IntArray | None] | None:
    return None if (op.gather.index < 0).any() else (1, op.gather.index)


@_as_view.register
def _(op: Scale) -> tuple[int, IntArray | None] | None:
    if op.offset is not None and op.offset.any():
        return None
    if op.factor is None or (op.factor == 1.0).all():
        return 1, None
    return (-1, None) if (op.factor == -1.0).all() else None


@singledispatch
def _signs(op: Operator) -> tuple[int, ...] | None:
    """The signs of a plain sum."""
    del op
    return None


@_signs.register
def _(op: Sum) -> tuple[int, ...] | None:
    return op.signs


@dataclass(frozen=True, eq=False)
class Network:
    """A graph all of whose operators have known slopes.

    Attributes:
        graph: the network.
        slopes: elementwise node name -> its slopes.
        domain: the input box (1, n) on which they hold, or None for everywhere.
        share: whether twins share their absolute values, and sorted pairs are known as such.
    """

    graph: Graph
    slopes: Mapping[str, Slopes]
    domain: Box | None = None
    share: bool = True

    @classmethod
    def read(cls, graph: Graph, domain: Box | None = None) -> Network:
        """Look up every operator; constants are never guessed.

        Args:
            graph: the network.
            domain: the inputs that matter, (1, n); slopes are those on it.

        Raises:
            UnsupportedModel: an operator is not Lipschitz continuous, there or at all, or is not
                understood; all such nodes are named.
        """
        boxes: Mapping[str, Box] = {}
        if domain is not None:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                boxes = crown_bounds(graph, domain).boxes
        slopes: dict[str, Slopes] = {}
        refused: list[tuple[Node, str]] = []
        for node in graph.nodes:
            if isinstance(node.op, Affine):
                continue
            if not isinstance(node.op, Elementwise):
                refused.append((node, "has no rule for a global constant"))
                continue
            found = Slopes.of(node.op, boxes.get(node.inputs[0]))
            if found is None:
                where = "" if domain is None else " on the domain"
                refused.append((node, f"is not Lipschitz continuous{where}"))
            elif not np.isfinite(found.largest).all():
                refused.append((node, "has slopes that are not finite"))
            else:
                slopes[node.name] = found
        if refused:
            raise _refusal(refused, domain is None)
        return cls(graph, slopes, domain)

    @cached_property
    def makers(self) -> Mapping[str, Node]:
        """The node of every value but the input."""
        return {node.name: node for node in self.graph.nodes}

    def view(self, name: str) -> View:
        """A value followed back through selections and changes of sign."""
        sign = 1
        index: IntArray = np.arange(self.graph.sizes[name])
        while name in self.makers:
            node = self.makers[name]
            step = _as_view(node.op)
            if step is None:
                break
            sign *= step[0]
            index = index if step[1] is None else step[1][index]
            name = node.inputs[0]
        return View(sign, name, index)

    def _terms(self, name: str) -> list[View]:
        """A value as a sum of views."""
        view = self.view(name)
        node = self.makers.get(view.root)
        signs = None if node is None else _signs(node.op)
        if node is None or signs is None:
            return [view]
        terms = []
        for source, sign in zip(node.inputs, signs, strict=True):
            inner = self.view(source)
            terms.append(View(sign * view.sign * inner.sign, inner.root, inner.index[view.index]))
        return terms

    @cached_property
    def twins(self) -> Mapping[str, str]:
        """Elementwise node -> an earlier one whose absolute value of the same numbers it shares."""
        result: dict[str, str] = {}
        known: dict[tuple[tuple[str, bytes, int], ...], str] = {}
        for name, slopes in self.slopes.items() if self.share else ():
            if not slopes.even:
                continue
            terms = self._terms(self.makers[name].inputs[0])
            entries = sorted((t.root, t.index.tobytes(), t.sign) for t in terms)
            first = entries[0][2]  # z and -z have the same key
            key = tuple((root, index, sign * first) for root, index, sign in entries)
            other = known.setdefault(key, name)
            if other != name and (self.slopes[other].rad[slopes.rad != 0.0] != 0.0).all():
                result[name] = other
        return result

    def between_twins(self) -> set[str]:
        """Values that twins are recognised through: what they read, back to the common ones."""
        found: set[str] = set()
        pending = [
            name
            for pair in self.twins.items()
            for node in pair
            for name in self.makers[node].inputs
        ]
        while pending:
            name = pending.pop()
            node = self.makers.get(name)
            plain = node is not None and (_as_view(node.op) or _signs(node.op))
            if node is not None and plain and name not in found:
                found.add(name)
                pending.extend(node.inputs)
        return found

    @cached_property
    def pairs(self) -> Mapping[str, tuple[str, int]]:
        """Maximum that belongs to a sorted pair -> (the first maximum of the pair, which half)."""
        result: dict[str, tuple[str, int]] = {}
        maxima = [node for node in self.graph.nodes if node.op.takes_maximum and self.share]
        for number, second in enumerate(maxima):
            for first in maxima[:number]:
                taken = first.name in result or second.name in result
                if not taken and self._are_sorted(first, second):
                    result |= {first.name: (first.name, 0), second.name: (first.name, 1)}
        return result

    def _are_sorted(self, first: Node, second: Node) -> bool:
        """Whether two maxima are max(a, b) and max(-a, -b)."""
        pairs = [[self.view(name) for name in node.inputs[:2]] for node in (first, second)]
        (a, b), (c, d) = pairs
        straight = c.is_negative_of(a) and d.is_negative_of(b)
        return straight or (c.is_negative_of(b) and d.is_negative_of(a))


def _refusal(refused: Sequence[tuple[Node, str]], everywhere: bool) -> UnsupportedModel:
    lines = [
        f"{node.source or node.name} ({type(node.op).__name__}) {reason}"
        for node, reason in refused
    ]
    count = len(lines)
    return UnsupportedModel(
        f"{count} {'node has' if count == 1 else 'nodes have'} no Lipschitz constant",
        place="\n  --> ".join(lines),
        help="a domain may help: onnxcert lipschitz --domain LOW HIGH" if everywhere else "",
    )


def input_box(graph: Graph, low: float, high: float) -> Box:
    """The same interval for every input, (1, n)."""
    shape = (1, graph.input_size)
    return Box(np.full(shape, float(low)), np.full(shape, float(high)))
