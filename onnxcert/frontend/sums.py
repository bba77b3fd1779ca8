"""Polynomials under construction: the values of arithmetic expressions while a file is read.

A `Sum` is changed in place and keeps a common scale aside, and merging always moves the smaller
into the larger, so that 10,000 nested parentheses cost no more than 10,000 additions.
"""

from __future__ import annotations

from fractions import Fraction

from onnxcert.spec.tree import Polynomial, Term, Variable

LARGEST_SUM = 200_000
"""Terms of one polynomial; expanding a product of sums could otherwise go on for ever."""

LARGEST_DEGREE = 64
LARGEST_NUMBER = 2**16
"""Bits of one coefficient."""

ZERO = Fraction(0)
ONE = Fraction(1)


class SumError(ValueError):
    """A polynomial grows beyond what can be computed with."""


class Sum:
    """``scale * sum(coefficient * product of variables)``; the empty product is the constant.

    Attributes:
        element_type: of the variables seen; ``None`` when there are only numbers.
        fraction: a literal that is no integer, if there was one; not allowed beside integers.
    """

    __slots__ = ("element_type", "fraction", "scale", "terms")

    def __init__(self, terms: dict[tuple[Variable, ...], Fraction]) -> None:
        self.scale = ONE
        self.terms = terms
        self.element_type: str | None = None
        self.fraction: bytes | None = None

    @classmethod
    def number(cls, value: Fraction, text: bytes) -> Sum:
        """A literal."""
        result = cls({(): value} if value else {})
        result.fraction = None if value.denominator == 1 else text
        return result

    @classmethod
    def variable(cls, variable: Variable, element_type: str | None) -> Sum:
        """One variable."""
        result = cls({(variable,): ONE})
        result.element_type = element_type
        return result

    @property
    def polynomial(self) -> Polynomial:
        """The finished value."""
        constant = self.terms.get((), ZERO) * self.scale
        terms = tuple(Term(c * self.scale, v) for v, c in self.terms.items() if v)
        return Polynomial(terms, constant)

    def times(self, factor: Fraction) -> Sum:
        """This sum multiplied by a number, in place."""
        if factor:
            self.scale = self.scale * factor
            _limit(self.scale)
        else:
            self.scale, self.terms = ONE, {}
        return self

    def plus(self, other: Sum) -> Sum:
        """The sum of both; neither may be used afterwards."""
        large, small = (self, other) if len(self.terms) >= len(other.terms) else (other, self)
        factor = small.scale / large.scale
        _limit(factor)
        for variables, coefficient in small.terms.items():
            _add(large.terms, variables, coefficient * factor)
        if len(large.terms) > LARGEST_SUM:
            raise SumError(f"a polynomial has more than {LARGEST_SUM} terms")
        return large._join(small)

    def multiply(self, other: Sum) -> Sum:
        """The product of both; neither may be used afterwards."""
        for one, many in ((self, other), (other, self)):
            if not one.terms or set(one.terms) == {()}:
                return many.times(one.terms.get((), ZERO) * one.scale)._join(one)
        if len(self.terms) * len(other.terms) > LARGEST_SUM:
            raise SumError(f"a product of sums has more than {LARGEST_SUM} terms")
        product = Sum({})
        for variables, coefficient in self.terms.items():
            for others, factor in other.terms.items():
                _add(product.terms, tuple(sorted(variables + others)), coefficient * factor)
        if max(map(len, product.terms), default=0) > LARGEST_DEGREE:
            raise SumError(f"a product has more than {LARGEST_DEGREE} factors")
        return product.times(self.scale * other.scale)._join(self)._join(other)

    def _join(self, other: Sum) -> Sum:
        self.element_type = self.element_type or other.element_type
        self.fraction = self.fraction or other.fraction
        return self


def _add(
    terms: dict[tuple[Variable, ...], Fraction], variables: tuple[Variable, ...], value: Fraction
) -> None:
    total = terms.get(variables, ZERO) + value
    _limit(total)
    if total:
        terms[variables] = total
    else:
        terms.pop(variables, None)


def _limit(value: Fraction) -> None:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST_NUMBER:
        raise SumError("the coefficients of a polynomial have too many digits")
