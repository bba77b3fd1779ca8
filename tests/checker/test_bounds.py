"""The checker's bounds against exact arithmetic: lines of curves, boxes, forms, paths, executions.

Values are rationals; smooth curves have fifty digits. There is no tolerance anywhere.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import helper

from onnxcert.checker import curves, forward
from onnxcert.checker.bounds import Bounder
from onnxcert.checker.certificate import EXECUTED, REAL
from onnxcert.checker.coefficients import Tally
from onnxcert.checker.errors import Expired
from onnxcert.checker.network import Curve, Pair
from onnxcert.checker.trees import Refusal
from onnxcert.frontend.onnx import load_model
from onnxcert.ops import Cos, Exp, Sigmoid, Sin, Tanh
from onnxcert.sets import Box
from tests.bounds.executions import Execution
from tests.checker.makers import ACCEPTED, Instance, by_hand, coarse, dense, lattice, spec, tables
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_curve as known_curve
from tests.oracles import extended

KINKED = ["relu", "leaky", "abs", "sign", "floor"]
SMOOTH = ["sigmoid", "tanh"]
WAVES = ["exp", "sin", "cos"]
_DIGITS = decimal.Context(prec=60, Emin=-(10**9), Emax=10**9)


def exact_tanh(x: Fraction) -> Fraction:
    """Fifty digits and more; near zero, and where nothing is left to one, by series."""
    if abs(x) < Fraction(1, 10**20):
        return x - x**3 / 3
    if abs(x) > 10**4:
        return Fraction(1 if x > 0 else -1)  # off by less than any float
    with decimal.localcontext(_DIGITS):
        power = (-2 * decimal.Decimal(abs(x).numerator) / abs(x).denominator).exp()
        value = Fraction((1 - power) / (1 + power))
    return value if x > 0 else -value


def exact_curve(kind: str, x: Fraction, slope: float = 0.0) -> Fraction:
    """f(x)."""
    if kind == "tanh":
        return exact_tanh(x)
    if kind == "sigmoid":
        return (1 + exact_tanh(x / 2)) / 2
    if kind in WAVES:
        (found,) = known_curve({"exp": Exp, "sin": Sin, "cos": Cos}[kind](1), [x])
        return found
    if kind == "sign":
        return Fraction((x > 0) - (x < 0))
    if kind == "floor":
        return Fraction(math.floor(x))
    if kind == "abs":
        return abs(x)
    return x if x > 0 else x * Fraction(slope)


# Lines


def _points(low: float, high: float, count: int) -> list[Fraction]:
    """Both ends, zero, neighbours of all of them, and a grid."""
    near = [low, high, 0.0, *np.nextafter([low, high, 0.0], np.inf)]
    near += np.nextafter([low, high, 0.0], -np.inf).tolist()
    found = {Fraction(float(p)) for p in near if low <= p <= high}
    a, b = Fraction(low), Fraction(high)
    return sorted(found | {a + (b - a) * Fraction(k, count) for k in range(count + 1)})


def hold(kind: str, low: float, high: float, slope: float, free: float | None, count: int) -> None:
    """Lines and interval of a curve on [low, high] hold there."""
    slope = slope if kind == "leaky" else 0.0
    z = np.array([low]), np.array([high])
    slopes = np.array([slope]) if kind == "leaky" else None
    position = None if free is None else np.array([free])
    for executed in (False, True):
        with np.errstate(all="ignore"):
            lines = curves.lines(kind, *z, slopes, position, executed)
            box = curves.interval(kind, *z, slopes, executed)
        numbers = extended([float(part[0]) for part in (*lines, *box)])
        lower_slope, lower, upper_slope, upper, least, most = numbers
        for x in _points(low, high, count):
            y = exact_curve(kind, x, slope)
            assert lower_slope * x + lower <= y <= upper_slope * x + upper, (float(x), executed)
            assert least <= y <= most, (float(x), executed)


MAGNITUDES = [
    5e-324,
    1e-300,
    1e-160,
    1e-40,
    1e-20,
    1e-8,
    1e-3,
    0.3,
    1.0,
    4.0,
    19.0,
    40.0,
    1e3,
    1e30,
]
ENDS = sorted([0.0, *MAGNITUDES, *(-m for m in MAGNITUDES)])


@pytest.mark.parametrize("free", [0.0, 0.5, 254 / 255, 1.0])
@pytest.mark.parametrize("kind", SMOOTH + WAVES)
def test_tangents_on_extreme_intervals(kind: str, free: float) -> None:
    for i, low in enumerate(ENDS):
        for high in ENDS[i:]:
            hold(kind, low, high, 0.0, free, 2)


@given(
    kind=st.sampled_from(SMOOTH + WAVES),
    ends=st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
    code=st.integers(0, 255),
)
def test_tangents_are_those_of_the_engine(kind: str, ends: tuple[float, float], code: int) -> None:
    """Otherwise no margin found by one of them would be there for the other."""
    low, high = np.array([[min(ends)]]), np.array([[max(ends)]])
    op = {"sigmoid": Sigmoid, "tanh": Tanh, "exp": Exp, "sin": Sin, "cos": Cos}[kind](1)
    for free in (None, np.array([[code / 255.0]])):
        theirs = op.relax(Box(low, high), free)
        lower_slope, lower, upper_slope, upper = curves.lines(kind, low, high, None, free, False)
        for z in (low, high):
            ours = lower_slope * z + lower, upper_slope * z + upper
            assert ours[0] == pytest.approx(theirs.lower_slope * z + theirs.lower_offset, abs=1e-5)
            assert ours[1] == pytest.approx(theirs.upper_slope * z + theirs.upper_offset, abs=1e-5)


def test_positions_move_tangents() -> None:
    """From end to end of the concave side, with NaN for the default."""
    low, high = np.array([0.5, 0.5, 0.5, -1.0, -1.0]), np.array([2.5, 2.5, 2.5, 3.0, 3.0])
    free = np.array([0.0, np.nan, 1.0, 1.0, np.nan])
    slope = curves.lines("tanh", low, high, None, free, False)[2]
    np.testing.assert_allclose(slope[:4], 1 - np.tanh([0.5, 1.5, 2.5, 3.0]) ** 2, rtol=1e-9)
    assert slope[4] == curves.lines("tanh", low, high, None, None, False)[2][4]
    assert slope[4] > slope[3]


SLOPES = [0.125, 0.3, 2.3, -0.7]
"""Of leaky curves: exact in products, rounded, concave, and with the least value at zero."""


@pytest.mark.parametrize(
    ("kind", "slope"),
    [
        (kind, slope)
        for kind in SMOOTH + WAVES + KINKED
        for slope in SLOPES[: 4 if kind == "leaky" else 1]
    ],
)
def test_lines_on_extreme_intervals(kind: str, slope: float) -> None:
    for i, low in enumerate(ENDS):
        for high in ENDS[i:]:
            hold(kind, low, high, slope, None, 4)


@pytest.mark.parametrize("slope", [-(2.0**53 + 2), -1e9 / 7, 1e9 / 7])
def test_a_free_line_is_no_steeper_than_the_curve(slope: float) -> None:
    """Steps from one slope to the other may end an ulp of the larger one beyond."""
    for free in (0.0, 0.3, np.nextafter(1, 0), 1.0):
        hold("leaky", -1.0, 1e3, slope, free, 4)


@pytest.mark.parametrize("kind", SMOOTH + KINKED)
def test_lines_on_intervals_one_unit_wide(kind: str) -> None:
    for low in ENDS:
        hold(kind, low, float(np.nextafter(low, np.inf)), 0.125, None, 2)
        hold(kind, float(np.nextafter(low, -np.inf)), low, 0.125, None, 2)


@pytest.mark.parametrize("kind", SMOOTH + WAVES)
def test_smooth_lines_on_a_dense_grid(kind: str) -> None:
    for low, high in [(-6, 6), (-1, 8), (-8, 0.5), (-3, -1), (0.5, 5), (-0.01, 0.02), (-30, 2)]:
        hold(kind, low, high, 0.0, None, 400)


FLOATS = st.floats(-50, 50) | st.sampled_from(ENDS) | st.floats(-1e-3, 1e-3)


@given(
    kind=st.sampled_from(SMOOTH + WAVES + KINKED),
    ends=st.tuples(FLOATS, FLOATS),
    slope=st.sampled_from([0.0, 0.01, 0.125, 0.5, 1.0, 1.5, 3.0, -0.25, -2.0, 1e-30, 1e6]),
    free=st.none() | st.floats(0, 1) | st.just(float("nan")),
)
@example(kind="leaky", ends=(-1.0, 2.0), slope=1.0, free=0.5)
@example(kind="leaky", ends=(-1e30, 5e-324), slope=-2.0, free=1.0)
def test_lines(kind: str, ends: tuple[float, float], slope: float, free: float | None) -> None:
    hold(kind, min(ends), max(ends), slope, free, 12)


# Bounds of every scalar


def residual(seed: int, curve: str) -> onnx.ModelProto:
    """Two layers of which the second one adds what went in, and a concatenation."""
    rng = np.random.default_rng(seed)
    constants = {
        name: (np.round(8 * rng.normal(size=shape)) / 8).astype(np.float32)
        for name, shape in {"w": (2, 3), "v": (3, 3), "u": (6, 2), "b": (3,)}.items()
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"]),
        helper.make_node(curve, ["a"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["d"]),
        helper.make_node("Relu", ["d"], ["k"]),
        helper.make_node("Concat", ["k", "h"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "u"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 2]}, ["y"], constants)


def matrices(seed: int) -> onnx.ModelProto:
    """The product of what a layer makes with what it reads, as matrices, then a layer."""
    rng = np.random.default_rng(seed)
    constants = {
        name: (np.round(8 * rng.normal(size=shape)) / 8).astype(np.float32)
        for name, shape in {"w": (2, 4), "b": (4,), "u": (4, 2)}.items()
    }
    constants |= {"square": np.array([2, 2]), "flat": np.array([1, 4])}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Reshape", ["a", "square"], ["first"]),
        helper.make_node("Reshape", ["h", "square"], ["second"]),
        helper.make_node("MatMul", ["first", "second"], ["c"]),
        helper.make_node("Reshape", ["c", "flat"], ["d"]),
        helper.make_node("Relu", ["d"], ["k"]),
        helper.make_node("MatMul", ["k", "u"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 2]}, ["y"], constants)


def random_tables(seed: int) -> onnx.ModelProto:
    """Sums of relus of one number each; of every second seed with weights and knots of their own,
    and in another order."""
    rng = np.random.default_rng(seed)
    shape = (5,) if seed % 2 else (5, 3)
    weight, knots = np.round(8 * rng.normal(size=(2, *shape))) / 8
    return tables(np.where(weight == 0, 0.5, weight), knots, rng.permutation(3))


def windows(seed: int) -> onnx.ModelProto:
    """Convolution with padding, normalisation, maxima, means."""
    rng = np.random.default_rng(seed)
    constants = {
        name: (np.round(8 * rng.normal(size=shape)) / 8).astype(np.float32)
        for name, shape in {"w": (2, 1, 2, 2), "b": (2,), "v": (2, 2)}.items()
    }
    constants["shape"] = np.array([1, 2])
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["z"], pads=[0, 1, 1, 0]),
        helper.make_node("LeakyRelu", ["z"], ["h"], alpha=0.25),
        helper.make_node("MaxPool", ["h"], ["m"], kernel_shape=[2, 1]),
        helper.make_node("AveragePool", ["m"], ["g"], kernel_shape=[1, 2]),
        helper.make_node("Reshape", ["g", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 1, 2, 2]}, ["y"], constants)


def normalised(seed: int) -> onnx.ModelProto:
    """A normalisation whose factors are rounded, and a leaky curve."""
    rng = np.random.default_rng(seed)
    constants = {name: rng.normal(size=2).astype(np.float32) for name in "sbm"}
    constants["v"] = rng.uniform(0.1, 2, size=2).astype(np.float32)
    constants["w"] = rng.normal(size=(2, 2)).astype(np.float32)
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"]),
        helper.make_node("LeakyRelu", ["n"], ["h"], alpha=0.1),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    return model_of(nodes, {"x": [1, 2]}, ["y"], constants)


EXACT_MODELS = {
    "relu": lambda seed: dense([2, 4, 3, 2], seed),
    "sigmoid": lambda seed: dense([2, 3, 3, 2], seed, curve="Sigmoid"),
    "tanh": lambda seed: dense([2, 3, 3, 2], seed, curve="Tanh"),
    "abs": lambda seed: dense([2, 3, 3, 2], seed, curve="Abs"),
    "sign": lambda seed: dense([2, 4, 3, 2], seed, curve="Sign"),
    "floor": lambda seed: dense([2, 4, 3, 2], seed, curve="Floor"),
    "leaky": lambda seed: dense([2, 3, 3, 2], seed, curve="LeakyRelu"),
    "exp": lambda seed: dense([2, 3, 2], seed, curve="Exp"),
    "sin": lambda seed: dense([2, 3, 3, 2], seed, curve="Sin"),
    "cos": lambda seed: dense([2, 3, 3, 2], seed, curve="Cos"),
    "residual": lambda seed: residual(seed, "Relu"),
    "residual_tanh": lambda seed: residual(seed, "Tanh"),
    "matrices": matrices,
    "tables": random_tables,
    "lattice": lambda seed: lattice(seed, 2),
}


def question(model: onnx.ModelProto, low: Any, high: Any, rows: Any = ()) -> Instance:
    """An instance over a box; without rows, one that nobody needs to answer."""
    rows = rows or [([1, 0], 0.0)]
    return Instance(model.SerializeToString(), spec((low, high, rows), outputs=2))


def scalars(bounder: Bounder, x: Sequence[float]) -> list[Fraction]:
    """All scalars of a network, the constant zero at the end."""
    v = np.array([Fraction(0)] * (bounder.network.size + 1), object)
    v[: len(x)] = [Fraction(float(value)) for value in x]
    for block in bounder.blocks[1:]:
        span = slice(block.start, block.start + block.size)
        if isinstance(block, Curve) and block.kind in SMOOTH + WAVES:
            v[span] = [exact_curve(block.kind, z) for z in v[block.ids]]
        else:
            v[span] = block.values(v)
    return [Fraction(value) for value in v.tolist()]


def made_always(forms: bool) -> AbstractContextManager[object]:
    """Forward forms however small a network is; never, if that is false."""
    return mock.patch.object(forward, "PER_INPUT", 0 if forms else 1000)


@st.composite
def boxes(draw: st.DrawFn, size: int) -> tuple[list[float], list[float], list[list[float]]]:
    """A box of float64 numbers, and points in it."""
    center = [draw(st.floats(-2, 2)) for _ in range(size)]
    width = draw(st.sampled_from([0.0, 1e-9, 0.01, 0.5, 2.0]))
    low = [c - width for c in center]
    high = [c + width for c in center]
    shares = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
    points = [
        [float(np.clip(a + draw(shares) * (b - a), a, b)) for a, b in zip(low, high, strict=True)]
        for _ in range(3)
    ]
    return low, high, points


@pytest.mark.parametrize("name", [*EXACT_MODELS, "windows"])
@given(data=st.data(), seed=st.integers(0, 30), backward=st.booleans(), forms=st.booleans())
def test_bounds_of_all_scalars(
    name: str, data: st.DataObject, seed: int, backward: bool, forms: bool
) -> None:
    model = windows(seed) if name == "windows" else EXACT_MODELS[name](seed)
    low, high, points = data.draw(boxes(4 if name == "windows" else 2))
    network = question(model, low, high).session.network
    for executed in (False, True):
        bounder = Bounder(network, executed=executed)
        with np.errstate(all="ignore"), made_always(forms):
            r = bounder.bound(np.array([low]), np.array([high]), backward=backward)
        assert not r.empty.any()
        for x in points:
            for value, a, b in zip(scalars(bounder, x), r.lower[0], r.upper[0], strict=True):
                assert Fraction(float(a)) <= value <= Fraction(float(b))


def test_rows_that_are_zero_everywhere() -> None:
    """No neuron of a whole layer is ever active, so that rows behind it reach nothing."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(1, 1, 3, 3)).astype(np.float32),
        "off": np.full(1, -1000, np.float32),
        "v": rng.normal(size=(256, 2)).astype(np.float32),
        "shape": np.array([1, 256]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "off"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["k"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["k", "x"], ["s"]),
        helper.make_node("Relu", ["s"], ["g"]),
        helper.make_node("Reshape", ["g", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "v"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 1, 16, 16]}, ["y"], constants)
    low, high = rng.uniform(-1.0, 0.0, size=(1, 256)), rng.uniform(0.0, 1.0, size=(1, 256))
    network = question(model, low[0], high[0]).session.network
    bounder = Bounder(network, executed=False)
    r = bounder.bound(low, high)
    x = rng.uniform(low[0], high[0])
    for value, a, b in zip(scalars(bounder, x), r.lower[0], r.upper[0], strict=True):
        assert Fraction(float(a)) <= value <= Fraction(float(b))


