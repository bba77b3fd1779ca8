"""Hypothesis strategies: operators, boxes with awkward ends, points in them, random networks.

Networks are drawn by a seeded generator rather than entry by entry: hypothesis shrinks the choices
that shape a network (its layers, sizes and seed), which is what a reader of a failure wants.
"""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from onnxcert.arrays import Array, Window
from onnxcert.graph import Graph, Node
from onnxcert.ops import (
    OPERATORS,
    Absolute,
    Affine,
    Concat,
    Convolution,
    Cos,
    Divide,
    Elementwise,
    Exp,
    Floor,
    LeakyRelu,
    Linear,
    Maximum,
    Multiply,
    Operator,
    Power,
    Relu,
    Scale,
    Select,
    Sigmoid,
    Sign,
    Sin,
    Sum,
    Tanh,
)
from onnxcert.sets import Box
from onnxcert.spec import Problem

seeds = st.integers(0, 2**32 - 1)


def operator_instances(family: type[Operator] = Operator) -> list[tuple[str, Operator]]:
    """Every example of every registered operator of a family, with a name for the test."""
    rng = np.random.default_rng(7)
    return [
        (f"{cls.__name__}-{number}", op)
        for cls in OPERATORS
        if issubclass(cls, family)
        for number, op in enumerate(cls.examples(rng))
    ]


AFFINE: list[tuple[str, Affine]] = operator_instances(Affine)
ELEMENTWISE: list[tuple[str, Elementwise]] = operator_instances(Elementwise)


def integral(op: Operator) -> Operator:
    """The operator with small whole numbers for weights, so that its arithmetic is exact."""
    changes: dict[str, Any] = {}
    for field in fields(op):  # type: ignore[arg-type]
        value = getattr(op, field.name)
        if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
            changes[field.name] = np.round(4.0 * value)
        elif isinstance(value, Operator):
            changes[field.name] = integral(value)
    return replace(op, **changes)  # type: ignore[type-var]


# Magnitudes at which formulas change their mind: kinks, one, saturation, denormal, near overflow.
_LANDMARKS = [0.0, 1.0, -1.0, 0.5, 20.0, -20.0, 750.0, 1e-12, -1e-12, 2.0**-1074, 1e-300, 1e30]


@st.composite
def intervals(draw: st.DrawFn, largest: float = 1e30) -> tuple[float, float]:
    """lower <= upper: ordinary, a point, one ulp wide, touching zero, tiny, huge or lopsided."""
    finite = st.floats(-largest, largest, allow_nan=False)
    value = st.one_of(st.floats(-3.0, 3.0), st.sampled_from(_LANDMARKS), finite)
    value = value.filter(lambda v: abs(v) <= largest)
    first = draw(value)
    kind = draw(st.sampled_from(["any", "any", "any", "point", "ulp", "zero", "symmetric"]))
    match kind:
        case "point":
            return first, first
        case "ulp":
            return first, float(np.nextafter(first, np.inf))
        case "zero":
            return min(first, 0.0), max(first, 0.0)
        case "symmetric":
            return -abs(first), abs(first)
    second = draw(value)
    return min(first, second), max(first, second)


@st.composite
def boxes(draw: st.DrawFn, size: int, batch: int = 2, largest: float = 1e30) -> Box:
    """A batch of boxes whose sides come from a handful of intervals."""
    sides = np.array(draw(st.lists(intervals(largest), min_size=1, max_size=6)))
    chosen = np.random.default_rng(draw(seeds)).integers(len(sides), size=(batch, size))
    lower, upper = sides[chosen].transpose(2, 0, 1)
    return Box(lower, upper)


@st.composite
def points_in(draw: st.DrawFn, box: Box, count: int = 3) -> Array:
    """(count, B, n) points of the boxes: ends, middles, zero where it is inside, and in between."""
    shares = st.sampled_from([0.0, 1.0, 0.5, -1.0]) | st.floats(0.0, 1.0)
    share = np.array(draw(st.lists(shares, min_size=count, max_size=count)))
    rng = np.random.default_rng(draw(seeds))
    share = np.where(
        rng.random((count, *box.lower.shape)) < 0.5, share[:, None, None], rng.random()
    )
    middle = box.lower * (1.0 - share) + box.upper * share
    middle = np.where(share < 0, 0.0, middle)
    return np.clip(middle, box.lower, box.upper)


_PIECEWISE_LINEAR = ("relu", "relu", "leaky", "abs")
_ALL_CURVES = (*_PIECEWISE_LINEAR, "sigmoid", "tanh", "sign", "exp", "sin", "cos")

_STEEP_NODES = 2
"""Powers, products and quotients in one network; more of them overflow on wide boxes."""


