"""Folding: a network of relus on a small box, written over its unstable neurons alone.

On a box where most relus are zero or the identity the network is, with u the values before the
others,

    u_i = A_i x + sum_j B_ij max(u_j, 0) + c_i        (j in layers before that of i),

and so are its outputs. A, B and c are found by pulling unit rows back as far as unstable relus, in
one pass that meets no relaxation. Over the folded network a bound costs dense products with as many
columns as there are unstable neurons, where the network itself has convolutions of whole images;
and what is stable on a part of the box can be folded again.

Rounding. The floats that stand for a row are off by what `onnxcert.bounds.backward` charges a row
for (the absorption lemma): at most |A| v at each node passed, for all inputs in the box. These
charges, summed up over the nodes, are the `deviation` of a folded node: its values are those of the
network up to that, and all bounds of it are widened accordingly.

Boxes of cifar_biasfield 12, of 29 thousand neurons behind convolutions, take 0.3 to 0.5 CPU seconds
for 3 to 4.5; folding the first one, with 6,471 unstable neurons, takes 5.5 and bounding it 12.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from onnxcert.arrays import Array, array_module, to_host
from onnxcert.bounds.backward import SLACK, Columns, Relaxation, RowPass, unstable_neurons, widen
from onnxcert.bounds.crown import CHUNK_NUMBERS, LEAST_ROWS, Bounds
from onnxcert.bounds.layered import Layer
from onnxcert.graph import Graph, Node
from onnxcert.ops import BandedLinear, Concat, Linear, Relu
from onnxcert.ops.base import Affine, Elementwise
from onnxcert.sets import Ball, Box


@dataclass(frozen=True, eq=False)
class Folded:
    """A network over the unstable neurons of another one on a box.

    Attributes:
        graph: the network, whose values have the names of the others.
        kept: pre-activation -> numbers of its neurons there, (K,).
        layers: all but the output, in order.
    """

    graph: Graph
    kept: Mapping[str, Array]
    layers: tuple[Layer, ...]

    @property
    def neurons(self) -> int:
        """How many there are."""
        return sum(len(index) for index in self.kept.values())

    def boxes(self, bounds: Bounds) -> list[Box]:
        """Bounds of the layers' values, (K,), from those (of one box) of the network folded."""
        found = ((bounds.boxes[name], index) for name, index in self.kept.items())
        return [Box(box.lower[0, index], box.upper[0, index]) for box, index in found]


def can_fold(graph: Graph) -> bool:
    """Whether all nodes are affine, or relus of which each reads a value of its own."""
    makers = {node.name for node in graph.nodes if isinstance(node.op, Affine)}
    read = [graph.output]
    for node in graph.nodes:
        if node.name not in makers:
            if not isinstance(node.op, Elementwise) or not node.op.rectifies:
                return False
            read.append(node.inputs[0])
    return len(set(read[1:])) == len(read) - 1 and makers.issuperset(read)


def unstable_relus(bounds: Bounds) -> Array:
    """How many neurons of a network that can be folded are unstable on each box, (B,)."""
    graph, boxes = bounds.relaxation.graph, bounds.boxes
    counts = [unstable_neurons(graph, name, boxes[name]) for name in graph.pre_activations]
    return sum((some.sum(axis=1) for some in counts), 0 * bounds.empty)


def fold(bounds: Bounds, expired: Callable[[], bool] = lambda: False) -> Folded | None:
    """Fold a network.

    Args:
        bounds: over one box (a batch of one), of a network that can be folded; those of all
            neurons must be as good as those that its lines were made for.
        expired: asked between blocks of rows.

    Returns:
        None over an ellipsoid, and where the time is up.

    Ensures: for all inputs in the box the values are those of the network, up to the deviation of
        the nodes that make them.
    """
    graph = bounds.relaxation.graph
    if isinstance(bounds.relaxation.box, Ball):
        return None
    bent = {
        node.name: _in_order(node.op.unstable(bounds.boxes[source])[0], graph.ranks[source])
        for node in graph.nodes
        if isinstance(node.op, Elementwise)
        for source in node.inputs
    }
    maker = _Maker(bounds.relaxation, bent)
    kept: dict[str, Array] = {}
    layers: list[Layer] = []
    for node in graph.nodes:
        xp = array_module(bounds.boxes[graph.input].lower)
        if node.name == graph.output:
            maker.add(node, xp.arange(graph.output_size), expired)
        if node.name not in bent or not len(bent[node.name]):
            continue
        source, index = node.inputs[0], bent[node.name]
        kept[source] = index
        sums = maker.add(next(n for n in graph.nodes if n.name == source), index, expired)
        neurons = node.neurons and node.neurons.keep(to_host(index))
        relu = Node(node.name, Relu(len(index)), (source,), node.source, neurons)
        maker.add_relu(relu)
        layers.append(Layer(source, node.name, sums))
    if expired():
        return None
    made = Graph(graph.input, graph.input_size, tuple(maker.nodes), graph.output)
    return Folded(made, kept, tuple(layers))


