"""From the trace of a search to the arrays of a certificate.

The format is described in `onnxcert.checker.container`. Its cases are those of the checker's own
reader of the specification, in its order, so the writer asks that reader and pairs its cases with
the search's by what they say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray, to_host
from onnxcert.bounds.hints import encode_multipliers
from onnxcert.bounds.intermediate import RefinedRows, Refinement
from onnxcert.checker.balls import Ellipsoid
from onnxcert.checker.container import ARRAYS, EXTRA
from onnxcert.checker.errors import Unusable
from onnxcert.checker.spec import Row, Spec
from onnxcert.graph import Graph, Neurons
from onnxcert.ops.base import Affine
from onnxcert.proof.trace import Cut, Halves, InputTrees, NeuronTrees, Trace
from onnxcert.spec import Problem

_BoxKey = tuple[bytes, bytes, Ellipsoid | None]
_NOTHING: IntArray = np.zeros(0, np.int64)
_NO_HINTS: FloatArray = np.zeros(0)
_CODES = {Cut.BOUNDED: 1, Cut.FOLDED: 3, Cut.AT_ONCE: 4}


@dataclass(frozen=True, eq=False)
class NumberedCase:
    """A case of the search as the checker counts it.

    Attributes:
        number: of the case.
        box: number of its box, by first appearance.
        order: (R,) for each of the checker's rows the position of the same row in the search.
    """

    number: int
    box: int
    order: IntArray


class CaseNumbers:
    """The cases of a query as the checker numbers them.

    Args:
        spec: the specification as the checker reads it.
    """

    def __init__(self, spec: Spec) -> None:
        self.count = 0
        self._open: dict[tuple[_BoxKey, frozenset[Row]], list[int]] = defaultdict(list)
        self._rows: list[tuple[Row, ...]] = []
        self._boxes: dict[_BoxKey, int] = {}
        self._known: dict[int, NumberedCase] = {}
        for case in spec.cases():
            key = _box_key(case.lower, case.upper, case.ball)
            self._boxes.setdefault(key, len(self._boxes))
            self._open[key, frozenset(case.rows)].append(self.count)
            self._rows.append(case.rows)
            self.count += 1

    def add(self, problem: Problem) -> None:
        """Pair the cases of a problem with the checker's.

        Raises:
            Unusable: the checker reads the specification in another way.
        """
        balls: list[Ellipsoid | None] = [None] * len(problem.lower)
        for number, ball in enumerate(problem.ellipsoids):
            if ball is not None:
                balls[number] = Ellipsoid(ball.columns, ball.weights, ball.center)
        sides = zip(problem.lower, problem.upper, balls, strict=True)
        boxes = [_box_key(*parts) for parts in sides]
        rows = [_row(problem, number) for number in range(len(problem.output_rows))]
        for case, disjunct in enumerate(problem.case_disjunct.tolist()):
            used = [rows[number] for number in problem.case_rows[case] if number >= 0]
            key = boxes[problem.case_box[case]]
            numbers = self._open.get((key, frozenset(used)))
            if not numbers:
                raise Unusable(f"the checker reads no case like disjunct {disjunct}")
            number = numbers.pop(0)
            position = {row: place for place, row in enumerate(used)}
            order = np.array([position[row] for row in self._rows[number]] or [0])
            self._known[disjunct] = NumberedCase(number, self._boxes[key], order)

    def __getitem__(self, disjunct: int) -> NumberedCase:
        return self._known[int(disjunct)]

    def disjuncts(self, numbers: Array) -> set[int]:
        """The search's numbers of cases that the checker numbers so."""
        wanted = set(numbers.tolist())
        return {disjunct for disjunct, case in self._known.items() if case.number in wanted}


def _box_key(lower: Array, upper: Array, ball: Ellipsoid | None) -> _BoxKey:
    return (lower + 0.0).tobytes(), (upper + 0.0).tobytes(), ball  # one sign of zero


def _row(problem: Problem, number: int) -> Row:
    def terms(rows: FloatArray | None) -> tuple[tuple[int, float], ...]:
        if rows is None:
            return ()
        return tuple((int(i), float(rows[number, i])) for i in np.flatnonzero(rows[number]))

    return Row(
        terms(problem.output_rows),
        terms(problem.input_rows),
        float(problem.offset[number]),
        bool(problem.strict[number]),
    )


