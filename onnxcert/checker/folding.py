"""Rule R22: folded networks.

On a set S with bounds, a relu whose scalar is never negative is the identity there, and one whose
scalar is never positive is zero. So for the scalars u_i that the other relus read, and for the
outputs,

    u_i = A_i x + sum_j B_ij max(u_j, 0) + c_i + e_i,    |e_i| <= E_i, on S        (j before i),

with *any* floats A, B and c for which E_i is large enough. They are made by pulling the form u_i
back (R2, R3, R5) to the inputs and to relus that are unstable on S, where it ends. Each step
replaces a form by one that differs from it by a constant and, at every point of S, by at most what
rules R2 and R5 charge for it: the charges, summed up, are E_i. The line of a stable relu is the
relu, so that nothing else is lost; if it is not, the network is not folded.

The right sides are a network of affine blocks and relus, with offsets that are off by up to E_i
(`Affine.offset_error`). Every x in S has an execution of it, with some offsets that far from c, in
which its scalars and outputs are those of the network that was folded. A `Bounder` bounds all of
them; so a case that is refuted for the folded network over a part of S, with bounds of the u_i that
hold there, is refuted for the network. Over executions in binary32 it is not: nobody executes the
folded network.

Where a folded network is folded again, the row of each of its scalars takes lower lines of its own
(`onnxcert.checker.row_slopes`), slope 0 or 1, at relus that are unstable: both have no offset, so
that only the coefficient differs from that of rule R4, and both are at most as steep as the relu,
which is what such a network charges for roundings there. Which they are makes bounds better or
worse, not wrong, and they hold on all parts of the set, where a relu that has become stable has its
one line.

Forms over single scalars are pulled back over all layers before in one block
(`onnxcert.checker.layered`). Scalars stand side by side where they see near parts of an image, so
that products leave out zeros (`onnxcert.checker.bands`).

Only networks of sums and of relus that read them are folded, over boxes. What a certificate asks
for elsewhere is not done; nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxcert.checker import curves
from onnxcert.checker.bounds import SLACK, Bounder, Relaxation, gamma
from onnxcert.checker.coefficients import Coefficients, Pending, times
from onnxcert.checker.curves import TINY, Array
from onnxcert.checker.layered import Layer, Layered
from onnxcert.checker.network import Affine, Block, Curve, Network, Product
from onnxcert.checker.row_slopes import learn

_NUMBERS = 1 << 20
"""Float64 numbers in a row block."""


@dataclass(frozen=True, eq=False)
class Folded:
    """A network over the unstable neurons of another one on a set.

    Attributes:
        bounder: bounds for it.
        origin: (scalars,) the other's scalar that each of its own stands for.
        place: (K,) which of the other's ``known_ids`` its own are.
    """

    bounder: Bounder
    origin: Array
    place: Array


def possible(bounder: Bounder, r: Relaxation) -> bool:
    """Whether a network can be folded on sets."""
    if bounder.executed or r.balls is not None:
        return False
    for block in bounder.blocks[1:]:
        if isinstance(block, Curve):
            makers = np.unique(bounder.block_of(block.ids[block.ids >= 0])).tolist()
            sums = all(isinstance(bounder.blocks[k], Affine) for k in makers)
            if block.kind != "relu" or not sums:
                return False
        elif not isinstance(block, Affine):
            return False
    return True


def fold(bounder: Bounder, r: Relaxation, *, again: bool = False) -> Folded | None:
    """Fold a network on a set.

    Args:
        bounder: of the network.
        r: bounds and lines on the set (a batch of one), where that is `possible`.
        again: whether it is a folded network already; then its rows get slopes of their own.

    Returns:
        None where a line of a stable relu is not the relu, or arithmetic gave no numbers.
    """
    maker = _Maker(bounder, r)
    for k, block in enumerate(bounder.blocks):
        if isinstance(block, Curve) and not (r.ends(k) or maker.add(k, block)):
            return None
    return maker.finish(again=again)


def _unstable(r: Relaxation, block: Curve) -> Array:
    """Which neurons of a curve are unstable, (B, n)."""
    return np.asarray(curves.unstable(block.kind, r.lower[:, block.ids], r.upper[:, block.ids]))


@dataclass(eq=False)
class _Maker:
    """The blocks of a folded network.

    Attributes:
        bounder, r: of the network that is folded.
        blocks: those that are done.
        bent: relu -> (n,) its unstable neurons, neighbours side by side.
        columns: block of the other network -> the scalars here that forms over it end at.
        origin: for each block the scalars of the other network that its own stand for.
    """

    bounder: Bounder
    r: Relaxation
    blocks: list[Block] = field(default_factory=list)
    bent: dict[int, Array] = field(default_factory=dict)
    columns: dict[int, Array] = field(default_factory=dict)
    origin: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = self.bounder.network.n_inputs
        self.columns[0] = np.arange(n)
        self._append(Block(0, n, self.bounder.blocks[0].name), np.arange(n))

    @property
    def _size(self) -> int:
        return self.blocks[-1].start + self.blocks[-1].size if self.blocks else 0

    def _append(self, block: Block, origin: Array) -> None:
        self.blocks.append(block)
        self.origin.append(origin)

    def add(self, k: int, block: Curve) -> bool:
        """Add the unstable neurons of a relu and what they read; False if that is impossible."""
        bent = _unstable(self.r, block)[0]
        mean, half, middle, _ = (part[0][~bent] for part in self.r.curves[k])
        if half.any() or middle.any() or not np.isin(mean, (0.0, 1.0)).all():
            return False
        bent = np.flatnonzero(bent)
        place = self.bounder.place[block.ids[bent]]
        self.bent[k] = bent = bent[np.argsort(place, kind="stable")]
        if not len(bent):
            return True
        ids = block.ids[bent]
        affine = self._affine(ids, f"{block.name}/read")
        if affine is None:
            return False
        self._append(affine, ids)
        read, start = np.arange(affine.start, affine.start + len(ids)), self._size
        self.columns[k] = np.arange(start, start + len(ids))
        curve = Curve(start, len(ids), block.name, "relu", read, None, block.label)
        self._append(curve, block.start + bent)
        return True

    def _affine(self, ids: Array, name: str) -> Affine | None:
        """The block for some scalars of the other network."""
        read = np.concatenate(list(self.columns.values()))
        weight = np.zeros((1, len(ids), len(read)))
        offset, error = np.zeros(len(ids)), np.zeros(len(ids))
        for some in self._parts(ids):
            found, offset[some], error[some] = self._pull(ids[some])
            column = 0
            for k, scalars in self.columns.items():
                if k in found:
                    weight[0, some, column : column + len(scalars)] = found[k]
                column += len(scalars)
        if not (np.isfinite(offset + error).all() and np.isfinite(weight).all()):
            return None
        term = Product(read[None, :, None], weight=weight)
        return Affine(self._size, len(ids), name, (term,), offset, error, 0)

    def _parts(self, ids: Array) -> Iterator[Array]:
        """Scalars in groups of one block each and of bounded size, those at one place together."""
        bounder = self.bounder
        of, step = bounder.block_of(ids), max(1, _NUMBERS // bounder.widest)
        for k in np.unique(of).tolist():
            here = np.flatnonzero(of == k)
            here = here[np.argsort(bounder.place[ids[here]], kind="stable")]
            yield from (here[i : i + step] for i in range(0, len(here), step))

    def _pull(self, ids: Array) -> tuple[dict[int, Array], Array, Array]:
        """Rows of scalars (R,) of a block over the inputs and over unstable relus.

        Returns:
            The rows by block, the constants (R,), and what both may be off on the set (R,).
        """
        bounder, r = self.bounder, self.r
        bounder.look_at_the_clock()
        block = bounder.blocks[int(bounder.block_of(ids[:1])[0])]
        pending: Pending = {}
        for part in bounder.onward[int(bounder.block_of(ids[:1])[0])]:
            part.push_units(pending, ids - block.start, np.ones(len(ids)), block.size)
        offset = bounder.offsets[int(bounder.block_of(ids[:1])[0])]
        constant = np.zeros(len(ids)) if offset is None else 1.0 * offset[ids - block.start]
        error, size, found = r.noise[0, ids] * SLACK, abs(constant), dict[int, Array]()
        for k in range(max(pending, default=0), 0, -1):
            if k not in pending:
                continue
            rows = pending.pop(k).wide()
            block = bounder.blocks[k]
            if k in r.fixed:
                moved, lost = bounder.end(r, block, rows[None], r.fixed[k])
                constant, error, size = constant + moved[0], error + lost[0], size + abs(moved[0])
                if r.ends(k):
                    continue
                rows = np.where(r.fixed[k], 0.0, rows)
            if isinstance(block, Curve):
                mean, _, _, gap = r.curves[k]
                found[k] = rows[:, self.bent[k]]
                rows = rows.copy()
                rows[:, self.bent[k]] = 0.0
                error = error + times(abs(rows)[None], gap)[0]
                rows = rows * mean
            elif isinstance(block, Affine):
                if k not in bounder.deferred:
                    noise = r.noise[:, block.start : block.start + block.size]
                    error = error + times(abs(rows)[None], noise)[0]
                if (offset := bounder.offsets[k]) is not None:
                    constant = constant + (moved := rows @ offset)
                    size = size + abs(moved)
            narrow = Coefficients(rows, None, block.size).narrowed()
            bounder.hand_on(k, [narrow.values], narrow.used, pending)
        if 0 in pending:
            found[0] = pending[0].wide()
        error = error * SLACK + gamma(8 * len(bounder.blocks) + 16) * size + TINY
        # Coefficients that underflow are off by up to 2^-1074 for each product in them.
        return found, constant, error + 1e-300 * r.reach.sum()

    def _layered(self, *, again: bool) -> Layered:
        """The folded network without its outputs; with slopes of rows learned on the set."""
        layers, known = list[Layer](), list[tuple[Array, Array]]()
        for affine, ids in zip(self.blocks[1::2], self.origin[1::2], strict=True):
            assert isinstance(affine, Affine)
            (term,) = affine.terms
            assert isinstance(term, Product)
            assert affine.offset is not None
            layers.append(Layer(term.weight[0], affine.offset))
            known.append((self.r.lower[0, ids], self.r.upper[0, ids]))
        if not again:
            return Layered(layers, ())
        n = self.bounder.network.n_inputs
        box = self.r.lower[0, :n], self.r.upper[0, :n]
        return Layered(layers, learn(layers, known, *box, self.bounder.look_at_the_clock))

    def finish(self, *, again: bool) -> Folded | None:
        """Add the outputs."""
        network = self.bounder.network
        ids, numbers = np.unique(network.output, return_inverse=True)
        made = self.bounder.block_of(ids)
        if not all(isinstance(self.bounder.blocks[k], Affine) for k in made.tolist()):
            return None
        layered = self._layered(again=again)
        affine = self._affine(ids, "outputs")
        if affine is None:
            return None
        self._append(affine, ids)
        output = affine.start + numbers
        folded = Network(
            self.blocks,
            network.inputs,
            network.n_inputs,
            output,
            self._size,
            network.outputs,
            False,
        )
        expired = self.bounder.expired
        bounder = Bounder(folded, executed=False, expired=expired, joined=False, layered=layered)
        known, origin = self.bounder.known_ids, np.concatenate(self.origin)
        place = np.searchsorted(known, wanted := origin[bounder.known_ids])
        if not np.isin(wanted, known).all():
            return None
        return Folded(bounder, origin, place)
