"""``onnxcert inspect``: what a model is, what is missing to verify it, what a query asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.table import table
from onnxcert.errors import UnsupportedModel

if TYPE_CHECKING:
    from onnxcert.frontend.onnx import Inspection, Layer, TensorInfo

_DESCRIPTION = """\
Describe a model: layers, shapes, parameters, and every node that onnxcert has no rule for; and, in
words, what a specification asks. Exit code 3 if there are such nodes.
"""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Print the description.

    Raises:
        UnsupportedModel: after everything was printed, if some nodes have no rule.
        ModelError: the model cannot be read.
        SpecError: the specification cannot be read.
    """
    parser = arguments.Parser("inspect", _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=".onnx file, or .onnx.gz")
    parser.add_argument("spec", metavar="SPEC", nargs="?", help=".vnnlib file, or .vnnlib.gz")
    parser.add_verbosity()
    options = parser.read(words)
    if options is None:
        return 0
    console.configure(options.verbosity)
    from onnxcert.frontend.onnx import inspect_model

    inspection = inspect_model(options.model)
    console.answer(model_page(inspection))
    if options.spec is not None:
        from onnxcert.frontend.vnnlib import read_query
        from onnxcert.spec.describe import describe

        console.answer(f"\nspecification {options.spec}\n{describe(read_query(options.spec))}\n")
    if inspection.unsupported:
        raise _unsupported(inspection)
    return 0


def model_page(inspection: Inspection) -> str:
    """The description of a model."""
    head = [
        f"model {inspection.source}",
        f"  sha256      {inspection.sha256}",
        f"  written by  {inspection.producer or 'an unnamed exporter'}, "
        f"operator set {inspection.opset}",
        f"  inputs      {_tensors(inspection.inputs)}",
        f"  outputs     {_tensors(inspection.outputs)}",
        f"  parameters  {inspection.parameters:,}",
        f"  layers      {len(inspection.layers)}, unsupported {len(inspection.unsupported)}",
        "",
    ]
    rows = [_layer(number, layer) for number, layer in enumerate(inspection.layers)]
    header = ("layer", "operator", "shape", "parameters", "node")
    return "\n".join(head) + "\n" + table(header, rows, right=("layer", "parameters"))


def _layer(number: int, layer: Layer) -> tuple[str, ...]:
    note = f"{layer.name}   UNSUPPORTED: {layer.unsupported}" if layer.unsupported else layer.name
    parameters = f"{layer.parameters:,}" if layer.parameters else ""
    return str(number), layer.operator, _shape(layer.shape), parameters, note


def _tensors(tensors: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{t.name} {t.element_type} {_shape(t.shape)}" for t in tensors)


def _shape(shape: Sequence[int] | None) -> str:
    return "?" if shape is None else f"[{','.join(map(str, shape))}]"


def _unsupported(inspection: Inspection) -> UnsupportedModel:
    count = len(inspection.unsupported)
    return UnsupportedModel(
        f"{count} {'node has' if count == 1 else 'nodes have'} no rule",
        place=inspection.source,
        help="`onnxcert supports --onnx-operators` lists the operators that have one",
    )
