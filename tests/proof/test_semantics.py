"""The arithmetic that an answer speaks of, and the time that it may take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

import onnxcert
from onnxcert import Progress, Reason, Result, Settings, Unknown, UsageError
from onnxcert.checker import Rejected, Unusable
from onnxcert.checker.certificate import Refusal, Session
from onnxcert.checker.proof import Prover
from onnxcert.search.deadline import Deadline
from onnxcert.verifier import natural_semantics
from tests.checker.makers import spec
from tests.frontend.onnx_models import model_of
from tests.proof.networks import CUBE, Files, hard, network, version_2

REAL, EXECUTED = "real", "ieee32-any-order"
QUESTIONS = {"unsat": "(<= Y[0,0] -1000.0)", "sat": "(<= Y[0,0] 1000.0)"}


def asked(folder: Path, word: str, kind: str | None) -> Files:
    """A question with a known answer, typed, or in VNN-LIB 1.0."""
    text = version_2(f"(assert {QUESTIONS[word]})", kind or "")
    if kind is None:
        bound = {"unsat": -1000.0, "sat": 1000.0}[word]
        text = spec((*CUBE, [([1.0, 0.0], bound)]), outputs=2)
    return Files.write(folder, network("relu"), text)


@pytest.mark.parametrize(
    ("kind", "semantics", "claim"),
    [
        (None, "auto", REAL),
        (None, REAL, REAL),
        (None, EXECUTED, EXECUTED),
        ("real", "auto", REAL),
        ("real", EXECUTED, EXECUTED),
        ("float32", "auto", EXECUTED),
        ("float32", REAL, REAL),
        ("float32", EXECUTED, EXECUTED),
    ],
)
def test_what_an_answer_speaks_of(
    tmp_path: Path, kind: str | None, semantics: str, claim: str
) -> None:
    files = asked(tmp_path, "unsat", kind)
    result = files.verify(semantics=semantics)
    assert (result.word, result.semantics) == ("unsat", claim)
    assert result.proof is not None
    assert result.proof.claims == (claim,)
    assert files.check() == f"VERIFIED UNSAT ({claim})"
    assert result.settings["timeout"] == 60
    if claim == REAL:
        with pytest.raises(Rejected, match="proved for real"):
            onnxcert.check(files.proof, files.model, files.spec, semantics=EXECUTED)
    files = asked(tmp_path, "sat", kind)
    result = files.verify(semantics=semantics)
    assert (result.word, result.semantics) == ("sat", claim)
    assert files.check() == "VERIFIED SAT (exact-replay, ort-replay)"


@pytest.mark.parametrize("semantics", ["", "float32", "REAL", "ieee32"])
def test_other_names_are_refused(tmp_path: Path, semantics: str) -> None:
    with pytest.raises(UsageError, match="there is no semantics"):
        asked(tmp_path, "unsat", "real").verify(semantics=semantics)


def test_types_decide(tmp_path: Path) -> None:
    for kind, claim in (("real", REAL), ("float32", EXECUTED), ("float64", EXECUTED)):
        files = asked(tmp_path, "sat", kind)
        assert natural_semantics(onnxcert.read_query(files.spec)) == claim


def narrow(folder: Path) -> Files:
    """y = (x + 4096) - 4096 >= 1 + 2^-14 for x <= 1: never over the reals; in binary32 with other
    orders of summation nobody knows, and onnxruntime rounds x + 4096 to multiples of 2^-11."""
    nodes = [
        helper.make_node("Add", ["x", "large"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Sub", ["h", "large"], ["y"]),
    ]
    model = model_of(nodes, {"x": [1, 1]}, ["y"], {"large": np.array([[4096]], np.float32)})
    text = b"""(vnnlib-version <2.0>)
    (declare-network N (declare-input X float32 [1,1]) (declare-output Y float32 [1,1]))
    (assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0)))
    (assert (>= Y[0,0] 1.00006103515625))"""
    return Files.write(folder, model, text)


def test_what_only_the_reals_settle(tmp_path: Path) -> None:
    files = narrow(tmp_path)
    result = files.verify(splitting="none")
    assert (result.verdict, result.semantics) == (Unknown(Reason.ROUNDING), EXECUTED)
    assert (result.settings["timeout"], result.proof) == (60, None)
    assert not files.proof.exists()
    result = files.verify(splitting="none", semantics=EXECUTED)
    assert (result.word, result.semantics) == ("unknown", EXECUTED)
    result = files.verify(splitting="none", semantics=REAL)
    assert (result.word, result.semantics) == ("unsat", REAL)
    assert files.check() == "VERIFIED UNSAT (real)"


def test_patience_for_rounding_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving boxes makes rounding no smaller, which is found out long before the time is up."""
    monkeypatch.setattr("onnxcert.verifier._ROUNDING_SECONDS", 0.05)
    monkeypatch.setattr("onnxcert.verifier._ROUNDING_FACTOR", 1.0)
    files = narrow(tmp_path)
    result = files.verify(splitting="input", timeout=600)
    assert (result.verdict, result.settings["timeout"]) == (Unknown(Reason.ROUNDING), 600)
    assert result.seconds["total"] < 600
    monkeypatch.setattr("onnxcert.verifier._ROUNDING_SECONDS", 1e6)
    result = files.verify(splitting="input", timeout=0.5)
    assert result.verdict == Unknown(Reason.TIMEOUT)  # who knows what more time would have given


