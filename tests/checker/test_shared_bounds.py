"""Groups that begin with the same box take its bounds from each other, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcert.checker.bounds import Relaxation
from onnxcert.checker.proof import Boxes, Prover
from tests.checker.makers import ACCEPTED, PLANS, made

ARRAYS = ("lower", "upper", "noise", "center", "radius", "reach", "empty")


@pytest.mark.parametrize("name", PLANS)
def test_what_is_taken_again_is_what_would_be_found_anew(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was done with it in between."""
    right, again = Prover.bounds, []

    def bounds(self: Prover, nodes: Boxes, *, backward: bool) -> Relaxation:
        known = backward and any(nodes.bounded_like(same) for same, _ in self.ahead)
        found = right(self, nodes, backward=backward)
        if known:
            anew = self.bounder.bound(nodes.low, nodes.high, nodes.known)
            for array in ARRAYS:
                np.testing.assert_array_equal(getattr(found, array), getattr(anew, array))
            for part in ("curves", "planes"):
                ours, theirs = getattr(found, part), getattr(anew, part)
                assert ours.keys() == theirs.keys()
                for k, lines in ours.items():
                    np.testing.assert_array_equal(np.stack(lines), np.stack(theirs[k]))
            assert not found.tilts
            again.append(nodes)
        return found

    monkeypatch.setattr(Prover, "bounds", bounds)
    it = made(name)
    assert it.instance.outcome(it.certificate) == ACCEPTED
    assert it.at_sibling(it.certificate) == "R8"
    assert bool(again) == (name == "groups")


def test_a_copy_shares_nothing_that_changes() -> None:
    it = made("neurons")
    network = it.instance.session.bounder(executed=False)
    n = network.network.n_inputs
    r = network.bound(np.full((1, n), -0.5), np.full((1, n), 0.5))
    before = {array: getattr(r, array).copy() for array in ARRAYS}
    lines = dict(r.curves)
    other = r.copy()
    for array in ARRAYS:
        getattr(other, array)[:] = True
    other.curves.clear()
    for array in ARRAYS:
        np.testing.assert_array_equal(getattr(r, array), before[array])
    assert r.curves.keys() == lines.keys()