def test_time_may_run_out_within_a_batch() -> None:
    network = question(dense([2, 4, 3, 2], 0), [-9, -9], [9, 9]).session.network
    ends = np.array([[-9.0, -9.0]]), np.array([[9.0, 9.0]])
    Bounder(network, executed=False).bound(*ends)
    late = Bounder(network, executed=False, expired=lambda: True)
    with pytest.raises(Expired):
        late.bound(*ends)


@given(data=st.data(), seed=st.integers(0, 30))
def test_bounds_that_are_known_are_kept(data: st.DataObject, seed: int) -> None:
    """Rule R11: what holds on a box holds on its halves, and makes their bounds no wider."""
    low, high, points = data.draw(boxes(2))
    bounder = Bounder(
        question(dense([2, 4, 3, 2], seed), low, high).session.network, executed=False
    )
    with np.errstate(all="ignore"):
        whole = bounder.bound(np.array([low]), np.array([high]))
        known = whole.lower[:, bounder.known_ids], whole.upper[:, bounder.known_ids]
        x = points[0]
        part = bounder.bound(np.array([x]), np.array([high]), known)
    assert (part.lower >= whole.lower)[:, bounder.known_ids].all()
    for value, a, b in zip(scalars(bounder, x), part.lower[0], part.upper[0], strict=True):
        assert Fraction(float(a)) <= value <= Fraction(float(b))


