"""Groups of a certificate: the walk over their trees, with every half made here (rule R10).

What the certificate says is decoded front to end by `Arrays`; `Group` hands batches of nodes and
leaves to `onnxcert.checker.proof.Prover` and rejects the first leaf that is not refuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import numpy as np

from onnxcert.checker.audit import FORKS, Auditor
from onnxcert.checker.bounds import Bounder, Columns, Hint, Relaxation
from onnxcert.checker.container import EXTRA
from onnxcert.checker.curves import Array
from onnxcert.checker.errors import Expired, Rejected
from onnxcert.checker.lipschitz import refute
from onnxcert.checker.needed import Unread
from onnxcert.checker.network import Curve, Pair, distinct
from onnxcert.checker.proof import Boxes, Combined, Narrowing, Paths, Prover, Rows
from onnxcert.checker.quadratic import Quadratic
from onnxcert.checker.spec import Case
from onnxcert.checker.tilts import Tilt

_NUMBERS = 1 << 20
"""Float64 numbers of bounds in one batch of nodes."""


_MOST_NODES = 1 << 24
_DEEPEST = 4096
"""Splits on a path."""


class Arrays:
    """The arrays of a certificate, read from front to end; those that may be missing are empty."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        missing = {
            name: np.zeros((0, width) if width else 0, kind)
            for name, (kind, width) in EXTRA.items()
        }
        self._arrays = missing | arrays
        self._next = dict.fromkeys(self._arrays, 0)

    def take(self, name: str, count: int) -> Array:
        """The next entries of an array."""
        start = self._next[name]
        if not 0 <= count <= len(self._arrays[name]) - start:
            raise Rejected("container", name, "the array ends too early")
        self._next[name] = start + count
        return self._arrays[name][start : start + count]

    def take_of(self, name: str, group: int) -> Array:
        """The next entries of a table whose first column is a number."""
        others = np.flatnonzero(self._arrays[name][self._next[name] :, 0] != group)
        left = len(self._arrays[name]) - self._next[name]
        return self.take(name, int(others[0]) if len(others) else left)

    def finish(self) -> None:
        """Everything must have been used."""
        for name, end in self._next.items():
            if end != len(self._arrays[name]):
                raise Rejected("container", name, "there are entries that nothing uses")


def coarse(bits: Array) -> Array:
    """Non-negative numbers from the upper 16 bits of binary32."""
    values = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise Rejected("R8", "weight, multiplier", "one is negative or not a number")
    return values


def children(op: Array, roots: int) -> Array:
    """Both children of every node of trees in preorder, -1 for leaves: (nodes, 2)."""
    if len(op) > _MOST_NODES:
        raise Rejected("container", "op", f"more than {_MOST_NODES} nodes")
    result = np.full((len(op), 2), -1)
    waiting: list[tuple[int, int]] = []
    for node, code in enumerate(op.tolist()):
        if waiting:
            parent, side = waiting.pop()
            result[parent, side] = node
        elif roots:
            roots -= 1
        else:
            raise Rejected("R10", f"node {node}", "more nodes than the trees have")
        if code == 1:
            waiting += [(node, 1), (node, 0)]
        elif code != 0:
            raise Rejected("R10", f"node {node}", f"unknown code {code}")
    if roots or waiting:
        raise Rejected("R10", f"node {len(op)}", "the trees are not complete")
    return result


_WORK: Callable[[Any], object] = repr
"""What `spread` has its processes do; they are forks and inherit it."""


def _work(item: Any) -> None:
    _WORK(item)


def spread(work: Callable[[Any], None], items: Iterable[Any], jobs: int) -> None:
    """Do some work, in several processes where there are forks; what it raises is raised here."""
    global _WORK  # noqa: PLW0603 - a fork takes it along; closures cannot be sent
    if jobs == 1 or FORKS is None:
        for item in items:
            work(item)
        return
    _WORK = work
    with FORKS.Pool(jobs) as pool:
        for _ in pool.imap_unordered(_work, items):
            pass


@dataclass(frozen=True, eq=False)
class Refusal:
    """A leaf that is not refuted.

    Attributes:
        place, node: number of the group, and of the node in it.
        cases: those still open there, as positions in the group.
        low, high: the box of inputs.
        lower: the bound that should be positive.
    """

    place: int
    node: int
    cases: Array
    low: Array
    high: Array
    lower: float


