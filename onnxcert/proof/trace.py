"""What a search did, as events: the raw material of a certificate.

The search reports decisions and hints while it runs: which boxes it cut where, which neurons it
split, with which slopes, multipliers and weights it closed a leaf. It knows nothing of files, and
this module nothing of bounds; `onnxcert.proof.writer` turns a finished trace into a certificate.

Nodes of a tree are numbered in the order in which they are made. Cases are numbered as in
``Problem.case_disjunct``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from onnxcert.arrays import Array, FloatArray, IntArray, to_host
from onnxcert.bounds.hints import encode_positions
from onnxcert.bounds.intermediate import Refinement, free_entries
from onnxcert.bounds.narrowing import NarrowedRows
from onnxcert.bounds.optimised import FreeRelaxation, Start
from onnxcert.bounds.tilts import Tilts
from onnxcert.graph import Graph
from onnxcert.sets import Box
from onnxcert.spec import Problem

NOTHING: IntArray = np.zeros(0, np.int64)
"""No nodes."""


@dataclass(eq=False)
class _Nodes:
    """Trees under construction: how many nodes there are, and which are whose halves."""

    count: int = 0
    links: list[tuple[IntArray, IntArray]] = field(default_factory=list)

    def add(self, count: int) -> IntArray:
        """Numbers for new nodes."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def link(self, parents: IntArray) -> tuple[IntArray, IntArray]:
        """Two children for each parent: the lower and the upper half."""
        low, high = self.add(len(parents)), self.add(len(parents))
        self.links.append((parents, np.stack([low, high], axis=1)))
        return low, high

    @property
    def children(self) -> IntArray:
        """(nodes, 2)."""
        table: IntArray = np.full((self.count, 2), -1)
        for parents, children in self.links:
            table[parents] = children
        return table


class Cut(IntEnum):
    """What happened before a box was cut in the middle of an input.

    It was bounded and clipped; the network was folded on what was left, too; or nothing that bounds
    below hang on, as it is itself a half of a box that was to be cut several times, or a box of
    whole numbers that is gone down from.
    """

    BOUNDED = 1
    FOLDED = 2
    AT_ONCE = 3


@dataclass(frozen=True, eq=False)
class Step:
    """What the search did with a batch of boxes.

    Attributes:
        closed: (N,) nodes of which nothing is left.
        cut, inputs, low, high: (M,) nodes that were cut in the middle of an input, and the nodes of
            their lower and upper halves.
        combined: nodes, cases and weights (K, R): cases that a sum of their rows refutes there.
        how: (M,) `Cut` of those that were cut.
    """

    closed: IntArray
    cut: IntArray
    inputs: IntArray
    low: IntArray
    high: IntArray
    combined: tuple[IntArray, IntArray, FloatArray]
    how: IntArray


@dataclass(eq=False)
class InputTrees:
    """Trees of boxes, cut at inputs.

    Attributes:
        problem: where the cases come from.
        roots: (R,) nodes, and for each the cases open there, (R, C) with -1 for none.
        steps: all batches in order.
        handed: nodes whose cases trees of neuron splits over their boxes refute.
        planted, stepped, handed_on: told of new roots, of every batch, and of what is handed.
    """

    problem: Problem
    nodes: _Nodes = field(default_factory=_Nodes)
    roots: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    handed: dict[int, NeuronTrees] = field(default_factory=dict)
    planted: Callable[[IntArray, IntArray], None] = lambda nodes, cases: None
    stepped: Callable[[Step], None] = lambda step: None
    handed_on: Callable[[int, NeuronTrees], None] = lambda node, trees: None

    def plant(self, cases: IntArray) -> IntArray:
        """New roots with their cases (R, C); their numbers."""
        numbers = self.nodes.add(len(cases))
        self.roots.append((numbers, cases))
        self.planted(numbers, cases)
        return numbers

    def step(
        self,
        closed: Array,
        cut: Array,
        inputs: Array,
        combined: tuple[Array, Array, Array] = (NOTHING, NOTHING, NOTHING[:, None]),
        how: Array | Cut = Cut.BOUNDED,
    ) -> tuple[IntArray, IntArray]:
        """Note a batch (see `Step`): the numbers of the lower and upper halves."""
        parents = to_host(cut)
        for node in self.handed.keys() & set(parents.tolist()):
            del self.handed[node]  # what was handed was not accepted
        low, high = self.nodes.link(parents)
        nodes, cases, weights = map(to_host, combined)
        sums = nodes, cases, weights
        kinds = np.broadcast_to(
            np.int64(how) if isinstance(how, Cut) else to_host(how), len(parents)
        )
        step = Step(to_host(closed), parents, to_host(inputs), low, high, sums, kinds)
        self.steps.append(step)
        self.stepped(step)
        return low, high

    def hand(self, node: int, trees: NeuronTrees) -> None:
        """Note that trees of neuron splits, of which every leaf is closed, do a node."""
        self.handed[node] = trees
        self.handed_on(node, trees)


