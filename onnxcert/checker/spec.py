"""VNN-LIB 1.0 as practised and VNN-LIB 2.x, with exact rationals.

A file becomes an and/or tree of linear comparisons ``p <= 0`` or ``p < 0``: ``p == 0`` is read as
``p <= 0 and -p <= 0``, ``p != 0`` as ``p < 0 or -p < 0``. Its *cases* are the disjuncts of the
disjunctive normal form. Comparisons of one input with a number cut the box of a case, exactly; all
others are rows. Both enclose: bounds are rounded outward, strict bounds count as closed, offsets of
rows are rounded down. So each point that satisfies the file lies in some case (rule R0).

An input without a bound of its own has that which rows over inputs imply for a box of the others.

A comparison that bounds a sum of squares of inputs, all with positive factors, is an ellipsoid, of
which a case has one at most; its box is cut to what that reaches. Where squares are completed to
those of a point or of nothing, bounds or a false comparison take their place. Other comparisons
with products are rows, in which products stand behind the outputs (`Spec.products`).

A variable is an integer v: input v where v >= 0, output ``~v`` where v < 0, in the flat vectors.
A product is the sorted tuple of its variables. Inputs that the file asserts to be equal, without
alternative, are one variable, the first of them: queries over two networks share inputs so.
Nothing recurses, so nesting costs memory only. What is not understood exactly is refused.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxcert.checker.balls import Ellipsoid
from onnxcert.checker.errors import Unusable

_LARGEST_TEXT = 2**25  # bytes, decompressed; reading takes up to forty times the memory
_LARGEST_WORK = 10**7  # additions of coefficients, long ones count more: sums may nest in sums
_LARGEST_BOUND, _MOST_ROUNDS = 10**300, 64  # of inputs that rows imply
_HIGHEST, _MOST_PRODUCTS = 64, 10_000  # variables in a product; different products
_LARGEST_SQUARES = 10**6  # the same for squares; longer ones take minutes
_ZERO, _ONE, _MINUS = Fraction(0), Fraction(1), Fraction(-1)
_BLANKS = r"(?:[ \t\r\n\f\v]++|;[^\n\0]*+)*+"
# The end of the text is a token too, the empty one; what fits nowhere is a token of one character.
_WORD = r"[^\s()\[\]\";]++(?:\s*\[[\d,\s]*\])?"
_TOKEN = re.compile(rf"{_BLANKS}([()]|{_WORD}|\Z|.)", re.A)
_DECLARED, _SHORT, _INNER = (  # a blank stands for any; nearly all of a long file
    re.compile(pattern.replace(" ", _BLANKS).replace("{w}", _WORD), re.A)
    for pattern in (
        r" \( declare-const(?=[\s;]) ({w}) Real \)",
        r" \( assert \( ([<>])=(?=[\s;]) (?=[A-Za-z])({w}) (?=[-+.\d])({w}) \) \)",
        r"\( ([<>])=(?=[\s;]) (?=[A-Za-z])({w}) (?=[-+.\d])({w}) \)",
    )
)
_INDICES = r"(\[\s*(?:\d{1,10}\s*(?:,\s*(?=\d)|(?=\])))*\])"
_TYPES = "[Rr]eal|float(?:16|32|64|8e4m3fn(?:uz)?|8e5m2(?:fnuz)?|4e2m1)|bfloat16"
_QUOTED = r'("[^"\\\n]*")?'
_HEADER, _NETWORK, _RELATION, _TENSOR = (  # a blank stands for any
    re.compile(pattern.replace(" ", _BLANKS), re.A)
    for pattern in (
        r" \( vnnlib-version <(2\.[01])> \)",
        r" \( declare-network\b ([A-Za-z]\w*+)",
        r" \( (equal|isomorphic)-to\b ([A-Za-z]\w*+) \)",
        rf" \( declare-(input|hidden|output)\b ([A-Za-z]\w*+) ({_TYPES})\b {_INDICES} {_QUOTED} \)",
    )
)
_ELEMENT = re.compile(rf"([A-Za-z]\w*+)\s*{_INDICES}?", re.A)
_NUMBER = re.compile(  # up to 2,000 characters, exponents up to 2,000
    r"(?=.{1,2000}\Z)[+-]?(\d++(\.\d*+)?|\.\d++)([eE][+-]?0*(1?\d{1,3}|2000))?", re.A
)


@dataclass(frozen=True)
class Row:
    """``sum(c * y[i]) + sum(c * x[i]) + offset <= 0``, or ``< 0`` where strict.

    Pairs (i, c) are sorted by i, the position in the flat output or input vector. The comparison is
    scaled so that its coefficients are coprime integers, exact in float64; its offset rounds down.
    Products have found their places behind the outputs once a case is complete.
    """

    outputs: tuple[tuple[int, float], ...]
    inputs: tuple[tuple[int, float], ...]
    offset: float
    strict: bool
    products: tuple[tuple[Factors, float], ...] = ()

    def placed(self, places: dict[Factors, int]) -> Row:
        """The row with its products behind the outputs."""
        if not self.products:
            return self
        behind = tuple(sorted((places[v], c) for v, c in self.products))
        return replace(self, outputs=self.outputs + behind, products=())


@dataclass(frozen=True, eq=False)
class Case:
    """Bounds (n_inputs,) of a box with a point, rounded outward, read-only; and distinct rows.

    With an ellipsoid the point is in both.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    rows: tuple[Row, ...]
    ball: Ellipsoid | None = None


