"""Checking while the search runs: what the second process does, and what becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcert import Reason, Result, Unknown
from onnxcert.checker import Rejected, Unusable
from onnxcert.checker.bounds import Bounder
from onnxcert.checker.certificate import Session, Verified
from onnxcert.checker.errors import Expired
from onnxcert.checker.proof import Prover, Rows
from onnxcert.checker.trees import Refusal
from onnxcert.processes import Child, IdleProcessors
from onnxcert.proof import watch
from onnxcert.proof.trace import InputTrees
from onnxcert.proof.watch import Reply, Watch
from onnxcert.search import folded_split
from tests.checker.makers import Arrays, Header, coarse, dense, edited, spec
from tests.mixed import early
from tests.proof.inside import Inside, Processes
from tests.proof.networks import Files, halves, hard, least
from tests.proof.skeptic import Skeptic
from tests.strategies import make_problem

REAL = "VERIFIED UNSAT (real)"


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    made = Inside()
    made.install(monkeypatch)
    return made


def boxes_and_sums(folder: Path) -> Files:
    """Boxes side by side, on each a question that single rows do not settle, and an easy one."""
    model = dense([2, 6, 6, 6, 2], 3)
    disjuncts: list[Any] = []
    for low, high in (([-1.0, -1.0], [0.0, 1.0]), ([0.0, -1.0], [1.0, 1.0])):
        least_sum, spread = least(model, [0.5, 0.75], low, high)
        cut = 0.5 * (least_sum - 0.02 * spread)
        first, second = ([1.0, 0.5], cut), ([-0.5, 0.25], cut)
        disjuncts += [(low, high, [first, second]), (low, high, [([1.0, 0.0], -1000.0)])]
    return Files.write(folder, model, spec(*disjuncts, outputs=2))


def ball(folder: Path) -> Files:
    """A box that an ellipsoid cuts."""
    files = hard(folder, 0.005)
    squares = " ".join(f"(* X_{i} X_{i})" for i in range(4))
    text = files.spec.read_text(encoding="utf-8")
    files.spec.write_text(f"{text}(assert (<= (+ {squares}) 3.9))\n", encoding="utf-8")
    return files


@pytest.mark.parametrize("make", [hard, boxes_and_sums, ball])
@pytest.mark.parametrize("semantics", ["real", "ieee32-any-order"])
@pytest.mark.parametrize("batch_limit", [4096, 3])
def test_what_was_walked_is_not_walked_again(
    tmp_path: Path,
    inside: Inside,
    make: Callable[[Path], Files],
    semantics: str,
    batch_limit: int,
) -> None:
    files = make(tmp_path)
    options = {"splitting": "input", "watch": "auto", "batch_limit": batch_limit}
    result = files.verify(semantics=semantics, **options)
    assert (result.word, inside.agreed, inside.bounded) == ("unsat", [True], 0)
    verified, refused = inside.answer
    assert (str(verified), refused) == (f"VERIFIED UNSAT ({semantics})", [])
    assert result.proof is not None
    assert verified.leaves == result.proof.leaves > 1
    assert files.check() == f"VERIFIED UNSAT ({semantics})"


@pytest.mark.parametrize(("batch_limit", "most_cuts"), [(4096, 3), (3, 3), (4096, 1), (3, 1)])
def test_folded_networks(
    tmp_path: Path,
    inside: Inside,
    monkeypatch: pytest.MonkeyPatch,
    batch_limit: int,
    most_cuts: int,
) -> None:
    """They are made where the search made them, and a certificate that says otherwise is walked."""
    monkeypatch.setattr(folded_split, "LEAST_WORK", 0)
    monkeypatch.setattr(folded_split, "AGAIN", 1.0)
    monkeypatch.setattr(folded_split, "LEAST_LEFT", 0.0)
    monkeypatch.setattr(folded_split, "MOST_CUTS", most_cuts)
    files = hard(tmp_path)
    result = files.verify(splitting="input", watch="auto", batch_limit=batch_limit)
    assert (result.word, inside.agreed, inside.bounded) == ("unsat", [True], 0)
    assert files.check() == REAL

    def unfolded(header: Header, arrays: Arrays) -> None:
        assert (arrays["op"] == 3).sum() > (3 if most_cuts == 1 else 1)
        assert (arrays["op"] == 4).any() == (most_cuts > 1)
        last = np.flatnonzero(arrays["op"] == 3)[-1]
        arrays["op"][last] = 1

    found, answer = inside.again(edited(inside.data, unfolded))
    assert not found
    assert inside.bounded > 0
    assert not answer[1]


def _other_input(header: Header, arrays: Arrays) -> None:
    arrays["arg"][len(arrays["arg"]) // 2] ^= 1


def _other_order(header: Header, arrays: Arrays) -> None:
    """The same number of nodes, but another tree."""
    op = arrays["op"]
    first = int(np.flatnonzero((op[:-2] == 1) & (op[1:-1] == 0) & (op[2:] == 1))[0])
    op[first : first + 3] = [1, 1, 0]


def _missing_split(header: Header, arrays: Arrays) -> None:
    """A split with two leaves becomes a leaf."""
    op = arrays["op"]
    first = int(np.flatnonzero((op[:-2] == 1) & (op[1:-1] == 0) & (op[2:] == 0))[-1])
    arrays["arg"] = np.delete(arrays["arg"], int(op[:first].sum()))
    arrays["op"] = np.concatenate([op[:first], [0], op[first + 3 :]]).astype(op.dtype)
    arrays["group"][0, 2] -= 2
    arrays["combine"][:, 0] -= (2 * (arrays["combine"][:, 0] > first)).astype("<u4")


def _further_split(header: Header, arrays: Arrays) -> None:
    """The last leaf is split once more."""
    arrays["arg"] = np.append(arrays["arg"], 0).astype("<u4")
    arrays["op"] = np.concatenate([arrays["op"][:-1], [1, 0, 0]]).astype("|u1")
    arrays["group"][0, 2] += 2


def _other_weight(header: Header, arrays: Arrays) -> None:
    arrays["weight"][0] = coarse(8.0)


def _missing_sum(header: Header, arrays: Arrays) -> None:
    arrays["combine"], arrays["weight"] = arrays["combine"][1:], arrays["weight"][2:]
    arrays["group"][0, 3] -= 1


CHANGES = [
    _other_input,
    _other_order,
    _missing_split,
    _further_split,
    _other_weight,
    _missing_sum,
]


@pytest.mark.parametrize("change", CHANGES)
def test_another_certificate_is_checked_like_any_other(
    tmp_path: Path, inside: Inside, change: Callable[[Header, Arrays], None]
) -> None:
    files = boxes_and_sums(tmp_path)
    files.verify(splitting="input", watch="auto")
    assert inside.again(inside.data)[0]
    changed = edited(inside.data, change)
    inside.bounded = 0
    found, answer = inside.again(changed)
    assert not found
    assert inside.bounded > 0
    refused: list[Any] = []
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    verified = session.check(changed, refused=refused)
    assert answer[0] == verified
    assert [r.node for r in answer[1]] == [r.node for r in refused]


@pytest.mark.parametrize("semantics", ["real", "ieee32-any-order"])
def test_boxes_that_are_handed_on_are_checked_meanwhile(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch, semantics: str
) -> None:
    files = halves(tmp_path, dense([4, 6, 6, 1], 4), [1.0], 0.02)
    with early(batches=1):
        result = files.verify(splitting="input", watch="auto", semantics=semantics)
    assert (result.word, inside.agreed, inside.bounded) == ("unsat", [True], 0)
    verified, refused = inside.answer
    assert (str(verified), refused) == (f"VERIFIED UNSAT ({semantics})", [])
    (trees,) = inside.child.trees.values()
    assert len(trees.handed) > 1
    assert (inside.made, inside.leaves) == (0, 0)
    assert inside.child.memory.leaves > len(trees.handed)
    found, answer = inside.again(inside.data)
    assert (found, inside.leaves, answer[0]) == (True, 0, verified)

    def other_slope(header: Header, arrays: Arrays) -> None:
        arrays["slope"][-1] ^= 1

    def fewer(header: Header, arrays: Arrays) -> None:
        """A box that was handed on is claimed to be refuted by itself."""
        nodes = int(arrays["group"][0, 2])
        arrays["op"][np.flatnonzero(arrays["op"][:nodes] == 2)[0]] = 0

    assert inside.again(edited(inside.data, other_slope))[0]
    assert (inside.made, inside.leaves) == (0, 1)
    found, answer = inside.again(edited(inside.data, fewer))
    assert not found
    assert isinstance(answer[0], Rejected)


def test_a_box_that_cannot_be_described_is_checked_in_the_end(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes) -> None:
        raise Unusable("it is read in another way")

    monkeypatch.setattr(watch, "read_spec", fail)
    files = halves(tmp_path, dense([4, 6, 6, 1], 4), [1.0], 0.02)
    with early(batches=1):
        result = files.verify(splitting="input", watch="auto")
    assert (result.word, inside.agreed) == ("unsat", [False])
    assert files.check() == REAL


def test_a_node_cannot_stand_for_two(tmp_path: Path, inside: Inside) -> None:
    """What the search says of its nodes is a hint as well."""
    files = boxes_and_sums(tmp_path)
    files.verify(splitting="input", watch="auto")
    ((uid, order),) = inside.known
    (trees,) = inside.child.trees.values()
    leaves = [place for place, node in enumerate(order) if trees.decision[node][0] < 0]
    swapped = order.copy()
    swapped[leaves[0]], swapped[leaves[-1]] = order[leaves[-1]], order[leaves[0]]
    for other in (order[:-1], order[::-1], swapped):
        inside.known = [(uid, other)]
        found, answer = inside.again(inside.data)
        assert not found
        assert str(answer[0]) == REAL


def test_two_roots_are_two(tmp_path: Path, inside: Inside) -> None:
    """One root is walked, and some node that is in no tree; the other root is not."""
    model = dense([2, 5, 5, 1], 3)
    halves = ([-1.0, -1.0], [0.0, 1.0]), ([0.0, -1.0], [1.0, 1.0])
    text = spec(*((*half, [([1.0], -1000.0)]) for half in halves))
    Files.write(tmp_path, model, text).verify(splitting="input", watch="auto")
    assert inside.again(inside.data)[0]
    ((uid, order),) = inside.known
    (trees,) = inside.child.trees.values()
    assert len(order) == 2
    del trees.roots[int(order[0])]
    inside.known = [(uid, order[[1, 1]])]
    found, answer = inside.again(inside.data)
    assert not found
    assert str(answer[0]) == REAL


def test_leaves_that_were_not_refuted_are_repaired(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker doubts some of them while the search runs; they are cut, and nothing else is
    bounded again."""
    Skeptic(rounds=0).install(monkeypatch)
    files, doubts = boxes_and_sums(tmp_path), list[int]()
    finish = watch._Child.finish

    def counted(child: Any, *arguments: Any) -> Reply:
        answer, refused = finish(child, *arguments)
        doubts.append(len(refused))
        return answer, refused

    monkeypatch.setattr(watch._Child, "finish", counted)
    assert run(files).word == "unsat"
    assert inside.agreed == [True, True]
    assert doubts[0] > 0 == doubts[1]
    assert 0 < inside.bounded <= 3 * doubts[0]
    assert files.check() == REAL


