"""Trees over neurons that are checked while they grow, and what is remembered of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnxcert import Reason
from onnxcert.checker import Rejected, container
from onnxcert.checker.audit import Auditor
from onnxcert.checker.balls import Balls
from onnxcert.checker.bounds import Bounder, Columns, Hint, Relaxation
from onnxcert.checker.certificate import Session
from onnxcert.checker.needed import Unread
from onnxcert.checker.network import Curve
from onnxcert.checker.proof import Narrowing, Paths, Prover, Rows
from onnxcert.checker.tilts import Tilt, find_reads
from onnxcert.checker.trees import Base, Group, Refusal, Region
from onnxcert.processes import Child, IdleProcessors
from onnxcert.proof import leaves, memory, watch
from onnxcert.proof.memory import Memory, digest
from onnxcert.proof.trace import NeuronTrees
from onnxcert.proof.watch import Reply, Watch
from tests import hasty
from tests.checker.makers import Arrays, Header, dense, edited
from tests.proof.inside import Inside, Processes
from tests.proof.networks import Files, halves, hard
from tests.proof.test_narrowing import eager
from tests.search import test_crew as crew

BOX = np.full((1, 4), -1.0), np.full((1, 4), 1.0)
SEMANTICS = ("real", "ieee32-any-order")
Outcome = tuple[str, list[tuple[int, int, list[int]]]]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    made = Inside()
    made.install(monkeypatch)
    hasty.skip_plain_bounds(monkeypatch)
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
    files = crew.question(folder, 0.1)
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


def test_leaves_that_are_not_refuted_meanwhile_are_looked_at_again(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker doubts every other leaf while the search runs, and none in the end."""
    paths, doubted = Prover.paths, [0]

    def doubtful(prover: Prover, *arguments: Any) -> np.ndarray:
        lower = paths(prover, *arguments)
        if not inside.data:
            doubted[0] += len(lower[::2])
            lower[::2] = -1.0
        return lower

    monkeypatch.setattr(Prover, "paths", doubtful)
    files = plain(tmp_path, monkeypatch, "real")
    assert outcome(inside.answer) == ("VERIFIED UNSAT (real)", [])
    assert inside.leaves == doubted[0] > 1
    assert files.check() == "VERIFIED UNSAT (real)"


