"""The corpora: what was accepted stays accepted, what was refused stays refused, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxcert.checker import Rejected, check
from tests.checker.make_corpus import HERE, KINDS, REASONS, Entry, entries
from tests.checker.makers import processor_seconds

LARGEST = 200_000
"""Bytes of all corpora together."""

TABLES: dict[str, dict[str, dict[str, str]]] = {
    kind: json.loads((HERE / kind / REASONS).read_text()) for kind in KINDS
}


def files(kind: str, name: str) -> tuple[Path, Path, Path]:
    """Certificate, model and specification."""
    about = HERE / "instances" / TABLES[kind][name]["instance"]
    return HERE / kind / name, about.with_suffix(".onnx"), about.with_suffix(".vnnlib")


def said(kind: str, name: str, audit: int = 0) -> str:
    """What the checker says: claims, or the broken rule."""
    try:
        with processor_seconds(20):
            return ", ".join(check(*files(kind, name), audit=audit).claims)
    except Rejected as error:
        return error.rule


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in TABLES[kind]]
)
def test_verdict(kind: str, name: str) -> None:
    assert said(kind, name) == TABLES[kind][name]["says"]


@pytest.mark.parametrize("name", list(TABLES["accepted"]))
def test_audit(name: str) -> None:
    assert said("accepted", name, audit=10) == TABLES["accepted"][name]["says"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_has_a_reason(kind: str) -> None:
    assert {path.name for path in (HERE / kind).iterdir()} == {*TABLES[kind], REASONS}
    for row in TABLES[kind].values():
        assert set(row) == {"instance", "says", "reason"}
        assert row["reason"]


def test_what_kinds_are() -> None:
    rules = {kind: {row["says"] for row in TABLES[kind].values()} for kind in KINDS}
    assert rules["malformed"] == {"container"}
    assert "container" not in rules["rejected"]
    assert {"R0", "R8", "R10", "R13", "R14"} <= rules["rejected"]
    assert {"real", "ieee32-any-order"} <= rules["accepted"]


def test_all_instances_are_used() -> None:
    used = {path for kind in KINDS for name in TABLES[kind] for path in files(kind, name)[1:]}
    assert set((HERE / "instances").iterdir()) == used


def test_corpora_are_small() -> None:
    folders = [HERE / kind for kind in (*KINDS, "instances")]
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < LARGEST


@pytest.fixture(scope="module")
def built() -> list[Entry]:
    """What the script would write today."""
    return list(entries())


def test_the_script_makes_them(built: list[Entry]) -> None:
    """The same files for the same reasons; the engine may have found other proofs since."""
    tables: dict[str, dict[str, dict[str, str]]] = {kind: {} for kind in KINDS}
    for entry in built:
        row = {"instance": entry.about, "says": entry.says, "reason": entry.reason}
        tables[entry.kind][f"{entry.name}.onnxcert"] = row
    assert tables == TABLES
    for entry in built:
        about = HERE / "instances" / entry.about
        assert about.with_suffix(".vnnlib").read_bytes() == entry.instance.spec, entry.name


def test_new_certificates_fare_like_the_old_ones(built: list[Entry]) -> None:
    for entry in built:
        outcome = entry.instance.outcome(entry.certificate)
        assert outcome == ("accepted" if entry.kind == "accepted" else entry.says), entry.name