@dataclass(frozen=True)
class Tensor:
    """A declared tensor: kind is input, output or hidden, and hidden ones have an ONNX name."""

    name: str
    kind: str
    element_type: str
    shape: tuple[int, ...]
    onnx_name: str = ""


@dataclass(frozen=True)
class Declared:
    """A declared network, which has the model of that named ``equal_to``, or one of its own."""

    name: str
    tensors: tuple[Tensor, ...]
    equal_to: str = ""

    def of(self, *kinds: str) -> list[Tensor]:
        """Its tensors of some kinds, kind by kind."""
        return [tensor for kind in kinds for tensor in self.tensors if tensor.kind == kind]


class _Atom(NamedTuple):
    """``sum(terms) + constant <= 0``, or ``< 0``; also as a row, or as a bound of one input."""

    terms: tuple[tuple[int | Factors, Fraction], ...]
    constant: Fraction
    strict: bool
    row: Row | None = None
    bound: _Bound | None = None

    def holds(self, inputs: Sequence[Fraction], outputs: Sequence[Fraction]) -> bool:
        value = self.constant
        for key, c in self.terms:
            value += c * math.prod(inputs[v] if v >= 0 else outputs[~v] for v in _factors(key))
        return value < 0 or (value == 0 and not self.strict)


class _Quadric(NamedTuple):
    """``sum(terms) + sum(c * x[v]^2) + constant <= 0``, or ``< 0``; also as an ellipsoid."""

    terms: tuple[tuple[int, Fraction], ...]
    squares: tuple[tuple[int, Fraction], ...]
    constant: Fraction
    strict: bool
    ball: Ellipsoid

    def holds(self, inputs: Sequence[Fraction], outputs: Sequence[Fraction]) -> bool:
        del outputs
        value = sum((c * inputs[v] for v, c in self.terms), self.constant)
        value += sum(c * inputs[v] ** 2 for v, c in self.squares)
        return value < 0 or (value == 0 and not self.strict)


class _Node(NamedTuple):
    """All of the children, or at least one of them."""

    is_and: bool
    children: tuple[_Formula, ...]


Factors: TypeAlias = "tuple[int, ...]"
_Formula: TypeAlias = "_Atom | _Quadric | _Node"
_Bound: TypeAlias = "tuple[int, Fraction, float]"  # v for x or ~v for -x; exact, and rounded up
_Box: TypeAlias = "dict[int, _Bound]"  # by side
# Coefficients by variable, by product, and None for the constant.
_Key: TypeAlias = "int | Factors | None"
_Sum: TypeAlias = "dict[_Key, Fraction]"


