"""How far the outputs of a binary32 execution may lie from the real ones, anywhere on a domain.

Let the nodes of an execution round one after the other, so that node k adds to its own value an
error of at most ``e_k`` entry by entry and ``eta_k`` in Euclidean length, and everything behind it
is exact. From one such network to the next a value v moves by no more than the constant ``C_k(v)``
behind node k (`Calculus.behind`) allows, so that

    |v_executed - v| <= sum_k C_k(v) eta_k.

The errors in their turn are as large as the numbers that are added up,

    e_k <= gamma_n(u) (|W| |h| + |b|),    eta_k <= gamma_n(u) (||W|| |h| + |b|),

||W|| the norm of the absolute values. Boxes of h over a domain as large as that of all images grow
with the absolute sums of every layer; but in a network of small constants no value goes far from
the one at the middle c of the domain, which is as far as the half diagonal r from all points:

    |h(x)| <= |h(c)| + L(h) r + (what executions add, as above).

Both hold, for each entry and for the length, and the smaller is taken, node by node. What reaches
the outputs from node k is the least of three: by the product of norms; by the matrix recursion of
`onnxcert.continuity.ellipsoid`, begun with an ellipsoid round all errors of the node; and by the
absolute values of the weights where nothing but affine maps follows. Instead of the sum over all
nodes the absolute values of all weights may be taken at once.

At a distance d from the box, all of this is larger by no more than d times a constant. Let e*_k be
the errors of an execution at such a point x, cut down entry by entry to what the nearest point of
the box allows: gamma_n(u) (|W| |h*| + |b|), h* the values there with the errors e*. These are
errors that all bounds above cover. From there to the execution at x the input moves by d and the
errors by b_k, in length at most s_k d, so that every value moves by at most g(v) d,

    g(v) = L(v) + sum_k C_k(v) s_k,    s_k = gamma_n(u) ||W_k|| g(h_k),

node after node, and the outputs deviate from the real ones by what they may on the box and
sum_k C_k s_k d more (`Growth`). It holds as long as nothing overflows.

A bias that is a node of its own is charged together with the products before it: whichever of them
an executor begins with, each term takes part in no more roundings than the last node counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, FloatArray
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.execution import (
    FLUSH,
    LARGEST,
    SLACK,
    SMALLEST,
    enclose,
    execution_error,
    flushing_error,
    widened,
)
from onnxcert.continuity.ellipsoid import Plan, choose_closed_form, pair_constants
from onnxcert.continuity.ellipsoid import enclose as enclose_moves
from onnxcert.continuity.network import Network
from onnxcert.continuity.norms import operator_norm
from onnxcert.continuity.product import Calculus, pair_forms
from onnxcert.graph import Graph, Node
from onnxcert.ops import Affine, Elementwise
from onnxcert.ops.base import TINY, gamma
from onnxcert.sets import Box

_FEW_NEURONS = 4000
"""Up to so many, backward bounds of the layers make the errors smaller."""

_WIDEST_PLAN = 2500
"""Up to so many rows the matrix recursion is run behind every node."""

_MOST_PAIRED = 128
"""Up to so many outputs have products of norms for each difference."""

_UP = 1.0 + 1e-9
"""Covers the roundings of sums and products of bounds."""


def execution_deviation(graph: Graph, box: Box, unit: float) -> tuple[FloatArray, float]:
    """How far computed differences of outputs may lie from the real ones.

    Args:
        graph: as read from the file, not simplified.
        box: of the inputs, (1, n); they are the same numbers in both.
        unit: unit roundoff of the executor.

    Returns:
        (bounds of the deviations of y_i - y_j (m, m), a bound of all |y_i|); infinite where an
        execution might overflow.

    Raises:
        UnsupportedModel: an operator has no Lipschitz constant.
    """
    executions = Executions.over(graph, box, unit)
    return executions.deviations(), executions.largest


@dataclass(frozen=True, eq=False)
class Error:
    """What the roundings of one node may add to its value.

    Attributes:
        entries: (1, n).
        length: Euclidean.
        summed: no less than any sum of absolute values that is rounded.
    """

    entries: Array
    length: float
    summed: float


@dataclass(frozen=True, eq=False)
class Growth:
    """What is added for inputs outside of the box, per unit of Euclidean distance from it.

    Attributes:
        pairs: to the bounds of the deviations of y_i - y_j, (m, m).
        outputs: to the bound of all |y_i|.
        reach: up to this distance nothing overflows.
    """

    pairs: FloatArray
    outputs: float
    reach: float


@dataclass(eq=False)
class Executions:
    """What executions compute over a box of inputs, node by node.

    Attributes:
        network: all operators have slopes; twins share only what executions compute alike.
        box: of the inputs, (1, n).
        unit: unit roundoff of the executor.
        boxes: of every computed value, (1, n); of a node that the next one is charged for, of its
            exact result for what is read.
        lengths: Euclidean, of every computed value.
        errors: of the nodes that round; a node that the next one is charged for is not named.
        carried: bounds of the deviation of every value, through absolute values of the weights,
            (1, n).
    """

    network: Network
    box: Box
    unit: float
    boxes: dict[str, Box] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)
    errors: dict[str, Error] = field(default_factory=dict)
    carried: dict[str, Array] = field(default_factory=dict)
    _behind: dict[str, Calculus] = field(default_factory=dict)

    @classmethod
    def over(cls, graph: Graph, box: Box, unit: float) -> Executions:
        """Bound every value and every error."""
        network = Network.read(graph)
        # Twins share a value as long as what they read is exactly opposite in executions, too.
        if any(_rounds(graph, network.makers[name]) for name in network.between_twins()):
            network = replace(network, share=False)
        made = cls(network, box, unit)
        neurons = sum(graph.sizes[name] for name in graph.pre_activations)
        with _quiet():
            known: Mapping[str, Box] = {}
            if neurons <= _FEW_NEURONS:
                known = crown_bounds(graph, box, execution_unit=unit).boxes
            made._walk(known)
        return made

    @property
    def graph(self) -> Graph:
        """The network's graph."""
        return self.network.graph

    @cached_property
    def calculus(self) -> Calculus:
        """Constants from the input."""
        return Calculus(self.network)

    @cached_property
    def chains(self) -> Mapping[str, tuple[Node, ...]]:
        """Nodes that are charged together, under the name of the last, in their order."""
        makers, found = self.network.makers, dict[str, tuple[Node, ...]]()
        for node in self.graph.nodes:
            if not isinstance(node.op, Affine) or not self.graph.roundings[node.name]:
                continue
            before: tuple[Node, ...] = ()
            if node.op.adds_bias and node.roundings is None:
                source = node.inputs[0]
                if source in found and self.graph.consumers[source] == 1:
                    before = found.pop(source) if source != self.graph.output else ()
            found[node.name] = (*before, makers[node.name])
        return found

    def _walk(self, known: Mapping[str, Box]) -> None:
        graph = self.graph
        middle = 0.5 * (self.box.lower + self.box.upper)
        half = np.maximum(self.box.upper - middle, middle - self.box.lower)
        radius = float(np.linalg.norm(half)) * _UP
        centers = {graph.input: _Center(middle, 0.0)}
        self.boxes[graph.input] = self.box
        self.lengths[graph.input] = float(np.linalg.norm(self.box.magnitude)) * _UP
        self.carried[graph.input] = np.zeros_like(middle)
        for node in graph.nodes:
            name = node.name
            error = self._error(node)
            carried = _carried_on(self.network, node, [self.carried[x] for x in node.inputs])
            if error is not None:
                self.errors[name] = error
                self._behind[name] = self.calculus.behind(name)
                carried = carried + error.entries
            self.carried[name] = carried * _UP
            center = self._center(node, [centers[x] for x in node.inputs])
            centers[name] = center
            reach = self.calculus.constant(name) * radius + self._deviation(name) + center.error
            reach *= _UP
            box = enclose(graph, node, self.boxes, 0.0)
            box = box if error is None else widened(box, error.entries)
            box = box.intersect(center.around(reach))
            self.boxes[name] = box.intersect(known[name]) if name in known else box
            length = float(np.linalg.norm(center.value)) + reach
            self.lengths[name] = _least(length, np.linalg.norm(self.boxes[name].magnitude)) * _UP

    def _center(self, node: Node, read: Sequence[_Center]) -> _Center:
        """The value in the middle of the domain, and how far what is computed here is from it."""
        points = [Box(center.value, center.value) for center in read]
        value = node.op.forward([center.value for center in read])
        exact = node.op.interval(points, UNIT_ROUNDOFF)
        rounded = np.maximum(exact.upper - value, value - exact.lower)
        moved = self._moved(node, [center.error for center in read])
        return _Center(value, (float(np.linalg.norm(rounded)) + moved) * _UP)

    def _moved(self, node: Node, read: Sequence[float]) -> float:
        """How far a value may move when those that it is made of do, all Euclidean."""
        if isinstance(node.op, Elementwise):
            return float(self.network.slopes[node.name].largest.max(initial=0.0)) * read[0]
        assert isinstance(node.op, Affine)
        if node.op.takes_maximum:
            return math.hypot(*read[:2]) * _UP
        return _combined(node.op, read, lambda _: self.calculus.norm_of(node))

    def _deviation(self, name: str) -> float:
        """Length of what executions add to a value."""
        total = sum(
            calculus.constant(name) * self.errors[source].length
            for source, calculus in self._behind.items()
        )
        return _least(total, np.linalg.norm(self.carried[name])) * _UP

    def _error(self, node: Node) -> Error | None:
        """What is charged to a node."""
        if isinstance(node.op, Elementwise):
            found = execution_error(self.graph, node, self.boxes, self.unit)
            if found is None:
                return None
            values = node.op.interval([self.boxes[node.inputs[0]]], UNIT_ROUNDOFF).magnitude
            summed = float(values.max(initial=1.0))
            return Error(found, float(np.linalg.norm(found)) * _UP, summed)
        chain = self.chains.get(node.name)
        if chain is None or not self.unit:
            return None
        read = [self.boxes[name].magnitude for name in chain[0].inputs]
        lengths = [self.lengths[name] for name in chain[0].inputs]
        flushed: Array = np.zeros((1, 1))
        summed = 0.0
        for part in chain:
            op, count = part.op, self.graph.roundings[part.name]
            assert isinstance(op, Affine)
            few = [SMALLEST * math.sqrt(values.shape[1]) for values in read]
            lengths = [length + rest for length, rest in zip(lengths, few, strict=True)]
            length = _combined(op.magnitude, lengths, operator_norm)
            size = op.magnitude.apply([values + SMALLEST for values in read])
            if op.bias_parts is not None:
                size = size + abs(op.bias_parts)
                length += float(np.linalg.norm(op.bias_parts))
            lengths = [length * _UP]
            size = np.fmin(size, lengths[0])  # no entry is longer than the vector
            summed = max(summed, float(size.max(initial=0.0)))
            largest = sum(values.sum(axis=1, keepdims=True) for values in read)
            lost = flushing_error(size, count, largest)
            flushed = lost if part is chain[0] else op.magnitude.apply([flushed]) + lost
            read = [size]
        share, flushed = gamma(count, self.unit), 2.0 * flushed
        entries = SLACK * (share * read[0] + flushed)
        entries = np.where(np.isnan(entries), np.inf, entries)
        length = share * lengths[0] + float(np.linalg.norm(flushed))
        # Where some sum may overflow there is no bound at all.
        return Error(entries, _least(length, np.linalg.norm(entries)) * _UP, summed)

    # Outputs

    @property
    def largest(self) -> float:
        """A bound of all |y_i|."""
        return float(self.boxes[self.graph.output].magnitude.max())

    def growth(self) -> Growth:
        """What inputs outside of the box add; infinite where there is no bound."""
        graph = self.graph
        size = graph.output_size
        moves, pairs, reach = {graph.input: 1.0}, np.zeros((size, size)), math.inf
        shares: dict[str, float] = {}
        with _quiet():
            for node in graph.nodes:
                name = node.name
                if name in self.errors:
                    share, summed = self._error_growth(node, moves)
                    shares[name] = share
                    pairs += self._pairs_behind(name) * share
                    room = 0.5 * LARGEST - self.errors[name].summed
                    reach = min(reach, room / summed if summed > 0.0 else math.inf)
                moved = sum(self._behind[at].constant(name) * share for at, share in shares.items())
                moves[name] = (self.calculus.constant(name) + moved) * _UP
        pairs = np.where(np.isfinite(pairs), pairs * _UP, np.inf)
        return Growth(pairs, moves[graph.output], reach)

    def _error_growth(self, node: Node, moves: Mapping[str, float]) -> tuple[float, float]:
        """How the length of an error, and the sums that are rounded, grow as values do."""
        if isinstance(node.op, Elementwise):
            read = moves[node.inputs[0]]
            slope = float(self.network.slopes[node.name].largest.max(initial=0.0))
            summed, count = slope * read * _UP, node.op.error_terms
            lost = FLUSH * count * read
            return (gamma(count, self.unit) * summed + lost) * SLACK * _UP, summed
        chain = self.chains[node.name]
        summed, lost, lengths = 0.0, 0.0, [moves[name] for name in chain[0].inputs]
        for part in chain:
            op, count = part.op, self.graph.roundings[part.name]
            assert isinstance(op, Affine)
            # Absolute sums of n numbers are at most sqrt(n) times as long; one for each output.
            widest = math.sqrt(max(op.input_sizes) * op.output_size)
            fresh = FLUSH * count * widest * float(sum(lengths))
            passed = 0.0 if part is chain[0] else _combined(op.magnitude, [lost], operator_norm)
            lost = passed + fresh
            lengths = [_combined(op.magnitude, lengths, operator_norm)]
            summed = max(summed, lengths[0])
        length = gamma(count, self.unit) * lengths[0] + 2.0 * lost
        return length * SLACK * _UP, summed

    def deviations(self) -> FloatArray:
        """Bounds of the deviations of y_i - y_j, (m, m), infinite where there are none."""
        single = self.carried[self.graph.output][0]
        plan = Plan.of(self.network)
        usable = plan.width <= _WIDEST_PLAN and self._maxima_are_exact()
        total = np.zeros((len(single), len(single)))
        with _quiet():
            for name, error in self.errors.items():
                total += self._through(name, error, plan if usable else None)
            result = np.fmin(total, single[:, None] + single) * _UP
        return np.where(np.isfinite(result), result, np.inf)

    def _maxima_are_exact(self) -> bool:
        """Whether executions make no roundings between the operands of maxima and their results."""
        for node in self.graph.nodes:
            if node.op.takes_maximum:
                gap = self.network.makers[node.inputs[2]]
                if any(_rounds(self.graph, part) for part in (node, gap)):
                    return False
                if any(_rounds(self.graph, self.network.makers[x]) for x in gap.inputs):
                    return False
        return True

    def _through(self, name: str, error: Error, plan: Plan | None) -> FloatArray:
        """What the error of one node may change, by the best of the ways to the output, (m, m)."""
        single = self._behind[name].outputs(np.eye(self.graph.output_size)) * error.length
        if name in self._last:
            single = np.fmin(single, self._carried_to_output(name, error))
        best: FloatArray = single[:, None] + single
        best = np.fmin(best, self._pairs_behind(name) * error.length)
        return best if plan is None else np.fmin(best, _pushed(plan, name, error))

    def _pairs_behind(self, name: str) -> FloatArray:
        """Constants of y_i - y_j behind a node, by the product of norms, (m, m)."""
        behind, size = self._behind[name], self.graph.output_size
        single = behind.outputs(np.eye(size))
        best: FloatArray = single[:, None] + single
        if size <= _MOST_PAIRED:
            forms = (pair_forms(size, first) for first in range(size))
            best = np.fmin(best, np.stack([behind.outputs(f) for f in forms]))
        return best

    @cached_property
    def _last(self) -> set[str]:
        """Nodes from which the way to the output is affine."""
        islands = self.calculus.island(self.graph.output).values()
        return {node.name for nodes in islands for node in nodes}

    def _carried_to_output(self, name: str, error: Error) -> FloatArray:
        """The error of one node, through absolute values, (m,)."""
        errors = {name: error.entries}
        for node in self.graph.nodes:
            if node.name != name and any(source in errors for source in node.inputs):
                shapes = zip(node.inputs, node.op.input_sizes, strict=True)
                read = [errors.get(source, np.zeros((1, n))) for source, n in shapes]
                errors[node.name] = _carried_on(self.network, node, read) * _UP
        result: FloatArray = errors[self.graph.output][0]
        return result


