"""``onnxcert MODEL --norm 2 --eps E --input FILE.npy``: the query of a ball round an input."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcert.cli import arguments
from onnxcert.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from onnxcert.graph import Graph
    from onnxcert.spec import Query

_MARK = "; a ball of inputs, written by onnxcert\n"
"""The first line of files with queries, by which they are known again."""

_OPTIONS = ("eps", "input", "index", "label", "domain", "save_spec")


def add_options(parser: arguments.Parser) -> None:
    """What stands for a specification file."""
    group = parser.add_argument_group("the query that no input of a ball changes the class")
    add = group.add_argument
    add("--norm", choices=("inf", "2"), help="the ball's; takes the place of SPEC")
    add("--eps", type=arguments.exact_radius, metavar="E", help="its radius, exact")
    add("--input", metavar="FILE", help=".npy file: its centre, or several along the first axis")
    add("--index", type=arguments.natural, metavar="I", help="which of several (default: 0)")
    add(
        "--label",
        type=arguments.label,
        metavar="auto|K",
        help="the class that is kept (default: the model's)",
    )
    add(
        "--domain",
        nargs=2,
        type=arguments.exact,
        metavar=("LO", "HI"),
        help="smallest and largest value of every input, such as 0 1",
    )
    add(
        "--save-spec",
        metavar="FILE",
        help="write the query as a VNN-LIB file (with --certificate by default beside that)",
    )


def check_options(options: argparse.Namespace) -> None:
    """Refuse a query that is given twice, or not at all.

    Raises:
        UsageError: with what is missing.
    """
    if options.norm is None:
        for name in _OPTIONS:
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} needs --norm 2 or --norm inf")
        if options.spec is None:
            raise UsageError(
                "the following arguments are required: SPEC", help="see `onnxcert verify --help`"
            )
        return
    if options.spec is not None:
        raise UsageError("--norm takes the place of SPEC", place=options.spec)
    if options.eps is None or options.input is None:
        raise UsageError("--norm needs --eps and --input")
    if options.save_spec is None and options.certificate is not None:
        options.save_spec = _place_beside(options.certificate)


def _place_beside(certificate: str) -> str | None:
    """Where the query goes if nothing else is said: the certificate is of no use without it.

    Raises:
        UsageError: another file lies there, which nobody has said may be overwritten.
    """
    if not os.path.basename(certificate) or os.path.isdir(certificate):
        return None  # `check_writable` says what is wrong
    if os.path.exists(certificate) and not os.path.isfile(certificate):
        return None  # beside a device such as /dev/null lies nothing
    place = str(Path(certificate).with_suffix(".vnnlib"))
    if os.path.exists(place) and not _is_ours(place):
        raise UsageError(
            "the query, written beside the certificate, would overwrite a file",
            place=place,
            help="--save-spec FILE names another place for it",
        )
    return place


def _is_ours(place: str) -> bool:
    """Whether a file is a query of this command."""
    try:
        with open(place, "rb") as file:
            return file.read(len(_MARK)) == _MARK.encode()
    except OSError:
        return False


def make_query(options: argparse.Namespace) -> Query:
    """The query, written to a file if it is wanted there.

    Raises:
        InputError: a file cannot be read, or the input does not fit the model.
        UsageError: the label is no output, there is only one, or nothing is left of the ball in the
            domain.
    """
    from onnxcert.region.files import read_array

    values = read_array(options.input)
    from onnxcert.files import write_file
    from onnxcert.frontend.onnx import load_model
    from onnxcert.frontend.write import format_vnnlib
    from onnxcert.spec import l2_ball, linf_ball

    model = load_model(options.model)
    if model.graph.output_size == 1:
        raise UsageError("a model with one output has no classes", place=options.model)
    x = _point(values, model.graph.input_size, options)
    label = options.label
    if label is None:
        label = _label(model.graph, x, options)
    make = l2_ball if options.norm == "2" else linf_ball
    domain = None if options.domain is None else (options.domain[0], options.domain[1])
    query = make(x, options.eps, label=label, domain=domain).to_query(
        [info.shape for info in model.inputs], [info.shape for info in model.outputs]
    )
    if options.save_spec is None:
        return query
    write_file(options.save_spec, _MARK + format_vnnlib(query))
    return replace(query, source=options.save_spec)


def _label(graph: Graph, x: np.ndarray, options: argparse.Namespace) -> int:
    """The class of the model at the centre (n,)."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        outputs = graph.forward(x[None])[0]
    if not np.isfinite(outputs).all():
        raise InputError("the model's outputs at the input are not finite", place=options.input)
    return int(outputs.argmax())


def _point(values: np.ndarray, size: int, options: argparse.Namespace) -> np.ndarray:
    """The centre, (n,) float64."""
    import numpy as np

    number = options.index or 0
    points = values if values.ndim > 1 and values.size != size else values[None]
    if number >= len(points):
        raise UsageError(f"there is no input {number} among {len(points)}", place=options.input)
    if points[number].size != size:
        raise InputError(
            f"the input has {points[number].size} elements, the model {size}", place=options.input
        )
    with np.errstate(over="ignore"):
        x: np.ndarray = points[number].ravel().astype(np.float64)
    if not np.isfinite(x).all():
        raise InputError("the input holds NaN or infinity", place=options.input)
    return x
