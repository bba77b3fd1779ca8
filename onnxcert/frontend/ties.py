"""Inputs that a query asserts to be equal: one of them stands for all.

A query over two networks says so of what both read (``X_f[1] == X_g[1]``). As rows such equations
would be met by no point of a search, which works with boxes; so the first input of those that are
equal is read by all networks and comparisons, and only a witness has a value for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TypeAlias

from onnxcert.spec.boxes import BoxUnion
from onnxcert.spec.query import Query
from onnxcert.spec.tree import And, Atom, Formula, Polynomial, Term, Variable, fold

Ties: TypeAlias = "Mapping[Variable, Variable]"

_PAIR = 2


def find_ties(query: Query) -> dict[Variable, Variable]:
    """Input -> the first of those that it equals wherever the assertions hold; others are missing.

    Only equations that are asserted without an alternative are looked at.
    """
    first: dict[Variable, Variable] = {}

    def find(variable: Variable) -> Variable:
        while variable in first:
            # Halves the way for the next time.
            above = first[variable]
            first[variable] = variable = first.get(above, above)
        return variable

    order = [p for p, tensor in enumerate(query.tensors) if tensor.kind == "input"]
    for pair in _equations(query):
        if pair[0].tensor in order and pair[1].tensor in order:
            low, high = sorted(map(find, pair))
            if low != high:
                first[high] = low
    return {variable: find(variable) for variable in sorted(first)}


def _equations(query: Query) -> Iterator[tuple[Variable, Variable]]:
    """Variables that are asserted to be equal."""
    pending: list[Formula] = list(query.assertions)
    for formula in pending:
        if isinstance(formula, And):
            pending += formula.children
        elif isinstance(formula, BoxUnion) and len(formula) == 1:
            pending += formula.atoms[0]
        elif isinstance(formula, Atom) and formula.relation == "==":
            terms, constant = formula.polynomial.terms, formula.polynomial.constant
            sides = [term.variables[0] for term in terms if len(term.variables) == 1]
            total = sum((term.coefficient for term in terms), constant)
            if len(sides) == len(terms) == _PAIR and not constant and not total:
                yield sides[0], sides[1]


def tied(query: Query, ties: Ties) -> Query:
    """The query with the first variable in the place of all that equal it, but in boxes."""
    if not ties:
        return query

    def leaf(formula: Atom | BoxUnion) -> Formula:
        if isinstance(formula, Atom):
            return _tied_atom(formula, ties)
        atoms = tuple(tuple(_tied_atom(atom, ties) for atom in part) for part in formula.atoms)
        return replace(formula, atoms=atoms)

    assertions = tuple(
        fold(formula, leaf, lambda node, children: replace(node, children=tuple(children)))
        for formula in query.assertions
    )
    return replace(query, assertions=assertions)


def _tied_atom(atom: Atom, ties: Ties) -> Atom:
    sums: dict[tuple[Variable, ...], Fraction] = {}
    for coefficient, variables in atom.polynomial.terms:
        product = tuple(sorted(ties.get(variable, variable) for variable in variables))
        sums[product] = sums.get(product, Fraction(0)) + coefficient
    terms = tuple(Term(c, product) for product, c in sums.items() if c)
    return replace(atom, polynomial=Polynomial(terms, atom.polynomial.constant))
