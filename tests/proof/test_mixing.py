"""Proofs that mix splits of inputs and of neurons: what a box hands on is checked over that box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcert
from onnxcert import Reason, Unknown
from onnxcert.bounds.optimised import optimise
from onnxcert.checker import Rejected, container
from onnxcert.checker.certificate import Session
from onnxcert.checker.trees import InputGroup, Known, Refusal, Walked
from onnxcert.proof.trace import InputTrees, NeuronTrees
from onnxcert.search.branching import Bounded, Children
from onnxcert.search.candidates import Candidates
from onnxcert.search.frontier import Batch
from onnxcert.search.input_split import InputSplit
from onnxcert.search.mixing import BoxCloser
from tests.checker.makers import Arrays, Header, dense, edited
from tests.mixed import early
from tests.proof.networks import LAYERS, Files, halves, hard, network
from tests.proof.skeptic import Skeptic

REAL = "VERIFIED UNSAT (real)"

WAVES = ("sin", "cos", "softmax", "attention", "sign", "floor")
"""Layers of which splits of neurons close no box in time, if they have any neurons to split."""


@pytest.fixture(autouse=True)
def mixed() -> Iterator[None]:
    with early(batches=1):
        yield


def arrays(files: Files) -> Arrays:
    return container.unpack(files.proof.read_bytes())[1]


def two_cases(folder: Path) -> Files:
    """Questions that take splits of neurons in every box."""
    return halves(folder, dense([4, 6, 6, 1], 4), [1.0], 0.02)


def proved(folder: Path, make: Callable[[Path], Files] = two_cases) -> Files:
    files = make(folder)
    assert files.verify(splitting="input").word == "unsat"
    return files


@pytest.mark.parametrize("make", [hard, two_cases])
def test_it_is_checked(tmp_path: Path, make: Callable[[Path], Files]) -> None:
    files = proved(tmp_path, make)
    found = arrays(files)
    kinds = found["group"][:, 0].tolist()
    assert kinds == [0] + [5] * int((found["op"] == 2).sum())
    assert len(kinds) >= 3
    assert (found["op"][int(found["group"][0, 2]) :] == 1).any()
    assert files.check() == REAL
    audited = onnxcert.check(files.proof, files.model, files.spec, audit=10**6, jobs=2)
    assert audited.leaves == int((found["op"] == 0).sum())
    assert audited.audited > 0


@pytest.mark.parametrize(
    ("layer", "semantics"),
    [
        (layer, semantics)
        for layer in LAYERS
        for semantics in ("real", "ieee32-any-order")
        if layer not in WAVES
    ],
)
def test_layers(tmp_path: Path, layer: str, semantics: str) -> None:
    files = halves(tmp_path, network(layer), [1.0, -0.5], 0.1)
    with early(batches=0):
        result = files.verify(semantics=semantics, splitting="input", timeout=30)
    assert result.word == "unsat"
    assert 5 in arrays(files)["group"][:, 0]
    assert files.check() == f"VERIFIED UNSAT ({semantics})"
    onnxcert.check(files.proof, files.model, files.spec, audit=10**6)


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    files = hard(tmp_path)
    assert files.verify(splitting="input", mixing="off").word == "unsat"
    assert arrays(files)["group"][:, 0].tolist() == [0]


def test_witnesses_are_found(tmp_path: Path) -> None:
    files = hard(tmp_path, -0.002)
    assert files.verify(splitting="input", attack_restarts=0).word == "sat"


def test_what_is_not_closed_is_split_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempts fail, whatever has been tried in them."""
    close, calls = BoxCloser.close, [0]

    def moody(closer: BoxCloser, *arguments: Any) -> Any:
        calls[0] += 1
        found = close(closer, *arguments)
        return None if calls[0] < 3 else found

    monkeypatch.setattr(BoxCloser, "close", moody)
    files = proved(tmp_path)
    assert calls[0] >= 3
    assert 5 in arrays(files)["group"][:, 0]
    assert files.check() == REAL


