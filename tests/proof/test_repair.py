"""What happens when the checker refuses leaves that the search has closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from onnxcert import Reason, Unknown
from onnxcert.checker import Rejected, Unusable, container, tilts
from onnxcert.checker.certificate import Session
from onnxcert.search.solve import Failure, Solver
from tests.checker.makers import dense, spec
from tests.proof.networks import Files, hard, least
from tests.proof.skeptic import LACKING, Skeptic

REAL = "VERIFIED UNSAT (real)"


def doubt(monkeypatch: pytest.MonkeyPatch, rounds: int) -> Skeptic:
    skeptic = Skeptic(rounds)
    skeptic.install(monkeypatch)
    return skeptic


def easy(folder: Path) -> Files:
    """Three questions on two boxes that bounds of the first pass settle."""
    model = dense([4, 6, 6, 1], 4)
    low, spread = least(model, [1.0], [-1.0] * 4, [1.0] * 4)
    halves = ([-1.0] * 4, [1.0, 1.0, 1.0, 0.0]), ([-1.0, -1.0, -1.0, 0.0], [1.0] * 4)
    bounds = low - 4 * spread, low - 5 * spread
    questions = [(*halves[0], [([1.0], bound)]) for bound in bounds]
    return Files.write(folder, model, spec(*questions, (*halves[1], [([1.0], bounds[0])])))


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_trees_over_inputs_grow_where_leaves_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    plain = hard(tmp_path).verify(splitting="input").proof
    skeptic = doubt(monkeypatch, rounds)
    files = hard(tmp_path)
    result = files.verify(splitting="input")
    assert (result.word, skeptic.seen) == ("unsat", rounds + 1)
    assert plain is not None
    assert result.proof is not None
    assert result.proof.leaves > plain.leaves
    assert result.seconds["repair"] >= 0
    assert files.check() == REAL


@pytest.mark.parametrize("rounds", [1, 3])
def test_trees_over_neurons_are_made_anew_with_a_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """One case is refused, in which every leaf then has a bound by so much better."""
    skeptic = doubt(monkeypatch, rounds)
    files = hard(tmp_path)
    result = files.verify(splitting="neuron", planes="off", narrowing="off")
    assert (result.word, skeptic.seen) == ("unsat", rounds + 1)
    assert skeptic.lowest[0] < 1.9 * LACKING <= skeptic.lowest[-1] < float("inf")
    assert files.check() == REAL


def test_planes_that_the_checker_cannot_follow_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it sees two sums in a row that the search has made one of."""
    text = spec(([-1.0] * 4, [1.0] * 4, [([1.0], -6.25)]))
    files = Files.write(tmp_path, dense([4, 6, 1], 5), text)
    assert files.verify(splitting="neuron").word == "unsat"
    assert "tilt" in container.unpack(files.proof.read_bytes())[1]
    files.proof.unlink()

    def fail(*arguments: object) -> None:
        raise Rejected("R18", "tilt", "neurons that do not read sums of one block")

    monkeypatch.setattr(tilts, "find_reads", fail)
    result = files.verify(splitting="neuron", watch="off")
    assert (result.word, files.check()) == ("unsat", REAL)
    assert "repair" in result.seconds
    assert "tilt" not in container.unpack(files.proof.read_bytes())[1]


@pytest.mark.parametrize("splitting", ["input", "neuron"])
def test_what_plain_bounds_refute_is_proved_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splitting: str
) -> None:
    skeptic = doubt(monkeypatch, 1)
    files = easy(tmp_path)
    result = files.verify(splitting=splitting)
    assert (result.word, skeptic.seen) == ("unsat", 2)
    assert files.check() == REAL


def test_bounds_of_a_repaired_proof_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was bounded anew is part of a box; it says nothing of the whole."""
    margin = 0.01
    doubt(monkeypatch, 2)
    model = dense([4, 6, 6, 1], 4)
    _, spread = least(model, [1.0], [-1.0] * 4, [1.0] * 4)
    for splitting in ("input", "neuron"):
        result = hard(tmp_path, margin).verify(splitting=splitting, narrowing="off")
        assert result.word == "unsat"
        assert 0 < result.bounds[0] <= margin * spread + 1e-9


@pytest.mark.parametrize(
    ("make", "splitting"), [(hard, "input"), (hard, "neuron"), (easy, "neuron")]
)
def test_some_day_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Files], splitting: str
) -> None:
    skeptic = doubt(monkeypatch, 10**9)
    files = make(tmp_path)
    result = files.verify(splitting=splitting)
    assert (result.verdict, skeptic.seen) == (Unknown(Reason.UNCERTIFIED), 4)
    assert result.proof is not None
    assert not result.proof.accepted
    assert result.proof.message.endswith(" leaves are not refuted")
    assert not files.proof.exists()


@pytest.mark.parametrize("splitting", ["input", "neuron"])
def test_uncertified_runs_repair_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splitting: str
) -> None:
    skeptic = doubt(monkeypatch, 1)
    files = hard(tmp_path)
    result = files.verify(splitting=splitting, certified=False)
    assert (result.word, skeptic.seen) == ("unsat", 1)
    assert result.proof is not None
    assert not result.proof.accepted
    assert not files.proof.exists()


@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.MEMORY, Reason.INCOMPLETE])
def test_a_repair_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Reason) -> None:
    asked: list[Sequence[Failure]] = []

    def fail(solver: Solver, failures: Sequence[Failure]) -> Reason:
        asked.append(failures)
        return reason

    doubt(monkeypatch, 1)
    monkeypatch.setattr(Solver, "repair", fail)
    files = hard(tmp_path)
    assert files.verify(splitting="input").verdict == Unknown(reason)
    assert not files.proof.exists()
    (failures,) = asked
    for failure in failures:
        assert failure.trees is not None
        assert (failure.cases.tolist(), failure.lower) == ([0], -LACKING)
        assert (failure.low <= failure.high).all()


@pytest.mark.parametrize("error", [Rejected("R0", "place", "no reason"), Unusable("no reason")])
def test_a_certificate_that_is_refused_as_a_whole_is_not_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls = 0

    def refuse(session: Session, *arguments: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        raise error

    monkeypatch.setattr(Session, "check", refuse)
    result = hard(tmp_path).verify()
    assert (result.verdict, calls) == (Unknown(Reason.UNCERTIFIED), 1)
    assert result.proof is not None
    assert (result.proof.accepted, result.proof.message) == (False, str(error))
