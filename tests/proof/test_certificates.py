"""What the engine proves, the checker accepts: from files alone, for every kind of question."""

from __future__ import annotations

import gzip
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcert
from onnxcert import Reason, Unknown
from onnxcert.checker import Rejected, Unusable, container
from tests.checker.makers import Disjunct, dense, spec
from tests.frontend.onnx_models import model_of
from tests.proof.networks import CUBE, LAYERS, Files, hard, least, network, version_2

SPLITTING = ["input", "neuron"]
MARGIN = {"sin": 0.3, "sigmoid": 0.1, "tanh": 0.1, "cos": 0.2, "softmax": 0.2, "attention": 0.3}
"""Shares of the spread of a row that are left between question and answer."""

REAL = "VERIFIED UNSAT (real)"
EXECUTED = "VERIFIED UNSAT (ieee32-any-order)"
WITNESS = "VERIFIED SAT (exact-replay, ort-replay)"


def arrays(files: Files) -> dict[str, np.ndarray]:
    return container.unpack(files.proof.read_bytes())[1]


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers(tmp_path: Path, layer: str, splitting: str) -> None:
    """Over the reals; sums of both outputs, so that no bound is the row of one neuron."""
    model = network(layer)
    low, spread = least(model, [1.0, -0.5])
    margin = MARGIN.get(layer, 0.05) * spread
    for bound, word in ((low - margin, "unsat"), (low + margin, "sat")):
        files = Files.write(tmp_path, model, spec((*CUBE, [([1.0, -0.5], bound)]), outputs=2))
        result = files.verify(splitting=splitting, timeout=20)
        assert result.proof is not None
        assert (result.word, result.proof.accepted) == (word, True)
        assert (result.proof.path, result.proof.message) == (str(files.proof), "")
        assert result.proof.bytes == files.proof.stat().st_size
        assert files.check() == f"VERIFIED {word.upper()} ({', '.join(result.proof.claims)})"


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_as_they_are_executed(tmp_path: Path, layer: str, splitting: str) -> None:
    model = network(layer, seed=1)
    low, spread = least(model, [0.0, 1.0])
    text = spec((*CUBE, [([0.0, 1.0], low - 2 * MARGIN.get(layer, 0.05) * spread)]), outputs=2)
    files = Files.write(tmp_path, model, text)
    assert (
        files.verify(splitting=splitting, timeout=20, semantics="ieee32-any-order").word == "unsat"
    )
    assert files.check() == EXECUTED
    assert onnxcert.check(files.proof, files.model, files.spec, semantics="real").claims


@pytest.mark.parametrize("splitting", SPLITTING)
def test_trees_with_many_leaves(tmp_path: Path, splitting: str) -> None:
    model, box = dense([5, 12, 12, 1], 4), ([-1.0] * 5, [1.0] * 5)
    low, spread = least(model, [1.0], *box)
    text = spec((*box, [([1.0], low - 0.01 * spread)]))
    files = Files.write(tmp_path, model, text)
    result = files.verify(splitting=splitting)
    assert files.check() == REAL
    held = arrays(files)
    assert set(held["group"][:, 0]) == {SPLITTING.index(splitting)}
    assert result.proof is not None
    assert result.proof.leaves == (held["op"] == 0).sum() > 20


def _boxes(model: onnx.ModelProto, count: int) -> list[Disjunct]:
    """Boxes side by side, and two questions on each: an easy one and one that needs splits."""
    edges = np.linspace(-1.0, 1.0, count + 1)
    disjuncts: list[Disjunct] = []
    for a, b in pairwise(edges):
        box = [float(a), -1.0, -1.0], [float(b), 1.0, 1.0]
        for row, share in (([1.0, 0.0], 0.02), ([0.0, -1.0], 2.0), ([-1.0, 1.0], 0.1)):
            low, spread = least(model, row, *box)
            disjuncts.append((*box, [(row, low - share * spread)]))
    return disjuncts


@pytest.mark.parametrize("splitting", SPLITTING)
def test_several_boxes_and_questions(tmp_path: Path, splitting: str) -> None:
    model = network("relu")
    files = Files.write(tmp_path, model, spec(*_boxes(model, 3), outputs=2))
    assert files.verify(splitting=splitting, narrowing="off").word == "unsat"
    assert files.check() == REAL
    held = arrays(files)
    assert sorted(held["case"].tolist()) == list(range(9))
    assert len(held["group"]) == (1 if splitting == "input" else 4)
    assert (held["group"][:, 0] == 0).sum() == 1


