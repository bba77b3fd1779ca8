"""Constants by the product of norms, for any graph: a calculus over its values.

For every value v a constant L_v with |v(x) - v(x')| <= L_v |x - x'|, lengths Euclidean but for the
input's, by three rules of which the best counts.

* Islands. What lies between a value and the nearest inputs or outputs of curves (its bases u) is
  affine, so L_v <= sum_u ||A_vu|| L_u with the norm of the whole island: branches that add up and
  linear skip connections are one matrix where that is small enough to be written out, and else
  products and sums of norms.
* Curves: the largest slope.
* Dominance. Where every |dv_i|^2 is at most sum_j S_ij |du_j|^2 with S >= 0, L_v^2 is at most the
  largest column sum of S times L_u^2. Selections, scales, curves and maxima (the entrywise larger
  of both S) keep this form, which makes maximum pooling the square root of the number of windows
  that share a pixel and sorting pairs an isometry.

The constant of y_i - y_j takes the row difference of the last island, whose length is exact (Leino,
Wang, Fredrikson, ICML 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, singledispatch
from typing import Any

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, FloatArray
from onnxcert.continuity.network import Network
from onnxcert.continuity.norms import (
    DENSE_NUMBERS,
    DENSE_SIDE,
    UP,
    WEIGHT_ROUNDINGS,
    matrix_norm,
    operator_norm,
    schur_bound,
)
from onnxcert.graph import Node
from onnxcert.ops import Affine, Elementwise, Operator, Scale, Select
from onnxcert.ops.base import TINY, gamma

_MOST_ENTRIES = 1 << 23
"""Of a dominance matrix; beyond, the value starts a new one."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Linear forms of one base, with what rounding may have changed.

    Attributes:
        values: (m, n).
        error: (m, n) bounds of the entries' errors.
    """

    values: FloatArray
    error: FloatArray


@dataclass(frozen=True, eq=False)
class Layer:
    """The norm of one affine operator.

    Attributes:
        name: the value it makes; source: the node of the file.
        norm: an upper bound of its spectral norm.
    """

    name: str
    source: str
    norm: float


@dataclass(eq=False)
class Calculus:
    """Constants of the values of a network, computed when they are asked for.

    Attributes:
        network: the network.
        norm: of the input: 2, inf or 1.
        source: a value that moves by itself, its length Euclidean, while nothing that it does not
            make moves; empty for the input.
    """

    network: Network
    norm: str = "2"
    source: str = ""
    _constants: dict[str, float] = field(default_factory=dict)
    _norms: dict[str, float] = field(default_factory=dict)
    _islands: dict[tuple[str, ...], float] = field(default_factory=dict)
    _dominance: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def constant(self, name: str) -> float:
        """L of a value; of the input: the longest vector of length 1 in its norm."""
        graph = self.network.graph
        if not self._constants:
            whole = math.sqrt(graph.input_size) * UP if self.norm == "inf" else 1.0
            self._constants[graph.input] = 0.0 if self.source else whole
            for node in graph.nodes:
                known = 1.0 if node.name == self.source else self._of(node)
                self._constants[node.name] = known
            self._dominance.clear()  # large where windows overlap
        return self._constants[name]

    def behind(self, name: str) -> Calculus:
        """Constants of what moves when one value does; norms that are known are not found again.

        The network should not share twins that the value stands between.
        """
        return Calculus(self.network, "2", name, _norms=self._norms, _islands=self._islands)

    def layers(self) -> list[Layer]:
        """Norms of the operators that are not one."""
        found = []
        for node in self.network.graph.nodes:
            if isinstance(node.op, Affine) and len(node.op.input_sizes) == 1:
                found.append(Layer(node.name, node.source, self.norm_of(node)))
        return found

    @cached_property
    def _targets(self) -> set[str]:
        """Values whose whole island is looked at: those that something other reads."""
        graph = self.network.graph
        return {graph.output} | {
            name
            for node in graph.nodes
            if self._is_base(node.name)
            for name in node.inputs[:2]
            if not self._is_base(name)
        }

    def _is_base(self, name: str) -> bool:
        node = self.network.makers.get(name)
        if node is None or name == self.source:
            return True
        return isinstance(node.op, Elementwise) or node.op.takes_maximum

    def _of(self, node: Node) -> float:
        """The best of the rules."""
        read = [self._constants[name] for name in node.inputs]
        if not any(read):
            return 0.0
        if isinstance(node.op, Elementwise):
            steepest = float(self.network.slopes[node.name].largest.max(initial=0.0))
            found = _times(read[0], steepest)
        elif node.op.takes_maximum:
            found = math.hypot(*read[:2]) * UP
        elif node.op.stacks:
            found = math.hypot(*read) * (1.0 + 1e-14)
        elif len(read) > 1:
            found = sum(read) * (1.0 + 1e-14)
        else:
            found = _times(self.norm_of(node), read[0])
        if node.name in self._targets and not self._is_base(node.name):
            found = min(found, self._of_island(node.name))
        root, matrix = self.dominance(node.name)
        if root == node.name:
            return found
        return min(found, _times(self._root_constant(root), self._gain(matrix)))

    def _gain(self, matrix: Any) -> float:
        sums = np.asarray(matrix.sum(axis=0)).ravel()
        largest = float(sums.max(initial=0.0))
        if largest == 1.0 and (matrix.data == np.round(matrix.data)).all():
            return 1.0  # whole numbers add up exactly
        return math.sqrt(largest) * (1.0 + gamma(matrix.shape[0] + 8, UNIT_ROUNDOFF))

    def _root_constant(self, root: str) -> float:
        """L of a value, or of both operands of a sorted pair side by side."""
        if root not in self._constants:
            a, b = self.network.makers[root.removeprefix(_PAIR)].inputs[:2]
            best = math.hypot(self.constant(a), self.constant(b)) * UP + TINY
            (first, left), (second, right) = self.dominance(a), self.dominance(b)
            if first == second:  # perhaps a sorted pair itself
                best = min(
                    best, _times(self._root_constant(first), self._gain(_stack([left, right])))
                )
            self._constants[root] = best
        return self._constants[root]

    # Islands

    def _of_island(self, name: str) -> float:
        total = 0.0
        for base, nodes in self.island(name).items():
            total += self._island_norm(base, nodes, name)
        return total * (1.0 + 1e-14)

    def island(self, name: str) -> dict[str, list[Node]]:
        """The bases of an affine value, each with the nodes between, in order."""
        makers = self.network.makers
        if self._is_base(name):
            return {name: []}
        inside: dict[str, Node] = {}
        pending = [name]
        while pending:
            value = pending.pop()
            if value not in inside and not self._is_base(value):
                inside[value] = makers[value]
                pending.extend(makers[value].inputs)
        ordered = [node for node in self.network.graph.nodes if node.name in inside]
        bases = dict.fromkeys(
            value for node in ordered for value in node.inputs if self._is_base(value)
        )
        result = {}
        for base in bases:
            reached = {base}
            nodes = []
            for node in ordered:
                if reached.intersection(node.inputs):
                    reached.add(node.name)
                    nodes.append(node)
            result[base] = nodes
        return result

    def _island_norm(self, base: str, nodes: Sequence[Node], name: str) -> float:
        """The norm of the map from a base, times the base's constant."""
        if not nodes or not self.constant(base):
            return self.constant(base)
        bounds = {base: 1.0}
        for node in nodes:
            parts = [bounds.get(value, 0.0) for value in node.inputs]
            if node.op.stacks:
                bounds[node.name] = math.hypot(*parts) * (1.0 + 1e-14)
            elif len(parts) > 1:
                bounds[node.name] = sum(parts) * UP
            else:
                bounds[node.name] = _times(parts[0], self.norm_of(node))
        best = _times(bounds[name], self.constant(base))
        if base != self.network.graph.input or self.norm == "2":
            if len(nodes) > 1 or len(nodes[0].op.input_sizes) > 1:
                best = min(best, _times(self._written_norm(base, nodes, name), self.constant(base)))
            return best
        rows = self._written_out(base, nodes, name)
        if rows is None:
            return best
        columns = _lengths(Rows(rows.values.T, rows.error.T))
        if self.norm == "1":
            return min(best, float(columns.max(initial=0.0)))
        best = min(best, float(columns.sum()) * (1.0 + 1e-9))
        return min(best, _times(self._written_norm(base, nodes, name), self.constant(base)))

    def _written_norm(self, base: str, nodes: Sequence[Node], name: str) -> float:
        """The norm of the matrix of an island from one base; infinite where it is too large."""
        key = (base, *(node.name for node in nodes), name)
        if key not in self._islands:
            rows = self._written_out(base, nodes, name)
            found = math.inf
            if rows is not None:
                sums = rows.error.sum(axis=1), rows.error.sum(axis=0)
                found = matrix_norm(rows.values, schur_bound(*sums) * (1.0 + 1e-9))
            self._islands[key] = found
        return self._islands[key]

    def norm_of(self, node: Node) -> float:
        """The spectral norm of an affine operator with one input."""
        if node.name not in self._norms:
            assert isinstance(node.op, Affine)
            self._norms[node.name] = operator_norm(node.op)
        return self._norms[node.name]

    def _written_out(self, base: str, nodes: Sequence[Node], name: str) -> Rows | None:
        """The matrix of an island from one base, (n_v, n_u), where it is small."""
        sizes = self.network.graph.sizes
        side, widest = min(sizes[base], sizes[name]), max(sizes[node.name] for node in nodes)
        if side > DENSE_SIDE or side * max(widest, sizes[base]) > DENSE_NUMBERS:
            return None
        if sizes[base] < sizes[name]:
            found = self._forward(base, nodes, name)
            return Rows(found.values.T, found.error.T)
        return self.pulled(np.eye(sizes[name]), base, nodes, name)

    def _forward(self, base: str, nodes: Sequence[Node], name: str) -> Rows:
        size = self.network.graph.sizes[base]
        values = {base: np.eye(size)}
        errors = {base: np.zeros((size, size))}
        for node in nodes:
            assert isinstance(node.op, Affine)
            read = [self._or_zero(values, value, size) for value in node.inputs]
            wrong = [self._or_zero(errors, value, size) for value in node.inputs]
            values[node.name] = node.op.apply(read)
            share = _relative(node.op)
            spread = [share * np.abs(part) + rest for part, rest in zip(read, wrong, strict=True)]
            errors[node.name] = node.op.magnitude.apply(spread) * (1.0 + 2.0 * share)
        return Rows(values[name], errors[name])

    def _or_zero(self, known: Mapping[str, Array], name: str, count: int) -> Array:
        if name in known:
            return known[name]
        return np.zeros((count, self.network.graph.sizes[name]))

    def pulled(self, rows: FloatArray, base: str, nodes: Sequence[Node], name: str) -> Rows:
        """Linear forms of a value as forms of one base: (m, n_v) -> (m, n_u)."""
        values: dict[str, Array] = {name: rows}
        errors: dict[str, Array] = {name: np.zeros_like(rows)}
        reached = {base, *(node.name for node in nodes)}
        for node in reversed(nodes):
            if node.name not in values:
                continue
            assert isinstance(node.op, Affine)
            share = _relative(node.op) + 4.0 * len(nodes) * UNIT_ROUNDOFF
            here, wrong = values.pop(node.name), errors.pop(node.name)
            spread = (share * np.abs(here) + wrong) * (1.0 + 2.0 * share)
            sent = node.op.transpose(here), node.op.magnitude.transpose(spread)
            for source, part, error in zip(node.inputs, *sent, strict=True):
                if source in reached:
                    values[source] = values[source] + part if source in values else part
                    errors[source] = errors[source] + error if source in errors else error
        # Sums of parts round once more; relative to their sizes, which the shares cover.
        shape = (len(rows), self.network.graph.sizes[base])
        none = np.zeros(shape)
        return Rows(values.get(base, none), errors.get(base, none) * (1.0 + 1e-9) + TINY)

    # Dominance

    def dominance(self, name: str) -> tuple[str, Any]:
        """A root and the sparse S with |dv|^2 <= S |du|^2, entry by entry."""
        if name not in self._dominance:
            trail = [name]
            while trail:  # a stack of our own: graphs may be deeper than Python's
                node = self.network.makers.get(trail[-1])
                missing = [
                    value
                    for value in ([] if node is None else self._read_by_dominance(node))
                    if value not in self._dominance
                ]
                if missing:
                    trail.extend(missing)
                else:
                    value = trail.pop()
                    self._dominance[value] = self._dominate(value, node)
        return self._dominance[name]

    def _read_by_dominance(self, node: Node) -> tuple[str, ...]:
        if node.name == self.source:
            return ()
        if isinstance(node.op, Elementwise):
            return node.inputs
        if node.op.takes_maximum:
            return node.inputs[:2]
        return node.inputs if _weights(node.op) is not None or node.op.stacks else ()

    def _dominate(self, name: str, node: Node | None) -> tuple[str, Any]:
        own = name, _identity(self.network.graph.sizes[name])
        if node is None:
            return own
        known = [self._dominance[value] for value in self._read_by_dominance(node)]
        if not known:
            return own
        if node.op.takes_maximum:
            return self._dominate_maximum(node, known, own)
        root = known[0][0]
        if any(other != root for other, _ in known):
            return own
        if isinstance(node.op, Elementwise):
            matrix = _scaled(known[0][1], self.network.slopes[name].largest)
        elif node.op.stacks:
            matrix = _stack([part for _, part in known])
        else:
            weights = _weights(node.op)
            assert weights is not None
            matrix = _scaled((weights[0] @ known[0][1]), weights[1])
        return (root, matrix) if matrix.nnz <= _MOST_ENTRIES else own

    def _dominate_maximum(
        self, node: Node, known: Sequence[tuple[str, Any]], own: tuple[str, Any]
    ) -> tuple[str, Any]:
        size = self.network.graph.sizes[node.name]
        if node.name in self.network.pairs:
            head, half = self.network.pairs[node.name]
            return _PAIR + head, _picked(half * size + np.arange(size), 2 * size)
        (first, left), (second, right) = known
        if first != second:
            return own
        matrix = left.maximum(right)
        return (first, matrix) if matrix.nnz <= _MOST_ENTRIES else own

    # Outputs

    def outputs(self, forms: FloatArray) -> FloatArray:
        """Constants of linear forms (m, n_y) of the output, (m,)."""
        graph = self.network.graph
        total = np.zeros(len(forms))
        cut, trail = graph.output, list[Node]()
        whole = self.constant(cut) * _lengths(Rows(forms, np.zeros_like(forms)))
        while not self._is_base(cut) and len(self.network.makers[cut].inputs) == 1:
            trail.insert(0, self.network.makers[cut])
            cut = trail[0].inputs[0]
        if trail and cut != graph.input:
            rows = self.pulled(forms, cut, trail, graph.output)
            whole = np.minimum(whole, _lengths(rows) * self.constant(cut))
        for base, nodes in self.island(graph.output).items():
            rows = self.pulled(forms, base, nodes, graph.output)
            if base == graph.input and not self.source:
                total += _dual_lengths(rows, self.norm)
            else:
                total += _lengths(rows) * self.constant(base)
        result: FloatArray = np.fmin(whole, total) * (1.0 + 1e-14) + TINY
        return np.where(np.isnan(result), np.inf, result)


