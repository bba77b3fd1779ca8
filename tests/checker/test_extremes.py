"""Curves, quotients and shares where numbers are extreme: what was once wrong there."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcert.checker import curves, pairs
from onnxcert.checker.audit import _crosses_power
from onnxcert.checker.bounds import Bounder
from onnxcert.checker.certificate import Session
from onnxcert.checker.curves import Array
from onnxcert.checker.errors import Unusable
from onnxcert.checker.network import Pair
from onnxcert.ops import Divide, Reciprocal
from onnxcert.sets import Box
from tests.checker.makers import ACCEPTED, Instance, by_hand, spec
from tests.frontend.onnx_models import model_of

FAR = [(1e160, 1e200), (1e160, 1e300), (-1e300, -1e200), (1.0, 1e300), (1e20, 1e308)]


def softmax(axis: int | None, shape: list[int], opset: int) -> onnx.ModelProto:
    node = helper.make_node("Softmax", ["x"], ["y"])
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    nodes = [node]
    return model_of(nodes, {"x": shape}, ["y"], opset=opset)


@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize("axis", [-2, -1, 0, 1, 2])
def test_axes_of_shares_count_as_in_onnxruntime(opset: int, axis: int) -> None:
    """Before version 13 all axes from the given one on are one, from the end counted, too."""
    runtime = pytest.importorskip("onnxruntime")
    model, x = softmax(axis, [1, 2, 3], opset), np.linspace(-1, 2, 6)
    run = runtime.InferenceSession(model.SerializeToString())
    (expected,) = run.run(None, {"x": x.reshape(1, 2, 3).astype(np.float32)})
    session = Session(model.SerializeToString(), spec(([-1] * 6, [2] * 6, []), outputs=6))
    np.testing.assert_allclose(session.network.forward(x[None])[0], expected.ravel(), rtol=1e-5)


@pytest.mark.parametrize("opset", [7, 11])
def test_shares_over_no_axes_are_refused(opset: int) -> None:
    """Version 11 takes axis 1 where none is given, which a vector does not have."""
    asked = spec(([-1] * 3, [2] * 3, []), outputs=3)
    with pytest.raises(Unusable, match="makes no sense"):
        Session(softmax(None, [3], opset).SerializeToString(), asked)


def test_shares_of_the_last_axis_are_not_all_one() -> None:
    """A share of at most 0.9 is asked for, and there are many."""
    model = softmax(-1, [1, 3], 11)
    asked = spec(([-1.0] * 3, [1.0] * 3, [([1.0, 0.0, 0.0], 0.9)]), outputs=3)
    instance = Instance(model.SerializeToString(), asked)
    assert instance.outcome(by_hand(instance)) != ACCEPTED


@pytest.mark.parametrize(("low", "high"), FAR)
@pytest.mark.parametrize("position", [None, 0.0, 1.0])
def test_lines_of_reciprocals_whose_slopes_vanish(
    low: float, high: float, position: float | None
) -> None:
    free = None if position is None else np.array([[position]])
    box = np.array([[low]]), np.array([[high]])
    with np.errstate(all="ignore"):
        checker = curves.lines("reciprocal", *box, None, free, executed=False)
        engine = Reciprocal(1).relax(Box(*box), free)
    lines = engine.lower_slope, engine.lower_offset, engine.upper_slope, engine.upper_offset
    for parts in (checker, lines):
        below, at_below, above, at_above = (Fraction(float(part[0, 0])) for part in parts)
        for t in (0.0, 1e-160, 1e-100, 1e-40, 0.1, 1.0):
            z = Fraction(min(max(low + t * (high - low), low), high))
            assert below * z + at_below <= 1 / z <= above * z + at_above


@pytest.mark.parametrize("a", [(1.5, 1.6), (6e-6, 8e-6), (1e-9, 1e-7)])
@pytest.mark.parametrize("b", [(1e20, 1e300), (1e150, 1e160), (1e149, 3e150)])
def test_planes_of_quotients_whose_slopes_underflow(
    a: tuple[float, float], b: tuple[float, float]
) -> None:
    x, y = ((np.array([[low]]), np.array([[high]])) for low, high in (a, b))
    with np.errstate(all="ignore"):
        made = pairs.interval("quotient", x, y)
        parts = pairs.planes("quotient", x, y, made)
        engine = Divide(1).relax([Box(*x), Box(*y)], Box(*made))
    slope, mean, half, middle, gap = (Fraction(float(part[0, 0])) for part in parts)
    sides = [(slope, mean - half, middle - gap, 1), (slope, mean + half, middle + gap, -1)]
    for slopes, offset, sign in (
        (engine.lower_slopes, engine.lower_offset, 1),
        (engine.upper_slopes, engine.upper_offset, -1),
    ):
        first, second = (Fraction(float(slope[0, 0])) for slope in slopes)
        sides.append((first, second, Fraction(float(offset[0, 0])), sign))
    for by_first, by_second, least, sign in sides:
        for p in map(Fraction, a):
            for q in map(Fraction, b):
                slack = Fraction(2) ** -48 * (abs(by_first * p) + abs(by_second * q) + abs(least))
                assert sign * (p / q - by_first * p - by_second * q - least) >= -slack


def test_level_lines_of_reciprocals_are_audited() -> None:
    """Where the slope is zero, no tangent of a reciprocal has it."""
    ends = Fraction(1), Fraction(4)
    assert not _crosses_power(-1, -1, Fraction(0), Fraction(1, 5), *ends)
    assert _crosses_power(-1, -1, Fraction(0), Fraction(1, 3), *ends)
    assert not _crosses_power(-1, 1, Fraction(0), Fraction(2), *ends)


@pytest.mark.parametrize("point", [0.5, 1.0, 1.5])
def test_quotients_lie_around_what_executions_make_of_them(point: float) -> None:
    """Bounds of a rounded quotient, of a split, say less of the quotient itself."""
    nodes = [helper.make_node("Add", ["x", "c"], ["b"]), helper.make_node("Div", ["x", "b"], ["y"])]
    model = model_of(nodes, {"x": [1, 1]}, ["y"], {"c": np.array([0.25], np.float32)})
    session = Session(model.SerializeToString(), spec(([0.5], [4.0], [])))
    bounder = Bounder(session.network, executed=True)
    r = bounder.bound(np.array([[0.5]]), np.array([[4.0]]))
    (block,) = (block for block in bounder.blocks if isinstance(block, Pair))
    made = np.array([[point]]), np.array([[point]])
    with np.errstate(all="ignore"):
        taken = []

        def planes(
            kind: str, a: pairs.Range, b: pairs.Range, made: pairs.Range, free: Array | None
        ) -> pairs.Planes:
            taken.append(made)
            return original(kind, a, b, made, free)

        original = pairs.planes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pairs, "planes", planes)
            bounder._planes(r, block, made)
    assert (taken[0][0] < point * (1 - 2.0**-24)).all()
    assert (taken[0][1] > point * (1 + 2.0**-24)).all()