@pytest.mark.parametrize("name", EXACT_MODELS)
@given(data=st.data(), seed=st.integers(0, 30))
def test_bounds_of_a_region_hold_for_what_is_in_it(
    name: str, data: st.DataObject, seed: int
) -> None:
    """Rule R10: splits at values that occur; what lies on their side has all values in bounds."""
    low, high, points = data.draw(boxes(2))
    network = question(EXACT_MODELS[name](seed), low, high).session.network
    bounder = Bounder(network, executed=False)
    exact = [scalars(bounder, x) for x in points]
    read = np.unique(np.concatenate([b.ids for b in bounder.blocks if isinstance(b, Curve)]))
    scalar = np.array(data.draw(st.lists(st.sampled_from(read.tolist()), min_size=1, max_size=3)))
    at = data.draw(st.integers(0, len(points) - 1))
    point = np.array([float(exact[at][s]) for s in scalar])
    side = np.array([data.draw(st.sampled_from([-1.0, 1.0])) for _ in scalar])
    ends = np.array([low]), np.array([high])
    with np.errstate(all="ignore"):
        whole = bounder.bound(*ends)
        known = whole.lower[:, bounder.known_ids], whole.upper[:, bounder.known_ids]
        r = bounder.bound(*ends, known, splits=(scalar, side, point), backward=False)
    for values in exact:
        cuts = zip(scalar, side.tolist(), point.tolist(), strict=True)
        if any((values[i] - Fraction(p)) * int(s) < 0 for i, s, p in cuts):
            continue
        assert not r.empty.any()
        for value, a, b in zip(values, r.lower[0], r.upper[0], strict=True):
            assert Fraction(float(a)) <= value <= Fraction(float(b))


