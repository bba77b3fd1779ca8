"""The walk over the disjuncts of a query, depth first and one at a time.

A branch carries the input box so far, the rows so far and the disjunctions still open; it is
dropped as soon as its box is empty, exactly. Nothing is expanded before it is asked for: 18 binary
disjunctions have 262,144 combinations, but holding them takes 18 iterators. Disjunctions over
inputs alone are opened first, so that many cases share one box.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from onnxcert.arrays import IntArray
from onnxcert.errors import SpecError, UnsupportedSpec
from onnxcert.frontend.quadrics import Quadric, is_quadric, read_quadric
from onnxcert.frontend.regions import Conditions, Disjunct, Limits, Piece, Region
from onnxcert.frontend.rows import Layout, Row, make_rows, place
from onnxcert.spec.boxes import BoxUnion
from onnxcert.spec.ellipsoid import Ellipsoid
from onnxcert.spec.query import Query
from onnxcert.spec.tree import And, Atom, Formula, Or, Polynomial, Term, compare, leaves

_LARGEST_BOUND, _MOST_ROUNDS = 10**300, 64
"""Of inputs that rows imply."""

T = TypeVar("T")
_Choice: TypeAlias = "Or | BoxUnion"


class _Chain(NamedTuple, Generic[T]):
    """A list that branches share: an item in front of the list of the branch's parent."""

    item: T
    rest: _Chain[T] | None


def _prepend(items: Iterable[T], chain: _Chain[T] | None) -> _Chain[T] | None:
    """The chain with all items in front, the first first."""
    for item in reversed(list(items)):
        chain = _Chain(item, chain)
    return chain


@dataclass(frozen=True, eq=False)
class Case:
    """A branch of the walk: a box, what cuts it, rows, and what is still to be chosen."""

    region: Region
    ellipsoid: Ellipsoid | None = None
    rows: _Chain[tuple[Row, ...]] | None = None
    input_choices: _Chain[_Choice] | None = None
    other_choices: _Chain[_Choice] | None = None

    def all_rows(self) -> tuple[Row, ...]:
        """Every row once, the oldest first."""
        parts, chain = [], self.rows
        while chain is not None:
            parts.append(chain.item)
            chain = chain.rest
        return tuple(dict.fromkeys(row for part in reversed(parts) for row in part))

    def next_choice(self) -> tuple[_Choice, Case] | None:
        """A disjunction to open, and the case without it; `None` when none is left."""
        if self.input_choices is not None:
            choice, rest = self.input_choices
            return choice, replace(self, input_choices=rest)
        if self.other_choices is not None:
            choice, rest = self.other_choices
            return choice, replace(self, other_choices=rest)
        return None


@dataclass(eq=False)
class _Settled:
    """What follows from formulas without any choice; collected before the box is cut."""

    bounds: dict[int, Limits] = field(default_factory=dict)
    disjuncts: list[Disjunct] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    ellipsoids: list[tuple[Atom, Ellipsoid]] = field(default_factory=list)
    choices: list[_Choice] = field(default_factory=list)

    def bound(self, column: int, lower: Fraction | None, upper: Fraction | None) -> bool:
        """Add bounds of an input; whether a value is left."""
        low, high = self.bounds.get(column, (None, None))
        if lower is not None:
            low = lower if low is None else max(low, lower)
        if upper is not None:
            high = upper if high is None else min(high, upper)
        self.bounds[column] = (low, high)
        return low is None or high is None or low <= high