def test_leaves_that_nobody_needs_do_no_harm(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is no leaf of anything, one that is twice there, and one that is wrong."""
    send = Watch._send

    def noisy(parent: Watch, kind: str, make: Callable[[], Any]) -> None:
        send(parent, kind, make)
        if kind != "closed":
            return
        uid, leaves = make()
        last = replace(leaves, nodes=leaves.nodes + 10**6)
        wrong = replace(leaves, multipliers=np.zeros_like(leaves.multipliers)[:, :1])
        heavy = replace(leaves, multipliers=0.0 * leaves.multipliers + 1e3)
        for noise in (leaves, last, wrong, heavy):
            send(parent, kind, lambda noise=noise: (uid, noise))

    monkeypatch.setattr(Watch, "_send", noisy)
    files = plain(tmp_path, monkeypatch, "real")
    assert outcome(inside.answer) == ("VERIFIED UNSAT (real)", [])
    assert inside.leaves == 0
    assert files.check() == "VERIFIED UNSAT (real)"


def test_leaves_far_down_in_large_trees_are_refuted_in_the_end(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaves, "_MOST_NODES", 4)
    files = plain(tmp_path, monkeypatch, "real")
    assert outcome(inside.answer) == ("VERIFIED UNSAT (real)", [])
    assert 0 < inside.leaves < int((container.unpack(inside.data)[1]["op"] == 0).sum())
    assert files.check() == "VERIFIED UNSAT (real)"


@pytest.mark.parametrize("make", [plain, regions, narrowed])
def test_the_whole_network_is_bounded_where_it_is_in_the_end(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    """Certificates name neurons here that the specification does not need."""
    bounder, columns, parts = Session.bounder, Group._columns, list[Bounder]()

    def noted(session: Session, *, whole: bool = False, **options: Any) -> Bounder:
        made = bounder(session, whole=whole, **options)
        parts.extend([] if whole else [made])
        return made

    def unread(group: Group, count: int) -> Columns:
        if any(part is group.bounder for part in parts):
            raise Unread
        return columns(group, count)

    monkeypatch.setattr(Session, "bounder", noted)
    monkeypatch.setattr(Group, "_columns", unread)
    make(tmp_path, monkeypatch, "real")
    assert outcome(inside.answer) == ("VERIFIED UNSAT (real)", [])
    assert (inside.made, inside.leaves) == (0, 0)
    assert inside.child.memory.whole
    # What was refuted with all of it says nothing about a part of it.
    monkeypatch.setattr(Group, "_columns", columns)
    assert outcome(inside.again(inside.data)[1]) == ("VERIFIED UNSAT (real)", [])
    assert inside.made > 0
    assert inside.leaves == int((container.unpack(inside.data)[1]["op"] == 0).sum())


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
        places = np.unique([0, values.size // 2, values.size - 1]).tolist()
        values_of = {"op": (0, 1, 2, 3), "slope": (0, 255)}.get(name, (0, 2))
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


def test_a_certificate_of_other_semantics_is_checked_as_a_whole(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds over the reals may not hold for executions."""
    files = plain(tmp_path, monkeypatch, "real")

    def change(header: Header, arrays: Arrays) -> None:
        header["semantics"] = "ieee32-any-order"

    data = edited(inside.data, change)
    expected = fresh(files, data)
    assert outcome(inside.again(data)[1]) == expected
    assert inside.made > 0
    assert inside.leaves == int((container.unpack(data)[1]["op"] == 0).sum())


def test_a_leaf_of_another_box_is_another_leaf(
    tmp_path: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is stored of two groups changes places but their cases."""
    files = plain(tmp_path, monkeypatch, "real")

    def change(header: Header, arrays: Arrays) -> None:
        first, second = arrays["group"].tolist()
        arrays["group"][:, 2:] = [second[2:], first[2:]]
        splits = [int((op == 1).sum()) for op in np.split(arrays["op"], [first[2]])]
        counts = {"op": first[2], "column": first[4]}
        counts |= dict.fromkeys(("arg", "layer", "point"), splits[0])
        for name, count in counts.items():
            arrays[name] = np.concatenate([arrays[name][count:], arrays[name][:count]])

    data = edited(inside.data, change)
    assert outcome(inside.again(data)[1]) == fresh(files, data)


def _base_of(session: Session, **changes: Any) -> bytes:
    """The mark of bounds that are made of some things, of which some are changed."""
    bounder = session.bounder(executed=False)
    cases = list(session.query.cases())
    prover = Prover(bounder, Rows.of(cases, 4, 2))
    group = Group(
        *(bounder, [], watch.Arrays({}), Auditor(bounder, 0, 0), 1, [], lambda: False),
        Memory(False),
    )
    sides = (
        np.full((1, bounder.network.size + 1), -1.0),
        np.full((1, bounder.network.size + 1), 1.0),
    )
    path = np.array([9, 9])
    leaves = leaf(scalar=path[None], side=np.ones((1, 2)), point=np.zeros((1, 2)))
    block = next(k for k, b in enumerate(bounder.blocks) if isinstance(b, Curve))
    things: dict[str, Any] = {
        "case": cases[0],
        "narrowed": True,
        "known": sides,
        "scalar": path,
        "side": np.ones(2),
        "point": np.zeros(2),
        "low": np.full((1, 4), -1.0),
        "high": np.full((1, 4), 1.0),
        "above": (np.zeros((1, 2)), np.ones((1, 2))),
        "balls": None,
        "columns": Columns({block: (np.array([0]), np.array([0]))}, {block: 8}),
        "hint": Hint(np.array([9]), 1.0, np.array([[7]], np.uint8)),
        "narrowing": Narrowing(block, np.array([9]), 1.0, leaves),
    } | changes
    parts = ("known", "scalar", "side", "point", "narrowed")
    region = Region([things["case"]], None, *(things[part] for part in parts))
    roots = replace(
        prover.roots(cases),
        low=things["low"],
        high=things["high"],
        known=things["above"],
        balls=things["balls"],
    )
    hints = {block: [things["hint"]]}, [things["narrowing"]]
    return group._base(prover, region, roots, things["columns"], hints).mark


def test_bounds_are_known_by_all_that_they_are_made_of(tmp_path: Path) -> None:
    files = crew.question(tmp_path)
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    size = session.bounder(executed=False).network.size + 1
    block, cases = 2, list(session.query.cases())
    zeros, ones = np.zeros((1, size)), np.ones((1, size))
    slopes = np.array([[8]], np.uint8)
    changes: list[dict[str, Any]] = [
        {},
        {"case": cases[1]},
        {"known": None},
        {"known": (zeros, ones)},
        {"known": (-ones, 2 * ones)},
        {"scalar": np.array([9, 10])},
        {"side": np.array([1.0, -1.0])},
        {"point": np.array([0.0, 1.0])},
        {"low": np.full((1, 4), -0.5)},
        {"high": np.full((1, 4), 0.5)},
        {"above": (np.zeros((1, 2)), np.full((1, 2), 2.0))},
        {"balls": Balls(np.zeros((1, 4)), np.ones((1, 4)))},
        {"columns": Columns({block: (np.array([1]), np.array([0]))}, {block: 8})},
        {"hint": Hint(np.array([10]), 1.0, np.array([[7]], np.uint8))},
        {"hint": Hint(np.array([9]), -1.0, np.array([[7]], np.uint8))},
        {"hint": Hint(np.array([9]), 1.0, slopes)},
        {"narrowing": Narrowing(block, np.array([10]), 1.0, leaf())},
        {"narrowing": Narrowing(block, np.array([9]), -1.0, leaf())},
        *({"narrowing": Narrowing(block, np.array([9]), 1.0, leaf(**c))} for c in OTHER_LEAVES),
    ]
    marks = [_base_of(session, **change) for change in changes]
    assert len(set(marks)) == len(marks)
    assert _base_of(session) == marks[0]
    # Other cases do not matter where their rows are not used.
    assert _base_of(session, narrowed=False) == _base_of(session, narrowed=False, case=cases[1])


# --- the memory -----------------------------------------------------------------------------------


def leaf(**changes: Any) -> Paths:
    """A leaf of three splits."""
    parts: dict[str, Any] = {
        "case": np.array([0]),
        "scalar": np.array([[4, 5, 6]]),
        "side": np.array([[1.0, -1.0, 1.0]]),
        "point": np.array([[0.0, 0.5, 0.0]]),
        "multiplier": np.array([[0.25, 0.0, 1.0]]),
        "slopes": np.array([[3, 200]], np.uint8),
        "weights": np.array([[1.0, 0.0]]),
        "tilted": np.array([False]),
    }
    return Paths(**parts | changes)


OTHER_LEAVES = [
    {"case": np.array([1])},
    {"scalar": np.array([[4, 5, 7]])},
    {"side": np.array([[1.0, -1.0, -1.0]])},
    {"point": np.array([[0.0, 0.25, 0.0]])},
    {"multiplier": np.array([[0.25, 0.0, 0.5]])},
    {"slopes": np.array([[3, 201]], np.uint8)},
    {"weights": np.array([[1.0, 1.0]])},
    {"tilted": np.array([True])},
]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """Bounds over the box of two cases."""
    files = crew.question(tmp_path)
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    cases = list(session.query.cases())
    bounder = session.bounder(executed=False)
    prover = Prover(bounder, Rows.of(cases, 4, 2))
    roots = prover.roots(cases)
    return Base(
        prover,
        Region(cases),
        Columns({}, {}),
        lambda: prover.bounds(roots, backward=True),
        b"mark",
    )


@dataclass
class Bound:
    """Says what it was asked to bound, and that it is refuted or not."""

    lower: float = 1.0
    asked: int = 0

    def __call__(self, leaves: Sequence[Paths]) -> np.ndarray:
        self.asked += len(leaves)
        return np.full(len(leaves), self.lower)


@pytest.mark.parametrize("changed", OTHER_LEAVES)
def test_a_leaf_is_known_by_all_that_it_is_made_of(base: Base, changed: dict[str, Any]) -> None:
    known, bound = Memory(False), Bound()
    for _ in range(2):
        assert (known.lower(base, [leaf()], bound) > 0).all()
    assert bound.asked == 1
    known.lower(base, [leaf(**changed)], bound)
    assert bound.asked == 2
    assert known.leaves == 2


def test_shorter_paths_with_more_weights_are_other_leaves(base: Base) -> None:
    """Even if their bytes follow each other in the same way."""
    known, bound = Memory(False), Bound()
    none = np.zeros((1, 0))
    known.lower(
        base,
        [
            leaf(
                scalar=np.array([[0]]),
                **dict.fromkeys(("side", "point", "multiplier"), np.zeros((1, 1))),
                weights=np.zeros((1, 1)),
            )
        ],
        bound,
    )
    longer = np.zeros((1, 5))
    known.lower(
        base,
        [
            leaf(
                scalar=none.astype(np.int64),
                **dict.fromkeys(("side", "point", "multiplier"), none),
                weights=longer,
            )
        ],
        bound,
    )
    assert bound.asked == 2


def test_leaves_of_other_bounds_cases_or_planes_are_other_leaves(base: Base) -> None:
    known, bound = Memory(False), Bound()
    known.lower(base, [leaf()], bound)
    known.lower(replace(base, mark=b"other"), [leaf()], bound)
    assert bound.asked == 2
    swapped = replace(base, region=Region(base.region.cases[::-1]))
    known.lower(swapped, [leaf()], bound)
    assert bound.asked == 3
    known.lower(swapped, [leaf(case=np.array([1]))], bound)  # the first, by another number
    assert bound.asked == 3
    block = next(k for k, b in enumerate(base.prover.bounder.blocks) if isinstance(b, Curve))
    reads = find_reads(base.prover.bounder, base.root, block, np.array([0]))
    codes = np.full(int(reads.used.sum()), 100, np.uint8)
    tilt = Tilt.build(base.prover.bounder, base.root, block, np.array([0]), codes)
    for tilts in ({0: {block: tilt}}, {0: {block: replace(tilt, factor=0.5 * tilt.factor)}}):
        known.lower(replace(base, tilts=tilts), [leaf()], bound)
    assert bound.asked == 5


@pytest.mark.parametrize("lower", [0.0, -1.0, np.nan, -np.inf])
def test_leaves_that_are_not_refuted_are_not_remembered(base: Base, lower: float) -> None:
    known, bound = Memory(False), Bound(lower)
    for count in (1, 2):
        assert not (known.lower(base, [leaf()], bound) > 0).any()
        assert (bound.asked, known.leaves) == (count, 0)
    assert (known.lower(base, [leaf(), leaf()], Bound()) > 0).all()
    assert known.leaves == 1


def test_bounds_are_made_once_and_cannot_be_changed(base: Base) -> None:
    known, made = Memory(False), list[int]()

    def make() -> Relaxation:
        made.append(1)
        return base.prover.bounder.bound(*BOX)

    first = known.bounds(b"a", make)
    assert known.bounds(b"a", make) is first
    assert known.bounds(b"b", make) is not first
    assert len(made) == 2
    with pytest.raises(ValueError, match="read-only"):
        first.lower[0, 0] = 0.0


def test_memory_is_bounded(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds that were not asked for longest are made again, and no more leaves are kept."""
    made = list[int]()

    def make() -> Relaxation:
        made.append(1)
        return base.prover.bounder.bound(*BOX)

    size = sum(array.nbytes for array in memory._arrays(make()))
    monkeypatch.setattr(memory, "_MOST_BYTES", int(2.5 * size))
    monkeypatch.setattr(memory, "_MOST_LEAVES", 1)
    few = Memory(False)
    del made[:]
    for name in (b"a", b"b", b"a", b"c", b"a"):
        few.bounds(name, make)
    assert len(made) == 3
    few.bounds(b"b", make)
    assert len(made) == 4
    bound = Bound()
    for _ in range(2):
        for point in (0.0, 0.125):
            few.lower(base, [leaf(point=np.full((1, 3), point))], bound)
    assert (few.leaves, bound.asked) == (1, 3)


THINGS: list[Any] = [
    *(None, True, 1, 1.0, "1", "", (), [1], [[1]], [1, 1], ["11"], ["1", "1"]),
    *({}, {1: 1}, {1: None}),
    *(np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.int64), np.array([0.0, -0.0]), np.zeros(0)),
    *(Region(()), Region((), narrowed=True)),
    *((np.zeros(1), np.zeros(2)), (np.zeros(2), np.zeros(1))),
]


def test_different_things_have_different_digests() -> None:
    assert len({digest(thing) for thing in THINGS}) == len(THINGS)
    assert [digest(thing) for thing in THINGS] == [digest(thing) for thing in THINGS]
    with pytest.raises(TypeError):
        digest(object())


# --- the process itself ---------------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    made = Processes()
    made.install(monkeypatch)
    hasty.skip_plain_bounds(monkeypatch)
    return made


@pytest.mark.parametrize("make", [plain, regions, narrowed])
def test_a_process_answers(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    files = make(tmp_path, monkeypatch, "real")
    (answer,) = processes.answers
    assert answer is not None
    assert outcome(answer) == ("VERIFIED UNSAT (real)", [])
    assert files.check() == "VERIFIED UNSAT (real)"
    processes.assert_gone()


@pytest.mark.parametrize("kind", ["bounds", "planted", "halved", "handed"])
def test_a_process_that_dies_is_not_missed(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    send = Watch._send

    def fatal(parent: Watch, told: str, make: Callable[[], Any]) -> None:
        send(parent, told, make)
        if told == kind:
            processes.started[-1].kill()
            processes.started[-1].wait()

    monkeypatch.setattr(Watch, "_send", fatal)
    files = regions(tmp_path, monkeypatch, "real")
    assert processes.answers == [None]
    assert files.check() == "VERIFIED UNSAT (real)"
    processes.assert_gone()


def test_a_process_that_is_not_ready_is_not_waited_for(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_GRACE", 0.0)
    closed = threading.Event()
    monkeypatch.setattr(Child, "_send", lambda child: closed.wait())
    parent = Watch(lambda: (b"", b"", None, "real"))
    parent.tell("problem", None)
    assert parent._child is not None
    monkeypatch.setattr(
        parent._child, "close", lambda close=parent._child.close: (closed.set(), close())
    )
    assert parent.finish(b"", [], lambda: False) is None
    assert closed.is_set()
    processes.started[-1].stdin.close()  # type: ignore[union-attr]
    processes.assert_gone()


def test_messages_that_wait_are_bounded(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads them here: leaves are left out, what is small and has to follow is not."""
    monkeypatch.setattr(watch, "_MOST_WAITING", 10**5)
    monkeypatch.setattr(Child, "_send", lambda child: child._process.stdin.close())
    parent = Watch(lambda: (b"", b"", None, "real"))
    sizes = []
    for _ in range(100):
        parent.tell("closed", 1, np.zeros(10**3))
        parent.tell("split", 1)
        assert parent._child is not None
        sizes.append(parent._child.waiting)
    assert 10**5 < sizes[-1] < 10**5 + 2 * 8 * 10**3
    assert len(set(sizes)) == len(sizes)
    parent.close()
    processes.assert_gone()


def test_messages_to_spare_are_not_sent_in_a_hurry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = crew.write_echo(tmp_path, monkeypatch)
    send, blocked = Child._send, threading.Event()

    def later(child: Child) -> None:
        blocked.wait()
        send(child)

    monkeypatch.setattr(Child, "_send", later)
    child = Child(module)
    for number in range(4):
        child.tell(number, spare=number % 2 == 0)
    assert child.waiting > 0
    child.hurry()
    blocked.set()
    assert [child.answer(30.0) for _ in range(2)] == [1, 3]
    child.close()
    assert child.waiting == 0


def test_no_process_for_splits_of_neurons_that_are_over_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Watch] = []
    monkeypatch.setattr(watch, "_PATIENCE", -1.0)
    monkeypatch.setattr(IdleProcessors, "count", lambda idle: 1.0)
    monkeypatch.setattr(Watch, "_start", lambda *parents: started.extend(parents))
    monkeypatch.setattr(watch, "_LATER", 1e6)
    graph = SimpleNamespace(numbering={})
    trees = NeuronTrees(None, graph, {}, (graph, []))  # type: ignore[arg-type]
    parent = Watch(lambda: (b"", b"", None, "real"))
    parent.follow_neurons(trees, np.zeros(1, np.int64))
    assert not parent._settled()
    assert started == []
    parent.close()
    monkeypatch.setattr(watch, "_LATER", 0.0)
    parent = Watch(lambda: (b"", b"", None, "real"))
    parent.follow_neurons(trees, np.zeros(1, np.int64))
    assert started[:1] == [parent]
    parent.close()