def test_what_the_checker_does_not_read_is_not_blamed_on_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise Unusable("not today")

    monkeypatch.setattr("onnxcert.checker.certificate.read_networks", refuse)
    result = asked(tmp_path, "unsat", "float32").verify()
    assert result.verdict == Unknown(Reason.UNCERTIFIED)
    assert result.proof is not None
    assert result.proof.message == "not today"


def test_an_interrupt_does_not_change_the_question(tmp_path: Path) -> None:
    """It comes during the search over the reals, which is a means to an end."""

    def interrupt(moment: Progress) -> None:
        if moment.phase == "attack":
            raise KeyboardInterrupt

    files = asked(tmp_path, "unsat", "float32")
    result = onnxcert.verify(files.model, files.spec, progress=interrupt)
    assert (result.verdict, result.semantics) == (Unknown(Reason.INTERRUPTED), EXECUTED)
    assert result.settings["timeout"] is None


# --- time ----------------------------------------------------------------------------------------


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A deadline that has come once the list holds something."""
    reasons: list[str] = []
    expired = Deadline.expired
    monkeypatch.setattr(Deadline, "expired", lambda self: bool(reasons) or expired(self))
    return reasons


def run(files: Files, late: list[str], phase: str, **options: Any) -> Result:
    """A run whose time is up when a phase begins."""

    def look(moment: Progress) -> None:
        if moment.phase == phase:
            late.append(phase)

    return onnxcert.verify(
        files.model,
        files.spec,
        timeout=600,
        certificate=files.proof,
        progress=look,
        settings=Settings(attack_restarts=0, watch="off", splitting=options.pop("splitting")),
        **options,
    )


@pytest.mark.parametrize("splitting", ["input", "neuron"])
@pytest.mark.parametrize("certified", [True, False])
def test_a_check_that_does_not_fit(
    tmp_path: Path,
    late: list[str],
    monkeypatch: pytest.MonkeyPatch,
    splitting: str,
    *,
    certified: bool,
) -> None:
    """Not one batch of leaves is bounded any more; without the check an answer is one, too."""
    bounded = 0

    def count(*arguments: object) -> None:
        nonlocal bounded
        bounded += 1
        raise AssertionError("the time is up")

    monkeypatch.setattr(Prover, "boxes", count)
    monkeypatch.setattr(Prover, "paths", count)
    files = hard(tmp_path)
    result = run(files, late, "checking", splitting=splitting, certified=certified)
    assert (late, bounded) == (["checking"], 0)
    assert not files.proof.exists()
    if certified:
        assert result.verdict == Unknown(Reason.TIMEOUT)
    else:
        assert result.word == "unsat"
        assert result.proof is not None
        assert (result.proof.accepted, result.proof.claims) == (False, ())
        assert result.proof.message == "the time was up before the check was done"


@pytest.mark.parametrize("splitting", ["input", "neuron"])
def test_a_check_stops_between_batches(
    tmp_path: Path, late: list[str], monkeypatch: pytest.MonkeyPatch, splitting: str
) -> None:
    """Batches of one node: the time is up during the third."""
    monkeypatch.setattr("onnxcert.checker.trees._NUMBERS", 1)
    calls = 0
    for name in ("boxes", "paths"):
        method = getattr(Prover, name)

        def count(prover: Prover, *arguments: Any, method: Any = method) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                late.append("third")
            return method(prover, *arguments)

        monkeypatch.setattr(Prover, name, count)
    result = hard(tmp_path).verify(splitting=splitting, narrowing="off")
    assert (result.verdict, calls) == (Unknown(Reason.TIMEOUT), 3)


def test_a_repair_that_does_not_fit(
    tmp_path: Path, late: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is up when the checker has refused some leaves."""
    check = Session.check

    def refuse(session: Session, *arguments: Any, refused: list[Any], **options: Any) -> object:
        result = check(session, *arguments, refused=refused, **options)
        refused.append(Refusal(0, 0, np.array([0]), -np.ones(4), np.ones(4), -0.5))
        return result

    monkeypatch.setattr(Session, "check", refuse)
    files = hard(tmp_path)
    result = run(files, late, "repair", splitting="neuron")
    assert (result.verdict, late) == (Unknown(Reason.TIMEOUT), ["repair"])
    assert not files.proof.exists()