class Writer:
    """Collects the arrays, group by group.

    Args:
        cases: how cases are numbered.

    Attributes:
        layers: labels by number.
        leaves: of all trees.
        groups: what each group was made of, None for plain bounds; for trees over inputs the
            nodes in the order in which they are stored; and the numbers of its cases.
    """

    def __init__(self, cases: CaseNumbers) -> None:
        self.cases = cases
        self.groups: list[tuple[InputTrees | NeuronTrees | None, IntArray, IntArray]] = []
        self.layers: dict[str, int] = {}
        self._parts: dict[str, list[Array]] = {name: [] for name in ARRAYS | EXTRA}
        self.leaves = 0

    def arrays(self, trace: Trace, constant: FloatArray = _NO_HINTS) -> dict[str, Array]:
        """All arrays of the certificate for a finished trace.

        Args:
            trace: of the search.
            constant: what `onnxcert.checker.container` says of groups of kind 3.
        """
        if trace.constant:
            numbers = sorted(self.cases[disjunct].number for disjunct in trace.constant)
            self._constants(numbers, constant)
        if trace.plain:
            self._plain(trace.plain)
        for group in trace.groups:
            if isinstance(group, InputTrees):
                self._input_trees(group)
            else:
                self._neuron_trees(group)
        return self._joined_all()

    def arrays_of_trees(self, trees: NeuronTrees, kind: int) -> dict[str, Array]:
        """All arrays of a certificate that has nothing but groups of some trees.

        Halves that they hand cases on to may not be there yet.
        """
        self._neuron_trees(trees, kind, whole=False)
        return self._joined_all()

    def arrays_of_bounds(
        self, trees: NeuronTrees, cases: IntArray, halves: Halves | None = None
    ) -> dict[str, Array]:
        """All arrays of a certificate that has nothing but the bounds of trees over a whole box.

        Args:
            trees: that have the bounds.
            cases: handed on, by their numbers in the search: to halves, or each alone.
            halves: some of them.
        """
        bounds, halved = trees.replanted(), _NOTHING if halves is None else halves.cases
        bounds.halves = halves
        bounds.narrowed = dict.fromkeys(np.setdiff1d(cases, halved).tolist(), trees)
        self._region(1, bounds, planes=True)
        return self._joined_all()

    def arrays_of_constants(self, constant: FloatArray) -> dict[str, Array]:
        """All arrays of a certificate that refutes every case by the same constants.

        Args:
            constant: as for `arrays`.
        """
        if self.cases.count:
            self._constants(range(self.cases.count), constant)
        return self._joined_all()

    def _joined_all(self) -> dict[str, Array]:
        used = [name for name in EXTRA if self._parts[name]]
        return {name: self._joined(name) for name in (*ARRAYS, *used)}

    def _joined(self, name: str) -> Array:
        kind, width = (ARRAYS | EXTRA)[name]
        shape = (0, width) if width else (0,)
        parts = [np.asarray(part).reshape(-1, *shape[1:]) for part in self._parts[name]]
        return np.concatenate([np.zeros(shape), *parts]).astype(kind)

    def _put(self, name: str, values: object) -> None:
        self._parts[name].append(np.asarray(values))

    def _group(self, kind: int, cases: Sequence[int], nodes: int, *counts: int) -> None:
        self._put("group", [kind, len(cases), nodes, *counts])
        self._put("case", cases)

    def _weights(self, case: NumberedCase, weights: FloatArray) -> None:
        self._put("weight", encode_multipliers(weights[case.order]))

    # Groups

    def _constants(self, numbers: Sequence[int], constant: FloatArray) -> None:
        """The group of cases that Lipschitz constants refute."""
        self._group(3, numbers, 0, 0, 0, 0)
        self._put("constant", constant)
        self.groups.append((None, _NOTHING, np.array(numbers)))
        self.leaves += 1

    def _plain(self, found: Sequence[tuple[Problem, IntArray, FloatArray]]) -> None:
        """One group for all cases that plain bounds refute: every root is a leaf."""
        cases = [
            (self.cases[disjunct], row)
            for problem, numbers, weights in found
            for disjunct, row in zip(problem.case_disjunct[numbers], weights, strict=True)
        ]
        cases.sort(key=lambda pair: pair[0].number)
        boxes: dict[int, int] = {}
        for case, _ in cases:
            boxes.setdefault(case.box, len(boxes))
        combined = [(case, row) for case, row in cases if np.count_nonzero(row) > 1]
        combined.sort(key=lambda pair: (boxes[pair[0].box], pair[0].number))
        self._group(0, [c.number for c, _ in cases], len(boxes), len(combined), 0, 0)
        self._put("op", np.zeros(len(boxes)))
        for case, row in combined:
            self._put("combine", [boxes[case.box], case.number])
            self._weights(case, row)
        self.leaves += len(boxes)
        self.groups.append((None, _NOTHING, np.array([case.number for case, _ in cases])))

    def _input_trees(self, trees: InputTrees) -> None:
        roots: list[tuple[list[int], int]] = []
        for planted, members in trees.roots:
            for node, row in zip(planted.tolist(), members, strict=True):
                roots.append((sorted(self.cases[c].number for c in row[row >= 0]), node))
        roots.sort()  # by the first case, which is how the checker finds the boxes
        children = trees.nodes.children
        order = np.array(list(_preorder([node for _, node in roots], children)), np.int64)
        split = children[order, 0] >= 0
        inputs, codes = np.zeros(len(children), np.int64), np.zeros(len(children), np.int64)
        for step in trees.steps:
            inputs[step.cut] = step.inputs
            codes[step.cut] = [_CODES[how] for how in step.how]
        place = np.full(len(children), -1)
        place[order] = np.arange(len(order))
        combined = {
            (int(place[node]), self.cases[disjunct].number): (self.cases[disjunct], row)
            for step in trees.steps
            for node, disjunct, row in zip(*step.combined, strict=True)
        }
        cases = sorted(number for known, _ in roots for number in known)
        self._group(0, cases, len(order), len(combined), 0, 0)
        self.groups.append((trees, order, np.array(cases)))
        handed = [node for node in order.tolist() if node in trees.handed]
        self._put("op", np.where(np.isin(order, handed), 2, np.where(split, codes[order], 0)))
        self._put("arg", inputs[order[split]])
        for key in sorted(combined):
            self._put("combine", key)
            self._weights(*combined[key])
        self.leaves += int((~split).sum()) - len(trees.handed)
        for node in handed:
            self._neuron_trees(trees.handed[node], kind=5)

    def _neuron_trees(self, first: NeuronTrees, kind: int = 1, *, whole: bool = True) -> None:
        """Trees of a box, then those that it hands cases on to, each followed by its own."""
        todo = [(kind, first)]
        while todo:
            kind, trees = todo.pop()
            self._region(kind, trees)
            for half in reversed(trees.halves.trees if trees.halves is not None else []):
                assert half is not None or not whole  # a finished search has been in both
                todo += [] if half is None else [(2, half)]
            order = sorted(trees.narrowed, key=lambda disjunct: -self.cases[disjunct].number)
            todo += [(4, trees.narrowed[disjunct]) for disjunct in order]

    def _region(self, kind: int, trees: NeuronTrees, *, planes: bool = False) -> None:
        """One group; with planes also of cases that it hands on."""
        roots = sorted(
            (self.cases[disjunct].number, int(disjunct), node)
            for nodes, disjuncts in trees.roots + trees.handed
            for node, disjunct in zip(nodes.tolist(), disjuncts, strict=True)
        )
        if not roots:
            return
        children = trees.nodes.children
        columns = _Columns(trees, self._layer)
        splits = _Splits(trees, self._layer)
        self._put("column", columns.table)
        hints = self._hints(trees, columns)
        if trees.layers:
            hints = self._narrowed(trees, columns, self.cases[roots[0][1]])
        if trees.halves is not None:
            value, neuron = trees.graph.locate(trees.halves.neuron)
            neurons = _neurons_of(trees.graph, value)
            self._put("arg", neurons.at(np.array([neuron])))
            self._put("layer", [self._layer(neurons.label)])
            self._put("point", [trees.halves.point])
        nodes = 0
        for number, (_, disjunct, root) in enumerate(roots):
            has_planes = (root >= 0 or planes) and self._planes(trees, number, disjunct)
            if root < 0:
                self._put("op", [1 - root])
                nodes += 1
                continue
            order = np.array(list(_preorder([root], children)), np.int64)
            self._put("op", children[order, 0] >= 0)
            nodes += len(order)
            case = self.cases[disjunct]
            self._tree(trees, splits, order, children, case, has_planes=has_planes)
        numbers = [number for number, _, _ in roots]
        self._group(kind, numbers if kind in (1, 5) else [], nodes, 0, len(columns.table), hints)
        self.groups.append((trees, _NOTHING, np.array(numbers)))

    def _tree(
        self,
        trees: NeuronTrees,
        splits: _Splits,
        order: IntArray,
        children: IntArray,
        case: NumberedCase,
        *,
        has_planes: bool,
    ) -> None:
        inner = order[children[order, 0] >= 0]
        for name in ("arg", "layer", "point"):
            self._put(name, getattr(splits, name)[inner])
        for node in order[children[order, 0] < 0]:
            leaves, row = splits.leaf[int(node)]
            multipliers = leaves.multipliers[row]
            self._put("slope", leaves.slopes[row])
            self._put("multiplier", encode_multipliers(multipliers[~np.isnan(multipliers)]))
            self._weights(case, leaves.weights[row])
            if has_planes:
                self._put("tilt_leaf", [leaves.tilted[row]])
            self.leaves += 1

    def _hints(self, trees: NeuronTrees, columns: _Columns) -> int:
        """Write how the bounds of layers were tightened; the number of hints."""
        graph, layers = trees.refined
        count = 0
        for layer in layers:
            neurons = _neurons_of(graph, layer.target)
            for side, rows in enumerate((layer.lower, layer.upper)):
                if len(rows.index) == 0:
                    continue
                self._put("hint", [self._layer(neurons.label), side, len(rows.index)])
                self._put("hint_row", neurons.at(rows.index))
                self._put("hint_slope", columns.slopes(graph, layer, rows).ravel())
                count += 1
        return count

    def _narrowed(self, trees: NeuronTrees, columns: _Columns, case: NumberedCase) -> int:
        """Write how the bounds at the root were narrowed by the case; the number of hints."""
        for layer in trees.layers:
            neurons = _neurons_of(trees.graph, layer.target)
            side = 0 if layer.sign > 0 else 1
            self._put("hint", [self._layer(neurons.label), side, len(layer.index)])
            self._put("hint_row", neurons.at(layer.index))
            self._put("hint_slope", layer.slopes.ravel())
            self._put("multiplier", encode_multipliers(layer.multipliers).ravel())
            self._put("weight", encode_multipliers(layer.weights[:, case.order]).ravel())
        return len(trees.layers)

    def _planes(self, trees: NeuronTrees, root: int, disjunct: int) -> bool:
        """Write the planes of a root of the next group; whether it has any."""
        nodes = {node.name: node for node in trees.graph.nodes}
        rows = []
        for planes in trees.planes.get(disjunct, ()):
            neurons = nodes[planes.node].neurons
            assert neurons is not None
            rows.append((self._layer(neurons.label), neurons.at(planes.neurons), planes))
        for layer, position, planes in sorted(rows, key=lambda row: row[0]):
            order = np.argsort(position)
            ends = np.cumsum(planes.counts)
            parts = [planes.shares[ends[i] - planes.counts[i] : ends[i]] for i in order]
            count = int(planes.counts.sum())
            self._put("tilt", [len(self.groups), root, layer, len(order), count])
            self._put("tilt_row", position[order])
            self._put("tilt_share", np.concatenate(parts))
        return bool(rows)

    def _layer(self, label: str) -> int:
        return self.layers.setdefault(label, len(self.layers))


