"""Merge neurons that are equal to others, and relus of numbers that are the negatives of others.

Networks that were put together by hand, such as lattices of minima and maxima, compute many values
more than once, and have relu(z) and relu(-z) side by side. Over the reals

    relu(-z) = relu(z) - z,        min(a, b) = ((a + b) - |a - b|) / 2 = a - relu(a - b),

so one relu of four is left of a minimum, in the form that has no more than one bend; bounded one by
one, the others each lose what their sum would have balanced.

`simplify` does not do it: executions round the relus one by one, and other questions than that of
`onnxcert.verify` may ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxcert.arrays import FloatArray, IntArray
from onnxcert.graph import Graph, Node
from onnxcert.ops import Concat, Linear, Relu, SparseLinear
from onnxcert.ops.sparse import pays_sparse
from onnxcert.passes.base import is_exact
from onnxcert.passes.drop_identities import drop_identities
from onnxcert.passes.drop_unused import drop_unused
from onnxcert.passes.fuse_scales import fuse_scales
from onnxcert.passes.fuse_selects import fuse_selects

_MOST = 1 << 22
"""Entries of a matrix that is looked at."""


def merge_equals(graph: Graph) -> Graph:
    """Merge between matrices with factors and offsets that are numbers of the file.

    The graph should be one before matrices are multiplied, whose products are rounded. What has to
    be added up is added exactly, or nothing is merged.

    Ensures: the same function over the reals. Of neurons that are merged the first one of the file
    stays. Where nothing is merged the graph is returned as it is.
    """
    whole = fuse_scales(fuse_selects(drop_identities(drop_unused(graph))))
    maker = _Merging(whole, {node.name: node for node in whole.nodes})
    for node in whole.nodes:
        if isinstance(node.op, Relu):
            maker.merge_relus(node)
        else:
            maker.merge_sums(node.name)
    if not maker.merged:
        return graph
    nodes = (part for node in whole.nodes for part in maker.parts(node.name))
    return drop_unused(replace(whole, nodes=tuple(nodes)))


@dataclass(frozen=True, eq=False)
class _Entries:
    """A matrix and an offset, which is its last row, by entries that are not zero, each there once.

    Attributes:
        row, column, value: (E,), in the order of the columns, then the rows.
        shape: with that row.
    """

    row: IntArray
    column: IntArray
    value: FloatArray
    shape: tuple[int, int]

    @classmethod
    def of(cls, node: Node | None) -> _Entries | None:
        """Those of a node that multiplies one vector, if they are numbers of the file."""
        op = None if node is None else node.op
        row: IntArray
        column: IntArray
        if isinstance(op, Linear) and op.rows == 1 and op.weight.size <= _MOST:
            row, column = np.nonzero(op.weight)
            value, size = op.weight[row, column], op.weight.shape
        elif isinstance(op, SparseLinear):
            row, column, value, size = op.row, op.column, op.values, op.shape
        else:
            return None
        if not is_exact(value, op.offset):
            return None
        if op.offset is not None:
            there = np.flatnonzero(op.offset)
            row, column = np.append(row, np.full(len(there), size[0])), np.append(column, there)
            value = np.append(value, op.offset[there])
        return cls.summed(row, column, value, (size[0] + 1, size[1]))

    @classmethod
    def summed(
        cls, row: IntArray, column: IntArray, value: FloatArray, shape: tuple[int, int]
    ) -> _Entries | None:
        """From entries of which some are at one place, if float64 adds those up exactly."""
        order = np.lexsort((row, column))
        row, column, value = row[order], column[order], value[order]
        first = np.ones(len(row), bool)
        first[1:] = (np.diff(row) != 0) | (np.diff(column) != 0)
        starts = np.flatnonzero(first)
        if len(starts) < len(row):
            # Multiples of a power of two, whose sums in any order stay below 2^53 times that.
            mantissa, exponent = np.frexp(value)
            whole = (mantissa * 2.0**53).astype(np.int64)
            unit = np.ldexp((whole & -whole).astype(float), exponent - 53)
            unit = np.where(value == 0, np.inf, unit)
            if (
                np.add.reduceat(abs(value), starts) >= 2.0**53 * np.minimum.reduceat(unit, starts)
            ).any():
                return None
            value = np.add.reduceat(value, starts)
        row, column = row[starts], column[starts]
        there = value != 0
        return cls(row[there], column[there], value[there], shape)

    def operator(self) -> Linear | SparseLinear:
        """The node's."""
        rows, columns = self.shape[0] - 1, self.shape[1]
        inner = self.row < rows
        offset = np.zeros(columns)
        offset[self.column[~inner]] = self.value[~inner]
        some = offset if offset.any() else None
        row, column, value = self.row[inner], self.column[inner], self.value[inner]
        if pays_sparse(rows * columns, len(value)):
            return SparseLinear(row, column, value, (rows, columns), some)
        weight = np.zeros((rows, columns))
        weight[row, column] = value
        return Linear(weight, some)

    def select(self, columns: IntArray) -> _Entries:
        """Some columns, increasing."""
        number = np.full(self.shape[1], -1)
        number[columns] = np.arange(len(columns))
        kept = number[self.column] >= 0
        row, value = self.row[kept], self.value[kept]
        return _Entries(row, number[self.column[kept]], value, (self.shape[0], len(columns)))

    def groups(self, signed: bool, rank: IntArray | None = None) -> tuple[IntArray, FloatArray]:
        """For each column the first one that is equal to it, or to its negative if ``signed``, and
        which of both, 1 or -1.

        Args:
            rank: (m,) in what order columns count; None for theirs.
        """
        rank = np.arange(self.shape[1]) if rank is None else rank
        counts = np.bincount(self.column, minlength=self.shape[1])
        starts = np.cumsum(counts) - counts
        of, sign = np.arange(self.shape[1]), np.ones(self.shape[1])
        for count in np.unique(counts):
            some = np.flatnonzero(counts == count)
            entry = starts[some][:, None] + np.arange(count)
            row, value = self.row[entry], self.value[entry]
            if signed and count:
                sign[some] = np.sign(value[:, 0])
            key = np.concatenate([row, sign[some][:, None] * value], axis=1)
            _, number = np.unique(key, axis=0, return_inverse=True)
            order = np.argsort(rank[some], kind="stable")
            _, first = np.unique(number.ravel()[order], return_index=True)
            of[some] = some[order[first]][number.ravel()]
        return of, sign * sign[of]


