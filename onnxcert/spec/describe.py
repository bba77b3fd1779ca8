"""A specification in words, for ``onnxcert inspect``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.spec.boxes import BoxUnion
from onnxcert.spec.decimals import round_down, round_up
from onnxcert.spec.query import Query
from onnxcert.spec.tree import And, Atom, Leaf, Or, Tensor, atoms, fold

_MANY = 10**6


def describe(query: Query) -> str:
    """One paragraph: variables, the region of inputs, how many disjuncts, what is compared."""
    sentences = [
        f"VNN-LIB {query.version}, {_networks(query)}.",
        f"{_tensors(query, 'input')}; {_tensors(query, 'output')}.",
    ]
    hidden = [tensor for tensor in query.tensors if tensor.kind == "hidden"]
    if hidden:
        sentences.append(f"Hidden: {', '.join(_tensor(tensor) for tensor in hidden)}.")
    sentences += [_region(query), _disjuncts(query), _comparisons(query)]
    return " ".join(sentences)


def _networks(query: Query) -> str:
    parts = []
    for network in query.networks:
        relation = ""
        if network.equal_to:
            relation = f" (equal to {network.equal_to})"
        elif network.isomorphic_to:
            relation = f" (isomorphic to {network.isomorphic_to})"
        parts.append(network.name + relation)
    return ("network " if len(parts) == 1 else f"{len(parts)} networks: ") + ", ".join(parts)


def _tensors(query: Query, kind: str) -> str:
    chosen = [tensor for tensor in query.tensors if tensor.kind == kind]
    size = sum(tensor.size for tensor in chosen)
    names = ", ".join(_tensor(tensor) for tensor in chosen)
    return f"{size} {kind}{'' if size == 1 else 's'} ({names})"


def _tensor(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.element_type} {list(tensor.shape)}".replace(", ", ",")


@dataclass(frozen=True)
class _Extent:
    """By flat input: bounds that hold in every disjunct, and the largest width in any."""

    lower: FloatArray
    upper: FloatArray
    width: FloatArray


def _region(query: Query) -> str:
    extent = _input_extent(query)
    width = np.minimum(extent.width, extent.upper - extent.lower)
    bounded = np.isfinite(width)
    # A fixed input such as 0.1 is one step wide after rounding outward.
    step = np.spacing(np.maximum(np.abs(extent.lower[bounded]), np.abs(extent.upper[bounded])))
    free = width[bounded] > step
    text = f"Inputs: {free.sum()} free, {(~free).sum()} fixed"
    if not bounded.all():
        text += f", {(~bounded).sum()} without bounds outside of disjunctions"
    if free.any():
        text += f"; largest radius {width[bounded].max() / 2:.6g}"
    return text + "."


def _input_extent(query: Query) -> _Extent:
    """From the assertions that are a comparison, a box or a union of boxes."""
    offsets, size = {}, 0
    for position, tensor in enumerate(query.tensors):
        if tensor.kind == "input":
            offsets[position] = size
            size += tensor.size
    extent = _Extent(np.full(size, -np.inf), np.full(size, np.inf), np.full(size, np.inf))
    for formula in query.assertions:
        if isinstance(formula, BoxUnion) and len(formula):
            _cut_union(formula, offsets, extent)
        elif isinstance(formula, Atom):
            _cut_atom(formula, offsets, extent)
    return extent


def _cut_union(union: BoxUnion, offsets: dict[int, int], extent: _Extent) -> None:
    first = np.array([offsets[int(tensor)] for tensor in union.columns[:, 0]], np.int64)
    columns = first + union.columns[:, 1]
    lower, upper = union.lower.floor, union.upper.ceil
    extent.lower[columns] = np.maximum(extent.lower[columns], lower.min(axis=0))
    extent.upper[columns] = np.minimum(extent.upper[columns], upper.max(axis=0))
    extent.width[columns] = np.minimum(extent.width[columns], (upper - lower).max(axis=0))


def _cut_atom(atom: Atom, offsets: dict[int, int], extent: _Extent) -> None:
    terms = atom.polynomial.terms
    if len(terms) != 1 or len(terms[0].variables) != 1 or atom.relation == "!=":
        return
    coefficient, (variable,) = terms[0]
    if variable.tensor not in offsets:
        return
    column = offsets[variable.tensor] + variable.element
    limit = -atom.polynomial.constant / coefficient
    if coefficient < 0 or atom.relation == "==":
        extent.lower[column] = max(extent.lower[column], round_down(limit))
    if coefficient > 0 or atom.relation == "==":
        extent.upper[column] = min(extent.upper[column], round_up(limit))


def _disjuncts(query: Query) -> str:
    count = math.prod(fold(formula, _leaf_size, _node_size) for formula in query.assertions)
    number = str(count) if count < _MANY else f"about 10^{len(str(count)) - 1}"
    return f"{number} disjunct{'' if count == 1 else 's'} when written out."


def _leaf_size(leaf: Leaf) -> int:
    if isinstance(leaf, BoxUnion):
        return len(leaf)
    return 2 if leaf.relation == "!=" else 1


def _node_size(node: And | Or, sizes: list[int]) -> int:
    return math.prod(sizes) if isinstance(node, And) else sum(sizes)


def _comparisons(query: Query) -> str:
    inputs = {p for p, tensor in enumerate(query.tensors) if tensor.kind == "input"}
    rows = [a for a in atoms(query.assertions) if not _is_bound(a, inputs)]
    counts = {
        "with <": sum(a.relation == "<" for a in rows),
        "with ==": sum(a.relation == "==" for a in rows),
        "with !=": sum(a.relation == "!=" for a in rows),
        "relating inputs and outputs": sum(_mixes(a, inputs) for a in rows),
        "with squares of inputs": sum(_has_squares(a, inputs) for a in rows),
        "with products of variables": sum(
            not (a.polynomial.is_linear or _has_squares(a, inputs)) for a in rows
        ),
    }
    details = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    plural = "" if len(rows) == 1 else "s"
    return f"{len(rows)} other comparison{plural}{f' ({details})' if details else ''}."


def _is_bound(atom: Atom, inputs: Iterable[int]) -> bool:
    terms = atom.polynomial.terms
    return len(terms) == 1 and len(terms[0].variables) == 1 and terms[0].variables[0][0] in inputs


def _mixes(atom: Atom, inputs: Iterable[int]) -> bool:
    sides: Sequence[bool] = [v.tensor in inputs for t in atom.polynomial.terms for v in t.variables]
    return any(sides) and not all(sides)


def _has_squares(atom: Atom, inputs: Iterable[int]) -> bool:
    """Whether all products in it are squares of inputs, and there are some."""
    products = [t.variables for t in atom.polynomial.terms if len(t.variables) > 1]
    return bool(products) and all(
        len(v) == 2 and v[0] == v[1] and v[0].tensor in inputs for v in products
    )
