"""The error terms of the checker, one by one, where they are all that stands against rounding.

Networks are written down as blocks, so that numbers may be anything that float64 holds: sums that
cancel, magnitudes of 1e15 beside 1, products that underflow, sums of thousands. What the checker
bounds is compared with exact rationals. Where the sums of this processor happen to be better than
those of another, the charge itself is compared with what Higham's bound allows any order of
summation: n roundings of 2^-53 of the sum of all magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from onnxcert.checker import curves
from onnxcert.checker.audit import Auditor
from onnxcert.checker.bounds import Bounder, Columns, Form, Relaxation
from onnxcert.checker.coefficients import Pending
from onnxcert.checker.errors import Unusable
from onnxcert.checker.model import read_network
from onnxcert.checker.network import Affine, Block, Curve, Entries, Network, Pick, Product, Term
from onnxcert.checker.proof import Boxes, Combined, Paths, Prover, Rows
from onnxcert.checker.spec import Case, Row
from tests.frontend.onnx_models import model_of

Array = np.ndarray[Any, Any]
Part = Callable[[int], Block]
"""A block but for where it starts."""

HALF_UNIT = Fraction(1, 2**53)
SINGLE = Fraction(1, 2**24)


def affine(*terms: Term, size: int, **more: Any) -> Part:
    more = {"offset": None, "offset_error": None, "roundings": 0} | more
    return lambda start: Affine(start, size, "", terms, **more)


def dense(ids: Sequence[int] | Array, weight: Array, *, error: Any = None, **more: Any) -> Part:
    """Weight (M, K) times the scalars ids (K,)."""
    term = Product(np.asarray(ids)[None, :, None], weight=weight[None], error=error)
    return affine(term, size=len(weight), **more)


def curve(kind: str, ids: Sequence[int] | Array, slope: float | Array | None = None) -> Part:
    ids = np.asarray(ids)
    slopes = None if slope is None else np.broadcast_to(np.float64(slope), ids.shape)
    return lambda start: Curve(start, len(ids), "", kind, ids, slopes, f"c{start}")


def identity(ids: Sequence[int] | Array) -> Part:
    """A curve that is none: it has no gap to hide a rounding in."""
    return curve("leaky", ids, 1.0)


def network(n_inputs: int, *parts: Part) -> Network:
    """Blocks one after the other; the output is the last one."""
    blocks = [Block(0, n_inputs, "")]
    for part in parts:
        blocks.append(part(blocks[-1].start + blocks[-1].size))
    size = blocks[-1].start + blocks[-1].size
    output = np.arange(blocks[-1].start, size)
    return Network(blocks, [], n_inputs, output, size, [], True)


def bounded(net: Network, low: Any, high: Any, *, executed: bool = False) -> Any:
    """A `Bounder` and what it says of a box."""
    bounder = Bounder(net, executed=executed)
    with np.errstate(all="ignore"):
        r = bounder.bound(np.array([low], float), np.array([high], float))
    return bounder, r


def pulled(bounder: Bounder, r: Relaxation, rows: Any, start: float = 0.0) -> float:
    """The lower bound of ``rows . outputs + start``."""
    n = bounder.network.n_inputs
    pending: Pending = {}
    with np.errstate(all="ignore"):
        bounder.outputs.push(pending, np.array([rows], float))
        form = bounder.pull(r, pending, np.array([[start]]))
        return float(form.least(r.lower[:, :n], r.upper[:, :n])[0, 0])


def exactly(net: Network, x: Any) -> Array:
    """All scalars at a point as fractions, the constant zero at the end."""
    v = np.array([Fraction(0)] * (net.size + 1), object)
    v[: net.n_inputs] = [Fraction(float(value)) for value in x]
    for block in net.blocks[1:]:
        v[block.start : block.start + block.size] = block.values(v)
    return v


def total(values: Any) -> Fraction:
    return sum((Fraction(float(v)) for v in values), Fraction(0))


def product(a: Any, b: Any) -> Fraction:
    """An inner product of floats."""
    pairs = zip(np.ravel(a).tolist(), np.ravel(b).tolist(), strict=True)
    return sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction(0))


def cancelling(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Two vectors of which the inner product is a billionth of what its summands are."""
    a, b = rng.normal(size=(2, count))
    a, b = np.concatenate([a, a]), np.concatenate([b, -b * (1 + 1e-9 * rng.normal(size=count))])
    order = rng.permutation(2 * count)
    return a[order], b[order]


# Forms over boxes


@pytest.mark.parametrize("count", [1, 4, 60, 1500])
@pytest.mark.parametrize("radius", [0.0, 1e-12])
def test_the_least_value_of_a_form(count: int, radius: float, rng: np.random.Generator) -> None:
    for _ in range(8):
        a, x = cancelling(rng, count)
        low, high = x * 1e15 * (1 - radius), x * 1e15 * (1 + radius)
        low, high = np.minimum(low, high), np.maximum(low, high)
        least = product(a, np.where(a > 0, low, high))
        form = Form(a[None, None], np.zeros((1, 1)))
        assert Fraction(float(form.least(low[None], high[None])[0, 0])) <= least


def test_the_constant_of_a_form() -> None:
    form = Form(np.ones((1, 1, 1)), np.full((1, 1), 2.0**53))
    at = np.full((1, 1), 1.25)  # the sum is rounded up
    assert form.least(at, at)[0, 0] <= 2.0**53


def test_a_form_over_thousands_of_inputs(rng: np.random.Generator) -> None:
    a, x = rng.normal(size=(2, 5000))
    lower = Form(a[None, None], np.zeros((1, 1))).least(x[None], x[None])[0, 0]
    allowed = 5000 * HALF_UNIT * product(abs(a), abs(x))
    assert product(a, x) - Fraction(float(lower)) >= allowed


def test_a_form_that_overflows() -> None:
    rows, at = np.full((1, 1, 1), 1e200), np.full((1, 1), 1e200)
    with np.errstate(all="ignore"):
        assert Form(rows, np.zeros((1, 1))).least(at, at)[0, 0] == -np.inf


# Sums


def _written(how: str, weight: Array, offset: Array) -> Part:
    """Sums of the inputs as a matrix, by its entries, or number by number."""
    many, count = weight.shape
    if how == "matrix":
        return dense(np.arange(count), weight, offset=offset)
    if how == "entries":
        out, ids = np.divmod(np.arange(weight.size), count)
        return affine(Entries(ids, out, weight.ravel()), size=many, offset=offset)
    picks = (Pick(np.full(many, k), factor=weight[:, k]) for k in range(count))
    return affine(*picks, size=many, offset=offset)