@dataclass(eq=False)
class _Merging:
    """The nodes of a graph while neurons are merged.

    Attributes:
        graph: as it was.
        nodes: what has become of its nodes, by their names.
        joins: name of a node -> one that has to be before it.
        merged: whether anything was.
    """

    graph: Graph
    nodes: dict[str, Node]
    merged: bool = False

    def __post_init__(self) -> None:
        self.readers: dict[str, list[str]] = {}
        self.joins: dict[str, Node] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node.name)

    def parts(self, name: str) -> list[Node]:
        """What stands in the place of a node."""
        return [*([self.joins[name]] if name in self.joins else []), self.nodes[name]]

    def _may_repeat(self, node: Node | None) -> bool:
        """Whether sums may be equal or opposite: they are so for some input of the node.

        Once something is merged that does not tell: what is equal may have become so.
        """
        if node is None or not isinstance(node.op, Linear | SparseLinear):
            return False
        point = np.random.default_rng(0).random((1, *node.op.input_sizes))
        size = np.sort(abs(node.op.forward([point])[0]))
        return self.merged or bool((np.diff(size) <= 1e-12 * size.max(initial=0.0)).any())

    def merge_relus(self, relu: Node) -> None:
        """Merge the neurons of a relu between two matrices."""
        before = self.nodes.get(relu.inputs[0])
        behind = self._only_reader(relu.name)
        if not self._may_repeat(before):
            return
        first, second = _Entries.of(before), _Entries.of(behind)
        if before is None or behind is None or first is None or second is None:
            return
        if self._only_reader(before.name) is None or before.name == self.graph.output:
            return
        rank = None if relu.neurons is None else relu.neurons.at(np.arange(first.shape[1]))
        of, sign = first.groups(signed=True, rank=rank)
        alone = (of == np.arange(len(of))).all()
        made = None if alone else _rewritten(first, second, of, sign)
        if made is None:
            return
        self.merged = True
        kept, total = made
        neurons = relu.neurons and relu.neurons.keep(kept)
        self.nodes[before.name] = replace(before, op=first.select(kept).operator())
        self.nodes[relu.name] = replace(relu, op=Relu(len(kept)), neurons=neurons)
        read = before.inputs[0]
        name = f"{behind.name} of" if len(kept) else read
        if len(kept):
            join = Concat((len(kept), first.shape[0] - 1))
            self.joins[behind.name] = Node(name, join, (relu.name, read), behind.source)
        self.nodes[behind.name] = replace(behind, op=total.operator(), inputs=(name,))

    def _only_reader(self, name: str) -> Node | None:
        readers = self.readers.get(name, [])
        alone = len(readers) == 1 and name != self.graph.output
        return self.nodes[readers[0]] if alone else None

    def merge_sums(self, name: str) -> None:
        """Keep one of each sums of a matrix that are equal, if only matrices read them."""
        readers = self.readers.get(name, [])
        if name == self.graph.output or not self._may_repeat(self.nodes[name]):
            return
        total = _Entries.of(self.nodes[name])
        if total is None:
            return
        of, _ = total.groups(signed=False)
        kept, number = np.unique(of, return_inverse=True)
        if len(kept) == len(of):
            return
        made = {}
        for reader in map(self.nodes.__getitem__, readers):
            entries = _Entries.of(reader) if reader.inputs == (name,) else None
            if entries is None:
                return
            row = np.append(number, len(kept))[entries.row]
            shape = len(kept) + 1, entries.shape[1]
            entries = _Entries.summed(row, entries.column, entries.value, shape)
            if entries is None:
                return
            made[reader.name] = replace(reader, op=entries.operator())
        self.merged = True
        self.nodes |= made
        self.nodes[name] = replace(self.nodes[name], op=total.select(kept).operator())


