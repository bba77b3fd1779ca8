"""How many bounds are audited, by one process or by several: what is printed is what was done."""

from __future__ import annotations

import math
import multiprocessing
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.checker import curves, trees
from onnxcert.checker.audit import FORKS, Auditor, _crosses_stairs
from tests.checker.makers import Instance, by_hand, coarse, dense, made, spec

LEAVES = 32


@pytest.fixture(name="audits")
def _audits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A count of all calls of `Auditor.audit`, in forks, too."""
    counter = (FORKS or multiprocessing).Value("q", 0)
    audit = Auditor.audit

    def counted(*arguments: Any) -> None:
        audit(*arguments)
        with counter.get_lock():
            counter.value += 1

    monkeypatch.setattr(Auditor, "audit", counted)
    return counter


@given(
    low=st.floats(-5, 5) | st.integers(-5, 5).map(float),
    width=st.floats(0, 4) | st.sampled_from([0.0, 1e-9, 1.0, 2.0]),
    sign=st.sampled_from([-1, 1]),
)
def test_lines_about_stairs(low: float, width: float, sign: int) -> None:
    """Those that bounds take pass; raised by more than their slack they do not."""
    ends = np.array([low]), np.array([low + width])
    lines = [Fraction(float(part[0])) for part in curves.lines("floor", *ends, None, None, False)]
    slope, offset = lines[:2] if sign < 0 else lines[2:]
    where = Fraction(low), Fraction(float(ends[1][0]))
    assert not _crosses_stairs(sign, slope, offset, *where)
    points = [low, low + width, *map(float, range(math.ceil(low), math.floor(low + width) + 1))]
    gaps = [sign * (slope * Fraction(z) + offset - math.floor(z)) for z in points]
    if sign < 0:  # just before a jump
        gaps += [-(slope * z + offset - z + 1) for z in map(Fraction, points[2:]) if z > where[0]]
    assert _crosses_stairs(sign, slope, offset - sign * (min(gaps) + Fraction(1, 10**9)), *where)


def instance() -> Instance:
    """A question that plain bounds answer on every part of the square."""
    model = dense([2, 4, 3, 1], 2)
    return Instance(model.SerializeToString(), spec(([-1.0, -1.0], [1.0, 1.0], [([1.0], -1e3)])))


def neurons(it: Instance) -> bytes:
    """A tree of splits of one neuron, all at zero; every leaf is refuted."""
    op = [0]
    while op.count(0) < LEAVES:
        op = [1, *op, *op]
    splits, depth = LEAVES - 1, LEAVES.bit_length() - 1
    arrays = {
        "group": [[1, 1, len(op), 0, 0, 0]],
        "case": [0],
        "op": op,
        "arg": [0] * splits,
        "layer": [0] * splits,
        "point": [0.0] * splits,
        "multiplier": [0] * (LEAVES * depth),
        "weight": [coarse(1.0)] * LEAVES,
    }
    return by_hand(it, arrays, layers=["h0"])


def inputs(it: Instance) -> bytes:
    """The square in 2^10 boxes."""
    op, chosen = [0], list[int]()
    for level in range(10):
        op, chosen = [1, *op, *op], [level % 2, *chosen, *chosen]
    arrays = {"group": [[0, 1, len(op), 0, 0, 0]], "case": [0], "op": op, "arg": chosen}
    return by_hand(it, arrays)


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [(0, 0), (LEAVES // 2, LEAVES // 2), (LEAVES, LEAVES), (10**40, LEAVES)],
)
def test_trees_over_neurons(
    jobs: int, asked: int, expected: int, audits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_NUMBERS", 1)  # every leaf is work of its own
    it = instance()
    verified = it.session.check(neurons(it), audit=asked, jobs=jobs)
    assert verified.leaves == LEAVES
    assert verified.audited == audits.value == expected
    assert str(verified).endswith(f", {expected} bounds audited exactly") == (expected > 0)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("asked", [3, 10**6])
def test_trees_over_inputs(jobs: int, asked: int, audits: Any) -> None:
    """More boxes are close enough to a solution to be halved than are needed to share them."""
    it = made("inputs").instance
    verified = it.session.check(inputs(it), audit=asked, jobs=jobs)
    assert verified.audited == audits.value <= asked
    assert verified.audited > 3 or asked == 3