@pytest.mark.parametrize("how", ["matrix", "entries", "picks"])
@pytest.mark.parametrize("count", [1, 4, 60])
@pytest.mark.parametrize("width", [0.0, 1e-12])
def test_sums_that_cancel(how: str, count: int, width: float, rng: np.random.Generator) -> None:
    for _ in range(8):
        pairs = [cancelling(rng, count) for _ in range(5)]
        weight, x = np.array([a for a, _ in pairs]), 1e15 * pairs[0][1]
        offset = -(weight @ x) + rng.normal(size=5)
        ends = x * (1 - width), x * (1 + width)
        low, high = np.minimum(*ends), np.maximum(*ends)
        net = network(2 * count, _written(how, weight, offset))
        bounder, r = bounded(net, low, high)
        for i in range(5):
            least = product(weight[i], np.where(weight[i] > 0, low, high)) + Fraction(offset[i])
            most = product(weight[i], np.where(weight[i] > 0, high, low)) + Fraction(offset[i])
            assert Fraction(float(r.lower[0, 2 * count + i])) <= least
            assert Fraction(float(r.upper[0, 2 * count + i])) >= most
            assert pulled(bounder, r, np.eye(5)[i]) <= least
            assert pulled(bounder, r, -np.eye(5)[i]) <= -most


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_box_that_reaches_far_to_one_side(side: float, rng: np.random.Generator) -> None:
    """From zero to 1e15: the errors are those of the far end."""
    for _ in range(20):
        weight = rng.normal(size=(1, 12))
        ends = np.zeros(12), side * 1e15 * rng.uniform(size=12)
        low, high = np.minimum(*ends), np.maximum(*ends)
        _, r = bounded(network(12, dense(np.arange(12), weight)), low, high)
        assert Fraction(r.lower[0, 12]) <= product(weight, np.where(weight > 0, low, high))
        assert Fraction(r.upper[0, 12]) >= product(weight, np.where(weight > 0, high, low))


def test_a_small_sum_beside_a_large_offset() -> None:
    for offset in (2.0**53, -(2.0**54)):
        net = network(1, dense([0], np.ones((1, 1)), offset=np.array([offset])))
        _, r = bounded(net, [1.25], [1.25])
        exact = Fraction(offset) + Fraction(1.25)
        assert Fraction(r.lower[0, 1]) <= exact <= Fraction(r.upper[0, 1])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_products_that_underflow(sign: float) -> None:
    net = network(1, dense([0], np.full((1, 1), sign * 1e-200)))
    bounder, r = bounded(net, [1e-200], [1e-200])
    exact = Fraction(sign * 1e-200) * Fraction(1e-200)
    assert Fraction(r.lower[0, 1]) <= exact <= Fraction(r.upper[0, 1])
    assert pulled(bounder, r, [1.0]) <= exact
    assert pulled(bounder, r, [-1.0]) <= -exact


def test_coefficients_that_underflow() -> None:
    net = network(1, dense([0], np.full((1, 1), 1e-200)))
    bounder, r = bounded(net, [-1e200], [1e200])
    assert pulled(bounder, r, [1e-200]) <= -(Fraction(1e-200) ** 2) * Fraction(1e200)
    net = network(1, dense([0], np.ones((1, 1)), offset=np.array([-1e-200])))
    bounder, r = bounded(net, [0.0], [0.0])
    assert pulled(bounder, r, [1e-200]) <= -(Fraction(1e-200) ** 2)


def _repeated(count: int) -> Network:
    """One scalar read ``count`` times by as many sums."""
    return network(1, dense(np.zeros(count, int), np.ones((count, count))))


def _read_by_many(count: int) -> Network:
    """Blocks of one scalar each that read the input, and their sum."""
    parts = [dense([0], np.full((1, 1), 1.0 + k)) for k in range(count)]
    return network(1, *parts, affine(*(Pick(np.array([1 + k])) for k in range(count)), size=1))


def _long_chain(count: int, *, whole: bool) -> Network:
    """Scalars that are each the half of the one before, and the sum of all: one term or many."""
    parts = [affine(Pick(np.array([k]), factor=np.full(1, 0.5)), size=1) for k in range(count)]
    last = affine(*(Pick(np.array([1 + k])) for k in range(count)), size=1)
    return network(1, *parts, dense(1 + np.arange(count), np.ones((1, count))) if whole else last)


def _entries(count: int) -> Network:
    """One row of a sparse matrix, whose entries all multiply the same scalar."""
    zeros = np.zeros(count, int)
    return network(1, affine(Entries(zeros, zeros, np.ones(count)), size=1))


@pytest.mark.parametrize(
    ("net", "roundings", "forward"),
    [
        (network(3000, dense(np.arange(3000), np.ones((1, 3000)))), 3000, 3000),
        (_repeated(60), 3600, 60),
        (_read_by_many(600), 600, 600),
        (_long_chain(600, whole=False), 600, 600),
        (_long_chain(600, whole=True), 600, 600),
        (_entries(900), 900, 900),
    ],
    ids=["width", "repeated", "readers", "terms", "blocks", "entries"],
)  # fmt: skip
def test_sums_of_thousands_in_any_order(net: Network, roundings: int, forward: int) -> None:
    """Forward a sum, backward a coefficient, may have been rounded so many times."""
    bounder, r = bounded(net, [1.0] * net.n_inputs, [1.0] * net.n_inputs)
    for scalar in net.output:
        size = Fraction(float(r.reach[0, scalar]))  # all that is summed is positive
        assert Fraction(float(r.noise[0, scalar])) >= roundings * HALF_UNIT * size
        ends = Fraction(float(r.lower[0, scalar])), Fraction(float(r.upper[0, scalar]))
        assert (ends[1] - ends[0]) / 2 >= forward * HALF_UNIT * size * Fraction(999, 1000)
    assert Fraction(bounder.gamma) >= roundings * HALF_UNIT


# Forms through several blocks


