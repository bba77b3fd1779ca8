"""Trees over neurons that are checked while they grow, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcert import Reason
from onnxcert.checker import Rejected, container
from onnxcert.checker.certificate import Session
from onnxcert.checker.trees import Refusal
from onnxcert.proof.watch import Reply
from tests import hasty
from tests.checker.makers import Arrays, Header, dense, edited
from tests.proof.inside import Inside
from tests.proof.networks import Files, halves, hard
from tests.proof.test_narrowing import eager
from tests.search import test_crew as crew

SEMANTICS = ("real", "ieee32-any-order")
Outcome = tuple[str, list[tuple[int, int, list[int]]]]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    made = Inside()
    made.install(monkeypatch)
    monkeypatch.setattr(
        "onnxcert.search.solve.Solver._split_briefly", lambda *arguments: Reason.TIMEOUT
    )
    return made


# --- what is told and what is left to do in the end -----------------------------------------------


Make = Callable[[Path, pytest.MonkeyPatch, str], Files]
"""Proves something while a child watches."""


def plain(folder: Path, monkeypatch: pytest.MonkeyPatch, semantics: str) -> Files:
    """Trees of two cases on each of two boxes."""
    monkeypatch.setattr("onnxcert.search.solve.applicable", lambda graph, boxes: False)
    files = halves(folder, dense([4, 6, 6, 1], 4), [1.0], 0.02)
    return _proved(files, semantics=semantics, planes="off", layer_steps=2)


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, semantics: str) -> Files:
    """Trees that linear programs grow."""
    monkeypatch.setattr("onnxcert.search.solve.Solver._branch", lambda *a: Reason.TIMEOUT)
    return _proved(hard(folder), semantics=semantics, planes="off", narrowing="off")


def with_planes(folder: Path, monkeypatch: pytest.MonkeyPatch, semantics: str) -> Files:
    """A tree of which some leaves take planes, and one does not."""
    monkeypatch.setattr("onnxcert.search.solve.applicable", lambda graph, boxes: False)
    options = {"narrowing": "off", "layer_steps": 0}
    files = _proved(hard(folder, 0.03), semantics=semantics, **options)
    if semantics == "real":
        marks = container.unpack(files.proof.read_bytes())[1]["tilt_leaf"]
        assert 0 < marks.sum() < len(marks)
    return files


def regions(folder: Path, monkeypatch: pytest.MonkeyPatch, semantics: str) -> Files:
    """Halves of halves."""
    hasty.install(monkeypatch, 1)
    files = hard(folder, 0.004)
    options = {"layer_steps": 4, "planes": "off", "narrowing": "off"}
    return _proved(files, semantics=semantics, **options)


def narrowed(folder: Path, monkeypatch: pytest.MonkeyPatch, semantics: str) -> Files:
    """A case that narrows the bounds of the whole box."""
    eager(monkeypatch)
    return _proved(hard(folder, 0.02), semantics=semantics, layer_steps=8, planes="off")


def narrowed_regions(folder: Path, monkeypatch: pytest.MonkeyPatch, semantics: str) -> Files:
    """Cases that narrow the bounds of halves."""
    eager(monkeypatch, at_root=False)
    return _proved(hard(folder, 0.004), semantics=semantics, layer_steps=8, planes="off")


def grafted(folder: Path, monkeypatch: pytest.MonkeyPatch, semantics: str) -> Files:
    """Trees of which others have grown parts."""
    others = crew.Inside()
    others.install(monkeypatch)
    files = crew.question(folder, 0.05)
    assert crew.run(files, semantics=semantics, watch="auto").word == "unsat"
    assert others.told["Grown"] >= 2
    return files


def foreign_regions(folder: Path, monkeypatch: pytest.MonkeyPatch, semantics: str) -> Files:
    """Regions that others have settled."""
    others = crew.Inside()
    others.install(monkeypatch)
    hasty.install(monkeypatch, batches=0)
    files = crew.question(folder, 0.05)
    assert crew.run(files, semantics=semantics, watch="auto").word == "unsat"
    assert others.told["Settled"] >= 2
    return files


def _proved(files: Files, **options: Any) -> Files:
    assert files.verify(splitting="neuron", watch="auto", **options).word == "unsat"
    return files


MAKES = [
    (plain, 1, "closed"),
    (programs, 1, "closed"),
    (with_planes, 1, "closed"),
    (regions, 2, "handed"),
    (narrowed, 4, "handed"),
    (narrowed_regions, 4, "halved"),
    (grafted, 1, "closed"),
    (foreign_regions, 2, "handed"),
]


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(("make", "kind", "told"), MAKES)
def test_nothing_is_left_to_do_in_the_end(
    tmp_path: Path,
    inside: Inside,
    monkeypatch: pytest.MonkeyPatch,
    make: Make,
    kind: int,
    told: str,
    semantics: str,
) -> None:
    files = make(tmp_path, monkeypatch, semantics)
    found = container.unpack(inside.data)[1]
    assert kind in found["group"][:, 0]
    assert told in inside.told
    assert (inside.made, inside.leaves) == (0, 0)
    verified, refused = inside.answer
    assert (str(verified), refused) == (f"VERIFIED UNSAT ({semantics})", [])
    leaves = int((found["op"] == 0).sum())
    assert verified.leaves == leaves
    assert inside.child.memory.leaves >= leaves - int((found["group"][:, 0] == 0).sum())
    assert files.check() == f"VERIFIED UNSAT ({semantics})"


@pytest.mark.parametrize("make", [make for make, *_ in MAKES])
@pytest.mark.parametrize(
    "left_out", [("bounds",), ("planted",), ("split",), ("closed",), ("halved",), ("handed",)]
)
def test_what_was_not_told_is_refuted_in_the_end(
    tmp_path: Path,
    inside: Inside,
    monkeypatch: pytest.MonkeyPatch,
    make: Make,
    left_out: tuple[str, ...],
) -> None:
    inside.left_out = left_out
    files = make(tmp_path, monkeypatch, "real")
    verified, refused = inside.answer
    assert (str(verified), refused) == ("VERIFIED UNSAT (real)", [])
    assert files.check() == str(verified)


# --- other certificates ---------------------------------------------------------------------------


def outcome(reply: Reply | Rejected) -> Outcome:
    answer, refused = (reply, []) if isinstance(reply, Rejected) else reply
    return str(answer), [(r.place, r.node, r.cases.tolist()) for r in refused]


def fresh(files: Files, data: bytes) -> Outcome:
    """What a checker says that knows nothing."""
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    refused: list[Refusal] = []
    try:
        return outcome((session.check(data, refused=refused), refused))
    except Rejected as error:
        return outcome((error, refused))


def _with(name: str, place: int | slice, value: int) -> Callable[[Header, Arrays], None]:
    def change(header: Header, arrays: Arrays) -> None:
        arrays[name].reshape(-1)[place] = value & (256 ** min(2, arrays[name].itemsize) - 1)

    return change


def changes(found: Arrays) -> list[tuple[str, Callable[[Header, Arrays], None]]]:
    """Every array with some of its entries changed, one at a time or all, or reversed."""
    made: list[tuple[str, Callable[[Header, Arrays], None]]] = []
    for name, values in found.items():
        if values.size == 0:
            continue
        places = np.unique(np.linspace(0, values.size - 1, 4).astype(int)).tolist()
        values_of = {"point": (0, 1), "slope": (0, 255)}.get(name, (0, 1, 2, 0x4120))
        for place in [*places, slice(None)]:
            made += [(name, _with(name, place, value)) for value in values_of]
        made.append((name, _swapped(name)))
    return made


def _swapped(name: str) -> Callable[[Header, Arrays], None]:
    """Entries in the reverse order, as if leaves and splits belonged elsewhere."""

    def change(header: Header, arrays: Arrays) -> None:
        arrays[name] = np.ascontiguousarray(arrays[name][::-1])

    return change


@pytest.mark.parametrize("make", [make for make, *_ in MAKES])
def test_other_certificates_are_judged_as_by_a_checker_that_knows_nothing(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    files = make(tmp_path, monkeypatch, "real")
    found = container.unpack(inside.data)[1]
    refused = set()
    for name, change in changes(found):
        data = edited(inside.data, change)
        expected = fresh(files, data)
        found_out = outcome(inside.again(data)[1])
        assert found_out == expected, name
        if not expected[0].startswith("VERIFIED") or expected[1]:
            refused.add(name)
    # The changes are such that they matter: none may be taken for what was told.
    assert {"group", "op", "weight"} <= refused
    if "closed" in inside.told and (found["op"] == 1).any():
        assert {"arg", "point"} <= refused
    assert outcome(inside.again(inside.data)[1]) == fresh(files, inside.data)
