"""Rule R21: scalars that no row of the specification depends on are left out.

A network computes scalars one after the other, and rows are about some of its outputs. Going from
those back to the inputs, a scalar is needed if one that is needed is made from it. What is left
computes the same numbers at the same inputs: no operation of it has lost an operand. Every rule
that holds for networks holds for that one, and what it says of those outputs is true of the file's.

Over the reals a factor that is exactly zero does not count. In an execution it does: zero times
what has overflowed is no number. Roundings are still counted as for whole sums.

Of sums under windows, and of several groups, positions stay or go with all their channels. A
certificate counts neurons by their positions in the file (`Curve.at`). One that names a neuron that
is left out is not wrong, but is checked with the whole network.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from onnxcert.checker.network import (
    Affine,
    Array,
    Block,
    Curve,
    Entries,
    Network,
    Pair,
    Pick,
    Product,
    Term,
)


class Unread(Exception):  # noqa: N818 - the certificate may be right
    """A certificate names a neuron that was left out."""


def needed(network: Network, read: Array, *, executed: bool) -> Network:
    """The network without what some outputs do not depend on.

    Args:
        network: its first block, the inputs, stays as it is.
        read: (n_out,) which outputs are read; the others become zero.
        executed: whether it is about executions.
    """
    output = np.where(read, network.output, -1)
    live = np.zeros(network.size + 1, bool)
    live[output] = True
    live[: network.n_inputs] = True
    parts: list[Block] = []
    for block in reversed(network.blocks[1:]):
        rows = live[block.start : block.start + block.size]
        if rows.any():
            parts.append(part := _part(block, rows, executed))
            for ids in part.reads():
                live[ids] = True
    live[-1] = False
    if live[:-1].all():
        return replace(network, output=output)
    number = np.where(live, np.cumsum(live) - 1, -1)
    blocks, size = network.blocks[:1], network.n_inputs
    for part in reversed(parts):
        blocks.append(_renumbered(part, size, number))
        size += part.size
    return replace(network, blocks=blocks, output=number[output], size=size, shares=())


def _renumbered(block: Block, start: int, number: Array) -> Block:
    """A block from a number on, with other numbers for all that it reads."""
    if isinstance(block, Curve):
        return replace(block, start=start, ids=number[block.ids])
    if isinstance(block, Pair):
        return replace(block, start=start, first=number[block.first], second=number[block.second])
    assert isinstance(block, Affine)
    maximum = block.maximum and (number[block.maximum[0]], number[block.maximum[1]])
    terms = []
    for term in block.terms:
        term = replace(term, ids=number[term.ids])  # noqa: PLW2901
        if isinstance(term, Product) and term.image is not None:
            term = replace(term, image=number[term.image])  # noqa: PLW2901
        terms.append(term)
    return replace(block, start=start, terms=tuple(terms), maximum=maximum)


def _part(block: Block, rows: Array, executed: bool) -> Block:
    """The scalars of a block that ``rows`` says, or more; ``rows`` then says which."""
    if isinstance(block, Curve):
        slope = None if block.slope is None else block.slope[rows]
        block = replace(block, ids=block.ids[rows], slope=slope, order=_order(block, rows))
    elif isinstance(block, Pair):
        first, second = block.first[rows], block.second[rows]
        block = replace(block, first=first, second=second, order=_order(block, rows))
    else:
        assert isinstance(block, Affine)
        lengths = [
            t.ids.shape[2] for t in block.terms if isinstance(t, Product) and not t.is_matrix
        ]
        if lengths:
            length = math.gcd(*lengths)  # every so many scalars there is the same position of each
            rows[:] = np.tile(rows.reshape(-1, length).any(axis=0), block.size // length)
        terms = tuple(_part_of(term, rows, executed) for term in block.terms)
        offset, error = (
            None if part is None else np.broadcast_to(part, block.size)[rows]
            for part in (block.offset, block.offset_error)
        )
        maximum = block.maximum and (block.maximum[0][rows], block.maximum[1][rows])
        block = replace(block, terms=terms, offset=offset, offset_error=error, maximum=maximum)
    return replace(block, size=int(rows.sum()))


def _order(block: Curve | Pair, rows: Array) -> Array:
    """Numbers of the neurons at all positions in what is left of their block, -1 for none."""
    return np.where(rows, np.cumsum(rows) - 1, -1)[block.at(np.arange(block.positions))]


def _part_of(term: Term, rows: Array, executed: bool) -> Term:
    """Some outputs of a term, without factors that are zero over the reals."""
    error = term.error
    if isinstance(term, Pick):
        factor = None if term.factor is None else np.broadcast_to(term.factor, rows.shape)[rows]
        error = None if error is None else np.broadcast_to(error, rows.shape)[rows]
        return Pick(term.ids[rows], factor, error=error)
    if isinstance(term, Entries):
        error = None if error is None else np.broadcast_to(error, term.value.shape)
        some = rows[term.out]
        if not executed:
            some &= (term.value != 0) | (False if error is None else error != 0)
        out = (np.cumsum(rows) - 1)[term.out[some]]
        return Entries(
            term.ids[some], out, term.value[some], error=None if error is None else error[some]
        )
    assert isinstance(term, Product)
    if not term.is_matrix:
        return _at_positions(term, rows[: term.ids.shape[2]])
    weight = term.weight[:, rows]
    error = None if error is None else np.broadcast_to(error, term.weight.shape)[:, rows]
    columns = np.ones(weight.shape[2], bool)
    if not executed:
        columns = (weight != 0).any(axis=(0, 1))
        columns |= False if error is None else (error != 0).any(axis=(0, 1))
    error = None if error is None else error[:, :, columns]
    return Product(term.ids[:, columns], weight[:, :, columns], error=error)


def _at_positions(term: Product, kept: Array) -> Product:
    """Some positions (L,) of a product, and what of the image their windows see."""
    image, where = term.image, term.where
    if image is not None and where is not None:
        number = np.where(kept, np.cumsum(kept) - 1, kept.sum())
        where = np.append(number, kept.sum())[where]
        seen = (where < kept.sum()).any(axis=1)
        image, where = image[:, :, seen], where[seen]
    return replace(term, ids=term.ids[:, :, kept], image=image, where=where)
