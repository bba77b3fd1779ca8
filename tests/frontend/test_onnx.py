"""Reading models: every form a good file may take, and every way in which one may be bad."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcert.errors import ModelError, UnsupportedModel
from onnxcert.frontend.onnx import (
    inspect_model,
    load_model,
    opset_versions,
    supported_operators,
)
from onnxcert.frontend.replay import check_lowering
from tests.frontend.onnx_models import agrees, integers, model_of, single, weights


def network(**changes: object) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, Flatten, Gemm, with a dynamic batch."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("MaxPool", ["r"], ["m"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Flatten", ["m"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], name="gemm"),
    ]
    constants = {"k": weights(2, 1, 3, 3), "w": weights(18, 3), "b": weights(3)}
    proto = model_of(nodes, {"x": ("N", 1, 4, 4)}, ["y"], constants)
    for name, value in changes.items():
        setattr(proto, name, value)
    return proto


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "network.onnx"
    file.write_bytes(network().SerializeToString())
    return file


def refusal(source: object, **options: object) -> str:
    """The message of the error; that it is no other error is the point of most tests here."""
    with pytest.raises(ModelError) as caught:
        load_model(source, **options)  # type: ignore[arg-type]
    assert caught.value.cause[0].islower() or not caught.value.cause[0].isalpha()
    return str(caught.value)


# What is in a model


def test_summary_of_a_model(path: Path) -> None:
    model = load_model(path)
    assert model.source == str(path)
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (model.opset, model.producer) == (13, "tests")
    assert model.parameters == 18 + 54 + 3
    assert [info.shape for info in model.inputs] == [(1, 1, 4, 4)]
    assert [(info.name, info.element_type) for info in model.outputs] == [("y", "float32")]
    assert [layer.operator for layer in model.layers] == [
        "Conv", "Relu", "MaxPool", "Flatten", "Gemm",
    ]  # fmt: skip
    assert model.layers[0].shape == (1, 2, 4, 4)
    assert model.layers[0].parameters == 18
    assert {node.source for node in model.graph.nodes} <= {"conv", "relu", "pool", "gemm"}


def test_compressed_file_is_told_by_its_content(path: Path) -> None:
    packed = path.with_suffix(".bin")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    model = load_model(packed)
    assert model.sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()
    check_lowering(model, -np.ones(16), np.ones(16), np.random.default_rng(0), 2)


def test_object_has_the_hash_of_its_serialisation() -> None:
    proto = network()
    serialised = proto.SerializeToString(deterministic=True)
    assert load_model(proto).sha256 == hashlib.sha256(serialised).hexdigest()


def test_stored_tensors_listed_as_inputs() -> None:
    proto = network()
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    assert len(agrees(proto).inputs) == 1


def test_several_inputs_and_outputs_stand_in_order() -> None:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Relu", ["b"], ["positive"]),
    ]
    model = agrees(model_of(nodes, {"a": (2, 1), "b": (3,)}, ["positive", "sum", "a"]))
    assert [info.size for info in model.inputs] == [2, 3]
    assert [info.size for info in model.outputs] == [3, 6, 2]
    y = model.graph.forward(np.array([[1.0, 2.0, -1.0, 0.0, 5.0]]))
    assert y.tolist() == [[0, 0, 5, 0, 1, 6, 1, 2, 7, 1, 2]]


def test_output_that_does_not_depend_on_the_input() -> None:
    node = helper.make_node("Identity", ["c"], ["y"])
    model = agrees(model_of([node], {"x": (2,)}, ["y"], {"c": weights(3)}))
    assert model.graph.output_size == 3


def test_hidden_tensors_follow_the_outputs(path: Path) -> None:
    model = load_model(path, hidden=["m", "r"])
    assert [info.shape for info in model.hidden] == [(1, 2, 3, 3), (1, 2, 4, 4)]
    assert model.graph.output_size == 3 + 18 + 32
    check_lowering(model, -np.ones(16), np.ones(16), np.random.default_rng(0), 2)
    assert "no inner tensor 'nowhere'" in refusal(path, hidden=["nowhere"])


def test_local_functions_are_inlined() -> None:
    """The version converter would drop them without a word."""
    body = [
        helper.make_node("Neg", ["a"], ["minus"]),
        helper.make_node("Relu", ["minus"], ["result"]),
    ]
    function = helper.make_function(
        "local", "Flipped", ["a"], ["result"], body, [helper.make_opsetid("", 13)]
    )
    node = helper.make_node("Flipped", ["x"], ["y"], domain="local")
    proto = model_of([node], {"x": (3,)}, ["y"], functions=[function], domains=["local"])
    assert [layer.operator for layer in agrees(proto).layers] == ["Neg", "Relu"]


def test_outdated_nodes_are_converted() -> None:
    """onnxruntime itself begins with version 7 of Add."""
    node, c = helper.make_node("Add", ["x", "c"], ["y"]), weights(2, 3)
    model = load_model(model_of([node], {"x": (2, 3)}, ["y"], {"c": c}, opset=6))
    assert model.opset == 6
    assert model.graph.forward(np.ones((1, 6))).tolist() == [
        (1.0 + c.ravel().astype(float)).tolist()
    ]


def test_outdated_node_that_the_converter_gives_up_on() -> None:
    node = helper.make_node("Add", ["x", "c"], ["y"], axis=1, broadcast=1)
    proto = model_of([node], {"x": (2, 3, 4)}, ["y"], {"c": weights(3)}, opset=6)
    assert "version 6" in refusal(proto)


def test_node_newer_than_its_rule_is_refused() -> None:
    newest = onnx.defs.onnx_opset_version()
    proto = single("Cast", (2,), to=TensorProto.FLOAT, opset=max(28, newest))
    message = refusal(proto)
    assert "version" in message


CONSTANT_FORMS = [
    helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(weights(3))),
    helper.make_node("Constant", [], ["c"], value_float=2.5),
    helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0]),
    helper.make_node(
        "Constant", [], ["c"],
        sparse_value=helper.make_sparse_tensor(
            numpy_helper.from_array(weights(2), "v"), numpy_helper.from_array(integers(0, 2)), [3]
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize("constant", CONSTANT_FORMS, ids=lambda n: n.attribute[0].name)
def test_forms_of_constant_nodes(constant: onnx.NodeProto) -> None:
    agrees(model_of([constant, helper.make_node("Add", ["x", "c"], ["y"])], {"x": (3,)}, ["y"]))


def test_sparse_stored_tensors() -> None:
    proto = model_of([helper.make_node("Add", ["x", "c"], ["y"])], {"x": (2, 3)}, ["y"])
    values = numpy_helper.from_array(weights(2), "c")
    places = numpy_helper.from_array(np.array([[0, 1], [1, 2]]))
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 3]))
    agrees(proto)


# Dynamic shapes


def test_dynamic_dimensions() -> None:
    proto = network()
    assert load_model(proto).graph.input_size == 16
    assert load_model(proto, input_elements=48).inputs[0].shape == (3, 1, 4, 4)
    assert load_model(proto, input_shapes=[(2, 1, 4, 4)]).outputs[0].shape == (2, 3)
    assert "[N, 1, 4, 4]" in refusal(proto, input_elements=17)
    assert "is declared" in refusal(proto, input_shapes=[(1, 1, 4, 5)])
    assert "2 are declared" in refusal(proto, input_shapes=[(1, 1, 4, 4), (1,)])


def test_declared_shape_with_as_many_entries(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_model(single("Relu", (1, 1, 1, 5)), input_shapes=[(5,)])
    assert model.inputs[0].shape == (1, 1, 1, 5)
    assert "reshaped" in caplog.text


def test_only_the_last_of_two_unknown_dimensions_is_solved_for() -> None:
    proto = single("Relu", ("batch", "length", 2))
    assert load_model(proto, input_elements=6).inputs[0].shape == (1, 3, 2)
    assert "[n, n]" in refusal(single("Relu", ("n", "n")), input_elements=4)


def test_wrong_output_shape_is_only_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    proto = single("Relu", (2, 3))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, (7,)))
    with caplog.at_level(logging.WARNING):
        assert load_model(proto).outputs[0].shape == (2, 3)
    assert "though the file says" in caplog.text


# External data


@pytest.fixture
def external(tmp_path: Path) -> Path:
    file = tmp_path / "split.onnx"
    onnx.save(network(), file, save_as_external_data=True, location="split.data", size_threshold=0)
    return file


def _relocated(file: Path, **entries: str) -> Path:
    proto = onnx.load(file, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    file.write_bytes(proto.SerializeToString())
    return file


def test_external_data_beside_the_file(external: Path) -> None:
    model = load_model(external)
    check_lowering(model, -np.ones(16), np.ones(16), np.random.default_rng(0), 2)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret", "a/../../b", "C:\\x", "..\\x", "", "."]
)
def test_external_data_elsewhere_are_refused(external: Path, location: str) -> None:
    message = refusal(_relocated(external, location=location))
    assert "outside the model's folder" in message or "cannot be read" in message


def test_external_data_through_a_link_are_refused(external: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / "link").symlink_to(outside)
    assert "outside" in refusal(_relocated(external, location="link/data"))


def test_broken_external_data(external: Path) -> None:
    assert "end too early" in refusal(_relocated(external, offset="1000000"))
    assert "cannot be read" in refusal(_relocated(external, length="many"))
    (external.parent / "split.data").unlink()
    assert "cannot be read" in refusal(external)


def test_external_data_of_an_object(external: Path) -> None:
    assert "external data" in refusal(onnx.load(external, load_external_data=False))


# Unsupported models


def test_all_unsupported_nodes_are_listed() -> None:
    nodes = [
        helper.make_node("Elu", ["x"], ["s"], name="first"),
        helper.make_node("Relu", ["s"], ["r"], name="fine"),
        helper.make_node("Erf", ["r"], ["e"], name="second"),
        helper.make_node("Pow", ["e", "r"], ["p"], name="third"),
        helper.make_node("Elu", ["p"], ["y"], name="fourth"),
    ]
    with pytest.raises(UnsupportedModel) as caught:
        load_model(model_of(nodes, {"x": (1, 3)}, ["y"]))
    place = caught.value.place
    assert "4 nodes" in caught.value.cause
    assert all(name in place for name in ("first", "second", "third", "fourth"))
    assert "fine" not in place
    assert "--onnx-operators" in caught.value.help


def test_operators_of_other_domains_are_listed_with_the_rest() -> None:
    nodes = [
        helper.make_node("FusedThing", ["x"], ["a"], domain="com.example", name="odd"),
        helper.make_node("Relu", ["a"], ["b"], name="fine"),
        helper.make_node("Invented", ["b"], ["c"], name="new"),
        helper.make_node("Erf", ["c"], ["y"], name="known"),
    ]
    proto = model_of(nodes, {"x": (1, 3)}, ["y"], domains=["com.example"])
    message = refusal(proto)
    assert "3 nodes" in message
    assert "com.example.FusedThing" in message
    inspection = inspect_model(proto)
    assert [layer.name for layer in inspection.unsupported] == ["odd", "new", "known"]


def test_outputs_that_a_rule_leaves_out() -> None:
    """The mask of Dropout may have a name, but nobody may read it."""
    nodes = [
        helper.make_node("Dropout", ["x"], ["d", "mask"]),
        helper.make_node("Where", ["mask", "d", "d"], ["y"], name="reader"),
    ]
    assert "reader" in refusal(model_of(nodes, {"x": (2,)}, ["y"]))
    agrees(model_of(nodes[:1], {"x": (2,)}, ["d"]))


def test_control_flow_is_unsupported() -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["z"])],
        "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, (2,))],
    )  # fmt: skip
    node = helper.make_node(
        "If", ["flag"], ["y"], name="choice", then_branch=branch, else_branch=branch
    )
    proto = model_of([node], {"x": (2,)}, ["y"], {"flag": np.array(True)})
    with pytest.raises(UnsupportedModel, match="choice"):
        load_model(proto)


def test_inspection_of_a_supported_model(path: Path) -> None:
    inspection = inspect_model(path)
    assert not inspection.unsupported
    assert inspection.outputs[0].shape == (1, 3)
    assert inspection.layers == load_model(path).layers


def test_table_of_operators() -> None:
    table = supported_operators()
    assert list(table) == sorted(table)
    assert table["Conv"][0] == ("float16", "float32", "float64")
    low, high = opset_versions()
    assert low < 13 < high


# Broken models


def test_files_that_are_no_models(tmp_path: Path) -> None:
    good = network().SerializeToString()
    contents = {
        "empty": b"",
        "text": b"(declare-const X_0 Real)\n",
        "noise": bytes(range(256)) * 4,
        "cut": good[:-40],
        "gzip cut": gzip.compress(good)[:-20],
        "gzip noise": b"\x1f\x8b" + bytes(100),
        "gzip of text": gzip.compress(b"text"),
        "only a header": onnx.ModelProto(ir_version=8).SerializeToString(),
    }
    for name, data in contents.items():
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(data)
        assert str(file) in refusal(file), name


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "missing.onnx")
    assert "cannot be read" in refusal(tmp_path)
    assert "cannot be read" in refusal("null\0character")


def test_headers() -> None:
    assert "IR version 99" in refusal(network(ir_version=99))
    proto = network()
    proto.opset_import[0].version = 999
    assert "operator set [999]" in refusal(proto)
    del proto.opset_import[:]
    assert "operator set none" in refusal(proto)


@pytest.mark.parametrize(
    "element", [TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL, TensorProto.BFLOAT16]
)
def test_inputs_must_be_floating_point(element: int) -> None:
    assert "elements of type" in refusal(single("Identity", (2,), element=element))


def test_inputs_must_be_tensors() -> None:
    proto = network()
    proto.graph.input[0].CopyFrom(
        helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, (2,))
    )
    assert "not a tensor" in refusal(proto)
    del proto.graph.input[:]
    assert "no input" in refusal(proto)
    proto = network()
    del proto.graph.output[:]
    assert "no output" in refusal(proto)


def test_empty_input() -> None:
    assert "length zero" in refusal(single("Relu", (2, 0)))


def test_cycles_and_missing_values() -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="two"),
    ]
    assert "not valid" in refusal(model_of(nodes, {"x": (2,)}, ["b"]))
    missing = [helper.make_node("Add", ["x", "nowhere"], ["y"])]
    assert "nowhere" in refusal(model_of(missing, {"x": (2,)}, ["y"]))
    assert "ghost" in refusal(model_of(nodes[1:], {"a": (2,)}, ["ghost"]))


def test_values_made_twice() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])]
    assert "not valid" in refusal(model_of(nodes, {"x": (2,)}, ["y"]))
    proto = network()
    proto.graph.initializer.append(proto.graph.initializer[0])
    assert "same name" in refusal(proto)


def test_shapes_that_do_not_fit() -> None:
    assert "the_node" in refusal(single("MatMul", (2, 3), weights(4, 5)))
    assert "the_node" in refusal(single("Add", (2, 3), weights(4)))


def test_stored_tensor_shorter_than_its_shape() -> None:
    proto = single("MatMul", (1, 600), weights(600, 2))
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    assert "v1" in refusal(proto)


def test_infinite_weight_names_the_node() -> None:
    matrix = weights(600, 2)
    matrix[7, 1] = np.nan
    message = refusal(single("MatMul", (1, 600), matrix))
    assert "the_node" in message
    assert "NaN" in message


@pytest.mark.parametrize("operator", ["Expand", "Tile"])
def test_gigantic_tensors(operator: str) -> None:
    assert "too large" in refusal(single(operator, (1,), integers(10**12)))
    node = helper.make_node("ConstantOfShape", ["n"], ["c"])
    nodes = [node, helper.make_node("Add", ["x", "c"], ["y"])]
    assert refusal(model_of(nodes, {"x": (1,)}, ["y"], {"n": integers(10**6, 10**6)}))


_GOOD = network().SerializeToString()


@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(["flip", "cut", "insert", "delete"]),
            st.integers(0, len(_GOOD) - 1),
            st.binary(min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_damaged_files_are_refused_or_read(
    edits: list[tuple[str, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any other exception, or a warning, fails the test."""
    data = bytearray(_GOOD)
    for kind, place, extra in edits:
        if kind == "flip":
            data[place : place + len(extra)] = extra
        elif kind == "insert":
            data[place:place] = extra
        else:
            del data[place : len(data) if kind == "cut" else place + len(extra)]
    file = tmp_path_factory.getbasetemp() / "damaged.onnx"
    file.write_bytes(data)
    with contextlib.suppress(ModelError):
        assert load_model(file).graph.output_size >= 1