def pair_forms(size: int, first: int) -> FloatArray:
    """The rows ``e_first - e_j`` for all j, (m, m)."""
    forms = -np.eye(size)
    forms[:, first] += 1.0
    return forms


_PAIR = "sorted pair of "


def _times(first: float, second: float) -> float:
    """A product of bounds, rounded up; what underflows is not zero, only what is zero is."""
    return first * second * UP + TINY if first and second else 0.0


def _relative(op: Affine) -> float:
    """Rounding of one application and of stored weights, relative to absolute values."""
    return gamma(op.error_terms + WEIGHT_ROUNDINGS + 4, UNIT_ROUNDOFF)


def _lengths(rows: Rows) -> FloatArray:
    """Upper bounds of the Euclidean lengths of rows, (m,)."""
    largest = np.abs(rows.values) + rows.error
    scale = float(largest.max(initial=0.0)) or 1.0
    slack = 1.0 + gamma(rows.values.shape[1] + 16, UNIT_ROUNDOFF)
    result: FloatArray = np.sqrt(np.square(largest / scale).sum(axis=1)) * scale * slack
    return result


def _dual_lengths(rows: Rows, norm: str) -> FloatArray:
    """Upper bounds of the lengths of rows in the norm dual to the input's, (m,)."""
    if norm == "2":
        return _lengths(rows)
    largest = np.abs(rows.values) + rows.error
    if norm == "1":
        result: FloatArray = largest.max(axis=1) * UP
    else:
        result = largest.sum(axis=1) * (1.0 + gamma(largest.shape[1] + 4, UNIT_ROUNDOFF))
    return result