def _opposite(rng: np.random.Generator, pairs: int, *, small: bool) -> tuple[Array, Array]:
    """Weights (2 pairs, 4), and a row over what they make that cancels them.

    What they make of equal numbers is small, too, if so asked.
    """
    weight, row = rng.normal(size=(pairs, 4)), rng.normal(size=pairs)
    if small:
        weight[:, 2:] = -weight[:, :2] * (1 + 1e-9 * rng.normal(size=(pairs, 2)))
    near = weight * (1 + 1e-9 * rng.normal(size=weight.shape))
    return np.concatenate([weight, near]), np.concatenate([row, -row])


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_rows_that_cancel(
    layers: int, between: bool, small: bool, rng: np.random.Generator
) -> None:
    """Coefficients are sums, too; what they lose is charged with all that was summed."""
    for _ in range(12):
        weight, row = _opposite(rng, 8, small=small)
        parts, read = [dense(range(4), weight)], np.arange(4, 20)
        if between:
            parts.append(identity(read))
            read = read + 16
        if layers == 2:
            parts.append(dense(read, row[None]))
        x = 1e15 * (np.full(4, rng.normal()) if small else rng.normal(size=4))
        net = network(4, *parts)
        bounder, r = bounded(net, x, x)
        value = exactly(net, x)
        rows = np.ones(1) if layers == 2 else row
        exact = product(row, value[read].astype(object)) if layers == 1 else value[-2]
        assert pulled(bounder, r, rows) <= exact
        assert pulled(bounder, r, -rows) <= -exact
        for k, scalar in enumerate(value[:-1]):
            assert Fraction(float(r.lower[0, k])) <= scalar <= Fraction(float(r.upper[0, k]))


def test_curves_of_one_scalar_that_cancel(rng: np.random.Generator) -> None:
    """A coefficient that is a sum over curves: each of them is charged."""
    for _ in range(12):
        slopes, row = cancelling(rng, 30)
        net = network(1, curve("leaky", np.zeros(60, int), abs(slopes)))
        ends = [-1e15], [-1e-3]
        bounder, r = bounded(net, *ends)
        for sign in (1.0, -1.0):
            rows = sign * row * np.sign(slopes)
            least = min(
                sum(map(Fraction.__mul__, map(Fraction, rows), exactly(net, x)[1:-1])) for x in ends
            )
            assert pulled(bounder, r, rows) <= least


def test_constants_of_curves_that_cancel(rng: np.random.Generator) -> None:
    for _ in range(20):
        row, other = cancelling(rng, 400)
        row = row * other  # sums to nearly nothing
        net = network(1, curve("sign", np.zeros(800, int)))
        bounder, r = bounded(net, [1.0], [2.0])
        assert pulled(bounder, r, row) <= total(row)
        assert pulled(bounder, r, -row) <= -total(row)


def _steps(count: int) -> list[Part]:
    """x + 5/4 + 5/4 + ...: beside 2^53 each step is rounded up by 3/4."""
    step = np.full(1, 1.25)
    return [affine(Pick(np.array([k])), size=1, offset=step) for k in range(count)]


def test_a_large_start_of_a_long_chain() -> None:
    net = network(1, *_steps(400))
    bounder, r = bounded(net, [0.0], [0.0])
    assert pulled(bounder, r, [1.0], 2.0**53) <= 2**53 + 500


def test_a_large_offset_behind_a_long_chain() -> None:
    last = affine(Pick(np.array([1000])), size=1, offset=np.full(1, 2.0**53))
    net = network(1, *_steps(1000), last)
    bounder, r = bounded(net, [0.0], [0.0])
    assert pulled(bounder, r, [1.0]) <= 2**53 + 1250


def test_a_large_constant_of_a_curve_behind_a_long_chain() -> None:
    """sign(1) large + x + 1250, large enough to be above 2^53 without its own charge."""
    factor = 2.0**53 + 4096
    one = affine(size=1, offset=np.ones(1))
    step = curve("sign", [1001])
    large = Pick(np.array([1002]), factor=np.full(1, factor))
    last = affine(large, Pick(np.array([1000])), size=1)
    net = network(1, *_steps(1000), one, step, last)
    bounder, r = bounded(net, [0.0], [0.0])
    assert pulled(bounder, r, [1.0]) <= exactly(net, [0.0])[-2] == Fraction(factor) + 1250


# Lines of curves as the passes use them

KINDS = [("relu", None), ("leaky", 0.3), ("leaky", -2.3), ("abs", None), ("sign", None)]
SMOOTH = [("sigmoid", None), ("tanh", None)]
INTERVALS = [(-1e15, 3e15), (-3.3e15, 1.7), (-0.1, 1e15), (2.0, 1e15 / 3), (-1e15 / 3, -3.0),
             (-0.7, 0.9), (-1e-200, 1e-200)]  # fmt: skip


@pytest.mark.parametrize(("kind", "slope"), KINDS + SMOOTH)
@pytest.mark.parametrize("position", [None, 0.0, 0.237, 0.3, 1.0])
def test_replaced_curves(
    kind: str, slope: float | None, position: float | None, rng: np.random.Generator
) -> None:
    """With every coefficient rounded as in a pass, the row is below the line that it stands for."""
    low, high = np.array(INTERVALS).T
    count = len(low)
    net = network(count, curve(kind, np.arange(count), slope))
    bounder, r = bounded(net, low, high)
    free = None if position is None else np.full((1, count), position)
    if free is not None:
        bounder.set_lines(r, 2, {1: free})
    block = net.blocks[1]
    assert isinstance(block, Curve)
    lines = curves.lines(kind, low, high, block.slope, None if free is None else free[0], False)
    mean, half, middle, gap = (part[0] for part in r.curves[1])
    for a in [1.0, -1.0, *rng.normal(size=40)]:
        below = lines[:2] if a > 0 else lines[2:]
        coefficient, constant = a * mean - abs(a) * half, a * middle - abs(a) * gap
        for i in range(count):
            line, offset = (Fraction(float(part[i])) for part in below)
            for z in (Fraction(float(low[i])), Fraction(float(high[i]))):
                exact = Fraction(float(a)) * (line * z + offset)
                made = Fraction(float(coefficient[i])) * z + Fraction(float(constant[i]))
                assert made <= exact, (a, low[i], high[i])


