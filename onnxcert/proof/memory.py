"""What a process that runs the checker has refuted already, by what it was made of.

`onnxcert.checker.trees.Group` bounds the sets of its groups and then their leaves. Both are
functions of arguments: the box, what is known there, splits, hints and columns make bounds; bounds,
planes, the rows of a case and a path with its multipliers, slopes and weights make the bound of a
leaf. Here the results are kept under digests of all these arguments, bit for bit as the checker
decoded them, so that the same work is not done again, and any other is. A leaf that was not refuted
leaves nothing behind.

Digests are BLAKE2b of 20 bytes. What is made of bounds is kept by their digest, of which what they
were made of is part in turn: a leaf in half of a region is one over the bounds of that half, and
these hang on the bounds of the region.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from onnxcert.arrays import Array
from onnxcert.checker.bounds import Relaxation
from onnxcert.checker.proof import Paths
from onnxcert.checker.trees import Base, Known

_MOST_BYTES = 1 << 28
"""Of bounds that are kept."""

_MOST_LEAVES = 1 << 21
"""That are kept, in about 130 bytes each."""

_SIZE = 20
"""Bytes of a digest."""


class Memory(Known):
    """Bounds and refuted leaves of neuron groups, for one network.

    Args:
        executed, whole: whether the bounds hold for executions, too, and are of all of it.

    Attributes:
        leaves: how many are kept.
    """

    def __init__(self, executed: bool, whole: bool = False) -> None:
        super().__init__()
        self.executed, self.whole = executed, whole
        self.leaves = 0
        self._refuted: dict[bytes, set[bytes]] = {}
        self._bounds: OrderedDict[bytes, tuple[Relaxation, int]] = OrderedDict()
        self._size = 0
        self._last: Base | None = None
        self._cases: dict[int, bytes] = {}

    def mark(self, *parts: object) -> bytes:
        """A digest."""
        return digest(parts)

    def bounds(self, mark: bytes, make: Callable[[], Relaxation]) -> Relaxation:
        """Bounds made before or now; those that were not asked for longest are forgotten."""
        if mark in self._bounds:
            self._bounds.move_to_end(mark)
            return self._bounds[mark][0]
        made = make()
        made.lower.flags.writeable = made.upper.flags.writeable = False  # all that ask share them
        size = sum(array.nbytes for array in _arrays(made))
        self._bounds[mark] = made, size
        self._size += size
        while self._size > _MOST_BYTES:
            self._size -= self._bounds.popitem(last=False)[1][1]
        return made

    def lower(
        self, base: Base, leaves: Sequence[Paths], make: Callable[[Sequence[Paths]], Array]
    ) -> Array:
        """Infinity for leaves that are known; those that are refuted now are known from now on."""
        known = self._refuted.setdefault(base.mark, set())
        keys = [self._key(base, leaf) for leaf in leaves]
        lower = np.array([np.inf if key in known else np.nan for key in keys])
        rest = np.flatnonzero(np.isnan(lower))
        if len(rest) == 0:
            return lower
        lower[rest] = make([leaves[number] for number in rest.tolist()])
        if self.leaves < _MOST_LEAVES:
            before = len(known)
            known.update(keys[number] for number in rest if lower[number] > 0)
            self.leaves += len(known) - before
        return lower

    def _key(self, base: Base, leaf: Paths) -> bytes:
        """A digest of a leaf of some bounds, a batch of one."""
        if self._last is not base:
            self._last, self._cases = base, {}
        case = int(leaf.case[0])
        if case not in self._cases:
            planes = [
                (k, tilt.position, tilt.reads, tilt.factor, tilt.offset)
                for k, tilt in base.tilts.get(case, {}).items()
            ]
            self._cases[case] = digest((base.region.cases[case].rows, planes))
        # The rest is fixed by the bounds: slopes are as many as their columns.
        shape = b"%d %d " % (leaf.scalar.shape[1], leaf.weights.shape[1])
        parts = leaf.scalar, leaf.side, leaf.point, leaf.multiplier, leaf.weights, leaf.slopes
        data = [self._cases[case], shape, leaf.tilted.tobytes(), *(p.tobytes() for p in parts)]
        return blake2b(b"".join(data), digest_size=_SIZE).digest()


def digest(thing: object) -> bytes:
    """A digest of arrays, numbers and text in tuples, mappings and data classes.

    Raises:
        TypeError: there is something else in it.
    """
    state = blake2b(digest_size=_SIZE)
    for part in _parts(thing):
        state.update(part)
    return state.digest()


def _parts(thing: Any) -> Iterator[bytes]:
    """Bytes that no other thing has, piece by piece: each thing with its kind and length first."""
    if isinstance(thing, np.ndarray):
        yield f"array {thing.dtype.str} {thing.shape} ".encode()
        yield np.ascontiguousarray(thing).tobytes()
    elif thing is None or isinstance(thing, bool | int | float | str):
        text = repr(thing).encode()
        yield f"{type(thing).__name__} {len(text)} ".encode()
        yield text
    elif isinstance(thing, Mapping):
        yield f"mapping {len(thing)} ".encode()
        for pair in thing.items():
            yield from _parts(pair)
    elif isinstance(thing, tuple | list):
        yield f"sequence {len(thing)} ".encode()
        for part in thing:
            yield from _parts(part)
    elif is_dataclass(thing):
        yield f"object {type(thing).__name__} ".encode()
        yield from _parts([getattr(thing, part.name) for part in fields(thing)])
    else:
        raise TypeError(f"no digest of {type(thing).__name__}")


def _arrays(thing: Any) -> Iterator[Array]:
    """All arrays in bounds."""
    if isinstance(thing, np.ndarray):
        yield thing
    elif isinstance(thing, Mapping):
        for part in thing.values():
            yield from _arrays(part)
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from _arrays(part)
    elif is_dataclass(thing):
        for part in fields(thing):
            yield from _arrays(getattr(thing, part.name))