class _Growing:
    """A network under construction: appends nodes that read values made before."""

    def __init__(self, rng: np.random.Generator, inputs: int, weights: str) -> None:
        self.rng = rng
        self.nodes: list[Node] = []
        self.sizes = {"x": inputs}
        self.kind = weights

    @property
    def may_bend(self) -> bool:
        """Whether another power, product or quotient is small enough."""
        steep = [node for node in self.nodes if isinstance(node.op, Power | Multiply | Divide)]
        return self.kind != "wild" and len(steep) < _STEEP_NODES

    def add(self, op: Operator, *inputs: str) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs))
        self.sizes[name] = op.output_size
        return name

    def weights(self, *shape: int) -> Array:
        values = self.rng.normal(size=shape)
        if self.kind == "any":
            return values
        values = np.round(4.0 * values) / 4.0
        if self.kind == "wild":
            values *= 2.0 ** self.rng.choice([0, 0, 0, 40, 60, -60], size=shape)
        return values

    def any_value(self) -> str:
        return str(self.rng.choice(list(self.sizes)))

    def linear(self, source: str, width: int) -> str:
        offset = self.weights(width) if self.rng.random() < 0.8 else None
        return self.add(Linear(self.weights(self.sizes[source], width), offset), source)

    def curve(self, kind: str, source: str) -> str:
        size = self.sizes[source]
        slope = self.rng.choice([0.01, 0.25, -0.5, 1.5], size=size)
        op: Elementwise = {
            "relu": Relu(size),
            "leaky": LeakyRelu(size, slope),
            "abs": Absolute(size),
            "sigmoid": Sigmoid(size),
            "tanh": Tanh(size),
            "sign": Sign(size),
            "floor": Floor(size),
            "exp": Exp(size),
            "sin": Sin(size),
            "cos": Cos(size),
        }[kind]
        if kind == "exp":  # of numbers whose exponential is one
            source = self.add(Tanh(size), source)
        return self.add(op, source)

    def convolution(self) -> str:
        """Two channels of 5 x 5 pixels, spread over the image from any value, then a window."""
        source = self.any_value()
        if self.sizes[source] != 50:
            index = self.rng.integers(self.sizes[source], size=50)
            source = self.add(Select.of(index, self.sizes[source]), source)
        window = Window((2, 5, 5), (3, 3), padding=(1, 1, 1, 1))
        offset = self.weights(2) if self.rng.random() < 0.5 else None
        return self.add(Convolution(self.weights(1, 2, 18), window, offset), source)

    def pair(self) -> tuple[str, str]:
        """Two values of one length; a linear map is added where they differ."""
        first, second = self.any_value(), self.any_value()
        if self.sizes[first] != self.sizes[second]:
            second = self.linear(second, self.sizes[first])
        return first, second

    def positive(self, source: str) -> str:
        """Something positive of a value: |x| + 1/2."""
        size = self.sizes[source]
        return self.add(Scale(size, None, np.full(size, 0.5)), self.add(Absolute(size), source))

    def matrices(self, first: str, second: str) -> None:
        """A product of small matrices whose entries are those of two values."""
        groups, rows, columns, depth = (int(n) for n in self.rng.integers(1, 3, size=4))
        left = self.rng.integers(self.sizes[first], size=(groups, rows, 1, depth))
        right = self.rng.integers(self.sizes[second], size=(groups, 1, columns, depth))
        shape = groups, rows, columns, depth
        pairs = [
            self.add(Select.of(np.broadcast_to(index, shape).ravel(), self.sizes[source]), source)
            for source, index in ((first, left), (second, right))
        ]
        product = self.add(Multiply(groups * rows * columns * depth), *pairs)
        factor = float(self.rng.choice([1.0, -0.75]))
        offset = self.weights(1) if self.rng.random() < 0.5 else None
        self.add(Linear(np.full((depth, 1), factor), offset, groups * rows * columns), product)

    def bend(self, kind: str) -> None:
        """A power, product or quotient; a share is a part of a sum over that."""
        first, second = self.pair()
        size = self.sizes[first]
        if kind == "matrices":
            self.matrices(first, second)
        elif kind == "power":
            self.add(Power(size, int(self.rng.integers(2, 5))), first)
        elif kind == "product":
            self.add(Multiply(size), first, second)
        elif kind == "quotient":
            self.add(Divide(size), first, self.positive(second))
        else:
            part = self.positive(first)
            total = self.add(Linear(np.ones((size, 1))), part)
            whole = self.add(Select.of(np.zeros(size, int), 1), total)
            self.add(Divide(size), part, whole)

    def grow(self, kind: str, curves: tuple[str, ...]) -> None:
        match kind:
            case "linear":
                self.linear(self.any_value(), int(self.rng.integers(1, 4)))
            case "scale":
                source = self.any_value()
                size = self.sizes[source]
                self.add(Scale(size, self.weights(size), self.weights(size)), source)
            case "select":
                source = self.any_value()
                index = self.rng.integers(-1, self.sizes[source], size=3)
                self.add(Select.of(index, self.sizes[source], fill=0.5), source)
            case "convolution":
                self.convolution()
            case "curve":
                self.curve(str(self.rng.choice(curves)), self.any_value())
            case "dense":
                source = self.linear(self.any_value(), int(self.rng.integers(1, 4)))
                self.curve(str(self.rng.choice(curves)), source)
            case "sum":
                first, second = self.pair()
                signs = (1, int(self.rng.choice([-1, 1])))
                self.add(Sum(self.sizes[first], signs), first, second)
            case "twice":
                source = self.any_value()
                self.add(Sum(self.sizes[source], (1, 1)), source, source)
            case "concat":
                first, second = self.any_value(), self.any_value()
                if self.sizes[first] + self.sizes[second] <= 6:
                    self.add(Concat((self.sizes[first], self.sizes[second])), first, second)
            case "power" | "product" | "quotient" | "share" | "matrices":
                if self.may_bend:
                    self.bend(kind)
            case "maximum":
                first, second = self.pair()
                size = self.sizes[first]
                difference = self.add(Sum(size, (1, -1)), first, second)
                positive = self.add(Relu(size), difference)
                self.add(Maximum(size), first, second, positive)