@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 1.0])
def test_what_a_curve_reads_is_charged_with_both_slopes(position: float) -> None:
    """Lines of slope 1/2 and -1/2 have the mean zero; what they read is no better for that."""
    net = network(2, dense([0, 1], np.array([[1.0, -1.0]])), curve("abs", [2]))
    bounder, r = bounded(net, [1e15, 1e15], [1e15 + 3, 1e15 + 1])
    bounder.set_lines(r, 3, {2: np.full((1, 1), position)})
    plain = curves.lines("abs", r.lower[:, 2], r.upper[:, 2], None, np.full(1, position), False)
    lower_slope, lower, upper_slope, upper = (Fraction(float(part[0])) for part in plain)
    steepest = max(abs(lower_slope), abs(upper_slope))
    charged = Fraction(float(r.curves[2][3][0, 0])) - (upper - lower) / 2
    assert charged >= steepest * Fraction(float(r.noise[0, 2]))


# Factors that are not exact


@pytest.mark.parametrize("behind", ["nothing", "curve", "pick", "negative"])
@pytest.mark.parametrize("where", ["factor", "offset", "pick", "entries"])
def test_inexact_factors(where: str, behind: str) -> None:
    """A stored factor may be off by its error on either side, whatever it multiplies."""
    error, one = np.full(1, 1e-3), np.ones(1)
    ids = np.array([0])
    part = {
        "factor": dense(ids, np.ones((1, 1)), error=error),
        "pick": affine(Pick(ids, factor=one, error=error), size=1),
        "entries": affine(Entries(ids, ids, one, error=error), size=1),
        "offset": dense(ids, np.ones((1, 1)), offset=1e6 * one, offset_error=1e6 * error),
    }[where]
    net = network(
        1,
        part,
        *{
            "nothing": [],
            "curve": [identity([1]), dense([2], np.ones((1, 1)))],
            "pick": [dense([1], np.ones((1, 1)))],
            "negative": [dense([1], -np.ones((1, 1))), affine(Pick(ids + 2, factor=-one), size=1)],
        }[behind],
    )
    bounder, r = bounded(net, [-1e6], [1e6])
    most = 2e6 + 1e3 if where == "offset" else 1e6 + 1e3
    least = -1e3 if where == "offset" else -1e6 - 1e3
    output = net.output[0]
    assert r.lower[0, output] <= least
    assert r.upper[0, output] >= most
    assert pulled(bounder, r, [1.0]) <= Fraction(least)
    assert pulled(bounder, r, [-1.0]) <= -Fraction(most)


@pytest.mark.parametrize("where", ["factor_error", "offset_error"])
def test_what_is_not_exact_is_not_evaluated(where: str) -> None:
    error = np.full(1, 1e-3)
    net = {
        "factor_error": network(1, dense([0], np.ones((1, 1)), error=error)),
        "offset_error": network(1, dense([0], np.ones((1, 1)), offset=error, offset_error=error)),
    }[where]
    with pytest.raises(Unusable):
        net.evaluate([Fraction(1)])


# Executions in binary32


def executed_sum(weight: Array, x: Array, **attributes: float) -> tuple[Array, Array]:
    """Bounds of executions of Gemm, with an offset of zero: weight (K, M), x (K,)."""
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)
    constants = {"w": weight.astype(np.float32), "b": np.zeros(weight.shape[1], np.float32)}
    model = model_of([node], {"x": [1, len(x)]}, ["y"], constants)
    net = read_network(model.SerializeToString())
    _, r = bounded(net, x, x, executed=True)
    return r.lower[0, net.output], r.upper[0, net.output]


@pytest.mark.parametrize("many", [2, 40])
def test_executed_sums_of_thousands(many: int) -> None:
    """Each number is added to all before it; dense, or in a matrix that is nearly all zeros."""
    x = np.full(2000 if many == 2 else 20_000, 0.1, np.float32)
    weight = np.zeros((len(x), many), np.float32)
    weight[:500] = 1.0
    weight[500:2000, :2] = 1.0
    made = np.array([np.add.accumulate(x[column > 0])[-1] for column in weight.T])
    assert (abs(made / weight.sum(axis=0, dtype=float) - float(x[0])) > 1e-6 * x[0]).all()
    low, high = executed_sum(weight, x)
    assert (low <= made).all()
    assert (made <= high).all()


def test_executed_factors(rng: np.random.Generator) -> None:
    """One product, one factor behind it: two roundings, and the factor is stored rounded."""
    weight, x = rng.uniform(1, 2, size=(1, 2000)).astype(np.float32), np.float32([1.9])
    alpha = np.float32(1.7)
    made = alpha * (weight[0] * x[0])
    low, high = executed_sum(weight, x, alpha=float(alpha))
    assert (low <= made).all()
    assert (made <= high).all()
    product = weight[0].astype(float) * float(x[0]) * float(alpha)
    assert (abs(made - product) > 2.0**-24 * product).any()


def test_roundings_of_executions() -> None:
    """A block says how many roundings there are: of the sum of all magnitudes, errors with them."""
    offset = np.array([-3.0])
    net = network(2, dense([0, 1], np.array([[5.0, -2.0]]), offset=offset, roundings=7))
    _, r = bounded(net, [0.5, 1.0], [0.5, 1.0], executed=True)
    assert Fraction(r.noise[0, 2]) >= 7 * SINGLE * Fraction(2.5 + 2.0 + 3.0)
    net = network(1, dense([0], np.zeros((1, 1)), error=np.ones(1), roundings=700))
    _, r = bounded(net, [2.0], [2.0], executed=True)
    assert Fraction(r.noise[0, 1]) >= 2 + 700 * SINGLE * 2
    _, r = bounded(net, [0.0], [0.0], executed=True)
    assert Fraction(r.noise[0, 1]) >= 700 * Fraction(1, 2**126) * 2**60


def test_backward_bounds_of_executed_sums() -> None:
    """A neuron that is bounded by a linear form is no better known than its own sum."""
    net = network(
        1,
        identity([0]),
        dense([1], np.full((1, 1), 3.0), offset=np.ones(1), roundings=9),
        curve("tanh", [2]),
    )
    for executed, roundings, unit in ((False, 1, HALF_UNIT), (True, 9, SINGLE)):
        bounder, r = bounded(net, [1.0], [1.0], executed=executed)
        assert list(bounder.tracked) == [2]
        assert Fraction(r.lower[0, 2]) <= 4 - roundings * unit * 4
        assert Fraction(r.upper[0, 2]) >= 4 + roundings * unit * 4


SUBNORMAL = 2.0**-127
"""Of binary32: executors may take it for zero."""