@pytest.mark.parametrize("rounds", [1, 2])
def test_handed_boxes_that_were_not_refuted_are_repaired(
    rounds: int, tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    Skeptic(rounds).install(monkeypatch)
    files = halves(tmp_path, dense([4, 6, 6, 1], 4), [1.0], 0.02)
    with early(batches=1):
        result = run(files)
    assert (result.word, files.check()) == ("unsat", REAL)
    assert len(inside.agreed) > 1


def test_rejections_are_answers(tmp_path: Path, inside: Inside) -> None:
    files = boxes_and_sums(tmp_path)
    files.verify(splitting="input", watch="auto")
    _, (answer, _) = inside.again(inside.data[:100])
    assert isinstance(answer, Rejected)
    assert answer.rule == "container"


def test_a_single_root_is_bounded_ahead_and_once(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded: list[bytes] = []
    bound = Bounder.bound

    def noted(bounder: Bounder, low: np.ndarray, high: np.ndarray, *rest: Any, **how: Any) -> Any:
        if how["backward"]:
            bounded.append(low.tobytes() + high.tobytes())
        return bound(bounder, low, high, *rest, **how)

    monkeypatch.setattr(Bounder, "bound", noted)
    assert hard(tmp_path).verify(splitting="input", watch="auto").word == "unsat"
    assert inside.agreed == [True]
    assert bounded.count(bounded[0]) == 1
    assert len(bounded) > 1
    (trees,) = inside.child.trees.values()
    assert trees.prover.ahead == []


@pytest.mark.parametrize("margin", [0.005, 0.2])
def test_neurons_of_a_box_are_bounded_ahead_and_once(
    margin: float, tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where these bounds are all that is needed, and where neurons are split."""
    bounded, bound = [], Bounder.bound

    def noted(bounder: Bounder, *arguments: Any, **how: Any) -> Any:
        if how["backward"]:
            bounded.append(inside.told[-1])
        return bound(bounder, *arguments, **how)

    monkeypatch.setattr(Bounder, "bound", noted)
    assert hard(tmp_path, margin).verify(splitting="neuron", watch="auto").word == "unsat"
    assert isinstance(inside.answer[0], Verified)
    assert inside.told[:2] == ["problem", "box"]
    assert (len(inside.told) == 2) == (margin == 0.2)
    assert bounded == ["box"]


def test_only_the_same_box_is_not_bounded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = hard(tmp_path)
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    cases = list(session.query.cases())
    rows = Rows.of(cases, session.network.n_inputs, len(session.network.output))
    prover = Prover(session.bounder(executed=False), rows)
    right, calls = Bounder.bound, []

    def bound(self: Bounder, *arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return right(self, *arguments, **options)

    monkeypatch.setattr(Bounder, "bound", bound)
    roots = prover.roots(cases)
    for _ in range(3):
        prover.bounds(roots, backward=True)
    assert len(calls) == 1
    known = replace(roots, known=(np.full_like(roots.known[0], -1.0), roots.known[1]))
    smaller = replace(roots, low=0.5 * roots.low)
    for number, other in enumerate((known, roots[np.array([0, 0])], smaller), 2):
        prover.bounds(other, backward=True)
        assert len(calls) == number
    prover.bounds(smaller, backward=False)
    assert len(calls) == 5


def test_no_process_for_what_is_over_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a process for this")

    monkeypatch.setattr(subprocess, "Popen", start)
    assert hard(tmp_path).verify(splitting="input", watch="auto").word == "unsat"
    monkeypatch.setattr(watch, "_PATIENCE", 0.0)
    monkeypatch.setattr(IdleProcessors, "count", lambda idle: 0.5)
    assert hard(tmp_path).verify(splitting="input", watch="auto").word == "unsat"
    monkeypatch.setattr(IdleProcessors, "count", lambda idle: 4.0)
    assert hard(tmp_path).verify(splitting="input", watch="off").word == "unsat"


# --- the process itself ---------------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    made = Processes()
    made.install(monkeypatch)
    return made


def run(files: Files, **options: Any) -> Result:
    return files.verify(splitting="input", watch="auto", **options)


def test_a_process_answers_and_ends(
    tmp_path: Path, processes: Processes, capfd: pytest.CaptureFixture[str]
) -> None:
    """It answers, from its own folder even if the current one holds modules of the same names."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('this is not numpy')")
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        files = boxes_and_sums(tmp_path)
        assert run(files).word == "unsat"
    finally:
        os.chdir(before)
    assert files.check() == REAL
    (answer,) = processes.answers
    assert answer is not None
    assert (str(answer[0]), answer[1]) == (REAL, [])
    processes.assert_gone()
    assert capfd.readouterr() == ("", "")


def test_a_process_is_asked_again_about_what_was_repaired(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only leaf is said to have been refused; the child sees what becomes of it."""
    files, finish = hard(tmp_path, 0.3), Watch.finish

    def refusing(parent: Watch, *arguments: Any) -> Reply | None:
        reply = finish(parent, *arguments)
        if len(processes.answers) == 1 and reply is not None:
            reply[1].append(Refusal(0, 0, np.array([0]), -np.ones(4), np.ones(4), 0.0))
        return reply

    monkeypatch.setattr(Watch, "finish", refusing)
    assert run(files).word == "unsat"
    assert [answer and str(answer[0]) for answer in processes.answers] == [REAL, REAL]
    assert len(processes.started) == 1
    assert files.check() == REAL
    processes.assert_gone()


def test_a_process_is_started_while_the_search_is_silent(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_PATIENCE", 0.2)
    begun = threading.Event()

    def begin() -> tuple[bytes, bytes, None, str]:
        begun.set()
        return b"no model", b"no specification", None, "real"

    parent = Watch(begin)
    trees = InputTrees(make_problem([([0.0], [1.0])], [(0, [([1.0], 0.0)])]))
    parent.problem(trees.problem)
    assert set(threading.enumerate()) <= processes.threads  # nothing to be checked yet
    parent.follow(trees)
    trees.plant(np.array([[0]]))
    assert not processes.started
    assert begun.wait(60.0)
    parent.close()
    processes.assert_gone()


def test_what_nobody_will_read_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LONGEST_WAIT", 0.1)
    monkeypatch.setattr(IdleProcessors, "count", lambda idle: 0.0)
    parent = Watch(lambda: (b"", b"", None, "real"))
    trees = InputTrees(make_problem([([0.0], [1.0])], [(0, [([1.0], 0.0)])]))
    parent.follow(trees)
    trees.plant(np.array([[0]]))
    assert parent._starter is not None
    parent._starter.join(60.0)
    assert not parent._starter.is_alive()
    assert parent._waiting == []
    trees.plant(np.array([[0]]))
    assert parent._waiting == []
    assert parent.finish(b"", [], lambda: False) is None


@pytest.mark.parametrize("moment", ["at once", "before the answer"])
def test_a_process_that_dies_is_not_missed(
    tmp_path: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    moment: str,
) -> None:
    start, finish = Watch._start, Watch.finish

    def start_and_kill(parent: Watch) -> None:
        start(parent)
        if moment == "at once":
            processes.started[-1].kill()
            processes.started[-1].wait()

    def kill_and_finish(parent: Watch, *arguments: Any) -> Reply | None:
        processes.started[-1].kill()
        return finish(parent, *arguments)

    monkeypatch.setattr(Watch, "_start", start_and_kill)
    monkeypatch.setattr(Watch, "finish", kill_and_finish)
    files = hard(tmp_path)
    assert run(files).word == "unsat"
    assert processes.answers == [None]
    assert files.check() == REAL
    processes.assert_gone()
    assert capfd.readouterr() == ("", "")


def test_a_process_that_cannot_be_started_is_not_missed(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    files = hard(tmp_path)
    assert run(files).word == "unsat"
    assert (processes.started, processes.answers) == ([], [None])
    assert files.check() == REAL


def test_a_process_that_reads_nothing_of_the_model_says_nothing(
    processes: Processes, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its complaints would end up among the words of the program; the parent finds out itself."""
    parent = Watch(lambda: (b"no model", b"no specification", None, "real"))
    parent.tell("problem", None)
    assert parent.finish(b"", [], lambda: False) is None
    processes.assert_gone()
    assert capfd.readouterr() == ("", "")


def test_the_time_may_be_up_while_a_process_is_asked(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never gets its messages here, so it waits for them as long as it is let."""
    questions = iter([False, False, True])
    parent = Watch(lambda: (b"", b"", None, "real"))
    blocked = threading.Event()

    def send_nothing(child: Child) -> None:
        blocked.wait()
        assert child._process.stdin is not None
        child._process.stdin.close()

    monkeypatch.setattr(Child, "_send", send_nothing)
    parent.tell("problem", None)

    def expired() -> bool:
        late = next(questions)
        if late:
            blocked.set()
        return late

    with pytest.raises(Expired):
        parent.finish(b"", [], expired)
    assert list(questions) == []
    processes.assert_gone()


def test_time_that_is_up_is_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def expire(parent: Watch, *arguments: object) -> None:
        parent.close()
        raise Expired

    monkeypatch.setattr(Watch, "finish", expire)
    files = hard(tmp_path)
    assert run(files).verdict == Unknown(Reason.TIMEOUT)
    assert not files.proof.exists()


def test_witnesses_and_interrupts_end_the_process(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to be asked then."""
    files = hard(tmp_path, -0.2)
    assert run(files, attack_restarts=0).word == "sat"
    assert files.check().startswith("VERIFIED SAT")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(InputTrees, "step", interrupt)
    assert run(hard(tmp_path)).verdict == Unknown(Reason.INTERRUPTED)
    assert (len(processes.started), processes.answers) == (2, [])
    processes.assert_gone()


def test_nobody_listens_to_trees_that_are_repaired(processes: Processes) -> None:
    """They were asked about, the process has ended, and none is started for what follows."""
    parent = Watch(lambda: (b"", b"", None, "real"))
    trees = InputTrees(None)  # type: ignore[arg-type]
    parent.follow(trees)
    parent.close()
    nodes = trees.plant(np.array([[0]]))
    trees.step(nodes[:0], nodes, np.array([0]))
    assert (processes.started, parent._waiting) == ([], [])
    assert parent.finish(b"", [], lambda: False) is None
