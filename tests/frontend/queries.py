"""Random queries, and what is true about them without any of our readers.

A query is drawn as text (so that the readers can be compared with each other and with the package
``vnnlib``) or as a tree, over few variables and few constants, so that comparisons often meet
exactly at a boundary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from onnxcert.spec import (
    And,
    Atom,
    BoxUnion,
    Decimals,
    Formula,
    Network,
    Or,
    Polynomial,
    Query,
    Tensor,
    Term,
    Variable,
)

X = Tensor("N", "X", "input", "real", (2,))
Y = Tensor("N", "Y", "output", "real", (2,))
NETWORK = Network("N", (X,), (), (Y,))
INPUTS = (Variable(0, 0), Variable(0, 1))
OUTPUTS = (Variable(1, 0), Variable(1, 1))

CONSTANTS = tuple(Fraction(text) for text in ("-1", "-0.5", "0", "0.1", "0.25", "1", "2"))
GRID = (-1.0, -0.5, 0.0, 0.1, float(np.nextafter(0.1, 0)), 0.25, 1.0)
"""0.1 stands above the decimal of that name; its neighbour stands below."""


def points() -> Iterator[dict[str, np.ndarray]]:
    """Inputs and outputs on a coarse part of the grid."""
    for x0, x1, y0, y1 in itertools.product(GRID, GRID, GRID[::2], GRID[1::2]):
        yield {"X": np.array([x0, x1]), "Y": np.array([y0, y1])}


def sample(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Some of the points of the grid."""
    rng = np.random.default_rng(seed)
    return [{"X": rng.choice(GRID, 2), "Y": rng.choice(GRID, 2)} for _ in range(count)]


def holds(formula: Formula, point: dict[str, np.ndarray]) -> bool:
    """Truth by the definition, recursively; the oracle for `Query.holds`."""
    if isinstance(formula, And):
        return all(holds(child, point) for child in formula.children)
    if isinstance(formula, Or):
        return any(holds(child, point) for child in formula.children)
    if isinstance(formula, BoxUnion):
        return any(holds(disjunct(formula, k), point) for k in range(len(formula)))
    value = formula.polynomial.constant
    for coefficient, variables in formula.polynomial.terms:
        product = coefficient
        for variable in variables:
            product *= Fraction(float(point["XY"[variable.tensor]][variable.element]))
        value += product
    relations = {"<=": value <= 0, "<": value < 0, "==": value == 0, "!=": value != 0}
    return relations[formula.relation]


def disjunct(union: BoxUnion, number: int) -> And:
    """One disjunct of a union as a tree."""
    children: list[Formula] = list(union.atoms[number])
    for column in range(len(union.columns)):
        variable = union.variable(column)
        low, high = union.exact_bounds(number, column)
        if low is not None:
            children.append(linear({variable: Fraction(-1)}, low))
        if high is not None:
            children.append(linear({variable: Fraction(1)}, -high))
    return And(tuple(children))


def linear(
    coefficients: dict[Variable, Fraction], constant: Fraction, relation: str = "<="
) -> Atom:
    """A linear comparison with zero."""
    terms = tuple(Term(c, (variable,)) for variable, c in coefficients.items() if c)
    return Atom(Polynomial(terms, constant), relation)  # type: ignore[arg-type]


def atoms(*, products: bool) -> st.SearchStrategy[Atom]:
    """Bounds of one variable, comparisons of two, and products if wanted."""
    constants = st.sampled_from(CONSTANTS)
    variables = st.sampled_from(INPUTS + OUTPUTS)
    factors = st.lists(variables, min_size=1, max_size=3 if products else 1).map(
        lambda chosen: tuple(sorted(chosen))
    )
    terms = st.dictionaries(factors, constants.filter(bool), max_size=3).map(
        lambda terms: tuple(Term(c, v) for v, c in terms.items())
    )
    relations = st.sampled_from(["<=", "<", "==", "!="])
    return st.builds(Atom, st.builds(Polynomial, terms, constants), relations)


def bounds() -> st.SearchStrategy[Atom]:
    """``x <= c`` and ``x >= c`` for an input."""
    return st.builds(
        lambda variable, sign, constant: linear({variable: Fraction(sign)}, constant),
        st.sampled_from(INPUTS),
        st.sampled_from((1, -1)),
        st.sampled_from(CONSTANTS),
    )