def test_flushed_inputs_that_are_multiplied() -> None:
    net = network(1, dense([0], np.full((1, 1), 2.0**110), roundings=1))
    bounder, r = bounded(net, [SUBNORMAL], [SUBNORMAL], executed=True)
    assert r.lower[0, 1] <= 0
    assert pulled(bounder, r, [1.0]) <= 0


@pytest.mark.parametrize(
    ("kind", "slope", "x"),
    [
        ("relu", None, SUBNORMAL),
        ("abs", None, -SUBNORMAL),
        ("leaky", 2.0**60, SUBNORMAL),
        ("leaky", 2.0**60, -SUBNORMAL),  # what goes in is flushed
        ("leaky", 2.0**-60, -(2.0**-80)),  # what comes out
    ],
)
def test_flushed_values_of_curves(kind: str, slope: float | None, x: float) -> None:
    """Behind the curve stands a large factor, so that nothing else covers what is lost."""
    for factor in (2.0**110, -(2.0**110)):
        last = affine(Pick(np.array([1]), factor=np.full(1, factor)), size=1)
        net = network(1, curve(kind, [0], slope), last)
        bounder, r = bounded(net, [x], [x], executed=True)
        for lines_again in (False, True):
            if lines_again:
                bounder.set_lines(r, 2, {})
            for value in (exactly(net, [x])[-2], Fraction(0)):
                assert r.lower[0, 2] <= value <= r.upper[0, 2]
                assert pulled(bounder, r, [1.0]) <= value


def test_what_binary32_may_not_hold() -> None:
    """Beyond 2^60 nothing is said of executions: behind a sum, and behind a curve."""
    for factor in (4.0, -4.0):
        for part in (
            dense([0], np.full((1, 1), factor), roundings=1),
            curve("leaky", [0], factor),
        ):
            net = network(1, part)
            bounder, r = bounded(net, [-(2.0**59)], [0.0])
            assert np.isfinite([r.lower[0, 1], r.upper[0, 1], *r.reach[0]]).all()
            bounder, r = bounded(net, [-(2.0**59)], [0.0], executed=True)
            assert [r.lower[0, 1], r.upper[0, 1]][factor < 0] == (-1) ** (factor > 0) * np.inf
            assert pulled(bounder, r, [1.0]) == pulled(bounder, r, [-1.0]) == -np.inf


@pytest.mark.parametrize("slope", [0.3, 1.7, 130.0, -0.9])
def test_executed_leaky_relu(slope: float, rng: np.random.Generator) -> None:
    """The product is rounded to binary32: on a point, and at the ends of an interval."""
    x = -np.exp(4 * rng.normal(size=500)).astype(np.float32)
    made, z = (np.float32(slope) * x).astype(float), x.astype(float)
    stored = np.full(500, float(np.float32(slope)))
    for high in (z, np.zeros(500), 2 * abs(z)):
        low_slope, low, high_slope, above = curves.lines("leaky", z, high, stored, None, True)
        least, most = curves.interval("leaky", z, high, stored, True)
        for i in range(500):
            at, value = Fraction(z[i]), Fraction(made[i])
            assert Fraction(low_slope[i]) * at + Fraction(low[i]) <= value
            assert Fraction(high_slope[i]) * at + Fraction(above[i]) >= value
            assert least[i] <= made[i] <= most[i]


@pytest.mark.parametrize("kind", ["sigmoid", "tanh"])
def test_executed_smooth_curves(kind: str) -> None:
    """As onnxruntime computes them, with room for others: a few units of binary32 around 1."""
    x = np.linspace(-12, 12, 20_001, dtype=np.float32)
    node = helper.make_node(kind.capitalize(), ["x"], ["y"])
    model = model_of([node], {"x": [len(x)]}, ["y"], {})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    made = session.run(None, {"x": x})[0].astype(float)
    z, room = x.astype(float), 8 * 2.0**-24
    least, most = curves.interval(kind, z, z, None, True)
    lower_slope, lower, upper_slope, upper = curves.lines(kind, z, z, None, None, True)
    assert (np.maximum(least, lower_slope * z + lower) <= made - room).all()
    assert (np.minimum(most, upper_slope * z + upper) >= made + room).all()


# Sums that are moved into others


@pytest.mark.parametrize("roundings", [(3, 9), (9, 3)])
def test_an_offset_takes_the_roundings_along(roundings: tuple[int, int]) -> None:
    first, second = roundings
    offset = affine(Pick(np.array([1])), size=1, offset=np.ones(1), roundings=second)
    net = network(1, dense([0], np.ones((1, 1)), roundings=first), offset)
    bounder, r = bounded(net, [1.0], [1.0], executed=True)
    assert not bounder.parts[1]
    assert Fraction(r.noise[0, 2]) >= 9 * SINGLE * 2


_LOST = np.array([[1e16], [1.3], [-1e16]])
"""The sum is 1.3; float64 gets something else in any order."""


@pytest.mark.parametrize("where", ["weights", "offsets", "entries"])
def test_sums_that_float64_does_not_have(where: str) -> None:
    """What they are made of is kept apart, and charged."""
    zeros, ones = np.zeros(3, int), np.ones((1, 3))
    net = {
        "weights": network(1, dense([0], _LOST), dense([1, 2, 3], ones)),
        "offsets": network(
            1, dense([0], np.ones((3, 1)), offset=_LOST[:, 0]), dense([1, 2, 3], ones)
        ),
        "entries": network(
            1,
            affine(Entries(zeros, zeros, _LOST[:, 0]), size=1),
            dense([1], np.ones((1, 1))),
        ),
    }[where]
    for x in (1.0, -1.0):
        bounder, r = bounded(net, [x], [x])
        output, exact = net.output[0], exactly(net, [x])[-2]
        assert r.lower[0, output] <= exact <= r.upper[0, output]
        assert pulled(bounder, r, [1.0]) <= exact
        assert pulled(bounder, r, [-1.0]) <= -exact


