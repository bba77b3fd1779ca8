"""Forward forms on random networks: exact values lie within the radius of their form."""

from __future__ import annotations

from fractions import Fraction
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.arrays import Array
from onnxcert.bounds import forward
from onnxcert.bounds.backward import unstable_neurons
from onnxcert.bounds.crown import crown_bounds
from onnxcert.bounds.execution import enclose
from onnxcert.bounds.forward import ForwardForms
from onnxcert.graph import Graph, Node
from onnxcert.ops import Absolute, LeakyRelu, Linear, Relu, Scale, Sum
from onnxcert.ops.base import Bivariate, Elementwise, Operator
from onnxcert.sets import Box
from tests.bounds.test_soundness import Sample, assert_inside, networks

ALWAYS = mock.patch.object(forward, "NEURONS_PER_INPUT", 0)


@given(drawn=networks(smooth=True))
def test_exact_values_lie_within_the_radius(drawn: tuple[Graph, Box, list[Sample]]) -> None:
    graph, box, samples = drawn
    with ALWAYS:
        forms = ForwardForms.begin(graph, box, 0.0)
    assert forms is not None
    kept = dict(forms.forms)
    boxes = {graph.input: box}
    for number, node in enumerate(graph.nodes):
        boxes[node.name] = enclose(graph, node, boxes, 0.0)
        if isinstance(node.op, Elementwise):
            forms.add_elementwise(number, node, boxes)
        else:
            if isinstance(node.op, Bivariate):
                read = [boxes[name] for name in node.inputs]
                planes = node.op.relax(read, boxes[node.name])
                found = forms.add_bivariate(number, node, boxes, planes)
            else:
                found = forms.add_affine(number, node, boxes)
            for sample in samples:
                assert_inside({node.name: found}, sample)
        kept[node.name] = forms.forms[node.name]
    for number, x, values in samples:
        inputs = kept[graph.input][0][number]
        t = [Fraction(1), *(_share(row, x, inputs[0]) for row in inputs[1:])]
        for name, (terms, radius) in kept.items():
            for value, column, r in zip(values[name], terms[number].T, radius[number], strict=True):
                if not (np.isfinite(column).all() and np.isfinite(r)):
                    continue
                form = sum(
                    (Fraction(float(c)) * s for c, s in zip(column, t, strict=True)), Fraction()
                )
                assert abs(value - form) <= Fraction(float(r)), name


def _share(row: Array, x: Array, center: Array) -> Fraction:
    """Where on its noise symbol an input lies."""
    if not row.any():  # it varies in the other box of the batch only
        return Fraction()
    (i,) = np.flatnonzero(row)
    share = (Fraction(float(x[i])) - Fraction(float(center[i]))) / Fraction(float(row[i]))
    assert abs(share) <= 1
    return share


@given(drawn=networks(smooth=True))
def test_backward_bounds_after_forms(drawn: tuple[Graph, Box, list[Sample]]) -> None:
    graph, box, samples = drawn
    with ALWAYS:
        bounds = crown_bounds(graph, box)
    assert not bounds.empty.any()
    for sample in samples:
        assert_inside(bounds.boxes, sample)


def chain(*operators: Operator) -> Graph:
    """One operator after the other."""
    nodes = [
        Node(f"v{number}", op, ("x" if number == 0 else f"v{number - 1}",))
        for number, op in enumerate(operators)
    ]
    return Graph("x", operators[0].input_sizes[0], tuple(nodes), nodes[-1].name)


def test_forms_decide_neurons_that_intervals_cannot() -> None:
    """(x - y + 3) - (x + 3) + (y + 3) - 5/2 = 1/2, through a curve that is the identity there."""
    graph = chain(
        Linear(np.array([[1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]), np.array([3.0, 3.0, 3.0])),
        Relu(3),
        Linear(np.array([[1.0], [-1.0], [1.0]]), np.array([-2.5])),
        Relu(1),
    )
    box = Box(np.array([[-1.0, -1.0]]), np.array([[1.0, 1.0]]))
    name = graph.nodes[2].name
    with ALWAYS:
        forms = ForwardForms.begin(graph, box, 0.0)
        assert forms is not None
        boxes = {graph.input: box}
        for number, node in enumerate(graph.nodes[:3]):
            boxes[node.name] = enclose(graph, node, boxes, 0.0)
            if isinstance(node.op, Elementwise):
                forms.add_elementwise(number, node, boxes)
            else:
                found = forms.add_affine(number, node, boxes)
    assert unstable_neurons(graph, name, boxes[name]).any()
    assert np.allclose([found.lower, found.upper], 0.5)


@given(
    st.floats(-3, 3, allow_subnormal=False),
    st.floats(1e-6, 3),
    st.sampled_from([Relu(1), Absolute(1), LeakyRelu(1, np.array([0.3]))]),
)
def test_lines_of_kinked_curves_become_parallel(
    low: float, width: float, curve: Elementwise
) -> None:
    box = Box(np.array([[low]]), np.array([[low + width]]))
    lines = curve.relax(box, curve.parallel_position(box))
    assert np.allclose(lines.lower_slope, lines.upper_slope, rtol=1e-12, atol=1e-12)


def test_forms_are_left_out_where_many_inputs_vary() -> None:
    graph = chain(Linear(np.ones((5, 400)), None), Relu(400))
    box = Box(np.zeros((1, 5)), np.array([[1.0, 1.0, 1.0, 1.0, 0.0]]))
    forms = ForwardForms.begin(graph, box, 0.0)
    assert forms is not None
    assert forms.forms[graph.input][0].shape == (1, 5, 5)
    wider = Box(np.zeros((1, 5)), np.ones((1, 5)))
    assert ForwardForms.begin(graph, wider, 0.0) is None


def test_decimals_between_two_floats_have_no_column() -> None:
    """Their width is in the radius, for each box that of its own."""
    graph = chain(Linear(np.ones((5, 400)), None), Relu(400))
    lower = np.tile(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), (2, 1))
    upper = np.nextafter(lower, np.inf)
    upper[0, 1] = upper[1, 2] = 5.0
    forms = ForwardForms.begin(graph, Box(lower, upper), 0.0)
    assert forms is not None
    terms, radius = forms.forms[graph.input]
    assert terms.shape == (2, 2, 5)
    vary = np.array([[False, True, False, False, False], [False, False, True, False, False]])
    assert ((terms[:, 1] != 0) == vary).all()
    inside = (terms[:, 0] - radius <= lower) & (terms[:, 0] + radius >= upper)
    assert (inside | vary).all()
    assert ((radius > 0) != vary).all()


def test_an_offset_leaves_the_form_that_it_is_added_to() -> None:
    """A scale without factors hands on the very array that it reads."""
    nodes = (
        Node("h", Relu(1), ("x",)),
        Node("moved", Scale(1, None, np.array([5.0])), ("h",)),
        Node("y", Sum(1, (1, 1)), ("h", "moved")),
    )
    graph = Graph("x", 1, nodes, "y")
    box = Box(np.array([[1.0]]), np.array([[2.0]]))
    with ALWAYS:
        bounds = crown_bounds(graph, box)
    assert bounds.boxes["y"].lower[0, 0] <= 7.0
    assert bounds.boxes["y"].upper[0, 0] >= 9.0
