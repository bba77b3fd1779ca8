"""The open subproblems: a batched queue, best first.

A batch of subproblems is a dictionary of arrays that share their first axis; what they mean is the
brancher's business. Each push is sorted by score and cut into small blocks, and the queue holds
blocks, so that a pop of thousands costs a few heap operations and one concatenation. The order is
exact within a block and, between pushes, as fine as the blocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from onnxcert.arrays import Array, array_module, concatenate

Batch = dict[str, Array]

_BLOCK = 64


def batch_length(batch: Batch) -> int:
    """Number of subproblems."""
    return len(next(iter(batch.values())))


def take(batch: Batch, index: Array | slice) -> Batch:
    """The subproblems that ``index`` (positions, mask or slice) chooses."""
    return {name: array[index] for name, array in batch.items()}


def unscored(batch: Batch) -> Array:
    """Scores for subproblems that nothing is known about."""
    first = next(iter(batch.values()))
    return array_module(first).zeros(len(first))  # type: ignore[no-any-return]


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of all; second axes of different length (paths) are padded with -1."""
    if len(batches) == 1:
        return batches[0]
    return {name: _join_arrays([batch[name] for batch in batches]) for name in batches[0]}


def _join_arrays(arrays: list[Array]) -> Array:
    if arrays[0].ndim == 2:
        width = max(array.shape[1] for array in arrays)
        arrays = [pad_columns(array, width) for array in arrays]
    return concatenate(arrays)


def pad_columns(array: Array, width: int) -> Array:
    """Append columns of -1 up to ``width``."""
    missing = width - array.shape[1]
    if missing == 0:
        return array
    xp = array_module(array)
    return xp.pad(array, ((0, 0), (0, missing)), constant_values=-1)  # type: ignore[no-any-return]


class Frontier:
    """Open subproblems ordered by score, lowest first."""

    def __init__(self, roots: Batch | None = None) -> None:
        """Begin with some subproblems that nothing is known about."""
        self._heap: list[tuple[float, int, Batch, Array]] = []
        self._count = 0
        self._pushed = 0
        self.bytes = 0
        if roots is not None:
            self.push(roots, unscored(roots))

    def __len__(self) -> int:
        return self._count

    @property
    def lowest(self) -> float:
        """The lowest score, infinity when empty."""
        return self._heap[0][0] if self._heap else float("inf")

    def push(self, batch: Batch, score: Array) -> None:
        """Add subproblems with their scores (B,)."""
        order = array_module(score).argsort(score, kind="stable")
        for start in range(0, len(score), _BLOCK):
            index = order[start : start + _BLOCK]
            block = take(batch, index)
            entry = (float(score[index[0]]), self._pushed, block, score[index])
            heapq.heappush(self._heap, entry)
            self._pushed += 1
            self.bytes += sum(array.nbytes for array in block.values())
        self._count += len(score)

    def pop(self, count: int) -> Batch:
        """Remove and return about ``count`` of the best subproblems, at least one block."""
        return self.pop_scored(count)[0]

    def pop_scored(self, count: int) -> tuple[Batch, Array]:
        """The same with their scores."""
        taken: list[Batch] = []
        scores: list[Array] = []
        total = 0
        while self._heap and total < count:
            _, _, block, score = heapq.heappop(self._heap)
            self.bytes -= sum(array.nbytes for array in block.values())
            self._count -= len(score)
            excess = total + len(score) - count
            if excess > 0:
                keep = len(score) - excess
                self.push(take(block, slice(keep, None)), score[keep:])
                block, score = take(block, slice(0, keep)), score[:keep]
            taken.append(block)
            scores.append(score)
            total += len(score)
        return join(taken), concatenate(scores)

    def pop_half(self, count: int) -> tuple[Batch, Array]:
        """Remove every second of the best subproblems until there are ``count``, with scores."""
        batch, score = self.pop_scored(2 * count)
        self.push(take(batch, slice(1, None, 2)), score[1::2])
        return take(batch, slice(0, None, 2)), score[::2]
