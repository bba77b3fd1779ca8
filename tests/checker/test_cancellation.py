"""Networks with a switch that only rounding can throw, and others whose sums cancel.

Over the reals and over binary32 executions they compute different things (Zombori et al., *Fooling
a Complete Neural Network Verifier*, 2021). What a claim says of the reals is compared with exact
values, what it says of executions with executions: sums in many orders, and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import permutations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import onnxcert
from onnxcert import Settings, Unsat
from onnxcert.checker.certificate import EXECUTED, REAL
from onnxcert.frontend.onnx import load_model
from tests.bounds.executions import Execution
from tests.checker.makers import ACCEPTED, Instance, by_hand, spec
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_values

Model = onnx.ModelProto


def layers(*parts: tuple[Sequence[Sequence[float]], Sequence[float]]) -> Model:
    """Gemm layers (weights (in, out), biases) with relus between."""
    nodes, constants, value = [], {}, "x"
    for number, (weight, bias) in enumerate(parts):
        constants[f"w{number}"] = np.array(weight, np.float32)
        constants[f"b{number}"] = np.array(bias, np.float32)
        target = "y" if number == len(parts) - 1 else f"z{number}"
        nodes.append(helper.make_node("Gemm", [value, f"w{number}", f"b{number}"], [target]))
        value = f"h{number}"
        if target != "y":
            nodes.append(helper.make_node("Relu", [target], [value]))
    return model_of(nodes, {"x": [1, 1]}, ["y"], constants)


def cancelling(large: float, order: Sequence[int] = (0, 1, 2)) -> Model:
    """y = relu(large) - relu(x + 2) - relu(large) + 0.5 = -1.5 - x."""
    place = list(order)
    first = np.array([[0.0, 1.0, 0.0]])[:, place]
    bias = np.array([large, 2.0, large])[place]
    signs = np.array([[1.0], [-1.0], [-1.0]])[place]
    return layers((first.tolist(), bias.tolist()), (signs.tolist(), [0.5]))


def switch(large: float) -> Model:
    """y = relu(large x + 1) - relu(large x) - 0.5 is 0.5 for x >= 0, and -0.5 where 1 is lost."""
    return layers(([[large, large]], [1.0, 0.0]), ([[1.0], [-1.0]], [-0.5]))


def hidden_switch(large: float) -> Model:
    """y = x while the switch holds, x - 8 where it does not."""
    return layers(
        ([[large, large, 1.0]], [1.0, 0.0, 4.0]),
        ([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.5, 0.0]),
        ([[-16.0], [1.0]], [-4.0]),
    )


def alternating(large: float) -> Model:
    """y = large x - large x + large x - large x + ... + x."""
    signs = [[1.0], [-1.0]] * 4 + [[1.0]]
    return layers(([[large] * 8 + [1.0]], [0.0] * 9), (signs, [0.0]))


def growing(large: float) -> Model:
    """y = (large x / 3) (3 / large) - x + 0.25, through two layers and with rounded weights."""
    return layers(
        ([[1.0, 1.0]], [0.0, 0.0]),
        ([[large / 3, 0.0], [0.0, 1.0]], [0.0, 0.0]),
        ([[3 / large, 0.0], [0.0, 1.0]], [0.0, 0.0]),
        ([[1.0], [-1.0]], [0.25]),
    )


FAMILIES: dict[str, Callable[[float], Model]] = {
    "cancelling": cancelling,
    "switch": switch,
    "hidden_switch": hidden_switch,
    "alternating": alternating,
    "growing": growing,
}
LARGE = [2.0**10, 2.0**24, 2.0**27, 2.0**30, 2.0**60]
BOX = {"cancelling": (-1.0, -0.875)}
OTHERS = (0.5, 1.0)


def asked(model: Model, box: tuple[float, float], sign: int, bound: float) -> Instance:
    """Is ``sign * y <= bound`` somewhere?"""
    return Instance(model.SerializeToString(), spec(([box[0]], [box[1]], [([float(sign)], bound)])))


def grid(depth: int) -> dict[str, object]:
    """The box in 2^depth parts."""
    op: list[int] = [0]
    for _ in range(depth):
        op = [1, *op, *op]
    return {"group": [[0, 1, len(op), 0, 0, 0]], "case": [0], "op": op, "arg": [0] * sum(op)}


def is_accepted(it: Instance, semantics: str) -> bool:
    """Whether plain bounds, or those of many small boxes, refute the question."""
    return any(
        it.outcome(by_hand(it, grid(depth), semantics=semantics)) == ACCEPTED for depth in (0, 3)
    )


def real_range(model: Model, box: tuple[float, float]) -> tuple[Fraction, Fraction]:
    """Smallest and largest of exact values on a grid; the networks above are linear in there."""
    graph = load_model(model).graph
    points = np.linspace(*box, 17)
    values = [exact_values(graph, [x])[graph.output][0] for x in points]
    return min(values), max(values)


def executed_range(model: Model, box: tuple[float, float]) -> tuple[float, float]:
    """The same of binary32 executions: infinite if one of them is not finite."""
    graph = load_model(model).lowered
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = []
    for x in np.linspace(*box, 9).astype(np.float32):
        values += [
            Execution(rng).run(graph, np.array([float(x)]))[graph.output][0] for _ in range(12)
        ]
        values.append(float(session.run(None, {"x": x.reshape(1, 1)})[0].ravel()[0]))
    if not np.isfinite(values).all():
        return -np.inf, np.inf
    return min(values), max(values)


STEPS = [0.0, 2.0**-30, 2.0**-20, 2.0**-10, 0.125, 0.5, 1.0, 4.0, 16.0]


@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_claims_about_the_reals(family: str, large: float) -> None:
    """None that is false is accepted, and those that are true by enough are."""
    model, box = FAMILIES[family](large), BOX.get(family, OTHERS)
    low, high = real_range(model, box)
    proved = 0
    for sign, least in ((1, low), (-1, -high)):
        for step in STEPS:
            it = asked(model, box, sign, float(least) + step)
            assert not is_accepted(it, REAL), (sign, step)
            if not step:
                continue
            below = asked(model, box, sign, float(least) - step)
            accepted = is_accepted(below, REAL)
            proved += accepted
            # The checker's own error: some hundred units of the largest intermediate sum.
            if step > 1024 * 2.0**-52 * large:
                assert accepted, (sign, step)
    assert proved > 0 or large > 2.0**50


@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_claims_about_every_execution(family: str, large: float) -> None:
    """None is accepted that the reals or some execution contradict."""
    model, box = FAMILIES[family](large), BOX.get(family, OTHERS)
    real, executed = real_range(model, box), executed_range(model, box)
    low, high = min(float(real[0]), executed[0]), max(float(real[1]), executed[1])
    if not np.isfinite([low, high]).all():
        low, high = -1e6, 1e6
    proved = 0
    for sign, least in ((1, low), (-1, -high)):
        for step in STEPS:
            assert not is_accepted(asked(model, box, sign, least + step), EXECUTED), (sign, step)
            below = asked(model, box, sign, least - step)
            accepted = step > 0 and is_accepted(below, EXECUTED)
            assert not accepted or is_accepted(below, REAL)  # it implies the reals
            proved += accepted
    assert proved > 0 or large > 2.0**15


def test_the_executions_differ() -> None:
    """Otherwise the tests above would compare nothing."""
    for family, large, expected in (
        ("cancelling", 2.0**60, (-0.5, 0.5)),
        ("switch", 2.0**24, (-0.5, 1.0)),
        ("hidden_switch", 2.0**27, (-7.5, 1.0)),
    ):
        model, box = FAMILIES[family](large), BOX.get(family, OTHERS)
        low, high = executed_range(model, box)
        assert low <= expected[0], family
        assert high >= expected[1], family


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("large", [2.0**27, 2.0**60])
def test_large_terms_in_any_order(order: tuple[int, ...], large: float) -> None:
    """-0.5 is never exceeded in the reals, and 0.5 is reached in binary32."""
    model, box = cancelling(large, order), (-1.0, -0.875)
    for bound in (-0.625, -0.5625, -0.5):  # y is all of [-0.625, -0.5]
        assert not is_accepted(asked(model, box, 1, bound), REAL)
    assert not is_accepted(asked(model, box, -1, -0.25), EXECUTED)
    assert not is_accepted(asked(model, box, 1, -0.625), EXECUTED)
    if large < 2.0**40:
        assert is_accepted(asked(model, box, -1, -0.25), REAL)  # y >= 0.25 has no solution
        assert is_accepted(asked(model, box, 1, -0.75), REAL)


@pytest.mark.parametrize("semantics", [REAL, EXECUTED])
@pytest.mark.parametrize("splitting", ["input", "neuron"])
@pytest.mark.parametrize("family", ["cancelling", "switch", "hidden_switch"])
def test_the_whole_verifier(family: str, splitting: str, semantics: str) -> None:
    """Engine and checker together say nothing false either."""
    model, box = FAMILIES[family](2.0**27), BOX.get(family, OTHERS)
    real, executed = real_range(model, box), executed_range(model, box)
    low = float(real[0]) if semantics == REAL else min(float(real[0]), executed[0])
    settings = Settings(splitting=splitting)  # type: ignore[arg-type]
    query = onnxcert.box([box[0]], [box[1]]).unsafe([1], low + 2.0**-12)
    result = onnxcert.verify(model, query, timeout=0.4, settings=settings, semantics=semantics)
    assert not isinstance(result.verdict, Unsat)
    query = onnxcert.box([box[0]], [box[1]]).unsafe([1], float(real[0]) - 0.25)
    result = onnxcert.verify(model, query, timeout=5, settings=settings, semantics=REAL)
    assert isinstance(result.verdict, Unsat)
    assert result.proof is not None
    assert result.proof.claims == (REAL,)
