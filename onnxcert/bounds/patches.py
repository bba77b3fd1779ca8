"""Patches: the part of a convolutional network that the neurons of one position depend on.

A neuron of an early layer sees a small window of each layer before, and the same convolutions act
in the window of every position. So backward rows of one layer need not run over whole images: with
a position in the place of a subproblem they run over a small network without padding, whose lines
and rounding vectors are picked from those of the whole. (Patches of rows are those of auto_LiRPA:
Xu et al., *Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond*, 2020.
Here all that a pass or an ascent needs is local, so neither of them knows about patches.)

Where a window sticks out of an image there are no neurons. Picked vectors are zero there, so that
rows end there: a line with slope and offset zero is what padding means. Therefore every value that
is read through a window must be the input or come from a curve; a node that scales each entry
becomes a curve whose two lines are one. Networks in which it is otherwise have no patches.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcert.arrays import Array, Device, Window, array_module
from onnxcert.bounds.backward import SLACK, Curve, Relaxation
from onnxcert.bounds.optimised import FreeCurve, FreeRelaxation
from onnxcert.graph import Graph, Node
from onnxcert.ops import Relu, Select
from onnxcert.ops.base import Affine, Elementwise, Operator
from onnxcert.sets import Box

_WORTHWHILE = 0.7
"""Patches are used where their passes take less than this share of the work of whole images."""

_PASSES = 16
"""Work per entry of a value beside its products, in products."""

Pair = tuple[int, int]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Rectangle:
    """The pixels of a value that position (y, x) needs, per axis ``step * y + start`` onwards."""

    step: Pair
    start: Pair
    size: Pair

    def join(self, other: Rectangle) -> Rectangle | None:
        """The smallest one round both, or None where they do not move alike."""
        if self.step != other.step:
            return None
        begin = [min(a, b) for a, b in zip(self.start, other.start, strict=True)]
        ends = [
            max(a + n, b + m)
            for a, n, b, m in zip(self.start, self.size, other.start, other.size, strict=True)
        ]
        size = (ends[0] - begin[0], ends[1] - begin[1])
        return Rectangle(self.step, (begin[0], begin[1]), size)

    def behind(self, window: Window) -> Rectangle:
        """What a convolution reads for these pixels of its output."""
        axes = range(2)
        step = [self.step[a] * window.stride[a] for a in axes]
        start = [self.start[a] * window.stride[a] - window.padding[a] for a in axes]
        size = [
            (self.size[a] - 1) * window.stride[a] + window.dilation[a] * (window.kernel[a] - 1) + 1
            for a in axes
        ]
        return Rectangle((step[0], step[1]), (start[0], start[1]), (size[0], size[1]))


@dataclass(frozen=True, eq=False)
class Patch:
    """What the neurons of one position of a pre-activation depend on.

    Attributes:
        graph: the network that they see; its output is the target, with one entry per channel.
        shapes: value -> (channels, height, width) in the whole network.
        rectangles: value -> what of it the patch holds.
    """

    graph: Graph
    shapes: Mapping[str, Shape]
    rectangles: Mapping[str, Rectangle]

    @property
    def target(self) -> str:
        """The pre-activation."""
        return self.graph.output

    def by_position(self, values: Array) -> Array:
        """Vectors (B, n) over the target as (B x positions, channels)."""
        channels = self.shapes[self.target][0]
        split = values.reshape(len(values), channels, -1)
        return split.transpose(0, 2, 1).reshape(-1, channels)

    def by_neuron(self, values: Array) -> Array:
        """The inverse of `by_position`."""
        channels, height, width = self.shapes[self.target]
        split = values.reshape(-1, height * width, channels)
        return split.transpose(0, 2, 1).reshape(len(split), -1)

    def view(self, subproblems: Array | None, positions: Array) -> View:
        """The patches of positions (P,) in subproblems (P,), or in the only one."""
        return View(self, subproblems, positions)


@dataclass(frozen=True, eq=False)
class View:
    """The same patch at several places."""

    patch: Patch
    subproblems: Array | None
    positions: Array
    _numbers: dict[str, Array] = field(default_factory=dict)

    def numbers(self, name: str) -> Array:
        """(P, m): numbers of a value's entries in the patches, n for those outside the image."""
        if name not in self._numbers:
            xp = array_module(self.positions)
            channels, height, width = self.patch.shapes[name]
            where = self.patch.rectangles[name]
            places = xp.divmod(self.positions, self.patch.shapes[self.patch.target][2])
            pixels, inside = [], []
            for axis, end in enumerate((height, width)):
                pixel = where.step[axis] * places[axis][:, None] + where.start[axis]
                pixel = pixel + xp.arange(where.size[axis])
                pixels.append(pixel)
                inside.append((pixel >= 0) & (pixel < end))
            pixel = pixels[0][:, :, None] * width + pixels[1][:, None]
            there = inside[0][:, :, None] & inside[1][:, None]
            number = pixel[:, None] + height * width * xp.arange(channels)[:, None, None]
            number = xp.where(there[:, None], number, channels * height * width)
            self._numbers[name] = number.reshape(len(number), -1)
        return self._numbers[name]

    def pick(self, name: str, vector: Array) -> Array:
        """Entries of vectors (B, n) or (1, n) over a value: (P, m), zero outside the image."""
        xp = array_module(vector)
        numbers = self.numbers(name)
        size = vector.shape[-1]
        vector = vector.reshape(-1, size)
        padded = xp.zeros((len(vector), size + 1), dtype=vector.dtype)
        padded[:, :size] = vector
        if len(vector) > 1:
            assert self.subproblems is not None
            numbers = numbers + (size + 1) * self.subproblems[:, None]
        return padded.ravel()[numbers]  # type: ignore[no-any-return]

    def box(self, name: str, box: Box) -> Box:
        """The part of a box; of an ellipsoid, which casts one as its shadow."""
        return box.map(lambda side: self.pick(name, side))

    def relaxation(self, whole: Relaxation) -> Relaxation:
        """The relaxation of the patches, one subproblem each."""
        graph, target = self.patch.graph, self.patch.target
        result = Relaxation(graph, self.box(graph.input, whole.box), whole.execution_unit)
        for node in graph.nodes:
            if isinstance(node.op, Elementwise):
                result.curves[node.name] = self._curve(node.name, whole)
            elif node.name in whole.errors:
                result.errors[node.name] = self.pick(node.name, whole.errors[node.name])
        result.sums = {
            name: self.pick(name, vector)
            for name, vector in whole.sums.items()
            if name in self.patch.rectangles
        }
        error = whole.error_of(target)
        if error is not None:
            result.set_error(target, self.pick(target, error))
        return result

    def _curve(self, name: str, whole: Relaxation) -> Curve:
        if name in whole.curves:
            return self.curve(name, whole.curves[name])
        op = next(node.op for node in whole.graph.nodes if node.name == name)
        assert isinstance(op, Affine)
        assert op.diagonal is not None
        factor, offset = op.diagonal
        zero = array_module(factor).zeros_like(factor)
        error = SLACK * whole.errors[name] if name in whole.errors else zero
        return self.curve(name, Curve(factor, zero, offset, error))

    def curve(self, name: str, curve: Curve) -> Curve:
        """The part of the lines of a node."""
        parts = (curve.mean, curve.half, curve.mean_offset, curve.half_offset)
        return Curve(*(self.pick(name, part) for part in parts))

    def turns(self, whole: FreeRelaxation) -> bool:
        """Whether all free lines turn round a fixed point; others have no part of their own."""
        lines = (whole.free.get(node.name) for node in self.patch.graph.nodes)
        return all(line is None or isinstance(line, FreeCurve) for line in lines)

    def free_relaxation(self, whole: FreeRelaxation) -> FreeRelaxation:
        """The free relaxation of the patches, of lines that turn."""
        result = FreeRelaxation(self.relaxation(whole.relaxation))
        for node in self.patch.graph.nodes:
            line = whole.free.get(node.name)
            if not isinstance(line, FreeCurve):
                continue
            result.free[node.name] = FreeCurve(
                self.curve(node.name, line.curve),
                self.pick(node.name, line.mean_step),
                self.pick(node.name, line.half_step),
            )
            result.default[node.name] = self.pick(node.name, whole.default[node.name])
        return result


