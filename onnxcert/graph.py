"""The lowered network: a frozen, topologically ordered list of nodes over flat vectors.

A node's name is the name of the value it makes. All values have a fixed length known when the
graph is built; one value, ``graph.input``, holds all inputs of the model one after the other, and
``graph.output`` all of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxcert.arrays import Array, Device, IntArray, to_host
from onnxcert.ops.base import Affine, Bivariate, Elementwise, Operator

_REPEATS = 8
"""How often the entries of a value are picked before the sums get no backward rows."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """Who the neurons of an elementwise node are in the file.

    Passes drop neurons, and views put them into another order than the file's; a split or a slope
    that is written down must name them in a way that any reader of the file can follow.

    Attributes:
        label: first output name of the file's node, for the first curve that the node becomes;
            ``label/1``, ``label/2``, ... for its further ones (maxima, Clip) as they are made.
        positions: (n,) row-major position of each neuron in the tensor that the curve is applied
            to (for pairs of a maximum: in the broadcast shape of the pair); None for 0 to n - 1.
    """

    label: str
    positions: IntArray | None = None

    @classmethod
    def of(cls, label: str, index: IntArray) -> Neurons:
        """Neurons where ``index`` gives for each entry of the tensor its number in the vector.

        ``index`` must be a permutation, in the shape of the tensor.
        """
        flat = index.ravel()
        if (flat == np.arange(flat.size)).all():
            return cls(label)
        positions = np.empty(flat.size, dtype=np.int64)
        positions[flat] = np.arange(flat.size)
        return cls(label, positions)

    def at(self, numbers: IntArray) -> IntArray:
        """Positions in the file's tensor of the neurons with these numbers in the vector."""
        return numbers if self.positions is None else self.positions[numbers]

    def keep(self, numbers: IntArray) -> Neurons:
        """What is left when only the neurons with these numbers stay, in this order."""
        return Neurons(self.label, self.at(numbers))


@dataclass(frozen=True)
class Node:
    """One application of an operator.

    Attributes:
        name: the value it makes, unique in the graph.
        op: the operator.
        inputs: names of the values it reads.
        source: the node of the file it came from, for messages.
        neurons: of an elementwise node, or a function of two values, that was read from a file: who
            its neurons, or pairs, are there.
        roundings: how many an executor of the file makes in the node's place for one entry, where
            the operators alone do not tell; None where they do (`Graph.roundings`).
        deviation: (n,) how far the value may be from that of the network that the node was folded
            from (`onnxcert.bounds.folding`); None for nodes of files.
    """

    name: str
    op: Operator
    inputs: tuple[str, ...]
    source: str = ""
    neurons: Neurons | None = None
    roundings: int | None = None
    deviation: Array | None = None


