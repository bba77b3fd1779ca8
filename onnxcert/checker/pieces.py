"""Rule R19: a sum of relus that all read one number is one piecewise linear curve, over the reals.

Let h_j = max(s_j v + t_j, 0) be relus of one scalar v, and y = c + sum_j w_j h_j, where nothing
else reads the h_j. Then y = f(v), f is linear between its knots -t_j / s_j, and nothing is left out
when a curve takes the place of the relus. Weights and factors must be exact, and the sum needs
`_FEWEST` relus. Executions round every relu and the sum by itself; they have no such curves.

For any slope k, f(z) - k z is extreme over [l, u] at an end or at a knot inside: so are the values
of f, for k = 0, and so is the offset of a line below or above it. Knots outside are moved to an
end, which is one more point of the curve. The slope of an upper line goes from that of the line
through (l, f(l)) that touches f, over that of the chord, to that of the line through (u, f(u)), as
its position goes from 0 over 1/2, the default, to 1; a lower line is minus an upper line of -f.

Rounding. With L = sum |w_j s_j| >= |f'| and |k| <= L, a value is off by less than (K + 5) roundings
of S = L max(|l|, |u|) + sum |w_j t_j| + |c|, a knot p by a rounding of its own, which moves
f(p) - k p by at most 2 L |p| roundings, and the product k p and the difference by a few of 2 S.
All of it is charged with 8 (K + 16) roundings of S. Where something overflows nothing is said.

A layer of such curves has the label of its relus. The position of a neuron is the rank of its sum
by the position of the first relu in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

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
    distinct,
)

U, TINY = 2.0**-52, 1e-290

PIECES = "pieces"
"""The kind of these curves; their ``slope`` is a table (n, 1 + 5 K): see `completed`."""

_FEWEST = 4
"""Relus of one sum."""

_NEAREST = 2.0**-20
"""A share of the interval; knots nearer to an end say nothing of slopes there but rounding."""

_LARGEST = 1 << 24
"""Numbers of a table."""

Range = tuple[Array, Array]


def interval(table: Array, low: Array, high: Array) -> Range:
    """All values over [low, high], (B, n) each."""
    _, heights, slack, _, known = _points(table, low, high)
    return (
        np.where(known, heights.min(axis=-1) - slack, -np.inf),
        np.where(known, heights.max(axis=-1) + slack, np.inf),
    )


def lines(
    table: Array, low: Array, high: Array, free: Array | None
) -> tuple[Array, Array, Array, Array]:
    """As `onnxcert.checker.curves.lines`."""
    points, heights, slack, steepest, known = _points(table, low, high)
    free = np.full(low.shape, 0.5) if free is None else np.where(np.isnan(free), 0.5, free)
    sides = []
    for sign in (-1.0, 1.0):
        slope = _slope(points, sign * heights, free)
        slope = np.where(known, np.clip(sign * slope, -steepest, steepest), 0.0)
        rest = sign * (heights - slope[..., None] * points)
        sides += [slope, sign * np.where(known, rest.max(axis=-1) + 2 * slack, np.inf)]
    return sides[0], sides[1], sides[2], sides[3]


def crosses(
    table: Array, sign: int, slope: Fraction, offset: Fraction, low: Fraction, high: Fraction
) -> bool:
    """Whether a line is below the curve (sign 1) or above it (sign -1) at an end or a knot.

    Args:
        table: a row.
    """
    count = len(table) // 5
    numbers = [Fraction(float(x)) for x in table[: 1 + 3 * count]]
    parts = (numbers[1 + i * count : 1 + (i + 1) * count] for i in range(3))
    terms = list(zip(*parts, strict=True))
    knots = [-t / s for _, s, t in terms if s]
    for z in (low, high, *(knot for knot in knots if low < knot < high)):
        height = numbers[0] + sum(w * max(s * z + t, Fraction()) for w, s, t in terms)
        if sign * (slope * z + offset - height) < 0:
            return True
    return False


def _points(table: Array, low: Array, high: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Ends and knots and the curve there, (B, n, K + 2); what roundings change; L; and where all of
    that is known."""
    count, c = table.shape[1] // 5, table[:, 0]
    w, s, t, knots, heights = np.split(table[:, 1:], 5, axis=1)
    steepest = abs(w * s).sum(axis=1) * (1 + 4 * (count + 2) * U)
    size = np.maximum(abs(low), abs(high)) * steepest + abs(w * t).sum(axis=1) + abs(c)
    slack = 8 * (count + 16) * U * size + TINY
    known = np.isfinite(slack)
    low, high = np.where(known, low, 0.0), np.where(known, high, 0.0)

    first, last = low[..., None], high[..., None]
    at_first, at_last = (_value(c, w, s, t, z)[..., None] for z in (low, high))
    heights = np.where(knots >= last, at_last, heights)
    heights = np.where(knots <= first, at_first, heights)
    points = np.concatenate([first, np.minimum(np.maximum(knots, first), last), last], axis=-1)
    return points, np.concatenate([at_first, heights, at_last], axis=-1), slack, steepest, known


def _value(c: Array, w: Array, s: Array, t: Array, z: Array) -> Array:
    return np.asarray((np.maximum(z[..., None] * s + t, 0.0) * w).sum(axis=-1) + c)


def completed(table: Array) -> Array:
    """c, then all w, s and t, then the knots in order and the heights there."""
    c, (w, s, t) = table[:, 0], np.split(table[:, 1:], 3, axis=1)
    knots = np.sort(-t / np.where(s == 0, np.inf, s), axis=1)
    heights = np.stack([_value(c, w, s, t, knot) for knot in knots.T], axis=1)
    return np.concatenate([table, knots, heights], axis=1)


