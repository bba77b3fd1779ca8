"""What a query says: declared tensors, and an and/or tree of exact polynomial comparisons.

Every number is a ``fractions.Fraction`` read from the literal as written, so nothing is decided by
rounding before the search begins. A comparison is stored as ``polynomial REL 0`` with REL one of
``<= < == !=`` (``>`` and ``>=`` are negated on reading); strictness is kept. Disjunctions stay a
tree, because 18 binary ones are already 262,144 conjunctions.

The alternative of a row matrix per disjunct is what the engine wants, and is made on the way there
(`onnxcert.frontend.lower`); it cannot hold products, strictness or relations between networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    from onnxcert.spec.boxes import BoxUnion

Relation: TypeAlias = Literal["<=", "<", "==", "!="]
TensorKind: TypeAlias = Literal["input", "hidden", "output"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A declared tensor.

    Attributes:
        network: name of the network it belongs to.
        name: unique in the query.
        kind: what it is to the network.
        element_type: ``real``, or an ONNX element type such as ``float32``.
        shape: dimensions; ``()`` is a scalar.
        onnx_name: for hidden tensors, the name of the value in the ONNX graph.
    """

    network: str
    name: str
    kind: TensorKind
    element_type: str
    shape: tuple[int, ...]
    onnx_name: str | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def label(self, element: int) -> str:
        """An element as VNN-LIB 2.x writes it: ``X[0,3]``, or ``X`` for a scalar."""
        if not self.shape:
            return self.name
        position = np.unravel_index(element, self.shape)
        return f"{self.name}[{','.join(str(int(i)) for i in position)}]"


@dataclass(frozen=True, slots=True)
class Network:
    """A declared network: an interface, bound to a model file only when verifying.

    Attributes:
        equal_to: name of an earlier network that has the same model file.
        isomorphic_to: name of an earlier network with the same graph and other weights.
    """

    name: str
    inputs: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    equal_to: str | None = None
    isomorphic_to: str | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Inputs, hidden, outputs: the order of declaration."""
        return self.inputs + self.hidden + self.outputs


class Variable(NamedTuple):
    """One element: position of its tensor in ``Query.tensors``, row-major position in it."""

    tensor: int
    element: int


class Term(NamedTuple):
    """``coefficient * product of variables``; variables are sorted and may repeat."""

    coefficient: Fraction
    variables: tuple[Variable, ...]


@dataclass(frozen=True, slots=True)
class Polynomial:
    """``constant + sum of terms``; no term has coefficient zero, no product occurs twice."""

    terms: tuple[Term, ...]
    constant: Fraction

    @property
    def is_linear(self) -> bool:
        """Whether no term multiplies variables."""
        return all(len(term.variables) == 1 for term in self.terms)

    def value(self, value_of: Callable[[Variable], Fraction]) -> Fraction:
        """The exact value at a point."""
        total = self.constant
        for coefficient, variables in self.terms:
            product = coefficient
            for variable in variables:
                product *= value_of(variable)
            total += product
        return total


@dataclass(frozen=True, slots=True)
class Atom:
    """``polynomial REL 0``; ``line`` is where it stands in the source (0: in no file)."""

    polynomial: Polynomial
    relation: Relation
    line: int = 0

    def holds(self, value_of: Callable[[Variable], Fraction]) -> bool:
        """Whether the comparison is true at a point, exactly."""
        return compare(self.polynomial.value(value_of), self.relation)


@dataclass(frozen=True, slots=True)
class And:
    """All of the children; true when there are none."""

    children: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of the children; false when there are none."""

    children: tuple[Formula, ...]


Formula: TypeAlias = "Atom | And | Or | BoxUnion"
Leaf: TypeAlias = "Atom | BoxUnion"


def compare(value: Fraction, relation: Relation) -> bool:
    """Whether ``value REL 0``."""
    if relation == "<=":
        return value <= 0
    if relation == "<":
        return value < 0
    return (value == 0) == (relation == "==")


def leaves(formulas: Sequence[Formula]) -> Iterator[Leaf]:
    """All comparisons and box unions, in the order written, without recursion on depth."""
    stack: list[Formula] = list(reversed(formulas))
    while stack:
        formula = stack.pop()
        if isinstance(formula, And | Or):
            stack.extend(reversed(formula.children))
        else:
            yield formula


def atoms(formulas: Sequence[Formula]) -> Iterator[Atom]:
    """All comparisons, those that ride along in box unions included."""
    for leaf in leaves(formulas):
        if isinstance(leaf, Atom):
            yield leaf
        else:
            for conjunction in leaf.atoms:
                yield from conjunction


def fold(
    formula: Formula, leaf: Callable[[Leaf], T], combine: Callable[[And | Or, list[T]], T]
) -> T:
    """Compute bottom-up over the tree; a file may nest deeper than Python's own stack allows."""
    done: list[T] = []
    stack: list[tuple[Formula, bool]] = [(formula, False)]
    while stack:
        node, is_ready = stack.pop()
        if not isinstance(node, And | Or):
            done.append(leaf(node))
        elif is_ready:
            start = len(done) - len(node.children)
            done[start:] = [combine(node, done[start:])]
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.children))
    return done[0]