@pytest.mark.parametrize("splitting", SPLITTING)
def test_conjunctions_that_need_sums_of_rows(tmp_path: Path, splitting: str) -> None:
    """|y0| > 0 and |y1| > 0 each have solutions all over the place, both at once none."""
    model = network("relu")
    first, second = [1.0, 0.5], [-1.0, 0.25]
    low, spread = least(model, [0.0, 0.75])
    cut = 0.5 * (low - 0.05 * spread)  # their sum is 0.75 y1, which is never so small
    text = spec((*CUBE, [(first, cut), (second, cut), ([1.0, 1.0], 100.0)]), outputs=2)
    files = Files.write(tmp_path, model, text)
    assert files.verify(splitting=splitting).word == "unsat"
    assert files.check() == REAL
    weights = arrays(files)["weight"]
    assert len(weights) > 0
    assert (weights.reshape(-1, 3)[:, :2] > 0).all(axis=1).any()


def decimal(value: float) -> str:
    return f"{value:.6f}"


@pytest.mark.parametrize("splitting", SPLITTING)
def test_strict_rows_and_rows_over_inputs(tmp_path: Path, splitting: str) -> None:
    """A sum of an output and an input; a different answer is asked for with `!=`."""
    model = network("leaky")
    low, spread = least(model, [1.0, 0.0])
    asked = f"""(assert (or
      (< (+ Y[0,0] (* 2.0 X[0,1]) X[0,2]) {decimal(low - 3.0 - 0.01 * spread)})
      (and (!= X[0,0] 0.5) (< Y[0,0] {decimal(low - 0.02 * spread)}))
      (and (> X[0,0] X[0,1]) (>= X[0,1] (+ X[0,0] 0.125)))))"""
    files = Files.write(tmp_path, model, version_2(asked))
    assert files.verify(splitting=splitting).word == "unsat"
    assert files.check() == REAL


@pytest.mark.parametrize("splitting", SPLITTING)
def test_contradictions_leave_nothing_to_prove(tmp_path: Path, splitting: str) -> None:
    model = network("relu")
    low, spread = least(model, [0.0, 1.0])
    asked = """(assert (or
      (>= X[0,0] 1.5)
      (and (> X[0,1] 0.25) (< X[0,1] 0.125))
      {}))"""
    for rest in ("(<= X[0,2] -2.0)", f"(<= Y[0,1] {decimal(low - 0.02 * spread)})"):
        files = Files.write(tmp_path, model, version_2(asked.format(rest)))
        result = files.verify(splitting=splitting)
        assert result.word == "unsat"
        assert files.check() == REAL
        assert result.proof is not None
        assert (result.proof.leaves == 0) == rest.startswith("(<= X")


@pytest.mark.parametrize("kind", ["real", "float32"])
def test_hidden_tensors(tmp_path: Path, kind: str) -> None:
    """A question about a value inside the network: relu makes nothing negative."""
    hidden = f'(declare-hidden H {kind} [1,6] "h")'
    for asked, word in (("(<= H[0,3] -0.125)", "unsat"), ("(<= H[0,3] 0.0)", "sat")):
        text = version_2(f"(assert {asked})", kind, hidden)
        files = Files.write(tmp_path, network("relu"), text)
        assert files.verify().word == word
        assert (
            files.check() == {"sat": WITNESS, "unsat": REAL if kind == "real" else EXECUTED}[word]
        )


