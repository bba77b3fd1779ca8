"""Queries over several networks, and inputs that they assert to be equal: from files to proofs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxcert
from onnxcert import Sat, Unknown, Unsat
from onnxcert.checker import Rejected, Unusable
from onnxcert.checker import __main__ as command
from onnxcert.checker.certificate import Session
from onnxcert.checker.model import Source
from onnxcert.checker.spec import read_spec
from onnxcert.errors import SpecError, UnsupportedModel, UnsupportedSpec, UsageError
from onnxcert.frontend.lower import lower_plain, lower_query
from onnxcert.frontend.onnx import Part, load_models
from onnxcert.frontend.replay import Replayer
from onnxcert.frontend.vnnlib import parse_query
from tests.frontend.onnx_models import model_of
from tests.strategies import seeds

TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input A real [1,2]) {hidden_f} (declare-output P real [1,2]))
(declare-network g {relation} (declare-input B real [1,2]) {hidden_g} (declare-output Q real [1,2]))
"""
BOX = "(assert (and (>= A[0,0] -1) (<= A[0,0] 1) (>= A[0,1] -1) (<= A[0,1] 1)))\n"
NEAR = (
    "(assert (== A[0,0] B[0,0]))"
    "(assert (and (<= B[0,1] (+ A[0,1] {gap})) (>= B[0,1] (- A[0,1] {gap}))))\n"
)


