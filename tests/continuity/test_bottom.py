"""Models that certify themselves, run in onnxruntime."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from onnxcert import (
    ModelError,
    UnsupportedModel,
    UsageError,
    certified_radius,
    lipschitz,
    load_model,
)
from onnxcert import with_bottom_logit as extend
from onnxcert.arrays import UNIT_ROUNDOFF_FLOAT32
from onnxcert.continuity.deviation import execution_deviation
from onnxcert.continuity.network import input_box
from tests.frontend.onnx_models import model_of, single


def classifier(
    *, opset: int = 13, batch: str | int = "N", width: int = 12, classes: int = 3
) -> onnx.ModelProto:
    """A small dense network on the unit square."""
    rng = np.random.default_rng(3)
    constants = {
        "w0": rng.normal(size=(2, width)).astype(np.float32),
        "b0": rng.normal(size=width).astype(np.float32),
        "w1": rng.normal(size=(width, classes)).astype(np.float32),
        "b1": rng.normal(size=classes).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "w1", "b1"], ["y"]),
    ]
    return model_of(nodes, {"x": (batch, 2)}, ["y"], constants, opset=opset)


def run(model: onnx.ModelProto, **feeds: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(out) for out in session.run(None, feeds)]


def grid(count: int = 41) -> np.ndarray:
    side = np.linspace(0.0, 1.0, count, dtype=np.float32)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 18, 21])
def test_certified_points_keep_their_class(opset: int) -> None:
    """Nothing within the radius, on a fine grid, has another class."""
    plain, eps = classifier(opset=opset), 0.1
    model = extend(plain, eps)
    x = grid()
    logits, certified, radius = run(model, x=x)
    (expected,) = run(plain, x=x)
    assert np.array_equal(logits[:, :-1], expected)
    label = expected.argmax(axis=1)
    assert 0.1 < certified.mean() < 0.95
    assert np.array_equal(certified, logits.argmax(axis=1) < 3)
    assert ((radius >= eps) == certified).mean() > 0.99
    distance = np.linalg.norm(x[:, None].astype(float) - x.astype(float), axis=2)
    other = label[:, None] != label
    nearest = np.where(other, distance, np.inf).min(axis=1)
    assert (nearest[certified] > eps).all()
    assert (nearest >= radius).all()


def test_radius_as_an_input() -> None:
    plain, x = classifier(), grid(15)
    model = extend(plain, 0.5, eps_input=True)
    before = None
    for eps in (0.0, 0.05, 0.2, 0.5):
        _, certified, radius = run(model, x=x, eps=np.array(eps, np.float32))
        assert (certified <= (radius >= eps)).all()
        if before is not None:
            assert (certified <= before).all()
        before = certified
    for eps in (0.6, -0.1, np.nan):
        assert not run(model, x=x, eps=np.array(eps, np.float32))[1].any()


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("eps_input", [False, True])
def test_the_radius_is_rounded_down(eps: float, eps_input: bool) -> None:
    """In rationals: within it no lead is used up, with the deviation of both executions."""
    plain, x = classifier(), grid(9)
    model = extend(plain, eps, eps_input=eps_input)
    feeds = {"eps": np.array(0.5 * eps, np.float32)} if eps_input else {}
    logits, certified, radius = run(model, x=x, **feeds)
    read = load_model(plain)
    pairs = lipschitz(read, domain=(0.0, 1.0)).pairs
    deviation, _ = execution_deviation(
        read.lowered, input_box(read.graph, 0.0, 1.0), UNIT_ROUNDOFF_FLOAT32
    )
    assert (radius > 0.0).mean() > 0.8
    for row, distance in zip(logits[:, :-1], radius, strict=True):
        winner = int(row.argmax())
        for other in {*range(len(row))} - {winner}:
            lead = Fraction(float(row[winner])) - Fraction(float(row[other]))
            need = Fraction(float(distance)) * Fraction(float(pairs[winner, other]))
            if distance > 0.0:
                assert need + 2 * Fraction(float(deviation[winner, other])) <= lead
    asked = float(feeds["eps"]) if eps_input else float(np.nextafter(np.float32(eps), 0.0))
    assert (radius[certified] >= asked).all()
    best = np.array([certified_radius(read, point, domain=(0.0, 1.0))[0] for point in x[:5]])
    np.testing.assert_allclose(radius[:5], best, atol=1e-3 + 1e-6 * eps)


def test_ties_are_not_certified() -> None:
    """Two logits that are always equal, and two that are equal at one point."""
    weight = np.array([[1.0, 1.0, 0.0]], dtype=np.float32)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1, 1)}, ["y"], {"w": weight}
    )
    logits, certified, radius = run(extend(model, 0.0), x=np.ones((1, 1), np.float32))
    assert not certified.any()
    assert radius == 0.0
    assert logits.argmax() == 3
    crossing = model_of(
        [
            helper.make_node("Concat", ["x", "m"], ["y"], axis=1),
            helper.make_node("Neg", ["x"], ["m"]),
        ][::-1],
        {"x": (1, 1)},
        ["y"],
    )
    for value, safe in ((0.0, False), (0.1, False), (0.2, True)):
        found = run(
            extend(crossing, 0.15, domain=(-1.0, 1.0)), x=np.full((1, 1), value, np.float32)
        )
        assert bool(found[1].item()) is safe


def test_inputs_outside_the_domain_are_not_certified() -> None:
    model = extend(classifier(), 1e-3)
    x = np.array([[0.5, 0.5], [1.5, 0.5], [0.5, -0.1], [np.inf, 0.5]], dtype=np.float32)
    logits, inside, radius = run(model, x=x)
    assert inside[0]
    assert not inside[1:].any()
    assert (logits[1:3].argmax(axis=1) == 3).all()
    assert radius[0] > 0.0
    assert (radius[1:] == 0.0).all()


@pytest.mark.parametrize("opset", [7, 18])
@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_without_a_test_of_the_domain_one_of_two_inputs_has_to_be_in_it(
    opset: int, eps: float
) -> None:
    """Certified points inside keep their class everywhere, those outside keep it inside."""
    plain = classifier(opset=opset)
    x = 3.0 * grid(61) - 1.0
    (expected,) = run(plain, x=x)
    logits, certified, radius = run(extend(plain, eps, test_domain=False), x=x)
    assert np.array_equal(logits[:, :-1], expected)
    label = expected.argmax(axis=1)
    inside = ((x >= 0.0) & (x <= 1.0)).all(axis=1)
    assert certified[inside].any()
    assert certified[~inside].any()
    distance = np.linalg.norm(x[:, None].astype(float) - x.astype(float), axis=2)
    other = (label[:, None] != label) & (inside[:, None] | inside)
    nearest = np.where(other, distance, np.inf).min(axis=1)
    assert (nearest[certified] > eps).all()
    assert (nearest >= radius).all()
    tested, radius_tested = run(extend(plain, eps, test_domain=True), x=x)[1:]
    assert not tested[~inside].any()
    assert not radius_tested[~inside].any()


def test_inputs_are_tested_where_constants_rest_on_the_domain() -> None:
    """There two rectifiers never change their sign; elsewhere the domain makes no difference."""

    def reads_of_input(model: onnx.ModelProto) -> int:
        new = [node for node in model.graph.node if node.name.startswith("onnxcert/")]
        return sum("x" in node.input for node in new)

    weight = np.eye(2, dtype=np.float32)
    for bias, domain, reads in ((5.0, (0.0, 1.0), 3), (0.0, (-1.0, 1.0), 1)):
        nodes = [
            helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
            helper.make_node("Relu", ["z"], ["y"]),
        ]
        constants = {"w": weight, "b": np.full(2, bias, np.float32)}
        model = model_of(nodes, {"x": ("N", 2)}, ["y"], constants)
        assert reads_of_input(extend(model, 0.1, domain=domain)) == reads
        assert reads_of_input(extend(model, 0.1, domain=domain, test_domain=True)) == 3
    there = lipschitz(model, domain=(-1.0, 1.0))
    assert reads_of_input(extend(model, 0.1, bound=there)) == 3
    with pytest.raises(UsageError, match="has to be tested"):
        extend(model, 0.1, bound=there, test_domain=False)


def test_radii_end_before_anything_overflows() -> None:
    weight = {"w": np.array([[100, 0], [0, 100]], np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": (1, 2)}, ["y"], weight)
    with pytest.raises(UnsupportedModel, match="within the radius"):
        extend(model, 5.5e27)
    wide = model_of(nodes, {"x": (1, 2)}, ["y"], {"w": 1e-20 * weight["w"]})
    extended = extend(wide, 0.1, domain=(0.0, 1e25))
    radius = run(extended, x=np.array([[1e25, 0.0]], np.float32))[2]
    assert 1e24 < radius[0] <= 1e30


@pytest.mark.parametrize("opset", [8, 13])
def test_what_is_no_number_is_not_certified(opset: int) -> None:
    """Runtimes may take the maximum of a number and NaN to be the number; nor is infinity one."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    model = model_of(nodes, {"x": (1, 2)}, ["y"], {"b": np.array([5, 0], np.float32)}, opset=opset)
    for x in ([0.5, np.nan], [np.nan, 0.5], [np.nan, np.nan], [np.inf, 0.5]):
        _, certified, radius = run(extend(model, 0.1), x=np.array([x], np.float32))
        assert not certified.any()
        assert not radius[0] > 0.0