# Leaves, through certificates: what is refused comes with its bound


def leaves_of(
    instance: Instance, arrays: dict[str, Any], layers: Sequence[str], semantics: str
) -> list[Refusal]:
    """The leaves of a certificate that are not refuted."""
    refused: list[Refusal] = []
    certificate = by_hand(instance, arrays, layers=layers, semantics=semantics)
    assert instance.outcome(certificate, refused=refused) == ACCEPTED
    return refused


Tree = tuple[Any, ...]
"""() for a leaf, or layer, position, point and two trees."""


@st.composite
def trees(draw: st.DrawFn, neurons: Sequence[tuple[int, int]], depth: int) -> Tree:
    if depth == 0 or not draw(st.booleans()):
        return ()
    layer, position = draw(st.sampled_from(neurons))
    point = draw(st.sampled_from([0.0, 0.25, -0.5, 1.0]) | st.floats(-2, 2))
    below, above = (draw(trees(neurons, depth - 1)) for _ in range(2))
    return layer, position, point, below, above


Path = list[tuple[int, int, float, int]]
"""Layer, position, point and side of the splits above a leaf."""


def preorder(tree: Tree, path: Path) -> Iterator[tuple[Tree, Path]]:
    """Nodes and the splits above them."""
    yield tree, path
    if tree:
        layer, position, point, below, above = tree
        yield from preorder(below, [*path, (layer, position, point, -1)])
        yield from preorder(above, [*path, (layer, position, point, 1)])


