"""Tilted chords: the upper planes of a relu over the box that its neuron reads.

The chord lies above relu(z) for all z in an interval, whatever makes z. Where z = sum_j w_j x_j + b
reads few values x_j that have bounds of their own, much of what lies under the chord is nowhere on
the box: for any shares t_j in [0, 1]

    relu(z) <= sum_j t_j w_j x_j + max(-sum_j t_j m_j, b + sum_j (1 - t_j) M_j),

where m_j and M_j are the least and largest values of w_j x_j: what is subtracted from 0, and from
z, is largest at a corner. The chord has all t_j equal. With the two sides equal, which is
sum_j t_j (M_j - m_j) = b + sum_j M_j, such planes are all that is needed of the upper hull of relu
over the box (Anderson et al., *Strong Mixed-Integer Programming Formulations for Trained Neural
Networks*, 2020; Tjandraatmadja et al., *The Convex Relaxation Barrier, Revisited*, 2020).

A row A < 0 over the output then goes to the x_j without passing z. The bound is concave in the
shares; with y_j = (w_j x_j - m_j) / (M_j - m_j) at the point x that arrives on the relaxed path,
its derivative along the planes with equal sides is A (M_j - m_j) (y_j - mean y). Shares are stored
as k/255 and brought to equal sides afterwards, by shrinking them or their differences from one.

That pays only where the bounds of z are those of the box, hence in layers that read the input, or
move it: behind these the bounds of rows are better than those of intervals, and with them the chord
is better than planes over the box (root bounds of oval21 fell from -0.25 to -0.97).

Joint bounds of several neurons that read the same values (the least of all patterns of signs) were
tried on a one-layer convolutional network, where chords give -1.10: planes came to 0.019 and joint
bounds of all channels of a position to 0.021 by the same ascent. That is not worth their number.

Planes are those of the root in all subproblems, because a certificate would have to hold others for
every leaf. Below many splits the chord of a root is sometimes better again, so a subproblem takes
whichever gives it the better bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxcert.arrays import UNIT_ROUNDOFF, Array, array_module, single, sparse_module, to_host
from onnxcert.bounds.backward import SLACK, Relaxation, Tilt
from onnxcert.graph import Graph, Node
from onnxcert.ops.base import TINY, Affine, Elementwise, Operator
from onnxcert.sets import Box

MOST_SHARES = 1 << 18
"""Shares of one case: a quarter of a megabyte in a certificate."""

_CLOSE = 1.0 + 1e-6
"""How much larger than the range of a neuron that of its box may be."""

_DENSE = 1 << 22
"""Numbers up to which factors are dense matrices; compressed rows need SciPy."""

_FILLED = 0.2
"""Share of numbers other than zero from which on dense matrices take less time however large."""

_CHUNK = 1 << 22
"""Numbers of rows that are made at once to find what neurons read."""


@dataclass(frozen=True, eq=False)
class Tilting:
    """Some neurons of a relu that reads an affine map, and what they read, over one box.

    Attributes:
        source: what the affine map reads.
        neurons: (N,) of the relu, increasing.
        index, weight: (N, p) entries of the source, in the order of the inputs that they are, and
            their factors, none of them zero; both 0 where a neuron reads fewer.
        least, width: (N, p) m and M - m.
        top, gap: (N,) largest value of z on the box, and minus the least.
        error: (N,) what z and the plane may be off.
        meeting: as in `Tilt`.
    """

    source: str
    neurons: Array
    index: Array
    weight: Array
    least: Array
    width: Array
    top: Array
    gap: Array
    error: Array
    meeting: Array

    @classmethod
    def build(
        cls, graph: Graph, node: Node, boxes: Mapping[str, Box], relaxation: Relaxation
    ) -> Tilting | None:
        """Those of the unstable neurons of a node over boxes (a batch of one).

        Returns:
            None where the node is no relu of an affine map of the input, or has no such neurons, or
            these read too much.
        """
        if not isinstance(node.op, Elementwise) or not node.op.rectifies:
            return None
        makers = {made.name: made for made in graph.nodes}
        known = boxes[node.inputs[0]]
        neurons = array_module(known.lower).flatnonzero(node.op.unstable(known)[0])
        found = _sum_of(makers, relaxation, node.inputs[0], neurons)
        if found is None:
            return None
        maker, factor, bias, error = found
        order = _inputs(graph, makers, maker.inputs[0])
        reads = None if order is None else _reads(maker.op, neurons, order)
        if reads is None:
            return None
        xp, box = array_module(factor), boxes[maker.inputs[0]]
        index, weight = reads[0], factor[:, None] * reads[1]
        ends = weight * box.lower[0][index], weight * box.upper[0][index]
        least, most = xp.minimum(*ends), xp.maximum(*ends)
        top, gap = bias + most.sum(axis=1), -(bias + least.sum(axis=1))
        width = (known.upper - known.lower)[0][neurons]
        kept = (top > 0) & (gap > 0) & (top + gap <= _CLOSE * width) & xp.isfinite(width)
        if not kept.any():
            return None
        return cls(
            maker.inputs[0],
            neurons[kept],
            index[kept],
            weight[kept],
            least[kept],
            (most - least)[kept],
            top[kept],
            gap[kept],
            error[kept],
            2.0 * UNIT_ROUNDOFF * box.magnitude + TINY,
        )

    @property
    def used(self) -> Array:
        """Which entries of (N, p) are shares."""
        return self.weight != 0  # type: ignore[no-any-return]

    def single(self) -> Tilting:
        """The same in binary32."""
        return replace(
            self,
            weight=single(self.weight),
            least=single(self.least),
            width=single(self.width),
            top=single(self.top),
            gap=single(self.gap),
            error=single(self.error),
            meeting=single(self.meeting),
        )

    @property
    def chord(self) -> Array:
        """The shares that are chords, (1, N, p)."""
        share = self.top / (self.top + self.gap)
        return share[None, :, None] + 0.0 * self.weight  # type: ignore[no-any-return]

    def balanced(self, shares: Array) -> Array:
        """Shares (K, N, p) moved to where both sides of the maximum are equal."""
        xp = array_module(shares)
        one = shares.dtype.type(1)
        whole = (shares * self.width).sum(axis=2)
        rest = self.top + self.gap - whole
        shrunk = xp.where(whole > self.top, self.top / xp.where(whole > 0, whole, one), one)
        grown = xp.where(whole < self.top, self.gap / xp.where(rest > 0, rest, one), one)
        moved = one - (one - shares * shrunk[:, :, None]) * xp.minimum(grown, one)[:, :, None]
        result: Array = moved.clip(0.0, 1.0)
        return result

    def tilt(self, shares: Array) -> Tilt:
        """Planes for shares on the grid (K, N, p), of K subproblems or one for all."""
        xp = array_module(shares)
        share = self.balanced(shares) * self.used
        low = -(share * self.least).sum(axis=2)
        high = self.top - (share * (self.least + self.width)).sum(axis=2)
        offset = xp.maximum(low, high) + 4.0 * SLACK * self.error
        active = xp.ones((1, len(self.neurons)), dtype=bool)
        case = None if len(shares) == 1 else xp.arange(len(shares))
        factors = self.matrices(share * self.weight)
        return Tilt(self.source, self.neurons, factors, offset, active, self.meeting, case)

    def matrices(self, factor: Array) -> list[tuple[Any, Any]]:
        """Factors (K, N, p) as `Tilt` has them."""
        xp, (count, neurons, _) = array_module(factor), factor.shape
        size = self.meeting.shape[1]
        row, column, reads, order = self._entries
        if count * neurons * size <= _DENSE or len(reads) >= _FILLED * neurons * size:
            dense = xp.zeros((count, neurons, size), factor.dtype)
            dense[:, row, column] = factor.reshape(count, -1)[:, reads]
            return [(matrix.T, matrix) for matrix in dense]
        csr_matrix = sparse_module(factor).csr_matrix
        first = xp.searchsorted(row, xp.arange(neurons + 1))
        start = xp.searchsorted(column[order], xp.arange(size + 1))
        made = []
        for part in factor.reshape(count, -1):
            value = part[reads]
            over_source = csr_matrix((value[order], row[order], start), shape=(size, neurons))
            over_neurons = csr_matrix((value, column, first), shape=(neurons, size))
            made.append((over_source, over_neurons))
        return made

    @cached_property
    def _entries(self) -> tuple[Array, Array, Array, Array]:
        """Neuron, entry of the source and place in (N p) of all reads, and them by the entries."""
        xp = array_module(self.index)
        reads = xp.flatnonzero(self.used)
        column = self.index.ravel()[reads]
        row = reads // self.index.shape[1]
        return row, column, reads, xp.argsort(column, kind="stable")

    def gradient(self, row: Array, source: Array) -> Array:
        """d bound / d share, per unit of width, (B, N, p).

        Args:
            row: over the outputs, (B, n).
            source: values of the source on the relaxed path, (B, m).
        """
        xp = array_module(row)
        below = xp.minimum(row[:, self.neurons], 0.0)
        high = self.weight * source[:, self.index] - self.least
        mean = high.sum(axis=2) / (self.top + self.gap)
        width = xp.where(self.width > 0, self.width, 1.0)
        return below[:, :, None] * (high / width - mean[:, :, None])  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Tilts:
    """The planes of some cases of a search.

    Attributes:
        of: relu -> its planes.
        cases: (K,) numbers of the cases, increasing.
        shares: relu -> (K, N, p) shares on the grid.
    """

    of: Mapping[str, Tilting]
    cases: Array
    shares: Mapping[str, Array]

    @cached_property
    def _all(self) -> dict[str, Tilt]:
        return {name: tilting.tilt(self.shares[name]) for name, tilting in self.of.items()}

    def take(self, kept: Array) -> Tilts | None:
        """Those of some of the cases, (K,) of them or not; None for none."""
        if not kept.any():
            return None
        shares = {name: shares[kept] for name, shares in self.shares.items()}
        return Tilts(self.of, self.cases[kept], shares)

    def over(
        self, cases: Array, graph: Graph, root: Mapping[str, Box], boxes: Mapping[str, Box]
    ) -> dict[str, Tilt]:
        """The planes of subproblems.

        Args:
            cases: (B,) the case of each; those without planes take none.
            graph: the network.
            root, boxes: bounds of all values, and tighter ones of some for the subproblems.
        """
        xp = array_module(cases)
        place = xp.searchsorted(self.cases, cases).clip(0, len(self.cases) - 1)
        known = self.cases[place] == cases
        made = {}
        for node in graph.nodes:
            if node.name not in self.of:
                continue
            assert isinstance(node.op, Elementwise)
            box = boxes.get(node.inputs[0], root[node.inputs[0]])
            tilt = self._all[node.name]
            active = known[:, None] & node.op.unstable(box)[:, tilt.neurons]
            taken = xp.where(known, place, -1)
            made[node.name] = replace(tilt, offset=tilt.offset[place], active=active, case=taken)
        return made


def tiltings(graph: Graph, boxes: Mapping[str, Box], relaxation: Relaxation) -> dict[str, Tilting]:
    """All that there are over boxes (a batch of one), by relu."""
    found = {}
    for node in graph.nodes:
        tilting = Tilting.build(graph, node, boxes, relaxation)
        if tilting is not None:
            found[node.name] = tilting
    return found


def _sum_of(
    makers: Mapping[str, Node], relaxation: Relaxation, name: str, neurons: Array
) -> tuple[Node, Array, Array, Array] | None:
    """Some entries of a value as factor x (sums of one node) + bias.

    Returns:
        The node, factors, bias with that of the node, and what both may be off, (N,) each; None if
        the value is nothing of the kind.
    """
    xp = array_module(neurons)
    factor, bias, error = xp.ones(len(neurons)), xp.zeros(len(neurons)), xp.zeros(len(neurons))
    while True:
        maker = makers.get(name)
        if maker is None or not isinstance(maker.op, Affine) or len(maker.inputs) != 1:
            return None
        own = relaxation.error_of(name)
        if own is not None:
            error = error + abs(factor) * own[0][neurons]
        diagonal = maker.op.diagonal
        if diagonal is None:
            break
        bias = bias + factor * diagonal[1][neurons]
        factor = factor * diagonal[0][neurons]
        name = maker.inputs[0]
    if maker.op.bias is not None:
        bias = bias + factor * maker.op.bias[neurons]
    return maker, factor, bias, error


def _inputs(graph: Graph, makers: Mapping[str, Node], name: str) -> Array | None:
    """Which input each entry of a value is, maybe scaled; None where it is anything else."""
    if name == graph.input:
        return np.arange(graph.input_size)
    maker = makers[name]
    if not isinstance(maker.op, Affine) or len(maker.inputs) > 1:
        return None
    behind = _inputs(graph, makers, maker.inputs[0])
    index = maker.op.picked
    if behind is None or (index is None and maker.op.diagonal is None):
        return None
    if index is None:
        return behind
    return behind[to_host(index)]


def _reads(op: Operator, neurons: Array, order: Array) -> tuple[Array, Array] | None:
    """Entries and factors of what some outputs of a map read, (N, p) each; see `Tilting`."""
    assert isinstance(op, Affine)
    xp = array_module(neurons)
    step, parts, rank = max(1, _CHUNK // len(order)), [], xp.asarray(order)
    for start in range(0, len(neurons), step):
        (rows, columns) = op.one_hot_rows(neurons[start : start + step])[0]
        row, column = xp.nonzero(rows)
        factor = rows[row, column]
        entry = column if columns is None else columns[column]
        parts.append((row + start, entry, factor))
    if not parts:
        return None
    row, entry, factor = (xp.concatenate(part) for part in zip(*parts, strict=True))
    sorting = xp.lexsort(xp.stack([rank[entry], row]))
    row, entry, factor = row[sorting], entry[sorting], factor[sorting]
    if not 0 < len(row) <= MOST_SHARES:
        return None
    place = xp.arange(len(row)) - xp.searchsorted(row, row)
    shape = len(neurons), int(place.max()) + 1
    index, weight = xp.zeros(shape, dtype=np.int64), xp.zeros(shape)
    index[row, place], weight[row, place] = entry, factor
    return index, weight
