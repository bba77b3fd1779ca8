"""Proofs that assume the case: what is narrowed for one case proves nothing about another."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcert
from onnxcert.arrays import IntArray
from onnxcert.bounds.optimised import Optimised, Splits
from onnxcert.checker import Rejected, container
from onnxcert.proof.trace import NeuronTrees
from onnxcert.search import narrowing, solve
from onnxcert.search.narrowing import Narrower
from onnxcert.sets import Box
from tests import hasty
from tests.checker.makers import dense, spec
from tests.proof.networks import CUBE, LAYERS, Files, hard, least, network
from tests.proof.skeptic import Skeptic

Arrays = dict[str, np.ndarray]

REAL = "VERIFIED UNSAT (real)"
NEURON = {"splitting": "neuron", "layer_steps": 8, "planes": "off"}

UNSPLIT = ("tanh", "exp", "sin", "cos", "softmax", "attention", "sign", "floor")
"""Layers whose cases need more splits than a test has time for."""


def eager(monkeypatch: pytest.MonkeyPatch, *, at_root: bool = True) -> None:
    """Narrowing is never too dear, and tried wherever it may be."""
    hasty.install(monkeypatch, 1)
    monkeypatch.setattr(narrowing, "_REGIONS", float("inf"))
    monkeypatch.setattr(narrowing, "_GAIN", 0.02)
    monkeypatch.setattr(narrowing, "_LOWER", 1.0)
    monkeypatch.setattr("onnxcert.bounds.narrowing._LITTLE", 2.0)
    right = Narrower.run

    def run(
        self: Narrower,
        boxes: Mapping[str, Box],
        numbers: IntArray,
        found: Optimised,
        path: tuple[IntArray, Splits],
        *others: Any,
    ) -> Any:
        if len(path[0]) == 0 and not at_root:
            return np.zeros(len(numbers), dtype=bool)
        return right(self, boxes, numbers, found, path, *others)

    monkeypatch.setattr(Narrower, "run", run)


def arrays(files: Files) -> Arrays:
    return container.unpack(files.proof.read_bytes())[1]


def two_cases(folder: Path, layer: str = "relu", margin: float = 0.1) -> Files:
    """A question of two cases, one of two rows."""
    model = network(layer)
    cases = []
    for row in ([1.0, -0.5], [0.25, 1.0]):
        low, spread = least(model, row)
        cases.append((row, low - margin * spread))
    first, second = cases
    boxes = [(*CUBE, [first, ([1.0, 0.0], 1e3)]), (*CUBE, [second])]
    return Files.write(folder, model, spec(*boxes, outputs=2))


def proved(folder: Path, margin: float = 0.02) -> Files:
    """A question, and a proof by narrowing."""
    files = hard(folder, margin)
    assert files.verify(**NEURON).word == "unsat"  # type: ignore[arg-type]
    assert 4 in arrays(files)["group"][:, 0]
    return files


@pytest.mark.parametrize("at_root", [True, False])
def test_it_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_root: bool) -> None:
    eager(monkeypatch, at_root=at_root)
    files = proved(tmp_path, 0.02 if at_root else 0.002)
    kinds = arrays(files)["group"][:, 0]
    assert (2 in kinds) is not at_root
    assert files.check() == REAL
    audited = onnxcert.check(files.proof, files.model, files.spec, audit=10**6)
    assert audited.audited > 2 * audited.leaves  # rows of narrowed layers are audited, too


@pytest.mark.parametrize(
    ("layer", "semantics"),
    [
        (layer, semantics)
        for layer in LAYERS
        for semantics in ("real", "ieee32-any-order")
        # Executions have no curves for tables, and far too many splits.
        if layer not in UNSPLIT and (layer, semantics) != ("tables", "ieee32-any-order")
    ],
)
def test_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, semantics: str
) -> None:
    eager(monkeypatch)
    files = two_cases(tmp_path, layer, 0.3 if layer in ("sigmoid", "tanh") else 0.1)
    result = files.verify(semantics=semantics, timeout=60, **NEURON)  # type: ignore[arg-type]
    assert result.word == "unsat"
    assert files.check() == f"VERIFIED UNSAT ({semantics})"
    onnxcert.check(files.proof, files.model, files.spec, audit=10**6)


def test_large_networks_are_narrowed_before_all_neurons_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager(monkeypatch)
    hasty.skip_plain_bounds(monkeypatch)
    monkeypatch.setattr(solve, "_MANY_NEURONS", 0)
    monkeypatch.setattr(solve, "tighten", None)  # may not be called
    files = hard(tmp_path, 0.02)
    assert files.verify(**NEURON).word == "unsat"  # type: ignore[arg-type]
    assert 4 in arrays(files)["group"][:, 0]
    assert files.check() == REAL


def test_cases_that_do_not_fall_first_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two cases one is narrowed away over the first bounds, the other one is split."""
    eager(monkeypatch)
    hasty.skip_plain_bounds(monkeypatch)
    monkeypatch.setattr(solve, "_MANY_NEURONS", 0)
    right, calls = Narrower.run, itertools.count()

    def run(self: Narrower, boxes: Any, numbers: Any, found: Any, path: Any, *more: Any) -> Any:
        refuted = np.zeros(len(numbers), dtype=bool)
        if next(calls) == 0:
            best = np.array([found.lower.argmax()])
            alone = path[0], path[1].take(best)
            refuted[best] = right(self, boxes, numbers[best], found.take(best), alone, *more)
        return refuted

    monkeypatch.setattr(Narrower, "run", run)
    model, cases = network("relu"), []
    for row in ([1.0, -0.5], [0.25, 1.0]):
        low, spread = least(model, row)
        cases.append((*CUBE, [(row, low - 0.1 * spread)]))
    files = Files.write(tmp_path, model, spec(*cases, outputs=2))
    assert files.verify(**NEURON).word == "unsat"  # type: ignore[arg-type]
    assert next(calls) > 1
    groups = arrays(files)["group"]
    assert (groups[:, 0] == 4).sum() == 1
    assert files.check() == REAL


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    files = hard(tmp_path, 0.02)
    result = files.verify(**NEURON, narrowing="off")  # type: ignore[arg-type]
    assert result.word == "unsat"
    assert 4 not in arrays(files)["group"][:, 0]


