"""Questions about inputs that only floors read: whole numbers of which there are few."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcert
from onnxcert.bounds.interval import interval_bounds
from onnxcert.checker import Rejected, container
from onnxcert.checker.certificate import Session
from onnxcert.frontend.onnx import load_model
from onnxcert.graph import Graph
from onnxcert.search.whole_split import WholeSplit
from onnxcert.sets import Box
from tests.checker.makers import Arrays, Header, edited, hashes, spec
from tests.checker.makers import Instance as Pair
from tests.frontend import lookups
from tests.frontend.lookups import Lookup
from tests.proof.networks import Files

REAL = "VERIFIED UNSAT (real)"
MARGIN = 1e-3

Kind = Callable[[np.random.Generator], Lookup]
ROW = [1.0, -0.5]
SIGNED = (lookups.negative, lookups.nearly_negative)


def fixed(lookup: Lookup, rng: np.random.Generator) -> Lookup:
    """The same with one value for what is no index."""
    indices = lookup.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    point = rng.integers(-8, 8, len(lookup.lower) - indices) / 16
    lower = np.append(lookup.lower[:indices], point)
    return Lookup(lookup.proto, lower, np.append(lookup.upper[:indices], point))


def least(lookup: Lookup) -> float:
    """The least value of a row over the cells of a box in which nothing but indices vary."""
    low, high = np.trunc(lookup.lower), np.trunc(lookup.upper)
    varies = lookup.lower < lookup.upper
    lines = [
        np.arange(a, b + 1) if v else [x]
        for a, b, v, x in zip(low, high, varies, lookup.lower, strict=True)
    ]
    cells = np.array(list(product(*lines)))
    points = np.clip(cells, lookup.lower, lookup.upper)
    graph = load_model(lookup.proto, limits=lookup.limits).graph
    return float((graph.forward(points) @ ROW).min())


def written(folder: Path, lookup: Lookup, bound: float) -> Files:
    """Is the row at most so large somewhere?"""
    text = spec((lookup.lower.tolist(), lookup.upper.tolist(), [(ROW, bound)]), outputs=2)
    return Files.write(folder, lookup.proto, text)


@pytest.mark.parametrize("kind", lookups.KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_of_all_cells(tmp_path: Path, kind: Kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lookup = fixed(kind(rng), rng)
    bound = least(lookup)
    files = written(tmp_path, lookup, bound + MARGIN)
    assert files.verify().word == "sat"
    assert onnxcert.check(files.proof, files.model, files.spec).verdict == "sat"
    files = written(tmp_path, lookup, bound - MARGIN)
    found = files.verify()
    if kind in SIGNED:  # what stands before their floors is not whole
        assert found.word in ("unsat", "unknown", "timed-out")
        return
    assert found.word == "unsat"
    assert files.check() == REAL


@pytest.mark.parametrize("kind", [lookups.cut_out, lookups.masked, lookups.compared])
def test_every_execution(tmp_path: Path, kind: Kind) -> None:
    """Indices and what is looked up are exact in executions, too."""
    rng = np.random.default_rng(1)
    lookup = fixed(kind(rng), rng)
    files = written(tmp_path, lookup, least(lookup) - MARGIN)
    found = files.verify(semantics="ieee32-any-order")
    assert found.word == "unsat"
    assert files.check() == "VERIFIED UNSAT (ieee32-any-order)"


@pytest.mark.parametrize("kind", lookups.KINDS)
@pytest.mark.parametrize("splitting", ["input", "neuron"])
def test_other_inputs_may_vary_too(tmp_path: Path, kind: Kind, splitting: str) -> None:
    rng = np.random.default_rng(0)
    lookup = kind(rng)
    graph = load_model(lookup.proto, limits=lookup.limits).graph
    points = lookup.sample(rng, 20_000)
    corners = np.where(rng.random(points.shape) < 0.5, lookup.lower, lookup.upper)
    indices = lookup.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    points[::2, indices:] = corners[::2, indices:]
    values = graph.forward(points) @ ROW
    files = written(tmp_path, lookup, float(values.min()) + MARGIN)
    assert files.verify(splitting=splitting, timeout=20).word != "unsat"
    files = written(tmp_path, lookup, float(values.min() - 0.5 * np.ptp(values)))
    found = files.verify(splitting=splitting, timeout=20)
    assert found.word != "sat"
    if splitting == "input" and kind not in SIGNED:
        assert found.word == "unsat"
        assert files.check() == REAL


def test_single_points_are_gone_down_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neurons are more than points, boxes that are cut are not bounded."""
    monkeypatch.setattr(WholeSplit, "_unstable", lambda self, box: np.full(len(box.lower), 1e9))
    rng = np.random.default_rng(3)
    lookup = fixed(lookups.masked(rng), rng)
    bound = least(lookup)
    files = written(tmp_path, lookup, bound + MARGIN)
    assert files.verify().word == "sat"
    files = written(tmp_path, lookup, bound - MARGIN)
    assert files.verify().word == "unsat"
    assert files.check() == REAL
    arrays = container.unpack(files.proof.read_bytes())[1]
    assert set(arrays["op"].tolist()) == {0, 4}
    # With a second process, which walks the same tree.
    assert files.verify(watch="auto").word == "unsat"