def _preorder(roots: Sequence[int], children: IntArray) -> Iterator[int]:
    """Nodes of trees, each before its children, the lower half first."""
    table = children.tolist()
    todo = list(reversed(roots))
    while todo:
        node = todo.pop()
        yield node
        low, high = table[node]
        if low >= 0:
            todo += [high, low]


def neurons_of(graph: Graph) -> dict[int, tuple[str, IntArray]]:
    """Who the neurons of a graph are: number of the first of a layer -> its label, positions."""
    return {
        columns.start: (neurons.label, neurons.at(np.arange(columns.stop - columns.start)))
        for value, columns in graph.numbering.items()
        for neurons in [_neurons_of(graph, value)]
    }


def _neurons_of(graph: Graph, value: str) -> Neurons:
    """Who the neurons of a pre-activation are, by the first curve that reads it."""
    neurons = graph.pre_activations[value][0].neurons
    assert neurons is not None  # graphs of files have them
    return neurons


def _maker(graph: Graph, name: str, index: IntArray) -> str:
    """The node that makes some entries of a value, which others may only have moved since.

    The checker counts columns up to that: moved entries are no block of their own to it.
    """
    makers = {node.name: node for node in graph.nodes}
    while True:
        node = makers[name]
        op, part = node.op, 0
        if not isinstance(op, Affine) or not len(index):
            return name
        if op.picked is not None:
            index = to_host(op.picked)[index]
        elif op.stacks:
            ends = np.cumsum(op.input_sizes)
            parts = np.searchsorted(ends, index, side="right")
            part = int(parts[0])
            index = index - (ends[part] - op.input_sizes[part])
            if (parts != part).any():
                return name
        else:
            return name
        if node.inputs[part] not in makers:
            return name
        name = node.inputs[part]


