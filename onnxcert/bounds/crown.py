"""CROWN bounds of every pre-activation, layer by layer, and the relaxation they give.

Interval bounds are computed first; backward bounds only for the neurons that these leave unstable
in some subproblem, in batches of subproblems x rows that stay within a memory budget. Known bounds
(a parent's, or those of split constraints) are intersected on the way, so what is inherited is
never lost: default slopes are not monotone in the bounds, intersection is what makes a child at
least as tight as its parent. Products and quotients get backward bounds of what they read, or of a
difference of it (`onnxcert.ops.divide`), before their planes are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module
from onnxcert.bounds.backward import (
    Curve,
    Relaxation,
    pull_back_units,
    pull_differences,
    unstable_neurons,
)
from onnxcert.bounds.execution import before_rounding, enclose, execution_error
from onnxcert.bounds.forward import ForwardForms
from onnxcert.bounds.layered import Layered
from onnxcert.bounds.patches import find_patch
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import Affine, Bivariate, Elementwise
from onnxcert.sets import Ball, Box, Planes

CHUNK_NUMBERS = 1 << 20
"""Numbers in the widest row block of a pass: 8 MB, so that its temporaries stay in cache."""

_BATCH_NUMBERS = 1 << 18
"""The same for several subproblems with rows of their own lines: 2 MB; 1 << 14 and 1 << 20 take a
tenth longer on a network of 300 neurons."""

_LEAST_NUMBERS = 1 << 16
"""Numbers in a row block from which on it is worth a pass of its own."""

LEAST_ROWS = 64
"""Rows of a block however wide the network is: neurons that lie together share their window."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of a batch of subproblems.

    Attributes:
        boxes: value name -> box, (B, n), for every value of the graph.
        relaxation: the lines that follow from them.
        empty: (B,) True where the known bounds contradict the network: nothing is in there.
    """

    boxes: dict[str, Box]
    relaxation: Relaxation
    empty: Array


def crown_bounds(
    graph: Graph,
    box: Box,
    *,
    known: Mapping[str, Box] | None = None,
    backward: bool = True,
    decide: bool = False,
    expired: Callable[[], bool] = lambda: False,
    execution_unit: float = 0.0,
    layered: Layered | None = None,
) -> Bounds:
    """Bound every value of the graph over a batch of input boxes.

    Args:
        graph: the network.
        box: (B, input_size).
        known: value name -> box that is known to hold, intersected.
        backward: False leaves it at interval bounds.
        decide: of neurons that one backward bound shows to be stable the other one is that of
            intervals; what it is does not matter to any line.
        expired: asked between row blocks; once True, remaining layers get interval bounds only.
        execution_unit: see `Relaxation`.
        layered: the graph as it pulls rows of single neurons back, if it is a folded one.

    Returns:
        Bounds valid for the real-valued network and for those executions.
    """
    known = known or {}
    extra = 0 if layered is None else layered.neurons + 1
    relaxation = Relaxation(graph, box, execution_unit, extra_roundings=extra)
    boxes, empty = {graph.input: box}, box.empty
    forms = None
    if backward and (layered is None or not layered.slopes):  # which leave these nothing to gain
        forms = ForwardForms.begin(graph, box, execution_unit)
    middle = graph.values(0.5 * (box.lower + box.upper)) if backward and decide else {}
    for number, node in enumerate(graph.nodes):
        if isinstance(node.op, Bivariate) and backward:
            empty |= _refine_factors(relaxation, node, boxes, expired)
        current = enclose(graph, node, boxes, execution_unit)
        if node.name in known:
            current = current.intersect(known[node.name])
        if relaxation.leave_out(node, current):
            boxes[node.name] = current
            if forms is not None:
                forms.add_fixed(number, node, current)
            continue
        if isinstance(node.op, Elementwise):
            if forms is not None:
                forms.add_elementwise(number, node, boxes)
            source = boxes[node.inputs[0]]
            relaxation.add_elementwise(node, boxes, node.op.relax(source))
        elif isinstance(node.op, Bivariate):
            if backward and not expired():
                current = current.intersect(_by_difference(relaxation, node, boxes, current))
            planes = _planes(relaxation, node, boxes, current)
            if forms is not None:
                current = current.intersect(forms.add_bivariate(number, node, boxes, planes))
            relaxation.add_bivariate(node, boxes, planes)
        else:
            if forms is not None:
                current = current.intersect(forms.add_affine(number, node, boxes))
            boxes[node.name] = current
            relaxation.add_affine(node, boxes)
        if backward and _is_worthwhile(relaxation, node) and not expired():
            unstable = unstable_neurons(graph, node.name, current)
            arguments = relaxation, node.name, current, unstable, expired
            current = _refine(*arguments, middle=middle.get(node.name), layered=layered)
        boxes[node.name], wrong = _settled(current)
        empty |= wrong
    return Bounds(boxes, relaxation, empty)


def _planes(relaxation: Relaxation, node: Node, boxes: Mapping[str, Box], current: Box) -> Planes:
    """Planes of a function of two values, given what is known of these and of what it makes."""
    assert isinstance(node.op, Bivariate)
    ordered, _ = _settled(current)
    unit = relaxation.execution_unit
    ordered = before_rounding(relaxation.graph, node, boxes, ordered, unit)
    return node.op.relax([boxes[name] for name in node.inputs], ordered)


def _is_worthwhile(relaxation: Relaxation, node: Node) -> bool:
    """Whether backward bounds of a value may gain anything.

    Intervals are exact where only inputs are read, unless those are fewer than their box has.
    """
    graph = relaxation.graph
    exact = node.inputs == (graph.input,) and not isinstance(relaxation.box, Ball)
    return node.name in graph.worthwhile and not exact


def _settled(box: Box) -> tuple[Box, Array]:
    """A box with its ends in order, and which were not, (B,).

    Nothing is in there, so any bounds hold; these keep the arithmetic well defined.
    """
    wrong = box.empty
    if not wrong.any():
        return box, wrong
    xp = array_module(wrong)
    return Box(xp.minimum(box.lower, box.upper), xp.maximum(box.lower, box.upper)), wrong


def _movers(graph: Graph, node: Node) -> list[Node]:
    """The nodes that only pick what a function of two values reads, in their order."""
    found, reads = [], set(node.inputs)
    for maker in reversed(graph.nodes):
        if maker.name in reads and isinstance(maker.op, Affine) and maker.op.picked is not None:
            found.append(maker)
            reads.update(maker.inputs)
    return found[::-1]


def _bent_factors(
    graph: Graph, node: Node, boxes: Mapping[str, Box], *, round_inputs: bool
) -> dict[str, Array]:
    """Which entries of which values backward rows may bound better than intervals do.

    They are those that a function of two values reads where it bends, or picks from: the factors of
    a product of matrices are picked many times over. What curves make follows from what these read,
    and intervals are exact for sums of the inputs.

    Returns:
        Value -> (B, n) booleans.
    """
    op = node.op
    assert isinstance(op, Bivariate)
    bends = op.bends([boxes[name] for name in node.inputs])
    if not bends.any():
        return {}
    wanted = dict.fromkeys(node.inputs, bends)
    for mover in reversed(_movers(graph, node)):
        assert isinstance(mover.op, Affine)
        picked, (source,) = wanted.pop(mover.name), mover.inputs
        entries = mover.op.transpose(picked.astype(float))[0] > 0
        wanted[source] = entries | wanted[source] if source in wanted else entries
    makers = {maker.name: maker for maker in graph.nodes}

    def behind_curve(maker: Node) -> bool:
        passed = isinstance(maker.op, Affine) and maker.op.diagonal is not None
        source = makers.get(maker.inputs[0], maker) if passed else maker
        return isinstance(source.op, Elementwise)

    return {
        name: entries
        for name, entries in wanted.items()
        if name in makers
        and not behind_curve(makers[name])
        and (round_inputs or makers[name].inputs != (graph.input,))
    }


def _refine_factors(
    relaxation: Relaxation, node: Node, boxes: dict[str, Box], expired: Callable[[], bool]
) -> Array:
    """Better bounds of what a function of two values reads; which sets they show empty, (B,)."""
    graph, box = relaxation.graph, relaxation.box
    empty = array_module(box.lower).zeros(len(box), dtype=bool)
    wanted = _bent_factors(graph, node, boxes, round_inputs=isinstance(box, Ball))
    for name, bent in wanted.items():
        known = name in graph.worthwhile  # of neurons that are unstable the rows are known
        entries = bent & ~unstable_neurons(graph, name, boxes[name]) if known else bent
        boxes[name], wrong = _settled(_refine(relaxation, name, boxes[name], entries, expired))
        empty |= wrong
    for maker in _movers(graph, node):  # what is picked of better bounds
        moved = enclose(graph, maker, boxes, relaxation.execution_unit)
        boxes[maker.name], _ = _settled(boxes[maker.name].intersect(moved))
    return empty  # type: ignore[no-any-return]


def _by_difference(relaxation: Relaxation, node: Node, boxes: Mapping[str, Box], made: Box) -> Box:
    """Bounds of a function of two values from backward bounds of a - c b, where there is such a c.

    Those of executions are as far from these as they are from what the function makes of them.
    """
    op, (first, second) = node.op, node.inputs
    assert isinstance(op, Bivariate)
    read = [boxes[first], boxes[second]]
    center = op.center(read, made)
    xp = array_module(center)
    wanted = (center != 0) & (first != second)
    if not wanted.any():
        return made
    lower, upper = xp.full(center.shape, -xp.inf), xp.full(center.shape, xp.inf)
    graph = relaxation.graph
    order = _Rows(node.name, lower, upper, wanted, center).order(None)
    step = max(1, CHUNK_NUMBERS // (max(graph.sizes.values()) * len(center)))
    each = xp.arange(len(center))[:, None]
    for start in range(0, order.shape[1], step):
        index = order[:, start : start + step]
        slopes = xp.take_along_axis(center, index, axis=1)
        lower[each, index] = pull_differences(relaxation, (first, second), index, slopes, 1.0)
        upper[each, index] = -pull_differences(relaxation, (first, second), index, slopes, -1.0)
    found = op.from_difference(read, center, Box(lower, upper))
    error = execution_error(graph, node, boxes, relaxation.execution_unit)
    if error is not None:
        error = error + 2.0 * UNIT_ROUNDOFF * (found.magnitude + error)
        found = Box(found.lower - error, found.upper + error).defined()
    return Box(xp.where(wanted, found.lower, -xp.inf), xp.where(wanted, found.upper, xp.inf))


def _refine(
    relaxation: Relaxation,
    name: str,
    box: Box,
    unstable: Array,
    expired: Callable[[], bool],
    *,
    middle: Array | None = None,
    layered: Layered | None = None,
) -> Box:
    """Intersect with backward bounds where a neuron is unstable.

    Args:
        middle: values (B, n) at some input. Of a neuron that is stable they tell on which side, and
            the bound that shows it comes first; then the other one is left. None for both.
        layered: see `crown_bounds`.
    """
    xp = array_module(box.lower)
    sign = xp.ones(box.lower.shape) if middle is None else xp.where(middle > 0, 1.0, -1.0)
    box = _refine_side(relaxation, name, box, unstable, sign, expired, layered)
    if middle is not None:
        unstable = unstable & unstable_neurons(relaxation.graph, name, box)
    return _refine_side(relaxation, name, box, unstable, -sign, expired, layered)


def _refine_side(
    relaxation: Relaxation,
    name: str,
    box: Box,
    wanted: Array,
    sign: Array,
    expired: Callable[[], bool],
    layered: Layered | None,
) -> Box:
    """Intersect with one backward bound of each neuron that is ``wanted`` (B, n): the lower one
    where its sign (B, n) is 1, the upper one where it is -1."""
    graph = relaxation.graph
    if not wanted.any() or expired():
        return box
    patch = None if relaxation.left_out else find_patch(graph, name, box.lower)
    if patch is None:
        rows = _Rows(name, box.lower.copy(), box.upper.copy(), wanted, sign)
        if layered is not None and layered.covers(name, relaxation):
            rows = replace(rows, pull=layered.pull_back_units)
        order = rows.order(graph.ranks[name])
        widest = max(graph.sizes.values())
        rows.refine(lambda members: subset(relaxation, members), order, widest, expired)
        return Box(rows.lower, rows.upper)

    def at(members: Array) -> Relaxation:
        return patch.view(members // places, members % places).relaxation(relaxation)

    vectors = (box.lower, box.upper, wanted, sign)
    lower, upper, wanted, sign = (patch.by_position(vector) for vector in vectors)
    rows = _Rows(name, lower, upper, wanted, sign)
    places = len(rows.wanted) // len(box)
    rows.refine(at, rows.order(None), max(patch.graph.sizes.values()), expired)
    return Box(patch.by_neuron(rows.lower), patch.by_neuron(rows.upper))


@dataclass(frozen=True)
class _Rows:
    """Bounds of one value over subproblems, or over the positions of all subproblems, (B, n).

    Attributes:
        start: the value.
        lower, upper: its bounds, changed in place.
        wanted: which neurons are to be refined.
        sign: of which bound, 1 for the lower and -1 for the upper one.
        pull: bounds rows, as `onnxcert.bounds.backward.pull_back_units` does.
    """

    start: str
    lower: Array
    upper: Array
    wanted: Array
    sign: Array
    pull: Callable[[Relaxation, str, Array, Array], Array] = pull_back_units

    def order(self, rank: Array | None) -> Array:
        """Numbers of neurons, (B, K): wanted ones first, near ones together.

        Shorter subproblems are padded with other neurons, which does no harm.
        """
        xp = array_module(self.wanted)
        near = xp.arange(self.wanted.shape[1]) if rank is None else xp.argsort(rank)
        most = int(self.wanted.sum(axis=1).max())
        order = xp.argsort(~self.wanted[:, near], axis=1, kind="stable")[:, :most]
        return near[order]  # type: ignore[no-any-return]

    def refine(
        self,
        part: Callable[[Array], Relaxation],
        order: Array,
        widest: int,
        expired: Callable[[], bool],
    ) -> None:
        """Refine block by block; ``part`` gives the relaxation of some subproblems."""
        for members, width in _groups(self.wanted.sum(axis=1), widest):
            relaxation = part(members)
            step = max(1, CHUNK_NUMBERS // (widest * len(members)), LEAST_ROWS // len(members))
            for start in range(0, width, step):
                if expired():
                    return
                index = order[members, start : min(start + step, width)]
                self._refine_some(relaxation, members, index)

    def _refine_some(self, relaxation: Relaxation, members: Array, index: Array) -> None:
        xp = array_module(index)
        here = members[:, None], index
        sign = self.sign[here]
        found = sign * self.pull(relaxation, self.start, index, sign)
        # What padding would tighten must not depend on which subproblems share a batch: a
        # proof is repeated in other batches.
        wanted = self.wanted[here]
        sides = (self.lower, xp.maximum, sign > 0), (self.upper, xp.minimum, sign < 0)
        for target, choose, this in sides:
            old = target[here]
            target[here] = xp.where(wanted & this, choose(old, found), old)


def _groups(counts: Array, widest: int) -> Iterator[tuple[Array, int]]:
    """Subproblems with about as many unstable neurons: their numbers, and the most neurons.

    A group has a block of rows that fits the budget. Once that is large enough to be worth a pass,
    those with less than half as many neurons are left to the next one; all in one group stay in
    their order.
    """
    xp = array_module(counts)
    order = xp.argsort(-counts, kind="stable")
    ordered = counts[order]
    end, start = int((counts > 0).sum()), 0
    while start < end:
        width = int(ordered[start])
        size = max(1, _BATCH_NUMBERS // (widest * width))
        alike = int((ordered > width // 2).sum()) - start
        size = min(size, max(alike, _LEAST_NUMBERS // (widest * width)), end - start)
        members = order[start : start + size]
        yield (xp.sort(members) if size == len(counts) else members), width
        start += size


def subset(relaxation: Relaxation, index: Array) -> Relaxation:
    """The relaxation of some subproblems."""
    if len(index) == len(relaxation.box):
        return relaxation

    def taken(vectors: dict[str, Array]) -> dict[str, Array]:
        return {n: v if v.ndim == 1 or len(v) == 1 else v[index] for n, v in vectors.items()}

    box = relaxation.box
    curves = {
        name: Curve(c.mean[index], c.half[index], c.mean_offset[index], c.half_offset[index])
        for name, c in relaxation.curves.items()
    }
    return replace(
        relaxation,
        box=box.take(index),
        curves=curves,
        fixed={name: some.take(index) for name, some in relaxation.fixed.items()},
        fixed_inputs={name: some.take(index) for name, some in relaxation.fixed_inputs.items()},
        surfaces={name: some.take(index) for name, some in relaxation.surfaces.items()},
        errors=taken(relaxation.errors),
        sums=taken(relaxation.sums),
        _at_start=taken(relaxation._at_start),
    )


def output_bounds(graph: Graph, bounds: Bounds) -> Box:
    """Backward bounds of every output, intersected with the interval bounds."""
    box = bounds.boxes[graph.output]
    if graph.output == graph.input:
        return box
    xp = array_module(box.lower)
    count = len(box)
    widest = max(graph.sizes.values())
    step = max(1, CHUNK_NUMBERS // (widest * count))
    sides = []
    for sign in (1.0, -1.0):
        parts = []
        for start in range(0, graph.output_size, step):
            numbers = xp.arange(start, min(start + step, graph.output_size))
            index = xp.broadcast_to(numbers, (count, len(numbers)))
            parts.append(sign * pull_back_units(bounds.relaxation, graph.output, index, sign))
        sides.append(xp.concatenate(parts, axis=1))
    return box.intersect(Box(*sides))