@singledispatch
def _weights(op: Operator) -> tuple[Any, FloatArray | float] | None:
    """A selection as a sparse matrix and factors, for operators that are no more than that."""
    del op
    return None


@_weights.register
def _(op: Select) -> tuple[Any, FloatArray | float] | None:
    return _picked(op.gather.index, op.gather.size), 1.0


@_weights.register
def _(op: Scale) -> tuple[Any, FloatArray | float] | None:
    return _identity(op.size), 1.0 if op.factor is None else np.abs(op.factor)


def _identity(size: int) -> Any:
    from scipy.sparse import identity  # noqa: PLC0415 - slow to import

    return identity(size, format="csr")


def _picked(index: Array, size: int) -> Any:
    from scipy.sparse import csr_matrix  # noqa: PLC0415

    rows = np.flatnonzero(index >= 0)
    ones = np.ones(len(rows))
    return csr_matrix((ones, (rows, index[rows])), shape=(len(index), size))


def _scaled(matrix: Any, factors: Array | float) -> Any:
    """Rows times squares of factors, rounded up."""
    factors = np.broadcast_to(np.abs(factors), matrix.shape[:1])
    if (factors == 1.0).all():
        return matrix
    result = matrix.tocsr(copy=True)
    each = np.repeat(factors, np.diff(result.indptr))
    # The slack covers the roundings of stored factors, and TINY what underflows.
    result.data = np.where(each, result.data * np.square(each) * (1.0 + 1e-14) + TINY, 0.0)
    return result


def _stack(parts: Sequence[Any]) -> Any:
    from scipy.sparse import vstack  # noqa: PLC0415

    return vstack(parts, format="csr")