@dataclass(frozen=True, eq=False)
class MatrixProduct:
    """Nodes that make ``C_gij = c sum_k A_gik B_gjk`` from two values, each pair a product.

    Attributes:
        product, pairs: names of the products, and of what those read.
        sources: names of the values that A and B are picked from.
        index: positions of A (g, i, k) and of B (g, j, k) in them.
        factor: c.
    """

    product: str
    pairs: tuple[str, str]
    sources: tuple[str, str]
    index: tuple[IntArray, IntArray]
    factor: float

    @property
    def depth(self) -> int:
        """How many products are summed."""
        return int(self.index[0].shape[-1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Lengths of g, i, j and k; products are in this order."""
        groups, rows, depth = self.index[0].shape
        return groups, rows, self.index[1].shape[1], depth

    @classmethod
    def of(cls, total: Node, makers: Mapping[str, Node]) -> MatrixProduct | None:
        """What a node sums up, if it is the products of the entries of two matrices."""
        product = makers.get(total.inputs[0])
        sums = total.op.adds_neighbours if isinstance(total.op, Affine) else None
        if sums is None or product is None or not isinstance(product.op, Bivariate):
            return None
        pairs = [makers.get(name) for name in product.inputs]
        if not product.op.multiplies or pairs[0] is pairs[1]:
            return None
        tables, sources = [], []
        for pair in pairs:
            picked = pair.op.picked if pair and isinstance(pair.op, Affine) else None
            if pair is None or picked is None:
                return None
            tables.append(np.asarray(to_host(picked)).reshape(-1, sums[0]))
            sources.append(pair.inputs[0])
        first, second = tables
        columns = _run((first != first[0]).any(axis=1))
        if len(second) % columns:
            return None
        blocks = second.reshape(-1, columns, *second.shape[1:])
        rows = _run((blocks != blocks[0]).any(axis=(1, 2)))
        if len(first) % (rows * columns):
            return None
        shape = -1, rows, columns, first.shape[1]
        first, second = first.reshape(shape), second.reshape(shape)
        a, b = first[:, :, 0], second[:, 0]
        if (first != a[:, :, None]).any() or (second != b[:, None]).any():
            return None
        names = product.inputs[0], product.inputs[1]
        return cls(product.name, names, (sources[0], sources[1]), (a, b), sums[1])


def _run(differs: Array) -> int:
    """How many entries there are before the first that differs."""
    return int(differs.argmax()) if differs.any() else len(differs)


@dataclass(frozen=True)
class Graph:
    """A network y = f(x) on flat vectors.

    Raises:
        ValueError: a value is read before it is made, made twice, or has the wrong length.
    """

    input: str
    input_size: int
    nodes: tuple[Node, ...]
    output: str

    def __post_init__(self) -> None:
        sizes = {self.input: self.input_size}
        for node in self.nodes:
            known = tuple(sizes.get(name, -1) for name in node.inputs)
            if known != node.op.input_sizes:
                expected = node.op.input_sizes
                raise ValueError(f"{node.name} reads {known} values, its operator {expected}")
            if node.name in sizes:
                raise ValueError(f"{node.name} is made twice")
            sizes[node.name] = node.op.output_size
        if self.output not in sizes:
            raise ValueError(f"the output {self.output} is never made")

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Length of every value."""
        return {self.input: self.input_size} | {n.name: n.op.output_size for n in self.nodes}

    @property
    def output_size(self) -> int:
        """Length of the output."""
        return self.sizes[self.output]

    @cached_property
    def consumers(self) -> Mapping[str, int]:
        """How many nodes read each value."""
        count = dict.fromkeys(self.sizes, 0)
        for node in self.nodes:
            for name in node.inputs:
                count[name] += 1
        return count

    @cached_property
    def last_use(self) -> Mapping[str, int]:
        """Number of the last node that reads each value; a pass may drop it afterwards."""
        last = dict.fromkeys(self.sizes, -1)
        for number, node in enumerate(self.nodes):
            for name in node.inputs:
                last[name] = number
        return last

    @cached_property
    def pre_activations(self) -> Mapping[str, list[Node]]:
        """Values that elementwise nodes read -> those nodes."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            if isinstance(node.op, Elementwise):
                readers.setdefault(node.inputs[0], []).append(node)
        return readers

    @cached_property
    def worthwhile(self) -> frozenset[str]:
        """Pre-activations that backward rows are worth their time for.

        Left out are sums of picked entries, `_REPEATS` times as many as there are to pick from, as
        the differences of a long softmax. Their bounds follow nearly as well from those entries.
        """
        makers = {node.name: node for node in self.nodes}
        found = set(self.pre_activations)
        for name in self.pre_activations:
            sources, queue = set[str](), [name]
            while queue:
                value = queue.pop()
                maker = makers.get(value)
                if maker is not None and isinstance(maker.op, Affine) and maker.op.adds_entries:
                    queue.extend(maker.inputs)
                else:
                    sources.add(value)
            if self.sizes[name] > _REPEATS * sum(self.sizes[source] for source in sources):
                found.remove(name)
        return frozenset(found)

    @cached_property
    def matrix_products(self) -> Mapping[str, MatrixProduct]:
        """Sums of products of the entries of two matrices, that nothing else reads, by their names.

        A pass over them may multiply matrices instead of going through every pair.
        """
        makers = {node.name: node for node in self.nodes}
        found = {}
        for node in self.nodes:
            made = MatrixProduct.of(node, makers) if len(node.inputs) == 1 else None
            if made is None or self.output in (made.product, *made.pairs):
                continue
            if all(self.consumers[name] == 1 for name in (made.product, *made.pairs)):
                found[node.name] = made
        return found

    @cached_property
    def factors(self) -> Mapping[str, list[Node]]:
        """Values that functions of two values read -> those nodes."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            if isinstance(node.op, Bivariate):
                for name in dict.fromkeys(node.inputs):
                    readers.setdefault(name, []).append(node)
        return readers

    @cached_property
    def floored(self) -> IntArray:
        """Inputs that nothing but floors reads: whole numbers make all values that are made."""
        positions = {self.input: np.arange(self.input_size)}
        floored, read = np.zeros(self.input_size, bool), np.zeros(self.input_size, bool)
        for node in self.nodes:
            for name in set(node.inputs) & positions.keys():
                picked = node.op.picked if isinstance(node.op, Affine) else None
                if picked is not None:
                    positions[node.name] = positions[name][to_host(picked)]
                elif isinstance(node.op, Elementwise) and node.op.floors:
                    floored[positions[name]] = True
                else:
                    read[positions[name]] = True
        if self.output in positions:
            read[positions[self.output]] = True
        return np.flatnonzero(floored & ~read)

    @cached_property
    def numbering(self) -> Mapping[str, slice]:
        """Pre-activation -> the numbers of its neurons, counted over all pre-activations."""
        columns, begin = {}, 0
        for name in self.pre_activations:
            columns[name] = slice(begin, begin + self.sizes[name])
            begin += self.sizes[name]
        return columns

    def locate(self, neuron: int) -> tuple[str, int]:
        """The pre-activation of a neuron by its number, and its place there."""
        for name, columns in self.numbering.items():
            if neuron < columns.stop:
                return name, neuron - columns.start
        raise IndexError(f"there is no neuron {neuron}")

    @cached_property
    def ranks(self) -> Mapping[str, Array | None]:
        """Per value an order in which neighbours read near inputs, or None (`Affine.locality`)."""
        ranks: dict[str, Array | None] = {self.input: None}
        for node in self.nodes:
            read = [ranks[name] for name in node.inputs]
            ranks[node.name] = node.op.locality(read) if isinstance(node.op, Affine) else read[0]
        return ranks

    @cached_property
    def roundings(self) -> Mapping[str, int]:
        """Per affine node how many roundings one product or the bias may meet in an execution.

        A bias that is a node of its own may still be where the sum of the products before begins,
        and a normalisation may be folded into them, so either takes their roundings as well.
        """
        counts: dict[str, int] = {}
        behind = {self.input: 0}
        for node in self.nodes:
            before = max((behind[name] for name in node.inputs), default=0)
            behind[node.name] = 0
            if isinstance(node.op, Affine):
                count = node.op.roundings + (before if node.op.adds_bias else 0)
                counts[node.name] = count if node.roundings is None else node.roundings
                behind[node.name] = counts[node.name] or before  # what only moves is passed over
        return counts

    def forward(self, x: Array) -> Array:
        """Evaluate a batch: (B, input_size) -> (B, output_size)."""
        values = {self.input: x}
        for number, node in enumerate(self.nodes):
            values[node.name] = node.op.forward([values[name] for name in node.inputs])
            for name in node.inputs:
                if self.last_use[name] == number and name != self.output:
                    values.pop(name, None)
        return values[self.output]

    def values(self, x: Array) -> dict[str, Array]:
        """All values of a batch (B, input_size), by their names."""
        values = {self.input: x}
        for node in self.nodes:
            values[node.name] = node.op.forward([values[name] for name in node.inputs])
        return values

    def gradient(self, x: Array, loss_gradient: Callable[[Array], Array]) -> tuple[Array, Array]:
        """Outputs, and the gradient of a loss of the outputs with respect to x.

        Args:
            x: (B, input_size).
            loss_gradient: maps outputs (B, m) to dloss/doutput (B, m).

        Returns:
            (outputs (B, m), gradient (B, input_size)).
        """
        values = self.values(x)
        gradients = {self.output: loss_gradient(values[self.output])}
        for node in reversed(self.nodes):
            incoming = gradients.pop(node.name, None)
            if incoming is None:
                continue
            parts = node.op.vjp(incoming, [values[name] for name in node.inputs])
            for name, part in zip(node.inputs, parts, strict=True):
                gradients[name] = gradients[name] + part if name in gradients else part
        missing = self.input not in gradients
        gradient = np.zeros_like(x) if missing else gradients[self.input]
        return values[self.output], gradient

    def to(self, device: Device, dtype: Any = np.float64) -> Graph:
        """The same network with its weights on a device and in a precision."""
        nodes = tuple(replace(node, op=node.op.to(device, dtype)) for node in self.nodes)
        return replace(self, nodes=nodes)

    @cached_property
    def single(self) -> Graph:
        """The same network in binary32, where its arrays lie."""
        return self.to(Device(), np.float32)
