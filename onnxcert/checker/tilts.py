"""Rule R18: planes above relus, over what their sums read.

Let z = sum_j w_j x_j + b + e with |e| <= E, and let m_j <= w_j x_j <= M_j hold on the box of the
group. Then, for any factors f_j = t_j w_j with shares t_j in [0, 1],

    relu(z) <= sum_j f_j x_j + c,   c = max(-sum_j t_j m_j, b + sum_j (1 - t_j) M_j) + E:

of max(0, z) - sum_j t_j w_j x_j the first alternative is at most -sum_j t_j m_j, the second at most
b + sum_j (1 - t_j) M_j + E. A negative coefficient a of relu(z) gives way to coefficients a f_j of
the x_j and a c in the constant, wherever the neuron is not stable.

The certificate says the shares, in 255ths; before use they are moved to where both alternatives are
equal, which is no matter of proof. Charged to c, beside E (roundings of executions and inexact
factors included): what the rounding of f_j, of the sums here, and of the sums of a f_j over neurons
can change, at most 4 gamma (sum_j |w_j| |x_j| + |b|), and that of products with c.

A sum may be scaled and shifted scalar by scalar before the relu reads it (a normalisation). Then w,
b and E are those of the whole: what is rounded in making them is in the same charge, which has that
of every block that is passed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcert.checker.bounds import Bounder, Relaxation
from onnxcert.checker.coefficients import Part, Pending
from onnxcert.checker.curves import TINY, Array
from onnxcert.checker.errors import Rejected
from onnxcert.checker.network import Affine, Curve, Entries, Pick, Product, distinct

_SLACK = 1 + 1e-6
"""Covers the rounding of error terms themselves."""

_RANGE = 2.0**60
"""As in `onnxcert.checker.bounds`."""

_MOST = 1 << 22
"""Factors of the neurons of one hint."""

_LONGEST = 8
"""Blocks between what is read and a relu."""

_SMALLEST = 1e-290
"""Products of factors below this may have lost digits."""


@dataclass(frozen=True, eq=False)
class Reads:
    """What the sums that some neurons read are made of.

    Attributes:
        ids, weight: (N, p) scalars in increasing order, and their factors; -1 and 0 where a neuron
            reads fewer.
        offset, lost: (N,) b and E.
    """

    ids: Array
    weight: Array
    offset: Array
    lost: Array

    @property
    def used(self) -> Array:
        """Which of (N, p) are there."""
        return np.asarray(self.weight != 0)


@dataclass(frozen=True, eq=False)
class Tilt:
    """Planes above some neurons of a relu.

    Attributes:
        position: (N,) of the neurons in their layer.
        reads: what they read.
        factor, offset: (N, p) and (N,) of the planes; an offset that is not finite is no plane.
        part: the factors, ready for rows over the neurons.
    """

    position: Array
    reads: Reads
    factor: Array
    offset: Array
    part: Part

    @classmethod
    def build(cls, bounder: Bounder, r: Relaxation, k: int, position: Array, codes: Array) -> Tilt:
        """Planes over the box of a batch of one.

        Args:
            bounder: the network.
            r: bounds of every scalar.
            k: the block of the relu.
            position: (N,) in it, no two alike.
            codes: shares in 255ths, one for each of `Reads.used`, neuron after neuron.

        Raises:
            Rejected: these neurons have no such planes, or there are not as many shares.
        """
        reads = find_reads(bounder, r, k, position)
        if len(codes) != reads.used.sum():
            raise Rejected("R18", "tilt", f"{len(codes)} shares for {reads.used.sum()} factors")
        share = np.zeros(reads.weight.shape)
        share[reads.used] = codes / 255.0
        low, high = (reads.weight * side[0, reads.ids] for side in (r.lower, r.upper))
        least, most = np.minimum(low, high), np.maximum(low, high)
        share = _balanced(share, most - least, reads.offset + most.sum(axis=1))
        factor = share * reads.weight
        below = -(share * least).sum(axis=1)
        above = reads.offset + ((1.0 - share) * most).sum(axis=1)
        size = (abs(reads.weight) * r.reach[0, reads.ids]).sum(axis=1) + abs(reads.offset)
        offset = np.maximum(below, above)
        size = size + 1e-290 * r.reach[0, reads.ids].sum(axis=1)  # factors that underflow
        lost = 2.0 * reads.lost + bounder.gamma * (4.0 * size + 2.0 * abs(offset))
        offset = offset + lost * _SLACK + TINY + 4.0 * bounder.flushed
        if bounder.executed:
            offset = np.where(size + lost <= _RANGE, offset, np.inf)
        out, place = np.nonzero(reads.used)
        ids, value = reads.ids[out, place], factor[out, place]
        return cls(position, reads, factor, offset, Part(Entries(ids, out, value), bounder.ends))

    def active(self, r: Relaxation, block: Curve) -> Array:
        """Which neurons are not stable on the sets of a batch: (B, N)."""
        ids = block.ids[self.position]
        unstable = (r.lower[:, ids] < 0) & (r.upper[:, ids] > 0)
        return np.asarray(unstable & np.isfinite(self.offset))

    def take(self, rows: Array, active: Array, pending: Pending) -> tuple[Array, Array, Array]:
        """Move negative coefficients of rows (B, R, n) to the planes.

        Returns:
            What is left of the rows, and what is added to the constants (B, R), with the sum of the
            absolute values.
        """
        below = np.where(active[:, None], np.minimum(rows[:, :, self.position], 0.0), 0.0)
        rows = rows.copy()
        rows[:, :, self.position] -= below  # exact: a number or zero is left
        moved = below @ np.where(np.isfinite(self.offset), self.offset, 0.0)
        size = -below @ abs(np.where(np.isfinite(self.offset), self.offset, 0.0))
        self.part.push(pending, below.reshape(-1, below.shape[2]))
        return rows, moved, size


def _balanced(share: Array, width: Array, top: Array) -> Array:
    """Shares for which sum t (M - m) = b + sum M, or other ones in [0, 1]."""
    whole, all_of = (share * width).sum(axis=1), width.sum(axis=1)
    shrunk = np.where(whole > top, np.maximum(top, 0.0) / np.where(whole > 0, whole, 1.0), 1.0)
    rest = np.where(all_of > whole, all_of - whole, 1.0)
    grown = np.where(whole < top, np.clip((all_of - top) / rest, 0.0, 1.0), 1.0)
    return np.clip(1.0 - (1.0 - share * shrunk[:, None]) * grown[:, None], 0.0, 1.0)


def find_reads(bounder: Bounder, r: Relaxation, k: int, position: Array) -> Reads:
    """What neurons of a relu read; see `Reads`.

    Raises:
        Rejected: they do not all read one sum of products, or something twice.
    """
    block = bounder.blocks[k]
    if not isinstance(block, Curve) or block.kind != "relu":
        raise Rejected("R18", "tilt", "a layer that is no relu")
    ids = block.ids[position]
    scale, offset, lost = np.ones(len(ids)), np.zeros(len(ids)), np.zeros(len(ids))
    for _ in range(_LONGEST):
        found = distinct(bounder.block_of(ids[ids >= 0]))
        maker = bounder.blocks[int(found[0])] if len(found) == 1 and (ids >= 0).all() else None
        if not isinstance(maker, Affine) or len(maker.terms) != 1 or maker.maximum is not None:
            raise Rejected("R18", "tilt", "neurons that do not read sums of one block")
        term, index = maker.terms[0], ids - maker.start
        lost = lost + abs(scale) * r.noise[0, ids]
        if maker.offset is not None:
            offset = offset + scale * maker.offset[index]
        if not isinstance(term, Pick):
            break
        ids = np.broadcast_to(term.ids, maker.size)[index]
        if term.factor is not None:
            scale = scale * np.broadcast_to(term.factor, maker.size)[index]
    else:
        raise Rejected("R18", "tilt", f"sums behind more than {_LONGEST} blocks")
    if not isinstance(term, Product | Entries):
        raise Rejected("R18", "tilt", "neurons that read no products")
    read, factor = _products(term, index)
    weight = scale[:, None] * factor
    inexact = (factor != 0) & ~(abs(weight) >= _SMALLEST)
    lost = np.where(inexact.any(axis=1), np.inf, lost)
    read = np.where((weight != 0) & (read >= 0), read, np.iinfo(np.int64).max)
    order = np.argsort(read, axis=1, kind="stable")
    read, weight = (np.take_along_axis(part, order, axis=1) for part in (read, weight))
    there = read < np.iinfo(np.int64).max
    if ((np.diff(read, axis=1) == 0) & there[:, 1:]).any() or not there.any(axis=1).all():
        raise Rejected("R18", "tilt", "a neuron that reads nothing, or a scalar twice")
    width = int(there.sum(axis=1).max())
    read, weight = np.where(there, read, -1)[:, :width], np.where(there, weight, 0.0)[:, :width]
    return Reads(read, weight, offset, lost)


def _products(term: Product | Entries, index: Array) -> tuple[Array, Array]:
    """Scalars and factors of some outputs of a term: (N, K) each, -1 and 0 for none."""
    if isinstance(term, Product):
        _, rows, depth = term.weight.shape
        if len(index) * depth > _MOST:
            raise Rejected("R18", "tilt", f"more than {_MOST} factors")
        group, rest = np.divmod(index, rows * term.ids.shape[2])
        row, place = np.divmod(rest, term.ids.shape[2])
        return term.ids[group, :, place], term.weight[group, row]
    order = np.argsort(term.out, kind="stable")
    first, last = (np.searchsorted(term.out[order], index, side) for side in ("left", "right"))
    depth = int((last - first).max(initial=0))
    if len(index) * depth > _MOST:
        raise Rejected("R18", "tilt", f"more than {_MOST} factors")
    at = first[:, None] + np.arange(depth)
    there = at < last[:, None]
    at = order[np.minimum(at, len(order) - 1)]
    return np.where(there, term.ids[at], -1), np.where(there, term.value[at], 0.0)
