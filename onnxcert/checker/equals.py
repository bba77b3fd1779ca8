"""Rule R23: scalars that are equal or opposite, over the reals.

Sums with the same offset and the same factors of the same scalars are equal, and either may be
read in the place of the other. Of relus, with u = -v,

    relu(v) = relu(u) - u,

so that a sum with w relu(v) has the value of the same sum with w relu(u) - w u in its place, where
u itself is a sum and may be written out. A relu of a constant is a constant. All three are
identities of real numbers; executions round every relu and every sum by itself and are left alone.

A network is rewritten from its first block to its last. A block of sums is written down by factors
of scalars, those of equal scalars together; then its own sums are compared, and so are those that
relus read. Every scalar keeps its number and its value over the reals, and so do neurons their
positions: a block of sums reads others than before, and what it is rewritten from remains where it
is. What nothing reads any more goes with rule R21. So what holds for the new network, over the
reals, holds for that of the file.

Rounding. Factors of one scalar are added up only where that is exact: all are multiples of some
power of two, and the sum of their absolute values is below 2^53 times that, so every partial sum in
any order is a multiple of it that float64 has. The product of a factor w and one of u is exact if
both have at most 26 bits, and neither is so large or so small that the product could overflow or
lose bits. Where anything of that is not so, or a block would have more factors than it and that of
u had, it stays as it was; so do blocks with factors that are known approximately only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcert.checker.network import (
    Affine,
    Array,
    Block,
    Curve,
    Entries,
    Pick,
    Product,
    Term,
    pays_sparse,
)

_MOST = 1 << 22
"""Factors of a block that is looked at."""

_BITS = 26
"""Of a factor; the product of two such numbers is exact."""


def merged_equals(blocks: Sequence[Block]) -> list[Block]:
    """The blocks after this rule; the same ones where nothing is equal or opposite."""
    maker = _Merging(list(blocks))
    for k, block in enumerate(blocks):
        if isinstance(block, Affine):
            maker.take_sums(k, block)
        elif isinstance(block, Curve) and block.kind == "relu":
            maker.take_relus(block)
    return maker.blocks


@dataclass(frozen=True, eq=False)
class _Sums:
    """Exact sums of one block by entries, each place once, in the order of the sums.

    Attributes:
        ids: (E,) scalars, -1 for the constant one: its entry is the offset.
        out: (E,) numbers of the sums, increasing; for one sum the scalars increase.
        value: (E,) factors, none of them zero.
        size: how many sums there are.
    """

    ids: Array
    out: Array
    value: Array
    size: int

    @classmethod
    def added(cls, ids: Array, out: Array, value: Array, size: int) -> _Sums | None:
        """From entries of which some have one place; None if adding those up is not exact."""
        order = np.lexsort((ids, out))
        ids, out, value = ids[order], out[order], value[order]
        first = np.ones(len(ids), bool)
        first[1:] = (np.diff(ids) != 0) | (np.diff(out) != 0)
        starts = np.flatnonzero(first)
        if len(starts) < len(ids):
            unit = np.where(value == 0, np.inf, _unit(value))
            size_of_each = np.add.reduceat(abs(value), starts) * (1 + 2.0**-20)
            if not (size_of_each < 2.0**53 * np.minimum.reduceat(unit, starts)).all():
                return None
            value = np.add.reduceat(value, starts)
            ids, out = ids[starts], out[starts]
        there = value != 0
        return cls(ids[there], out[there], value[there], size)

    @classmethod
    def of(cls, block: Affine) -> _Sums | None:
        """Those of a block, if its factors are exact and there are no windows."""
        if block.maximum is not None or not block.exact:
            return None
        parts = []
        for term in block.terms:
            part = _entries(term)
            if part is None or len(part[0]) > _MOST or not np.isfinite(part[2]).all():
                return None
            parts.append(part)
        if block.offset is not None:
            offset = np.broadcast_to(block.offset, block.size)
            if not np.isfinite(offset).all():
                return None
            there = np.flatnonzero(offset)
            parts.append((np.full(len(there), -1), there, offset[there]))
        if not parts:
            return None
        ids, out, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls.added(ids, out, value, block.size)

    def terms(self) -> tuple[tuple[Term, ...], Array | None]:
        """Those of a block, and its offset."""
        inner = self.ids >= 0
        offset = np.zeros(self.size)
        offset[self.out[~inner]] = self.value[~inner]
        some = offset if offset.any() else None
        if not inner.any():
            return (), some
        ids, out, value = self.ids[inner], self.out[inner], self.value[inner]
        read, column = np.unique(ids, return_inverse=True)
        if pays_sparse(self.size * len(read), len(ids)):
            return (Entries(ids, out, value),), some
        weight = np.zeros((1, self.size, len(read)))
        weight[0, out, column] = value
        return (Product(read[None, :, None], weight),), some

    def groups(self, *, signed: bool) -> tuple[Array, Array]:
        """For each sum the first that is equal, or opposite if ``signed``; 1 or -1 for which."""
        counts = np.bincount(self.out, minlength=self.size)
        starts = np.cumsum(counts) - counts
        of, sign = np.arange(self.size), np.ones(self.size)
        for count in np.unique(counts):
            some = np.flatnonzero(counts == count)
            entry = starts[some][:, None] + np.arange(count)
            ids, value = self.ids[entry], self.value[entry]
            if signed and count:
                sign[some] = np.sign(value[:, 0])
            key = np.concatenate([ids, sign[some][:, None] * value], axis=1)
            _, first, number = np.unique(key, axis=0, return_index=True, return_inverse=True)
            of[some] = some[first[number.ravel()]]
        return of, sign * sign[of]

    @property
    def constants(self) -> Array:
        """What sums of nothing but an offset are, NaN for the others, (n,)."""
        made = np.zeros(self.size)
        made[self.out[self.ids < 0]] = self.value[self.ids < 0]
        made[self.out[self.ids >= 0]] = np.nan
        return made

    def rows(self, which: Array) -> tuple[Array, Array]:
        """The entries of some sums (N,), one sum after the other, and of which of them each is."""
        counts = np.bincount(self.out, minlength=self.size)
        starts, times = (np.cumsum(counts) - counts)[which], counts[which]
        each = np.repeat(np.arange(len(which)), times)
        entry = starts[each] + np.arange(len(each)) - (np.cumsum(times) - times)[each]
        return entry, each


def _unit(value: Array) -> Array:
    """The largest powers of two that numbers are multiples of."""
    mantissa, exponent = np.frexp(value)
    whole = (mantissa * 2.0**53).astype(np.int64)
    return np.asarray(np.ldexp((whole & -whole).astype(float), exponent - 53))


def _short(value: Array) -> bool:
    """Whether numbers have at most so many bits that no product of two is rounded or lost."""
    size = abs(value[value != 0])
    few = size <= _unit(size) * 2.0**_BITS
    return bool((few & (size < 2.0**200) & (size > 2.0**-200)).all())


def _entries(term: Term) -> tuple[Array, Array, Array] | None:
    """Scalars, sums and factors of a term, if it is a matrix or picks scalars."""
    if isinstance(term, Product) and term.is_matrix and term.weight.size <= _MOST:
        out, column = np.nonzero(term.weight[0])
        ids, value = term.ids[0, column, 0], term.weight[0, out, column]
    elif isinstance(term, Entries):
        ids, out, value = term.ids, term.out, term.value
    elif isinstance(term, Pick):
        out = np.arange(len(term.ids))
        ids, value = term.ids, np.ones(len(out))
        value = value if term.factor is None else np.broadcast_to(term.factor, value.shape)
    else:
        return None
    there = ids >= 0  # -1 is the constant zero
    return ids[there], out[there], value[there]


@dataclass(eq=False)
class _Merging:
    """Blocks while they are rewritten.

    Attributes:
        blocks: those that there are now.
        sums: number of a block -> its sums, if they were looked at.
        same: (S + 1,) the first of equal scalars; the last, the constant zero, is -1.
        source: (S + 1,) of relus that are the first one less their number: that scalar, else -1.
        constant: (S + 1,) what relus of constants are, NaN for all others.
    """

    blocks: list[Block]

    def __post_init__(self) -> None:
        self.ends = np.array([block.start + block.size for block in self.blocks])
        self.sums: dict[int, _Sums] = {}
        self.same = np.append(np.arange(self.ends[-1]), -1)
        self.source = np.full(len(self.same), -1)
        self.constant = np.full(len(self.same), np.nan)
        self.begun = False
        # As good as random; NumPy's generators would take as long to load as a small check.
        self.point = np.append(np.sin(12.9898 * np.arange(self.ends[-1])) * 43758.5453 % 1.0, 0.0)

    def _may_repeat(self, block: Affine) -> bool:
        """Whether sums may be equal or opposite: they are so where the scalars are some numbers."""
        size = np.sort(abs(block.values(self.point)))
        return bool((np.diff(size) <= 1e-12 * size.max(initial=0.0)).any())

    def take_sums(self, k: int, block: Affine) -> None:
        """Rewrite a block, and compare its sums."""
        made = _Sums.of(block) if self.begun or self._may_repeat(block) else None
        if made is None:
            return
        found = self._read_first(made)
        if found is not None:
            made, (terms, offset) = found, found.terms()
            self.blocks[k] = replace(block, terms=terms, offset=offset)
        self.sums[k] = made
        of, _ = made.groups(signed=False)
        if (of != np.arange(block.size)).any():
            self.begun = True
            self.same[block.start : block.start + block.size] = block.start + of

    def take_relus(self, block: Curve) -> None:
        """Find relus of equal, opposite and constant numbers."""
        ids = block.ids
        k = int(np.searchsorted(self.ends, ids.max(initial=0), side="right"))
        start = self.blocks[k].start
        if k not in self.sums or ids.min(initial=start) < start:
            return
        sums, ids = self.sums[k], ids - start
        of, sign = sums.groups(signed=True)
        _, first, number = np.unique(of[ids], return_index=True, return_inverse=True)
        first = first[number]
        mirrored = sign[ids] != sign[ids[first]]
        constant = sums.constants[ids]
        if (first == np.arange(block.size)).all() and np.isnan(constant).all():
            return
        self.begun = True
        span = slice(block.start, block.start + block.size)
        self.same[span] = block.start + first
        self.source[span] = np.where(mirrored, start + ids[first], -1)
        self.constant[span] = np.maximum(constant, 0.0)

    def _read_first(self, made: _Sums) -> _Sums | None:
        """Sums over the first of equal scalars; None if they are so, or it is not exact."""
        inner = made.ids >= 0
        ids, out, value = made.ids[inner], made.out[inner], made.value[inner]
        constant = self.constant[ids]
        fixed, mirrored = ~np.isnan(constant), self.source[ids] >= 0
        mirrored &= ~fixed
        if not fixed.any() and not mirrored.any() and (self.same[ids] == ids).all():
            return None
        times = np.where(fixed, constant, 1.0)
        parts = [
            (made.ids[~inner], made.out[~inner], made.value[~inner]),
            (np.where(fixed, -1, self.same[ids]), out, value * times),
        ]
        most = len(made.ids)
        factors = [value[fixed], times]
        source, out, value = self.source[ids[mirrored]], out[mirrored], value[mirrored]
        for k in np.unique(np.searchsorted(self.ends, source, side="right")).tolist():
            sums, start = self.sums[k], self.blocks[k].start
            here = np.flatnonzero((source >= start) & (source < self.ends[k]))
            entry, each = sums.rows(source[here] - start)
            each = here[each]
            parts.append((sums.ids[entry], out[each], -value[each] * sums.value[entry]))
            factors += [value[here], sums.value[entry]]
            most += len(sums.ids)
        if not all(map(_short, factors)):
            return None
        ids, out, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        found = _Sums.added(ids, out, value, made.size)
        return None if found is None or len(found.ids) > most else found
