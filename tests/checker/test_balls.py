"""The checker over ellipsoids: rule R1 in exact arithmetic, and certificates of whole queries."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxcert
from onnxcert.checker.audit import Auditor
from onnxcert.checker.balls import Balls, Ellipsoid
from onnxcert.checker.bounds import Bounder, Form
from onnxcert.checker.certificate import EXECUTED, REAL, Session
from onnxcert.checker.errors import Rejected, Unusable
from onnxcert.checker.spec import read_spec
from onnxcert.frontend.vnnlib import parse_query
from tests.bounds.test_balls import random_ball, some_points
from tests.checker.makers import Instance, bound_to, edited, processor_seconds, prove
from tests.oracles import dot, exact
from tests.proof.networks import network
from tests.strategies import seeds

WAYS = ["auto", "input", "neuron"]
CENTER = (0.1, -0.3, 0.25)


@given(seeds, st.sampled_from([1, 3, 40]), st.sampled_from([1.0, 1e-9, 1e12]))
def test_the_least_value_of_a_form(seed: int, size: int, scale: float) -> None:
    """Nowhere above an exact value, also of forms that cancel."""
    rng = np.random.default_rng(seed)
    ball = random_ball(rng, size)
    low, high, center, axes = (
        scale * part for part in (ball.lower, ball.upper, ball.center, ball.axes)
    )
    scaled = type(ball)(low, high, center, axes)
    rows, constant = rng.normal(size=(2, 1, size)), np.zeros((2, 1))
    points = some_points(scaled, rng)
    for number, x in points:
        constant[number] = -float(rows[number, 0] @ x)
        least = Form(rows, constant).least(low, high, Balls(center, axes))[number, 0]
        value = Fraction(float(constant[number, 0]))
        value += dot(rows[number, 0], exact(x))
        assert Fraction(float(least)) <= value


@given(
    st.fractions(-5, 5, max_denominator=1000),
    st.fractions(Fraction(1, 100), 5, max_denominator=1000),
    st.sampled_from([Fraction(2) ** -1074, Fraction(2) ** -1022, Fraction(1), Fraction(2) ** 900]),
)
def test_the_floats_contain_the_ellipsoid(
    center: Fraction, radius: Fraction, unit: Fraction
) -> None:
    """Also where floats are so coarse that a product with more than one changes nothing."""
    center, radius = center * unit, radius * unit
    ball = Ellipsoid((0,), (1 / radius**2,), (center,))
    middle, axes = (Fraction(float(part[0])) for part in ball.floats(1))
    assert middle - axes <= center - radius
    assert center + radius <= middle + axes


def test_squares_with_long_denominators_are_refused() -> None:
    """Their common denominator has a hundred thousand digits, and is in every weight."""
    size = 3000
    names = " ".join(f"(declare-const X_{i} Real)" for i in range(size))
    terms = " ".join(f"(* {10**9 + 2 * i + 1} X_{i} X_{i}) X_{i}" for i in range(size))
    text = f"{names} (declare-const Y_0 Real) (assert (<= (+ {terms}) 1.0)) (assert (<= Y_0 1.0))"
    with processor_seconds(20), pytest.raises(Unusable, match="too long"):
        read_spec(text.encode())


def test_many_long_squares_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 300
    names = " ".join(f"(declare-const X_{i} Real)" for i in range(size))
    terms = " ".join(f"(* {10**9 + 2 * i + 1} X_{i} X_{i}) X_{i}" for i in range(size))
    text = f"{names} (declare-const Y_0 Real) (assert (<= Y_0 1.0))"
    ball = f"(assert (<= (+ {terms}) 1.0))"
    assert read_spec((text + 2 * ball).encode()).has_balls
    monkeypatch.setattr("onnxcert.checker.spec._LARGEST_WORK", 10**5)
    with pytest.raises(Unusable, match="too long"):
        read_spec((text + 2 * ball).encode())


@given(seeds)
def test_the_bound_is_the_engine_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 20))
    ball = random_ball(rng, size)
    rows = rng.normal(size=(2, 3, size))
    balls = Balls(ball.center, ball.axes)
    share, points = balls.divide(rows, ball.lower, ball.upper)
    least = Form(rows, np.zeros((2, 3))).least(ball.lower, ball.upper, balls)
    assert least == pytest.approx((rows * points).sum(axis=2), rel=1e-6, abs=1e-6)
    without = Form(rows, np.zeros((2, 3))).least(ball.lower, ball.upper)
    assert (least >= without - 1e-9).all()
    assert share.shape == rows.shape
    assert (ball.empty == balls.apart(ball.lower, ball.upper)).all()


def text(
    rows: str, square: str, *, kind: str = "real", box: str = "", center: Sequence[float] = CENTER
) -> bytes:
    """A ball in three dimensions, and what its outputs shall be."""
    terms = [f"(* (- X[0,{i}] {c}) (- X[0,{i}] {c}))" for i, c in enumerate(center)]
    return f"""(vnnlib-version <2.0>)
