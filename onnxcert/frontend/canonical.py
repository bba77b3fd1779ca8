"""Checks and canonical form of a model: what may reach the rules.

The order matters. Local functions are inlined before anything else, because ONNX's version
converter drops them in silence. Large weights are set aside first and enter the skeleton as
inputs of known shape, so that checker, converter and shape inference, which all serialise the
model, take milliseconds for models of any size. The converter runs only for models with a node
older than its rule reads (see `onnxcert.frontend.rules.registry`): it renames nothing, but 8 ms
are a tenth of what a small network takes in all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter

from onnxcert.errors import ModelError
from onnxcert.frontend.model_file import ModelFile
from onnxcert.frontend.rules import RULES
from onnxcert.frontend.shapes import TensorInfo, bind_inputs
from onnxcert.frontend.tensors import Shape

TARGET_OPSET = 21
"""What models with outdated nodes are converted to."""

NEWEST_OPSET = 25
"""Newer versions of an operator are refused until someone has read what changed."""

_KEPT_BYTES = 1024
"""Stored tensors up to this size stay in the skeleton: shapes are computed from them."""

_DEFAULT_DOMAINS = ("", "ai.onnx")

_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Canonical:
    """A checked model, ready for the rules.

    Attributes:
        file: the model as it was read.
        nodes: of the main graph, in topological order, without functions.
        inputs, outputs: the real ones, with concrete shapes where they are known.
        weights: name -> stored tensor.
        shapes: name -> shape by ONNX's inference, where it is known.
        types: name -> number of the element type, likewise.
        opset: the version the nodes are written in.
        file_opset: the version the file declares.
        unknown: nodes that are no ONNX operators, with the reason.
    """

    file: ModelFile
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, onnx.TensorProto]
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    opset: int
    file_opset: int
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def producer(self) -> str:
        """Exporter and version."""
        proto = self.file.proto
        return f"{proto.producer_name} {proto.producer_version}".strip()


def canonical(
    file: ModelFile, input_shapes: Sequence[Shape] | None, input_elements: int | None
) -> Canonical:
    """Check a model and bring it into canonical form.

    Raises:
        ModelError: the model is not valid, or its inputs do not fit the declared ones.
    """
    proto = file.proto
    opset = _opset(file)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    skeleton = _skeleton(file, weights)
    if proto.functions:
        skeleton = _guarded(file, "inlined", lambda: onnx.inliner.inline_local_functions(skeleton))
    _set_constants_aside(skeleton, weights)
    inputs = bind_inputs(file.source, _real_inputs(proto), input_shapes, input_elements)
    _declare_inputs(skeleton, inputs, weights)
    unknown = _unknown_nodes(skeleton, opset)
    version = opset
    if not unknown:
        _guarded(file, "checked", lambda: onnx.checker.check_model(skeleton))
        _forget_output_shapes(skeleton)
        if _is_outdated(skeleton, opset):
            skeleton, version = _converted(file, skeleton)
        skeleton = _guarded(
            file,
            "given shapes",
            lambda: onnx.shape_inference.infer_shapes(
                skeleton, check_type=True, strict_mode=True, data_prop=True
            ),
        )
    shapes, types = _inferred(skeleton)
    _compare_outputs(file, shapes)
    return Canonical(
        file,
        tuple(skeleton.graph.node),
        inputs,
        tuple(output.name for output in skeleton.graph.output),
        weights,
        shapes,
        types,
        version,
        opset,
        unknown,
    )


def _opset(file: ModelFile) -> int:
    """The version of the default domain, after the checks of the header."""
    proto = file.proto
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"the model has IR version {proto.ir_version}",
            place=file.source,
            help=f"this version of onnx reads versions 1 to {onnx.IR_VERSION}",
        )
    versions = {o.version for o in proto.opset_import if o.domain in _DEFAULT_DOMAINS}
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not 1 <= min(versions) <= newest:
        raise ModelError(
            f"the model declares operator set {sorted(versions) or 'none'}",
            place=file.source,
            help=f"it must declare one version from 1 to {newest}",
        )
    return int(versions.pop())


def _real_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Graph inputs without the stored tensors that old files list among them."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in stored]


def _skeleton(file: ModelFile, weights: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """The model without its stored tensors; inputs and declared shapes are added later."""
    proto = file.proto
    skeleton = onnx.ModelProto(ir_version=max(proto.ir_version, 10))
    seen: set[str] = set()
    for entry in proto.opset_import:
        if entry.domain not in seen:
            skeleton.opset_import.append(entry)
            seen.add(entry.domain)
    skeleton.functions.extend(proto.functions)
    graph = skeleton.graph
    graph.name = proto.graph.name or "graph"
    for sparse in proto.graph.sparse_initializer:
        node = graph.node.add(op_type="Constant", output=[sparse.values.name])
        node.attribute.append(onnx.helper.make_attribute("sparse_value", sparse))
    graph.node.extend(proto.graph.node)
    if len(weights) != len(proto.graph.initializer) or "" in weights:
        raise ModelError(
            "two stored tensors have the same name, or one has none", place=file.source
        )
    if not proto.graph.output:
        raise ModelError("the model has no output", place=file.source)
    for output in proto.graph.output:
        value = graph.output.add(name=output.name)
        if output.type.WhichOneof("value") not in (None, "tensor_type"):
            raise ModelError(f"the output {output.name!r} is not a tensor", place=file.source)
        value.type.tensor_type.elem_type = output.type.tensor_type.elem_type
        # The checker wants a shape, any shape; it is taken away before shapes are inferred.
        value.type.tensor_type.shape.SetInParent()
    return skeleton


def _set_constants_aside(skeleton: onnx.ModelProto, weights: dict[str, onnx.TensorProto]) -> None:
    """Turn Constant nodes with dense tensors into stored tensors."""
    kept = []
    for node in skeleton.graph.node:
        values = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
        if node.op_type == "Constant" and values and len(node.output) == 1 and not node.domain:
            name = node.output[0]
            if name in weights:
                raise ModelError(f"{name!r} is defined twice")
            weights[name] = values[0]
        else:
            kept.append(node)
    if len(kept) != len(skeleton.graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del skeleton.graph.node[:]
        skeleton.graph.node.extend(nodes)


def _declare_inputs(
    skeleton: onnx.ModelProto,
    inputs: Iterable[TensorInfo],
    weights: Mapping[str, onnx.TensorProto],
) -> None:
    graph = skeleton.graph
    for info in inputs:
        number = onnx.TensorProto.DataType.Value(_type_name(info.element_type))
        graph.input.append(onnx.helper.make_tensor_value_info(info.name, number, info.shape))
    for name, tensor in weights.items():
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if tensor.ByteSize() <= _KEPT_BYTES and not external:
            kept = graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = name
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            )


def _type_name(element: str) -> str:
    return {"float32": "FLOAT", "float64": "DOUBLE", "float16": "FLOAT16"}[element]


def _forget_output_shapes(skeleton: onnx.ModelProto) -> None:
    """Leave them to inference: what files declare is often wrong, and onnxruntime takes it for
    a remark.
    """
    for output in skeleton.graph.output:
        output.type.tensor_type.ClearField("shape")


def _unknown_nodes(skeleton: onnx.ModelProto, opset: int) -> dict[str, str]:
    """First output (or name) of each node that is no ONNX operator -> why."""
    unknown = {}
    for node in skeleton.graph.node:
        if node.domain not in _DEFAULT_DOMAINS:
            reason = f"operator of the domain {node.domain!r}"
        elif not onnx.defs.has(node.op_type) or schema_version(node.op_type, opset) is None:
            reason = f"no operator of ONNX {opset}"
        else:
            continue
        unknown[node_key(node)] = reason
    return unknown


def node_key(node: onnx.NodeProto) -> str:
    """What identifies a node: its first output."""
    return next((output for output in node.output if output), node.name)


def schema_version(operator: str, opset: int) -> int | None:
    """The version of an operator that is in force in an operator set."""
    try:
        return onnx.defs.get_schema(operator, opset, "").since_version
    except onnx.defs.SchemaError:
        return None


def _is_outdated(skeleton: onnx.ModelProto, opset: int) -> bool:
    """Whether some node is older than what its rule, or the folding, reads."""
    for node in skeleton.graph.node:
        version = schema_version(node.op_type, opset) or 1
        entry = RULES.get(node.op_type)
        if entry is None:
            latest = schema_version(node.op_type, max(opset, TARGET_OPSET))
            if version != latest and node.op_type not in ("Constant", "ConstantOfShape"):
                return True
        elif version < entry.since:
            return True
    return False


def _converted(file: ModelFile, skeleton: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The model in `TARGET_OPSET`; as it is if the converter gives up.

    Nodes that are still outdated are then reported one by one.
    """
    opset = next(o.version for o in skeleton.opset_import if o.domain in _DEFAULT_DOMAINS)
    if opset >= TARGET_OPSET:
        return skeleton, opset
    try:
        converted = onnx.version_converter.convert_version(skeleton, TARGET_OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        _log.info("%s stays in operator set %d: %s", file.source, opset, error)
        return skeleton, opset
    return converted, TARGET_OPSET


def _inferred(skeleton: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    graph = skeleton.graph
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return shapes, types


def _compare_outputs(file: ModelFile, shapes: Mapping[str, Shape]) -> None:
    for output in file.proto.graph.output:
        declared = [d.dim_value for d in output.type.tensor_type.shape.dim]
        found = shapes.get(output.name)
        if found is None or not output.type.tensor_type.HasField("shape") or 0 in declared:
            continue
        if tuple(declared) != found:
            _log.warning(
                "%s: the output %s has the shape %s, though the file says %s",
                file.source, output.name, list(found), declared,
            )  # fmt: skip


def _guarded(file: ModelFile, done: str, step: Callable[[], _Result]) -> _Result:
    """Run one of ONNX's tools and turn its complaint into ours."""
    try:
        return step()
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        onnx.defs.SchemaError,
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:
        text = " ".join(str(error).split())
        raise ModelError(
            f"the model is not valid, it cannot be {done}: {text[:400]}", place=file.source
        ) from error
