"""Leaves of trees over neurons while these grow, as the checker will read them.

The child of `onnxcert.proof.watch` is told of roots, splits and closed leaves. Leaves are put
together with the splits above them and handed to the checker's functions in the same numbers that
the certificate will have: its multipliers and weights are rounded, so these are, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from onnxcert.arrays import FloatArray, IntArray
from onnxcert.bounds.hints import encode_multipliers
from onnxcert.checker.network import Curve
from onnxcert.checker.proof import Paths
from onnxcert.checker.trees import Group, coarse
from onnxcert.proof.memory import Memory
from onnxcert.proof.trace import Leaves
from onnxcert.proof.writer import NumberedCase

_NUMBERS = 1 << 19
"""Float64 numbers of bounds in one batch of leaves."""

_MOST_NODES = 1 << 20
"""Nodes of trees that are known; leaves below others are for the end."""

_Above = tuple[int, int, float, float]
"""Of a node: its parent, the neuron split there, the side, and the point."""


class GrowingTrees:
    """Trees over one box while they grow.

    Args:
        group: has made the bounds of the box last, without any leaves.
        numbers: (K,) of its cases.
        memory: notes what is refuted.
        neurons: the first number of neurons in the count of the search -> label of their layer and
            their positions in it.
    """

    def __init__(
        self,
        group: Group,
        numbers: IntArray,
        memory: Memory,
        neurons: Mapping[int, tuple[str, IntArray]],
    ) -> None:
        assert group.base is not None
        self.group, self.base, self.numbers, self.memory = group, group.base, numbers, memory
        self._cases: dict[int, NumberedCase] = {}
        self._above: dict[int, _Above] = {}
        blocks = {b.label: b for b in group.bounder.blocks if isinstance(b, Curve)}
        ends = [first + len(index) for first, (_, index) in neurons.items()]
        self._scalars = np.full(max(ends, default=0), -1)
        for first, (label, positions) in neurons.items():
            if label not in blocks:
                continue  # nothing that is asked for depends on it
            number = blocks[label].at(positions)
            read = np.where(number >= 0, blocks[label].ids[number], -1)
            self._scalars[first : first + len(positions)] = read

    def plant(self, nodes: IntArray, cases: Sequence[NumberedCase]) -> None:
        """New roots."""
        self._cases.update(zip(nodes.tolist(), cases, strict=True))

    def split(
        self, parents: IntArray, neurons: IntArray, points: FloatArray, halves: IntArray
    ) -> None:
        """Splits of nodes, as a `onnxcert.proof.trace.Follower` hears of them."""
        if len(self._above) >= _MOST_NODES:
            return
        parts = (part.tolist() for part in (parents, neurons, points, halves))
        for parent, neuron, point, (low, high) in zip(*parts, strict=True):
            self._above[low] = parent, neuron, -1.0, point
            self._above[high] = parent, neuron, 1.0, point

    def close(self, leaves: Leaves) -> None:
        """Refute leaves, as far as they can be."""
        size = self.group.bounder.network.size
        batch = list[Paths]()
        for leaf in self._paths(leaves):
            batch.append(leaf)
            if len(batch) * size >= _NUMBERS:
                self._refute(batch)
                batch = []
        if batch:
            self._refute(batch)

    def _refute(self, batch: Sequence[Paths]) -> None:
        self.memory.lower(self.base, batch, partial(self.group.lower, self.base))

    def _paths(self, leaves: Leaves) -> Iterator[Paths]:
        """The leaves whose paths are known, each a batch of one."""
        multipliers = coarse(encode_multipliers(leaves.multipliers))
        there = ~np.isnan(leaves.multipliers)
        width = self.base.prover.rows.used.shape[1]
        for row, node in enumerate(leaves.nodes.tolist()):
            case, path = self._path(node)
            if case is None or len(path) != np.count_nonzero(there[row]):
                continue
            neuron, side, point = np.array(path).reshape(-1, 3).T
            scalar = self._scalars[neuron.astype(np.int64)]
            if (scalar < 0).any():
                continue
            place = np.searchsorted(self.numbers, [case.number])
            weights = np.zeros((1, width))
            found = leaves.weights[row, case.order]
            weights[0, : len(found)] = coarse(encode_multipliers(found))
            yield Paths(
                place,
                scalar[None],
                side[None],
                point[None],
                multipliers[row, there[row]][None],
                leaves.slopes[row : row + 1],
                weights,
                leaves.tilted[row : row + 1] & (int(place[0]) in self.base.tilts),
            )

    def _path(self, node: int) -> tuple[NumberedCase | None, list[tuple[int, float, float]]]:
        """The case of a node, None if it is not known, and the splits above it, root first."""
        path = []
        while node in self._above:
            node, neuron, side, point = self._above[node]
            path.append((neuron, side, point))
        return self._cases.get(node), path[::-1]
