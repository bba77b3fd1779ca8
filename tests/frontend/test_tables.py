"""What whole inputs decide: tables in the graph and in the checker's network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxcert.checker.errors import Unusable
from onnxcert.checker.model import read_network
from onnxcert.errors import UnsupportedModel
from onnxcert.frontend import tables
from onnxcert.frontend.onnx import load_model
from onnxcert.frontend.replay import check_lowering
from onnxcert.frontend.tensors import Constant, NoRule
from tests.frontend import lookups
from tests.frontend.lookups import Lookup
from tests.frontend.onnx_models import model_of

Kind = Callable[[np.random.Generator], Lookup]


def executed(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """onnxruntime's outputs, (B, m)."""
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    cut = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    rows = x.astype(np.float32)
    return np.stack([session.run(None, {"i": row[:cut], "x": row[cut:]})[0] for row in rows])


@pytest.mark.parametrize("kind", lookups.KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_graph_and_checker_agree_with_onnxruntime(kind: Kind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lookup = kind(rng)
    model = load_model(lookup.proto, limits=lookup.limits)
    check_lowering(model, lookup.lower, lookup.upper, rng, 6)
    network = read_network(lookup.proto.SerializeToString(), limits=lookup.limits)
    x = lookup.sample(rng, 60)
    expected = executed(lookup.proto, x)
    assert np.allclose(model.graph.forward(x), expected, atol=1e-5)
    assert np.allclose(network.forward(x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", lookups.KINDS)
def test_the_checker_names_neurons_as_the_engine_does(kind: Kind) -> None:
    lookup = kind(np.random.default_rng(0))
    graph = load_model(lookup.proto, limits=lookup.limits).lowered
    network = read_network(lookup.proto.SerializeToString(), limits=lookup.limits)
    x = lookup.sample(np.random.default_rng(1), 1)
    values = graph.values(x)
    theirs = {block.label: block for block in network.blocks if hasattr(block, "label")}
    ours = {node.neurons.label: node for node in graph.nodes if node.neurons is not None}
    assert ours.keys() == theirs.keys()
    for label, node in ours.items():
        block = theirs[label]
        ids = block.start + np.arange(block.size)
        network.output = ids
        made = network.forward(x)[0]
        positions = node.neurons.at(np.arange(node.op.output_size))
        assert np.allclose(made[block.at(positions)], values[node.name][0], atol=1e-9)


def test_inputs_that_only_floors_read_are_told() -> None:
    lookup = lookups.masked(np.random.default_rng(0))
    graph = load_model(lookup.proto, limits=lookup.limits).graph
    network = read_network(lookup.proto.SerializeToString(), limits=lookup.limits)
    assert graph.floored.tolist() == [0, 1]
    assert np.flatnonzero(network.floored).tolist() == [0, 1]
    # An input that is also read as it is, or as another curve, is not one of these.
    lookup = lookups.negative(np.random.default_rng(0))
    graph = load_model(lookup.proto, limits=lookup.limits).graph
    network = read_network(lookup.proto.SerializeToString(), limits=lookup.limits)
    assert not graph.floored.size
    assert not network.floored.any()


def test_an_input_that_is_read_as_it_is_too_is_not_floored() -> None:
    nodes = [
        helper.make_node("Floor", ["x"], ["f"]),
        helper.make_node("Add", ["f", "x"], ["y"]),
    ]
    proto = model_of(nodes, {"x": (2,)}, ["y"])
    assert not load_model(proto).graph.floored.size
    assert not read_network(proto.SerializeToString()).floored.any()
    proto = model_of(nodes[:1], {"x": (2,)}, ["f"])
    assert load_model(proto).graph.floored.tolist() == [0, 1]
    assert read_network(proto.SerializeToString()).floored.all()


def _cast(*, limits: Callable | None, divides: bool = False) -> list[type[Exception] | None]:
    """What both readers raise for a cast of an input, and a quotient of whole numbers."""
    nodes = [helper.make_node("Cast", ["x"], ["a"], **lookups.WHOLE)]
    if divides:
        nodes.append(helper.make_node("Div", ["best", "two"], ["half"]))
        nodes.insert(0, helper.make_node("ArgMax", ["x"], ["best"], axis=0))
    nodes.append(helper.make_node("Cast", ["half" if divides else "a"], ["y"], to=1))
    proto = model_of(nodes, {"x": (2,)}, ["y"], {"two": np.array([2])})
    raised: list[type[Exception] | None] = []
    for read in (load_model, lambda p, limits: read_network(p.SerializeToString(), limits=limits)):
        try:
            read(proto, limits=limits)
        except (UnsupportedModel, Unusable) as error:
            raised.append(type(error))
        else:
            raised.append(None)
    return raised


def test_what_is_not_understood_is_refused() -> None:
    def near(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(columns)), np.full(len(columns), 2.0)

    def far(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(columns)), np.full(len(columns), 2.0**31)

    assert _cast(limits=near) == [None, None]
    assert _cast(limits=None) == [UnsupportedModel, Unusable]
    assert _cast(limits=far) == [UnsupportedModel, Unusable]
    # Quotients of whole numbers lose what follows the decimal point.
    assert _cast(limits=near, divides=True) == [UnsupportedModel, Unusable]


def _sums(count: int, summand: int, kind: int = TensorProto.INT64) -> onnx.ModelProto:
    """Sums of the place of a maximum with constants, one after the other."""
    nodes = [helper.make_node("ArgMax", ["x"], ["v0"], axis=0)]
    if kind != TensorProto.INT64:
        nodes[0].output[0] = "v"
        nodes.append(helper.make_node("Cast", ["v"], ["v0"], to=kind))
    nodes += [helper.make_node("Add", [f"v{k}", "c"], [f"v{k + 1}"]) for k in range(count)]
    nodes.append(helper.make_node("Cast", [f"v{count}"], ["y"], to=TensorProto.FLOAT))
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return model_of(nodes, {"x": (3,)}, ["y"], {"c": np.array([summand], dtype)})


def test_sums_of_whole_numbers_that_may_overflow_prove_nothing() -> None:
    network = read_network(_sums(9, 7).SerializeToString())
    assert network.forward(np.array([[0.0, 2.0, 1.0]])).tolist() == [[64.0]]
    assert not network.binary32  # a sum may be rounded when it becomes a binary32 number
    assert read_network(_sums(0, 7).SerializeToString()).binary32
    with pytest.raises(Unusable, match="overflow"):
        read_network(_sums(10, 7).SerializeToString())
    for model in (_sums(1, 2**53 + 2), _sums(1, 7, TensorProto.INT32)):
        with pytest.raises(Unusable):
            read_network(model.SerializeToString())


def test_casts_like_whole_numbers_are_casts(rng: np.random.Generator) -> None:
    """Of inputs to what is computed elsewhere, which is of another type."""

    def near(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(columns), -1.5), np.full(len(columns), 2.5)

    nodes = [
        helper.make_node("ArgMax", ["x"], ["best"], axis=0),
        helper.make_node("CastLike", ["x", "best"], ["w"]),
        helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = model_of(nodes, {"x": (3,)}, ["y"], opset=15)
    points = rng.uniform(-1.5, 2.5, (20, 3)).astype(np.float32).astype(np.float64)
    for forward in (
        load_model(proto, limits=near).graph.forward,
        read_network(proto.SerializeToString(), limits=near).forward,
    ):
        assert np.allclose(forward(points), np.trunc(points))
    with pytest.raises(UnsupportedModel):
        load_model(proto)
    with pytest.raises(Unusable):
        read_network(proto.SerializeToString())


def test_what_a_condition_chooses_are_numbers(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["t"]),
        helper.make_node("Where", ["t", "x", "zero"], ["w"]),
        helper.make_node("MatMul", ["w", "m"], ["y"]),
    ]
    constants = {"zero": np.zeros(1, np.float32), "m": rng.normal(size=(3, 2)).astype(np.float32)}
    proto = model_of(nodes, {"x": (3,)}, ["y"], constants)
    points = rng.normal(size=(20, 3))
    expected = np.maximum(points, 0.0) @ constants["m"]
    assert np.allclose(load_model(proto).graph.forward(points), expected)
    assert np.allclose(read_network(proto.SerializeToString()).forward(points), expected)


def test_truths_are_asked_for() -> None:
    """onnxruntime refuses such models; the checker does not rely on that."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Not", ["r"], ["n"]),
        helper.make_node("And", ["r", "x"], ["a"]),
        helper.make_node("Where", ["r", "x", "x"], ["w"]),
        helper.make_node("Cast", ["n"], ["n_n"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["a"], ["a_n"], to=TensorProto.FLOAT),
    ]
    for used, output in ((1, "n_n"), (2, "a_n"), (3, "w")):
        some = [nodes[0], nodes[used], *(node for node in nodes[4:] if node.output[0] == output)]
        model = model_of(some, {"x": (2,)}, [output])
        with pytest.raises(Unusable, match="no truth"):
            read_network(model.SerializeToString())


def test_a_table_of_equal_tensors_is_a_constant() -> None:
    keys = (tables.Key("v", 0, 0, 3), tables.Key("v", 1, -1, 1))
    made = tables.Table.of(keys, [np.arange(4)] * 12)
    assert isinstance(made, Constant)
    assert made.array.tolist() == [0, 1, 2, 3]


def test_what_is_made_of_tables_is_a_table_of_all_keys(rng: np.random.Generator) -> None:
    keys = (tables.Key("v", 0, 0, 3), tables.Key("v", 1, -1, 1))
    rows = [rng.integers(0, 2, (2, 3)) for _ in range(12)]
    rows[5] = np.zeros((0, 3), np.int64)
    first = tables.Table.of(keys, rows)
    second = tables.Table.of(keys[1:], map(np.array, range(3)))
    assert isinstance(first, tables.Table)
    assert isinstance(second, tables.Table)
    with pytest.raises(NoRule, match="shape depends"):
        first.entries()
    made = tables.evaluate([second, first], lambda pair: np.append(pair[1].sum(), pair[0]))
    assert isinstance(made, tables.Table)
    assert made.keys == keys[::-1]
    found = [made.rows[k].tolist() for k in made.number]
    assert found == [[rows[3 * k + j].sum(), j] for j in range(3) for k in range(4)]
    base, combination, position, difference = made.entries()
    whole = np.tile(base, (12, 1))
    whole[combination, position] += difference
    assert whole.tolist() == found


def test_what_most_combinations_have_in_common_is_no_change() -> None:
    keys = (tables.Key("v", 0, 0, 11),)
    rows = np.ones((12, 16))
    for place in range(4):  # patches overlap
        rows[place, place : place + 3] = 0.0
    made = tables.Table.of(keys, rows)
    assert isinstance(made, tables.Table)
    assert set(made.entries().combination.tolist()) == {0, 1, 2, 3}
    for place in range(4, 12):  # now there is one for each, of which no two far apart overlap
        rows[place, place + 4] = 0.0
    made = tables.Table.of(keys, rows)
    assert isinstance(made, tables.Table)
    assert (made.entries().base == 1.0).all()


def test_differences_that_are_no_numbers_are_refused() -> None:
    keys = (tables.Key("v", 0, 0, 3),)
    made = tables.Table.of(keys, [np.array([1e30 if k == 2 else 1.0]) for k in range(4)])
    assert isinstance(made, tables.Table)
    with pytest.raises(NoRule, match="very different size"):
        made.entries()


def test_too_many_combinations_are_refused() -> None:
    parts = [
        tables.Table.of((tables.Key("v", k, 0, 199),), map(np.array, range(200))) for k in (0, 1)
    ]
    with pytest.raises(NoRule, match="more than 16384 combinations"):
        tables.evaluate(parts, sum)  # type: ignore[arg-type]