def test_inner_names_are_no_obstacle() -> None:
    names = {"x": "x", "w0": "eps", "z": "certified", "h": "radius", "w1": "onnxcert/logits"}
    model, plain = classifier(), classifier()
    for value in (*model.graph.initializer, *model.graph.node):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        for part in (node.input, node.output):
            part[:] = [names.get(name, name) for name in part]
    x = grid(5)
    expected = run(extend(plain, 0.1), x=x)
    for found in (
        run(extend(model, 0.1), x=x),
        run(extend(model, 0.1, eps_input=True), x=x, eps=np.array(0.1, np.float32)),
    ):
        assert np.array_equal(found[1], expected[1])


def test_files_older_than_stored_tensors_of_their_own() -> None:
    model = single("MatMul", (1, 2), np.eye(2, dtype=np.float32), opset=8)
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("v1", onnx.TensorProto.FLOAT, [2, 2]))
    assert run(extend(model, 0.1), v0=np.array([[1, 0]], np.float32))[1].all()


def test_other_shapes() -> None:
    """A vector without a batch, images, and one batch entry."""
    flat = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (4,)},
        ["y"],
        {"w": np.diag([3.0, 2.0, 1.0, 0.5]).astype(np.float32)},
    )
    logits, certified, radius = run(extend(flat, 0.1), x=np.array([1, 0, 0, 0], np.float32))
    assert logits.shape == (5,)
    assert certified.shape == radius.shape == ()
    assert certified
    assert radius == pytest.approx(3.0 / np.sqrt(13.0), rel=1e-4)
    fixed = extend(classifier(batch=1), 0.1)
    assert [out.shape for out in run(fixed, x=np.zeros((1, 2), np.float32))] == [(1, 4), (1,), (1,)]


