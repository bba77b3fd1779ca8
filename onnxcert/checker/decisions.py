"""Whole numbers, truths, comparisons, and tensors that whole inputs look up in a table.

Truths are 0 or 1. All definitions here are equalities over the reals for every input, and
executors compare and move numbers without rounding, so nothing is charged for that:

* x > y where relu(sign(x - y)) is 1, x == y where 1 - |sign(x - y)| is. Of whole numbers 1/2 may be
  subtracted before, and x == y where relu(1 - |x - y|) is 1.
* A cast of x to an integer is floor(x) for x >= 0, floor(relu(x)) - floor(relu(-x)) for any x.
* A whole number z from a to b is i where the hat relu(1 - |z - i|) is 1, and several have certain
  values where relu(sum of their hats - their number + 1) is 1. Exactly one combination of values is
  met, so a tensor T of each is T_0 + sum over combinations of that indicator times (T - T_0).
* Of entries i < j the first largest is not i where r = [x_j > x_i], and not j where it is 0. So the
  place is i where relu(1 - sum of r over pairs (i, .) - sum of 1 - r over pairs (., i)) is 1.

Limits of inputs are those of the specification, in all of its cases: what is read holds there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcert.checker.builder import MINUS, ONE, Builder, Known, calculated, exact
from onnxcert.checker.network import Array, Entries, Product, need

_MOST_COMBINATIONS, _MOST_PAIRS = 1 << 14, 1 << 16
_LARGEST = 2.0**31
"""Executors may make anything of larger numbers in a cast to 32-bit integers."""

_MOST_SUMS = 9
"""Constants are at most 2^53, places and casts less. A sum doubles that at most, so that no 64-bit
integer overflows within so many of them."""

WHOLE_TYPES = ("int32", "int64")

Key = tuple[int, int, int]
"""A scalar that is a whole number, and the least and the largest that it may be."""


@dataclass(frozen=True, eq=False)
class Table:
    """A constant for each combination of some whole numbers.

    Attributes:
        keys: the last one counts fastest.
        rows: the different constants, exact and of one element type.
        number: of each combination's constant among them.
    """

    keys: tuple[Key, ...]
    rows: Sequence[Array]
    number: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The ONNX shape of the first; see `lookup`."""
        return self.rows[0].shape


def _counts(keys: Sequence[Key]) -> list[int]:
    return [high - low + 1 for _, low, high in keys]


def _table(keys: tuple[Key, ...], rows: Iterable[Array]) -> Known | Table:
    """From the constants of all combinations; a constant where all are the same."""
    known: dict[Any, int] = {}
    different, number = list[Array](), list[int]()
    for row in rows:
        number.append(known.setdefault((row.shape, row.tobytes()), len(different)))
        if number[-1] == len(different):
            different.append(row)
    return Known(different[0]) if len(different) == 1 else Table(keys, different, np.array(number))


def evaluated(operands: Sequence[Any], node: Callable[[list[Any]], Any]) -> Known | Table:
    """What a node makes of tables and constants, one combination after the other."""
    tables = [x for x in operands if isinstance(x, Table)]
    keys = tuple(dict.fromkeys(key for x in tables for key in x.keys))
    need(math.prod(_counts(keys)) <= _MOST_COMBINATIONS, "too many combinations of whole inputs")
    grid = np.indices(_counts(keys)).reshape(len(keys), -1)
    numbers = []
    for x in tables:
        own = tuple(grid[keys.index(key)] for key in x.keys)
        numbers.append(x.number[np.ravel_multi_index(own, _counts(x.keys))])
    different, place = np.unique(np.stack(numbers), axis=1, return_inverse=True)
    rows = []
    for column in different.T:
        own_row = iter(Known(x.rows[k]) for x, k in zip(tables, column, strict=True))
        made = node([next(own_row) if isinstance(x, Table) else x for x in operands])
        need(isinstance(made, Known), "several tensors that whole inputs decide")
        rows.append(np.asarray(exact(made)))
    return _table(keys, (rows[k] for k in place.ravel()))