class _Columns:
    """The neurons with stored slopes.

    Attributes:
        table: (C, 2) layer and position.
    """

    def __init__(self, trees: NeuronTrees, layer: Callable[[str], int]) -> None:
        nodes = {node.name: node for node in trees.graph.nodes}
        rows: list[tuple[int, int]] = []
        self._column: dict[tuple[str, int], int] = {}
        for name, index in trees.columns.items():
            neurons = nodes[name].neurons
            assert neurons is not None
            for position in neurons.at(index).tolist():
                self._column[neurons.label, position] = len(rows)
                rows.append((layer(neurons.label), position))
        self.table = np.array(rows, np.int64).reshape(-1, 2)

    def slopes(self, graph: Graph, layer: Refinement, rows: RefinedRows) -> Array:
        """Slopes of hints for the columns before a layer, (K, C'); zero where there are none."""
        maker = _maker(graph, layer.target, rows.index)
        names = [node.name for node in graph.nodes]
        before = {
            node.neurons.label
            for node in graph.nodes[: names.index(maker)]
            if node.neurons is not None
        }
        kept = [column for (label, _), column in self._column.items() if label in before]
        place = {column: number for number, column in enumerate(kept)}
        result = np.zeros((len(rows.index), len(kept)), np.uint8)
        for node in graph.nodes:
            if node.name not in rows.positions or node.neurons is None:
                continue
            label, positions = node.neurons.label, node.neurons.at(layer.columns[node.name])
            for source, position in enumerate(positions.tolist()):
                column = self._column.get((label, position))
                if column is not None:
                    result[:, place[column]] = rows.positions[node.name][:, source]
        return result


class _Splits:
    """What is stored of splits and leaves, by node.

    Attributes:
        arg, layer, point: (nodes,) of splits.
        leaf: node -> its batch of leaves, and its position there.
    """

    def __init__(self, trees: NeuronTrees, layer: Callable[[str], int]) -> None:
        count = trees.nodes.count
        self.arg, self.layer = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.point = np.zeros(count)
        graph = trees.graph
        for value, columns in graph.numbering.items():
            neurons = _neurons_of(graph, value)
            for nodes, chosen, points in trees.splits:
                here = (chosen >= columns.start) & (chosen < columns.stop)
                if here.any():
                    self.arg[nodes[here]] = neurons.at(chosen[here] - columns.start)
                    self.layer[nodes[here]] = layer(neurons.label)
                    self.point[nodes[here]] = points[here]
        self.leaf = {
            node: (leaves, row)
            for leaves in trees.leaves
            for row, node in enumerate(leaves.nodes.tolist())
        }