@dataclass(frozen=True, eq=False)
class Planes:
    """Upper planes of some neurons (`onnxcert.bounds.tilts`) for one case.

    Attributes:
        node: the relu.
        neurons: (N,) of it.
        counts: (N,) how many factors of each are not zero.
        shares: uint8 in 255ths, one for each of these, neuron after neuron.
    """

    node: str
    neurons: IntArray
    counts: IntArray
    shares: Array


@dataclass(frozen=True, eq=False)
class Leaves:
    """Leaves of neuron trees with the hints that close them.

    Attributes:
        nodes: (M,).
        slopes: (M, columns) uint8, positions of free lines in 255ths.
        multipliers: (M, D) for each split of the path, root first; NaN for padding.
        weights: (M, R) of the rows of the case.
        tilted: (M,) whether they take the planes of their case.
    """

    nodes: IntArray
    slopes: Array
    multipliers: FloatArray
    weights: FloatArray
    tilted: Array


@dataclass(frozen=True, eq=False)
class NarrowedLayer:
    """Neurons with better bounds on one side where a case holds, and what gives them.

    Attributes:
        target: the pre-activation.
        sign: 1.0 for lower bounds, -1.0 for upper ones.
        index: (K,) numbers of the neurons, increasing.
        slopes, multipliers, weights: as those of `Leaves`, (K, .) each.
    """

    target: str
    sign: float
    index: IntArray
    slopes: Array
    multipliers: FloatArray
    weights: FloatArray


class Follower:
    """Is told what becomes of some `NeuronTrees`; this one does not listen."""

    def planted(self, nodes: IntArray, cases: IntArray) -> None:
        """New roots (R,) and their cases."""

    def split(
        self, parents: IntArray, neurons: IntArray, points: FloatArray, halves: IntArray
    ) -> None:
        """Splits (M,) and the nodes of their lower and upper halves (M, 2)."""

    def closed(self, leaves: Leaves) -> None:
        """New leaves."""

    def halved(self, halves: Halves) -> None:
        """Cases are handed to two halves, which are not there yet."""

    def handed(self, place: int, trees: NeuronTrees) -> None:
        """Trees of the lower (-1) or the upper half (-2) are there, or of a case that narrows."""


@dataclass(eq=False)
class Halves:
    """The two sides of a split, with trees of their own over tighter bounds of all layers.

    Attributes:
        neuron, point: the split, counted as in `NeuronTrees`.
        cases: those that are refuted in both.
        trees: of the lower and of the upper side, once they are there.
        follower: of the trees that are halved.
    """

    neuron: int
    point: float
    cases: IntArray
    trees: list[NeuronTrees | None] = field(default_factory=lambda: [None, None])
    follower: Follower = field(default_factory=Follower)

    def keep(self, side: int, trees: NeuronTrees) -> None:
        """Note the trees of one side."""
        self.trees[side] = trees
        self.follower.handed(-1 - side, trees)