_KNOWN: dict[int, dict[str, Patch | None]] = {}
"""Patches by the identity of a living graph, and target: a graph holds arrays and has no hash."""


def find_patch(graph: Graph, target: str, like: Array) -> Patch | None:
    """The patch of a pre-activation where there is one and it saves work; else None.

    ``like`` is any array of the device that the graph lives on.
    """
    if id(graph) not in _KNOWN:
        _KNOWN[id(graph)] = {}
        weakref.finalize(graph, _KNOWN.pop, id(graph), None)
    known = _KNOWN[id(graph)]
    if target not in known:
        known[target] = _find(graph, target, array_module(like) is np)
    return known[target]


def _find(graph: Graph, target: str, host: bool) -> Patch | None:
    shapes = _shapes(graph, target)
    if shapes is None:
        return None
    rectangles = _rectangles(graph, target)
    if rectangles is None or graph.input not in rectangles:
        return None
    path = [node for node in graph.nodes if node.name in rectangles]
    taken = {node.name for node in graph.nodes}
    nodes: list[Node] = []
    for node in path:
        nodes += _local(node, shapes, rectangles, taken)
    size = _entries(shapes, rectangles, graph.input)
    whole = _work(path) + _PASSES * graph.input_size
    if _work(nodes) + _PASSES * size > _WORTHWHILE * whole:
        return None
    patch = Graph(graph.input, size, tuple(nodes), target)
    if not host:  # the crops are new; all other arrays lie there already
        patch = patch.to(Device("cuda"))
    return Patch(patch, shapes, rectangles)