def test_witnesses_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(monkeypatch)
    files = hard(tmp_path, -0.002)
    assert files.verify(attack_restarts=0, **NEURON).word == "sat"  # type: ignore[arg-type]


def test_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the checker did not accept is proved without it."""
    eager(monkeypatch)
    skeptic = Skeptic(1)
    skeptic.install(monkeypatch)
    files = hard(tmp_path, 0.02)
    assert files.verify(**NEURON).word == "unsat"  # type: ignore[arg-type]
    assert skeptic.seen == 2
    assert 4 not in arrays(files)["group"][:, 0]
    monkeypatch.undo()
    assert files.check() == REAL


def test_what_holds_for_one_case_is_not_kept_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine with a bug: with one case all others of its region count as refuted, too."""
    eager(monkeypatch)
    right = Narrower.run

    def run(
        self: Narrower,
        boxes: Mapping[str, Box],
        numbers: IntArray,
        found: Optimised,
        path: tuple[IntArray, Splits],
        trees: NeuronTrees,
        cost: float,
    ) -> Any:
        refuted = right(self, boxes, numbers, found, path, trees, cost)
        disjuncts = self.cases.problem.case_disjunct[numbers]
        if refuted.any():
            first = trees.narrowed[int(disjuncts[refuted][0])]
            trees.narrowed.update({int(d): first for d in disjuncts[~refuted]})
        return refuted | refuted.any()

    monkeypatch.setattr(Narrower, "run", run)
    monkeypatch.setattr("onnxcert.search.solve._REGION_COST", 1e9)
    model = network("relu")
    low, spread = least(model, [1.0, -0.5])
    other, wide = least(model, [0.25, 1.0])
    rows = ([1.0, -0.5], low - 0.02 * spread), ([0.25, 1.0], other + 0.01 * wide)
    files = Files.write(tmp_path, model, spec(*[(*CUBE, [row]) for row in rows], outputs=2))
    monkeypatch.setattr("onnxcert.search.candidates.Candidates.test", lambda *rest: None)
    result = files.verify(attack_restarts=0, timeout=5, **NEURON)  # type: ignore[arg-type]
    assert result.word != "unsat"


