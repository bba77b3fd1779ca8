"""Linear comparisons as rows that the engine can compute with.

A row is multiplied by a positive rational so that its coefficients become coprime integers, which
makes ``0.1 Y_0 + 0.3 Y_1`` exact in floating point; only its offset is rounded, downwards, so that
every point that satisfies the exact comparison satisfies the row. Products of variables count as
further outputs, which `onnxcert.frontend.products` makes the network compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

import numpy as np

from onnxcert.arrays import IntArray
from onnxcert.errors import UnsupportedSpec
from onnxcert.spec.decimals import round_down
from onnxcert.spec.query import Query
from onnxcert.spec.tree import Atom, Variable, atoms

Factors: TypeAlias = tuple[Variable, ...]
"""What is multiplied, sorted; a variable may be there several times."""

_PAIR = 2


@dataclass(frozen=True, slots=True)
class Row:
    """``sum(outputs) + sum(inputs) + offset <= 0``, or ``< 0`` where strict.

    Attributes:
        outputs: (position in the flat output vector, coefficient), sorted.
        inputs: likewise for the flat input vector.
    """

    outputs: tuple[tuple[int, float], ...]
    inputs: tuple[tuple[int, float], ...]
    offset: float
    strict: bool


@dataclass(frozen=True)
class Layout:
    """Where the elements of each tensor are in the flat vectors of the engine.

    Attributes:
        offsets: by position of the tensor, where it begins in its vector.
        is_input: by position of the tensor, which vector.
        products: variables that are multiplied, behind the outputs; those of fewer different
            variables come first.
        ties: input -> the earlier one that is read in its place (`onnxcert.frontend.ties`), as
            positions in the vector.
    """

    offsets: tuple[int, ...]
    is_input: tuple[bool, ...]
    n_inputs: int
    n_outputs: int
    products: tuple[Factors, ...] = ()
    ties: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, query: Query) -> Layout:
        """All inputs in order; all outputs in order, then hidden tensors."""
        order = {"input": 0, "output": 1, "hidden": 2}
        offsets, totals = {}, [0, 0]
        for position in sorted(
            range(len(query.tensors)), key=lambda p: order[query.tensors[p].kind]
        ):
            tensor = query.tensors[position]
            vector = 0 if tensor.kind == "input" else 1
            offsets[position] = totals[vector]
            totals[vector] += tensor.size
        kinds = tuple(tensor.kind == "input" for tensor in query.tensors)
        return cls(tuple(offsets[p] for p in range(len(kinds))), kinds, totals[0], totals[1])

    @property
    def n_columns(self) -> int:
        """Length of the vector that rows are about: outputs, hidden tensors, products."""
        return self.n_outputs + len(self.products)

    @cached_property
    def _columns(self) -> dict[Factors, int]:
        return {product: self.n_outputs + k for k, product in enumerate(self.products)}

    @cached_property
    def read(self) -> IntArray:
        """(n_inputs,) which input is read in the place of each."""
        columns = np.arange(self.n_inputs)
        columns[list(self.ties)] = list(self.ties.values())
        return columns

    def position(self, variable: Variable) -> int:
        """Where the variable is in its flat vector."""
        return self.offsets[variable.tensor] + variable.element

    def place(self, variables: Factors) -> tuple[bool, int]:
        """Of a variable or a product: whether it is an input, and where in which vector it is."""
        if len(variables) > 1:
            return False, self._columns[variables]
        return self.is_input[variables[0].tensor], self.position(variables[0])

    def input_at(self, position: int) -> Variable:
        """The variable at a position of the flat input vector."""
        tensor = max(
            (p for p, is_input in enumerate(self.is_input) if is_input),
            key=lambda p: (self.offsets[p] <= position, self.offsets[p]),
        )
        return Variable(tensor, position - self.offsets[tensor])


def only_compares(query: Query, layout: Layout, families: IntArray) -> bool:
    """Whether outputs are only compared with each other, each with one of its own family.

    Args:
        query: the query.
        layout: where its variables are.
        families: (n_outputs,) numbers of families, -1 for outputs that are of none.
    """
    for atom in atoms(query.assertions):
        terms = atom.polynomial.terms
        # Of a product with an output there are more variables than terms.
        outputs = [
            (term.coefficient, layout.position(variable))
            for term in terms
            for variable in term.variables
            if not layout.is_input[variable.tensor]
        ]
        if not outputs:
            continue
        found = {int(families[position]) for _, position in outputs}
        pair = len(terms) == len(outputs) == len({p for _, p in outputs}) == _PAIR
        plain = pair and atom.polynomial.constant == sum(c for c, _ in outputs) == 0
        if not (plain and len(found) == 1 and min(found) >= 0):
            return False
    return True


def make_rows(atom: Atom, layout: Layout, query: Query) -> tuple[Row, ...]:
    """The rows that must all hold for a comparison other than ``!=``.

    Raises:
        UnsupportedSpec: the coefficients have no common multiple that is exact in float64.
    """
    polynomial = atom.polynomial
    factor = _factor([term.coefficient for term in polynomial.terms])
    signs = (1, -1) if atom.relation == "==" else (1,)
    rows = []
    for sign in signs:
        parts: dict[bool, list[tuple[int, float]]] = {True: [], False: []}
        for coefficient, variables in polynomial.terms:
            exact = sign * factor * coefficient
            number = _as_double(exact)
            if number is None:
                raise UnsupportedSpec(
                    "the coefficients of a comparison are not exact in float64, not even scaled",
                    place=place(query, atom),
                    help=f"the coefficient of {query.product(variables)} is {coefficient}; "
                    "write coefficients with fewer digits",
                )
            is_input, position = layout.place(variables)
            parts[is_input].append((position, number))
        offset = round_down(sign * factor * polynomial.constant)
        if math.isinf(offset):
            raise UnsupportedSpec(
                "the constant of a comparison is too large for float64", place=place(query, atom)
            )
        outputs, inputs = tuple(sorted(parts[False])), tuple(sorted(parts[True]))
        rows.append(Row(outputs, inputs, offset, atom.relation == "<"))
    return tuple(rows)


def place(query: Query, atom: Atom) -> str:
    """File and line of a comparison."""
    return f"{query.source}:{atom.line}" if atom.line else query.source


def _factor(coefficients: Sequence[Fraction]) -> Fraction:
    """The positive number that turns the coefficients into coprime integers."""
    denominator = math.lcm(*(c.denominator for c in coefficients))
    numerator = math.gcd(*(int(c * denominator) for c in coefficients))
    return Fraction(denominator, numerator)


def _as_double(value: Fraction) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if Fraction(number) == value else None