def test_rows_of_a_batch_that_meet_are_refused() -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"], keepdims=1),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    model = model_of(nodes, {"x": ("N", 3)}, ["y"], {"axes": np.array([0])})
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3])
    )
    with pytest.raises(UnsupportedModel, match="depend on each other"):
        extend(model, 0.1)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedModel, match="depend on each other"):
        extend(model, 0.1)


def test_axes_that_no_claim_covers_are_fixed() -> None:
    """One row of logits whatever the number of rows: no model of a batch."""
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)]
    model = model_of(nodes, {"x": ("N", 3)}, ["y"], {"axes": np.array([0])})
    extended = extend(model, 0.1)
    assert run(extended, x=np.array([[1, 0, 0]], np.float32))[1].all()
    with pytest.raises(Exception, match="invalid dimensions"):
        run(extended, x=np.zeros((2, 3), np.float32))


def test_logits_may_have_more_axes() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Unsqueeze", ["h", "one"], ["y"]),
    ]
    constants = {"w": np.eye(3, dtype=np.float32), "one": np.array([1])}
    model = extend(model_of(nodes, {"x": ("N", 3)}, ["y"], constants), 0.1, test_domain=True)
    x = np.array([[1, 0, 0], [0, 0, 0], [2, 0, 0], [0, 1, 0.5]], np.float32)
    logits, certified, radius = run(model, x=x)
    assert logits.shape == (4, 1, 4)
    assert radius.shape == (4, 1)
    assert certified[:, 0].tolist() == [True, False, False, True]


def test_what_is_no_classifier_is_refused() -> None:
    for model in (
        single("Split", (2, 4), outputs=2, axis=0),
        single("Relu", (2, 3)),
        single("Relu", (1, 1)),
        single("Relu", (1, 3), element=onnx.TensorProto.DOUBLE),
        single("Sign", (1, 3)),
    ):
        with pytest.raises(ModelError):
            extend(model, 0.1)


def test_arguments_without_meaning() -> None:
    model = classifier()
    for eps, domain in ((-1.0, (0.0, 1.0)), (np.inf, (0.0, 1.0)), (0.1, (1.0, 0.0))):
        with pytest.raises(UsageError):
            extend(model, eps, domain=domain)
    with pytest.raises(UsageError, match="another model"):
        extend(model, 0.1, bound=lipschitz(classifier(width=5)))
    with pytest.raises(UsageError, match="another domain"):
        extend(model, 0.1, bound=lipschitz(model, domain=(0.0, 0.9)))
    extend(model, 0.1, bound=lipschitz(model, domain=(-0.1, 1.0)))


def test_metadata_say_what_is_claimed() -> None:
    model = classifier()
    facts = {entry.key: entry.value for entry in extend(model, 0.25, norm="inf").metadata_props}
    assert facts["onnxcert.source_sha256"] == load_model(model).sha256
    assert facts["onnxcert.norm"] == "inf"
    assert facts["onnxcert.eps"] == "0.25"
