"""``onnxcert bounds``: what one bounding pass says, without search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.table import table

if TYPE_CHECKING:
    from onnxcert.verifier import BoundsReport

_DESCRIPTION = """\
Bound the outputs of a network over the inputs of a specification, by one pass and without search.
A disjunct whose lower bound is positive is proved impossible.
"""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Print the bounds."""
    parser = arguments.Parser("bounds", _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=".onnx file, or .onnx.gz")
    parser.add_argument("spec", metavar="SPEC", help=".vnnlib file, or .vnnlib.gz")
    parser.add_argument(
        "--method",
        choices=("interval", "backward"),
        default="backward",
        help="interval arithmetic, or backward linear bounds (default)",
    )
    parser.add_argument("--layers", action="store_true", help="also the range of every layer")
    parser.add_argument("--json", metavar="FILE", help="write all bounds to this file")
    parser.add_verbosity()
    options = parser.read(words)
    if options is None:
        return 0
    console.configure(options.verbosity)
    if options.json is not None:
        from onnxcert.files import check_output

        check_output(options.json, (options.model, options.spec))
    from onnxcert.verifier import compute_bounds

    report = compute_bounds(
        options.model, options.spec, method=options.method, layers=options.layers
    )
    console.answer(bounds_page(report))
    if options.json is not None:
        from onnxcert.files import write_file
        from onnxcert.report import bounds_record, to_json

        write_file(options.json, to_json(bounds_record(report, options.method)))
    return 0


def bounds_page(report: BoundsReport) -> str:
    """Tables of outputs, disjuncts and, if they were asked for, layers."""
    numbers = ("output", "disjunct", "lower", "upper", "values")
    outputs = [
        (str(k), _number(low), _number(high)) for k, (low, high) in enumerate(report.outputs)
    ]
    parts = [table(("output", "lower", "upper"), outputs, right=numbers)]
    disjuncts = [
        (str(number), _number(lower), "impossible" if lower > 0 else "open")
        for number, lower in report.disjuncts.items()
    ]
    parts.append(table(("disjunct", "lower", "state"), disjuncts, right=numbers))
    if report.layers:
        layers = [
            (name, source, str(len(lower)), _number(lower.min()), _number(upper.max()))
            for name, source, lower, upper in report.layers
        ]
        parts.append(table(("layer", "node", "values", "lower", "upper"), layers, right=numbers))
    return "\n".join(parts)


def _number(value: float) -> str:
    return f"{float(value):.6g}"