def test_points_that_intervals_leave_open_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be boxes of what hardly varies; here all that intervals say is forgotten."""
    monkeypatch.setattr(WholeSplit, "_unstable", lambda self, box: np.full(len(box.lower), 1e9))
    rng = np.random.default_rng(3)
    lookup = fixed(lookups.masked(rng), rng)
    files = written(tmp_path, lookup, least(lookup) - MARGIN)
    monkeypatch.setattr("onnxcert.search.whole_split.interval_bounds", _vague)
    assert files.verify().word == "unsat"
    assert files.check() == REAL


def _vague(graph: Graph, box: Box, **options: Any) -> dict[str, Box]:
    """Bounds of outputs that are 1e6 too low or too high."""
    boxes = interval_bounds(graph, box, **options)
    side = boxes[graph.output]
    return boxes | {graph.output: Box(side.lower - 1e6, side.upper + 1e6)}


def _deeper(header: Header, arrays: Arrays) -> None:
    """The first leaf is cut, and one half of it is left out."""
    first = int(np.flatnonzero(arrays["op"] == 0)[0])
    arrays["op"] = np.insert(arrays["op"], first, 4).astype(arrays["op"].dtype)
    arrays["arg"] = np.append(arrays["arg"], arrays["arg"][:1])
    arrays["group"][0, 2] += 1


def _shallow(header: Header, arrays: Arrays) -> None:
    """The root is the only leaf."""
    arrays["op"], arrays["arg"] = np.zeros(1, arrays["op"].dtype), arrays["arg"][:0]
    arrays["group"][0, 2] = 1


@pytest.mark.parametrize("change", [_deeper, _shallow])
def test_trees_must_reach_every_cell(
    tmp_path: Path, change: Callable[[Header, Arrays], None]
) -> None:
    rng = np.random.default_rng(3)
    lookup = fixed(lookups.masked(rng), rng)
    files = written(tmp_path, lookup, least(lookup) - MARGIN)
    assert files.verify().word == "unsat"
    session = Session(files.model.read_bytes(), files.spec.read_bytes())
    with pytest.raises(Rejected):
        session.check(edited(files.proof.read_bytes(), change))


@pytest.mark.parametrize("kind", [lookups.cut_out, lookups.masked, lookups.compared])
def test_what_is_false_is_refused(tmp_path: Path, kind: Kind) -> None:
    """The tree of one question does not prove another one, of which one cell is a solution."""
    rng = np.random.default_rng(4)
    lookup = fixed(kind(rng), rng)
    bound = least(lookup)
    files = written(tmp_path, lookup, bound - MARGIN)
    assert files.verify().word == "unsat"
    certificate = files.proof.read_bytes()
    other = spec((lookup.lower.tolist(), lookup.upper.tolist(), [(ROW, bound + MARGIN)]), outputs=2)
    model = files.model.read_bytes()

    def rebound(header: Header, arrays: Arrays) -> None:
        header |= hashes(Pair(model, other))

    with pytest.raises(Rejected):
        Session(model, other).check(edited(certificate, rebound))


def test_rows_over_a_whole_input_keep_it_as_it_is(tmp_path: Path) -> None:
    """3 i > 2 i + 1 has solutions between whole numbers, of which the floor is none."""
    rng = np.random.default_rng(0)
    lookup = fixed(lookups.cut_out(rng), rng)
    names = [f"X_{i}" for i in range(len(lookup.lower))]
    lines = [f"(declare-const {name} Real)" for name in [*names, "Y_0", "Y_1"]]
    sides = zip(names, lookup.lower, lookup.upper, strict=True)
    lines += [f"(assert (and (>= {n} {a}) (<= {n} {b})))" for n, a, b in sides]
    # Y_0 >= Y_0's least value holds at every cell; X_0 + 0 Y must be no more than 0.75.
    lines += ["(assert (<= (+ X_0 Y_0 (* -1.0 Y_0)) 0.75))"]
    files = Files.write(tmp_path, lookup.proto, "\n".join(lines).encode())
    found = files.verify()
    assert found.word == "sat"
    assert math.floor(found.verdict.counterexample.inputs["X"].ravel()[0]) == 0  # type: ignore[union-attr]
