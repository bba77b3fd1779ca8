"""Joining conditions while a file is read: scanned boxes become arrays, the rest stays a tree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxcert.arrays import BoolArray, IntArray
from onnxcert.frontend.scan import AT_LEAST, AT_MOST, EQUAL, EXCEPTION, Run, Scan
from onnxcert.spec.boxes import BoxUnion
from onnxcert.spec.decimals import INFINITE, Decimals
from onnxcert.spec.tree import (
    And,
    Atom,
    Formula,
    Or,
    Polynomial,
    Relation,
    Term,
    Variable,
)

LARGEST_UNION = 2**25
"""Bounds in one `BoxUnion`; beyond it (disjuncts that share no inputs) boxes are stored apart."""


@dataclass(frozen=True, slots=True)
class Conjunct:
    """An ``and`` of scanned comparisons and atoms: a disjunct of a `BoxUnion` to be."""

    runs: tuple[Run, ...]
    atoms: tuple[Atom, ...]


Condition: TypeAlias = "Formula | Run | Conjunct"


def conjunction(values: Sequence[Condition], scan: Scan) -> Formula | Conjunct:
    """All of the values; stays a `Conjunct` while it can become part of a union of boxes."""
    runs: list[Run] = []
    atoms: list[Atom] = []
    others: list[Formula] = []
    for value in values:
        if isinstance(value, Run):
            runs.append(value)
        elif isinstance(value, Conjunct):
            runs.extend(value.runs)
            atoms.extend(value.atoms)
        elif isinstance(value, Atom):
            atoms.append(value)
        else:
            others.extend(value.children if isinstance(value, And) else (value,))
    if not runs:
        return _flat(And, [*atoms, *others])
    if others:
        return And((*_boxes([Conjunct(tuple(runs), ())], scan), *atoms, *others))
    return Conjunct(tuple(runs), tuple(atoms))


def disjunction(values: Sequence[Condition], scan: Scan) -> Formula:
    """At least one of the values; those with scanned comparisons become one union of boxes."""
    boxes: list[Conjunct] = []
    others: list[Formula] = []
    for value in values:
        if isinstance(value, Run):
            boxes.extend(
                Conjunct((value._replace(start=k, stop=k + 1),), ())
                for k in range(value.start, value.stop)
            )
        elif isinstance(value, Conjunct):
            boxes.append(value)
        else:
            others.extend(value.children if isinstance(value, Or) else (value,))
    return _flat(Or, [*(_boxes(boxes, scan) if boxes else ()), *others])


def assertions(values: Iterable[Condition], scan: Scan) -> tuple[Formula, ...]:
    """The assertions of a file; all scanned comparisons at the top become one box, the first."""
    whole = conjunction(list(values), scan)
    if isinstance(whole, Conjunct):
        (box,) = _boxes([Conjunct(whole.runs, ())], scan)
        return (box, *whole.atoms)
    return whole.children if isinstance(whole, And) else (whole,)


def _flat(kind: type[And] | type[Or], children: list[Formula]) -> Formula:
    return children[0] if len(children) == 1 else kind(tuple(children))


@dataclass(frozen=True, eq=False)
class _Cells:
    """Where the scanned comparisons of some conjuncts go in a table, one row per conjunct.

    Attributes:
        numbers: (M,) the comparisons.
        rows: (M,) their conjuncts.
        columns: (M,) their columns.
        used: (c, 2) tensor and element of each column.
    """

    numbers: IntArray
    rows: IntArray
    columns: IntArray
    used: IntArray

    @classmethod
    def of(cls, conjuncts: Sequence[Conjunct], scan: Scan) -> _Cells:
        runs = [(row, run) for row, conjunct in enumerate(conjuncts) for run in conjunct.runs]
        numbers = np.concatenate(
            [np.arange(run.start, run.stop, dtype=np.int32) for _, run in runs]
        )
        counts = [run.stop - run.start for _, run in runs]
        rows = np.repeat(np.array([row for row, _ in runs], np.int32), counts)
        # All input tensors side by side; searching in the few that occur would take longer.
        sizes = [math.prod(name.shape) for name in scan.names]
        offsets = np.cumsum([0, *sizes])
        flat = offsets[scan.name[numbers]] + scan.index[numbers]
        occurs = np.zeros(offsets[-1], np.bool_)
        occurs[flat] = True
        found = np.flatnonzero(occurs)
        columns = (np.cumsum(occurs, dtype=np.int32) - 1)[flat]
        names = np.searchsorted(offsets, found, side="right") - 1
        tensors = np.array([name.tensor for name in scan.names])[names]
        return cls(numbers, rows, columns, np.stack([tensors, found - offsets[names]], axis=1))


def _boxes(conjuncts: Sequence[Conjunct], scan: Scan) -> tuple[BoxUnion, ...]:
    """One union of all, unless that would be a large and nearly empty table."""
    cells = _Cells.of(conjuncts, scan)
    if len(conjuncts) > 1 and len(cells.used) * len(conjuncts) > LARGEST_UNION:
        return tuple(union for conjunct in conjuncts for union in _boxes([conjunct], scan))
    return (_union(conjuncts, cells, scan),)


def _union(conjuncts: Sequence[Conjunct], cells: _Cells, scan: Scan) -> BoxUnion:
    shape = (len(conjuncts), len(cells.used))
    positions = cells.rows.astype(np.int64) * shape[1] + cells.columns
    relation = scan.relation[cells.numbers]
    atoms = [list(conjunct.atoms) for conjunct in conjuncts]
    sides = []
    for code, missing in ((AT_LEAST, -1), (AT_MOST, 1)):
        chosen = np.flatnonzero((relation == code) | (relation == EQUAL))
        first = _first_of_each(positions[chosen], shape[0] * shape[1])
        kept, again = chosen[first], chosen[~first]
        sides.append(_table(scan, cells.numbers[kept], positions[kept], shape, missing))
        for number, row in zip(cells.numbers[again], cells.rows[again], strict=True):
            atoms[row].append(_as_atom(scan, int(number), code))
    return BoxUnion.build(cells.used, sides[0], sides[1], tuple(map(tuple, atoms)))


def _first_of_each(cells: IntArray, count: int) -> BoolArray:
    """Where a cell occurs for the first time; a variable may be bounded twice."""
    seen = np.zeros(count, np.bool_)
    seen[cells] = True
    if seen.sum() == len(cells):
        return np.ones(len(cells), np.bool_)
    first = np.zeros(len(cells), np.bool_)
    first[np.unique(cells, return_index=True)[1]] = True
    return first


def _table(
    scan: Scan, numbers: IntArray, cells: IntArray, shape: tuple[int, int], missing: int
) -> Decimals:
    """The bounds of one side as an array; ``missing`` is the sign of the infinity elsewhere."""
    mantissa: NDArray[np.int64] = np.full(shape, missing, np.int64)
    scale: NDArray[np.int8] = np.full(shape, INFINITE, np.int8)
    mantissa.ravel()[cells] = scan.mantissa[numbers]
    scale.ravel()[cells] = scan.scale[numbers]
    odd = np.flatnonzero(scan.scale[numbers] == EXCEPTION)
    exceptions = {int(cells[i]): scan.exceptions[int(numbers[i])] for i in odd}
    scale.ravel()[cells[odd]] = 0
    return Decimals(mantissa, scale, exceptions)


def _as_atom(scan: Scan, number: int, code: int) -> Atom:
    """A scanned comparison as a tree; for bounds that stand beside another one."""
    name = scan.names[scan.name[number]]
    variable = Variable(name.tensor, int(scan.index[number]))
    value = scan.exceptions.get(number)
    if value is None:
        value = Fraction(int(scan.mantissa[number]), 10 ** int(scan.scale[number]))
    relation: Relation = "<="
    sign = Fraction(1 if code == AT_MOST else -1)
    return Atom(Polynomial((Term(sign, (variable,)),), -sign * value), relation)
