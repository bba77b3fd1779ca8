"""Rule R16 at inputs: forms end at those that hardly vary before the block that reads them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.checker.bounds import Bounder, Form
from onnxcert.checker.certificate import EXECUTED, REAL
from onnxcert.checker.coefficients import Pending
from onnxcert.checker.forward import Forms
from onnxcert.checker.network import Entries, Network
from onnxcert.frontend.onnx import load_model
from tests.bounds.executions import Execution
from tests.checker import makers
from tests.checker.makers import ACCEPTED, Instance, by_hand, spec
from tests.checker.test_bounds import made_always, question, scalars
from tests.checker.test_rounding import (
    affine,
    bounded,
    cancelling,
    curve,
    dense,
    exactly,
    identity,
    network,
    product,
    pulled,
)

Array = np.ndarray[Any, Any]
INPUTS = 8


@st.composite
def partly_fixed(draw: st.DrawFn, batch: int) -> tuple[Array, Array, Array]:
    """Boxes (B, 8) where few inputs are more than a decimal between two floats; points in them."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    low = rng.normal(size=(batch, INPUTS)) * 10.0 ** rng.integers(-2, 2, size=INPUTS)
    high = np.where(rng.random(low.shape) < 0.5, low, np.nextafter(low, np.inf))
    few = rng.choice(INPUTS, size=draw(st.integers(0, INPUTS // 2)), replace=False)
    for box in range(batch):
        some = few[rng.random(len(few)) < 0.8]
        high[box, some] = low[box, some] + draw(st.sampled_from([1e-6, 0.3, 1.0]))
    share = rng.random((3, *low.shape)).round(draw(st.sampled_from([0, 3])))
    return low, high, np.clip(low + share * (high - low), low, high)


@pytest.mark.parametrize("kind", ["Relu", "Tanh", "LeakyRelu"])
@given(case=partly_fixed(2), seed=st.integers(0, 30), forms=st.booleans())
def test_bounds_and_forms_hold(
    kind: str, case: tuple[Array, Array, Array], seed: int, forms: bool
) -> None:
    low, high, points = case
    model = makers.dense([INPUTS, 5, 4, 2], seed, curve=kind)
    net = question(model, low[0].tolist(), high[0].tolist()).session.network
    bounder = Bounder(net, executed=False)
    with np.errstate(all="ignore"), made_always(forms):
        r = bounder.bound(low, high)
    assert r.ended or r.ends(1)
    rows = np.random.default_rng(seed).normal(size=(2, 3, 2))
    pending: Pending = {}
    bounder.outputs.push(pending, rows.reshape(-1, 2))
    form = bounder.pull(r, pending, np.zeros((2, 3)))
    lower, wide = form.least(low, high), form.wide(INPUTS)
    assert np.allclose(Form(wide, form.constant).least(low, high), lower, rtol=0, atol=1e-9)
    for sample in points:
        for number, x in enumerate(sample):
            values = scalars(bounder, x)
            sides = zip(values, r.lower[number], r.upper[number], strict=True)
            for value, a, b in sides:
                assert Fraction(float(a)) <= value <= Fraction(float(b))
            made = [values[i] for i in net.output]
            for row, bound, a, c in zip(
                rows[number], lower[number], wide[number], form.constant[number], strict=True
            ):
                value = sum(Fraction(float(w)) * y for w, y in zip(row, made, strict=True))
                assert Fraction(float(bound)) <= value
                # The form over the others holds at every point, not only its least value.
                assert product(a, x) + Fraction(float(c)) <= value


@given(case=partly_fixed(3), seed=st.integers(0, 30))
def test_other_sets_of_a_batch_change_only_roundings(
    case: tuple[Array, Array, Array], seed: int
) -> None:
    """Where an input varies on another set of the batch it is not ended on any."""
    low, high, _ = case
    model = makers.dense([INPUTS, 5, 4, 2], seed)
    net = question(model, low[0].tolist(), high[0].tolist()).session.network
    bounder = Bounder(net, executed=False)
    together = bounder.bound(low, high)
    for number in range(3):
        alone = bounder.bound(low[[number]], high[[number]])
        for side in ("lower", "upper"):
            here, there = getattr(together, side)[number], getattr(alone, side)[0]
            assert np.allclose(here, there, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 200))
def test_executions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = makers.dense([INPUTS, 5, 4, 2], seed)
    low = rng.normal(size=INPUTS).astype(np.float32)
    high = low.copy()
    high[:2] += np.float32(0.5)
    box = low.astype(float), high.astype(float)
    net = question(model, box[0].tolist(), box[1].tolist()).session.network
    bounder = Bounder(net, executed=True)
    r = bounder.bound(box[0][None], box[1][None])
    assert r.ended
    graph = load_model(model).lowered
    for _ in range(5):
        x = rng.uniform(*box).astype(np.float32).astype(float).clip(*box)
        y = Execution(rng).run(graph, x)[graph.output]
        assert (r.lower[0, net.output] <= y).all()
        assert (y <= r.upper[0, net.output]).all()


def summed(weight: Array, offset: float = 0.0) -> Network:
    """One sum of all inputs but the last and that one, behind a curve that is none."""
    row = np.append(weight, 1.0)[None]
    parts = dense(range(len(weight) + 1), row, offset=np.array([offset]))
    return network(len(weight) + 1, parts, identity([len(weight) + 1]))


@pytest.mark.parametrize("width", [0, 1])
def test_sums_that_cancel(width: int, rng: np.random.Generator) -> None:
    """What is left of the fixed part is roundings, and those of both products are charged."""
    for _ in range(40):
        weight, x = cancelling(rng, 40)
        net = summed(weight, -float(product(weight, x)))
        low, high = np.append(x, 0.0), np.append(x, 1e-9)
        for _ in range(width):
            high[:-1] = np.nextafter(high[:-1], np.inf)
        bounder, r = bounded(net, low, high)
        assert r.ended
        for sign in (1.0, -1.0):
            corner = np.where(sign * np.append(weight, 1.0) > 0, low, high)
            value = Fraction(sign) * exactly(net, corner)[-2]
            assert Fraction(pulled(bounder, r, [sign])) <= value


def test_the_charge_covers_any_order(rng: np.random.Generator) -> None:
    """The width of the inputs, and Higham's bound of the products with them and with the rows."""
    count, rows = 300, 200
    weight, offset = rng.normal(size=(rows, count)), 1e3 * rng.normal(size=rows)
    layer = dense(range(count), weight, offset=offset)
    net = network(count, layer, curve("relu", count + np.arange(rows)))
    x = rng.normal(size=count)
    high = x + 2.0**-46 * abs(x)
    high[:2] += 0.1
    _, r = bounded(net, x, high)
    _, point = bounded(net, x, np.where(np.arange(count) < 2, high, x))
    middle, radius, matrix = r.ended[1]
    assert matrix.shape == (rows, 2)
    assert (matrix == weight[:, :2]).all()
    size = abs(weight[:, 2:]) @ abs(x[2:]) + abs(offset)
    assert (point.ended[1][1][0] >= (count + rows) * 2.0**-53 * size).all()
    width = abs(weight[:, 2:]) @ (0.5 * (high - x)[2:])
    assert (radius[0] - point.ended[1][1][0] >= (1 - 1e-3) * width).all()
    assert np.allclose(middle[0], weight[:, 2:] @ x[2:] + offset)


def test_what_is_off_is_charged(rng: np.random.Generator) -> None:
    """With the absolute rows, where sums are read by curves only and where they are not."""
    weight = rng.normal(size=(3, INPUTS))
    layer = dense(range(INPUTS), weight)
    low = rng.normal(size=INPUTS)
    high = low.copy()
    high[0] += 0.1
    for parts in ((layer, identity(INPUTS + np.arange(3))), (layer,)):
        bounder, r = bounded(network(INPUTS, *parts), low, high)
        before = pulled(bounder, r, [1.0, -2.0, 0.5])
        middle, radius, matrix = r.ended[1]
        r.ended[1] = middle, radius + np.array([1.0, 2.0, 4.0]), matrix
        after = pulled(bounder, r, [1.0, -2.0, 0.5])
        assert np.isclose(before - after, 7.0, rtol=1e-4)


@pytest.mark.parametrize("semantics", [REAL, EXECUTED])
def test_what_is_false_by_the_width_of_a_decimal_is_refused(semantics: str) -> None:
    """2^40 times an input between two floats: all that the sum varies by counts."""
    weight = np.zeros((INPUTS, 1))
    weight[0, 0], weight[1, 0] = 2.0**40, 1.0
    model = makers.model_of(
        [
            makers.helper.make_node("MatMul", ["x", "w"], ["z"]),
            makers.helper.make_node("Relu", ["z"], ["h"]),
            makers.helper.make_node("MatMul", ["h", "v"], ["y"]),
        ],
        {"x": [1, INPUTS]},
        ["y"],
        {"w": weight.astype(np.float32), "v": np.ones((1, 1), np.float32)},
    )
    low = np.full(INPUTS, 1.0)
    high = low.copy()
    high[0] += 2.0**-46
    high[1] += 2.0**-30
    top = 2.0**40 * high[0] + high[1]  # exact
    slack = 2.0**-3 if semantics == REAL else 2.0**22
    for limit, expected in ((top + slack, ACCEPTED), (2.0**40 + 1.0 + 2.0**-8, "R8")):
        text = spec((low.tolist(), high.tolist(), [([-1.0], -limit)]))
        it = Instance(model.SerializeToString(), text)
        assert it.outcome(by_hand(it, semantics=semantics)) == expected


def test_forward_forms_have_no_column_for_decimals() -> None:
    """Their width is in the radius, for each box that of its own."""
    low = np.tile(np.array([1.0, 2.0, 4.0, 8.0]), (2, 1))
    high = np.nextafter(low, np.inf)
    high[0, 1] = high[1, 2] = 5.0
    forms = Forms.begin(low, high, size=5, widest=1000, gamma=1e-15)
    assert forms is not None
    assert forms.terms.shape == (2, 2, 6)
    terms, radius = forms.terms[:, :, :4], forms.radius[:, :4]
    vary = np.array([[False, True, False, False], [False, False, True, False]])
    assert ((terms[:, 1] != 0) == vary).all()
    inside = (terms[:, 0] - radius <= low) & (terms[:, 0] + radius >= high)
    assert (inside | vary).all()
    assert ((radius > 0) != vary).all()


def test_audits_agree() -> None:
    """Exact arithmetic follows the fixed inputs to their box, and finds no less."""
    model = makers.dense([INPUTS, 5, 4, 1], 3)
    low = np.linspace(-1.0, 1.0, INPUTS)
    high = np.nextafter(low, np.inf)
    high[2] += 0.5
    it = Instance(model.SerializeToString(), spec((low.tolist(), high.tolist(), [([1.0], -1e3)])))
    assert it.session.check(by_hand(it), audit=10).audited == 1


def test_blocks_that_are_no_matrix_go_on_to_all_inputs() -> None:
    """Scattered factors, and a matrix that reads an input twice."""
    ids = np.arange(INPUTS)
    scattered = Entries(ids, out=ids // 2, value=np.ones(INPUTS))
    low = np.ones(INPUTS)
    high = low.copy()
    high[3] += 0.5
    for part in (
        affine(scattered, size=INPUTS // 2),
        dense([*range(INPUTS), 0], np.ones((INPUTS // 2, INPUTS + 1))),
    ):
        net = network(INPUTS, part, identity(INPUTS + np.arange(INPUTS // 2)))
        bounder, r = bounded(net, low, high)
        assert r.few is not None
        assert not r.ended
        least = float(exactly(net, low)[-2])
        assert least - 1e-9 <= pulled(bounder, r, [0.0, 0.0, 0.0, 1.0]) <= least
