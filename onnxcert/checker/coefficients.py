"""Rows of coefficients over the scalars of blocks, and how the terms of sums hand them on.

A row that is pulled back has coefficients for the scalars of one block after the other. A term of
sums turns those over what it makes into those over what it reads, and coefficients of one scalar
are added up in some order: rules R2 and R3 of `onnxcert.checker.bounds` count how many meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxcert.checker.bands import Bands
from onnxcert.checker.network import Array, Entries, Pick, Product, Term, distinct

_WIDE = 200
"""Rows shorter than this are not searched for zeros."""

_WINDOWS = 1 << 20
"""Float64 numbers that meet the images of some rows."""

_ADDING = 2
"""Copies of numbers that take as long as adding as many that were made for windows."""

_LEVELS = 32
"""Entries of one number that are added one by one."""


@dataclass(frozen=True, eq=False)
class Coefficients:
    """Rows over the scalars of a block.

    Rows that start at few neighbouring neurons of an image are zero at nearly all scalars.

    Attributes:
        values: (R, c), changed in place.
        used: (c,) the scalars of the block that they are over, increasing; all others have zero.
            None for all.
        size: how many scalars the block has.
    """

    values: Array
    used: Array | None
    size: int

    @classmethod
    def of(cls, values: Array, used: Array | None, size: int) -> Coefficients:
        """Rows over all scalars, unless these are many and less than half of them are used."""
        made = cls(values, used, size)
        narrow = used is None or (size >= _WIDE and 2 * len(used) < size)
        return made if narrow else cls(made.wide(), None, size)

    def wide(self) -> Array:
        """The rows over all scalars: (R, size)."""
        if self.used is None:
            return self.values
        made = np.zeros((len(self.values), self.size), self.values.dtype)
        made[:, self.used] = self.values
        return made

    def over(self, values: Array) -> Coefficients:
        """Other rows over all scalars of the block, (.., size)."""
        return Coefficients(values.reshape(-1, self.size), None, self.size)

    def narrowed(self) -> Coefficients:
        """Without columns of zeros, where these are most."""
        if self.values.shape[1] < _WIDE:
            return self
        some = np.flatnonzero(self.values.any(axis=0))
        if 2 * len(some) >= self.values.shape[1]:
            return self
        used = some if self.used is None else self.used[some]
        return Coefficients(self.values[:, some], used, self.size)

    def plus(self, values: Array, used: Array | None) -> Coefficients:
        """The sum with other rows (R, c), which may be made in place of these."""
        if used is None:
            return Coefficients(self.wide() + values, None, self.size)
        if self.used is None:
            self.values[:, used] += values
            return self
        place = np.searchsorted(self.used, used).clip(max=len(self.used) - 1)
        if (self.used[place] == used).all():
            self.values[:, place] += values
            return self
        both = distinct(np.concatenate([self.used, used]))
        made = np.zeros((len(values), len(both)), values.dtype)
        made[:, np.searchsorted(both, self.used)] = self.values
        made[:, np.searchsorted(both, used)] += values
        return Coefficients.of(made, both, self.size)


Pending = dict[int, Coefficients]
"""Block -> the rows over its scalars that are still to be pulled back; those of terms are added."""


class Tally:
    """Adds up entries that have the same number, but for -1, the constant zero.

    Attributes:
        targets: the numbers, sorted.
        most: how many entries the most frequent one has.
        count: of all entries.
    """

    def __init__(self, ids: Array) -> None:
        order = np.argsort(ids, kind="stable")
        order = order[np.count_nonzero(ids < 0) :]
        self.targets, firsts, counts = np.unique(ids[order], return_index=True, return_counts=True)
        self.most = int(counts.max(initial=1))
        self.order = order
        self.is_sorted = len(order) == len(ids) and bool((np.diff(ids) > 0).all())
        # The first entry of each number, the second, and so on: the frequent numbers come first.
        # A number with very many entries has the rest of them added in one go.
        rank = np.argsort(-counts, kind="stable")
        firsts, counts = firsts[rank], counts[rank]
        levels = range(min(self.most, _LEVELS))
        self.levels = [order[firsts[counts > level] + level] for level in levels]
        firsts, counts = firsts[counts > _LEVELS] + _LEVELS, counts[counts > _LEVELS] - _LEVELS
        spans = [
            np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)
        ]
        self.rest = order[np.concatenate([*spans, order[:0]])]
        self.starts = np.cumsum(counts) - counts
        self.place = np.argsort(rank)
        self.count = len(ids)

    @cached_property
    def grid(self) -> tuple[int, Array] | None:
        """Where entries (A, most, B) have a number for each (a, b): B, and for each number in order
        its place in that table; else None."""
        count = self.count
        if self.most == 1 or not self.most * len(self.targets) == len(self.order) == count:
            return None
        table = self.order.reshape(-1, self.most)  # of each number all entries
        first, stride = table[:, 0], int(table[0, 1] - table[0, 0])
        period = self.most * stride
        if count % period or (np.diff(table, axis=1) != stride).any():
            return None
        place = first // period * stride + first % period
        whole = (first % period < stride).all() and len(distinct(place)) == len(first)
        return (stride, place) if whole else None

    def of(self, values: Array) -> Array:
        """values (R, E) -> sums (R, targets)."""
        if self.most == 1:
            return values if self.is_sorted else values[:, self.order]
        if self.grid is not None:
            stride, place = self.grid
            sums = values.reshape(len(values), -1, self.most, stride).sum(axis=2)
            return np.asarray(sums.reshape(len(values), -1)[:, place])
        return self.of_columns(np.ascontiguousarray(values.T))

    def of_columns(self, values: Array) -> Array:
        """values (E, R) -> sums (R, targets): whole rows move faster than columns."""
        if self.most == 1:
            return np.ascontiguousarray((values if self.is_sorted else values[self.order]).T)
        made = values[self.levels[0]]
        for level in self.levels[1:]:
            made[: len(level)] += values[level]
        if len(self.rest):
            made[: len(self.starts)] += np.add.reduceat(values[self.rest], self.starts, axis=0)
        return np.ascontiguousarray(made[self.place].T)


def _phases(term: Product) -> tuple[Array, list[tuple[Array, Array]]]:
    """The numbers that a product sees, in parts that meet the same taps.

    A part is (factors, where), so that the coefficients of image[:, :, part] are factors . rows at
    positions ``where``. Of images under windows each number is there once, so that little is left
    to add up; but where windows hardly overlap, what they see is the image.

    Returns:
        The image (G, C, P), and for each part the factors (G, C, M T) and where (T, P').
    """
    (groups, m, depth), length = term.weight.shape, term.ids.shape[2]
    image, where = term.ids, np.arange(length)[:, None]
    if term.image is not None and term.where is not None:
        met = int(np.count_nonzero(term.where < length))
        if m * met < _ADDING * depth * length:
            image, where = term.image, term.where
    weight = term.weight.reshape(groups, m, -1, where.shape[1]).swapaxes(1, 2)
    met, order, parts = where < length, [], []
    left = met.any(axis=1)
    while left.any():
        used = met[np.argmax(left * met.sum(axis=1))]
        mine = np.flatnonzero(left & ~(met & ~used).any(axis=1))
        factors = weight[..., used].reshape(groups, image.shape[1], -1)
        parts.append((factors, where[mine][:, used].T))
        order.append(mine)
        left[mine] = False
    return image[:, :, np.concatenate([*order, np.arange(0)])], parts


class Part:
    """A term made ready for the passes.

    Args:
        term: factors and the scalars they multiply.
        ends: one more than the last scalar of every block.
    """

    def __init__(self, term: Term, ends: Array) -> None:
        self.term, self.ids = term, term.ids
        self.factors: Array = np.ones(1)
        self.plain = False
        numbers = term.ids
        if isinstance(term, Product):
            self.ids = np.ascontiguousarray(term.ids.transpose(0, 2, 1))  # (G, L, K)
            self.factors = term.weight
            self.image, self.phases = _phases(term)
            self.sees_ids = np.array_equal(self.image, term.ids)
            numbers = self.image
        elif isinstance(term, Entries):
            self.factors = term.value
            self.by_output = np.argsort(term.out, kind="stable")
            self.outputs, self.starts = np.unique(term.out[self.by_output], return_index=True)
        elif isinstance(term, Pick) and term.factor is not None:
            self.factors = term.factor
        else:
            self.plain = True
        self.absolute = abs(self.factors)
        self.error = None if term.error is None else np.broadcast_to(term.error, self.factors.shape)
        flat = self.ids.ravel()
        span = slice(int(flat[0]), int(flat[-1]) + 1)
        whole = flat[0] >= 0 and np.array_equal(flat, np.arange(span.start, span.stop))
        self.span = span if whole else None
        # Equal numbers are added up; then each block that is read gets its share of the columns.
        self.tally = Tally(numbers.ravel())
        # How many numbers are added up to one coefficient.
        self.fan = self.tally.most
        if isinstance(term, Product):
            self.fan *= term.weight.shape[1] * max(
                (len(where) for _, where in self.phases), default=1
            )
        self.depth = term.weight.shape[2] if isinstance(term, Product) else len(flat)
        # How many products are added up to one number of the forward pass.
        self.added = self.depth if isinstance(term, Product) else 1
        if isinstance(term, Entries):
            self.added = int(np.bincount(term.out).max(initial=1))
        self.ends = ends
        self.reads = [int(k) for k in distinct(self._block_of(self.tally.targets))]

    def apply(self, x: Array, factors: Array, size: int) -> Array:
        """factors . x at the term's outputs: x (B, scalars) -> (B, size)."""
        read = x[:, self.span].reshape(len(x), *self.ids.shape) if self.span else x[:, self.ids]
        if isinstance(self.term, Product):
            groups = [
                read[:, g].reshape(-1, read.shape[-1]) @ factors[g].T for g in range(len(factors))
            ]
            made = np.stack([y.reshape(len(x), read.shape[2], -1) for y in groups], axis=1)
            return made.transpose(0, 1, 3, 2).reshape(len(x), size)
        if isinstance(self.term, Entries):
            made = np.zeros((len(x), size), x.dtype)
            products = (read * factors)[:, self.by_output]
            made[:, self.outputs] = np.add.reduceat(products, self.starts, axis=1)
            return made
        return read * factors

    @cached_property
    def bands(self) -> Bands:
        """Where a matrix is not zero."""
        return Bands(self.factors[0])

    def push(self, pending: Pending, a: Array, used: Array | None = None) -> None:
        """Add a . factors to the rows over the blocks that the term reads.

        Args:
            pending: takes them.
            a: (R, n) over the outputs, or over those that are ``used`` and zero elsewhere.
            used: increasing.
        """
        ids, factors, tally = self.term.ids, self.factors, self.tally
        if used is not None and not len(used):
            return
        if isinstance(self.term, Product):
            if ids.shape[2] > 1:
                self._push_windows(pending, a, used)
                return
            if used is None and len(factors) == 1:
                self._share(pending, tally.of(self.bands.after(a)), tally.targets)
                return
            if used is not None and len(factors) == 1:
                factors = factors[:, used]
            elif used is not None:
                narrow, a = a, np.zeros((len(a), factors.shape[0] * factors.shape[1]))
                a[:, used] = narrow
            rows = a.reshape(len(a), -1, factors.shape[1]).swapaxes(0, 1)
            made = (rows @ factors).swapaxes(0, 1).reshape(len(a), -1)
        elif isinstance(self.term, Entries):
            out = self.term.out
            if used is not None:
                place = np.searchsorted(used, out).clip(max=len(used) - 1)
                there = used[place] == out
                out, factors, tally = place[there], factors[there], Tally(ids[there])
            made = a[:, out] * factors
        else:
            if used is not None:
                tally = Tally(ids[used])
                factors = factors if self.plain else factors[used]
            made = a if self.plain else a * factors
        self._share(pending, tally.of(made), tally.targets)

    def _push_windows(self, pending: Pending, a: Array, used: Array | None) -> None:
        """As `push` for a product of more than one position."""
        (groups, m, _), length = self.factors.shape, self.term.ids.shape[2]
        if m == 1 and used is None and self.sees_ids:
            spread = a.reshape(len(a), groups, 1, length) * self.factors[:, 0, :, None]
            self._share(pending, self.tally.of(spread.reshape(len(a), -1)), self.tally.targets)
            return
        keep = np.ones(length, bool)
        if used is not None:
            keep[:] = False
            keep[used % length] = True
        count = int(keep.sum())
        number = np.full(length + 1, count)  # behind the positions that are kept stands a zero
        number[:-1][keep] = np.arange(count)
        if used is not None:
            narrow, a = a, np.zeros((len(a), groups * m * count))
            a[:, used // length * count + number[used % length]] = narrow
        a = a.reshape(len(a), groups, m, count)
        image, tally, places = self.image, self.tally, [number[where] for _, where in self.phases]
        if count < length:
            met = [(place < count).any(axis=0) for place in places]
            places = [place[:, some] for place, some in zip(places, met, strict=True)]
            image = image[:, :, np.concatenate(met)]
            tally = Tally(image.ravel())
        if not image.size:
            return
        step = max(1, _WINDOWS // (groups * m * max(place.size for place in places)))
        parts = []
        for start in range(0, len(a), step):
            # Rows last: one product of contiguous matrices for each group.
            part = a[start : start + step].transpose(1, 2, 3, 0)
            rows = np.zeros((groups, m, count + 1, part.shape[3]))
            rows[:, :, :count] = part
            made = [
                factors @ rows.take(place, axis=2).reshape(groups, factors.shape[2], -1)
                for (factors, _), place in zip(self.phases, places, strict=True)
            ]
            made = [x.reshape(*image.shape[:2], -1, part.shape[3]) for x in made]
            whole = made[0] if len(made) == 1 else np.concatenate(made, axis=2)
            parts.append(tally.of_columns(whole.reshape(image.size, -1)))
        self._share(pending, np.concatenate(parts), tally.targets)

    def _block_of(self, ids: Array) -> Array:
        """Blocks of increasing scalars."""
        return np.searchsorted(self.ends, ids, side="right")

    def over(self, inputs: Array) -> Array | None:
        """Factors (m, I) of some inputs (I,), increasing; None unless the term is one matrix over
        inputs that has each of them once."""
        matrix = isinstance(self.term, Product) and self.factors.shape[0] == self.ids.shape[1] == 1
        if not matrix or self.reads != [0] or self.tally.most > 1:
            return None
        ids = self.ids.ravel()
        there = np.isin(ids, inputs)
        made = np.zeros((self.factors.shape[1], len(inputs)))
        made[:, np.searchsorted(inputs, ids[there])] = self.factors[0][:, there]
        return made

    def push_units(self, pending: Pending, index: Array, sign: Array, size: int) -> None:
        """As `push` for rows that are ``sign`` at one of ``size`` outputs each: (R,) both."""
        if isinstance(self.term, Product) and self.factors.shape[0] == self.ids.shape[1] == 1:
            made = self.tally.of(sign[:, None] * self.factors[0][index])
            self._share(pending, made, self.tally.targets)
            return
        used = distinct(index) if size >= _WIDE else np.arange(size)
        rows = np.zeros((len(index), len(used)))
        rows[np.arange(len(index)), np.searchsorted(used, index)] = sign
        units = Coefficients.of(rows, used, size)
        self.push(pending, units.values, units.used)

    def _share(self, pending: Pending, values: Array, targets: Array) -> None:
        """Add values (R, T) to the rows at some of the scalars that the term reads, sorted."""
        block = self._block_of(targets)
        for k in self.reads:
            first, last = np.searchsorted(block, [k, k + 1])
            if first < last:
                size = int(self.ends[k] - (self.ends[k - 1] if k else 0))
                part = values if last - first == values.shape[1] else values[:, first:last]
                add(pending, k, part, targets[first:last] - self.ends[k] + size, size)


def add(pending: Pending, k: int, values: Array, used: Array | None, size: int) -> None:
    """Add rows (R, c) over some of the ``size`` scalars of block ``k``; see `Coefficients`."""
    if used is not None and len(used) == size:
        used = None
    pending[k] = (
        pending[k].plus(values, used) if k in pending else Coefficients.of(values, used, size)
    )


def times(rows: Array, vector: Array) -> Array:
    """rows (B, R, n) . vector (B or 1, n) -> (B, R)."""
    if len(vector) == 1:
        return np.asarray(rows @ vector[0])
    return np.asarray(np.matmul(rows, vector[:, :, None])[:, :, 0])
