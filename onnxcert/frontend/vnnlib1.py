"""VNN-LIB 1.0 as practised: one network, inputs ``X_0 ..``, outputs ``Y_0 ..``, all ``Real``.

There is no grammar of 1.0. What competition files contain is read: declarations and assertions in
any order, ``and`` and ``or`` nested at will, ``<= >= < > =`` between any linear or polynomial terms
in ``+ - *``, exponents. What they do not contain (``=>``, ``not``, ``define-fun``) is refused by
name rather than guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from onnxcert.errors import SpecError
from onnxcert.frontend.assemble import Condition, assertions
from onnxcert.frontend.expression import FormulaReader
from onnxcert.frontend.scan import InputName, Scan, scan_inputs
from onnxcert.frontend.sexpr import Source, Token, Tokens
from onnxcert.frontend.sums import Sum
from onnxcert.spec.query import Query
from onnxcert.spec.tree import Network, Relation, Tensor, TensorKind, Variable

VERSION = "1.0"
NETWORK = "N"

_LARGEST_INDEX_DIGITS = 9
_NAME = re.compile(rb"([XY])_(0|[1-9]\d*)")
_DECLARATION = re.compile(rb"\s*\(declare-const ([XY])_(0|[1-9]\d{0,8}) Real\)")
_TENSORS: Final = {b"X": 0, b"Y": 1}


class Reader:
    """Reads one file; `read` may be called once.

    Args:
        source: the text.
        fast: use the scanner for boxes; without it everything is read token by token.
    """

    comparisons: Mapping[bytes, tuple[Relation, bool]] = {
        b"<=": ("<=", False),
        b"<": ("<", False),
        b">=": ("<=", True),
        b">": ("<", True),
        b"=": ("==", False),
    }

    def __init__(self, source: Source, *, fast: bool) -> None:
        self.source = source
        self.fast = fast
        self.tokens = Tokens(source)
        self.declared: dict[bytes, dict[int, int]] = {b"X": {}, b"Y": {}}
        self.scan: Scan | None = None

    def read(self) -> Query:
        """The query.

        Raises:
            SpecError: the text is not VNN-LIB 1.0 as practised.
        """
        conditions: list[Condition] = []
        while (token := self._next_form()) is not None:
            run = self._scan_from(token).runs.get(token.offset)
            if run is not None and run.is_asserted:
                self.tokens.offset = run.end
                conditions.append(run)
            else:
                self._command(token, conditions)
        tensors = [self._tensor(letter) for letter in (b"X", b"Y")]
        if not conditions:
            raise SpecError("the specification has no assertion", place=self.source.name)
        network = Network(NETWORK, (tensors[0],), (), (tensors[1],))
        formulas = assertions(conditions, self.scan or Scan.empty())
        return Query(VERSION, (network,), formulas, self.source.name)

    def _next_form(self) -> Token | None:
        """The next token at the top, after all declarations that are written the usual way."""
        while match := _DECLARATION.match(self.source.text, self.tokens.offset):
            self._add(match[1], int(match[2]), match.start(1))
            self.tokens.offset = match.end()
        return self.tokens.next()

    def _command(self, token: Token, conditions: list[Condition]) -> None:
        if token.text != b"(":
            self.source.fail(f"expected '(', found {token.quoted}", token.offset)
        keyword = self.tokens.expect("'declare-const' or 'assert'")
        if keyword.text == b"assert":
            conditions.append(FormulaReader(self.tokens, self, self._scan_from(token)).read())
        elif keyword.text == b"declare-const":
            self._declare()
        else:
            self.source.fail(
                f"{keyword.quoted} is no command of VNN-LIB 1.0",
                keyword.offset,
                help="there are (declare-const X_0 Real) and (assert ...); "
                "a 2.x file begins with (vnnlib-version <2.0>)",
            )
        self.tokens.expect_text(b")", "')'")

    def _scan_from(self, token: Token) -> Scan:
        """The scan of all that follows the first assertion; nothing before."""
        if self.scan is not None:
            return self.scan
        names = [InputName(0, b"X_", b"", (self._count(),))]
        following = self.tokens.peek()
        if following is None or following.text != b"assert":
            return Scan.empty(names)
        find = scan_inputs if self.fast else lambda *_: Scan.empty(names)
        self.scan = find(self.source, token.offset, names, b"=")
        return self.scan

    def _count(self) -> int:
        """How many inputs are declared without a gap; only those are left to the scanner."""
        declared = self.declared[b"X"]
        return len(declared) if len(declared) == max(declared, default=-1) + 1 else 0

    def _declare(self) -> None:
        name = self.tokens.expect("a variable")
        kind = self.tokens.expect("'Real'")
        if kind.text != b"Real":
            self.source.fail(f"expected 'Real', found {kind.quoted}", kind.offset)
        match = _NAME.fullmatch(name.text)
        if match is None or len(match[2]) > _LARGEST_INDEX_DIGITS:
            self.source.fail(
                f"{name.quoted} is no variable of VNN-LIB 1.0",
                name.offset,
                help="inputs are X_0, X_1, ... and outputs Y_0, Y_1, ...",
            )
        self._add(match[1], int(match[2]), name.offset)

    def _add(self, letter: bytes, index: int, offset: int) -> None:
        earlier = self.declared[letter].setdefault(index, offset)
        if earlier != offset:
            self.source.fail(
                f"{letter.decode()}_{index} is declared twice",
                offset,
                help=f"the first declaration is in line {self.source.line(earlier)}",
            )

    def _tensor(self, letter: bytes) -> Tensor:
        name, declared = letter.decode(), self.declared[letter]
        if not declared:
            raise SpecError(f"no variable {name}_0 is declared", place=self.source.name)
        if len(declared) <= max(declared):
            missing = next(i for i in range(len(declared) + 1) if i not in declared)
            above = min(index for index in declared if index > missing)
            self.source.fail(
                f"{name}_{above} is declared, but {name}_{missing} is not", declared[above]
            )
        kind: TensorKind = "input" if letter == b"X" else "output"
        return Tensor(NETWORK, name, kind, "real", (len(declared),))

    def variable(self, token: Token, tokens: Tokens) -> Sum | None:
        """``X_3`` or ``Y_3``."""
        match = _NAME.fullmatch(token.text)
        if match is None:
            return None
        letter, digits = match.groups()
        if len(digits) > _LARGEST_INDEX_DIGITS or int(digits) not in self.declared[letter]:
            self.source.fail(f"{token.quoted} is not declared", token.offset)
        return Sum.variable(Variable(_TENSORS[letter], int(digits)), None)

    def check_number(self, token: Token) -> None:
        """Every form of decimal is in use."""

    def check_types(self, left: Sum, right: Sum, token: Token) -> None:
        """There is only one type."""