(declare-network N (declare-input X {kind} [1,3]) (declare-output Y {kind} [1,2]))
{box}(assert (<= (+ {" ".join(terms)}) {square}))
(assert {rows})
""".encode()


DOMAIN = "".join(f"(assert (>= X[0,{i}] -0.5)) (assert (<= X[0,{i}] 0.5))\n" for i in range(3))


def least_over(model: onnx.ModelProto, radius: float, box: bool) -> float:
    """The least of ``y_0 - y_1`` over the ball, as far as samples tell."""
    rng = np.random.default_rng(0)
    graph = onnxcert.load_model(model).graph
    points = rng.normal(size=(40000, 3))
    points *= radius / np.linalg.norm(points, axis=1, keepdims=True)
    points[::4] *= rng.random((10000, 1))
    points = np.array(CENTER) + points
    if box:
        points = points[(abs(points) <= 0.5).all(axis=1)]
    y = graph.forward(points)
    return float((y[:, 0] - y[:, 1]).min())


@pytest.fixture(scope="module", params=["relu", "sigmoid"])
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return network(request.param)


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_certificates_are_accepted_and_speak_of_their_ball(
    model: onnx.ModelProto, way: str, box: bool
) -> None:
    """Just below the least value there is nothing; above it, or with a larger ball, there is."""
    least, domain = least_over(model, 0.5, box), DOMAIN if box else ""
    asked = f"(<= (- Y[0,0] Y[0,1]) {least - 0.02:.6f})"
    instance = Instance(model.SerializeToString(), text(asked, "0.25", box=domain))
    certificate = prove(instance, splitting=way, watch="off")
    session = Session(instance.model, instance.spec)
    verified = session.check(certificate, audit=1 if way == "neuron" else 0)
    assert verified.verdict == "unsat"
    # The same tree says nothing of a larger ball, of one without the box, or of one elsewhere.
    others = [
        text(asked, "0.36", box=domain),
        text(asked, "0.25", box=domain, center=(0.1, -0.3, 0.6)),
    ]
    others += [text(asked, "0.25")] if box and least_over(model, 0.5, False) < least - 0.03 else []
    for spec in others:
        other = Instance(instance.model, spec)
        if word_for(other) == "sat":
            with pytest.raises(Rejected, match="R8"):
                Session(other.model, other.spec).check(bound_to(other, certificate))
        with pytest.raises(Rejected, match="R0"):
            Session(other.model, other.spec).check(certificate)


def word_for(instance: Instance) -> str:
    query = parse_query(instance.spec)
    found = onnxcert.verify(
        onnx.ModelProto.FromString(instance.model), query, timeout=30, certified=False
    )
    return found.word


def test_witnesses_are_replayed(model: onnx.ModelProto) -> None:
    least = least_over(model, 0.5, False)
    asked = f"(<= (- Y[0,0] Y[0,1]) {least + 0.02:.6f})"
    instance = Instance(model.SerializeToString(), text(asked, "0.25", kind="float32"))
    certificate = prove(instance)
    session = Session(instance.model, instance.spec)
    assert session.check(certificate).verdict == "sat"

    def moved(header: object, arrays: dict[str, np.ndarray]) -> None:
        del header
        x = arrays["x0"].astype(np.float64)
        away = (x - CENTER) / np.linalg.norm(x - CENTER)
        arrays["x0"] = (np.array(CENTER) + 0.5000001 * away).astype(np.float32)

    with pytest.raises(Rejected, match="R13"):
        session.check(edited(certificate, moved))


@pytest.mark.parametrize("way", WAYS)
def test_executions_are_covered(way: str) -> None:
    model = network("relu")
    asked = f"(<= (- Y[0,0] Y[0,1]) {least_over(model, 0.5, False) - 0.05:.6f})"
    instance = Instance(model.SerializeToString(), text(asked, "0.25", kind="float32"))
    certificate = prove(instance, semantics=EXECUTED, splitting=way, watch="off")
    session = Session(instance.model, instance.spec)
    assert EXECUTED in session.check(certificate, EXECUTED).claims
    with pytest.raises(Rejected, match="R0"):
        session.check(prove(instance, semantics=REAL), EXECUTED)


def test_several_balls_and_boxes_in_one_query() -> None:
    """Plain bounds of several sets share a group; some of them are cut by ellipsoids."""
    model = network("relu")
    least = min(least_over(model, 0.5, False), least_over(model, 0.5, True))
    one = "(and {} (<= (- Y[0,0] Y[0,1]) {:.6f}))"
    squares = " ".join(f"(* (- X[0,{i}] {c}) (- X[0,{i}] {c}))" for i, c in enumerate(CENTER))
    ball = f"(<= (+ {squares}) {{}})"
    small = " ".join(
        f"(>= X[0,{i}] {c - 0.05}) (<= X[0,{i}] {c + 0.05})" for i, c in enumerate(CENTER)
    )
    parts = [one.format(ball.format(r), least - 0.2) for r in (0.25, 0.04, 0.01)]
    parts.append(one.format(small, least - 0.2))
    spec = text(f"(or {' '.join(parts)})", "9.0").decode()
    lines = [line for line in spec.splitlines() if "9.0" not in line]  # not the ball of all
    instance = Instance(model.SerializeToString(), "\n".join(lines).encode())
    for way in WAYS:
        certificate = prove(instance, splitting=way, watch="off")
        verified = Session(instance.model, instance.spec).check(certificate, audit=4)
        assert verified.verdict == "unsat"


def test_audits_refuse_what_is_not_positive() -> None:
    """x_0 over the unit disc is at least -1, which an audit knows to the last digit."""
    instance = Instance(network("relu").SerializeToString(), text("(<= Y[0,0] 0.0)", "1.0"))
    bounder = Bounder(Session(instance.model, instance.spec).network, executed=False)
    low, high = np.full((1, 3), -1.0), np.full((1, 3), 1.0)
    balls = Balls(np.zeros((1, 3)), np.ones((1, 3)))
    r = bounder.bound(low, high, balls=balls)
    auditor = Auditor(bounder, 1, 1)
    rows = {0: Fraction(3), 1: Fraction(4)}
    box = (low[0].tolist(), high[0].tolist())
    auditor.audit(r, 0, rows, Fraction(5) + Fraction(1, 10**12), box)
    with pytest.raises(Rejected, match="not refuted"):
        auditor.audit(r, 0, rows, Fraction(5) - Fraction(1, 10**12), box)
