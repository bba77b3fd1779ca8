"""Proofs of regions: what the search hands on to the halves of a split, the checker finds there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnxcert
from onnxcert.checker import Rejected, container
from tests import hasty
from tests.checker.makers import dense, spec
from tests.proof.networks import CUBE, LAYERS, Files, hard, least, network
from tests.proof.skeptic import Skeptic

Arrays = dict[str, np.ndarray]

REAL = "VERIFIED UNSAT (real)"
NEURON = {"splitting": "neuron", "layer_steps": 4, "planes": "off", "narrowing": "off"}

WAVES = ("sin", "cos", "softmax", "attention")
"""Lines of a half are far off beyond it, or products are not split at all, so that splits of
neurons need many; those of inputs do not."""


def arrays(files: Files) -> Arrays:
    return container.unpack(files.proof.read_bytes())[1]


def proved(folder: Path, margin: float = 0.002) -> Files:
    """A question, and a proof of several regions."""
    files = hard(folder, margin)
    assert files.verify(**NEURON).word == "unsat"  # type: ignore[arg-type]
    return files


@pytest.mark.parametrize("batches", [1, 3])
def test_regions_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    hasty.install(monkeypatch, batches)
    files = proved(tmp_path)
    kinds = arrays(files)["group"][:, 0].tolist()
    assert kinds[0] == 1
    assert kinds.count(2) == 2 * int((arrays(files)["op"] == 2).sum()) >= 4
    assert files.check() == REAL
    audited = onnxcert.check(files.proof, files.model, files.spec, audit=10**6, jobs=2)
    assert audited.leaves == int((arrays(files)["op"] == 0).sum())
    assert 0.8 * audited.leaves < audited.audited <= audited.leaves  # nothing is in some regions


@pytest.mark.parametrize(
    ("layer", "semantics"),
    [
        (layer, semantics)
        for layer in LAYERS
        if layer not in WAVES
        for semantics in ("real", "ieee32-any-order")
        if (layer, semantics) != ("sign", "ieee32-any-order")  # not proved by any search
    ],
)
def test_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, semantics: str
) -> None:
    """Two cases that close at different depths; smooth curves, maxima, residuals, jumps."""
    hasty.install(monkeypatch, 3)
    model = network(layer)
    rows = [1.0, -0.5], [0.25, 1.0]
    cases = []
    for row in rows:
        low, spread = least(model, row)
        cases.append((row, low - (0.3 if layer in ("sigmoid", "tanh") else 0.1) * spread))
    files = Files.write(tmp_path, model, spec(*[(*CUBE, [case]) for case in cases], outputs=2))
    result = files.verify(semantics=semantics, timeout=60, **NEURON)  # type: ignore[arg-type]
    assert result.word == "unsat"
    assert files.check() == f"VERIFIED UNSAT ({semantics})"


def test_witnesses_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasty.install(monkeypatch)
    files = hard(tmp_path, -0.002)
    assert files.verify(attack_restarts=0, **NEURON).word == "sat"  # type: ignore[arg-type]


@pytest.mark.parametrize("rounds", [1, 3])
def test_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    hasty.install(monkeypatch)
    skeptic = Skeptic(rounds)
    skeptic.install(monkeypatch)
    files = proved(tmp_path, 0.02)
    assert skeptic.seen == rounds + 1
    assert 2 in arrays(files)["group"][:, 0]
    monkeypatch.undo()
    assert files.check() == REAL


def _without(found: Arrays, last: int) -> Arrays:
    return found | {"group": found["group"][:-last]}


def _missing_half(found: Arrays) -> Arrays:
    return _without(found, 1)


def _kind(found: Arrays, old: int, new: int) -> Arrays:
    group = found["group"].copy()
    group[np.flatnonzero(group[:, 0] == old)[0], 0] = new
    return found | {"group": group}


def _half_as_whole(found: Arrays) -> Arrays:
    return _kind(found, 2, 1)


def _whole_as_half(found: Arrays) -> Arrays:
    return _kind(found, 1, 2)


def _half_as_boxes(found: Arrays) -> Arrays:
    return _kind(found, 2, 0)


def _one_more_half(found: Arrays) -> Arrays:
    return found | {"group": np.concatenate([found["group"], found["group"][-1:]])}


def _handed_on_below_a_root(found: Arrays) -> Arrays:
    op = found["op"].copy()
    op[np.flatnonzero(op == 1)[0] + 1] = 2
    return found | {"op": op}


def _leaf_handed_on(found: Arrays) -> Arrays:
    """The last half hands its case on to halves that are not there."""
    op = found["op"].copy()
    op[-int(found["group"][-1, 2])] = 2
    return found | {"op": op}


def _handed_on_closed(found: Arrays) -> Arrays:
    op = found["op"].copy()
    op[np.flatnonzero(op == 2)[0]] = 0
    return found | {"op": op}


def _point(value: float) -> Callable[[Arrays], Arrays]:
    def change(found: Arrays) -> Arrays:
        return found | {"point": np.append(value, found["point"][1:])}

    return change


def _neuron(found: Arrays) -> Arrays:
    return found | {"arg": np.append(2**31, found["arg"][1:]).astype(found["arg"].dtype)}


def _layer(found: Arrays) -> Arrays:
    return found | {"layer": np.append(60000, found["layer"][1:]).astype(found["layer"].dtype)}


def _cases_of_a_half(found: Arrays) -> Arrays:
    group = found["group"].copy()
    group[np.flatnonzero(group[:, 0] == 2)[0], 1] = 1
    return found | {"group": group, "case": np.append(found["case"], 0).astype(np.uint32)}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (_missing_half, "R10"),
        (_half_as_whole, "R0"),
        (_whole_as_half, "R0"),
        (_half_as_boxes, "R0"),
        (_one_more_half, "R10"),
        (_handed_on_below_a_root, "R10"),
        (_leaf_handed_on, ""),
        (_handed_on_closed, ""),
        (_point(float("nan")), "R10"),
        (_point(float("inf")), "R10"),
        (_neuron, "R10"),
        (_layer, "R10"),
        (_cases_of_a_half, "R0"),
    ],
)
def test_what_is_not_a_proof(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Arrays], Arrays],
    rule: str,
) -> None:
    hasty.install(monkeypatch, 3)
    files = proved(tmp_path)
    header, found = container.unpack(files.proof.read_bytes())
    files.proof.write_bytes(container.pack(header, change(found)))
    with pytest.raises(Rejected) as rejected:
        files.check()
    assert rejected.value.rule.startswith(rule)


@pytest.mark.parametrize("point", [-1e9, -3.0, -0.5, 0.5, 3.0, 1e9])
def test_a_split_elsewhere_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: float
) -> None:
    """Of a question with a witness: one half always has it, wherever the first split is."""
    hasty.install(monkeypatch)
    files = proved(tmp_path)
    header, found = container.unpack(files.proof.read_bytes())
    low, spread = least(dense([4, 6, 6, 1], 4), [1.0], [-1.0] * 4, [1.0] * 4)
    text = spec(([-1.0] * 4, [1.0] * 4, [([1.0], low + 0.001 * spread)]))
    files.spec.write_bytes(text)
    header["spec_sha256"] = hashlib.sha256(text).hexdigest()
    files.proof.write_bytes(container.pack(header, _point(point)(found)))
    with pytest.raises(Rejected, match="R8"):
        files.check()