def lookup(net: Builder, x: Table, hats: dict[Key, Array]) -> Array:
    """The numbers of a tensor that is looked up; ``hats`` are those made so far.

    T_0 is the constant of more than half of the combinations if there is one, else what two of
    three combinations have in common.
    """
    need(len({row.shape for row in x.rows}) == 1, "a shape that depends on the input")
    rows = np.stack([Known(row).numbers().value.ravel() for row in x.rows])
    counts = np.bincount(x.number)
    base = rows[counts.argmax()]
    if 2 * counts.max() <= len(x.number):
        first, second, third = rows[x.number[len(x.number) * np.arange(1, 4) // 4]]
        base = np.where(first == third, first, second)
    difference = rows - base
    part = rows - difference
    lost = (rows - (difference + part)) + (part - base)
    need(not lost.any(), "a table of numbers of very different size")
    changed = [np.flatnonzero(row) for row in difference]
    position = np.concatenate([changed[k] for k in x.number])
    sizes = [len(changed[k]) for k in x.number]
    combination = np.repeat(np.arange(len(sizes)), sizes)
    used, row = np.unique(combination, return_inverse=True)
    values = np.unravel_index(used, _counts(x.keys))
    truths = [_hats(net, key, hats)[at] for key, at in zip(x.keys, values, strict=True)]
    indicator = truths[0] if len(truths) == 1 else all_of(net, truths)
    added = difference[x.number[combination], position]
    terms = [Entries(indicator[row], position, added)]
    return net.affine(x.shape, terms=terms, offset=Known(base.reshape(x.shape)))


def _hats(net: Builder, key: Key, known: dict[Key, Array]) -> Array:
    if key not in known:
        scalar, low, high = key
        values = Known(np.arange(low, high + 1, dtype=np.float64))
        gap = net.affine(values.shape, (np.full(values.shape, scalar), ONE), offset=_less(values))
        known[key] = _is_zero(net, gap)
    return known[key]


def _less(known: Known) -> Known:
    return Known(-known.numbers().value, known.error)


def _is_zero(net: Builder, whole: Array) -> Array:
    return net.curve("relu", _not(net, net.curve("abs", whole)))


def _not(net: Builder, truth: Array) -> Array:
    return net.affine(truth.shape, (truth, MINUS), offset=ONE)


def all_of(net: Builder, truths: Sequence[Array]) -> Array:
    """Where all truths are 1."""
    beyond = Known(np.array(1.0 - len(truths)))
    shape = np.broadcast_shapes(*(x.shape for x in truths))
    return net.curve("relu", net.affine(shape, *((x, ONE) for x in truths), offset=beyond))


def whole_sum(net: Builder) -> None:
    """Before a sum of whole numbers that are computed: is it what executors make of it?

    Over 2^24 these round it when it becomes a binary32 number, so nothing is claimed for them.
    """
    net.sums += 1
    right = net.sums <= _MOST_SUMS and set(net.kinds) == {"int64"}
    need(right, "a sum of whole numbers that may overflow")
    net.types.add("sums of whole numbers")


def _fixed(net: Builder, x: Any) -> Any:
    """An operand; a constant where it is made of inputs with one value only."""
    if isinstance(x, Known) or not _is_input(net, x):
        return x
    low, high = net.limits(x.ravel()) if net.limits else (np.zeros(1), np.ones(1))
    return Known(low.reshape(x.shape)) if (low == high).all() else x


def _is_input(net: Builder, ids: Array) -> bool:
    return bool(ids.size and ids.min() >= 0 and ids.max() < net.blocks[0].size)


def _difference(net: Builder, x: Any, y: Any) -> Array:
    """x - y, of which one is computed."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    if isinstance(x, Known):
        return net.affine(shape, (y, MINUS), offset=x.numbers())
    if isinstance(y, Known):
        return net.affine(shape, (x, ONE), offset=_less(y))
    return net.affine(shape, (x, ONE), (y, MINUS))


def equal(net: Builder, x: Any, y: Any) -> Any:
    """1 where both are equal, else 0; inputs with one value only are constants."""
    x, y = _fixed(net, x), _fixed(net, y)
    if isinstance(x, Known) and isinstance(y, Known):
        return Known(np.asarray(exact(x) == exact(y)))
    gap = _difference(net, x, y)
    if net.is_whole(gap):
        return _is_zero(net, gap)
    return _not(net, net.curve("abs", net.curve("sign", gap)))


def greater(net: Builder, x: Any, y: Any, *, less: bool = False, strict: bool = True) -> Any:
    """1 where x > y, x < y, x >= y or x <= y, else 0; inputs as for `equal`."""
    x, y = _fixed(net, x), _fixed(net, y)
    x, y = (y, x) if less else (x, y)
    if isinstance(x, Known) and isinstance(y, Known):
        return Known(np.asarray(exact(x) > exact(y) if strict else exact(x) >= exact(y)))
    gap = _difference(net, x, y) if strict else _difference(net, y, x)
    if net.is_whole(gap):
        gap = net.affine(gap.shape, (gap, ONE), offset=Known(np.array(-0.5)))
    above = net.curve("relu", net.curve("sign", gap))
    return above if strict else _not(net, above)


def junction(net: Builder, x: Any, y: Any, *, both: bool) -> Array:
    """1 where both truths are 1, or one of them is."""
    need(set(net.kinds) == {"bool"}, "no truths")
    pair = [net.ids(x), net.ids(y)]
    if both:
        return all_of(net, pair)
    return _not(net, all_of(net, [_not(net, truth) for truth in pair]))


def negation(net: Builder, x: Array) -> Array:
    """1 where a truth is 0, else 0."""
    need(net.kinds == ["bool"], "no truth")
    return _not(net, x)


def choice(net: Builder, truth: Any, x: Any, y: Any) -> Any:
    """x where a truth is 1, else y: y + c (x - y)."""
    if isinstance(truth, Known):
        return net.moved(lambda *x: np.where(exact(truth), *x), x, y)
    need(net.kinds[0] == "bool", "no truth")
    if isinstance(x, Known) and isinstance(y, Known):
        factor = calculated("Sub", x, y)
        shape = np.broadcast_shapes(truth.shape, factor.shape)
        return net.affine(shape, (truth, factor), offset=y.numbers())
    first, second = net.ids(x), net.ids(y)
    gap = net.affine(np.broadcast_shapes(x.shape, y.shape), (first, ONE), (second, MINUS))
    part = net.pair("product", *np.broadcast_arrays(truth, gap))
    return net.affine(part.shape, (second, ONE), (part, ONE))


def towards_zero(net: Builder, x: Array, dtype: np.dtype[Any]) -> Any:
    """Inputs cast to integers; a table where there are few combinations."""
    need(str(dtype) in WHOLE_TYPES, f"a cast to {dtype}")
    need(net.limits and _is_input(net, x), "a cast to whole numbers of what is no input")
    assert net.limits is not None
    lower, upper = net.limits(x.ravel())
    need((np.maximum(abs(lower), abs(upper)) < _LARGEST).all(), "no 32-bit integers")
    low, high = (np.trunc(side).reshape(x.shape).astype(np.int64) for side in (lower, upper))
    if (low == high).all():
        return Known(low.astype(dtype))
    if (lower >= 0).all():  # the floor of -1/2 is another number than what is left of it
        whole = net.curve("floor", x)
    else:
        parts = [net.curve("relu", part) for part in (x, net.negative(x))]
        floors = [net.curve("floor", part) for part in parts]
        whole = net.affine(x.shape, (floors[0], ONE), (floors[1], MINUS))
    lines = zip(whole.ravel().tolist(), low.ravel().tolist(), high.ravel().tolist(), strict=True)
    keys = tuple(key for key in lines if key[1] < key[2])
    if math.prod(_counts(keys)) > _MOST_COMBINATIONS:
        return whole
    number = np.where(low < high, np.cumsum(low < high).reshape(low.shape) - 1, -1)
    grid = np.indices(_counts(keys)).reshape(len(keys), -1).T + np.array([key[1] for key in keys])
    return _table(keys, (np.where(number >= 0, row[number], low).astype(dtype) for row in grid))


def place(
    net: Builder, x: Any, *, axis: int, keepdims: int, select_last_index: int = 0,
    smallest: bool = False,
) -> Any:  # fmt: skip
    """The place of the first or last largest or smallest entry along an axis."""
    ids = net.ids(x)
    axis, count, last = range(ids.ndim)[axis], ids.shape[axis], bool(select_last_index)
    shape = [1 if i == axis else n for i, n in enumerate(ids.shape) if keepdims or i != axis]
    need(ids.size, "the place of an extremum among nothing")
    if count == 1:
        return Known(np.zeros(shape, np.int64))
    lines = np.moveaxis(ids, axis, -1).reshape(-1, count)
    first, second = np.triu_indices(count, 1)
    need(len(first) * len(lines) <= _MOST_PAIRS, "too many entries are compared")
    upper, lower = (first, second) if smallest != last else (second, first)
    gap = net.affine((len(lines), len(first)), (lines[:, upper], ONE), (lines[:, lower], MINUS))
    above = net.curve("relu", net.curve("sign", gap))
    weight, offset = np.zeros((1, count, len(first))), np.ones(count)
    each, sign = np.arange(len(first)), -1.0 if last else 1.0  # r is above, or 1 less that
    weight[0, first, each], weight[0, second, each] = -sign, sign
    np.add.at(offset, first if last else second, -1.0)
    layout = np.arange(lines.size).reshape(count, len(lines)).T
    beaten = net.affine(layout, terms=[Product(above.T[None], weight)], offset=Known(offset))
    chosen = net.curve("relu", beaten)
    numbers = Product(chosen.T[None], np.arange(float(count))[None, None])
    return net.affine((len(lines),), terms=[numbers]).reshape(shape)