class Walk:
    """The walk over the disjuncts of one query."""

    def __init__(self, query: Query, layout: Layout) -> None:
        self.query = query
        self.layout = layout
        # By identity of the formula; the query keeps the formulas alive.
        self._rows: dict[int, tuple[Row, ...]] = {}
        self._quadrics: dict[int, Quadric] = {}
        self._missed: tuple[Region, Ellipsoid, bool] | None = None
        self._of_ties: tuple[Region, Region | None] | None = None
        self._columns: dict[int, IntArray] = {}
        self._either: dict[int, Or] = {}
        self._about_inputs: dict[int, bool] = {}

    def cases(self) -> Iterator[Case]:
        """All cases whose inputs have a point, without open choices."""
        whole = Case(Region.everything(self.layout.n_inputs))
        root = self._extend(whole, self.query.assertions)
        stack: list[Iterator[Case]] = [iter(() if root is None else (root,))]
        while stack:
            case = next(stack[-1], None)
            if case is None:
                stack.pop()
                continue
            opened = case.next_choice()
            if opened is not None:
                stack.append(self._alternatives(*opened))
            else:
                region = self._bounded(case)
                if region is None:
                    continue
                case = replace(case, region=region)
                if not self._is_missed(case):
                    self._check_bounded(case)
                    yield case

    def _bounded(self, case: Case) -> Region | None:
        """The box of a case with what its inputs have from others; `None` if it is empty.

        Inputs that the query ties share their bounds, and sides without a bound have what rows over
        inputs imply. Each round looks at all rows with the bounds before it, so that their order is
        of no account: the checker finds the same.
        """
        region: Region | None = case.region
        if self.layout.ties:
            known = self._of_ties
            if known is None or known[0] is not region:
                known = self._of_ties = case.region, case.region.tied(self.layout.ties)
            region = known[1]
        for _ in range(_MOST_ROUNDS):
            made = {} if region is None else self._implied(case, region)
            if region is None or not made:
                break
            region = region.intersect(Conditions(made))
            if region is not None and any(map(region.is_empty_at, made)):
                return None
        return region

    def _implied(self, case: Case, region: Region) -> dict[int, Limits]:
        """What rows over inputs say of sides without a bound that the others are enough for."""
        sides, others = region.sides, self._bounded_elsewhere(case)
        low, high = np.isinf(sides.lower_floor), np.isinf(sides.upper_ceil)
        low[others] = high[others] = False
        if not (low.any() or high.any()):
            return {}
        found = _Settled()
        for row in case.all_rows():
            for column, is_upper, limit in _limits_of(row, region) if not row.outputs else ():
                if (high if is_upper else low)[column] and abs(limit) <= _LARGEST_BOUND:
                    found.bound(column, *((None, limit) if is_upper else (limit, None)))
        return found.bounds

    def _bounded_elsewhere(self, case: Case) -> list[int]:
        """Inputs that need no bounds of their own."""
        return [*self.layout.ties, *(case.ellipsoid.columns if case.ellipsoid else ())]

    def _is_missed(self, case: Case) -> bool:
        """Whether the ellipsoid has no point in the box, exactly."""
        region, ellipsoid = case.region, case.ellipsoid
        if ellipsoid is None:
            return False
        if self._missed is None or self._missed[:2] != (region, ellipsoid):
            sides = region.sides

            def limits(column: int, center: Fraction) -> Limits:
                inside = sides.lower_ceil[column] <= center <= sides.upper_floor[column]
                return (None, None) if inside else region.limits(column)

            self._missed = region, ellipsoid, ellipsoid.misses(limits)
        return self._missed[2]

    def _alternatives(self, choice: _Choice, rest: Case) -> Iterator[Case]:
        if isinstance(choice, Or):
            extended = (self._extend(rest, (child,)) for child in choice.children)
        else:
            extended = (
                self._extend(rest, (), self._disjunct(choice, k)) for k in range(len(choice))
            )
        return (case for case in extended if case is not None)

    def _extend(
        self, case: Case, formulas: Sequence[Formula], disjunct: Disjunct | None = None
    ) -> Case | None:
        """The case with all of the formulas; ``None`` when that has no solution."""
        settled = self._settle(formulas, disjunct)
        if settled is None:
            return None
        pieces: list[Piece] = [*settled.disjuncts]
        if settled.bounds:
            pieces.append(Conditions(settled.bounds))
        region: Region | None = case.region
        for piece in pieces:
            region = region and region.intersect(piece)
        if region is None:
            return None
        ellipsoid = case.ellipsoid
        for atom, other in settled.ellipsoids:
            if ellipsoid not in (None, other):
                raise UnsupportedSpec(
                    "two ellipsoids in one disjunct are not supported",
                    place=place(self.query, atom),
                )
            ellipsoid = other
        about_inputs = [c for c in settled.choices if self._is_about_inputs(c)]
        others = [c for c in settled.choices if not self._is_about_inputs(c)]
        return Case(
            region,
            ellipsoid,
            _Chain(tuple(settled.rows), case.rows) if settled.rows else case.rows,
            _prepend(about_inputs, case.input_choices),
            _prepend(others, case.other_choices),
        )

    def _settle(self, formulas: Sequence[Formula], disjunct: Disjunct | None) -> _Settled | None:
        """Sort the formulas, conjunctions taken apart; ``None`` when one is false."""
        settled = _Settled()
        pending = list(reversed(formulas))
        if disjunct is not None and not self._take_box(disjunct, pending, settled):
            return None
        while pending:
            formula = pending.pop()
            if isinstance(formula, And):
                pending.extend(reversed(formula.children))
            elif isinstance(formula, BoxUnion) and len(formula) == 1:
                if not self._take_box(self._disjunct(formula, 0), pending, settled):
                    return None
            elif isinstance(formula, Or | BoxUnion):
                settled.choices.append(formula)
            elif not self._take_atom(formula, settled):
                return None
        return settled

    def _take_box(self, disjunct: Disjunct, pending: list[Formula], settled: _Settled) -> bool:
        if disjunct.union.empty[disjunct.number]:
            return False
        settled.disjuncts.append(disjunct)
        pending.extend(reversed(disjunct.union.atoms[disjunct.number]))
        return True

    def _take_atom(self, atom: Atom, settled: _Settled) -> bool:
        polynomial = atom.polynomial
        if not polynomial.terms:
            return compare(polynomial.constant, atom.relation)
        if is_quadric(atom, self.layout):
            return self._take_quadric(atom, settled)
        if atom.relation == "!=":
            settled.choices.append(self._either_side(atom))
            return True
        coefficient, (variable, *others) = polynomial.terms[0]
        alone = len(polynomial.terms) == 1 and not others
        if alone and self.layout.is_input[variable.tensor]:
            limit = -polynomial.constant / coefficient
            is_upper = coefficient > 0 or atom.relation == "=="
            is_lower = coefficient < 0 or atom.relation == "=="
            column = self.layout.position(variable)
            return settled.bound(column, limit if is_lower else None, limit if is_upper else None)
        if id(atom) not in self._rows:
            self._rows[id(atom)] = make_rows(atom, self.layout, self.query)
        settled.rows.extend(self._rows[id(atom)])
        return True

    def _take_quadric(self, atom: Atom, settled: _Settled) -> bool:
        if id(atom) not in self._quadrics:
            self._quadrics[id(atom)] = read_quadric(atom, self.layout, self.query)
        found = self._quadrics[id(atom)]
        if found.ellipsoid is not None:
            settled.ellipsoids.append((atom, found.ellipsoid))
        fixed = (found.point or {}).items()
        return not found.empty and all(settled.bound(i, value, value) for i, value in fixed)

    def _either_side(self, atom: Atom) -> Or:
        """``p < 0 or -p < 0`` for ``p != 0``."""
        if id(atom) not in self._either:
            p = atom.polynomial
            negated = Polynomial(
                tuple(Term(-t.coefficient, t.variables) for t in p.terms), -p.constant
            )
            self._either[id(atom)] = Or((Atom(p, "<", atom.line), Atom(negated, "<", atom.line)))
        return self._either[id(atom)]

    def _is_about_inputs(self, choice: _Choice) -> bool:
        """Whether opening it cuts the box: judged by the first comparison in it."""
        if id(choice) not in self._about_inputs:
            first = next(leaves([choice]), None)
            self._about_inputs[id(choice)] = not isinstance(first, Atom) or all(
                self.layout.is_input[variable.tensor]
                for term in first.polynomial.terms
                for variable in term.variables
            )
        return self._about_inputs[id(choice)]

    def _disjunct(self, union: BoxUnion, number: int) -> Disjunct:
        if id(union) not in self._columns:
            offsets = np.array(self.layout.offsets)
            self._columns[id(union)] = offsets[union.columns[:, 0]] + union.columns[:, 1]
        return Disjunct(union, number, self._columns[id(union)])

    def _check_bounded(self, case: Case) -> None:
        sides = case.region.sides
        bounded = self._bounded_elsewhere(case)
        for side, word in ((sides.lower_floor, "lower"), (sides.upper_ceil, "upper")):
            infinite = np.setdiff1d(np.flatnonzero(np.isinf(side)), bounded)
            if len(infinite):
                name = self.query.label(self.layout.input_at(int(infinite[0])))
                more = f" and {len(infinite) - 1} more" if len(infinite) > 1 else ""
                raise SpecError(
                    f"input {name}{more} has no {word} bound",
                    place=self.query.source,
                    help="every input needs a lower and an upper bound in every disjunct",
                )


def _limits_of(row: Row, region: Region) -> Iterator[tuple[int, bool, Fraction]]:
    """What a row over inputs implies where the rest has bounds: input, whether above, and limit."""
    terms = {i: Fraction(c) for i, c in row.inputs}
    limits = {i: region.limits(i)[c < 0] for i, c in terms.items()}
    least = {i: terms[i] * limit for i, limit in limits.items() if limit is not None}
    open_ones = terms.keys() - least.keys()
    room = -Fraction(row.offset) - sum(least.values(), Fraction(0))
    if len(open_ones) <= 1:
        for i in open_ones or terms:
            yield i, terms[i] > 0, (room + least.get(i, Fraction(0))) / terms[i]