def _in_order(chosen: Array, rank: Array | None) -> Array:
    """The numbers of chosen neurons (n,), neighbours side by side, so that weights have bands."""
    xp = array_module(chosen)
    index: Array = xp.flatnonzero(chosen)
    if rank is not None:
        index = index[xp.argsort(rank[index], kind="stable")]
    return index


@dataclass
class _Maker:
    """Folded nodes, one after the other.

    Attributes:
        relaxation: of the network on the box.
        bent: relu -> (K,) which of its neurons are unstable.
        nodes: what is done.
        sizes: values that the next node may read, with their lengths.
    """

    relaxation: Relaxation
    bent: Mapping[str, Array]
    nodes: list[Node] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.relaxation.graph
        self.sizes[graph.input] = graph.input_size

    def add_relu(self, node: Node) -> None:
        """Add a relu, which all that follow may read."""
        self.nodes.append(node)
        self.sizes[node.name] = node.op.output_size

    def add(self, maker: Node, index: Array, expired: Callable[[], bool]) -> BandedLinear:
        """Add the node for entries ``index`` (K,) of the value of an affine node.

        Returns:
            What it makes of all that it may read.
        """
        xp, count = array_module(index), len(index)
        graph = self.relaxation.graph
        weight = xp.zeros((count, sum(self.sizes.values())))
        offset, deviation = xp.zeros(count), xp.zeros(count)
        step = max(LEAST_ROWS, CHUNK_NUMBERS // max(graph.sizes.values()))
        for start in range(0, count, step):
            if expired():
                break
            part = slice(start, start + step)
            run = _Folding(self.relaxation, len(index[part]), self.bent)
            run.begin(maker, index[part])
            offset[part], deviation[part] = run.constant, run.error
            column = 0
            for name, size in self.sizes.items():
                if name in run.found:
                    weight[part, column : column + size] = run.found[name]
                column += size
        name, sizes, source = maker.name, tuple(self.sizes.values()), graph.input
        if len(sizes) > 1:
            source = f"{name}/read"
            self.nodes.append(Node(source, Concat(sizes), tuple(self.sizes), maker.source))
        banded = BandedLinear(weight, offset)
        op = banded if banded.bands.pays else Linear(weight.T, offset)
        self.nodes.append(Node(name, op, (source,), maker.source, deviation=SLACK * deviation))
        return banded


class _Folding(RowPass):
    """A backward pass of exact rows, which end at unstable relus.

    Attributes:
        found: relu or the input -> rows (R, n) over its unstable neurons.
        error: (1, R) what the rows may be off.
    """

    def __init__(self, relaxation: Relaxation, count: int, bent: Mapping[str, Array]) -> None:
        super().__init__(relaxation, (1, count))
        self.constant = array_module(relaxation.box.lower).zeros((1, count))
        self.error = self.constant
        self.found: dict[str, Array] = {}
        self._bent = bent

    def begin(self, maker: Node, index: Array) -> None:
        """Pull unit rows over entries (R,) of a node's value back."""
        relaxation, graph = self.relaxation, self.relaxation.graph
        assert isinstance(maker.op, Affine)
        if maker.name in relaxation.fixed:
            rows = array_module(index).zeros((*self.shape, graph.sizes[maker.name]))
            rows[0, array_module(index).arange(len(index)), index] = 1.0
            self.push(maker.name, rows)
        else:
            error = relaxation.error_of(maker.name)
            if error is not None:
                self.error = SLACK * error[:1, index]
            if maker.op.bias is not None:
                self.constant = maker.op.bias[index][None]
            self.push_all(maker, maker.op.one_hot_rows(index))
        for node in reversed(graph.nodes):
            if node.name in self.pending:
                rows, columns = self.pending.pop(node.name)
                if node.name in relaxation.fixed:
                    rows, columns = self.end(relaxation.fixed[node.name], rows, columns)
                if columns is None or len(columns):
                    self.step(node, rows, columns)
        if graph.input in self.pending:
            rows = widen(*self.pending.pop(graph.input), graph.input_size)
            self.found[graph.input] = rows[0]

    def charge(self, rows: Array, vector: Array, factor: float = 1.0) -> None:
        """Keep the constants apart from what may be lost."""
        before, self.constant = self.constant, 0.0
        super().charge(rows, vector, factor)
        charged, self.constant = self.constant, before
        if factor < 0:
            self.error = self.error - charged
        else:
            self.constant = self.constant + charged

    def _through_curve(self, node: Node, rows: Array, columns: Columns) -> None:
        bent = self._bent[node.name]
        rows = widen(rows, columns, node.op.output_size).copy()
        self.found[node.name] = rows[0][:, bent]
        rows[:, :, bent] = 0.0
        super()._through_curve(node, rows, None)
