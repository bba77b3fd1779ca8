"""The queue of open subproblems: nothing lost, nothing doubled, best first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from onnxcert.search.frontier import Batch, Frontier, batch_length, join, pad_columns, take


def numbered(first: int, count: int, width: int = 1) -> Batch:
    """Subproblems that carry their number, and a path of the given length."""
    numbers = np.arange(first, first + count)
    return {"number": numbers, "path": np.repeat(numbers[:, None], width, axis=1)}


class FrontierMachine(RuleBasedStateMachine):
    """Random pushes and pops, against a plain set of numbers."""

    pushed = Bundle("pushed")

    def __init__(self) -> None:
        super().__init__()
        self.frontier = Frontier()
        self.open: dict[int, float] = {}
        self.next = 0

    @rule(count=st.integers(1, 200), width=st.integers(0, 3), seed=st.integers(0, 99))
    def push(self, count: int, width: int, seed: int) -> None:
        scores = np.random.default_rng(seed).normal(size=count)
        self.frontier.push(numbered(self.next, count, width), scores)
        self.open |= dict(zip(range(self.next, self.next + count), scores, strict=True))
        self.next += count

    @rule(count=st.integers(1, 300))
    def pop(self, count: int) -> None:
        if not self.open:
            return
        batch = self.frontier.pop(count)
        numbers = batch["number"].tolist()
        assert len(numbers) == min(count, len(self.open))
        assert len(set(numbers)) == len(numbers)
        for number, path in zip(numbers, batch["path"], strict=True):
            del self.open[number]  # fails for what was never pushed, or was popped before
            assert set(path.tolist()) <= {number, -1}

    @invariant()
    def counts_what_is_open(self) -> None:
        assert len(self.frontier) == len(self.open)
        assert (self.frontier.bytes > 0) == bool(self.open)
        lowest = min(self.open.values(), default=np.inf)
        assert self.frontier.lowest == lowest


TestFrontier = FrontierMachine.TestCase


@given(scores=st.lists(st.floats(-10, 10), min_size=1, max_size=300), count=st.integers(1, 50))
def test_one_push_is_popped_in_order(scores: list[float], count: int) -> None:
    frontier = Frontier()
    frontier.push(numbered(0, len(scores)), np.array(scores))
    order: list[int] = []
    while len(frontier):
        order += frontier.pop(count)["number"].tolist()
    assert [scores[i] for i in order] == sorted(scores)
    assert frontier.bytes == 0


def test_join_pads_paths_and_keeps_rows_together() -> None:
    joined = join([numbered(0, 2, 1), numbered(2, 1, 3), numbered(3, 1, 0)])
    assert joined["number"].tolist() == [0, 1, 2, 3]
    assert joined["path"].tolist() == [[0, -1, -1], [1, -1, -1], [2, 2, 2], [-1, -1, -1]]


def test_take_chooses_by_mask_and_by_position() -> None:
    batch = numbered(0, 4)
    assert take(batch, np.array([True, False, True, False]))["number"].tolist() == [0, 2]
    assert batch_length(take(batch, np.array([3]))) == 1


def test_no_padding_returns_the_array_itself() -> None:
    array = np.zeros((2, 3))
    assert pad_columns(array, 3) is array