@dataclass(frozen=True, eq=False)
class Node:
    """A node of a group over inputs that is handed on.

    Attributes:
        place, number: of the group, and of the node in it.
        cases, numbers: (K,) all cases of that group, and their numbers in the specification.
        box: the node with the cases open there (a batch of one); None where it is refuted already.
    """

    place: int
    number: int
    cases: Sequence[Case]
    numbers: Array
    box: Boxes | None

    @property
    def open_cases(self) -> Array:
        """Positions of the cases that are open."""
        row = np.zeros(0, np.int64) if self.box is None else self.box.cases[0]
        return row[row >= 0]


@dataclass(frozen=True, eq=False)
class Region:
    """Where the cases of a neuron group are open.

    Attributes:
        cases: all over one box.
        node: whose box that is; None for the box of the cases.
        known: bounds of all scalars that hold there for these cases, (1, scalars + 1) each; None
            for the whole box.
        scalar, side, point: (D,) the splits that make it, as in `Paths`.
        narrowed: whether it is the same set as the one before, for one case that narrows it.
    """

    cases: Sequence[Case]
    node: Node | None = None
    known: tuple[Array, Array] | None = None
    scalar: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    side: Array = field(default_factory=lambda: np.zeros(0))
    point: Array = field(default_factory=lambda: np.zeros(0))
    narrowed: bool = False

    @property
    def kind(self) -> int:
        """Of its group."""
        if self.known is None:
            return 1 if self.node is None else 5
        return 4 if self.narrowed else 2

    @property
    def path(self) -> tuple[Array, Array, Array]:
        """The splits."""
        return self.scalar, self.side, self.point

    def half(
        self, cases: Sequence[Case], known: tuple[Array, Array], split: tuple[int, float, float]
    ) -> Region:
        """One side of a split (scalar, side, point) of the region, with some of its cases."""
        scalar, side, point = (
            np.append(old, new) for old, new in zip(self.path, split, strict=True)
        )
        return Region(cases, self.node, known, scalar, side, point)

    def roots(self, prover: Prover) -> Boxes:
        """The box, with all cases."""
        if self.node is None or self.node.box is None:
            return prover.roots(self.cases)
        return replace(self.node.box, cases=np.arange(len(self.cases))[None], folds=None)


@dataclass(frozen=True, eq=False)
class InputGroup:
    """A group that splits inputs.

    Attributes:
        roots: the boxes where its trees begin.
        tree, inputs: (nodes, 2) children of every node, and (nodes,) the inputs of splits.
        handed: (nodes,) which are handed on.
        folded: (nodes,) which nodes the network is folded on for their halves.
        unbounded: (nodes,) which nodes are cut as they are, without being bounded.
        combined: sums of rows.
        numbers: (K,) the cases.
    """

    roots: Boxes
    tree: Array
    inputs: Array
    handed: Array
    folded: Array
    unbounded: Array
    combined: Combined
    numbers: Array


@dataclass(eq=False)
class Base:
    """Bounds that the leaves of a group over neurons are refuted with.

    Attributes:
        prover: for the cases of the group.
        region: where they are open.
        columns: whose slopes are stored.
        bound: bounds of all scalars (a batch of one).
        mark: what `Known` knows these by.
        tilts: case -> block -> planes (rule R18).
    """

    prover: Prover
    region: Region
    columns: Columns
    bound: Callable[[], Relaxation]
    mark: bytes = b""
    tilts: Mapping[int, Mapping[int, Tilt]] = field(default_factory=dict)

    @cached_property
    def root(self) -> Relaxation:
        """The bounds, which nobody may need."""
        return self.bound()


@dataclass(frozen=True)
class Walked:
    """What is left of a group over inputs.

    Attributes:
        handed: the nodes that are handed on -> what is left of them.
        refused: leaves that were not refuted.
    """

    handed: Mapping[int, Boxes | None]
    refused: Sequence[Refusal] = ()


class Known:
    """What the caller has refuted before with the functions of this package; this is nothing.

    Whoever says more must have done just the same with just the same arguments.

    Attributes:
        executed: whether it holds for executions, too; None for nothing.
        whole: whether all of the network was bounded (rule R21).
        ahead: as for `Prover`.
    """

    executed: bool | None = None
    whole: bool = False

    def __init__(self) -> None:
        self.ahead: list[tuple[Boxes, Relaxation]] = []

    def walked(self, place: int, group: InputGroup) -> Walked | None:
        """What is left of a group by its number, if it was walked with `Prover.boxes`."""

    def mark(self, *parts: object) -> bytes:
        """A name for what bounds are made of; different ones for different things."""
        return b""

    def bounds(self, mark: bytes, make: Callable[[], Relaxation]) -> Relaxation:
        """Bounds made of things with that name."""
        return make()

    def lower(
        self, base: Base, leaves: Sequence[Paths], make: Callable[[Sequence[Paths]], Array]
    ) -> Array:
        """Bounds of leaves over others, (B,): made, or something positive for refuted ones."""
        return make(leaves)