def _slope(points: Array, heights: Array, free: Array) -> Array:
    """The slope of a line above the curve at positions (B, n)."""
    ahead, behind = points - points[..., :1], points[..., -1:] - points
    width = ahead[..., -1:]
    rise, rest = heights - heights[..., :1], heights[..., -1:] - heights
    near = ahead <= _NEAREST * width
    first = np.where(near, -np.inf, rise / np.where(near, 1.0, ahead)).max(axis=-1)
    near = behind <= _NEAREST * width
    last = np.where(near, np.inf, rest / np.where(near, 1.0, behind)).min(axis=-1)
    wide = width[..., 0] > 0
    chord = rise[..., -1] / np.where(wide, width[..., 0], 1.0)
    first, last = np.where(wide, first, 0.0), np.where(wide, last, 0.0)
    early, late = first + 2 * free * (chord - first), chord + (2 * free - 1) * (last - chord)
    return np.asarray(np.where(free < 0.5, early, late))


def joined(blocks: Sequence[Block], count: Callable[[], Array]) -> list[Block]:
    """The blocks with curves in place of such sums; the relus become empty sums.

    Args:
        count: tells how often blocks and outputs read each scalar, (S + 1,); called if it matters.
    """
    made, starts = list(blocks), {block.start: k for k, block in enumerate(blocks)}
    readers: Array | None = None
    for k, block in enumerate(blocks):
        term = block.terms[0] if isinstance(block, Affine) and len(block.terms) == 1 else None
        if term is None or not term.ids.size or not isinstance(block, Affine):
            continue
        j = starts.get(int(term.ids.min()), k)
        relu = blocks[j]
        if j == k or not isinstance(relu, Curve) or relu.kind != "relu":
            continue
        number, factor, shift = _read_by(relu, blocks)
        if _FEWEST * len(distinct(number)) > relu.size or not block.exact or block.maximum:
            continue
        readers = count() if readers is None else readers
        if not _alone(relu, term.ids, readers):
            continue
        curve = _curve(block, term, relu, (number, factor, shift))
        if curve is not None:
            made[k] = curve
            made[j] = Affine(relu.start, relu.size, relu.name, (), None, None, 0)
    return made


def _alone(block: Block, ids: Array, readers: Array) -> bool:
    """Whether nothing but what reads ``ids``, once, reads a block."""
    whole = np.arange(block.start, block.start + block.size)
    return np.array_equal(readers[whole], np.isin(whole, ids))


def _curve(
    block: Affine, term: Term, relu: Curve, reads: tuple[Array, Array, Array]
) -> Curve | None:
    """The curve that a block of sums is, if each is one."""
    entries = _entries(term)
    if entries is None:
        return None
    out, read, weight = entries
    read = read - relu.start
    count = np.bincount(out, minlength=block.size)
    if len(np.unique(read)) < len(read) or count.min(initial=len(read)) < _FEWEST:
        return None
    if (read < 0).any() or (read >= relu.size).any():
        return None
    order = np.lexsort((read, out))
    out, read, weight = out[order], read[order], weight[order]
    number, factor, shift = reads
    starts, width = np.cumsum(count) - count, int(count.max())
    number = number[read]
    same = (number == number[starts[out]]).all() and (number >= 0).all()
    if not same or 3 * width * block.size > _LARGEST:
        return None
    table = np.zeros((block.size, 1 + 3 * width))
    table[:, 0] = 0.0 if block.offset is None else block.offset
    place = 1 + np.arange(len(out)) - starts[out]
    for i, values in enumerate((weight, factor[read], shift[read])):
        table[out, place + i * width] = values
    kept = replace(relu, start=block.start, size=block.size, name=block.name)
    order = np.argsort(read[starts])
    return replace(kept, kind=PIECES, ids=number[starts], slope=completed(table), order=order)


def _entries(term: Term) -> tuple[Array, Array, Array] | None:
    """Outputs, scalars and factors of a term that are not zero."""
    if isinstance(term, Product):
        rows, length = term.weight.shape[1], term.ids.shape[2]
        if length * np.count_nonzero(term.weight) > term.ids.size:
            return None
        g, m, j = np.nonzero(term.weight)
        place = np.arange(length)
        out = ((g * rows + m) * length)[:, None] + place
        weight = np.repeat(term.weight[g, m, j], length)
        return out.ravel(), term.ids[g, j].ravel(), weight
    if isinstance(term, Entries):
        used = term.value != 0
        return term.out[used], term.ids[used], term.value[used]
    return None


def _read_by(relu: Curve, blocks: Sequence[Block]) -> tuple[Array, Array, Array]:
    """The scalar, and a factor and a shift of it, that each relu reads."""
    ids, one = relu.ids, np.ones(relu.size)
    for block in blocks:
        inside = (ids >= block.start) & (ids < block.start + block.size)
        if not inside.all() or not isinstance(block, Affine) or len(block.terms) != 1:
            continue
        (term,) = block.terms
        if isinstance(term, Pick) and block.exact and block.maximum is None:
            at = ids - block.start
            factor = one if term.factor is None else np.broadcast_to(term.factor, block.size)[at]
            shift = 0.0 * one if block.offset is None else block.offset[at]
            return term.ids[at], factor, shift
    return ids, one, 0.0 * one
