"""Bytes of an ONNX model: from a file (gzip or not, told by its first bytes) or an object."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxcert.arrays import Array
from onnxcert.errors import ModelError

_GZIP = b"\x1f\x8b"
_LARGEST = (1 << 31) - 1
"""The most bytes a protocol buffer may have."""


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A parsed but unchecked model, and where it came from.

    Attributes:
        source: the path as given, or ``<model>`` for an object.
        sha256: of the bytes as given: of the compressed ones for a compressed file, of the
            serialised model for an object.
        proto: the model.
        folder: where external data lie; None for an object.
    """

    source: str
    sha256: str
    proto: onnx.ModelProto = field(repr=False)
    folder: Path | None

    @classmethod
    def read(cls, source: str | os.PathLike[str] | onnx.ModelProto) -> ModelFile:
        """Read a path, or take an object.

        Raises:
            ModelError: there is no such file, or it holds no ONNX model.
        """
        if isinstance(source, onnx.ModelProto):
            _check_text(source, "<model>")
            digest = hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
            return cls("<model>", digest, source, None)
        path = Path(source)
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(decompressed(data, str(source)))
        except DecodeError as error:
            raise _not_a_model(str(source), "it cannot be parsed") from error
        if not proto.HasField("graph"):
            raise _not_a_model(str(source), "it holds no graph")
        _check_text(proto, str(source))
        return cls(str(source), digest, proto, path.parent)

    def array(self, tensor: onnx.TensorProto) -> Array:
        """The numbers of a stored tensor, in its own element type.

        Raises:
            ModelError: the data do not fit the declared shape, or lie outside the folder.
        """
        place = f"{self.source}: tensor {tensor.name!r}"
        if any(n < 0 for n in tensor.dims):
            raise ModelError("a stored tensor has a negative dimension", place=place)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = self._with_external_data(tensor, place)
        try:
            return onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"a stored tensor cannot be read: {error}", place=place) from error

    def _with_external_data(self, tensor: onnx.TensorProto, place: str) -> onnx.TensorProto:
        """A copy that holds its data, read from a file beside the model and nowhere else."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        folder = self._folder(location, place)
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries["length"]) if "length" in entries else -1
            with (folder / location).open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except (OSError, ValueError) as error:
            raise ModelError(f"external data cannot be read: {error}", place=place) from error
        if 0 <= length != len(data):
            raise ModelError("external data end too early", place=place)
        copy = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        copy.raw_data = data
        return copy

    def _folder(self, location: str, place: str) -> Path:
        """The model's folder, once the location is known to stay inside it."""
        if self.folder is None:
            raise ModelError(
                "the model refers to external data",
                place=place,
                help="load them into the object, or give the path of the file",
            )
        parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
        target = (self.folder / location).resolve()
        if (
            not location
            or absolute
            or ".." in parts
            or not target.is_relative_to(self.folder.resolve())
        ):
            raise ModelError(
                f"external data lie outside the model's folder: {location!r}", place=place
            )
        return self.folder


def _check_text(proto: onnx.ModelProto, source: str) -> None:
    """Refuse names that are not UTF-8: the parser lets them pass and every later access fails.

    Raises:
        ModelError: there is such a name.
    """
    graph = proto.graph
    nodes = [*graph.node, *(node for function in proto.functions for node in function.node)]
    try:
        texts = [graph.name, proto.producer_name, proto.producer_version]
        texts += [entry.domain for entry in proto.opset_import]
        texts += [tensor.name for tensor in graph.initializer]
        for value in (*graph.input, *graph.output):
            texts += [value.name, *(d.dim_param for d in value.type.tensor_type.shape.dim)]
        for node in nodes:
            texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
            texts += [attribute.name for attribute in node.attribute]
    except UnicodeDecodeError as error:
        raise _not_a_model(source, "it holds names that are not text") from error
    if not all(isinstance(text, str) for text in texts):
        raise _not_a_model(source, "it holds names that are not text")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ModelError: it cannot be read or is too large for a model.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ModelError("the file is larger than 2 GB, the limit of ONNX", place=str(path))
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"the model cannot be read: {reason}", place=str(path)) from error
    except ValueError as error:  # a null character in the path
        raise ModelError(f"the model cannot be read: {error}", place=repr(path)) from error


def decompressed(data: bytes, source: str) -> bytes:
    """Undo gzip if the bytes are gzip's; never more than ONNX's limit of 2 GB.

    Raises:
        ModelError: the compressed data are broken or expand beyond the limit.
    """
    if not data.startswith(_GZIP):
        return data
    stream = zlib.decompressobj(wbits=31)
    try:
        result = stream.decompress(data, _LARGEST)
    except zlib.error as error:
        raise _not_a_model(source, f"its compressed data are broken ({error})") from error
    if not stream.eof:
        reason = (
            "its compressed data are cut off" if not stream.unconsumed_tail else "it is too large"
        )
        raise _not_a_model(source, reason)
    return result


def _not_a_model(source: str, reason: str) -> ModelError:
    return ModelError(
        f"this is not an ONNX model: {reason}",
        place=source,
        help="the file must be an ONNX model, as it is or compressed with gzip",
    )