@dataclass(frozen=True, eq=False)
class _Center:
    """A value at one input, as computed in binary64.

    Attributes:
        value: (1, n).
        error: the Euclidean distance from the exact one.
    """

    value: Array
    error: float

    def around(self, reach: float) -> Box:
        """All entries that are as near, rounded outward."""
        rounding = 4.0 * UNIT_ROUNDOFF * (np.abs(self.value) + reach)
        return Box(self.value - reach - rounding, self.value + reach + rounding).defined()


def _quiet() -> np.errstate:
    """Numbers that overflow are infinite bounds, and NaN none."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def _least(*lengths: Any) -> float:
    """The least that is a number; infinite where none is."""
    return min((float(length) for length in lengths if length >= 0.0), default=math.inf)


def _combined(op: Affine, lengths: Sequence[float], norm: Callable[[Affine], float]) -> float:
    """The length of what an affine map makes of vectors of given lengths."""
    if op.stacks:
        return math.hypot(*lengths) * _UP
    if len(lengths) > 1:
        return float(sum(lengths)) * _UP
    return norm(op) * lengths[0] * _UP


def _carried_on(network: Network, node: Node, read: Sequence[Array]) -> Array:
    """Errors of what a node reads, through absolute values of its weights, (1, n) each."""
    if node.op.takes_maximum:  # compared, not computed
        return np.maximum(read[0], read[1])
    if isinstance(node.op, Elementwise):
        return network.slopes[node.name].largest * read[0]
    assert isinstance(node.op, Affine)
    return node.op.magnitude.apply(list(read))


def _rounds(graph: Graph, node: Node) -> bool:
    """Whether executions may add an error to a node's value."""
    if isinstance(node.op, Elementwise):
        return node.op.error_terms > 0
    return graph.roundings.get(node.name, 0) > 0


def _pushed(plan: Plan, name: str, error: Error) -> FloatArray:
    """The error of one node through the recursion behind it, (m, m).

    The box of errors lies in the ellipsoid with sum e_i^2 / q_i = 1 for q_i = e_i sum_j e_j, and
    their ball in that with q_i = eta^2; the one with the smaller trace is taken.
    """
    size = plan.graph.output_size
    entries = error.entries[0] + TINY
    total, length = float(entries.sum()), error.length + TINY
    diagonal = entries * total
    if not total**2 <= length**2 * len(entries):
        diagonal = np.full(len(entries), length**2)
    diagonal = diagonal * _UP
    scale = float(diagonal.max())
    if np.isfinite(scale) and scale > 0.0:
        found = enclose_moves(plan, choose_closed_form(plan.network), diagonal / scale, behind=name)
        if found is not None:
            return pair_constants(found[0]) * math.sqrt(scale) * _UP
    return np.full((size, size), np.inf)
