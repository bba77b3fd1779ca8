"""VNN-LIB 2.x by its grammar (VNNLIB-Standard, ``syntax/grammar.cf``, 2.0 and 2.1).

Everything in the grammar is read: several networks, ``equal-to`` and ``isomorphic-to``, hidden
tensors, scalars, products, ``!=``. The typing rules of the standard are checked here too: unique
names, complete indices in range, one element type per comparison, interfaces of related networks.

Harmless departures from the grammar are read: ``Real`` for ``real``, comparisons of constants, and,
with a warning in the log where the scanner has not been faster, a blank behind the parenthesis of
a keyword and numbers with exponents (translations of 1.0 files have them). ``initialized`` (2.1) is
refused, because the text of the standard does not yet say what it means.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from onnxcert.errors import SpecError
from onnxcert.frontend.assemble import Condition, assertions
from onnxcert.frontend.declarations import FLOAT_TYPES, INTEGER_TYPES, SHAPE, WORD, Declarations
from onnxcert.frontend.expression import FormulaReader
from onnxcert.frontend.numbers import is_standard
from onnxcert.frontend.scan import InputName, Scan, scan_inputs
from onnxcert.frontend.sexpr import Source, Token, Tokens
from onnxcert.frontend.sums import Sum
from onnxcert.spec.query import Query
from onnxcert.spec.tree import Relation, Variable

KNOWN_VERSIONS = ("2.0", "2.1")

_VERSION = re.compile(rb"<(\d{1,9})\.(\d{1,9})>")
_log = logging.getLogger(__name__)


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
        b"==": ("==", False),
        b"!=": ("!=", False),
    }

    def __init__(self, source: Source, *, fast: bool) -> None:
        self.source = source
        self.fast = fast
        self.tokens = Tokens(source)
        self.declared = Declarations(self.tokens)

    def read(self) -> Query:
        """The query.

        Raises:
            SpecError: the text is not VNN-LIB 2.x; `UnsupportedSpec` where it may be, but is of a
                version or uses a feature that is not known here.
        """
        version = self._version()
        start = self.declared.read()
        self.tokens.offset = start
        scan = self._scan(start)
        conditions: list[Condition] = []
        while (keyword := self._next_assertion(scan, conditions)) is not None:
            if keyword.text != b"assert":
                self.declared.unexpected(keyword, "'assert'")
            conditions.append(FormulaReader(self.tokens, self, scan).read())
            self.tokens.expect_text(b")", "')'")
        if not conditions:
            raise SpecError("the specification has no assertion", place=self.source.name)
        formulas = assertions(conditions, scan)
        return Query(version, tuple(self.declared.networks), formulas, self.source.name)

    def _version(self) -> str:
        keyword = self.declared.open("(vnnlib-version <2.0>)")
        if keyword is None or keyword.text != b"vnnlib-version":
            self.declared.unexpected(keyword, "(vnnlib-version <2.0>) at the beginning")
        token = self.tokens.expect("a version such as <2.0>")
        match = _VERSION.fullmatch(token.text)
        if match is None:
            self.source.fail(
                f"{token.quoted} is no version",
                token.offset,
                help="the angle brackets are part of it: (vnnlib-version <2.0>)",
            )
        self.tokens.expect_text(b")", "')'")
        version = f"{int(match[1])}.{int(match[2])}"
        if int(match[1]) != 2:
            self.source.refuse(
                f"VNN-LIB {version} with a header is not known",
                token.offset,
                help="2.x is read, and 1.0, which has no header",
            )
        if version not in KNOWN_VERSIONS:
            _log.warning("%s: VNN-LIB %s is read as 2.1", self.source.name, version)
        return version

    def _next_assertion(self, scan: Scan, conditions: list[Condition]) -> Token | None:
        """The keyword of the next assertion that the scanner has not taken."""
        while (paren := self.tokens.peek()) is not None:
            run = scan.runs.get(paren.offset)
            if run is None or not run.is_asserted:
                break
            self.tokens.offset = run.end
            conditions.append(run)
        return self.declared.open("an assertion")

    def _scan(self, start: int) -> Scan:
        names = [
            InputName(position, name + b"[", b"]", tensor.shape)
            for name, (position, tensor) in self.declared.tensors.items()
            if tensor.kind == "input" and tensor.element_type in FLOAT_TYPES
        ]
        return scan_inputs(self.source, start, names, b"==") if self.fast else Scan.empty(names)

    def variable(self, token: Token, tokens: Tokens) -> Sum | None:
        """``X[0,3]``, or ``X`` for a scalar."""
        if not WORD.fullmatch(token.text):
            return None
        if token.text not in self.declared.tensors:
            kind = (
                "a network, not a tensor" if token.text in self.declared.names else "not declared"
            )
            self.source.fail(f"{token.quoted} is {kind}", token.offset)
        position, tensor = self.declared.tensors[token.text]
        following = tokens.peek()
        indices: tuple[int, ...] = ()
        if following is not None and following.text.startswith(b"["):
            tokens.next()
            indices = self._indices(following)
        if len(indices) != len(tensor.shape):
            self.source.fail(
                f"{token.quoted} has {len(tensor.shape)} dimensions, {len(indices)} indices given",
                token.offset,
            )
        flat = 0
        for index, dimension in zip(indices, tensor.shape, strict=True):
            if index >= dimension:
                self.source.fail(
                    f"index {index} of {token.quoted} is out of range",
                    token.offset,
                    help=f"the shape is {list(tensor.shape)}, indices count from 0",
                )
            flat = flat * dimension + index
        return Sum.variable(Variable(position, flat), tensor.element_type)

    def _indices(self, token: Token) -> tuple[int, ...]:
        if not SHAPE.fullmatch(token.text):
            self.source.fail(f"{token.quoted} is no index", token.offset)
        return tuple(int(d) for d in re.findall(rb"\d+", token.text))

    def check_number(self, token: Token) -> None:
        """Warn about exponents and the like."""
        if not is_standard(token.text):
            self.declared.warn("exponents, '+1', '.5' and '1.' are not standard in 2.x", token)

    def check_types(self, left: Sum, right: Sum, token: Token) -> None:
        """One element type on both sides; no fractions among integers."""
        types = {left.element_type, right.element_type} - {None}
        if len(types) > 1:
            self.source.fail(
                f"the operands of {token.quoted} have different element types: "
                f"{left.element_type} and {right.element_type}",
                token.offset,
            )
        fraction = left.fraction or right.fraction
        if fraction and types & INTEGER_TYPES:
            text = Token(fraction, 0).quoted
            self.source.fail(f"{text} is no number of type {types.pop()}", token.offset)
