"""Rows that several sums share: what is added to one of them must not change another.

A sum that reads a block as it is hands its own row on. Over a single point bounds are values, so
any row that is changed on the way shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcert.checker.certificate import EXECUTED, REAL
from onnxcert.frontend.onnx import load_model
from tests.checker.makers import ACCEPTED, Instance, by_hand, spec
from tests.frontend.onnx_models import model_of
from tests.oracles import exact_values

Nodes = list[onnx.NodeProto]
SHARE = 2.0**-10


def _whole_part_product(order: Sequence[int]) -> Nodes:
    """h itself, some of h, and a product with h, in one sum."""
    terms = [["h", "g", "t"][place] for place in order]
    return [
        helper.make_node("Gather", ["h", "some"], ["g"], axis=1),
        helper.make_node("MatMul", ["h", "v"], ["t"]),
        helper.make_node("Sum", terms, ["s"]),
    ]


def _dense_blocks() -> Nodes:
    """Two sums share a row when a later block reads a part of one of them."""
    return [
        helper.make_node("MatMul", ["h", "v"], ["c"]),
        helper.make_node("Gather", ["c", "some"], ["g"], axis=1),
        helper.make_node("MatMul", ["h", "w"], ["d"]),
        helper.make_node("MatMul", ["g", "v"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("Add", ["c", "d"], ["a"]),
        helper.make_node("Add", ["a", "f"], ["s"]),
    ]


def _three_times() -> Nodes:
    return [
        helper.make_node("Gather", ["h", "some"], ["g"], axis=1),
        helper.make_node("Gather", ["h", "turned"], ["t"], axis=1),
        helper.make_node("Sum", ["h", "g", "t", "h"], ["s"]),
    ]


NETWORKS: dict[str, Nodes] = {
    **{f"terms_{order}": _whole_part_product(order) for order in permutations(range(3))},
    "dense_blocks": _dense_blocks(),
    "three_times": _three_times(),
}


def network(name: str, seed: int) -> onnx.ModelProto:
    """From four values to one, with the sum ``s`` between."""
    rng = np.random.default_rng(seed)
    constants = {
        key: (np.round(8 * rng.normal(size=shape)) / 8).astype(np.float32)
        for key, shape in {"w": (4, 4), "v": (4, 4), "u": (4, 1), "b": (4,)}.items()
    }
    used = {key for node in NETWORKS[name] for key in node.input}
    places = {"some": np.array([0, 0, 1, 1]), "turned": np.array([3, 2, 1, 1])}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        *NETWORKS[name],
        helper.make_node("Relu", ["s"], ["k"]),
        helper.make_node("MatMul", ["k", "u"], ["y"]),
    ]
    kept = {"w", "u", "b"} | used
    constants |= places
    return model_of(nodes, {"x": [1, 4]}, ["y"], {k: c for k, c in constants.items() if k in kept})


@pytest.mark.parametrize("semantics", [REAL, EXECUTED])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_bounds_at_a_point_are_values(name: str, semantics: str) -> None:
    """A claim that is false by little is refused, one that is true by little accepted."""
    proved = 0
    for seed in range(6):
        model = network(name, seed)
        point = np.round(64 * np.random.default_rng(seed).uniform(-1, 1, size=4)) / 64
        graph = load_model(model).graph
        value = float(exact_values(graph, point)[graph.output][0])
        for sign in (1.0, -1.0):
            for share, accepted in ((SHARE, False), (-SHARE, True)):
                bound = sign * value + share * (1.0 + abs(value))
                text = spec((point, point, [([sign], bound)]))
                it = Instance(model.SerializeToString(), text)
                outcome = it.outcome(by_hand(it, semantics=semantics))
                assert outcome == (ACCEPTED if accepted else "R8"), (seed, sign)
        proved += value != 0
    assert proved > 1
