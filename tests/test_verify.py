"""The question itself, from Python: small models, specifications built in code, all verdicts."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxcert
from onnxcert import InputError, Progress, Reason, Result, Sat, Settings, Unknown, Unsat, UsageError
from tests.oracles import smallest_violation
from tests.strategies import make_problem

SPLITTING = ["auto", "input", "neuron"]


def dense(sizes: list[int], seed: int, *, relu: bool = True) -> onnx.ModelProto:
    """Gemm layers with relus between them; weights are multiples of 1/4."""
    rng = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    for number, (rows, columns) in enumerate(pairwise(sizes)):
        arrays = [np.round(4 * rng.normal(size=shape)) / 4 for shape in ((rows, columns), columns)]
        names = f"w{number}", f"b{number}"
        weights += [
            onnx.numpy_helper.from_array(array.astype(np.float32), name)
            for array, name in zip(arrays, names, strict=True)
        ]
        is_last = number == len(sizes) - 2
        target = "y" if is_last else f"z{number}"
        nodes.append(onnx.helper.make_node("Gemm", [value, *names], [target], f"gemm{number}"))
        value = target
        if relu and not is_last:
            value = f"h{number}"
            nodes.append(onnx.helper.make_node("Relu", [target], [value], f"relu{number}"))
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size])
        for name, size in (("x", sizes[0]), ("y", sizes[-1]))
    ]
    graph = onnx.helper.make_graph(nodes, "dense", infos[:1], infos[1:], weights)
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def run_onnx(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x.astype(np.float32).reshape(1, -1)})[0].ravel()


def witness(result: Result) -> np.ndarray:
    assert isinstance(result.verdict, Sat)
    (x,) = result.verdict.counterexample.inputs.values()
    return np.asarray(x).ravel()


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_enumeration(seed: int, splitting: str) -> None:
    model = dense([2, 3, 3, 2], seed)
    graph = onnxcert.load_model(model).graph
    rng = np.random.default_rng(seed)
    rows = np.round(4 * rng.normal(size=(2, 2))) / 4
    outputs = graph.forward(rng.uniform(-1, 1, size=(500, 2)))
    low = (outputs @ rows.T).max(axis=1).min()
    for shift in (-0.25, 0.25):
        bounds = [float(np.round(low + shift, 2))] * 2
        table = [(row.tolist(), -bound) for row, bound in zip(rows, bounds, strict=True)]
        problem = make_problem([([-1.0, -1.0], [1.0, 1.0])], [(0, table)])
        # The graph may be simplified, but it has relus only, which is what enumeration needs.
        margin = smallest_violation(graph, problem, 0)
        if abs(margin) < 1e-3:
            continue
        spec = onnxcert.box([-1, -1], [1, 1]).unsafe(rows, bounds)
        result = onnxcert.verify(model, spec, timeout=60, settings=Settings(splitting=splitting))
        assert result.word == ("sat" if margin < 0 else "unsat")
        if result.word == "sat":
            assert (rows @ run_onnx(model, witness(result)).astype(float) <= bounds).all()


@pytest.mark.parametrize("splitting", SPLITTING)
def test_a_network_without_activations(splitting: str) -> None:
    model = dense([2, 3, 2], 0, relu=False)
    options = {"timeout": 60.0, "settings": Settings(splitting=splitting)}
    graph = onnxcert.load_model(model).graph
    corners = graph.forward(np.array([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]))
    lowest = float(corners[:, 0].min())
    possible = onnxcert.box([-1, -1], [1, 1]).unsafe([1, 0], lowest + 0.125)
    assert onnxcert.verify(model, possible, **options).word == "sat"  # type: ignore[arg-type]
    impossible = onnxcert.box([-1, -1], [1, 1]).unsafe([1, 0], lowest - 0.125)
    assert onnxcert.verify(model, impossible, **options).word == "unsat"  # type: ignore[arg-type]


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize("attack", [0, 8])
def test_tautology_and_contradiction(splitting: str, attack: int) -> None:
    model = dense([2, 3, 2], 1)
    ball = onnxcert.linf_ball([0.5, 0.25], Fraction(1, 10))
    options = {"timeout": 60.0, "settings": Settings(splitting=splitting, attack_restarts=attack)}
    for spec, word in (
        (ball, "sat"),
        (ball.unsafe([0, 0], 1), "sat"),
        (ball.unsafe([0, 0], -1), "unsat"),
        (ball.unsafe([1, 0], 1e6), "sat"),
        (ball.unsafe([1, 0], -1e6), "unsat"),
        (ball.unsafe([1, 0], -1e6).unsafe([0, 0], 1), "sat"),
    ):
        result = onnxcert.verify(model, spec, **options)  # type: ignore[arg-type]
        assert result.word == word, spec


def test_witness_is_in_the_ball_exactly_and_replays() -> None:
    model = dense([3, 4, 2], 2)
    center = np.array([0.1, -0.2, 0.3])
    for label in (0, 1):
        spec = onnxcert.linf_ball(center, 2, label=label)
        result = onnxcert.verify(model, spec, timeout=60)
        if result.word == "unsat":
            continue
        x = witness(result)
        distances = [Fraction(float(v)) - Fraction(c) for v, c in zip(x, center, strict=True)]
        assert all(abs(distance) <= 2 for distance in distances)
        outputs = run_onnx(model, x)
        assert outputs[1 - label] >= outputs[label]
        assert isinstance(result.verdict, Sat)
        (replayed,) = result.verdict.counterexample.outputs.values()
        np.testing.assert_array_equal(np.asarray(replayed).ravel(), outputs)


def test_a_point_between_two_floats() -> None:
    """0.1 is no binary number: the box [0.1, 0.1] holds no float at all."""
    model = dense([1, 2, 1], 3)
    spec = onnxcert.linf_ball([Fraction(1, 10)], 0)
    result = onnxcert.verify(model, spec.unsafe([1], 1e6), timeout=60)
    assert isinstance(result.verdict, Sat)
    (decimals,) = result.verdict.counterexample.decimals.values()
    assert decimals == {0: Fraction(1, 10)}
    assert onnxcert.verify(model, spec.unsafe([1], -1e6), timeout=60).word == "unsat"


STRICT = """(vnnlib-version <2.0>)
(declare-network N (declare-input X {kind} [1,1]) (declare-output Y {kind} [1,1]))
(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0)))
(assert ({relation} Y[0,0] {bound}))
"""


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize(
    ("relation", "bound", "words"),
    [
        ("<=", "0.0", {"sat"}),
        ("<", "0.0", {"unsat", "unknown", "timed-out"}),
        ("==", "0.0", {"sat"}),
        ("<=", "-0.000001", {"unsat"}),
        (">", "1.0", {"unsat", "unknown", "timed-out"}),
        (">=", "1.0", {"sat"}),
        ("!=", "0.0", {"sat"}),
    ],
)
def test_strictness_at_exactly_the_boundary(
    relation: str, bound: str, words: set[str], splitting: str, tmp_path: Path
) -> None:
    """y = relu(x) on [-1, 1] has the range [0, 1]."""
    model = _relu()
    path = tmp_path / "spec.vnnlib"
    path.write_text(STRICT.format(kind="real", relation=relation, bound=bound))
    settings = Settings(splitting=splitting)
    assert onnxcert.verify(model, path, timeout=3, settings=settings).word in words


def _relu() -> onnx.ModelProto:
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in "xy"
    ]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "relu", infos[:1], infos[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def test_the_same_seed_gives_the_same_run() -> None:
    model = dense([3, 6, 6, 2], 4)
    spec = onnxcert.linf_ball([0.0, 0.5, -0.5], 1, label=0)
    first, second = (onnxcert.verify(model, spec, timeout=60, seed=5) for _ in range(2))
    assert first.word == second.word
    assert first.statistics == second.statistics
    assert first.bounds == second.bounds
    if isinstance(first.verdict, Sat):
        np.testing.assert_array_equal(witness(first), witness(second))


def test_result_says_what_was_done() -> None:
    seen: list[Progress] = []
    spec = onnxcert.box([0, 0], [1, 1]).unsafe([1, 0], -1000)
    result = onnxcert.verify(dense([2, 3, 2], 5), spec, timeout=60, seed=3, progress=seen.append)
    assert isinstance(result.verdict, Unsat)
    assert result.word == "unsat"
    assert all(bound > 0 for bound in result.bounds.values())
    assert result.settings["seed"] == 3
    assert result.settings["timeout"] == 60
    assert result.seconds["total"] > 0
    assert seen[0].phase == "reading"
    assert [moment.seconds for moment in seen] == sorted(moment.seconds for moment in seen)


def test_interrupt_becomes_a_result() -> None:
    def press_control_c(moment: Progress) -> None:
        if moment.phase == "attack":
            raise KeyboardInterrupt

    spec = onnxcert.box([0, 0], [1, 1]).unsafe([1, 0], -1000)
    result = onnxcert.verify(dense([2, 3, 2], 6), spec, progress=press_control_c)
    assert result.verdict == Unknown(Reason.INTERRUPTED)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf")])
def test_senseless_timeouts_are_refused(timeout: float) -> None:
    spec = onnxcert.box([0, 0], [1, 1])
    with pytest.raises(UsageError, match="timeout"):
        onnxcert.verify(dense([2, 3, 2], 7), spec, timeout=timeout)


def test_a_tiny_timeout_is_a_verdict() -> None:
    model = dense([6, 30, 30, 2], 8)
    spec = onnxcert.linf_ball(np.zeros(6), 3, label=0)
    result = onnxcert.verify(model, spec, timeout=1e-6)
    assert result.word in ("timed-out", "sat")


def test_specification_that_does_not_fit_is_refused() -> None:
    model = dense([2, 3, 2], 9)
    with pytest.raises((UsageError, InputError)):
        onnxcert.verify(model, onnxcert.box([0, 0, 0], [1, 1, 1]))
    with pytest.raises((UsageError, InputError)):
        onnxcert.verify(model, onnxcert.box([0, 0], [1, 1]).unsafe([1, 0, 1], 0))
    with pytest.raises((UsageError, InputError)):
        onnxcert.verify(model, onnxcert.linf_ball([0, 0], 1, label=2))


@pytest.mark.parametrize("method", ["interval", "backward"])
def test_bounds_contain_samples(method: str, rng: np.random.Generator) -> None:
    model = dense([2, 5, 5, 3], 10)
    spec = onnxcert.box([-1, 0], [1, 0.5]).unsafe([1, 0, -1], 0)
    report = onnxcert.compute_bounds(model, spec, method=method, layers=True)
    graph = onnxcert.load_model(model).graph
    outputs = graph.forward(rng.uniform([-1, 0], [1, 0.5], size=(1000, 2)))
    assert (report.outputs[:, 0] <= outputs.min(axis=0) + 1e-12).all()
    assert (report.outputs[:, 1] >= outputs.max(axis=0) - 1e-12).all()
    assert report.disjuncts[0] <= (outputs[:, 0] - outputs[:, 2]).min() + 1e-12
    assert [name for name, *_ in report.layers] == list(graph.sizes)


def test_bounds_refuse_an_unknown_method() -> None:
    with pytest.raises(UsageError, match="no method 'exact'"):
        onnxcert.compute_bounds(dense([2, 3, 2], 11), onnxcert.box([0, 0], [1, 1]), method="exact")
