"""Searches that waste no time on what tests do not look at."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from onnxcert.search.frontier import Batch
from onnxcert.search.neuron_split import NeuronSplit
from onnxcert.search.regions import RegionSearch, Turns
from onnxcert.verdict import Counterexample, Reason


def skip_plain_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never split over plain bounds first: how far that gets is a question of time."""
    monkeypatch.setattr(
        "onnxcert.search.solve.Solver._split_briefly", lambda *arguments: Reason.TIMEOUT
    )


def install(monkeypatch: pytest.MonkeyPatch, batches: int = 1) -> None:
    """Make regions the way to search: each gets so many batches of subproblems."""

    class Hasty(RegionSearch):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            inner = self.search

            def search(
                brancher: NeuronSplit, roots: Batch, enough: Callable[[], bool]
            ) -> Counterexample | Reason | None:
                asked = count()
                return inner(brancher, roots, lambda: next(asked) >= batches)

            self.search = search

    class Eager(Turns):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.patience = -1.0

        @property
        def _share(self) -> float:
            return float("inf")

    monkeypatch.setattr("onnxcert.search.solve.RegionSearch", Hasty)
    monkeypatch.setattr("onnxcert.search.solve.Turns", Eager)
    monkeypatch.setattr("onnxcert.search.solve.applicable", lambda graph, boxes: False)