def network(seed: int, *, opset: int = 13, name: str = "x") -> onnx.ModelProto:
    """Two inputs, four rectifiers, two outputs; values of all networks have the same names."""
    rng = np.random.default_rng(seed)
    sizes = {"w": (2, 4), "b": (4,), "v": (4, 2), "c": (2,)}
    constants = {k: rng.normal(size=size).astype(np.float32) for k, size in sizes.items()}
    nodes = [
        helper.make_node("Gemm", [name, "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "c"], ["y"]),
    ]
    return model_of(nodes, {name: (1, 2)}, ["y"], constants, opset=opset)


def declared(relation: str = "", hidden: str = "") -> str:
    hidden_f, hidden_g = (hidden and f'(declare-hidden {n} real [1,4] "{hidden}")' for n in "HK")
    return TWO.format(relation=relation, hidden_f=hidden_f, hidden_g=hidden_g)


def stored(folder: Path, **models: onnx.ModelProto) -> dict[str, Path]:
    """The models in files."""
    for name, proto in models.items():
        onnx.save(proto, folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in models}


def outputs(proto: onnx.ModelProto, points: np.ndarray) -> np.ndarray:
    """By onnxruntime, (B, 2)."""
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (name,) = (value.name for value in session.get_inputs())
    rows = [session.run(None, {name: p[None].astype(np.float32)})[0][0] for p in points]
    return np.array(rows, dtype=np.float64)


@settings(max_examples=15)
@given(seed=seeds, gap=st.sampled_from([0.0, 0.125, 1.0]), bound=st.floats(-1, 6, width=16))
def test_answers_agree_with_dense_samples(
    seed: int, gap: float, bound: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Is there a pair of near points whose outputs differ by so much?"""
    folder = tmp_path_factory.mktemp("two")
    protos = {"f": network(seed), "g": network(seed + 1, opset=17)}
    models = stored(folder, **protos)
    spec = folder / "spec.vnnlib"
    spec.write_text(
        declared("(isomorphic-to f)")
        + BOX
        + NEAR.format(gap=f"{gap:.4f}")
        + f"(assert (>= (- Q[0,1] P[0,0]) {bound:.4f}))\n"
    )
    proof = folder / "p.onnxcert"
    result = onnxcert.verify(models, spec, timeout=20, certificate=proof)
    steps = np.linspace(-1, 1, 17)
    a = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    b = np.concatenate([a + np.array([0, shift]) for shift in (-gap, 0, gap)])
    difference = outputs(protos["g"], b)[:, 1] - np.tile(outputs(protos["f"], a)[:, 0], 3)
    if isinstance(result.verdict, Sat):
        found = result.verdict.counterexample
        assert found.inputs["A"][0, 0] == found.inputs["B"][0, 0]
        gaps = abs(
            Fraction(float(found.inputs["A"][0, 1])) - Fraction(float(found.inputs["B"][0, 1]))
        )
        assert gaps <= Fraction(f"{gap:.4f}")
        for side, value in (("f", "AP"), ("g", "BQ")):
            again = outputs(protos[side], found.inputs[value[0]])
            assert (again == found.outputs[value[1]]).all()
    else:
        assert isinstance(result.verdict, Unsat) or abs(difference.max() - bound) < 1e-4
        assert difference.max() < bound + 1e-5
    if not isinstance(result.verdict, Unknown):
        assert onnxcert.check(proof, models, spec).verdict == result.word
        swapped = {"f": models["g"], "g": models["f"]}
        with pytest.raises(Rejected):
            onnxcert.check(proof, swapped, spec)


@pytest.mark.parametrize("relation", ["(equal-to f)", "(isomorphic-to f)", ""])
def test_equal_networks_are_given_once(relation: str, tmp_path: Path) -> None:
    """The same inputs have the same outputs, which rests on both reading the same input."""
    models = stored(tmp_path, f=network(1), g=network(1))
    if "equal" in relation:
        del models["g"]
    spec, proof = tmp_path / "s.vnnlib", tmp_path / "p.onnxcert"
    text = declared(relation) + BOX + NEAR.format(gap="0.0") + "(assert (== A[0,1] B[0,1]))"
    spec.write_text(text + "(assert (>= Q[0,0] (+ P[0,0] 0.01)))")
    result = onnxcert.verify(models, spec, timeout=20, certificate=proof)
    assert isinstance(result.verdict, Unsat)
    assert str(onnxcert.check(proof, models, spec)) == "VERIFIED UNSAT (real)"
    assert set(result.files) == {"model f", "model g", "spec"}


def test_hidden_tensors_of_both_networks(tmp_path: Path) -> None:
    """Flat vectors have all outputs, then all hidden tensors."""
    protos = {"f": network(3), "g": network(4, name="input")}
    models = stored(tmp_path, **protos)
    parts = [Part(models[n], [(1, 2)], hidden=("z",), prefix=f"{n}:") for n in "fg"]
    model = load_models(parts)
    assert [info.name for info in model.outputs + model.hidden] == ["y", "y", "z", "z"]
    point = np.array([0.5, -0.25, 0.125, 1.0])
    found = Replayer(model).run_flat(point)
    assert np.allclose(model.graph.forward(point[None])[0], found, atol=1e-5)
    assert np.array_equal(found[2:4], outputs(protos["g"], point[None, 2:])[0])
    text = declared(hidden="z") + BOX + NEAR.format(gap="0.5")
    spec, proof = tmp_path / "s.vnnlib", tmp_path / "p.onnxcert"
    for bound, kind in (("-100", Sat), ("100", Unsat)):
        spec.write_text(f"{text}(assert (>= (+ K[0,1] H[0,2]) {bound}))")
        result = onnxcert.verify(models, spec, timeout=20, certificate=proof)
        assert isinstance(result.verdict, kind)
        assert onnxcert.check(proof, models, spec).verdict == result.word
    sources = {name: Source(path.read_bytes()) for name, path in models.items()}
    checked = Session(sources, spec.read_bytes()).network
    points = np.array([[0.5, -0.25, 0.5, 1.0]])
    assert np.allclose(checked.forward(points), model.graph.forward(points))


def test_an_operator_without_a_rule_in_one_network(tmp_path: Path) -> None:
    """A witness is found on the files alone."""
    nodes = [helper.make_node("Mod", ["x", "c"], ["y"], fmod=1)]
    odd = model_of(nodes, {"x": (1, 2)}, ["y"], {"c": np.full((1, 2), 0.25, np.float32)})
    models = stored(tmp_path, f=network(5), g=odd)
    spec = tmp_path / "s.vnnlib"
    text = declared() + BOX + NEAR.format(gap="0.5")
    # Points are tried on the file with both inputs alike.
    tied = "(assert (and (== A[0,0] B[0,0]) (== A[0,1] B[0,1]) (<= (+ Q[0,0] Q[0,1]) -0.48)))"
    spec.write_text(text + tied)
    result = onnxcert.verify(models, spec, timeout=20)
    assert isinstance(result.verdict, Sat)
    assert (result.verdict.counterexample.inputs["B"] < 0).all()
    spec.write_text(text + "(assert (>= (- Q[0,0] P[0,0]) 100))")
    with pytest.raises(UnsupportedModel, match="1 node has no rule"):
        onnxcert.verify(models, spec, timeout=5)


TIES = [
    # what ties inputs, and what does not
    ("(assert (== A[0,0] B[0,1]))", {3: 0}),
    ("(assert (== B[0,1] A[0,0])) (assert (== B[0,0] B[0,1]))", {2: 0, 3: 0}),
    ("(assert (and (== (* 2 A[0,1]) (+ B[0,1] B[0,1])) (<= P[0,0] 0)))", {3: 1}),
    ("(assert (or (== A[0,0] B[0,1]) (<= P[0,0] 0)))", {}),
    ("(assert (== A[0,0] (+ B[0,1] 0.5)))", {}),
    ("(assert (== A[0,0] (- 0 B[0,1])))", {}),
    ("(assert (== P[0,0] Q[0,0]))", {}),
    ("(assert (!= A[0,0] B[0,1]))", {}),
]
BOXES = BOX + BOX.replace("A[", "B[").replace("1)", "2)")


@pytest.mark.parametrize(("text", "ties"), TIES)
def test_ties(text: str, ties: dict[int, int]) -> None:
    text = declared() + BOXES + text
    lowered, spec = lower_query(parse_query(text)), read_spec(text.encode())
    assert lowered.layout.ties == spec.ties == ties
    for problem in lowered.cases:
        assert not problem.lower[:, list(ties)].any()


def test_tied_inputs_share_their_bounds_exactly() -> None:
    """A third has no float: one network has it as the least value, the other as the largest."""
    third = "(assert (and (>= A[0,0] {}) (<= A[0,0] 1) (<= B[0,0] {}) (>= B[0,0] -1)))"
    rest = "(assert (and (>= A[0,1] 0) (<= A[0,1] 0) (>= B[0,1] 0) (<= B[0,1] 0)))"
    tie = "(assert (== A[0,0] B[0,0]))"
    below, above = f"0.{'3' * 30}", f"0.{'3' * 29}4"
    for low, high, count in ((below, above, 1), (below, below, 1), (above, below, 0)):
        text = declared() + third.format(low, high) + rest + tie + "(assert (<= P[0,0] 0))"
        assert len(list(lower_query(parse_query(text)).cases)) == count
        assert len(list(read_spec(text.encode()).cases())) == count


def test_values_that_differ_do_not_hold() -> None:
    text = declared() + BOXES + "(assert (== A[0,0] B[0,1]))"
    spec, half = read_spec(text.encode()), Fraction(1, 2)
    zero = [Fraction(0)] * 4
    assert spec.holds([half, half, half, half], zero)
    assert not spec.holds([half, half, half, Fraction(1, 4)], zero)
    # All inputs that are equal move together.
    assert not spec.excludes(Fraction(1, 4), 0, [half] * 4, zero)
    assert not spec.excludes(Fraction(1, 4), 3, [half] * 4, zero)
    assert spec.excludes(Fraction(5, 4), 3, [half] * 4, zero)


IMPLIED = [
    # rows over inputs, and what they say of B[0,0]
    ("(assert (and (<= B[0,0] A[0,0]) (>= B[0,0] -3)))", (-3.0, 1.0)),
    ("(assert (and (<= B[0,0] A[0,0]) (>= (* 2 B[0,0]) (- A[0,1] 1))))", (-1.0, 1.0)),
    ("(assert (and (<= (+ B[0,0] A[0,0] A[0,1]) 0.5) (>= B[0,0] A[0,0])))", (-1.0, 2.5)),
    ("(assert (and (<= B[0,0] A[0,0]) (<= B[0,0] 7) (>= B[0,0] 0)))", (0.0, 7.0)),
]


@pytest.mark.parametrize(("text", "bounds"), IMPLIED)
def test_rows_over_inputs_bound_inputs_that_have_no_bound(
    text: str, bounds: tuple[float, float]
) -> None:
    text = declared() + BOX + text + "(assert (== B[0,1] A[0,1])) (assert (<= P[0,0] Q[0,0]))"
    (problem,) = lower_query(parse_query(text)).cases
    (case,) = read_spec(text.encode()).cases()
    assert (problem.lower[0, 2], problem.upper[0, 2]) == bounds
    assert np.array_equal(problem.lower[0], case.lower)
    assert np.array_equal(problem.upper[0], case.upper)


def test_bounds_are_implied_in_turn() -> None:
    """The second follows from the first, whatever order they stand in; a circle implies nothing."""
    rows = ["(assert (and (<= B[0,0] A[0,0]) (>= B[0,0] A[0,0])))"]
    rows += ["(assert (and (<= B[0,1] (+ B[0,0] 1)) (>= B[0,1] (- B[0,0] 1))))"]
    for order in (rows, rows[::-1]):
        text = declared() + BOX + "".join(order) + "(assert (<= P[0,0] Q[0,0]))"
        (problem,) = lower_query(parse_query(text)).cases
        (case,) = read_spec(text.encode()).cases()
        assert problem.lower[0, 2:].tolist() == case.lower[2:].tolist() == [-1.0, -2.0]
        assert problem.upper[0, 2:].tolist() == case.upper[2:].tolist() == [1.0, 2.0]
    circle = "(assert (and (<= B[0,0] B[0,1]) (>= B[0,0] (- B[0,1] 1))))"
    text = declared() + BOX + circle
    with pytest.raises(SpecError, match=r"input B\[0,0\] and 1 more has no lower bound"):
        list(lower_query(parse_query(text)).cases)
    with pytest.raises(Unusable, match="input 2 without a bound"):
        list(read_spec(text.encode()).cases())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (TWO.replace("g {relation}", "f"), "two of one name"),
        (TWO.replace("B real", "A real"), "A is declared twice"),
        (TWO.replace("B real", "f real"), "f is declared twice"),
        (TWO.replace("{relation}", "(equal-to h)"), "h is no network with the same tensors"),
        (TWO.replace("g {relation}", "g (equal-to g)"), "g is no network with the same tensors"),
        (
            TWO.replace("{relation}", "(equal-to f)").replace("Q real [1,2]", "Q real [2]"),
            "f is no",
        ),
        (TWO.replace("B real", "B float32").replace("Q real", "Q float32"), "types are mixed"),
    ],
)
def test_declarations_that_make_no_sense_to_the_checker(text: str, why: str) -> None:
    text = text.format(relation="", hidden_f="", hidden_g="") + BOXES
    with pytest.raises(Unusable, match=why):
        read_spec(text.encode())


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    models = stored(tmp_path, f=network(1), g=network(2))
    for relation, known, why in [
        ("", {"f": models["f"]}, "network g has no model"),
        ("", {**models, "h": models["f"]}, "network h is not declared"),
        ("(equal-to f)", models, "network g is declared equal-to f"),
    ]:
        query = parse_query(declared(relation) + BOXES)
        with pytest.raises(UsageError, match=why):
            onnxcert.verify(known, query)
        sources = {name: Source(path.read_bytes()) for name, path in known.items()}
        with pytest.raises(Unusable, match="models are needed"):
            Session(sources, (declared(relation) + BOXES).encode())
    again = {"f": models["f"], "g": tmp_path / "." / "f.onnx"}  # the competition repeats the file
    assert onnxcert.verify(again, parse_query(declared("(equal-to f)") + BOXES)).word == "sat"
    with pytest.raises(UsageError, match="declares no networks, but has 2 models"):
        onnxcert.verify(models, onnxcert.box([0, 0], [1, 1]))


def test_the_checker_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = stored(tmp_path, f=network(1), g=network(2))
    spec, proof = tmp_path / "s.vnnlib", tmp_path / "p.onnxcert"
    spec.write_text(declared() + BOX + NEAR.format(gap="0.5") + "(assert (>= P[0,0] 1000))")
    onnxcert.verify(models, spec, timeout=20, certificate=proof)
    files, other = [str(proof), str(models["f"]), str(spec)], f"--network=g={models['g']}"
    assert command.main([*files, other]) == 0
    assert capsys.readouterr().out == "VERIFIED UNSAT (real)\n"
    for wrong in ([], [other.replace("=g=", "=h=")], [other, "--network=f=" + files[1]]):
        assert command.main([*files, *wrong]) == 2
        assert "models are needed for the networks" in capsys.readouterr().err
    for wrong in ([other, other], ["--network=g"], ["--network==" + files[1]]):
        with pytest.raises(SystemExit) as ended:
            command.main([*files, *wrong])
        assert ended.value.code == 2


def test_questions_about_one_network_refuse_several() -> None:
    with pytest.raises(UnsupportedSpec, match="several networks is not supported here: f, g"):
        lower_plain(parse_query(declared() + BOXES))
    text = declared().split("(declare-network g")[0] + BOX + "(assert (== A[0,0] A[0,1]))"
    with pytest.raises(UnsupportedSpec, match="asserted to be equal"):
        lower_plain(parse_query(text))


@pytest.mark.parametrize("order", [range(1999, 0, -1), range(1, 2000)])
def test_long_chains_of_equations(order: range) -> None:
    text = "(vnnlib-version <2.0>) (declare-network N (declare-input X real [2000])"
    text += " (declare-output Y real []))" + "(assert (and (<= X[7] 1) (>= X[5] 0)))"
    text += "".join(f"(assert (== X[{i}] X[{i - 1}]))" for i in order)
    lowered, spec = lower_query(parse_query(text)), read_spec(text.encode())
    assert lowered.layout.ties == spec.ties == dict.fromkeys(range(1, 2000), 0)
    (problem,), (case,) = lowered.cases, spec.cases()
    assert (problem.lower[0, 0], problem.upper[0, 0]) == (case.lower[0], case.upper[0]) == (0, 1)


@pytest.mark.parametrize(("length", "enough"), [(64, True), (65, False)])
def test_chains_of_bounds_have_a_limit(length: int, *, enough: bool) -> None:
    """In the same place in both readers."""
    text = f"(vnnlib-version <2.0>) (declare-network N (declare-input X real [{length + 1}])"
    text += " (declare-output Y real [])) (assert (and (<= X[0] 1) (>= X[0] -1)))"
    for i in range(length):
        text += f"(assert (and (<= X[{i + 1}] (+ X[{i}] 1)) (>= X[{i + 1}] (- X[{i}] 1))))"
    cases, spec = lower_query(parse_query(text)).cases, read_spec(text.encode())
    if enough:
        (problem,), (case,) = cases, spec.cases()
        assert problem.upper[0].tolist() == case.upper.tolist() == [1.0 + i for i in range(65)]
        return
    with pytest.raises(SpecError, match=r"input X\[65\] has no lower bound"):
        list(cases)
    with pytest.raises(Unusable, match="input 65 without a bound"):
        list(spec.cases())
