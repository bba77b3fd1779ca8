"""Sanity on every network of the competition set: nothing but the box decides these queries.

A tautology as output condition is satisfied by every point of the box, so the answer is ``sat``
with a witness that lies in the box as its decimals are written; a contradiction is ``unsat``.
Peers have failed both. A network that is not supported says so with exit code 3.
"""

from __future__ import annotations

import csv
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import onnxcert
from onnxcert import InputError, Sat, Settings
from onnxcert.frontend.lower import lower_query
from onnxcert.spec import Problem

pytestmark = pytest.mark.benchmarks

_FOLDER = os.environ.get("ONNXCERT_BENCHMARKS", "")
_BEYOND = 1e30
"""No output of any network of the set is that large on its box."""

_SMALL = 5_000
"""Values in a network that is bounded within a second or two."""


def _networks() -> list[tuple[str, str]]:
    """Every single-network model with the first specification that goes with it."""
    if not _FOLDER:
        return [("", "")]
    with (Path(_FOLDER) / "instances.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    first: dict[str, str] = {}
    for row in rows:
        if not row["onnx"].startswith("["):
            first.setdefault(row["onnx"], row["vnnlib"])
    return list(first.items())


NETWORKS = _networks()
every_network = pytest.mark.parametrize(
    ("model", "spec"), NETWORKS, ids=[Path(model).name for model, _ in NETWORKS]
)
Box = tuple[list[Fraction], list[Fraction]]


def first_box(spec: Path) -> Box:
    """The input box of a specification's first case, as its decimals are written."""
    problem: Problem = next(iter(lower_query(onnxcert.read_query(spec)).cases))
    ends = [problem.exact_bounds(0, i) for i in range(problem.lower.shape[1])]
    return [low for low, _ in ends], [high for _, high in ends]


def witness(result: onnxcert.Result) -> list[Fraction]:
    """The inputs found, exactly; decimals stand where no float lies in the interval."""
    assert isinstance(result.verdict, Sat), result.verdict
    found = result.verdict.counterexample
    values: list[Fraction] = []
    for name, array in found.inputs.items():
        exact = [Fraction(float(v)) for v in np.asarray(array).ravel()]
        for position, value in found.decimals.get(name, {}).items():
            exact[position] = value
        values += exact
    return values


@every_network
def test_tautology_is_sat_and_contradiction_unsat(model: str, spec: str, instances: Path) -> None:
    folder = instances.parent
    try:
        lower, upper = first_box(folder / spec)
        graph = onnxcert.load_model(folder / model, input_elements=len(lower)).graph
    except InputError as error:
        code, cause = error.exit_code, error.cause
    else:
        code, cause = 0, ""
    if cause:
        assert code == 3
        pytest.skip(f"not supported: {cause}")
    box = onnxcert.box(lower, upper)
    outputs = graph.output_size
    first = [1] + [0] * (outputs - 1)
    options = {"timeout": 60.0, "settings": Settings(replay_points=1)}
    for tautology in (box, box.unsafe([0] * outputs, 1), box.unsafe(first, _BEYOND)):
        result = onnxcert.verify(folder / model, tautology, **options)  # type: ignore[arg-type]
        assert result.word == "sat"
        for value, low, high in zip(witness(result), lower, upper, strict=True):
            assert low <= value <= high
    contradictions = [box.unsafe([0] * outputs, -1)]
    if sum(graph.sizes.values()) <= _SMALL:  # this one takes bounds of every layer
        contradictions.append(box.unsafe(first, -_BEYOND))
    for contradiction in contradictions:
        result = onnxcert.verify(folder / model, contradiction, **options)  # type: ignore[arg-type]
        assert result.word == "unsat"
