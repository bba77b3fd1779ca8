"""Specifications: the exact constraint tree, and the batches of problems made from it.

`tree` and `boxes` are what a file says, `query` evaluates it exactly, `problem` is what the engine
is asked, `build` makes queries in code, `describe` puts them into words.
"""

from onnxcert.spec.boxes import BoxUnion
from onnxcert.spec.build import Specification, Squares, box, l2_ball, linf_ball
from onnxcert.spec.decimals import Decimals
from onnxcert.spec.describe import describe
from onnxcert.spec.ellipsoid import Ellipsoid
from onnxcert.spec.problem import Problem
from onnxcert.spec.query import Query
from onnxcert.spec.tree import And, Atom, Formula, Network, Or, Polynomial, Tensor, Term, Variable

__all__ = [
    "And",
    "Atom",
    "BoxUnion",
    "Decimals",
    "Ellipsoid",
    "Formula",
    "Network",
    "Or",
    "Polynomial",
    "Problem",
    "Query",
    "Specification",
    "Squares",
    "Tensor",
    "Term",
    "Variable",
    "box",
    "describe",
    "l2_ball",
    "linf_ball",
]
