"""Network declarations of VNN-LIB 2.x, and the rules that they obey.

Names are unique in a file, tensors come as inputs, hidden, outputs, and networks that are declared
equal or isomorphic to an earlier one have its interface.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Final, NoReturn

from onnxcert.frontend.sexpr import Token, Tokens
from onnxcert.spec.tree import Network, Tensor, TensorKind

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

WORD = re.compile(rb"[A-Za-z][A-Za-z0-9_]*")
"""A name."""

SHAPE = re.compile(rb"\[\s*(?:\d{1,10}\s*(?:,\s*\d{1,10}\s*)*)?\]")
"""Dimensions, or the indices of an element."""

_KINDS: Final[Mapping[bytes, TensorKind]] = {
    b"declare-input": "input",
    b"declare-hidden": "hidden",
    b"declare-output": "output",
}
_LATER: Final[Mapping[TensorKind, tuple[TensorKind, ...]]] = {
    "input": ("hidden", "output"),
    "hidden": ("output",),
    "output": (),
}
_log = logging.getLogger(__name__)


class Declarations:
    """Reads the declarations at the beginning of a file.

    Attributes:
        networks: in the order of declaration.
        tensors: by name, with their position in ``Query.tensors``.
        names: offset of the declaration of every network and tensor.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.source = tokens.source
        self.networks: list[Network] = []
        self.tensors: dict[bytes, tuple[int, Tensor]] = {}
        self.names: dict[bytes, int] = {}
        self._warned: set[str] = set()

    def read(self) -> int:
        """Read all networks; the offset behind the last.

        Raises:
            SpecError: they break the grammar or a rule of the standard.
        """
        while True:
            start = self.tokens.offset
            keyword = self.open("a network declaration")
            if keyword is None or keyword.text != b"declare-network":
                break
            self._network()
        if not self.networks:
            self.unexpected(keyword, "'declare-network'")
        return start

    def open(self, what: str) -> Token | None:
        """The keyword behind the next '(', or ``None`` at the end of the file."""
        paren = self.tokens.next()
        if paren is None:
            return None
        if paren.text != b"(":
            self.source.fail(f"expected {what}, found {paren.quoted}", paren.offset)
        keyword = self.tokens.expect("a keyword")
        if keyword.offset != paren.offset + 1:
            self.warn("a blank between '(' and a keyword is not standard", keyword)
        return keyword

    def unexpected(self, keyword: Token | None, what: str) -> NoReturn:
        """Complain about a keyword, or about the end of the file."""
        if keyword is None:
            self.source.fail(f"the file ends where {what} is expected", len(self.source.text))
        help_ = ""
        if self.networks and keyword.text == b"declare-network":
            help_ = "all networks are declared before the first assertion"
        self.source.fail(f"expected {what}, found {keyword.quoted}", keyword.offset, help_)

    def warn(self, message: str, token: Token) -> None:
        """Log a departure from the standard, once a file."""
        if message not in self._warned:
            self._warned.add(message)
            _log.warning("%s: %s", self.source.place(token.offset), message)

    def _network(self) -> None:
        """The rest of a declaration, behind its keyword."""
        name = self._name("the name of a network")
        relations: dict[bytes, str] = {}
        declared: dict[TensorKind, list[Tensor]] = {"input": [], "hidden": [], "output": []}
        while (token := self.tokens.expect("a declaration or ')'")).text == b"(":
            keyword = self.tokens.expect("a keyword")
            if keyword.offset != token.offset + 1:
                self.warn("a blank between '(' and a keyword is not standard", keyword)
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
        if not WORD.fullmatch(token.text):
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
            self.unexpected(keyword, "declare-input, declare-hidden or declare-output")
        if any(declared[later] for later in _LATER[kind]):
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
        if not SHAPE.fullmatch(token.text):
            self.source.fail(
                f"{token.quoted} is no shape", token.offset, help="write [1,5], or [] for a scalar"
            )
        shape = tuple(int(d) for d in re.findall(rb"\d+", token.text))
        size = math.prod(shape)
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