def test_several_inputs(tmp_path: Path) -> None:
    """The witness has one array for each, in the shapes of the model."""
    nodes = [
        helper.make_node("Concat", ["p", "q"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "m"], ["z"]),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    inputs: dict[str, list[int | str]] = {"p": [1, 1], "q": [1, 2]}
    m = {"m": np.array([[1, -1], [0.5, 2], [-1, 0.25]], np.float32)}
    model = model_of(nodes, inputs, ["y"], m)
    for bound, line in ((3.5, REAL), (2.0, WITNESS)):
        text = spec((*CUBE, [([-1.0, -0.25], -bound)]), outputs=2)
        files = Files.write(tmp_path, model, text)
        files.verify()
        assert files.check() == line
    assert {name: x.shape for name, x in arrays(files).items()} == {"x0": (1, 1), "x1": (1, 2)}


@pytest.mark.parametrize("asked", ["unsat", "sat"])
def test_gzip(tmp_path: Path, asked: str) -> None:
    files = hard(tmp_path, 0.5 if asked == "unsat" else -0.5)
    packed = Files(tmp_path / "m.onnx.gz", tmp_path / "s.vnnlib.gz", files.proof)
    packed.model.write_bytes(gzip.compress(files.model.read_bytes()))
    packed.spec.write_bytes(gzip.compress(files.spec.read_bytes()))
    assert packed.verify().word == asked
    assert packed.check() == {"sat": WITNESS, "unsat": REAL}[asked]
    with pytest.raises(Rejected, match="another file"):  # the hashes are those of the packed files
        files.check()


@pytest.mark.parametrize("asked", ["unsat", "sat"])
def test_external_data(tmp_path: Path, asked: str) -> None:
    files = hard(tmp_path, 0.5 if asked == "unsat" else -0.5)
    model = onnx.load(files.model)
    onnx.save(
        model, files.model, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    assert (tmp_path / "weights.bin").stat().st_size > 200
    assert files.verify().word == asked
    assert files.check() == {"sat": WITNESS, "unsat": REAL}[asked]
    weights = np.fromfile(tmp_path / "weights.bin", np.float32)
    other = 1000 * weights if asked == "unsat" else np.full_like(weights, 100)
    other.tofile(tmp_path / "weights.bin")  # the same model file, another network
    with pytest.raises(Rejected):
        files.check()


def test_objects_built_in_code(tmp_path: Path) -> None:
    """Their certificates are about what saving them would write."""
    model, files = network("relu"), Files.write(tmp_path, network("relu"), b"")
    low, spread = least(model, [1.0, 0.0])
    for share, line in ((-0.02, REAL), (0.02, WITNESS)):
        built = onnxcert.box([Fraction(-1)] * 3, [1] * 3).unsafe([1, 0], low + share * spread)
        onnxcert.verify(model, built, timeout=60, certificate=files.proof)
        files.model.write_bytes(model.SerializeToString())
        onnxcert.save_vnnlib(built.to_query([(1, 3)], [(1, 2)]), files.spec)
        assert files.check() == line


def test_a_witness_that_is_no_float(tmp_path: Path) -> None:
    """0.1 is no binary number; the witness says so, and what is replayed is its rounding."""
    model = dense([1, 2, 1], 3)
    text = b"""(declare-const X_0 Real)(declare-const Y_0 Real)
    (assert (and (= X_0 0.1) (<= Y_0 1000.0)))"""
    files = Files.write(tmp_path, model, text)
    assert files.verify().word == "sat"
    assert container.unpack(files.proof.read_bytes())[0]["decimals"] == {"0": "1/10"}
    assert files.check() == WITNESS


def test_uncertified_runs_say_what_became_of_the_proof(tmp_path: Path) -> None:
    files = hard(tmp_path)
    result = files.verify(certified=False)
    assert (result.word, result.proof is not None and result.proof.accepted) == ("unsat", True)
    assert files.check() == REAL
    again = onnxcert.verify(files.model, files.spec, certified=False)
    assert (again.word, again.proof) == ("unsat", None)


@pytest.mark.parametrize("certified", [True, False])
@pytest.mark.parametrize("asked", ["unsat", "sat"])
def test_models_that_the_checker_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, *, certified: bool
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise Unusable("operator Relu: not today")

    monkeypatch.setattr("onnxcert.checker.certificate.read_networks", refuse)
    files = hard(tmp_path, 0.5 if asked == "unsat" else -0.5)
    result = files.verify(certified=certified)
    assert result.proof is not None
    assert (result.proof.accepted, result.proof.message) == (False, "operator Relu: not today")
    assert not files.proof.exists()
    if asked == "unsat" and certified:
        assert result.verdict == Unknown(Reason.UNCERTIFIED)
    else:
        assert result.word == asked


def test_no_certificate_without_a_verdict(tmp_path: Path) -> None:
    files = hard(tmp_path, 0.001)
    result = files.verify(splitting="none")
    assert (result.verdict, result.proof) == (Unknown(Reason.INCOMPLETE), None)
    assert not files.proof.exists()