def _read_at(block: Curve | Pair, position: int) -> int:
    """The scalar that the neuron at a position of a layer reads."""
    assert isinstance(block, Curve)
    return int(block.ids[block.at(np.array(position))])


STORED = st.sampled_from([0, coarse(1e-30), coarse(0.1), coarse(1.0), coarse(50.0), coarse(1e20)])


@pytest.mark.parametrize("semantics", [REAL, EXECUTED])
@pytest.mark.parametrize("name", list(EXACT_MODELS))
@given(data=st.data(), seed=st.integers(0, 30))
def test_leaves_of_neuron_trees(name: str, semantics: str, data: st.DataObject, seed: int) -> None:
    """Any splits, slopes, multipliers, hints and weights: the bound holds where the leaf is."""
    model = EXACT_MODELS[name](seed)
    low, high, points = data.draw(boxes(2))
    bounder = Bounder(question(model, low, high).session.network, executed=semantics == EXECUTED)
    values = [scalars(bounder, x) for x in points]
    outputs = [[v[i] for i in bounder.network.output] for v in values]
    bounds = [float(max(y[i] for y in outputs)) + 0.125 for i in range(2)]
    instance = question(
        model,
        low,
        high,
        [([1, 0], bounds[0]), ([0, -1], 0.125 - min(float(y[1]) for y in outputs))],
    )
    labelled = [b for b in bounder.blocks if isinstance(b, Curve | Pair)]
    layers = [block.label for block in labelled]
    named = [(k, i) for k, block in enumerate(labelled) for i in range(block.size)]
    neurons = [(k, i) for k, i in named if isinstance(labelled[k], Curve)]
    nodes = list(preorder(data.draw(trees(neurons, 3)), []))
    inner = [tree for tree, _ in nodes if tree]
    paths = [path for tree, path in nodes if not tree]
    bytes_of = lambda count: data.draw(st.binary(min_size=count, max_size=count))  # noqa: E731
    columns = [neuron for neuron in named if data.draw(st.booleans())]
    hints, rows, slopes = [], [], b""
    for k, block in enumerate(labelled[1:], 1):
        if isinstance(block, Curve) and data.draw(st.booleans()):
            chosen = sorted(data.draw(st.sets(st.integers(0, block.size - 1), min_size=1)))
            hints.append([k, data.draw(st.integers(0, 1)), len(chosen)])
            rows += chosen
            slopes += bytes_of(len(chosen) * sum(layer < k for layer, _ in columns))
    arrays = {
        "group": [[1, 1, len(nodes), 0, len(columns), len(hints)]],
        "case": [0],
        "op": [int(bool(tree)) for tree, _ in nodes],
        "arg": [tree[1] for tree in inner],
        "layer": [tree[0] for tree in inner],
        "point": [tree[2] for tree in inner],
        "column": columns or np.zeros((0, 2)),
        "hint": hints or np.zeros((0, 3)),
        "hint_row": rows,
        "hint_slope": list(slopes),
        "slope": list(bytes_of(len(columns) * len(paths))),
        "multiplier": [data.draw(STORED) for path in paths for _ in path],
        "weight": [data.draw(STORED) for _ in range(2 * len(paths))],
    }
    refused = {r.node: r for r in leaves_of(instance, arrays, layers, semantics)}
    (case,) = instance.session.query.cases()
    weights = np.array(arrays["weight"], np.uint32).reshape(-1, 2) << 16
    numbers = [k for k, (tree, _) in enumerate(nodes) if not tree]
    for number, path, weight in zip(numbers, paths, weights.view(np.float32), strict=True):
        for v, y in zip(values, outputs, strict=True):
            if not all(
                side * (v[_read_at(labelled[layer], position)] - Fraction(point)) >= 0
                for layer, position, point, side in path
            ):
                continue
            assert number in refused
            value = sum(
                Fraction(float(w))
                * (sum(Fraction(c) * y[i] for i, c in row.outputs) + Fraction(row.offset))
                for w, row in zip(weight, case.rows, strict=True)
            )
            assert Fraction(refused[number].lower) <= value