LAYERS = (
    "dense",
    "dense",
    "linear",
    "scale",
    "select",
    "curve",
    "sum",
    "twice",
    "concat",
    "maximum",
)


STEEP = ("power", "product", "quotient", "share", "matrices")
"""Layers of powers, products (of matrices, too) and quotients."""


@st.composite
def graphs(
    draw: st.DrawFn,
    *,
    smooth: bool = False,
    layers: tuple[str, ...] = LAYERS,
    curves: tuple[str, ...] = _PIECEWISE_LINEAR,
    largest: int = 7,
) -> Graph:
    """Any small network: residual sums, maxima, values read twice, values read by nobody.

    Args:
        smooth: also sigmoid, tanh, sign, waves, exponentials of tanh, powers, products, quotients.
        layers: the kinds of layers to choose from.
        curves: the curves to choose from, unless ``smooth``.
        largest: the number of layers at most.

    Weights are ordinary, or short binary fractions (so that values meet kinks exactly), or such
    fractions times powers of two up to 2^60 (so that sums cancel and rounding is all that is left).
    """
    layers = (*layers, *STEEP) if smooth else layers
    kinds = draw(st.lists(st.sampled_from(layers), min_size=1, max_size=largest))
    inputs = draw(st.integers(1, 3))
    weights = draw(st.sampled_from(["any", "dyadic", "wild"]))
    growing = _Growing(np.random.default_rng(draw(seeds)), inputs, weights)
    for kind in kinds:
        growing.grow(kind, _ALL_CURVES if smooth else curves)
    if not growing.nodes:
        growing.linear("x", 2)
    return Graph("x", inputs, tuple(growing.nodes), growing.nodes[-1].name)


def ordinary_graph(seed: int, layers: tuple[str, ...], curves: tuple[str, ...]) -> Graph:
    """A network of up to seven layers whose weights are all of size one."""
    rng = np.random.default_rng(seed)
    growing = _Growing(rng, 3, "any")
    for kind in rng.choice(layers, size=rng.integers(2, 8)):
        growing.grow(str(kind), curves)
    if not growing.nodes:
        growing.linear("x", 2)
    return Graph("x", 3, tuple(growing.nodes), growing.nodes[-1].name)


Row = tuple[list[float], float] | tuple[list[float], float, bool]
"""Coefficients over the output, offset, whether it is strict: ``row . y + offset <= 0``."""


def make_problem(
    boxes: list[tuple[list[float], list[float]]],
    cases: list[tuple[int, list[Row]]],
    outputs: int | None = None,
) -> Problem:
    """A problem from its boxes and, per case, the number of its box and its rows.

    The number of outputs must be given if no case has a row.
    """
    rows = [row for _, conjunction in cases for row in conjunction]
    width = max(len(conjunction) for _, conjunction in cases)
    numbers = np.full((len(cases), width), -1)
    first = 0
    for k, (_, conjunction) in enumerate(cases):
        numbers[k, : len(conjunction)] = np.arange(first, first + len(conjunction))
        first += len(conjunction)
    lower, upper = (np.array([box[side] for box in boxes], dtype=float) for side in (0, 1))
    size = len(rows[0][0]) if rows else outputs or 0
    return Problem(
        lower,
        upper,
        np.array([row[0] for row in rows], dtype=float).reshape(len(rows), size),
        None,
        np.array([row[1] for row in rows], dtype=float),
        np.array([len(row) > 2 and row[2] for row in rows], dtype=bool),
        np.array([box for box, _ in cases]),
        numbers,
        np.arange(len(cases)),
        lower,
        upper,
        lambda box, i: (Fraction(lower[box, i]), Fraction(upper[box, i])),
    )


def relu_network(rng: np.random.Generator, sizes: list[int]) -> Graph:
    """A fully connected network with relus between the layers."""
    growing = _Growing(rng, sizes[0], "dyadic")
    value = "x"
    for number, width in enumerate(sizes[1:]):
        value = (
            growing.linear(value, width)
            if number == 0
            else growing.linear(growing.curve("relu", value), width)
        )
    return Graph("x", sizes[0], tuple(growing.nodes), value)
