"""Products of variables in a query, as further outputs of the network.

VNN-LIB 2 multiplies variables, inputs and outputs alike. What is no ellipsoid of inputs
(`onnxcert.frontend.quadrics`) is a polynomial, and its products are values that the network is made
to compute behind its outputs: powers of single variables first, as curves, then products of those.
To everything behind, bounds, search, proofs, a comparison is then a row like any other.
`onnxcert.checker.builder` does the same to the checker's network.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from onnxcert.arrays import BoolArray
from onnxcert.errors import UnsupportedSpec
from onnxcert.frontend.quadrics import is_quadric
from onnxcert.frontend.rows import Factors, Layout, place
from onnxcert.graph import Graph, Neurons, Node
from onnxcert.ops import Concat, Multiply, Power, Select
from onnxcert.spec.query import Query
from onnxcert.spec.tree import Variable, atoms

_MOST_PRODUCTS = 10_000

_QUERY = "of the query"
"""Part of the names of what is appended; certificates name powers by it."""


def find_products(query: Query, layout: Layout) -> tuple[Factors, ...]:
    """The products in all comparisons that are no ellipsoids, in the order of `Layout.products`.

    Raises:
        UnsupportedSpec: there are too many.
    """
    found: dict[Factors, None] = {}
    for atom in atoms(query.assertions):
        if atom.polynomial.is_linear or is_quadric(atom, layout):
            continue
        for term in atom.polynomial.terms:
            if len(term.variables) > 1:
                found[term.variables] = None
        if len(found) > _MOST_PRODUCTS:
            raise UnsupportedSpec(
                f"more than {_MOST_PRODUCTS} different products are not supported",
                place=place(query, atom),
            )

    def rank(product: Factors) -> tuple[int, list[tuple[bool, int]]]:
        return len(set(product)), sorted(_rank(variable, layout) for variable in product)

    return tuple(sorted(found, key=rank))


def columns_read(query: Query, layout: Layout) -> BoolArray:
    """Which outputs, hidden tensors and products comparisons are about, (layout.n_columns,)."""
    read = np.zeros(layout.n_columns, bool)
    for atom in atoms(query.assertions):
        if is_quadric(atom, layout):
            continue
        for term in atom.polynomial.terms:
            is_input, position = layout.place(term.variables)
            if not is_input:
                read[position] = True
    return read


def with_products(graph: Graph, layout: Layout) -> Graph:
    """The network with the products of a layout behind its outputs."""
    if not layout.products:
        return graph
    made = _Growing(graph)

    def rank(variable: Variable) -> tuple[bool, int]:
        return _rank(variable, layout)

    counted = [Counter(sorted(product, key=rank)) for product in layout.products]
    variables = sorted({v for c in counted for v in c}, key=rank)
    places = [layout.place((variable,)) for variable in variables]
    factors = made.join(
        [
            made.select(name, [at for is_input, at in places if is_input == wanted])
            for name, wanted in ((graph.input, True), (graph.output, False))
        ]
    )
    column = {(variable, 1): k for k, variable in enumerate(variables)}
    parts = [factors]
    for exponent in sorted({m for c in counted for m in c.values() if m > 1}):
        raised = [v for v in variables if any(c[v] == exponent for c in counted)]
        for variable in raised:
            column[variable, exponent] = len(column)
        parts.append(made.power(factors, [column[v, 1] for v in raised], exponent))
    factors = made.join(parts)
    products = []
    for count in sorted({len(c) for c in counted}):
        slots = np.array([[column[f] for f in c.items()] for c in counted if len(c) == count])
        product = made.select(factors, slots[:, 0].tolist())
        for slot in slots.T[1:]:
            product = made.multiply(product, made.select(factors, slot.tolist()))
        products.append(product)
    output = made.join([graph.output, *products])
    return Graph(graph.input, graph.input_size, (*graph.nodes, *made.nodes), output)


def _rank(variable: Variable, layout: Layout) -> tuple[bool, int]:
    """Inputs before outputs, each in the order of its vector."""
    is_input, position = layout.place((variable,))
    return not is_input, position


class _Growing:
    """Appends nodes to a graph; every method returns the name of the value that it makes."""

    def __init__(self, graph: Graph) -> None:
        self.sizes = dict(graph.sizes)
        self.nodes: list[Node] = []

    def _add(self, node: Node) -> str:
        self.nodes.append(node)
        self.sizes[node.name] = node.op.output_size
        return node.name

    def _name(self) -> str:
        return f"value {len(self.nodes)} {_QUERY}"

    def select(self, name: str, columns: list[int]) -> str:
        return self._add(
            Node(self._name(), Select.of(np.array(columns, int), self.sizes[name]), (name,))
        )

    def join(self, names: list[str]) -> str:
        names = [name for name in names if self.sizes[name]]
        if len(names) == 1:
            return names[0]
        sizes = tuple(self.sizes[name] for name in names)
        return self._add(Node(self._name(), Concat(sizes), tuple(names)))

    def power(self, name: str, columns: list[int], exponent: int) -> str:
        read = self.select(name, columns)
        op, neurons = Power(len(columns), exponent), Neurons(f"power {exponent} {_QUERY}")
        return self._add(Node(self._name(), op, (read,), neurons=neurons))

    def multiply(self, first: str, second: str) -> str:
        return self._add(Node(self._name(), Multiply(self.sizes[first]), (first, second)))