@pytest.mark.parametrize("place", ["split", "hint"])
def test_pairs_are_no_neurons(place: str) -> None:
    """Positions of a product's planes may be named; it is not split, and gets no rows."""
    model = matrices(0)
    instance = question(model, [-1.0, -1.0], [1.0, 1.0], [([1, 0], 1e3)])
    labels = [b.label for b in instance.session.network.blocks if isinstance(b, Curve | Pair)]
    assert labels == ["h", "c", "k"]
    op = [1, 0, 0] if place == "split" else [0]
    arrays = {
        "group": [[1, 1, len(op), 0, 1, int(place == "hint")]],
        "case": [0],
        "op": op,
        "arg": [0] * (place == "split"),
        "layer": [1] * (place == "split"),
        "point": [0.0] * (place == "split"),
        "column": [[1, 3]],
        "hint": [[1, 0, 1]] if place == "hint" else np.zeros((0, 3)),
        "hint_row": [0] * (place == "hint"),
        "hint_slope": [],
        "slope": [7] * (1 + (place == "split")),
        "multiplier": [coarse(0.5)] * (2 * (place == "split")),
        "weight": [coarse(1.0)] * (1 + (place == "split")),
    }
    outcome = instance.outcome(by_hand(instance, arrays, layers=labels))
    assert outcome == "R10"