@dataclass(eq=False)
class NeuronTrees:
    """Trees of neuron splits below one input box, or in a part of it.

    Attributes:
        problem: where the cases come from.
        graph: the network whose nodes the names below belong to.
        columns: elementwise node, or one with free planes -> numbers of its neurons, or pairs,
            whose positions are stored, in the order of the graph.
        refined: how the bounds at the root were tightened: graph and layers.
        planes: disjunct of a case -> its planes, which its leaves may take.
        roots: nodes (R,) and their cases (R,).
        splits: nodes, neurons and points, (M,) each; neurons are counted over all pre-activations
            of the graph in their order.
        leaves: closed nodes.
        halves: where cases are refuted that have no root here; None if there are none.
        narrowed: disjunct of a case without a root -> its trees over bounds that it narrows.
        layers: how the bounds at the root were narrowed by the one case of these trees, in order.
        follower: is told of all that is noted.
    """

    problem: Problem
    graph: Graph
    columns: Mapping[str, IntArray]
    refined: tuple[Graph, Sequence[Refinement]]
    planes: dict[int, Sequence[Planes]] = field(default_factory=dict)
    nodes: _Nodes = field(default_factory=_Nodes)
    roots: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    splits: list[tuple[IntArray, IntArray, FloatArray]] = field(default_factory=list)
    leaves: list[Leaves] = field(default_factory=list)
    halves: Halves | None = None
    narrowed: dict[int, NeuronTrees] = field(default_factory=dict)
    layers: list[NarrowedLayer] = field(default_factory=list)
    follower: Follower = field(default_factory=Follower)

    def replanted(self) -> NeuronTrees:
        """Trees over the same bounds, without roots."""
        return NeuronTrees(self.problem, self.graph, self.columns, self.refined, self.planes)

    def plant(self, cases: IntArray) -> IntArray:
        """One root for each case."""
        numbers = self.nodes.add(len(cases))
        self.roots.append((numbers, cases))
        self.follower.planted(numbers, cases)
        return numbers

    def close(
        self,
        nodes: Array,
        best: Start,
        index: Array,
        multipliers: Array,
        tilted: Array | None = None,
    ) -> None:
        """Leaves (M,) with the variables of their best bounds.

        Args:
            nodes: (M,).
            best: variables of a batch of subproblems.
            index: (M,) which of them.
            multipliers: (M, D) unsigned ones of the path, root first; NaN for padding.
            tilted: (M,) whether they take the planes of their case; None for no.
        """
        if len(nodes) == 0:
            return
        numbers, slopes = to_host(nodes), self._slopes(best, index)
        weights = to_host(best.weights[index])
        taken = np.zeros(len(numbers), dtype=bool) if tilted is None else to_host(tilted)
        self.add(Leaves(numbers, slopes, to_host(multipliers), weights, taken))

    def add(self, leaves: Leaves) -> None:
        """Note leaves."""
        self.leaves.append(leaves)
        self.follower.closed(leaves)

    def _slopes(self, best: Start, index: Array) -> Array:
        """Positions of the columns in some rows, (M, columns) uint8."""
        parts = [np.zeros((len(index), 0), np.uint8)]
        for name, columns in self.columns.items():
            # A layer without free lines in the whole batch has no positions.
            slopes = np.zeros((len(index), len(columns)), np.uint8)
            if name in best.positions:
                slopes = to_host(encode_positions(best.positions[name][index][:, columns]))
            parts.append(slopes)
        return np.concatenate(parts, axis=1)

    def narrow(self, rows: NarrowedRows, multipliers: FloatArray) -> None:
        """Note rows that narrowed the bounds at the root, in their order.

        Args:
            rows: what was found.
            multipliers: (K, D) unsigned ones of the path.
        """
        slopes = self._slopes(rows.best, np.arange(len(rows.index)))
        weights = to_host(rows.best.weights)
        layer = NarrowedLayer(rows.target, rows.sign, rows.index, slopes, multipliers, weights)
        self.layers.append(layer)

    def graft(self, other: NeuronTrees, nodes: IntArray) -> IntArray:
        """Take over what grew below some nodes.

        Args:
            other: trees over the same bounds, whose first nodes stand for ``nodes``; without roots.
            nodes: (M,) numbers here.

        Returns:
            The number here of each node there.
        """
        number = np.concatenate([nodes, self.nodes.add(other.nodes.count - len(nodes))])
        for (_, below), (above, neurons, points) in zip(
            other.nodes.links, other.splits, strict=True
        ):
            self.nodes.links.append((number[above], number[below]))
            self.splits.append((number[above], neurons, points))
            self.follower.split(number[above], neurons, points, number[below])
        for leaves in other.leaves:
            self.add(replace(leaves, nodes=number[leaves.nodes]))
        return number

    @property
    def handed(self) -> list[tuple[IntArray, IntArray]]:
        """The cases without a root here, as roots of number -1 (halves) and -2 (narrowed)."""
        narrowed = np.array(list(self.narrowed), np.int64)
        halved = narrowed[:0] if self.halves is None else self.halves.cases
        return [(np.full(len(halved), -1), halved), (np.full(len(narrowed), -2), narrowed)]

    def forget(self, cases: set[int]) -> None:
        """Drop the trees of some cases."""
        self.roots = [
            (nodes[kept], numbers[kept])
            for nodes, numbers in self.roots
            for kept in [~np.isin(numbers, list(cases))]
        ]
        for case in cases & self.narrowed.keys():
            del self.narrowed[case]
        if self.halves is not None:
            self.halves.cases = self.halves.cases[~np.isin(self.halves.cases, list(cases))]
            for half in self.halves.trees:
                if half is not None:
                    half.forget(cases)
            if len(self.halves.cases) == 0:
                self.halves = None

    def closed(self, nodes: IntArray) -> Array:
        """Which of some nodes have nothing but leaves below them: (M,)."""
        return self._shares()[nodes] == 1.0  # type: ignore[no-any-return]

    def share(self) -> float:
        """Which share of all trees is closed, counting the halves of a node as the same."""
        shares = self._shares()
        return float(np.mean([shares[nodes].mean() for nodes, _ in self.roots if len(nodes)]))

    def _shares(self) -> Array:
        """What part of the tree below each node is closed; means of ones are exactly one."""
        done = np.zeros(self.nodes.count)
        for leaves in self.leaves:
            done[leaves.nodes] = 1.0
        for parents, halves in reversed(self.nodes.links):
            done[parents] = done[halves].mean(axis=1)
        return done

    def halve(self, neuron: int, point: float, cases: IntArray) -> Halves:
        """Hand cases to the two sides of a split, to be refuted by trees of their own."""
        self.halves = Halves(neuron, point, cases, follower=self.follower)
        self.follower.halved(self.halves)
        return self.halves

    def hand(self, case: int, trees: NeuronTrees) -> None:
        """Hand a case to trees over bounds that it narrows."""
        self.narrowed[case] = trees
        self.follower.handed(case, trees)

    def split(self, nodes: Array, neurons: Array, points: Array) -> tuple[IntArray, IntArray]:
        """Split one neuron of each node: the numbers of the lower and upper halves."""
        parents, numbers, where = to_host(nodes), to_host(neurons), to_host(points)
        self.splits.append((parents, numbers, where))
        low, high = self.nodes.link(parents)
        self.follower.split(parents, numbers, where, np.stack([low, high], axis=1))
        return low, high