def _numbers(rng: np.random.Generator, shape: tuple[int, int], across: int) -> Array:
    """A matrix of some kind, whose sums along an axis may cancel: across columns or rows."""
    made = {
        0: lambda: np.eye(*shape)[rng.permutation(shape[0])] * rng.choice([-1.0, 1.0]),
        1: lambda: rng.choice([-1.0, 0.0, 1.0], size=shape),
        2: lambda: np.round(2.0 ** rng.choice([2, 20, 28]) * rng.normal(size=shape)),
        3: lambda: 1e15 * rng.normal(size=shape),
        4: lambda: 2.5 * np.eye(*shape),
    }[int(rng.choice(5, p=[0.25, 0.2, 0.35, 0.1, 0.1]))]()
    if rng.random() < 0.7:  # neighbours nearly cancel
        pairs = np.moveaxis(made, across, 0)
        half = len(pairs) // 2
        sign = rng.choice([-1.0, 1.0])
        pairs[half : 2 * half] = sign * pairs[:half] + np.round(rng.normal(size=pairs[:half].shape))
    return made


def _matrix(rng: np.random.Generator, ids: Array, size: int, across: int) -> Term:
    """Dense or by its entries, of which one may be there twice."""
    matrix = _numbers(rng, (size, len(ids)), across)
    if rng.random() < 0.5:
        return Product(ids[None, :, None], weight=matrix[None])
    out, column = np.nonzero(np.ones_like(matrix) if rng.random() < 0.5 else matrix)
    if len(out) and rng.random() < 0.3:
        out, column = np.append(out, out[0]), np.append(column, column[0])
    return Entries(ids[column], out, matrix[out, column])


def _two_in_a_row(rng: np.random.Generator) -> Network:
    n, width, size = (int(k) for k in rng.integers(1, [4, 7, 4]))
    inner = [_matrix(rng, rng.permutation(n), width, 0)]
    if rng.random() < 0.2:
        inner.append(Pick(rng.integers(-1, n, size=width)))
    offset = 1e15 * rng.normal(size=width) if rng.random() < 0.4 else None
    if offset is not None and rng.random() < 0.5:
        offset = np.round(offset) if rng.random() < 0.5 else 1e-15 * offset
    read = n + np.arange(width)
    match rng.integers(12):
        case 0:
            read = rng.permutation(read)
        case 1:
            read = np.sort(rng.choice(read, size=rng.integers(1, width + 1), replace=False))
        case 2:
            read = rng.choice(read, size=width)
        case 3:
            read = np.append(read, rng.integers(-1, n))
    last = _matrix(rng, read, size, 1)
    more = rng.normal(size=size) if rng.random() < 0.3 else None
    return network(
        n,
        affine(*inner, size=width, offset=offset),
        affine(last, size=size, offset=more),
    )


def test_two_matrices_in_a_row() -> None:
    """Their product is used where float64 has it exactly, and every other time it is not."""
    merged = 0
    for seed in range(800):
        rng = np.random.default_rng(seed)
        net = _two_in_a_row(rng)
        x = np.full(net.n_inputs, rng.normal())
        bounder, r = bounded(net, x, x)
        merged += not bounder.parts[1]
        v = exactly(net, x)
        row = rng.normal(size=len(net.output))
        for i in net.output:
            assert r.lower[0, i] <= v[i] <= r.upper[0, i], seed
        exact = sum(Fraction(a) * y for a, y in zip(row, v[net.output], strict=True))
        assert pulled(bounder, r, row) <= exact, seed
    assert 100 < merged < 700


# Random networks of all that blocks may be