def _behind(graph: Graph, target: str) -> set[str]:
    """Values that the target depends on, and itself."""
    found = {target}
    for node in reversed(graph.nodes):
        if node.name in found:
            found.update(node.inputs)
    return found


def _shapes(graph: Graph, target: str) -> dict[str, Shape] | None:
    """Images on the way to the target; None where something is no image or has no patches."""
    needed = _behind(graph, target)
    path = [node for node in graph.nodes if node.name in needed]
    curves = {graph.input} | {node.name for node in path if _acts_as_curve(node)}
    shapes: dict[str, Shape] = {}
    for node in path:
        window = _window(node)
        if window is not None:
            if node.inputs[0] not in curves:
                return None
            shapes[node.name] = _output_shape(node, window)
            shapes.setdefault(node.inputs[0], window.image)
        elif not _acts_as_curve(node) and _resized(node, 1) is None:
            return None
    # What acts entry by entry passes shapes on, to what it makes and to what it reads.
    alike = [(*node.inputs, node.name) for node in path if _window(node) is None]
    for names in alike + alike[::-1]:
        known = next((shapes[name] for name in names if name in shapes), None)
        if known is not None:
            shapes |= {name: known for name in names if name not in shapes}
    windows = [(node.inputs[0], _window(node)) for node in path]
    fit = all(window is None or shapes[name] == window.image for name, window in windows)
    equal = all(len({shapes.get(name) for name in names}) == 1 for names in alike)
    return shapes if fit and equal and needed <= shapes.keys() else None


def _window(node: Node) -> Window | None:
    return node.op.sliding if isinstance(node.op, Affine) else None


def _resized(node: Node, size: int) -> Affine | None:
    return node.op.resized(size) if isinstance(node.op, Affine) else None


def _acts_as_curve(node: Node) -> bool:
    return isinstance(node.op, Elementwise) or (
        isinstance(node.op, Affine) and node.op.diagonal is not None
    )


def _output_shape(node: Node, window: Window) -> Shape:
    height, width = window.positions
    return node.op.output_size // (height * width), height, width


def _rectangles(graph: Graph, target: str) -> dict[str, Rectangle] | None:
    """What each value must hold for all its readers."""
    result = {target: Rectangle((1, 1), (0, 0), (1, 1))}
    for node in reversed(graph.nodes):
        if node.name not in result:
            continue
        need = result[node.name]
        window = _window(node)
        if window is not None:
            need = need.behind(window)
        for name in node.inputs:
            joined = need if name not in result else result[name].join(need)
            if joined is None:
                return None
            result[name] = joined
    return result


def _entries(shapes: Mapping[str, Shape], rectangles: Mapping[str, Rectangle], name: str) -> int:
    rows, columns = rectangles[name].size
    return shapes[name][0] * rows * columns


def _local(
    node: Node,
    shapes: Mapping[str, Shape],
    rectangles: Mapping[str, Rectangle],
    taken: set[str],
) -> list[Node]:
    """The node in the patch, after crops of what holds more than it reads."""
    need, window = rectangles[node.name], _window(node)
    if window is not None:
        need = need.behind(window)
    nodes, inputs = [], []
    for slot, name in enumerate(node.inputs):
        if need == rectangles[name]:
            inputs.append(name)
            continue
        crop = f"{node.name}/crop{slot}"
        while crop in taken:
            crop += "'"
        nodes.append(Node(crop, _crop(shapes[name][0], rectangles[name], need), (name,)))
        inputs.append(crop)
    size = _entries(shapes, rectangles, node.name)
    op: Operator | None = _resized(node, size)
    if window is not None:
        assert isinstance(node.op, Affine)
        image = (window.image[0], *need.size)
        op = node.op.over(Window(image, window.kernel, window.stride, window.dilation))
    # Which curve it is does not matter: its lines are picked from those of the whole.
    nodes.append(Node(node.name, op or Relu(size), tuple(inputs)))
    return nodes


def _crop(channels: int, whole: Rectangle, part: Rectangle) -> Select:
    numbers = np.arange(channels * whole.size[0] * whole.size[1]).reshape(channels, *whole.size)
    top, left = (a - b for a, b in zip(part.start, whole.start, strict=True))
    chosen = numbers[:, top : top + part.size[0], left : left + part.size[1]]
    return Select.of(chosen.ravel(), numbers.size)


def _work(nodes: list[Node]) -> int:
    """Products of one backward row, and passes over its entries."""
    total = 0
    for node in nodes:
        total += _PASSES * node.op.output_size
        if _window(node) is not None:
            total += node.op.output_size * node.op.error_terms
    return total