def planes_of(tilts: Tilts, disjuncts: IntArray) -> dict[int, Sequence[Planes]]:
    """Planes of cases as `NeuronTrees` keep them, given the disjunct of every case."""
    result: dict[int, Sequence[Planes]] = {}
    for row, case in enumerate(to_host(tilts.cases).tolist()):
        result[int(disjuncts[case])] = [
            Planes(
                name,
                to_host(tilting.neurons),
                to_host(tilting.used.sum(axis=1)),
                to_host(encode_positions(tilts.shares[name][row])[tilting.used]),
            )
            for name, tilting in tilts.of.items()
        ]
    return result


def free_neurons(free: FreeRelaxation, boxes: Mapping[str, Box]) -> dict[str, IntArray]:
    """Neurons whose slopes matter over a box (batch of one), by elementwise node."""
    result: dict[str, IntArray] = {}
    for node in free.relaxation.graph.nodes:
        if node.name in free.free:
            result[node.name] = np.flatnonzero(to_host(free_entries(node, boxes))[0])
    return result


@dataclass(eq=False)
class Trace:
    """Everything that refuted a case.

    Attributes:
        plain: cases that the bounds of `onnxcert.bounds.crown` refute on the whole of their box:
            their problem, their numbers in it, and weights of their rows.
        groups: trees of which every leaf is closed.
        constant: cases that Lipschitz constants refute, numbered as in ``Problem.case_disjunct``.
    """

    plain: list[tuple[Problem, IntArray, FloatArray]] = field(default_factory=list)
    groups: list[InputTrees | NeuronTrees] = field(default_factory=list)
    constant: set[int] = field(default_factory=set)

    def refuted(self, problem: Problem, cases: IntArray, weights: Array | None = None) -> None:
        """Cases (K,) of a problem that need no more than plain bounds.

        Args:
            problem, cases: the cases by their numbers in the problem.
            weights: (K, R) of the rows whose sum refutes them; None for single rows.
        """
        if len(cases):
            empty = np.zeros((len(cases), 0))
            self.plain.append((problem, cases, empty if weights is None else to_host(weights)))

    def forget(self, disjuncts: set[int]) -> None:
        """Drop what refuted some cases on the whole of their box, or by splits of neurons."""
        self.constant -= disjuncts
        plain, self.plain = self.plain, []
        for problem, cases, weights in plain:
            kept = ~np.isin(problem.case_disjunct[cases], list(disjuncts))
            self.refuted(problem, cases[kept], weights[kept])
        for group in self.groups:
            if isinstance(group, NeuronTrees):
                group.forget(disjuncts)
