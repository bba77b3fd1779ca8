"""Join relus that read one number, where nothing but their sum is read, into one curve.

Networks that a tool made piecewise linear have a sum of relus, one per knot, in place of every
sigmoid, sine or cosine. Bounded one by one, each relu loses what the others would have balanced,
and a split of one tells the others nothing.

`simplify` does not do it: executions round the relus one by one, and other questions than that of
`onnxcert.verify` know relus better than curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray
from onnxcert.graph import Graph, Neurons, Node
from onnxcert.ops import Affine, Linear, PiecewiseLinear, Relu, Select, SparseLinear
from onnxcert.passes.base import is_exact
from onnxcert.passes.drop_identities import drop_identities
from onnxcert.passes.drop_unused import drop_unused
from onnxcert.passes.fuse_selects import fuse_selects

_FEWEST = 4
"""Relus of one sum. With fewer, little is lost, and exact searches know relus."""

_MOST = 1 << 22
"""Entries of a matrix that is written down to be looked at."""


def join_relus(graph: Graph) -> Graph:
    """Replace sums of relus of one number each by `PiecewiseLinear`.

    A relu's value may be read by one affine node alone, each of whose sums takes at least `_FEWEST`
    relus, all of the same number, and shares none with another sum. All factors are numbers of the
    file. The graph should be the one before `simplify`, which merges such sums with what reads
    them: the checker of certificates finds them in the file.

    Ensures: the same function over the reals. A joined neuron has the label of its relus, and for a
    position its rank among those that are joined with it, by the position of its first relu. Where
    nothing is joined the graph is returned as it is.
    """
    makers = {node.name: node for node in graph.nodes}
    behind = {node.inputs[0]: node for node in graph.nodes if len(node.inputs) == 1}
    made: dict[str, list[Node]] = {}
    for relu in graph.nodes:
        total = behind.get(relu.name)
        alone = graph.consumers[relu.name] == 1 and relu.name != graph.output
        if not isinstance(relu.op, Relu) or total is None or not alone:
            continue
        group = _Group.of(total, relu, makers)
        if group is not None:
            made[total.name] = group.nodes(total, relu)
    if not made:
        return graph
    nodes = tuple(new for node in graph.nodes for new in made.get(node.name, [node]))
    return drop_unused(fuse_selects(drop_identities(replace(graph, nodes=nodes))))


@dataclass(frozen=True, eq=False)
class _Group:
    """Sums of the values of a relu node.

    Attributes:
        source: name of the value that has the numbers.
        size: its length.
        number: (n,) which number each sum is a function of.
        first: (n,) the first relu of each.
        table: weight, factor and shift of every relu of each, (n, K); weight zero for none.
        offset: (n,).
    """

    source: str
    size: int
    number: IntArray
    first: IntArray
    table: tuple[FloatArray, FloatArray, FloatArray]
    offset: FloatArray

    @classmethod
    def of(cls, total: Node, relu: Node, makers: Mapping[str, Node]) -> _Group | None:
        """What a node sums up, if its sums are such functions."""
        source, size, number, factor, shift = _read_by(relu, makers)
        if _FEWEST * len(np.unique(number)) > len(number) or not is_exact(factor, shift):
            return None
        entries = _entries(total.op, relu.op.output_size)
        if entries is None:
            return None
        read, out, weight = entries
        count = np.bincount(out, minlength=total.op.output_size)
        if len(np.unique(read)) < len(read) or count.min(initial=len(read)) < _FEWEST:
            return None
        bias = total.op.bias if isinstance(total.op, Affine) else None
        offset = np.zeros(len(count)) if bias is None else bias
        order = np.lexsort((read, out))
        read, out, weight = read[order], out[order], weight[order]
        starts = np.cumsum(count) - count
        number = number[read]
        if (number != number[starts[out]]).any() or not is_exact(weight, offset):
            return None
        place = np.arange(len(out)) - starts[out]
        table = np.zeros((3, len(count), int(count.max())))
        table[:, out, place] = weight, factor[read], shift[read]
        parts = table[0], table[1], table[2]
        return cls(source, size, number[starts], read[starts], parts, offset)

    def nodes(self, total: Node, relu: Node) -> list[Node]:
        """The numbers, and the curve in place of the sums."""
        count = len(self.number)
        if all((part == part[:1]).all() for part in self.table):
            weight, factor, shift = (part[:1] for part in self.table)
        else:
            weight, factor, shift = self.table
        op = PiecewiseLinear(count, weight, factor, shift, self.offset)
        neurons: Neurons | None = None
        if relu.neurons is not None:
            rank = np.argsort(np.argsort(relu.neurons.at(self.first)))
            positions = None if (rank == np.arange(count)).all() else rank
            neurons = Neurons(relu.neurons.label, positions)
        read = Node(f"{total.name} of", Select.of(self.number, self.size), (self.source,))
        return [read, Node(total.name, op, (read.name,), total.source, neurons)]


def _entries(op: object, size: int) -> tuple[IntArray, IntArray, FloatArray] | None:
    """What is read, by which output, and the weight, of a matrix with one output for each input."""
    if isinstance(op, Linear):
        if op.rows * np.count_nonzero(op.weight) > size:
            return None
        inner, outer = op.weight.shape
        row, column = np.nonzero(op.weight)
        blocks = np.arange(op.rows)[:, None]
        weight = np.tile(op.weight[row, column], op.rows)
        return (blocks * inner + row).ravel(), (blocks * outer + column).ravel(), weight
    if isinstance(op, SparseLinear):
        used = op.values != 0
        return op.row[used], op.column[used], op.values[used]
    if not isinstance(op, Affine) or len(op.input_sizes) > 1 or op.output_size * size > _MOST:
        return None
    matrix = op.transpose(np.eye(op.output_size))[0]
    out, read = np.nonzero(matrix)
    return read, out, matrix[out, read]


def _read_by(relu: Node, makers: Mapping[str, Node]) -> tuple[str, int, IntArray, Array, Array]:
    """A value, its length, and for each relu the number of an entry, a factor and a shift of it."""
    size = relu.op.output_size
    name, number = relu.inputs[0], np.arange(size)
    factor, shift, scaled = np.ones(size), np.zeros(size), False
    while name in makers:
        op = makers[name].op
        if not isinstance(op, Affine):
            break
        if op.picked is not None:
            number = op.picked[number]
        elif op.diagonal is not None and not scaled:
            scaled, (factor, shift) = True, (part[number] for part in op.diagonal)
        else:
            break
        size, name = op.input_sizes[0], makers[name].inputs[0]
    return name, size, number, factor, shift
