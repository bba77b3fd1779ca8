"""VNN-LIB 2.x by its grammar (VNNLIB-Standard, ``syntax/grammar.cf``, 2.0 and 2.1).

Everything in the grammar is read: several networks, ``equal-to`` and ``isomorphic-to``, hidden
tensors, scalars, products, ``!=``. The typing rules of the standard are checked here too: unique
names, complete indices in range, one element type per comparison, interfaces of related networks.

Harmless departures from the grammar are read with a warning in the log: a blank behind the
parenthesis of a keyword, numbers with exponents (translations of 1.0 files have them), comparisons
of constants, ``Real`` for ``real``. ``initialized`` (2.1) is refused, because the text of the
standard does not yet say what it means.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final

from onnxcert.errors import SpecError
from onnxcert.frontend.assemble import Condition, assertions
from onnxcert.frontend.expression import FormulaReader
from onnxcert.frontend.numbers import is_standard
from onnxcert.frontend.scan import InputName, Scan, scan_inputs
from onnxcert.frontend.sexpr import Source, Token, Tokens
from onnxcert.frontend.sums import Sum
from onnxcert.spec.query import Query
from onnxcert.spec.tree import Network, Relation, Tensor, TensorKind, Variable

KNOWN_VERSIONS = ("2.0", "2.1")

FLOAT_TYPES: Final = frozenset(
    (
        "real",
        "float16",
        "float32",
        "float64",
        "bfloat16",
        "float8e4m3fn",
        "float8e4m3fnuz",
        "float8e5m2",
        "float8e5m2fnuz",
        "float4e2m1",
    )
)
INTEGER_TYPES: Final = frozenset(
    (
        "int4",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint4",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    )
)
_OTHER_TYPES: Final = frozenset(("string", "complex64", "complex128"))

LARGEST_TENSOR = 2**31
"""Elements; more cannot be stored in one ONNX file."""

_VERSION = re.compile(rb"<(\d{1,9})\.(\d{1,9})>")
_WORD = re.compile(rb"[A-Za-z][A-Za-z0-9_]*")
_SHAPE = re.compile(rb"\[\s*(?:\d{1,10}\s*(?:,\s*\d{1,10}\s*)*)?\]")
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
        self.networks: list[Network] = []
        self.tensors: dict[bytes, tuple[int, Tensor]] = {}
        self.names: dict[bytes, int] = {}
        self.warned: set[str] = set()

    def read(self) -> Query:
        """The query.

        Raises:
            SpecError: the text is not VNN-LIB 2.x; `UnsupportedSpec` where it may be, but is of a
                version or uses a feature that is not known here.
        """
        version = self._version()
        start = self._networks()
        self.tokens.offset = start
        scan = self._scan(start)
        conditions: list[Condition] = []
        while (keyword := self._next_assertion(scan, conditions)) is not None:
            if keyword.text != b"assert":
                self._unexpected(keyword, "'assert'")
            conditions.append(FormulaReader(self.tokens, self, scan).read())
            self.tokens.expect_text(b")", "')'")
        if not conditions:
            raise SpecError("the specification has no assertion", place=self.source.name)
        formulas = assertions(conditions, scan)
        return Query(version, tuple(self.networks), formulas, self.source.name)

    def _networks(self) -> int:
        """All network declarations; the offset behind the last."""
        while True:
            start = self.tokens.offset
            keyword = self._open("a network declaration")
            if keyword is None or keyword.text != b"declare-network":
                break
            self._network()
        if not self.networks:
            self._unexpected(keyword, "'declare-network'")
        return start

    def _version(self) -> str:
        keyword = self._open("(vnnlib-version <2.0>)")
        if keyword is None or keyword.text != b"vnnlib-version":
            self._unexpected(keyword, "(vnnlib-version <2.0>) at the beginning")
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

    def _open(self, what: str) -> Token | None:
        """The keyword behind the next '(', or ``None`` at the end of the file."""
        paren = self.tokens.next()
        if paren is None:
            return None
        if paren.text != b"(":
            self.source.fail(f"expected {what}, found {paren.quoted}", paren.offset)
        keyword = self.tokens.expect("a keyword")
        if keyword.offset != paren.offset + 1:
            self._warn("a blank between '(' and a keyword is not standard", keyword)
        return keyword

    def _unexpected(self, keyword: Token | None, what: str) -> None:
        if keyword is None:
            self.source.fail(f"the file ends where {what} is expected", len(self.source.text))
        help_ = ""
        if self.networks and keyword.text == b"declare-network":
            help_ = "all networks are declared before the first assertion"
        self.source.fail(f"expected {what}, found {keyword.quoted}", keyword.offset, help_)

    def _warn(self, message: str, token: Token) -> None:
        if message not in self.warned:
            self.warned.add(message)
            _log.warning("%s: %s", self.source.place(token.offset), message)

    def _next_assertion(self, scan: Scan, conditions: list[Condition]) -> Token | None:
        """The keyword of the next assertion that the scanner has not taken."""
        while (paren := self.tokens.peek()) is not None:
            run = scan.runs.get(paren.offset)
            if run is None or not run.is_asserted:
                break
            self.tokens.offset = run.end
            conditions.append(run)
        return self._open("an assertion")

    def _scan(self, start: int) -> Scan:
        names = [
            InputName(position, name + b"[", b"]", tensor.shape)
            for name, (position, tensor) in self.tensors.items()
            if tensor.kind == "input" and tensor.element_type in FLOAT_TYPES
        ]
        return scan_inputs(self.source, start, names, b"==") if self.fast else Scan.empty(names)

    def _network(self) -> None:
        """The rest of a declaration, behind its keyword."""
        name = self._name("the name of a network")
        relations: dict[bytes, str] = {}
        declared: dict[TensorKind, list[Tensor]] = {"input": [], "hidden": [], "output": []}
        while (token := self.tokens.expect("a declaration or ')'")).text == b"(":
            keyword = self.tokens.expect("a keyword")
            if keyword.offset != token.offset + 1:
                self._warn("a blank between '(' and a keyword is not standard", keyword)
            if keyword.text in (b"equal-to", b"isomorphic-to"):
                self._check_order(keyword, relations, declared)
                relations[keyword.text] = self._reference(keyword)
            else:
                self._tensor(name, keyword, declared)
            self.tokens.expect_text(b")", "')'")
        if token.text != b")":
            self.source.fail(f"expected a declaration or ')', found {token.quoted}", token.offset)
        for kind in ("input", "output"):
            if not declared[kind]:
                self.source.fail(f"network {name.quoted} declares no {kind}", name.offset)
        network = Network(
            name.text.decode(),
            tuple(declared["input"]),
            tuple(declared["hidden"]),
            tuple(declared["output"]),
            relations.get(b"equal-to"),
            relations.get(b"isomorphic-to"),
        )
        self._check_related(network, name)
        self.networks.append(network)

    def _name(self, what: str) -> Token:
        """A new name."""
        token = self.tokens.expect(what)
        if not _WORD.fullmatch(token.text):
            self.source.fail(
                f"{token.quoted} is no name",
                token.offset,
                help="names begin with a letter and have letters, digits and '_'",
            )
        earlier = self.names.setdefault(token.text, token.offset)
        if earlier != token.offset:
            line = self.source.line(earlier)
            self.source.fail(
                f"{token.quoted} is declared twice",
                token.offset,
                help=f"the first is in line {line}; networks and tensors share one name space",
            )
        return token

    def _check_order(
        self,
        keyword: Token,
        relations: Mapping[bytes, str],
        declared: Mapping[TensorKind, list[Tensor]],
    ) -> None:
        if relations:
            self.source.fail(
                "a network can have only one of equal-to and isomorphic-to", keyword.offset
            )
        if any(declared.values()):
            self.source.fail(f"{keyword.quoted} stands before all tensors", keyword.offset)

    def _reference(self, keyword: Token) -> str:
        token = self.tokens.expect("the name of a network")
        name = token.text.decode("utf-8", "replace")
        other = next((n for n in self.networks if n.name == name), None)
        if other is None:
            self.source.fail(f"no network {token.quoted} is declared before", token.offset)
        if other.equal_to or other.isomorphic_to:
            root = other.equal_to or other.isomorphic_to
            self.source.fail(
                f"network {token.quoted} is itself related to another network",
                token.offset,
                help=f"({keyword.text.decode()} {root}) says the same",
            )
        return name

    def _check_related(self, network: Network, name: Token) -> None:
        root = network.equal_to or network.isomorphic_to
        if root is None:
            return
        other = next(n for n in self.networks if n.name == root)
        same_type = network.equal_to is not None

        def interface(tensors: tuple[Tensor, ...]) -> list[object]:
            return [(t.shape, t.element_type if same_type else None) for t in tensors]

        for mine, theirs, kind in (
            (network.inputs, other.inputs, "inputs"),
            (network.outputs, other.outputs, "outputs"),
        ):
            if interface(mine) != interface(theirs):
                self.source.fail(
                    f"network {name.quoted} and network '{root}' have different {kind}",
                    name.offset,
                    help="related networks declare the same shapes"
                    + (" and element types" if same_type else ""),
                )

    def _tensor(
        self, network: Token, keyword: Token, declared: dict[TensorKind, list[Tensor]]
    ) -> None:
        kind = _KINDS.get(keyword.text)
        if kind is None:
            self._unexpected(keyword, "declare-input, declare-hidden or declare-output")
            return
        later = {"input": ("hidden", "output"), "hidden": ("output",), "output": ()}[kind]
        if any(declared[_KINDS[b"declare-" + k.encode()]] for k in later):
            self.source.fail(
                f"{keyword.quoted} comes too late",
                keyword.offset,
                help="the order is inputs, hidden tensors, outputs",
            )
        name = self._name("the name of a tensor")
        element_type = self._element_type()
        shape = self._shape()
        onnx_name = self._onnx_name() if kind == "hidden" else None
        if kind == "input":
            self._check_initialized()
        text = name.text.decode()
        tensor = Tensor(network.text.decode(), text, kind, element_type, shape, onnx_name)
        declared[kind].append(tensor)
        self.tensors[name.text] = (len(self.tensors), tensor)

    def _element_type(self) -> str:
        token = self.tokens.expect("an element type")
        name = token.text.decode("utf-8", "replace")
        name = "real" if name == "Real" else name
        if name not in FLOAT_TYPES | INTEGER_TYPES | _OTHER_TYPES:
            self.source.fail(
                f"{token.quoted} is no element type",
                token.offset,
                help="use real or an ONNX type such as float32, float64, int64",
            )
        if name in _OTHER_TYPES:
            self.source.refuse(f"tensors of {name} are not supported", token.offset)
        return name

    def _shape(self) -> tuple[int, ...]:
        token = self.tokens.expect("a shape such as [1,5]")
        if not _SHAPE.fullmatch(token.text):
            self.source.fail(
                f"{token.quoted} is no shape", token.offset, help="write [1,5], or [] for a scalar"
            )
        shape = tuple(int(d) for d in re.findall(rb"\d+", token.text))
        size = 1
        for dimension in shape:
            size *= dimension
            if size == 0 or size > LARGEST_TENSOR:
                self.source.fail(f"a tensor of shape {token.quoted} is not possible", token.offset)
        return shape

    def _onnx_name(self) -> str:
        token = self.tokens.expect("the name of the hidden value in the ONNX graph")
        if not token.text.startswith(b'"'):
            self.source.fail(
                f"expected the ONNX name in double quotes, found {token.quoted}", token.offset
            )
        text = token.text[1:-1].decode("utf-8", "replace")
        return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text)

    def _check_initialized(self) -> None:
        token = self.tokens.peek()
        if token is not None and token.text == b"initialized":
            self.source.refuse(
                "'initialized' inputs are not supported: the standard does not define them yet",
                token.offset,
                help="leave the word out and assert the value of the input",
            )

    def variable(self, token: Token, tokens: Tokens) -> Sum | None:
        """``X[0,3]``, or ``X`` for a scalar."""
        if not _WORD.fullmatch(token.text):
            return None
        if token.text not in self.tensors:
            kind = "a network, not a tensor" if token.text in self.names else "not declared"
            self.source.fail(f"{token.quoted} is {kind}", token.offset)
        position, tensor = self.tensors[token.text]
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
        if not _SHAPE.fullmatch(token.text):
            self.source.fail(f"{token.quoted} is no index", token.offset)
        return tuple(int(d) for d in re.findall(rb"\d+", token.text))

    def check_number(self, token: Token) -> None:
        """Warn about exponents and the like."""
        if not is_standard(token.text):
            self._warn(f"numbers like {token.quoted} are not standard in 2.x", token)

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


_KINDS: Final[Mapping[bytes, TensorKind]] = {
    b"declare-input": "input",
    b"declare-hidden": "hidden",
    b"declare-output": "output",
}
