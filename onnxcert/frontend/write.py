"""Queries to VNN-LIB files that read back to an equivalent query.

Numbers are written as exact decimals without exponents, which 2.x does not have; a comparison with
coefficients such as 1/3 is multiplied by the denominator first. Files appear under their name only
when they are complete.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Literal, TextIO

from onnxcert.errors import UsageError
from onnxcert.frontend.declarations import INTEGER_TYPES
from onnxcert.frontend.numbers import LONGEST_LITERAL
from onnxcert.spec.boxes import BoxUnion
from onnxcert.spec.query import Query
from onnxcert.spec.tree import (
    And,
    Atom,
    Formula,
    Network,
    Polynomial,
    Relation,
    Tensor,
    Term,
    Variable,
    compare,
)

Version = Literal["1.0", "2.0"]


def save_vnnlib(query: Query, path: str | os.PathLike[str], version: Version | None = None) -> None:
    """Write a query to a file.

    Args:
        query: what to write.
        path: the file; replaced if it exists.
        version: of VNN-LIB; that of the query by default.

    Raises:
        UsageError: the version cannot say what the query says.
        OSError: the file cannot be written.
    """
    path = Path(path)
    writer = _Writer(query, version or ("1.0" if query.version == "1.0" else "2.0"))
    with _replacing(path) as file:
        file.writelines(writer.lines())


def format_vnnlib(query: Query, version: Version | None = None) -> str:
    """The text that `save_vnnlib` writes."""
    return "".join(_Writer(query, version or ("1.0" if query.version == "1.0" else "2.0")).lines())


def decimal(value: Fraction) -> str:
    """A number whose denominator divides a power of ten, as decimal digits, exactly.

    Raises:
        UsageError: it has no finite expansion, or one longer than what the reader accepts.
    """
    if _other_primes(value.denominator) != 1:
        raise UsageError(f"{value} has no finite decimal expansion")
    digits = max(_power_of(2, value.denominator), _power_of(5, value.denominator))
    scaled = abs(value.numerator) * 10**digits // value.denominator
    if scaled >= 10 ** (LONGEST_LITERAL - 3) or digits > LONGEST_LITERAL - 3:
        raise UsageError("a number of the query has too many digits to be written")
    text = str(scaled).rjust(digits + 1, "0")
    point = len(text) - digits
    return f"{'-' if value < 0 else ''}{text[:point]}.{text[point:] or '0'}"


def _power_of(prime: int, number: int) -> int:
    """How often the prime divides the number."""
    count = 0
    while number % prime == 0:
        number //= prime
        count += 1
    return count


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A file beside the path that takes its name if all goes well, and disappears if not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _Writer:
    """The text of one query in one version."""

    def __init__(self, query: Query, version: Version) -> None:
        self.query = query
        self.version = version
        if version == "1.0":
            self._check_simple()
        inputs = next(p for p, tensor in enumerate(query.tensors) if tensor.kind == "input")
        self.some_input = self.variable(Variable(inputs, 0))
        self.integers = {
            position
            for position, tensor in enumerate(query.tensors)
            if tensor.element_type in INTEGER_TYPES and version != "1.0"
        }

    def _check_simple(self) -> None:
        kinds = [tensor.kind for tensor in self.query.tensors]
        if kinds != ["input", "output"]:
            raise UsageError(
                "VNN-LIB 1.0 has one network with one input and one output", help="write 2.0"
            )

    def lines(self) -> Iterator[str]:
        """The file, in pieces."""
        yield from self._declarations()
        for formula in self.query.assertions:
            for part in self._split(formula):
                yield "(assert "
                yield from self._formula(part)
                yield ")\n"

    def _declarations(self) -> Iterator[str]:
        if self.version == "1.0":
            for tensor, name in zip(self.query.tensors, "XY", strict=True):
                yield from (f"(declare-const {name}_{i} Real)\n" for i in range(tensor.size))
            return
        yield "(vnnlib-version <2.0>)\n"
        for network in self.query.networks:
            yield f"(declare-network {network.name}\n{_relation(network)}"
            yield from (f"    {_declaration(tensor)}\n" for tensor in network.tensors)
            yield ")\n"

    def variable(self, variable: Variable) -> str:
        """An element as the version writes it."""
        tensor = self.query.tensors[variable.tensor]
        if self.version == "1.0":
            return f"{'X' if tensor.kind == 'input' else 'Y'}_{variable.element}"
        return tensor.label(variable.element)

    def _split(self, formula: Formula) -> Iterator[Formula | str]:
        """Conjunctions at the top become assertions of their own, as files usually have them."""
        if isinstance(formula, BoxUnion) and len(formula) == 1:
            yield from self._disjunct(formula, 0) or [self._constant(True)]
        else:
            yield formula

    def _formula(self, formula: Formula | str) -> Iterator[str]:
        """Depth first with a stack of its own, for formulas may be nested deeply."""
        stack: list[Formula | str] = [formula]
        while stack:
            node = stack.pop()
            if isinstance(node, str):
                yield node
            elif isinstance(node, Atom):
                yield self._atom(node)
            elif isinstance(node, BoxUnion):
                yield from self._union(node)
            elif not node.children:
                yield self._constant(isinstance(node, And))
            else:
                yield "(and" if isinstance(node, And) else "(or"
                stack.append(")")
                for child in reversed(node.children):
                    stack += (child, " ")

    def _union(self, union: BoxUnion) -> Iterator[str]:
        if not len(union):
            yield self._constant(False)
            return
        yield "(or\n"
        for number in range(len(union)):
            parts = self._disjunct(union, number) or [self._constant(True)]
            yield f"  (and {' '.join(parts)})\n"
        yield ")"

    def _disjunct(self, union: BoxUnion, number: int) -> list[str]:
        parts = []
        for column in range(len(union.columns)):
            variable = union.variable(column)
            for sign, limit in zip((-1, 1), union.exact_bounds(number, column), strict=True):
                if limit is not None:
                    term = Term(Fraction(sign), (variable,))
                    parts.append(self._atom(Atom(Polynomial((term,), -sign * limit), "<=")))
        return parts + [self._atom(atom) for atom in union.atoms[number]]

    def _constant(self, value: bool) -> str:
        """A comparison that always has this value; with a variable, for the sake of its type."""
        return f"({'<=' if value else '<'} {self.some_input} {self.some_input})"

    def _atom(self, atom: Atom) -> str:
        polynomial = atom.polynomial
        if not polynomial.terms:
            return self._constant(compare(polynomial.constant, atom.relation))
        if not polynomial.is_linear and (squares := self._squares(atom)):
            return squares
        scale = math.lcm(
            *(_other_primes(term.coefficient.denominator) for term in polynomial.terms),
            _other_primes(polynomial.constant.denominator),
        )
        terms = [(term.coefficient * scale, term.variables) for term in polynomial.terms]
        constant = polynomial.constant * scale
        if any(variables[0].tensor in self.integers for _, variables in terms):
            rest = math.lcm(*(c.denominator for c, _ in terms), constant.denominator)
            terms, constant = [(c * rest, v) for c, v in terms], constant * rest
        is_flipped = all(coefficient < 0 for coefficient, _ in terms)
        if is_flipped:
            terms, constant = [(-c, v) for c, v in terms], -constant
        left = [self._term(c, v) for c, v in terms if c > 0]
        right = [self._term(-c, v) for c, v in terms if c < 0]
        if constant or not right:
            right.append(self._number(-constant, terms[0][1]))
        return self._compare(atom.relation, is_flipped, _sum(left), _sum(right))

    def _squares(self, atom: Atom) -> str:
        """A sum of squares round a point, as people write it; empty where it is something else."""
        squares: dict[Variable, Fraction] = {}
        linear: dict[Variable, Fraction] = {}
        for coefficient, variables in atom.polynomial.terms:
            (squares if len(variables) == 2 else linear)[variables[0]] = coefficient
            if len(variables) > 2 or variables[0] != variables[-1]:
                return ""
        if not linear.keys() <= squares.keys() or any(v.tensor in self.integers for v in squares):
            return ""
        parts, limit = [], -atom.polynomial.constant
        try:
            for variable, weight in squares.items():
                center = -linear.get(variable, Fraction(0)) / (2 * weight)
                limit += weight * center * center
                name = self.variable(variable)
                name = f"(- {name} {decimal(center)})" if center else name
                factor = "" if weight == 1 else f"{decimal(weight)} "
                parts.append(f"(* {factor}{name} {name})")
            return self._compare(atom.relation, False, _sum(parts), decimal(limit))
        except UsageError:  # a third is no decimal; the terms one by one can be multiplied by three
            return ""

    def _compare(self, relation: Relation, is_flipped: bool, left: str, right: str) -> str:
        if relation == "!=" and self.version == "1.0":
            return f"(or (< {left} {right}) (> {left} {right}))"
        operator = {"<=": ">=", "<": ">"}.get(relation, relation) if is_flipped else relation
        operator = "=" if operator == "==" and self.version == "1.0" else operator
        return f"({operator} {left} {right})"

    def _term(self, coefficient: Fraction, variables: tuple[Variable, ...]) -> str:
        factors = [self.variable(variable) for variable in variables]
        if coefficient != 1:
            factors.insert(0, self._number(coefficient, variables))
        return factors[0] if len(factors) == 1 else f"(* {' '.join(factors)})"

    def _number(self, value: Fraction, beside: tuple[Variable, ...]) -> str:
        if beside[0].tensor in self.integers:
            return str(value)
        return decimal(value)


def _sum(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"(+ {' '.join(parts)})"


def _other_primes(number: int) -> int:
    """The number without its factors 2 and 5."""
    for prime in (2, 5):
        while number % prime == 0:
            number //= prime
    return number


def _relation(network: Network) -> str:
    if network.equal_to:
        return f"    (equal-to {network.equal_to})\n"
    return f"    (isomorphic-to {network.isomorphic_to})\n" if network.isomorphic_to else ""


def _declaration(tensor: Tensor) -> str:
    shape = f"[{','.join(map(str, tensor.shape))}]"
    text = f"(declare-{tensor.kind} {tensor.name} {tensor.element_type} {shape}"
    if tensor.onnx_name is None:
        return text + ")"
    name = tensor.onnx_name
    for character, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        name = name.replace(character, escaped)
    return f'{text} "{name}")'