@pytest.mark.parametrize("name", list(EXACT_MODELS))
@given(data=st.data(), seed=st.integers(0, 30), forms=st.booleans())
def test_leaves_of_input_trees(name: str, data: st.DataObject, seed: int, forms: bool) -> None:
    """Any cuts: every solution stays in some leaf that is not refuted."""
    model = EXACT_MODELS[name](seed)
    low, high, points = data.draw(boxes(2))
    bounder = Bounder(question(model, low, high).session.network, executed=False)
    outputs = [[scalars(bounder, x)[i] for i in bounder.network.output] for x in points]
    tops = [float(max(y[i] for y in outputs)) for i in range(2)]
    tops = [float(np.nextafter(top, np.inf)) for top in tops]
    instance = question(model, low, high, [([1, 0], tops[0]), ([0, 1], tops[1])])
    depth = data.draw(st.integers(0, 4))
    op = [node for tree, _ in preorder(_full(depth), []) for node in [int(bool(tree))]]
    arrays = {
        "group": [[0, 1, len(op), 0, 0, 0]],
        "case": [0],
        "op": op,
        "arg": [data.draw(st.integers(0, 1)) for node in op if node],
    }
    with made_always(forms):
        refused = leaves_of(instance, arrays, [], REAL)
    for x in points:
        assert any((r.low <= x).all() and (x <= r.high).all() for r in refused)