def _rewritten(
    first: _Entries, second: _Entries, of: IntArray, sign: FloatArray
) -> tuple[IntArray, _Entries] | None:
    """The relus that stay, and the sums over those and over what the first matrix reads.

    None where that is not exact, or has more entries than before.
    """
    constant = np.bincount(first.column, first.row < first.shape[0] - 1, first.shape[1]) == 0
    offset = np.zeros(first.shape[1])
    last = first.row == first.shape[0] - 1
    offset[first.column[last]] = first.value[last]
    relus, (rows, columns) = second.row < second.shape[0] - 1, first.shape
    shape = columns + rows, second.shape[1]
    # Relus over which sums are taken, those that are constant, and what mirrored ones add.
    neuron, out, value = second.row[relus], second.column[relus], second.value[relus]
    fixed = constant[neuron]
    parts = [
        (np.where(fixed, shape[0] - 1, of[neuron]), out, value * _height(offset[neuron], fixed)),
        (np.full((~relus).sum(), shape[0] - 1), second.column[~relus], second.value[~relus]),
    ]
    mirrored = (sign[neuron] < 0) & ~fixed
    counts = np.bincount(first.column, minlength=columns)
    starts, source = np.cumsum(counts) - counts, of[neuron[mirrored]]
    times = counts[source]
    entry = np.repeat(starts[source] - np.cumsum(times) + times, times) + np.arange(times.sum())
    through = np.repeat(value[mirrored], times)
    parts.append(
        (columns + first.row[entry], np.repeat(out[mirrored], times), -through * first.value[entry])
    )
    if not is_exact(parts[0][2]):
        return None
    row, column, entry = (np.concatenate(part) for part in zip(*parts, strict=True))
    total = _Entries.summed(row, column, entry, shape)
    if total is None or len(total.value) > len(first.value) + len(second.value):
        return None
    kept = np.unique(total.row[total.row < columns])
    number = np.full(shape[0], -1)
    number[kept] = np.arange(len(kept))
    number[columns:] = len(kept) + np.arange(rows)
    shape = len(kept) + rows, shape[1]
    return kept, replace(total, row=number[total.row], shape=shape)


def _height(offset: FloatArray, fixed: IntArray) -> FloatArray:
    """What a weight is multiplied with: one, or the value of a relu that is constant."""
    return np.where(fixed, np.maximum(offset, 0.0), 1.0)
