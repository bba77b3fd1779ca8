"""Models that multiply, divide and raise computed values, from the file to the checked proof."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcert
from onnxcert import Sat, Unsat
from onnxcert.errors import UnsupportedModel
from onnxcert.frontend.onnx import load_model
from onnxcert.search.linear import Program
from tests.frontend.onnx_models import model_of

FLOATS = np.float32


def network(seed: int, last: str) -> onnx.ModelProto:
    """x -> relu(W x + b) -> powers, products and shares -> y = V h."""
    rng = np.random.default_rng(seed)
    constants = {
        "w": rng.normal(size=(3, 4)).astype(FLOATS),
        "b": rng.normal(size=4).astype(FLOATS),
        "v": rng.normal(size=(4, 1)).astype(FLOATS),
        "one": np.full(1, 1.0, FLOATS),
        "three": np.full(1, 3.0, FLOATS),
        "column": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
    ]
    nodes += {
        "square": [helper.make_node("Mul", ["z", "z"], ["p"])],
        "product": [helper.make_node("Mul", ["h", "z"], ["p"])],
        "cube": [helper.make_node("Pow", ["z", "three"], ["p"])],
        "share": [
            helper.make_node("Add", ["h", "one"], ["above"]),
            helper.make_node("ReduceSum", ["above", "column"], ["total"], keepdims=1),
            helper.make_node("Div", ["above", "total"], ["p"]),
        ],
        "inverse": [
            helper.make_node("Add", ["h", "one"], ["above"]),
            helper.make_node("Div", ["three", "above"], ["p"]),
        ],
    }[last]
    nodes.append(helper.make_node("MatMul", ["p", "v"], ["y"]))
    return model_of(nodes, {"x": (1, 3)}, ["y"], constants, opset=13)


def question(low: np.ndarray, high: np.ndarray, relation: str, bound: float) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(low))] + ["(declare-const Y_0 Real)"]
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        lines += [f"(assert (>= X_{i} {a:.6f}))", f"(assert (<= X_{i} {b:.6f}))"]
    return "\n".join([*lines, f"(assert ({relation} Y_0 {bound:.6f}))\n"])


def outputs(proto: onnx.ModelProto, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Values at many points and all corners."""
    graph, rng = load_model(proto).graph, np.random.default_rng(0)
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * len(low)), axis=-1).reshape(-1, len(low))
    share = np.concatenate([corners, rng.random((4000, len(low)))])
    return graph.forward(low + share * (high - low))[:, 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("semantics", ["real", "ieee32-any-order"])
@pytest.mark.parametrize("last", ["square", "product", "cube", "share", "inverse"])
def test_answers_agree_with_dense_samples(tmp_path: Path, last: str, semantics: str) -> None:
    """Below the least sample nothing is found and that is proved; above it there is a witness."""
    for seed in range(3):
        proto = network(seed, last)
        center = np.random.default_rng(seed + 10).normal(size=3).round(3)
        low, high = center - 0.25, center + 0.25
        values = outputs(proto, low, high)
        spread = float(np.ptp(values)) + 1e-3
        for bound, expected in ((values.min() - 0.1 * spread, Unsat), (values.min() + spread, Sat)):
            model, spec = tmp_path / "model.onnx", tmp_path / "spec.vnnlib"
            onnx.save(proto, model)
            spec.write_text(question(low, high, "<=", bound))
            proof = tmp_path / "proof.onnxcert"
            result = onnxcert.verify(
                model, spec, semantics=semantics, timeout=60, certificate=proof
            )
            assert isinstance(result.verdict, expected), (seed, result.verdict)
            claims = onnxcert.check(proof, model, spec, audit=4).claims
            assert expected is Sat or claims == (semantics,)


def test_stairs_are_split_and_certified(tmp_path: Path) -> None:
    """x - floor(x) over several periods lies in [0, 1], and above one half somewhere."""
    nodes = [
        helper.make_node("Floor", ["x"], ["f"]),
        helper.make_node("Sub", ["x", "f"], ["r"]),
        helper.make_node("Neg", ["r"], ["y"]),
    ]
    onnx.save(model_of(nodes, {"x": (1, 1)}, ["y"], {}, opset=13), tmp_path / "model.onnx")
    spec, proof = tmp_path / "spec.vnnlib", tmp_path / "proof.onnxcert"
    for bound, semantics, expected in (
        (-1.01, "real", Unsat), (-1.01, "ieee32-any-order", Unsat), (-0.5, "real", Sat)
    ):  # fmt: skip
        spec.write_text(question(np.array([-1.7]), np.array([2.6]), "<=", bound))
        result = onnxcert.verify(
            tmp_path / "model.onnx", spec, semantics=semantics, timeout=60, certificate=proof
        )
        assert isinstance(result.verdict, expected), result.verdict
        onnxcert.check(proof, tmp_path / "model.onnx", spec, audit=4)


@pytest.mark.parametrize("semantics", ["real", "ieee32-any-order"])
def test_ends_of_curves_refute_where_lines_do_not(tmp_path: Path, semantics: str) -> None:
    """A share is positive, also where the line below it is not; one leaf says so."""
    constants = {"w": np.array([[30.0], [-20.0]], FLOATS)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["y"]),
    ]
    onnx.save(model_of(nodes, {"x": (1, 2)}, ["y"], constants, opset=13), tmp_path / "m.onnx")
    spec, proof = tmp_path / "spec.vnnlib", tmp_path / "proof.onnxcert"
    spec.write_text(question(-np.ones(2), np.ones(2), "<=", -1e-4))
    result = onnxcert.verify(
        tmp_path / "m.onnx", spec, semantics=semantics, timeout=60, certificate=proof
    )
    assert isinstance(result.verdict, Unsat)
    checked = onnxcert.check(proof, tmp_path / "m.onnx", spec)
    assert (checked.verdict, checked.leaves) == ("unsat", 1)


def test_a_divisor_that_may_be_zero_proves_nothing(tmp_path: Path) -> None:
    nodes = [helper.make_node("Div", ["one", "x"], ["y"])]
    proto = model_of(nodes, {"x": (1, 1)}, ["y"], {"one": np.full((1, 1), 1.0, FLOATS)}, opset=13)
    onnx.save(proto, tmp_path / "model.onnx")
    spec = tmp_path / "spec.vnnlib"
    spec.write_text(question(np.array([-1.0]), np.array([1.0]), "<=", -1e30))
    result = onnxcert.verify(tmp_path / "model.onnx", spec, timeout=2)
    assert not isinstance(result.verdict, Unsat)


def test_other_analyses_refuse_what_they_do_not_know() -> None:
    product, square = network(0, "product"), network(0, "square")
    with pytest.raises(UnsupportedModel, match="no Lipschitz constant"):
        onnxcert.lipschitz(product)
    with pytest.raises(UnsupportedModel, match="no Lipschitz constant"):
        onnxcert.lipschitz(square)
    assert not Program.expressible(load_model(product).graph)


def test_a_square_has_a_constant_on_a_domain() -> None:
    proto = network(0, "square")
    found = onnxcert.lipschitz(proto, domain=(-1.0, 1.0))
    graph, rng = load_model(proto).graph, np.random.default_rng(0)
    x, z = rng.uniform(-1, 1, size=(2, 2000, 3))
    change = abs(graph.forward(x) - graph.forward(z))[:, 0]
    assert (change <= found.outputs[0] * np.linalg.norm(x - z, axis=1) * (1 + 1e-9)).all()