def test_boxes_that_cannot_be_split_are_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neuron splits close none of the first boxes, and inputs of theirs cannot be split either."""
    close, split, failed = BoxCloser.close, InputSplit.split, set[int]()

    def moody(closer: BoxCloser, batch: Batch, *arguments: Any) -> Any:
        if len(failed) < 1:
            failed.add(int(batch["node"][0]))
            return None
        return close(closer, batch, *arguments)

    def stubborn(it: InputSplit, batch: Batch, bounded: Bounded) -> Children:
        if set(batch["node"].tolist()) == failed:
            return Children(None, np.zeros(0), 1)
        return split(it, batch, bounded)

    monkeypatch.setattr(BoxCloser, "close", moody)
    monkeypatch.setattr(InputSplit, "split", stubborn)
    result = two_cases(tmp_path).verify(splitting="input", certified=False)
    assert failed
    assert isinstance(result.verdict, Unknown)
    assert result.verdict.reason is Reason.INCOMPLETE


def test_boxes_that_are_refused_are_split_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeptic = Skeptic(1)
    skeptic.install(monkeypatch)
    files = two_cases(tmp_path)
    result = files.verify(splitting="input", watch="off")
    assert (result.word, skeptic.seen) == ("unsat", 2)
    assert files.check() == REAL


def test_a_refusal_is_about_the_whole_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = proved(tmp_path)
    Skeptic(1).install(monkeypatch)
    refused: list[Refusal] = []
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    session.check(files.proof.read_bytes(), refused=refused)
    (handed,) = np.nonzero(arrays(files)["op"][: arrays(files)["group"][0, 2]] == 2)
    assert {refusal.place for refusal in refused} == {0}
    assert len({refusal.node for refusal in refused}) == len(refused)
    assert {refusal.node for refusal in refused} & set(handed.tolist())
    for refusal in refused:
        assert len(refusal.cases) > 0
        assert (refusal.low < refusal.high).all()


def test_bounds_of_leaves_are_reported(tmp_path: Path) -> None:
    result = hard(tmp_path).verify(splitting="input")
    assert 0 < result.bounds[0] < 1.0


# --- what is refuted already ----------------------------------------------------------------------


def test_groups_of_boxes_that_are_refuted_already_are_passed_over(tmp_path: Path) -> None:
    files = proved(tmp_path)

    class Walks(Known):
        executed = False

        def walked(self, place: int, group: InputGroup) -> Walked:
            return Walked(dict.fromkeys(np.flatnonzero(group.handed).tolist()))

    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    data = files.proof.read_bytes()
    assert session.check(data, known=Walks()).leaves == session.check(data).leaves


# --- false claims ---------------------------------------------------------------------------------


def _as_leaf(header: Header, found: Arrays) -> None:
    """The last box is called refuted, and its group is gone."""
    nodes = int(found["group"][0, 2])
    found["op"][np.flatnonzero(found["op"][:nodes] == 2)[-1]] = 0


def _missing(header: Header, found: Arrays) -> None:
    """The last group is gone."""
    _, cases, nodes, _, columns, _ = found["group"][-1].tolist()
    found["group"] = found["group"][:-1]
    for name, count in (("case", cases), ("op", nodes), ("column", columns)):
        found[name] = found[name][: len(found[name]) - count]


def _one_more(header: Header, found: Arrays) -> None:
    """The last group is there twice."""
    _, cases, nodes, _, columns, _ = found["group"][-1].tolist()
    found["group"] = np.concatenate([found["group"], found["group"][-1:]])
    for name, count in (("case", cases), ("op", nodes), ("column", columns)):
        found[name] = np.concatenate([found[name], found[name][len(found[name]) - count :]])


def _other_kind(header: Header, found: Arrays) -> None:
    found["group"][-1, 0] = 1


def _alone(header: Header, found: Arrays) -> None:
    """The first group, which hands boxes on, is called one over neurons."""
    found["group"][0, 0] = 5


def _other_case(header: Header, found: Arrays) -> None:
    found["case"][-1] += 1


@pytest.mark.parametrize(
    "change", [_as_leaf, _missing, _one_more, _other_kind, _alone, _other_case]
)
def test_what_does_not_belong_together(
    tmp_path: Path, change: Callable[[Header, Arrays], None]
) -> None:
    files = proved(tmp_path)
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    with pytest.raises(Rejected):
        session.check(edited(files.proof.read_bytes(), change))


def test_every_open_case_needs_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are handed on with one case only; those of which two were open are refused."""
    hand = InputTrees.hand
    left_out: list[int] = []

    def forgetful(it: InputTrees, node: int, trees: NeuronTrees) -> None:
        roots = [(n, d) for nodes, cases in trees.roots for n, d in zip(nodes, cases, strict=True)]
        if len(roots) > 1 and not left_out:
            left_out.append(node)
            trees.roots = [(np.array([n]), np.array([d])) for n, d in roots[1:]]
        hand(it, node, trees)

    monkeypatch.setattr(InputTrees, "hand", forgetful)
    files = two_cases(tmp_path)
    result = files.verify(splitting="input", watch="off")
    assert left_out
    assert "repair" in result.seconds
    assert (result.word, files.check()) == ("unsat", REAL)


def test_a_search_that_hands_on_too_much_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a solution; the search takes every bound in a box to be positive."""

    def bold(*arguments: Any, **options: Any) -> Any:
        found = optimise(*arguments, **options)
        return replace(found, lower=np.ones_like(found.lower))

    monkeypatch.setattr("onnxcert.search.mixing.optimise", bold)
    monkeypatch.setattr(Candidates, "test", lambda *arguments: None)
    files = hard(tmp_path, -0.05)
    result = files.verify(splitting="input", attack_restarts=0, timeout=3)
    assert result.word != "unsat"
    assert not files.proof.exists()