class Group:
    """Refutes one group of cases after the other.

    Args:
        bounder: bounds for the network.
        layers: what ``layer`` counts in.
        arrays: the certificate.
        auditor: bounds some of the leaves again.
        jobs: processes to share the work.
        refused: takes leaves that are not refuted; None to reject the certificate at the first.
        expired: asked now and then; once it says True, `Expired` is raised.
        known: what the caller has refuted before.

    Attributes:
        leaves: how many there were.
        base: bounds of the last group over neurons.
        regions: what groups have handed on to those that are to follow, in reverse.
    """

    def __init__(
        self,
        bounder: Bounder,
        layers: Sequence[Any],
        arrays: Arrays,
        auditor: Auditor,
        jobs: int,
        refused: list[Refusal] | None,
        expired: Callable[[], bool],
        known: Known,
    ) -> None:
        self.bounder, self.arrays, self.auditor, self.jobs = bounder, arrays, auditor, jobs
        self.refused, self.expired, self.known = refused, expired, known
        curves = [(k, b) for k, b in enumerate(bounder.blocks) if isinstance(b, Curve | Pair)]
        named = {block.label: (k, block) for k, block in curves}
        for label in layers:
            if (
                isinstance(label, str)
                and label not in named
                and bounder.network is not bounder.whole
            ):
                raise Unread
            if not isinstance(label, str) or label not in named:
                raise Rejected("R10", "layers", f"the model has no layer {label!r}")
        self._layers = [named[label] for label in layers]
        self._sizes = {k: block.size for k, block in curves}
        self._refused_nodes: set[tuple[int, int]] = set()
        self.regions: list[Region] = []
        self.base: Base | None = None
        self.leaves = 0

    def refute(self, cases: Sequence[Case], numbers: Array, header: Array, place: int) -> None:
        """Check a group.

        Raises:
            Rejected: a leaf is not refuted, or the group is not as described.
        """
        kind, _, nodes, combined, columns, hints = header.tolist()
        if kind == 3 and not self.regions:
            self._by_constants(cases, (nodes, combined, columns, hints), place)
            return
        parts = [region.kind for region in self.regions[-1:]]
        if (kind in (2, 4, 5)) != bool(parts) or parts not in ([], [kind]):
            raise Rejected("R10", f"group {place}", "what a region hands on must follow it")
        region = self.regions.pop() if self.regions else Region(cases)
        if kind == 5:
            region = self._entered(region, numbers, place)
        cases, network = region.cases, self.bounder.network
        rows = Rows.of(cases, network.n_inputs, len(network.output))
        prover = Prover(self.bounder, rows, ahead=self.known.ahead)
        op = self.arrays.take("op", nodes)
        if (kind == 0 and (columns or hints)) or (kind != 0 and combined):
            raise Rejected("container", f"group {place}", "counts that do not fit its kind")
        if kind == 0:
            self._over_inputs(prover, cases, op, combined, numbers, place)
        elif kind in (1, 2, 4, 5):
            self._over_neurons(prover, region, op, columns, hints, place)
        else:
            raise Rejected("container", f"group {place}", f"unknown kind {kind}")
        self.leaves += int((op == 0).sum())

    def _by_constants(
        self, cases: Sequence[Case], counts: tuple[int, int, int, int], place: int
    ) -> None:
        """Rule R14 for all cases of the one group that rests on constants."""
        if any(counts):
            raise Rejected("container", f"group {place}", "counts that do not fit its kind")
        if self.bounder.executed:
            raise Rejected("R14", f"group {place}", "constants are those of the real numbers")
        network = self.bounder.network
        self._look_at_the_clock()
        form = Quadratic(self.bounder.whole)
        weights, multipliers = (
            self.arrays.take("constant", count) for count in (network.n_inputs, form.neurons)
        )
        prover = Prover(self.bounder, Rows.of(cases, network.n_inputs, len(network.output)))
        self.leaves += 1
        try:
            refuted = refute(prover, cases, form, multipliers, weights)
        except Rejected:
            if self.refused is None:
                raise
            refuted = np.zeros(len(cases), bool)
        if refuted.all():
            return
        number = int(refuted.argmin())
        if self.refused is None:
            raise Rejected("R14", f"group {place}", f"case {number} of it is not refuted")
        case, left = cases[number], np.flatnonzero(~refuted)
        self.refused.append(Refusal(place, 0, left, case.lower, case.upper, 0.0))

    def finish(self) -> None:
        """Nothing may have been handed on in vain."""
        if self.regions:
            raise Rejected("R10", "group", "the halves of a region are missing")

    def _weights(self, cases: Sequence[Case], width: int) -> Array:
        """One weight for each row of each case: (len(cases), width)."""
        counts = np.array([max(1, len(case.rows)) for case in cases], np.int64)
        if len(cases) * width > _MOST_NODES:
            raise Rejected("container", "weight", f"more than {_MOST_NODES} weights")
        result = np.zeros((len(cases), width))
        filled = np.arange(width) < counts[:, None]
        result[filled] = coarse(self.arrays.take("weight", int(counts.sum())))
        return result

    # Trees over inputs

    def _combined(self, cases: Sequence[Case], numbers: Array, count: int, nodes: int) -> Combined:
        table = self.arrays.take("combine", count).astype(np.int64)
        order = table[:, 0] * (int(numbers[-1]) + 1) + table[:, 1]
        if (np.diff(order) <= 0).any() or (table[:, 0] >= nodes).any():
            raise Rejected("R8", "combine", "not in order, or at a node that does not exist")
        position = np.searchsorted(numbers, table[:, 1])
        position = np.minimum(position, len(cases) - 1)
        if (numbers[position] != table[:, 1]).any():
            raise Rejected("R8", "combine", "a case that is not in the group")
        width = max(1, *(len(case.rows) for case in cases))
        weights = self._weights([cases[i] for i in position], width)
        return Combined(table[:, 0], position, weights)

    def _inputs(self, tree: Array, place: int) -> Array:
        """Where the boxes of a tree are cut, (nodes,)."""
        split = tree[:, 0] >= 0
        inputs = np.zeros(len(tree), np.int64)
        inputs[split] = self.arrays.take("arg", int(split.sum()))
        if (inputs >= self.bounder.network.n_inputs).any():
            raise Rejected("R10", f"group {place}", "a split of an input that does not exist")
        return inputs

    def _over_inputs(
        self,
        prover: Prover,
        cases: Sequence[Case],
        op: Array,
        combined: int,
        numbers: Array,
        place: int,
    ) -> None:
        if (op > 4).any():
            raise Rejected("R10", f"group {place}", "an unknown code")
        roots, handed = prover.roots(cases), op == 2
        tree = children(np.where(handed, 0, np.minimum(op, 1)), len(roots.low))
        inputs = self._inputs(tree, place)
        sums = self._combined(cases, numbers, combined, len(op))
        group = InputGroup(roots, tree, inputs, handed, op == 3, op == 4, sums, numbers)
        walked = self.known.walked(place, group)
        if walked is None:
            walked = self._walk(prover, group, place)
        for refusal in walked.refused:
            self._refuse(replace(refusal, place=place))
        for number in reversed(np.flatnonzero(handed).tolist()):
            node = Node(place, number, cases, numbers, walked.handed.get(number))
            self.regions.append(Region((), node))

    def _walk(self, prover: Prover, group: InputGroup, place: int) -> Walked:
        """Refute all nodes of a group but those that are handed on."""
        tree, handed = group.tree, group.handed
        firsts = np.flatnonzero(~np.isin(np.arange(len(tree)), tree))
        stack = [(firsts, group.roots)]
        boxes: dict[int, Boxes | None] = {}

        def walk(stack: list[tuple[Array, Boxes]], enough: float = np.inf) -> None:
            while stack and sum(len(ids) for ids, _ in stack) < enough:
                ids, nodes = self._next(stack, prover.rows.used.shape[1])
                self._look_at_the_clock()
                for b in np.flatnonzero(handed[ids]).tolist():
                    boxes[int(ids[b])] = nodes[b : b + 1]
                left = ~handed[ids]
                if left.any():
                    self._step(prover, ids[left], nodes[left], group, place, stack)

        if self.jobs > 1 and not handed.any():  # until there is enough to share
            walk(stack, enough=32 * self.jobs)
        pieces = [
            [(ids[i : i + 8], nodes[i : i + 8])]
            for ids, nodes in stack
            for i in range(0, len(ids), 8)
        ]
        if self.jobs == 1 or self.refused is not None or handed.any():
            walk(stack)
        else:
            spread(walk, pieces, self.jobs)
        return Walked(boxes)

    def _next(self, stack: list[tuple[Array, Boxes]], rows: int) -> tuple[Array, Boxes]:
        """Take a batch of nodes of bounded size."""
        ids, nodes = stack.pop()
        numbers = self.bounder.network.size + nodes.cases.shape[1] * rows * nodes.low.shape[1]
        most = max(1, _NUMBERS // (numbers + 1))
        while stack and len(ids) + len(stack[-1][0]) <= most:
            more, others = stack.pop()
            ids, nodes = np.concatenate([ids, more]), Boxes.joined([nodes, others])
        if len(ids) > most:
            stack.append((ids[most:], nodes[most:]))
            ids, nodes = ids[:most], nodes[:most]
        return ids, nodes

    def _step(
        self,
        prover: Prover,
        ids: Array,
        nodes: Boxes,
        group: InputGroup,
        place: int,
        stack: list[tuple[Array, Boxes]],
    ) -> None:
        tree, at_once = group.tree, group.unbounded[ids]
        if at_once.any():
            self._cut(prover, ids[at_once], nodes[at_once], group, stack)
            ids, nodes = ids[~at_once], nodes[~at_once]
        if not len(ids):
            return
        leaf = tree[ids, 0] < 0
        open_nodes, rest, lower = prover.boxes(
            ids, nodes, leaf, group.combined, self.auditor, group.folded[ids]
        )
        still = ids[open_nodes]
        leaf = leaf[open_nodes]
        for b in np.flatnonzero(leaf):
            cases, box = rest.cases[b][rest.cases[b] >= 0], (rest.low[b], rest.high[b])
            self._refuse(Refusal(place, int(still[b]), cases, *box, float(lower[b])))
        if not leaf.all():
            self._cut(prover, still[~leaf], rest[~leaf], group, stack)

    @staticmethod
    def _cut(
        prover: Prover,
        ids: Array,
        nodes: Boxes,
        group: InputGroup,
        stack: list[tuple[Array, Boxes]],
    ) -> None:
        """The halves of nodes are next."""
        for side, half in enumerate(prover.halves(nodes, group.inputs[ids])):
            stack.append((group.tree[ids, side], half))

    # Trees over neurons

    def _entered(self, region: Region, numbers: Array, place: int) -> Region:
        """A box that is handed on, with the cases that its group names."""
        node = region.node
        assert node is not None
        position = np.minimum(np.searchsorted(node.numbers, numbers), len(node.numbers) - 1)
        if (node.numbers[position] != numbers).any():
            raise Rejected("R0", f"group {place}", "a case that was not handed on")
        if not np.isin(node.open_cases, position).all():
            self._refuse_in(Region((), node), Refusal(place, 0, position, *self._box(node), 0.0))
        return replace(region, cases=[node.cases[i] for i in position])

    @staticmethod
    def _box(node: Node) -> tuple[Array, Array]:
        assert node.box is not None  # a case is open
        return node.box.low[0], node.box.high[0]

    def _refuse_in(self, region: Region, refusal: Refusal) -> None:
        """A leaf of a region is not refuted; a node that was handed on is refused as a whole."""
        node = region.node
        if node is None or self.refused is None:
            self._refuse(refusal)
        elif (node.place, node.number) not in self._refused_nodes:
            self._refused_nodes.add((node.place, node.number))
            self._refuse(
                replace(refusal, place=node.place, node=node.number, cases=node.open_cases)
            )

    def _named(self, number: int, position: Array) -> tuple[int, Curve | Pair, Array]:
        """The block of a layer that has neurons or pairs at these positions, and which they are."""
        if (
            not 0 <= number < len(self._layers)
            or (position >= self._layers[number][1].positions).any()
        ):
            raise Rejected("R10", f"layer {number}", "there is no such neuron")
        k, block = self._layers[number]
        neurons = block.at(position)
        if (neurons < 0).any():
            raise Unread
        return k, block, neurons

    def _layer(self, number: int, position: Array) -> tuple[int, Array]:
        """Block and scalars read at positions of a layer."""
        k, block, neurons = self._named(number, position)
        if not isinstance(block, Curve):
            raise Rejected("R10", f"layer {number}", "only positions may be named for products")
        return k, block.ids[neurons]

    def _columns(self, count: int) -> Columns:
        table = self.arrays.take("column", count).astype(np.int64)
        of: dict[int, tuple[Array, Array]] = {}
        for number in distinct(table[:, 0]):
            where = np.flatnonzero(table[:, 0] == number)
            k, _, neurons = self._named(int(number), table[where, 1])
            of[k] = neurons, where
        blocks = [k for k in sorted(of) for _ in of[k][1]]
        if not np.array_equal(
            np.concatenate([of[k][1] for k in sorted(of)] or [table[:, 0]]), np.arange(len(blocks))
        ):
            raise Rejected("container", "column", "the layers are not in the order of the network")
        return Columns(of, self._sizes)

    def _hints(self, count: int, columns: Columns) -> dict[int, list[Hint]]:
        hints: dict[int, list[Hint]] = {}
        for layer, side, rows in self.arrays.take("hint", count).tolist():
            position = self.arrays.take("hint_row", rows).astype(np.int64)
            _, ids = self._layer(layer, position)
            blocks = distinct(self.bounder.block_of(ids))
            if len(blocks) != 1 or side not in (0, 1) or int(blocks[0]) not in self.bounder.tracked:
                raise Rejected("R4", "hint", "not the neurons of one layer, or no side")
            k = int(blocks[0])
            width = sum(len(p) for c, (p, _) in columns.of.items() if c < k)
            slopes = self.arrays.take("hint_slope", rows * width).reshape(rows, width)
            hints.setdefault(k, []).append(Hint(ids, 1.0 - 2.0 * side, slopes))
        return hints

    def _narrowings(self, count: int, columns: int, region: Region) -> Iterator[Narrowing]:
        """Hints of rule R20, in order."""
        depth, width = len(region.scalar), max(1, len(region.cases[0].rows))
        for layer, side, rows in self.arrays.take("hint", count).tolist():
            position = self.arrays.take("hint_row", rows).astype(np.int64)
            _, ids = self._layer(layer, position)
            blocks = distinct(self.bounder.block_of(ids))
            if len(blocks) != 1 or side not in (0, 1) or ids.min() < self.bounder.network.n_inputs:
                raise Rejected("R20", "hint", "not the neurons of one layer, or no side")
            scalar, sign, point = (np.broadcast_to(part, (rows, depth)) for part in region.path)
            paths = Paths(
                np.zeros(rows, np.int64),
                scalar,
                sign,
                point,
                coarse(self.arrays.take("multiplier", rows * depth)).reshape(rows, depth),
                self.arrays.take("hint_slope", rows * columns).reshape(rows, columns),
                self._weights(list(region.cases) * rows, width),
                np.zeros(rows, bool),
            )
            yield Narrowing(self._layers[layer][0], ids, 1.0 - 2.0 * side, paths)

    def _tilts(self, base: Base, roots: int, place: int) -> dict[int, dict[int, Tilt]]:
        """Planes above relus over the box of a group (rule R18), by block for each root that has
        some."""
        tilts: dict[int, dict[int, Tilt]] = {}
        last = (-1, -1)
        for _, case, layer, count, shares in self.arrays.take_of("tilt", place).tolist():
            if not 0 <= case < roots or layer < 0 or (case, layer) <= last:
                raise Rejected("R18", f"group {place}", "planes that are not in order")
            last = case, layer
            position = self.arrays.take("tilt_row", count).astype(np.int64)
            codes = self.arrays.take("tilt_share", shares)
            k, _, neurons = self._named(layer, position)
            if not count or (np.diff(neurons) <= 0).any():
                raise Rejected("R18", f"group {place}", "neurons that are not in order")
            of_case = tilts.setdefault(case, {})
            try:
                of_case[k] = Tilt.build(self.bounder, base.root, k, neurons, codes)
            except Rejected:
                if self.refused is None:
                    raise
                # A search that sees these sums otherwise proves the case again, without planes.
                n = self.bounder.network.n_inputs
                box = base.root.lower[0, :n], base.root.upper[0, :n]
                self._refuse(Refusal(place, 0, np.array([case]), *box, 0.0))
        return tilts

    def _over_neurons(
        self,
        prover: Prover,
        region: Region,
        op: Array,
        columns: int,
        hints: int,
        place: int,
    ) -> None:
        handed = op >= 2
        if (op > 3).any():
            raise Rejected("R10", f"group {place}", "an unknown code")
        tree = children(np.where(handed, 0, op), len(region.cases))
        first = np.flatnonzero(~np.isin(np.arange(len(tree)), tree))
        if not np.isin(np.flatnonzero(handed), first).all():
            raise Rejected("R10", f"group {place}", "part of a tree is handed on")
        chosen = self._columns(columns)
        given = {} if region.narrowed else self._hints(hints, chosen)
        wanted = self._narrowings(hints, columns, region) if region.narrowed else iter(())
        codes = op[first]
        if region.node is not None and region.node.box is None:  # there is nothing left to refute
            for _ in wanted:
                pass
            self._hand_on(region, codes, lambda: (op[:0], op[:0]), place)
            for _ in self._leaves(region, op, tree, columns, {}):
                pass
            return
        roots = region.roots(prover)
        if len(roots.low) != 1:
            raise Rejected("R1", f"group {place}", "cases over different boxes")
        base = self.base = self._base(prover, region, roots, chosen, (given, [*wanted]))
        if region.kind == 1:
            base.tilts = self._tilts(base, len(region.cases), place)
        self._hand_on(region, codes, lambda: (base.root.lower, base.root.upper), place)
        leaf_nodes = np.flatnonzero(op == 0)

        def refute(item: tuple[int, list[Paths]]) -> None:
            done, batch = item
            self._look_at_the_clock()
            lower = self.known.lower(base, batch, partial(self.lower, base))
            for b in np.flatnonzero(~(lower > 0)):
                case = int(batch[b].case[0])
                if case in base.tilts and not base.tilts[case]:
                    continue  # refused as a whole: its planes could not be made
                node, box = int(leaf_nodes[done + b]), (roots.low[0], roots.high[0])
                refusal = Refusal(place, node, batch[b].case, *box, float(lower[b]))
                self._refuse_in(region, refusal)

        batches = self._batches(self._leaves(region, op, tree, columns, base.tilts))
        jobs = self.jobs if self.refused is None else 1
        spread(refute, batches, jobs)

    def lower(self, base: Base, leaves: Sequence[Paths]) -> Array:
        """Bounds of leaves (B,), each a batch of one, as of `Prover.paths`."""
        joined = _joined(leaves)
        return base.prover.paths(base.root, joined, base.columns, self.auditor, base.tilts)

    def _base(
        self,
        prover: Prover,
        region: Region,
        roots: Boxes,
        chosen: Columns,
        hints: tuple[Mapping[int, Sequence[Hint]], Sequence[Narrowing]],
    ) -> Base:
        rows = [case.rows for case in region.cases if region.narrowed]
        box = roots.low, roots.high, roots.known, roots.balls
        mark = self.known.mark(*box, region.known, region.path, rows, chosen, hints)
        bound = partial(self._bounds, prover, region, roots, chosen, hints)
        return Base(prover, region, chosen, lambda: self.known.bounds(mark, bound), mark)

    def _bounds(
        self,
        prover: Prover,
        region: Region,
        roots: Boxes,
        chosen: Columns,
        hints: tuple[Mapping[int, Sequence[Hint]], Sequence[Narrowing]],
    ) -> Relaxation:
        """Bounds of all scalars in a region, with the hints of its group of either kind."""
        given, wanted = hints
        bound = partial(self.bounder.bound, roots.low, roots.high, balls=roots.balls)
        if region.known is None:
            root = prover.bounds(roots, backward=True)
            if given:
                root = bound(self._known(root), backward=False, hints=given, columns=chosen)
            return root
        again = partial(bound, splits=region.path, backward=False)
        root = again(within=region.known, hints=given, columns=chosen)
        if not region.narrowed:
            return root
        for _, rows in groupby(wanted, lambda narrowing: narrowing.layer):
            self._look_at_the_clock()
            prover.narrow(root, rows, chosen, self.auditor)
        return again(within=(root.lower, root.upper))

    def _known(self, root: Relaxation) -> tuple[Array, Array]:
        return root.lower[:, self.bounder.known_ids], root.upper[:, self.bounder.known_ids]

    def _hand_on(
        self,
        region: Region,
        codes: Array,
        known: Callable[[], tuple[Array, Array]],
        place: int,
    ) -> None:
        """Note what a region hands on, by the codes of its roots, for the groups that follow."""
        halved, alone = (
            [case for case, code in zip(region.cases, codes, strict=True) if code == wanted]
            for wanted in (2, 3)
        )
        if halved:
            scalar, point = self._split_of(place)
            for side in (1.0, -1.0):
                self.regions.append(region.half(halved, known(), (scalar, side, point)))
        for case in reversed(alone):
            self.regions.append(replace(region, cases=[case], known=known(), narrowed=True))

    def _split_of(self, place: int) -> tuple[int, float]:
        """Read where a region is split: scalar and point."""
        position = self.arrays.take("arg", 1).astype(np.int64)
        layer, point = int(self.arrays.take("layer", 1)[0]), float(self.arrays.take("point", 1)[0])
        scalar = int(self._layer(layer, position)[1][0])
        if not math.isfinite(point) or scalar < 0:
            raise Rejected("R10", f"group {place}", "no number, or a neuron that reads no scalar")
        return scalar, point

    def _batches(self, leaves: Iterator[Paths]) -> Iterator[tuple[int, list[Paths]]]:
        """Leaves in batches of bounded size, each with the number of leaves before it."""
        batch, depth, done = list[Paths](), 0, 0
        for leaf in leaves:
            depth = max(depth, leaf.scalar.shape[1], self.bounder.network.size)
            if batch and (len(batch) + 1) * depth > _NUMBERS:
                yield done, batch
                done, batch = done + len(batch), []
            batch.append(leaf)
        if batch:
            yield done, batch

    def _look_at_the_clock(self) -> None:
        if self.expired():
            raise Expired

    def _refuse(self, refusal: Refusal) -> None:
        """A leaf is not refuted."""
        if self.refused is None:
            place = f"group {refusal.place}, node {refusal.node}"
            raise Rejected("R8", place, "a leaf is not refuted")
        self.refused.append(refusal)

    def _leaves(
        self,
        region: Region,
        op: Array,
        tree: Array,
        columns: int,
        tilts: Mapping[int, Mapping[int, Tilt]],
    ) -> Iterator[Paths]:
        """The leaves in preorder, each a batch of one."""
        cases = region.cases
        split = tree[:, 0] >= 0
        total = int(split.sum())
        position = self.arrays.take("arg", total).astype(np.int64)
        layer, point = self.arrays.take("layer", total), self.arrays.take("point", total)
        if not np.isfinite(point).all():
            raise Rejected("R10", "point", "not a number")
        scalar = np.full(total, -1)
        for number in distinct(layer):
            here = layer == number
            scalar[here] = self._layer(int(number), position[here])[1]
        if (scalar < 0).any():
            raise Rejected("R10", "arg", "a neuron that reads no scalar")
        width = max(1, *(len(case.rows) for case in cases))
        number = np.cumsum(split) - 1
        path: list[tuple[int, float]] = []
        todo: list[tuple[int, int, float]] = []
        case = -1
        for node in range(len(tree)):
            if todo:
                depth, parent, side = todo.pop()
                path = [*path[:depth], (parent, side)]
            else:
                case, path = case + 1, []
            if len(region.scalar) + len(path) > _DEEPEST:
                raise Rejected("R10", f"node {node}", f"more than {_DEEPEST} splits on a path")
            if split[node]:
                todo += [(len(path), number[node], 1.0), (len(path), number[node], -1.0)]
                continue
            if op[node] >= 2:
                continue
            splits = np.array([s for s, _ in path], np.int64)
            sides = np.array([s for _, s in path])
            above = len(region.scalar) + len(path)
            weights = self._weights([cases[case]], width)
            tilted = self.arrays.take("tilt_leaf", 1) if case in tilts else np.zeros(1)
            if tilted[0] > 1:
                raise Rejected("R18", f"node {node}", "planes are taken or not")
            yield Paths(
                np.array([case]),
                np.append(region.scalar, scalar[splits])[None],
                np.append(region.side, sides)[None],
                np.append(region.point, point[splits])[None],
                coarse(self.arrays.take("multiplier", above))[None],
                self.arrays.take("slope", columns)[None],
                weights,
                tilted > 0,
            )


def _joined(paths: Sequence[Paths]) -> Paths:
    """One batch of leaves, each a batch of one; shorter paths are padded with scalar -1."""
    width = max(path.scalar.shape[1] for path in paths)

    def table(name: str, fill: float) -> Array:
        parts = [getattr(path, name)[0] for path in paths]
        made = np.full((len(parts), width), fill, parts[0].dtype)
        for row, part in zip(made, parts, strict=True):
            row[: len(part)] = part
        return made

    return Paths(
        np.concatenate([path.case for path in paths]),
        table("scalar", -1),
        table("side", 0),
        table("point", 0),
        table("multiplier", 0),
        np.concatenate([path.slopes for path in paths]),
        np.concatenate([path.weights for path in paths]),
        np.concatenate([path.tilted for path in paths]),
    )
