"""The array seam on the CPU: devices by name, and the small types built on arrays."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcert import arrays
from onnxcert.arrays import Device, array_module, select_device, to_device, to_host
from onnxcert.errors import UsageError
from onnxcert.graph import Graph, Node
from onnxcert.ops import Linear, Relu, Select
from onnxcert.sets import Box


def test_cpu_is_always_there() -> None:
    assert select_device("cpu") == Device()
    assert str(Device()) == "cpu"
    assert Device().xp is np


@pytest.mark.parametrize(
    "name", ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "auto:0", "CUDA"]
)
def test_unknown_names_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_count_gpus", lambda: ("", 0))
    with pytest.raises(UsageError):
        select_device(name)


def test_auto_falls_back_and_cuda_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_count_gpus", lambda: ("CuPy is not installed", 0))
    assert select_device("auto") == Device()
    with pytest.raises(UsageError, match="CuPy is not installed") as caught:
        select_device("cuda:1")
    assert "--device cpu" in caught.value.help


def test_missing_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_count_gpus", lambda: ("", 2))
    with pytest.raises(UsageError, match="there are 2 GPUs, numbered from 0"):
        select_device("cuda:2")


def test_arrays_of_the_host_stay_where_they_are() -> None:
    array = np.arange(3.0)
    assert to_device(array, Device()) is array
    assert to_host(array) is array
    assert array_module(array, 1.0) is np


def test_box_magnitude_and_intersection() -> None:
    box = Box(np.array([[-3.0, 1.0]]), np.array([[2.0, 4.0]]))
    np.testing.assert_array_equal(box.magnitude, [[3.0, 4.0]])
    part = box.intersect(Box(np.array([[0.0, 5.0]]), np.array([[9.0, 6.0]])))
    np.testing.assert_array_equal(part.lower, [[0.0, 5.0]])
    np.testing.assert_array_equal(part.upper, [[2.0, 4.0]])


def node(name: str, size: int, *inputs: str) -> Node:
    return Node(name, Relu(size), inputs)


@pytest.mark.parametrize(
    ("nodes", "output", "message"),
    [
        ((node("a", 2, "b"),), "a", r"a reads \(-1,\) values"),
        ((node("a", 3, "x"),), "a", r"a reads \(2,\) values, its operator \(3,\)"),
        ((node("a", 2, "x"), node("a", 2, "x")), "a", "a is made twice"),
        ((node("x", 2, "x"),), "x", "x is made twice"),
        ((node("a", 2, "x"),), "b", "the output b is never made"),
    ],
)
def test_broken_graphs_are_refused(nodes: tuple[Node, ...], output: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph("x", 2, nodes, output)


def test_gradient_of_values_read_twice_and_of_unread_inputs(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(2, 2))
    nodes = (
        Node("a", Linear(weight), ("x",)),
        Node("b", Linear(weight), ("x",)),
        Node("y", Select.of(np.array([0, 0]), 2), ("a",)),
    )
    graph = Graph("x", 2, nodes, "y")
    outputs, gradient = graph.gradient(np.ones((1, 2)), np.ones_like)
    np.testing.assert_allclose(outputs, np.full((1, 2), weight[:, 0].sum()))
    np.testing.assert_allclose(gradient, 2.0 * weight[:, :1].T)


def test_gradient_is_zero_where_the_output_does_not_depend_on_the_input() -> None:
    nodes = (Node("y", Select.of(np.array([-1]), 2, fill=1.0), ("x",)),)
    outputs, gradient = Graph("x", 2, nodes, "y").gradient(np.ones((1, 2)), np.ones_like)
    assert outputs.tolist() == [[1.0]]
    assert gradient.tolist() == [[0.0, 0.0]]