def _full(depth: int) -> Tree:
    return (0, 0, 0.0, _full(depth - 1), _full(depth - 1)) if depth else ()


# Binary32 executions

EXECUTED_MODELS = EXACT_MODELS | {"windows": windows, "normalised": normalised}
for jumping in ("sign", "floor"):
    del EXECUTED_MODELS[jumping]  # an execution may be on the other side of the jump


@pytest.mark.parametrize("name", list(EXECUTED_MODELS))
@given(data=st.data(), seed=st.integers(0, 30), forms=st.booleans())
def test_executions(name: str, data: st.DataObject, seed: int, forms: bool) -> None:
    """Sums in random order, fused or not, with subnormal numbers or without."""
    model = EXECUTED_MODELS[name](seed)
    low, high, points = data.draw(boxes(4 if name == "windows" else 2))
    single = [np.asarray(x, np.float32).astype(float) for x in points]
    low = np.minimum.reduce([low, *single]).tolist()
    high = np.maximum.reduce([high, *single]).tolist()
    network = question(model, low, high).session.network
    bounder = Bounder(network, executed=True)
    with np.errstate(all="ignore"), made_always(forms):
        r = bounder.bound(np.array([low]), np.array([high]))
    graph = load_model(model).lowered
    rng = np.random.default_rng(seed)
    for x in single:
        for _ in range(3):
            y = Execution(rng).run(graph, x)[graph.output]
            assert (r.lower[0, network.output] <= y).all()
            assert (y <= r.upper[0, network.output]).all()


@given(
    st.lists(st.integers(-1, 6), min_size=1, max_size=40),
    st.integers(1, 3),
    st.integers(0, 100),
)
@example([0] * 50 + [3] + [0] * 40 + [-1] * 9 + [5, 5], 2, 0)
@example([2, 0, 1], 2, 0)
@example([-1], 1, 0)
def test_a_tally_adds_up_entries_by_number(ids: list[int], rows: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-9, 9, (rows, len(ids))).astype(np.float64)
    tally = Tally(np.array(ids))
    assert tally.targets.tolist() == sorted(set(ids) - {-1})
    assert tally.most == max([ids.count(number) for number in set(ids) - {-1}], default=1)
    expected = [values[:, np.array(ids) == number].sum(axis=1) for number in tally.targets]
    assert np.array_equal(tally.of(values).T, np.reshape(expected, (-1, rows)))


@given(shape=st.tuples(*[st.integers(1, 3)] * 3), seed=st.integers(0, 50), spoiled=st.booleans())
def test_a_tally_of_a_table_adds_along_an_axis(
    shape: tuple[int, int, int], seed: int, spoiled: bool
) -> None:
    """Factors of products of matrices come once for each of the other's columns."""
    rng, (a, most, b) = np.random.default_rng(seed), shape
    ids = np.repeat(rng.permutation(a * b).reshape(a, 1, b), most, axis=1).ravel()
    if spoiled:
        rng.shuffle(ids)
    values = rng.integers(-9, 9, (2, len(ids))).astype(np.float64)
    tally = Tally(ids)
    assert spoiled or (tally.grid is not None) == (most > 1)
    expected = np.stack([values[:, ids == number].sum(axis=1) for number in range(a * b)])
    assert np.array_equal(tally.of(values), expected.T)
    assert np.array_equal(tally.of_columns(values.T), expected.T)