class _Drawn:
    """A network of small random blocks that like to be merged."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.blocks = [Block(0, int(rng.integers(1, 4)), "")]
        for _ in range(int(rng.integers(2, 7))):
            getattr(self, str(rng.choice(["sum", "sum", "sum", "bend", "larger"])))()

    @property
    def size(self) -> int:
        return self.blocks[-1].start + self.blocks[-1].size

    def network(self) -> Network:
        last = self.blocks[-1]
        output = np.arange(last.start, self.size)
        if self.rng.random() < 0.3:  # inner scalars, too
            output = np.append(output, self.rng.integers(self.size, size=2))
        return Network(self.blocks, [], self.blocks[0].size, output, self.size, [], True)

    def read(self) -> Array:
        """Mostly all or part of the last block."""
        last, rng = self.blocks[-1], self.rng
        whole = np.arange(last.start, self.size)
        if (chance := rng.random()) < 0.6:
            return whole
        if chance < 0.75:
            return np.sort(rng.choice(whole, size=rng.integers(1, len(whole) + 1), replace=False))
        if chance < 0.85:
            return rng.permutation(whole)
        return rng.integers(-1, self.size, size=rng.integers(1, 4))

    def numbers(self, *shape: int) -> Array:
        rng = self.rng
        match rng.integers(5):
            case 0:
                return rng.choice([-1.0, 0.0, 1.0], size=shape)
            case 1:
                return np.round(3 * rng.normal(size=shape))
            case 2:
                return np.round(2.0**28 * rng.normal(size=shape))
            case 3 if len(shape) == 2:
                picks = np.zeros(shape)
                column = rng.integers(shape[1], size=shape[0])
                picks[np.arange(shape[0]), column] = rng.choice([-1.0, 1.0, 2.5], p=[0.4, 0.4, 0.2])
                return picks
        return rng.normal(size=shape)

    def sum(self) -> None:
        rng, ids = self.rng, self.read()
        offset: Array | None = None
        terms: list[Term] = []
        match rng.integers(4):
            case 0:
                size = len(ids)
                terms = [Pick(ids, factor=self.numbers(size) if rng.random() < 0.3 else None)]
            case 1:
                count = int(rng.integers(1, 5))
                size, place = int(rng.integers(1, 4)), rng.integers(len(ids), size=count)
                terms = [Entries(ids[place], rng.integers(size, size=count), self.numbers(count))]
            case _:
                size = int(rng.integers(1, 4))
                terms = [Product(ids[None, :, None], weight=self.numbers(size, len(ids))[None])]
        if rng.random() < 0.3:
            terms.append(Pick(rng.integers(-1, self.size, size=size)))
        if rng.random() < 0.5:
            offset = self.numbers(size)
        roundings = int(rng.choice([0, len(ids) + 8]))
        self.blocks.append(Affine(self.size, size, "", tuple(terms), offset, None, roundings))

    def bend(self) -> None:
        ids = self.read()
        kind = str(self.rng.choice(["relu", "abs", "leaky"]))
        slope = self.rng.uniform(0, 2, size=len(ids)) if kind == "leaky" else None
        self.blocks.append(Curve(self.size, len(ids), "", kind, ids, slope, f"c{self.size}"))

    def larger(self) -> None:
        """max(a, b) = b + relu(a - b)."""
        a = self.read()
        b = self.rng.integers(self.size, size=len(a))
        minus = np.full(len(a), -1.0)
        terms: tuple[Term, ...] = Pick(a), Pick(b, factor=minus)
        self.blocks.append(Affine(self.size, len(a), "", terms, None, None, 0))
        gap = np.arange(self.size - len(a), self.size)
        self.blocks.append(Curve(self.size, len(a), "", "relu", gap, None, f"c{self.size}"))
        terms = Pick(b), Pick(gap + len(a))
        self.blocks.append(Affine(self.size, len(a), "", terms, None, None, 0, (a, b)))


@pytest.mark.parametrize("executed", [False, True])
def test_random_blocks(executed: bool) -> None:
    """Merged or not: every scalar that is left, and every row of outputs, is bounded."""
    for seed in range(150):
        rng = np.random.default_rng(seed)
        net = _Drawn(rng).network()
        center = rng.normal(size=net.n_inputs)
        radius = float(rng.choice([0.0, 1e-9, 0.3]))
        bounder, r = bounded(net, center - radius, center + radius, executed=executed)
        assert not r.empty.any()
        rows = rng.normal(size=len(net.output))
        least = pulled(bounder, r, rows)
        gone = [
            k
            for k, (now, old) in enumerate(zip(bounder.blocks, net.blocks, strict=True))
            if isinstance(now, Affine) and isinstance(old, Affine) and old.terms and not now.terms
        ]
        for x in (center, *rng.uniform(center - radius, center + radius, size=(2, net.n_inputs))):
            v = exactly(net, x)
            for k, block in enumerate(net.blocks):
                if k in gone:
                    continue
                for i in range(block.start, block.start + block.size):
                    assert r.lower[0, i] <= v[i] <= r.upper[0, i], (seed, k)
            assert least <= sum(Fraction(a) * y for a, y in zip(rows, v[net.output], strict=True))


# Rows of cases


def rows_of(
    outputs: Any = None, inputs: Any = None, offset: Any = None, *, n_inputs: int, n_outputs: int
) -> Rows:
    """One case with rows (R,)."""
    count = next(len(part) for part in (outputs, inputs, offset) if part is not None)
    used = np.ones((1, count), bool)
    return Rows(
        np.zeros((1, count, n_outputs)) if outputs is None else np.array([outputs], float),
        np.zeros((1, count, n_inputs)) if inputs is None else np.array([inputs], float),
        np.zeros((1, count)) if offset is None else np.array([offset], float),
        ~used,
        used,
    )


@pytest.mark.parametrize("of", ["outputs", "inputs", "offset"])
def test_weighted_rows_that_cancel(of: str, rng: np.random.Generator) -> None:
    """A sum of rows is rounded: over outputs, over inputs, and of their offsets."""
    for _ in range(12):
        weights, numbers = cancelling(rng, 20)
        weights, numbers = abs(weights), 1e15 * numbers * np.sign(weights)
        one = {of: numbers if of == "offset" else numbers[:, None]}
        net = network(1, identity([0]))
        bounder, r = bounded(net, [1.0], [1.0])
        prover = Prover(bounder, rows_of(**one, n_inputs=1, n_outputs=1))
        pending, start = prover.forms(r, np.array([[0]]), weights[None])
        lower = bounder.pull(r, pending, start).least(np.ones((1, 1)), np.ones((1, 1)))[0, 0]
        assert Fraction(float(lower)) <= product(weights, numbers)


def _refuted(
    net: Network, low: Any, high: Any, rows: Rows, weights: Array | None = None
) -> tuple[bool, Boxes]:
    """Whether the only case is refuted on a box, and what is left of that."""
    bounder = Bounder(net, executed=False)
    prover = Prover(bounder, rows)
    none = np.zeros((1, len(bounder.known_ids)))
    node = Boxes(
        np.array([low], float),
        np.array([high], float),
        np.array([[0]]),
        (none - np.inf, none + np.inf),
    )
    zero = np.zeros(1, int)
    combined = Combined(zero[:0], zero[:0], np.zeros((0, rows.offset.shape[1])))
    if weights is not None:
        combined = Combined(zero, zero, weights[None])
    with np.errstate(all="ignore"):
        left, rest, _ = prover.boxes(
            zero, node, np.zeros(1, bool), combined, Auditor(bounder, 0, 1)
        )
    return len(left) == 0, rest


def test_sums_of_thousands_of_rows() -> None:
    """y - a <= 0 and b - y <= 0 a thousand times each, for a slightly smaller than b.

    Each row has large coefficients and constants at the input. No row refutes anything; their sum
    cancels at the output, where little is lost, and all that is left are the constants.
    """
    count, large = 1000, 1e15
    net = network(2, dense([0, 1], np.full((1, 2), large), offset=np.full(1, -2 * large)))
    outputs = np.repeat([1.0, -1.0], count)[:, None]
    weights = np.ones(2 * count)
    lost = 2 * count * HALF_UNIT * 4 * Fraction(large)  # of one row
    for share in (Fraction(1, 4), Fraction(50)):
        offset = np.full(2 * count, float(share * lost))
        rows = rows_of(outputs, None, offset, n_inputs=2, n_outputs=1)
        box = [1 - 1e-9] * 2, [1 + 1e-9] * 2
        assert _refuted(net, *box, rows)[0] is False
        assert _refuted(net, *box, rows, weights)[0] is True, share


def test_weights_that_underflow() -> None:
    """A sum of offsets that is below zero, of which float64 holds the positive one only."""
    weights, unit = np.full(3, 2.0**-127), 2.0**-947  # their product is the least of all floats
    offset = np.array([0.6, -0.4, -0.4]) * unit
    assert product(weights, offset) < 0 < weights @ offset
    inputs = np.outer([1.0, -0.5, -0.5], [1.0, 1.0])  # a row alone may be below zero
    rows = rows_of(np.zeros((3, 2)), inputs, offset, n_inputs=2, n_outputs=2)
    net = network(2, identity([0, 1]))
    assert not _refuted(net, [-unit] * 2, [unit] * 2, rows, weights)[0]


# Boxes


@pytest.mark.parametrize("seed", range(5))
def test_what_is_clipped_off(seed: int) -> None:
    """Where a row can be at most zero is kept, to the last unit."""
    rng = np.random.default_rng(seed)
    prover = Prover(Bounder(network(3, identity(range(3))), executed=False),
                    rows_of(np.zeros((2, 3)), n_inputs=3, n_outputs=3))  # fmt: skip
    for k in range(40):
        center = rng.normal(size=3) * 10.0 ** rng.integers(-3, 17, size=3)
        radius = 10.0 ** rng.integers(-1, 3, size=3) * rng.uniform(size=3)
        low, high = center - radius, center + radius
        coefficients, lower = rng.normal(size=(2, 3)), -rng.uniform(size=2)
        if k < 5:  # subnormal numbers
            low, high, lower = np.zeros(3), np.full(3, 1e-320), np.full(2, -5e-324)
            coefficients *= 4
        coefficients[rng.random((2, 3)) < 0.2] = 0.0
        nothing = np.zeros((1, 0))
        node = Boxes(low[None], high[None], np.array([[0]]), (nothing, nothing))
        new = prover._clip(node, coefficients[None, None], lower[None, None])
        for i in range(3):
            least, most = Fraction(low[i]), Fraction(high[i])
            for a, bound in zip(coefficients[:, i], lower, strict=True):
                if a > 0:
                    most = min(most, Fraction(low[i]) + Fraction(-bound) / Fraction(a))
                elif a < 0:
                    least = max(least, Fraction(high[i]) + Fraction(-bound) / Fraction(a))
            assert Fraction(float(new[0][0, 0, i])) <= least
            assert Fraction(float(new[1][0, 0, i])) >= most


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (-1e308, 1e308), (0.0, 5e-324), (1.0, 1.0 + 2.0**-52), (-0.3, 1e9)],
)
def test_halves_share_their_border(low: float, high: float) -> None:
    below, above = _halves("Relu", low, high)
    assert below[0] == low
    assert above[1] == high
    assert low <= above[0] <= below[1] <= high


@pytest.mark.parametrize(
    ("low", "high", "end"),
    [(0.0, 1.0, 0.0), (0.0, 2.0, 1.0), (-3.0, 2.0, -1.0), (2.0, 7.0, 4.0), (5.0, 5.0, 5.0)],
)
def test_halves_of_whole_inputs_have_a_gap_without_whole_numbers(
    low: float, high: float, end: float
) -> None:
    assert _halves("Floor", low, high) == ((low, end), (end + 1.0, high))


def _halves(curve: str, low: float, high: float) -> tuple[tuple[float, float], ...]:
    """Both halves of an interval that a curve reads."""
    model = model_of([helper.make_node(curve, ["x"], ["y"])], {"x": (1,)}, ["y"])
    case = Case(np.array([low]), np.array([high]), (Row(((0, 1.0),), (), 0.0, strict=False),))
    bounder = Bounder(read_network(model.SerializeToString()), executed=False)
    prover = Prover(bounder, Rows.of([case], 1, 1))
    halves = prover.halves(prover.roots([case]), np.array([0]))
    return tuple((float(half.low[0, 0]), float(half.high[0, 0])) for half in halves)


# Paths over neurons


def _bound(
    net: Network, x: Any, splits: Sequence[tuple[int, float, float, float]], row: float = 1.0
) -> Fraction:
    """The bound of ``row y`` at a leaf over the box of one point; scalar, side, point, beta."""
    bounder, r = bounded(net, x, x)
    rows = rows_of([[row]], n_inputs=net.n_inputs, n_outputs=1)
    scalar, side, point, beta = (np.array([column]) for column in zip(*splits, strict=True))
    slopes, weights, tilted = np.zeros((1, 0)), np.ones((1, 1)), np.zeros(1, dtype=bool)
    path = Paths(np.array([0]), scalar, side, point, beta, slopes, weights, tilted)
    with np.errstate(all="ignore"):
        lower = Prover(bounder, rows).paths(r, path, Columns({}, {}), Auditor(bounder, 0, 1))
    return Fraction(float(lower[0]))


@pytest.mark.parametrize("behind", [False, True])
def test_multipliers_that_cancel(behind: bool, rng: np.random.Generator) -> None:
    """Splits of one neuron at the value that it has, from both sides: they change nothing."""
    for _ in range(25):
        parts = [dense([0], np.ones((1, 1))), identity([1])] if behind else [identity([0])]
        net = network(1, *parts)
        x = float(rng.normal())
        beta = np.exp(rng.normal(size=60)) * 1e12
        splits = [(int(behind), (-1.0) ** k, x, float(b)) for k, b in enumerate(beta)]
        for row in (1.0, -1.0):
            assert _bound(net, [x], splits, row) <= Fraction(row) * Fraction(x)


def test_multipliers_of_sums_that_cancel(rng: np.random.Generator) -> None:
    """Two sums that are zero, and nearly the same: the rows that their multipliers bring cancel."""
    for _ in range(25):
        # Few digits, so that a + b - (a + b) is zero; products with a multiplier have all of them.
        a, b = np.round(256 * rng.normal(size=(2, 3))) / 256
        c, d = np.round(256 * rng.normal(size=(2, 3))) * 2.0**-30
        weight = np.array([[*a, *b, *(-a - b)], [*(a + c), *(b + d), *(-a - b - c - d)]])
        net = network(9, dense(range(9), weight), identity([9, 10]), dense([11], np.ones((1, 1))))
        x = np.full(9, 1e15 * rng.normal())
        assert not exactly(net, x)[9:].any()
        beta = 1e9 * float(np.exp(rng.normal()))
        for side in (1.0, -1.0):
            assert _bound(net, x, [(9, side, 0.0, beta), (10, -side, 0.0, beta)]) <= 0


def test_a_path_of_thousands_of_splits() -> None:
    """2^53 and then 5/4 again and again: rounded up by 3/4 each, at the point 3 by 1/4."""
    net = network(1, dense([0], np.ones((1, 1))), identity([1]))
    splits = [(1, -1.0, 3.0, 2.0**53)] + [(1, -1.0, 3.0, 1.25)] * 4000
    assert _bound(net, [3.0], splits) <= 3


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_split_of_an_input(side: float) -> None:
    """A curve may read an input: its multiplier is subtracted there, as anywhere else."""
    net = network(1, identity([0]))
    assert _bound(net, [0.75], [(0, side, 0.75 - side / 2, 100.0)]) <= Fraction(0.75)