@st.composite
def unions(draw: st.DrawFn) -> BoxUnion:
    """Up to three boxes, empty ones and missing bounds included."""
    count = draw(st.integers(1, 3))
    columns = np.array(draw(st.permutations(INPUTS))[: draw(st.integers(1, 2))])
    cells = st.lists(
        st.sampled_from(CONSTANTS), min_size=count * len(columns), max_size=count * len(columns)
    )
    sides = [Decimals.from_fractions(draw(cells)).reshape(count, -1) for _ in range(2)]
    extra = st.lists(atoms(products=False), max_size=2).map(tuple)
    return BoxUnion.build(columns, sides[0], sides[1], tuple(draw(extra) for _ in range(count)))


def formulas(*, products: bool = False) -> st.SearchStrategy[Formula]:
    """Trees of moderate size; empty conjunctions and disjunctions included."""
    leaf = st.one_of(bounds(), atoms(products=products), unions())
    return st.recursive(
        leaf,
        lambda child: st.builds(
            lambda kind, children: kind(tuple(children)),
            st.sampled_from((And, Or)),
            st.lists(child, max_size=3),
        ),
        max_leaves=8,
    )


def queries(*, products: bool = False) -> st.SearchStrategy[Query]:
    """Queries with one network, two inputs and two outputs."""
    assertions = st.lists(formulas(products=products), min_size=1, max_size=4).map(tuple)
    return st.builds(Query, st.just("2.0"), st.just((NETWORK,)), assertions)


def bounded(query: Query) -> Query:
    """The same query within the unit box, give or take."""
    box = [linear({v: Fraction(s)}, Fraction(-1)) for v in INPUTS for s in (1, -1)]
    return Query(query.version, query.networks, (*box, *query.assertions), query.source)


_SPACES = st.sampled_from([" ", "  ", "\n", " ; a remark (<= X_0 1)\n "])
_NUMBERS = st.one_of(
    st.sampled_from(["0", "0.0", "-0.0", "1", "-1.0", "0.25", "0.1", "00.50", "+1", ".5", "2."]),
    st.sampled_from(["1e-1", "1E2", "-25e-2", "1e-30", "1e22", "0." + "3" * 30]),
    st.decimals(-2, 2, allow_nan=False, places=18).map(lambda d: f"{d:f}"),
    st.floats(-2, 2).map(lambda f: f"{f:.25f}"),
)


@st.composite
def box_texts(draw: st.DrawFn) -> str:
    """VNN-LIB 1.0 files in the shapes that the scanner looks for, and close to them."""

    def space() -> str:
        return draw(_SPACES)

    def comparison() -> str:
        operator = draw(st.sampled_from(["<=", ">=", "=", "<", ">"]))
        name = draw(st.sampled_from(["X_0", "X_1", "X_2", "Y_0"]))
        operands = [name, draw(_NUMBERS)]
        if draw(st.integers(0, 9)) == 0:
            operands.reverse()
        gap = draw(st.sampled_from(["", " "]))
        return f"({gap}{operator}{space()}{operands[0]}{space()}{operands[1]}{gap})"

    def several(low: int, high: int) -> str:
        count = draw(st.integers(low, high))
        return space().join(comparison() for _ in range(count))

    shapes: list[Callable[[], str]] = [
        lambda: f"(assert {comparison()})",
        lambda: f"(assert{space()}(and {several(1, 5)}))",
        lambda: f"(assert (or {several(1, 4)}))",
        lambda: f"(assert (or {space().join(f'(and {several(1, 6)})' for _ in range(3))}))",
        lambda: f"(assert (or (and {several(1, 3)} (or {several(1, 3)})) {several(1, 2)}))",
        lambda: "(assert (<= (+ X_0 Y_0) 0.5))",
    ]
    count = draw(st.integers(1, 6))
    lines = [draw(st.sampled_from(shapes))() for _ in range(count)]
    declared = "".join(f"(declare-const {n} Real)\n" for n in ("X_0", "X_1", "X_2", "Y_0"))
    return declared + "\n".join(lines) + "\n"