def _groups(found: Arrays, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    return found | {"group": change(found["group"].copy())}


def _kind(new: int) -> Callable[[Arrays], Arrays]:
    def change(group: np.ndarray) -> np.ndarray:
        group[np.flatnonzero(group[:, 0] == 4)[0], 0] = new
        return group

    return lambda found: _groups(found, change)


def _missing(found: Arrays) -> Arrays:
    return _groups(found, lambda group: group[:-1])


def _one_more(found: Arrays) -> Arrays:
    return _groups(found, lambda group: np.concatenate([group, group[-1:]]))


def _code(old: int, new: int) -> Callable[[Arrays], Arrays]:
    def change(found: Arrays) -> Arrays:
        op = found["op"].copy()
        op[np.flatnonzero(op == old)[0]] = new
        return found | {"op": op}

    return change


def _side(found: Arrays) -> Arrays:
    hint = found["hint"].copy()
    hint[-1, 1] = 2
    return found | {"hint": hint}


def _no_layer(found: Arrays) -> Arrays:
    hint = found["hint"].copy()
    hint[-1, 0] = 60000
    return found | {"hint": hint}


def _no_neuron(found: Arrays) -> Arrays:
    row = found["hint_row"].copy()
    row[-1] = 2**31
    return found | {"hint_row": row}


def _negative(found: Arrays) -> Arrays:
    return found | {"weight": found["weight"] | np.uint16(0x8000)}


def _nothing(found: Arrays) -> Arrays:
    return found | {"weight": 0 * found["weight"]}


def _hints(found: Arrays) -> Arrays:
    def change(group: np.ndarray) -> np.ndarray:
        group[-1, 5] = 0
        return group

    return _groups(found, change)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_missing, "R10"),
        (_one_more, "R10"),
        (_kind(2), "R10"),
        (_kind(1), "R0"),
        (_kind(0), "R0"),
        (_kind(3), "R0"),
        (_kind(5), "R0"),
        (_code(3, 2), ""),
        (_code(3, 0), ""),
        (_code(3, 4), "R10"),
        (_side, "R20"),
        (_no_layer, "R10"),
        (_no_neuron, "R10"),
        (_negative, "R8"),
        (_nothing, "R8"),
        (_hints, ""),
    ],
)
def test_what_is_not_a_proof(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Arrays], Arrays],
    rule: str,
) -> None:
    eager(monkeypatch)
    files = proved(tmp_path)
    header, found = container.unpack(files.proof.read_bytes())
    files.proof.write_bytes(container.pack(header, change(found)))
    with pytest.raises(Rejected) as rejected:
        files.check()
    assert rejected.value.rule.startswith(rule)


@pytest.mark.parametrize("seed", range(12))
def test_no_hint_hides_a_witness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of a question with a witness, whatever the weights, multipliers and slopes are."""
    eager(monkeypatch, at_root=seed % 2 == 0)
    files = proved(tmp_path, 0.02 if seed % 2 == 0 else 0.002)
    header, found = container.unpack(files.proof.read_bytes())
    low, spread = least(dense([4, 6, 6, 1], 4), [1.0], [-1.0] * 4, [1.0] * 4)
    text = spec(([-1.0] * 4, [1.0] * 4, [([1.0], low + 0.001 * spread)]))
    files.spec.write_bytes(text)
    header["spec_sha256"] = hashlib.sha256(text).hexdigest()
    rng = np.random.default_rng(seed)
    for name in ("weight", "multiplier"):
        scale = rng.choice([0, 0x80, 0x100, 0x400], size=found[name].shape)
        found[name] = np.minimum(found[name] + scale, 0x7F00).astype(np.uint16)
    if seed % 3:
        shape = found["hint_slope"].shape
        found["hint_slope"] = rng.integers(0, 256, size=shape).astype(np.uint8)
    files.proof.write_bytes(container.pack(header, found))
    with pytest.raises(Rejected, match="R8"):
        files.check()
