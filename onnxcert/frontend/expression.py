"""Formulas from tokens, for both dialects: shift until a form closes, then reduce it.

The parser keeps its own stack, so depth costs memory and nothing else. Forms that the scanner
(`onnxcert.frontend.scan`) has recognised, runs of comparisons of one input with one number, are
taken as a whole; with the scanner switched off the same code reads them token by token, which is
what the tests compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NoReturn, Protocol, TypeAlias

from onnxcert.frontend.assemble import Condition, conjunction, disjunction
from onnxcert.frontend.numbers import NumberError, parse_number
from onnxcert.frontend.scan import Run, Scan
from onnxcert.frontend.sexpr import Token, Tokens
from onnxcert.frontend.sums import Sum, SumError
from onnxcert.spec.tree import Atom, Relation

ONLY_PREFIX = "operators stand in front: (<= a b), (and a b ...), (+ a b ...)"


class Dialect(Protocol):
    """What differs between the versions of VNN-LIB inside a formula."""

    @property
    def comparisons(self) -> Mapping[bytes, tuple[Relation, bool]]:
        """Relation of each operator, and whether its sides must be exchanged."""

    def variable(self, token: Token, tokens: Tokens) -> Sum | None:
        """The variable that starts at a word, or ``None`` if the word is no name."""

    def check_number(self, token: Token) -> None:
        """Complain about a literal in a form that the dialect does not have."""

    def check_types(self, left: Sum, right: Sum, token: Token) -> None:
        """Raise unless the two sides of ``token`` may be compared or combined."""


Value: TypeAlias = "Sum | Condition"

_CONNECTIVES = (b"and", b"or")
_ARITHMETIC = (b"+", b"-", b"*")
_MINUS_ONE = Fraction(-1)


@dataclass(slots=True)
class _Frame:
    """An open parenthesis: where, its operator, and the operands so far with their offsets."""

    offset: int
    operator: Token
    operands: list[Value] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def push(self, value: Value, offset: int) -> None:
        self.operands.append(value)
        self.offsets.append(offset)


class FormulaReader:
    """Reads formulas from a cursor.

    Args:
        tokens: the cursor, left behind the formula.
        dialect: names, numbers and comparison operators.
        scan: what the scanner has found in the same source.
    """

    def __init__(self, tokens: Tokens, dialect: Dialect, scan: Scan) -> None:
        self.tokens = tokens
        self.dialect = dialect
        self.scan = scan
        self.source = tokens.source

    def read(self) -> Condition:
        """The formula that starts at the cursor.

        Raises:
            SpecError: it is not a formula; the place is the first token that cannot be right.
        """
        root = _Frame(self.tokens.offset, Token(b"assert", self.tokens.offset))
        stack = [root]
        while stack[-1] is not root or not root.operands:
            token = self.tokens.next()
            if token is None:
                self._fail_at_end(stack)
            run = self._run(token, alone=stack[-1] is root)
            if run is not None:
                self.tokens.offset = run.end
                stack[-1].push(run, token.offset)
            elif token.text == b"(":
                stack.append(_Frame(token.offset, self._operator()))
            elif token.text == b")":
                if stack[-1] is root:
                    self.source.fail("expected a formula, found ')'", token.offset)
                frame = stack.pop()
                stack[-1].push(self._reduce(frame), frame.offset)
            else:
                stack[-1].push(self._operand(token), token.offset)
        return self._as_formula(root, 0)

    def _run(self, token: Token, *, alone: bool) -> Run | None:
        """The scanned forms at a token; an assertion takes no more than one."""
        run = self.scan.runs.get(token.offset)
        if run is None or run.is_asserted or (alone and run.stop - run.start > 1):
            return None
        return run

    def _fail_at_end(self, stack: list[_Frame]) -> NoReturn:
        what = "a formula"
        if len(stack) > 1:
            what = f"')' for the '(' of line {self.source.line(stack[-1].operator.offset)}"
        self.tokens.fail_at_end(what)

    def _operator(self) -> Token:
        token = self.tokens.expect("an operator")
        if token.text in self.dialect.comparisons or token.text in _CONNECTIVES:
            return token
        if token.text in _ARITHMETIC:
            return token
        if token.text in b"()":
            self.source.fail(f"expected an operator, found {token.quoted}", token.offset)
        operators = b" ".join([*_CONNECTIVES, *self.dialect.comparisons, *_ARITHMETIC]).decode()
        self.source.fail(
            f"{token.quoted} is no operator", token.offset, f"{ONLY_PREFIX}; there are {operators}"
        )

    def _operand(self, token: Token) -> Sum:
        variable = self.dialect.variable(token, self.tokens)
        if variable is not None:
            return variable
        try:
            number = parse_number(token.text)
        except NumberError as error:
            self.source.fail(str(error), token.offset)
        if number is None:
            self.source.fail(f"{token.quoted} is no number and no variable", token.offset)
        self.dialect.check_number(token)
        return Sum.number(number, token.text)

    def _reduce(self, frame: _Frame) -> Value:
        if frame.operator.text in _CONNECTIVES:
            return self._connective(frame)
        sums = [self._as_sum(frame, position) for position in range(len(frame.operands))]
        for other in sums[1:]:
            self.dialect.check_types(sums[0], other, frame.operator)
            sums[0].element_type = sums[0].element_type or other.element_type
            sums[0].fraction = sums[0].fraction or other.fraction
        try:
            if frame.operator.text in _ARITHMETIC:
                return self._arithmetic(frame.operator, sums)
            return self._comparison(frame.operator, sums)
        except SumError as error:
            self.source.refuse(str(error), frame.operator.offset)

    def _arithmetic(self, operator: Token, sums: list[Sum]) -> Sum:
        if not sums:
            self.source.fail(f"{operator.quoted} has no operand", operator.offset)
        result, rest = sums[0], sums[1:]
        if operator.text == b"-" and not rest:
            return result.times(_MINUS_ONE)
        for other in rest:
            if operator.text == b"*":
                result = result.multiply(other)
            else:
                result = result.plus(other if operator.text == b"+" else other.times(_MINUS_ONE))
        return result

    def _comparison(self, operator: Token, sums: list[Sum]) -> Atom:
        if len(sums) != 2:
            self.source.fail(
                f"{operator.quoted} compares two terms, not {len(sums)}", operator.offset
            )
        relation, is_swapped = self.dialect.comparisons[operator.text]
        left, right = reversed(sums) if is_swapped else sums
        difference = left.plus(right.times(_MINUS_ONE))
        return Atom(difference.polynomial, relation, self.source.line(operator.offset))

    def _connective(self, frame: _Frame) -> Condition:
        if not frame.operands:
            self.source.fail(
                f"{frame.operator.quoted} has no operand",
                frame.operator.offset,
                help="for a condition that is always true, leave it out",
            )
        values = [self._as_formula(frame, position) for position in range(len(frame.operands))]
        if frame.operator.text == b"and":
            return conjunction(values, self.scan)
        return disjunction(values, self.scan)

    def _as_formula(self, frame: _Frame, position: int) -> Condition:
        value = frame.operands[position]
        if isinstance(value, Sum):
            self.source.fail(
                f"{frame.operator.quoted} needs a comparison, 'and' or 'or' here, not a term",
                frame.offsets[position],
                help=ONLY_PREFIX,
            )
        return value

    def _as_sum(self, frame: _Frame, position: int) -> Sum:
        value = frame.operands[position]
        if not isinstance(value, Sum):
            self.source.fail(
                f"{frame.operator.quoted} needs a number or variable here, not a condition",
                frame.offsets[position],
            )
        return value
