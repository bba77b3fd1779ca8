"""Better lines for one form: bounds that hold, that no batch changes, and that the engine has too.

What bounds say is compared with exact rationals and with binary32 executions, without a tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds import ascent as of_search
from onnxcert.bounds import row_slopes
from onnxcert.bounds.ascent import raise_forms
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.optimised import Forms
from onnxcert.checker import ascent
from onnxcert.checker import bounds as checker_bounds
from onnxcert.checker import row_slopes as of_checker
from onnxcert.checker.ascent import Ascent
from onnxcert.checker.audit import Auditor
from onnxcert.checker.bounds import Bounder, Relaxation
from onnxcert.checker.network import Affine, Block, Curve, Network, Pair, Pick, Product, Term
from onnxcert.checker.proof import Boxes, Combined, Prover, Rows
from onnxcert.graph import Graph, Node
from onnxcert.ops import Concat, LeakyRelu, Linear, Maximum, Multiply, Power, Relu, Select, Sum
from onnxcert.ops.base import Affine as Sums
from onnxcert.ops.base import Bivariate, Elementwise
from onnxcert.search import folded_split
from onnxcert.sets import Box
from tests import strategies
from tests.bounds.executions import Execution, with_float32_weights
from tests.oracles import dot, exact_values, matrices

KINDS = {
    "Relu": "relu",
    "LeakyRelu": "leaky",
    "Absolute": "abs",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Sign": "sign",
    "Floor": "floor",
    "Power": "power",
    "Reciprocal": "reciprocal",
    "Exp": "exp",
    "Sin": "sin",
    "Cos": "cos",
}


def numbered(graph: Graph) -> Network:
    """The network as the checker has it."""
    ids = {graph.input: np.arange(graph.input_size)}
    blocks, size = [Block(0, graph.input_size, "x")], graph.input_size
    for node in graph.nodes:
        op, read = node.op, [ids[name] for name in node.inputs]
        where = size, op.output_size, node.name
        if isinstance(op, Elementwise):
            slope = None
            if isinstance(op, LeakyRelu):
                slope = np.broadcast_to(op.slope, (op.output_size,))
            if isinstance(op, Power):
                slope = np.full(op.output_size, float(op.exponent))
            blocks.append(Curve(*where, KINDS[type(op).__name__], read[0], slope, node.name))
        elif isinstance(op, Bivariate):
            kind = "product" if isinstance(op, Multiply) else "quotient"
            blocks.append(Pair(*where, kind, read[0], read[1], op.roundings, node.name))
        elif isinstance(op, Concat):
            ids[node.name] = np.concatenate(read)
            continue
        else:
            assert isinstance(op, Sums)
            maximum = (read[0], read[1]) if isinstance(op, Maximum) else None
            terms = _terms(op, read)
            count = graph.roundings[node.name]
            blocks.append(Affine(*where, terms, op.bias, None, count, maximum))
        ids[node.name] = np.arange(size, size := size + op.output_size)
    return Network(blocks, [], graph.input_size, ids[graph.output], size, [], True)


def _terms(op: Sums, read: Sequence[Array]) -> tuple[Term, ...]:
    if isinstance(op, Sum):
        signs = [None if sign > 0 else -np.ones(op.size) for sign in op.signs]
        return tuple(Pick(numbers, factor) for numbers, factor in zip(read, signs, strict=True))
    if isinstance(op, Maximum):
        return Pick(read[1]), Pick(read[2])
    if isinstance(op, Select):
        matrix = matrices(op)[0]
        return (Pick(np.where(matrix.any(axis=1), read[0][matrix.argmax(axis=1)], -1)),)
    return tuple(
        Product(numbers[None, :, None], weight=matrix[None])
        for numbers, matrix in zip(read, matrices(op), strict=True)
    )


def asking(bounder: Bounder, rows: Array, offset: Any, used: Any = True) -> Prover:
    """About one case with rows (R, n_out) of outputs, offsets and whether they are used (R,)."""
    count = len(rows)
    no_inputs, strict = np.zeros((1, count, bounder.network.n_inputs)), np.zeros((1, count), bool)
    offset, used = (np.broadcast_to(given, (1, count)) for given in (offset, used))
    return Prover(bounder, Rows(rows[None], no_inputs, offset, strict, used))


def passes(
    prover: Prover, r: Relaxation, low: Array, high: Array, weights: Array
) -> list[tuple[Relaxation, Array]]:
    """Lines and bounds of all passes for the sum of rows with weights (B, R)."""
    cases = np.zeros((len(low), 1), np.int64)
    with np.errstate(all="ignore"):
        ascent = Ascent(prover.bounder, r.at(np.arange(len(low)), lines=False))
        return list(ascent.passes(lambda r: prover.forms(r, cases, weights), low, high))


def raised(
    bounder: Bounder, box: Box, rows: Array, offset: Array, weights: Array
) -> tuple[Array, Array]:
    """Bounds (P, B) of all passes, and a size (B,) of what is summed up in them."""
    with np.errstate(all="ignore"):
        r = bounder.bound(box.lower, box.upper)
        prover = asking(bounder, rows, offset)
        found = [lower for _, lower in passes(prover, r, box.lower, box.upper, weights)]
        most = abs(rows) @ r.reach[:, bounder.network.output].T + abs(offset)[:, None]
        return np.array(found), (weights * most.T).sum(axis=1)


def few_numbers(rng: np.random.Generator, *shape: int) -> Array:
    """Multiples of 1/4, which float32 holds."""
    return np.round(4 * rng.normal(size=shape)) / 4


# Bounds that hold


@st.composite
def questions(draw: st.DrawFn) -> tuple[Graph, Box, Array, Array, Array, list[Array]]:
    """A network, two boxes, rows, offsets, weights, and points in both boxes: all of float32."""
    graph = with_float32_weights(
        draw(strategies.graphs(smooth=draw(st.booleans()), layers=(*strategies.LAYERS, "dense")))
    )
    largest = draw(st.sampled_from([2.0, 2.0, 1e6]))
    box = draw(strategies.boxes(graph.input_size, largest=largest))
    box = Box(*(side.astype(np.float32).astype(float) for side in (box.lower, box.upper)))
    points = draw(strategies.points_in(box)).astype(np.float32).astype(float)
    points = np.clip(points, box.lower, box.upper)
    rng = np.random.default_rng(draw(strategies.seeds))
    count = int(rng.integers(1, 4))
    rows, offset = few_numbers(rng, count, graph.output_size), few_numbers(rng, count)
    weights = abs(few_numbers(rng, 2, count))
    return graph, box, rows, offset, weights, list(points)


Question = tuple[Graph, Box, Array, Array, Array, list[Array]]


@pytest.mark.parametrize("executed", [False, True])
@given(question=questions(), seed=strategies.seeds)
def test_raised_bounds_hold(executed: bool, question: Question, seed: int) -> None:
    """Of the reals, and of executions where they are meant for those."""
    graph, box, rows, offset, weights, points = question
    rng = np.random.default_rng(seed)
    found, _ = raised(Bounder(numbered(graph), executed=executed), box, rows, offset, weights)
    for batch in points:
        for b, x in enumerate(batch):
            outputs = [exact_values(graph, x)[graph.output]]
            if executed:
                values = (Execution(rng).run(graph, x)[graph.output] for _ in range(4))
                outputs += [[Fraction(v) for v in y] for y in values if np.isfinite(y).all()]
            for y in outputs:
                sums = [dot(row, y) + Fraction(c) for row, c in zip(rows, offset, strict=True)]
                total = dot(weights[b], sums)
                for lower in found[:, b]:
                    assert np.isneginf(lower) or Fraction(lower) <= total


@pytest.mark.parametrize("executed", [False, True])
@given(question=questions())
def test_lines_stay_between_the_slopes_of_their_curves(executed: bool, question: Question) -> None:
    graph, box, rows, offset, weights, _ = question
    bounder = Bounder(numbered(graph), executed=executed)
    with np.errstate(all="ignore"):
        r = bounder.bound(box.lower, box.upper)
        default = r.at(np.arange(len(box)), lines=False)
        bounder.set_lines(default, len(bounder.blocks), {})
    assert r.curves.keys() == default.curves.keys()
    for k, lines_of in r.curves.items():  # bit by bit those of the same bounds
        for part, again in zip(lines_of, default.curves[k], strict=True):
            np.testing.assert_array_equal(again, part)
    steepest = max([1.0, *(abs(b.slope).max() for b in bounder.blocks if _is_leaky(b))])
    for lines, _ in passes(asking(bounder, rows, offset), r, box.lower, box.upper, weights):
        assert lines.lower is not r.lower
        for side in ("lower", "upper", "noise", "reach"):
            np.testing.assert_array_equal(getattr(lines, side), getattr(r, side))
        for k, (mean, half, _, gap) in lines.curves.items():
            block = bounder.blocks[k]
            assert isinstance(block, Curve)
            finite = np.isfinite(r.reach[:, block.ids])
            assert not np.isnan(gap[finite]).any()
            if block.kind in ("relu", "leaky", "abs"):
                assert ((abs(mean) + abs(half))[finite] <= steepest * (1 + 1e-15)).all()


def _is_leaky(block: Block) -> bool:
    return isinstance(block, Curve) and block.slope is not None


@pytest.mark.parametrize("large", ["value", "offset"])
def test_rounding_of_sums_of_rows_is_charged(large: str) -> None:
    """Two rows that cancel, up to the roundings of their products with the weights."""
    rng = np.random.default_rng(0)
    x = 2.0**60 if large == "value" else 1.0
    graph = two_layers(np.ones((1, 1)), np.zeros(1), np.ones(1))
    bounder = Bounder(numbered(graph), executed=False)
    at = np.full((1, 1), x)
    r = bounder.bound(at, at)
    for _ in range(100):
        weights = 1.0 + rng.integers(0, 128, size=(1, 2)) / 128.0
        first = rng.uniform(1.0, 2.0)
        pair = np.array([first, -first * weights[0, 0] / weights[0, 1]])
        rows, offset = (pair, 0.0 * pair) if large == "value" else (0.0 * pair, 2.0**60 * pair)
        truth = dot(weights[0], [Fraction(a) * Fraction(x) for a in rows])
        truth += dot(weights[0], [Fraction(c) for c in offset])
        for _, lower in passes(asking(bounder, rows[:, None], offset), r, at, at, weights):
            assert Fraction(lower[0]) <= truth


def test_rounding_is_charged_for_the_lines_that_are_taken() -> None:
    """A chord that is nearly flat, a free line of slope one, and values of 2^27 that cancel."""
    rng = np.random.default_rng(0)
    center, radius = 2.0**27, 2.0**-20
    taken = 0
    for _ in range(100):
        slope = rng.uniform(0.1, 1.0, size=2)
        slope = np.append(slope, -slope.sum())
        weight = np.array([[*slope, 0.0], [1.0, 1.0, 1.0, -3.0]])
        offset = np.append(-slope * center - 1.0 + rng.integers(0, 8, size=3) * 2.0**-28, 4.0)
        nodes = (
            Node("z", Linear(weight, offset), ("x",)),
            Node("h", Relu(4), ("z",)),
            Node("y", Linear(np.ones((4, 1))), ("h",)),
        )
        graph = Graph("x", 2, nodes, "y")
        bounder = Bounder(numbered(graph), executed=False)
        low, high = np.array([[center - radius, -1.0]]), np.array([[center + radius, 1.0]])
        r = bounder.bound(low, high)
        prover = asking(bounder, np.ones((1, 1)), 0.0)
        truth = min(
            exact_values(graph, [x, 1.0])["y"][0] for x in (center - radius, center, low[0, 0])
        )
        for free in (0.0, 0.5, 1.0):
            chosen = r.at(np.arange(1), lines=False)
            bounder.set_lines(chosen, len(bounder.blocks), {2: np.full((1, 4), free)})
            form = bounder.pull(chosen, *prover.forms(chosen, np.zeros((1, 1), np.int64)))
            assert Fraction(form.least(low, high)[0, 0]) <= truth
        for lines, lower in passes(prover, r, low, high, np.ones((1, 1))):
            taken += bool((lines.curves[2][0] != r.curves[2][0]).any())
            assert Fraction(lower[0]) <= truth
    assert taken > 0


# The same bounds in every batch


@given(data=st.data(), seed=strategies.seeds)
def test_bounds_do_not_depend_on_the_batch(data: st.DataObject, seed: int) -> None:
    """One box by itself, among others, and in another order."""
    graph = data.draw(strategies.graphs())
    rng = np.random.default_rng(seed)
    bounder = Bounder(numbered(graph), executed=data.draw(st.booleans()))
    center, radius = few_numbers(rng, 7, graph.input_size), few_numbers(rng, 7, graph.input_size)
    box = Box(center - abs(radius), center + abs(radius))
    rows, offset = few_numbers(rng, 2, graph.output_size), few_numbers(rng, 2)
    weights = abs(few_numbers(rng, 7, 2))
    whole, size = raised(bounder, box, rows, offset, weights)
    for index in (rng.permutation(7), np.array([3]), np.array([6, 2, 2, 5])):
        part = Box(box.lower[index], box.upper[index])
        found, _ = raised(bounder, part, rows, offset, weights[index])
        # Where all that is left of a form does not vary, one pass is as good as five.
        most = max(len(found), len(whole))
        padded = [
            np.pad(part, [(0, most - len(part)), (0, 0)], mode="edge") for part in (found, whole)
        ]
        _alike(padded[0], padded[1][:, index], size[index])


def _alike(found: Array, expected: Array, size: Array) -> None:
    """Equal but for rounding errors of sums of a size (B,)."""
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    finite = np.isfinite(found) & np.isfinite(size)
    apart = abs(np.where(finite, found, 0) - np.where(finite, expected, 0))
    # Beside what is rounded, every bound is charged with what may underflow.
    assert (apart <= 1e-9 * np.where(np.isfinite(size), size, 0) + 1e-290).all()


def two_layers(weight: Array, offset: Array, out: Array) -> Graph:
    """``out . relu(weight x + offset)``: weight (n_in, n), offset (n,), out (n,)."""
    nodes = (
        Node("z", Linear(weight, offset), ("x",)),
        Node("h", Relu(len(offset)), ("z",)),
        Node("y", Linear(out[:, None]), ("h",)),
    )
    return Graph("x", len(weight), nodes, "y")


def _cancelling(seed: int) -> tuple[Array, Array, Array]:
    """A network in which the first pass leaves nothing of the second input but rounding errors."""
    rng = np.random.default_rng(seed)
    weight, offset, out = rng.normal(size=(2, 9)), 0.1 * rng.normal(size=9), rng.normal(size=9)
    weight[:, 8], offset[8], out[8] = (0.0, 1.0), 10.0, 0.0  # h = x_1 + 10
    bounder = Bounder(numbered(two_layers(weight, offset, out)), executed=False)
    low, high = np.full((1, 2), -1.0), np.full((1, 2), 1.0)
    r = bounder.bound(low, high)
    prover = asking(bounder, np.ones((1, 1)), 0.0)
    form = bounder.pull(r, *prover.forms(r, np.zeros((1, 1), np.int64)))
    out[8] = -form.rows[0, 0, 1]
    return weight, offset, out


def _spread(seed: int) -> float:
    """How far the bounds of the network are apart whose neurons come in other orders."""
    weight, offset, out = _cancelling(seed)
    rng = np.random.default_rng(seed)
    box = Box(np.full((1, 2), -1.0), np.full((1, 2), 1.0))
    bounds = []
    for _ in range(12):
        order = rng.permutation(9)
        graph = two_layers(weight[:, order], offset[order], out[order])
        bounder = Bounder(numbered(graph), executed=False)
        found, _ = raised(bounder, box, np.ones((1, 1)), np.zeros(1), np.ones((1, 1)))
        bounds.append(found[:, 0])
    return float(np.ptp(bounds, axis=0).max())


def test_rounding_errors_do_not_choose_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in another order change a bound by rounding errors and no more."""
    assert max(map(_spread, range(20))) < 1e-11
    monkeypatch.setattr("onnxcert.checker.ascent._NOTHING", 0.0)
    assert max(map(_spread, range(20))) > 1e-3