@dataclass(frozen=True, eq=False)
class Spec:
    """What is asked for: inputs and outputs of the networks that satisfy the formula.

    Flat vectors have tensors in order of declaration, row-major, hidden ones behind the outputs.
    1.0 declares no network; its tensors are X and Y, of type real.

    Attributes:
        ties: input -> an earlier one that it equals, and that the formula reads instead.
    """

    version: str
    networks: tuple[Declared, ...]
    n_inputs: int
    n_outputs: int
    formula: _Node
    ties: Mapping[int, int]

    def tensors(self, *kinds: str) -> list[Tensor]:
        """All tensors of some kinds, kind by kind."""
        return _tensors(self.networks, *kinds)

    def holds(self, inputs: Sequence[Fraction], outputs: Sequence[Fraction]) -> bool:
        """Whether the formula holds exactly; ValueError if a vector has another length."""
        if (len(inputs), len(outputs)) != (self.n_inputs, self.n_outputs):
            raise ValueError(f"expected {self.n_inputs} inputs and {self.n_outputs} outputs")
        if any(inputs[v] != inputs[first] for v, first in self.ties.items()):
            return False
        nodes, truth = [self.formula], dict[int, bool]()
        for node in nodes:
            nodes += (child for child in node.children if isinstance(child, _Node))
        for node in reversed(nodes):
            children = (
                truth[id(child)] if isinstance(child, _Node) else child.holds(inputs, outputs)
                for child in node.children
            )
            truth[id(node)] = all(children) if node.is_and else any(children)
        return truth[id(self.formula)]

    @cached_property
    def _readers(self) -> dict[int, list[_Atom | _Quadric]]:
        """Input -> atoms of the outermost conjunction that read it."""
        readers: dict[int, list[_Atom | _Quadric]] = {}
        for child in self.formula.children if self.formula.is_and else ():
            if not isinstance(child, _Node):
                squares = child.squares if isinstance(child, _Quadric) else child.terms
                for variable in {v for key, _ in squares for v in _factors(key)}:
                    readers.setdefault(variable, []).append(child)
        return readers

    @cached_property
    def products(self) -> tuple[Factors, ...]:
        """All products in rows: those of fewer different variables first, inputs before outputs.

        ValueError if they are too many.
        """
        nodes, found = [self.formula], set[Factors]()
        for node in nodes:
            nodes += (child for child in node.children if isinstance(child, _Node))
            rows = (child.row for child in node.children if isinstance(child, _Atom))
            found.update(v for row in rows if row for v, _ in row.products)
            _need(len(found) <= _MOST_PRODUCTS, f"more than {_MOST_PRODUCTS} different products")

        def rank(product: Factors) -> tuple[int, list[tuple[bool, int]]]:
            return len(set(product)), sorted((v < 0, max(v, ~v)) for v in product)

        return tuple(sorted(found, key=rank))

    @cached_property
    def read(self) -> NDArray[Any]:
        """Which outputs rows are about, and all products behind them."""
        nodes, read = [self.formula], np.zeros(self.n_outputs + len(self.products), bool)
        read[self.n_outputs :] = True
        for node in nodes:
            nodes += (child for child in node.children if isinstance(child, _Node))
            rows = (child.row for child in node.children if isinstance(child, _Atom))
            for row in rows:
                read[[i for i, _ in row.outputs] if row else []] = True
        return read

    @cached_property
    def has_balls(self) -> bool:
        """Whether there are ellipsoids anywhere."""
        nodes = [self.formula]
        for node in nodes:
            nodes += (child for child in node.children if isinstance(child, _Node))
        return any(isinstance(child, _Quadric) for node in nodes for child in node.children)

    def only_compares(self, families: NDArray[Any]) -> bool:
        """Whether outputs are only compared with each other, each with one of its own family.

        Args:
            families: (n_outputs,) numbers, -1 for outputs that are of none.
        """
        nodes = [self.formula]
        for node in nodes:
            nodes += (child for child in node.children if isinstance(child, _Node))
            for child in node.children:
                terms = () if isinstance(child, _Node | _Quadric) else child.terms
                if any(isinstance(key, tuple) and min(key) < 0 for key, _ in terms):
                    return False
                outputs = [(~v, c) for v, c in terms if isinstance(v, int) and v < 0]
                if not outputs:
                    continue
                family = {int(families[v]) for v, _ in outputs}
                plain = len(terms) == len(outputs) == 2 and sum(c for _, c in outputs) == 0
                alone = isinstance(child, _Atom) and child.constant == 0
                if not (plain and alone and len(family) == 1 and min(family) >= 0):
                    return False
        return True

    def excludes(
        self, number: Fraction, position: int, inputs: Sequence[Fraction], outputs: list[Fraction]
    ) -> bool:
        """Whether the formula fails with another number for one input, and all that are equal to
        it; asks its bounds first."""
        other, first = [*inputs], self.ties.get(position, position)
        for v in (first, *(v for v, equal in self.ties.items() if equal == first)):
            other[v] = number
        bounds = self._readers.get(first, ())
        return not all(a.holds(other, outputs) for a in bounds) or not self.holds(other, outputs)

    def cases(self) -> Iterator[Case]:
        """The disjuncts whose inputs are not exactly empty, depth first and one at a time.

        Inputs that equal earlier ones are zero there, and nothing reads them. Successive cases with
        one box share its arrays. While it runs, `Unusable` is raised for a case that leaves an
        input without a bound, or has two ellipsoids.
        """
        # What comes next; a chain of disjunctions not yet opened; what was found on the way.
        stack: list[tuple[_Formula, Any, _Found]] = [(self.formula, None, _Found({}, (), ()))]
        last: tuple[_Box, Ellipsoid | None] | None = None
        places = {product: self.n_outputs + k for k, product in enumerate(self.products)}
        while stack:
            branch, choices, outer = stack.pop()
            settled = _settle(branch, outer)
            if settled is None:
                continue
            found, opened = settled
            for node in reversed(opened):
                choices = node, choices
            if choices is not None:
                children, choices = choices[0].children, choices[1]
                stack += ((c, choices, found) for c in reversed(children))
                continue
            if len(found.balls) > 1:
                raise Unusable("the specification has a disjunct with two ellipsoids")
            ball = found.balls[0] if found.balls else None
            box = self._implied(found, ball)
            if box is None:
                continue
            if last is None or box is not last[0] or ball is not last[1]:
                last, sides = (box, ball), self._bounds(box, ball)
            if sides is not None:
                rows = (row.placed(places) for row in found.rows)
                yield Case(*sides, tuple(dict.fromkeys(rows)), ball)

    def limits(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The least and the largest value of some inputs in any case, rounded outward."""
        lower, upper = self._hull
        return lower[inputs], upper[inputs]

    @cached_property
    def _hull(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        lower, upper = np.full(self.n_inputs, np.inf), np.full(self.n_inputs, -np.inf)
        for case in self.cases():
            lower, upper = np.minimum(lower, case.lower), np.maximum(upper, case.upper)
        return lower, upper

    def _implied(self, found: _Found, ball: Ellipsoid | None) -> _Box | None:
        """The box, with what rows over inputs say of sides that have no bound; None if it is empty.

        Each round looks at all rows with the bounds before it, so their order is of no account.
        """
        box = found.box
        if len(box) == 2 * (self.n_inputs - len(self.ties)):
            return box
        inputs = set(range(self.n_inputs)) - self.ties.keys() - set(ball.inputs if ball else ())
        missing = {side for v in inputs for side in (v, ~v)} - box.keys()
        rows = [row for row in found.rows if not row.outputs and not row.products]
        for _ in range(_MOST_ROUNDS if missing else 0):
            made: dict[int, Fraction] = {}
            for row in rows:
                for side, limit in _limits_of(row, box):
                    if side in missing and abs(limit) <= _LARGEST_BOUND:
                        made[side] = min(limit, made.get(side, limit))
            if not made:
                break
            box = box | {side: (side, limit, 0.0 - _down(-limit)) for side, limit in made.items()}
            if any(~side in box and box[~side][1] + made[side] < 0 for side in made):
                return None
            missing -= made.keys()
        return box

    def _bounds(
        self, box: _Box, ball: Ellipsoid | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """The part of a box round an ellipsoid; None if they do not meet."""
        if ball and ball.misses({side: limit for side, limit, _ in box.values()}):
            return None
        ends = {side: end for side, _, end in box.values()}
        for side, end in ball.ends().items() if ball else ():
            ends[side] = min(end, ends.get(side, end))
        ends |= {side: 0.0 for v in self.ties for side in (v, ~v)}  # the first of them varies
        sides = [v for i in range(self.n_inputs) for v in (i, ~i)]
        if free := [max(v, ~v) for v in sides if v not in ends]:
            raise Unusable(f"the specification leaves input {free[0]} without a bound on one side")
        bounds = np.array([ends[v] for v in sides]).reshape(-1, 2).T
        upper, lower = bounds[0].copy(), 0.0 - bounds[1]  # not minus zero
        lower.flags.writeable = upper.flags.writeable = False
        return lower, upper


class _Found(NamedTuple):
    """What the formulas on the way to a case say; the box is shared while nothing cuts it."""

    box: _Box
    balls: tuple[Ellipsoid, ...]
    rows: tuple[Row, ...]


def _settle(branch: _Formula, outer: _Found) -> tuple[_Found, list[_Node]] | None:
    """Add a formula, conjunctions taken apart, and list its disjunctions; None if it is false."""
    box, balls, rows = outer.box, outer.balls, list(outer.rows)
    pending, opened = [branch], list[_Node]()
    while pending:
        formula = pending.pop()
        if isinstance(formula, _Node) and formula.is_and:
            pending += reversed(formula.children)
        elif isinstance(formula, _Node):
            opened.append(formula)
        elif isinstance(formula, _Quadric):
            balls = tuple(dict.fromkeys((*balls, formula.ball)))
        elif formula.row is not None:
            rows.append(formula.row)
        elif formula.bound is None:
            if not formula.holds((), ()):
                return None
        elif formula.bound[0] not in box or formula.bound[1] < box[formula.bound[0]][1]:
            side, limit, _ = formula.bound
            if ~side in box and box[~side][1] + limit < 0:
                return None
            box = box.copy() if box is outer.box else box
            box[side] = formula.bound
    return _Found(box, balls, tuple(rows)), opened


def _tensors(networks: Sequence[Declared], *kinds: str) -> list[Tensor]:
    """All tensors of some kinds, kind by kind."""
    return [tensor for kind in kinds for network in networks for tensor in network.of(kind)]


def _limits_of(row: Row, box: _Box) -> Iterator[tuple[int, Fraction]]:
    """Sides of inputs with the limits that a row over inputs implies, where the rest has bounds."""
    terms = {i: (i if c < 0 else ~i, Fraction(abs(c))) for i, c in row.inputs}
    most = {i: c * box[side][1] for i, (side, c) in terms.items() if side in box}
    open_ones = terms.keys() - most.keys()
    room = sum(most.values(), _ZERO) - Fraction(row.offset)
    if len(open_ones) <= 1:
        for i in open_ones or terms:
            side, c = terms[i]
            yield ~side, (room - most.get(i, _ZERO)) / c


def _factors(key: int | Factors) -> Factors:
    """The variables of a term."""
    return (key,) if isinstance(key, int) else key


def _atom(difference: _Sum, strict: bool, *, alone: bool = True) -> _Formula:
    """The comparison of a sum with zero; ValueError if its row or bound does not fit float64.

    Both sides of an equation are rows, not ``alone``, even if one is an ellipsoid.
    """
    constant = difference.get(None, _ZERO)
    terms = tuple((v, c) for v, c in difference.items() if v is not None)
    linear = {v: c for v, c in terms if isinstance(v, int)}
    squares = {v[0]: c for v, c in terms if isinstance(v, tuple) and len(v) == 2 and v[0] == v[1]}
    is_round = len(linear) + len(squares) == len(terms) and linear.keys() <= squares.keys()
    if alone and squares and is_round and min(squares) >= 0 and min(squares.values()) > 0:
        return _quadric(linear, squares, constant, strict)
    if not terms:
        return _Atom(terms, constant, strict)
    (v, c), *others = terms
    if not others and isinstance(v, int) and v >= 0:
        scaled = constant / abs(c)
        side = v if c > 0 else ~v
        return _Atom(terms, constant, strict, None, (side, -scaled, 0.0 - _down(scaled)))
    denominator = math.lcm(*(c.denominator for _, c in terms))
    factor = Fraction(denominator, math.gcd(*(int(c * denominator) for _, c in terms)))
    exact = {v: int(c * factor) for v, c in terms}
    held = all(float(n) == n for n in exact.values())
    _need(held, "the coefficients are not exact, not even scaled")
    outputs = tuple(sorted((~v, float(exact[v])) for v in linear if v < 0))
    inputs = tuple(sorted((v, float(exact[v])) for v in linear if v >= 0))
    products = tuple((v, float(n)) for v, n in exact.items() if isinstance(v, tuple))
    row = Row(outputs, inputs, _down(constant * factor), strict, products)
    return _Atom(terms, constant, strict, row)


def _quadric(
    linear: dict[int, Fraction], squares: dict[int, Fraction], constant: Fraction, strict: bool
) -> _Formula:
    """A comparison that bounds a sum of squares: an ellipsoid, a point or nothing.

    ValueError if it is too large for float64, or its numbers are too long.
    """
    center = {v: -linear.get(v, _ZERO) / (2 * c) for v, c in sorted(squares.items())}
    room = -constant
    for v, c in center.items():
        room += squares[v] * c * c
        # All weights have it in them, and denominators that differ multiply.
        _need(_labour(room, len(center)) <= _LARGEST_SQUARES, "squares are too long")
    if room < 0 or (room == 0 and strict):
        return _Atom((), _ONE, strict=False)
    if room == 0:
        sides = [
            _atom({v: a, None: -a * c}, False) for v, c in center.items() for a in (_ONE, -_ONE)
        ]
        return _Node(True, tuple(sides))
    weights = tuple(squares[v] / room for v in center)
    ball = Ellipsoid(tuple(center), weights, tuple(center.values()))
    _need(math.inf not in ball.ends().values(), "an ellipsoid beyond float64")
    return _Quadric(tuple(linear.items()), tuple(squares.items()), constant, strict, ball)


def _labour(number: Fraction, count: int) -> int:
    """What so many operations with numbers like this one count as additions."""
    bits = number.numerator.bit_length() + number.denominator.bit_length()
    return count * (bits * bits >> 20)


def _need(truth: bool, otherwise: str) -> None:
    if not truth:
        raise ValueError(otherwise)


def _down(value: Fraction) -> float:
    """The largest float64 number not above the value; ValueError or OverflowError above 1e308."""
    nearest = float(value)
    _need(abs(nearest) <= 1e308, "a number is beyond 1e308")
    numerator, denominator = nearest.as_integer_ratio()
    is_below = numerator * value.denominator <= value.numerator * denominator
    return nearest if is_below else math.nextafter(nearest, -math.inf)


@lru_cache(maxsize=2**16)
def _number(text: str) -> Fraction | None:
    return Fraction(Decimal(text)) if _NUMBER.fullmatch(text) else None


@lru_cache(maxsize=2**16)
def _limits(text: str) -> tuple[Fraction, float, Fraction, float] | None:
    """A number and its negative, each with the least float64 number not below it."""
    if (number := _number(text)) is None:
        return None
    return number, 0.0 - _down(-number), -number, 0.0 - _down(number)


def decompressed(data: bytes, most: int) -> bytes:
    """A file of at most so many bytes, compressed with gzip or not; ValueError if it is damaged."""
    if data[:2] == b"\x1f\x8b":
        stream = zlib.decompressobj(31)
        try:
            data = stream.decompress(data, most + 1)
        except zlib.error as error:
            raise ValueError(f"compressed data are broken: {error}") from error
        _need(
            len(data) > most or (stream.eof and not stream.unused_data), "cut or followed by more"
        )
    _need(len(data) <= most, f"more than {most} bytes")
    return data


def read_spec(data: bytes) -> Spec:
    """The specification in a file, plain or gzip-compressed; `Unusable` if it is not understood."""
    try:
        reader = _Reader(decompressed(data, _LARGEST_TEXT).decode())
    except ValueError as error:
        raise Unusable(f"the specification cannot be read: {error}") from error
    try:
        spec = reader.read()
        if ties := reader.ties(spec.formula):
            reader = _Reader(reader.text, ties)
            spec = reader.read()
        return spec
    except (ValueError, OverflowError) as error:
        line = reader.text.count("\n", 0, reader.start) + 1
        raise Unusable(f"the specification is not understood, line {line}: {error}") from error


class _Reader:
    """Reads a text token by token; ValueError at the one that is not understood.

    Args:
        text: of the file.
        tied: inputs that others are read for.
    """

    def __init__(self, text: str, tied: Mapping[int, int] | None = None) -> None:
        self.text, self.start, self.end, self.work = text, 0, 0, 0
        self.tied = tied or {}
        self.networks: list[Declared] = []
        self.equations: dict[int, tuple[_Node, list[int]]] = {}  # of two inputs, by id
        self.counts = [0, 0]  # of inputs and outputs
        self.bases: dict[str, tuple[int, tuple[int, ...]]] = {}  # first variable, and shape
        self.variables: dict[str, int] = {}  # by token
        self.version = "1.0"

    def next(self, expected: str = "") -> str:
        """The next token, which must be the expected one if that is given."""
        match = _TOKEN.match(self.text, self.end)
        assert match is not None  # some token fits everywhere
        self.start, self.end, token = match.start(1), match.end(), match[1]
        _need(token == (expected or token), f"expected {expected!r}, found {token[:40]!r}")
        return token

    def read(self) -> Spec:
        formulas: list[_Formula] = []
        if header := _HEADER.match(self.text):
            self.version, self.end = header[1], header.end()
            while network := _NETWORK.match(self.text, self.end):
                self._declare_network(network)
                self.next(")")
            self._number()
        while True:
            while self._declare():
                pass
            while bound := self._short():
                formulas.append(bound)
            if (token := self.next()) == "":
                break
            command = self.next() if token == "(" else token
            if token == "(" and command == "assert":
                formulas.append(self._formula())
            else:
                raise ValueError(f"{command[:40]!r} is not read here")
            self.next(")")
        n_inputs, n_outputs = self.counts
        _need(bool(formulas) and min(self.counts) > 0, "no assertion, no input or no output")
        flat = (
            Tensor("X", "input", "real", (n_inputs,)),
            Tensor("Y", "output", "real", (n_outputs,)),
        )
        networks = tuple(self.networks) or (Declared("", flat),)
        formula = _Node(True, tuple(formulas))
        spec = Spec(self.version, networks, n_inputs, n_outputs, formula, self.tied)
        _ = spec.products  # refused here if they are too many
        return spec

    def ties(self, formula: _Formula) -> dict[int, int]:
        """The inputs that equal earlier ones wherever the formula holds."""
        first: dict[int, int] = {}
        pending, pairs = [formula], list[list[int]]()
        for node in pending:
            if id(node) in self.equations:
                pairs.append(self.equations[id(node)][1])
            elif isinstance(node, _Node) and node.is_and:
                pending += node.children

        def find(v: int) -> int:
            while v in first:
                first[v] = v = first.get(first[v], first[v])  # halves the way for the next time
            return v

        for pair in pairs:
            low, high = sorted(map(find, pair))
            if low < high:
                first[high] = low
        return {v: find(v) for v in sorted(first)}

    def _declare_network(self, header: re.Match[str]) -> None:
        """Read a network of 2.x behind its name."""
        end, tensors = header.end(), list[Tensor]()
        relation = _RELATION.match(self.text, end)
        end = self.start = relation.end() if relation else end
        while match := _TENSOR.match(self.text, end):
            kind, name, element_type, indices, quoted = match.groups()
            _need((kind == "hidden") == bool(quoted), "hidden tensors, and only they, are quoted")
            shape, onnx_name = tuple(map(int, re.findall(r"\d+", indices))), (quoted or "")[1:-1]
            tensors.append(Tensor(name, kind, element_type.lower(), shape, onnx_name))
            end = self.start = match.end()
        self.end = end
        kinds = "".join(tensor.kind[0] for tensor in tensors)
        _need(bool(re.fullmatch("i+h*o+", kinds)), "expected inputs, hidden tensors and outputs")
        equal_to = relation[2] if relation and relation[1] == "equal" else ""
        network = Declared(header[1], tuple(tensors), equal_to)
        if relation:
            others = [n for n in self.networks if n.name == relation[2] and not n.equal_to]
            shapes = [[t.shape for t in n.of("input", "output")] for n in (network, *others)]
            _need(shapes[1:] == shapes[:1], f"{relation[2]} is no network with the same tensors")
        self.networks.append(network)

    def _number(self) -> None:
        """Give the elements of all declared tensors their places in the flat vectors."""
        names = {network.name for network in self.networks}
        _need(0 < len(names) == len(self.networks), "no networks, or two of one name")
        tensors = _tensors(self.networks, "input", "output", "hidden")
        _need(len({t.element_type for t in tensors}) == 1, "element types are mixed")
        for tensor in tensors:
            is_output, size = tensor.kind != "input", math.prod(tensor.shape)
            _need(0 < size <= 2**31, f"tensor {tensor.name} is empty or too large")
            _need(tensor.name not in (*self.bases, *names), f"{tensor.name} is declared twice")
            count = self.counts[is_output]
            self.bases[tensor.name] = (~count if is_output else count, tensor.shape)
            self.counts[is_output] += size

    def _declare(self) -> bool:
        """Read a variable of 1.0, if one is declared next."""
        match = _DECLARED.match(self.text, self.end) if self.version == "1.0" else None
        if match is None:
            return False
        self.start, self.end, name = match.start(1), match.end(), match[1]
        is_output = name[0] == "Y"
        count = self.counts[is_output]
        _need(name == f"{'XY'[is_output]}_{count}", "expected X_0, X_1, ... and Y_0, ...")
        self.variables[name] = ~count if is_output else self.tied.get(count, count)
        self.counts[is_output] += 1
        return True

    def _short(self) -> _Atom | None:
        """The next assertion if it bounds one input, as the general way would read it."""
        match = _SHORT.match(self.text, self.end)
        return match and self._bound(match)

    def _bound(self, match: re.Match[str]) -> _Atom | None:
        """What a short form says, if it is a bound of one input; else nothing is read."""
        self.start = match.start(2)
        if (limits := _limits(match[3])) is None:
            return None
        (variable,) = self._operand(match[2])
        if not isinstance(variable, int) or variable < 0:
            return None
        self.end = match.end()
        number, above, negative, below = limits
        if match[1] == "<":
            bound = variable, number, above
            return _Atom(((variable, _ONE),), negative, False, None, bound)
        return _Atom(((variable, _MINUS),), number, False, None, (~variable, negative, below))

    def _formula(self) -> _Formula:
        stack: list[tuple[str, list[_Sum | _Formula]]] = []  # open parentheses
        while True:
            token = self.next()
            value: _Sum | _Formula
            if token == "(":
                match = _INNER.match(self.text, self.start)
                bound = match and self._bound(match)
                if bound is None:
                    stack.append((self.next(), []))
                    continue
                value = bound
            else:
                is_form = token == ")" and bool(stack)
                value = self._reduce(*stack.pop()) if is_form else self._operand(token)
            if stack:
                stack[-1][1].append(value)
            elif isinstance(value, dict):
                raise ValueError("expected a condition, found a term")
            else:
                return value

    def _operand(self, token: str) -> _Sum:
        if token not in self.variables:
            if (number := _number(token)) is not None:
                return {None: number} if number else {}
            match = _ELEMENT.fullmatch(token)
            if match is None or match[1] not in self.bases:
                raise ValueError(f"{token[:40]!r} is no number and no declared variable")
            (variable, shape), indices = self.bases[match[1]], re.findall(r"\d+", match[2] or "")
            # A dimension more, because numpy has no scalars here; it raises ValueError.
            position = int(np.ravel_multi_index((0, *map(int, indices)), (1, *shape)))
            place = variable - position if variable < 0 else variable + position
            self.variables[token] = self.tied.get(place, place)
        return {self.variables[token]: _ONE}

    def _reduce(self, operator: str, operands: list[_Sum | _Formula]) -> _Sum | _Formula:
        """The value of a closed form."""
        sums = [value for value in operands if isinstance(value, dict)]
        formulas = tuple(value for value in operands if not isinstance(value, dict))
        if operator in ("and", "or") and formulas and not sums:
            return _Node(operator == "and", formulas)
        if operator in ("+", "-", "*") and sums and not formulas:
            if operator == "*":
                return self._product(sums)
            first = {} if operator == "-" and len(sums) == 1 else sums.pop(0)
            return self._add(first, sums, -_ONE if operator == "-" else _ONE)
        equal = ("=",) if self.version == "1.0" else ("==", "!=")
        if operator not in ("<=", "<", ">=", ">", *equal) or len(sums) != 2 or formulas:
            raise ValueError(f"{operator[:40]!r} is no operator, or its operands do not fit it")
        left, right = reversed(sums) if operator[0] == ">" else sums
        difference, strict = self._add(left, [right], -_ONE), operator in ("<", ">", "!=")
        alone = operator not in ("=", "==")
        one_side = _atom(difference, strict, alone=alone)
        if isinstance(one_side, _Quadric):
            self.work += _labour(one_side.ball.weights[0], len(one_side.ball.weights))
            _need(self.work <= _LARGEST_WORK, "squares are too long")
        if operator not in equal:
            return one_side
        other_side = _atom(self._add({}, [difference], -_ONE), strict, alone=alone)
        node = _Node(not strict, (one_side, other_side))
        inputs = [v for v in difference if isinstance(v, int) and v >= 0]
        if (
            len(inputs) == len(difference) == 2
            and not strict
            and sum(difference.values(), _ZERO) == 0
        ):
            self.equations[id(node)] = node, inputs
        return node

    def _product(self, factors: list[_Sum]) -> _Sum:
        numbers = [factor for factor in factors if not factor.keys() - {None}]
        total, *others = [f for f in factors if f.keys() - {None}] or [{None: _ONE}]
        for factor in others:
            total = self._times(total, factor)
        for number in (factor.get(None, _ZERO) for factor in numbers):
            total = self._add({}, [total], number)
        return total

    def _times(self, left: _Sum, right: _Sum) -> _Sum:
        """The product of two sums of variables and numbers."""
        parts: list[_Sum] = []
        self.work += len(left) * len(right)
        _need(self.work <= _LARGEST_WORK, "products are too long")
        for v, c in left.items():
            for w, d in right.items():
                key = v if w is None else w
                if v is not None and w is not None:
                    key = tuple(sorted((*_factors(v), *_factors(w))))
                    _need(len(key) <= _HIGHEST, f"a product of more than {_HIGHEST} variables")
                    self.work += len(key)
                parts.append({key: c * d})
        return self._add({}, parts, _ONE)

    def _add(self, total: _Sum, others: list[_Sum], factor: Fraction) -> _Sum:
        """``total + factor * sum(others)`` without zeros, in place."""
        for other in others:
            for v, coefficient in other.items():
                value = -coefficient if factor == -1 else factor * coefficient
                if v in total:
                    value += total.pop(v)
                bits = value.numerator.bit_length() + value.denominator.bit_length()
                self.work += 1 + (bits * bits >> 20)
                _need(self.work <= _LARGEST_WORK, "arithmetic is nested too deeply or too long")
                if value:
                    total[v] = value
        return total