def deep(rng: np.random.Generator, sizes: Sequence[int]) -> Graph:
    """Layers with relus between."""
    nodes: list[Node] = []
    value = "x"
    for k, (m, n) in enumerate(pairwise(sizes)):
        op = Linear(rng.normal(size=(m, n)) / np.sqrt(m), 0.3 * rng.normal(size=n))
        nodes.append(Node(f"z{k}", op, (value,)))
        value = f"z{k}"
        if k + 2 < len(sizes):
            nodes.append(Node(f"h{k}", Relu(n), (value,)))
            value = f"h{k}"
    return Graph("x", sizes[0], tuple(nodes), value)


def small_boxes(rng: np.random.Generator, count: int, size: int) -> Box:
    center, radius = rng.uniform(-1, 1, (count, size)), rng.uniform(0.0, 0.6, (count, size))
    return Box(center - radius, center + radius)


@pytest.mark.parametrize("numbers", [1, 1 << 10, 1 << 14])
def test_bounds_do_not_depend_on_how_boxes_share_rows(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    bounder = Bounder(numbered(deep(rng, (3, 12, 12, 12, 2))), executed=False)
    box = small_boxes(rng, 60, 3)
    parts = (slice(k, k + 1) for k in range(60))
    expected = [bounder.bound(box.lower[k], box.upper[k]) for k in parts]
    monkeypatch.setattr(checker_bounds, "_FEWEST", 1)
    monkeypatch.setattr(checker_bounds, "_NUMBERS", numbers)
    groups = []
    right = checker_bounds._alike

    def counted(counts: Array, widest: int) -> Any:
        made = list(right(counts, widest))
        groups.append(len(made))
        assert sorted(np.concatenate([m for m, _ in made])) == list(np.flatnonzero(counts))
        assert all((counts[m] <= width).all() for m, width in made)
        return iter(made)

    monkeypatch.setattr(checker_bounds, "_alike", counted)
    found = bounder.bound(box.lower, box.upper)
    assert min(groups) > 1
    for side in ("lower", "upper"):
        single = np.concatenate([getattr(r, side) for r in expected])
        np.testing.assert_allclose(getattr(found, side), single, rtol=1e-12, atol=1e-12)


# What passes are worth, and what the engine makes of the same


@given(question=questions())
def test_the_first_pass_is_the_plain_bound(question: Question) -> None:
    graph, box, rows, offset, _, _ = question
    bounder = Bounder(numbered(graph), executed=False)
    prover = asking(bounder, rows, offset)
    cases = np.zeros((len(box), 1), np.int64)
    with np.errstate(all="ignore"):
        r = bounder.bound(box.lower, box.upper)
        plain = prover.refute(r, cases, box.lower, box.upper)[1][:, 0]
    for row in range(len(rows)):
        weights = np.tile(np.eye(len(rows))[row], (len(box), 1))
        found, size = raised(bounder, box, rows, offset, weights)
        _alike(found[:1], plain[None, :, row], size)
        best = found.max(axis=0)
        finite = np.isfinite(plain[:, row]) & np.isfinite(size)
        assert (best - plain[:, row] >= -1e-9 * size)[finite].all()


def test_passes_are_worth_something() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(10):
        bounder = Bounder(numbered(deep(rng, (3, 12, 12, 2))), executed=False)
        box = small_boxes(rng, 30, 3)
        weights = rng.uniform(0, 1, (30, 2))
        found, _ = raised(bounder, box, np.eye(2), np.zeros(2), weights)
        gains.append((found.max(axis=0) - found[0]) / (box.upper - box.lower).mean(axis=1))
    assert np.mean(gains) > 0.02
    assert (np.concatenate(gains) > 1e-6).mean() > 0.3


def agreement(graph: Graph, box: Box, rng: np.random.Generator, *, ieee: bool) -> tuple[Any, ...]:
    """Raised bounds (B,) of engine and checker, and a size (B,)."""
    count = len(box)
    rows, weights = rng.normal(size=(2, graph.output_size)), rng.uniform(0, 1, (count, 2))
    center = graph.forward(0.5 * (box.lower + box.upper)) @ rows.T
    offset = -center.max(axis=0)  # the engine stops as soon as all bounds are positive
    unit = 2.0**-24 if ieee else 0.0
    bounds = crown_bounds(graph, box, execution_unit=unit, decide=True)
    forms = Forms(
        np.broadcast_to(rows, (count, *rows.shape)),
        None,
        np.broadcast_to(offset, (count, 2)),
        np.ones((count, 2), bool),
    )
    engine = raise_forms(graph, bounds.boxes, forms, weights, execution_unit=unit).lower
    # As the engine's: without rules R19 and R23, whose passes are not run here.
    bounder = Bounder(numbered(graph), executed=ieee, joined=False)
    found, size = raised(bounder, box, rows, offset, weights)
    return engine, found.max(axis=0), size


@given(graph=strategies.graphs(layers=("dense",)), seed=strategies.seeds)
def test_engine_and_checker_find_the_same(graph: Graph, seed: int) -> None:
    """Where weights are ordinary; with others there is little left but what each charges."""
    weights = [node.op.weight for node in graph.nodes if isinstance(node.op, Linear)]
    assume(all(abs(weight).max() < 100.0 for weight in weights))
    rng = np.random.default_rng(seed)
    center = rng.uniform(-1, 1, (5, graph.input_size))
    radius = rng.uniform(0, 0.6, center.shape)
    engine, checker, size = agreement(graph, Box(center - radius, center + radius), rng, ieee=False)
    assert (abs(engine - checker) <= 1e-9 * (size + 1.0)).all()


@pytest.mark.parametrize("ieee", [False, True])
@pytest.mark.parametrize("sizes", [(2, 8, 2), (3, 12, 12, 2), (5, 20, 20, 20, 3)])
def test_engine_and_checker_find_the_same_in_layers(sizes: tuple[int, ...], ieee: bool) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        graph = deep(rng, sizes)
        box = small_boxes(rng, 12, sizes[0])
        engine, checker, size = agreement(graph, box, rng, ieee=ieee)
        assert (abs(engine - checker) <= (1e-5 if ieee else 1e-11) * size).all()


# Leaves


def open_leaves(
    prover: Prover, box: Box, weights: Array | None = None, audit: int = 0
) -> tuple[list[int], int]:
    """Which leaves are not refuted, and how many forms were audited."""
    count = len(box)
    nothing = np.full((count, len(prover.bounder.known_ids)), np.inf)
    nodes = Boxes(box.lower, box.upper, np.zeros((count, 1), np.int64), (-nothing, nothing))
    each = np.arange(0 if weights is None else count)
    table = prover.rows.offset[:0] if weights is None else weights
    combined, auditor = Combined(each, 0 * each, table), Auditor(prover.bounder, audit, 1)
    at_leaf = np.ones(count, bool)
    left, _, _ = prover.boxes(np.arange(count), nodes, at_leaf, combined, auditor)
    return left.tolist(), auditor.done


def is_refuted(prover: Prover, box: Box, weights: Array | None = None) -> bool:
    """Whether all leaves are."""
    return not open_leaves(prover, box, weights)[0]


def improvable(count: int = 1) -> tuple[Bounder, Box, float, float]:
    """A network and a box, ``count`` times, and bounds of the sum of its outputs.

    The bounds are that of the default lines, and the best one.
    """
    graph = deep(np.random.default_rng(6), (3, 12, 12, 2))
    bounder = Bounder(numbered(graph), executed=False)
    box = Box(np.full((count, 3), -0.5), np.full((count, 3), 0.5))
    found, _ = raised(bounder, box, np.eye(2), np.zeros(2), np.ones((count, 2)))
    plain, best = float(found[0, 0]), float(found.max())
    assert best > plain + 0.5
    return bounder, box, plain, best


def test_rows_that_only_better_lines_refute() -> None:
    """A leaf is tried with its row; what no bound says is not said."""
    bounder, box, plain, best = improvable()
    for bound, expected in ((plain, True), (best, True), (best + 0.002, False)):
        prover = asking(bounder, np.ones((1, 2)), 0.001 - bound)
        assert is_refuted(prover, box) is expected
        assert is_refuted(prover, box, np.full((1, 1), 0.125)) is expected


def test_sums_that_only_better_lines_refute() -> None:
    """Two rows, and the weights of the only sum that is positive."""
    bounder, box, _, best = improvable()
    prover = asking(bounder, np.eye(2), 0.5 * (0.001 - best))
    assert open_leaves(prover, box, np.ones((1, 2))) == ([], 0)
    assert open_leaves(prover, box, np.ones((1, 2)), audit=1) == ([], 1)
    for weights in (None, np.zeros((1, 2)), np.array([[1.0, 0.0]]), np.array([[0.125, 4.0]])):
        assert not is_refuted(prover, box, weights)
    above = asking(bounder, np.eye(2), 0.5 * (-0.001 - best))
    assert not is_refuted(above, box, np.ones((1, 2)))


def test_rows_that_a_case_does_not_have() -> None:
    """They are ``-1 <= 0``: neither may they be in a sum, nor keep the real row from the ascent."""
    bounder, box, plain, best = improvable()
    middle = 0.5 * (plain + best)
    assert 100 * (plain - middle) < -1.0
    rows = np.array([[100.0, 100.0], [0.0, 0.0]])
    prover = asking(bounder, rows, [-100 * middle, -1.0], [True, False])
    assert is_refuted(prover, box)
    assert is_refuted(prover, box, np.array([[1.0, 0.0]]))
    assert not is_refuted(prover, box, np.array([[1.0, 0.25]]))


def test_many_forms_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refuted does not depend on how many forms share a pass."""
    bounder, box, _, best = improvable(9)
    sizes: list[int] = []
    right = Ascent.passes

    def counted(ascent: Ascent, form: Any, low: Array, high: Array) -> Any:
        sizes.append(len(low))
        return right(ascent, form, low, high)

    monkeypatch.setattr(Ascent, "passes", counted)
    for numbers, most in ((1, 1), (4 * bounder.network.size, 4), (1 << 18, 9)):
        monkeypatch.setattr("onnxcert.checker.proof._NUMBERS", numbers)
        for lacking, expected in ((0.001, True), (-0.001, False)):
            del sizes[:]
            prover = asking(bounder, np.eye(2), 0.5 * (lacking - best))
            assert is_refuted(prover, box, np.ones((9, 2))) is expected
            assert max(sizes) == most


def test_every_leaf_is_bounded_over_its_own_box() -> None:
    """Wide boxes among narrow ones, in any order."""
    bounder, box, _, best = improvable(8)
    rng = np.random.default_rng(0)
    for _ in range(10):
        share = rng.permutation(np.linspace(0.5, 1.5, 8))[:, None]
        boxes = Box(share * box.lower, share * box.upper)
        found, _ = raised(bounder, boxes, np.eye(2), np.zeros(2), np.ones((8, 2)))
        bounds = found.max(axis=0)
        expected = np.flatnonzero(bounds < best - 0.01).tolist()
        assert 0 < len(expected) < 8
        prover = asking(bounder, np.eye(2), 0.5 * (0.01 - best))
        assert open_leaves(prover, boxes, np.ones((8, 2)))[0] == expected


def test_the_search_takes_the_same_steps() -> None:
    """What it refutes by them the checker must find again by itself."""
    assert (ascent.STEPS, ascent.RATE) == (of_search.STEPS, of_search.RATE)
    assert (ascent.FOLDED_STEPS, ascent.FOLDED_RATE) == (folded_split.STEPS, folded_split.RATE)
    assert of_checker.STEPS == row_slopes.STEPS
