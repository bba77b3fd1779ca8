"""``onnxcert MODEL --norm 2 --eps E --input FILE.npy``: the query of a ball round an input."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcert.cli import arguments
from onnxcert.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from onnxcert.spec import Query

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
        # The certificate is of no use without it.
        options.save_spec = str(Path(options.certificate).with_suffix(".vnnlib"))


def make_query(options: argparse.Namespace) -> Query:
    """The query, written to a file if it is wanted there.

    Raises:
        InputError: a file cannot be read, or the input does not fit the model.
        UsageError: the label is no output, or nothing is left of the ball in the domain.
    """
    from onnxcert.region.files import read_array

    values = read_array(options.input)
    from onnxcert.files import write_file
    from onnxcert.frontend.onnx import load_model
    from onnxcert.frontend.write import format_vnnlib
    from onnxcert.spec import l2_ball, linf_ball

    model = load_model(options.model)
    x = _point(values, model.graph.input_size, options)
    label = options.label
    if label is None:
        label = int(model.graph.forward(x[None])[0].argmax())
    make = l2_ball if options.norm == "2" else linf_ball
    domain = None if options.domain is None else (options.domain[0], options.domain[1])
    query = make(x, options.eps, label=label, domain=domain).to_query(
        [info.shape for info in model.inputs], [info.shape for info in model.outputs]
    )
    if options.save_spec is None:
        return query
    write_file(options.save_spec, format_vnnlib(query))
    return replace(query, source=options.save_spec)


def _point(values: np.ndarray, size: int, options: argparse.Namespace) -> np.ndarray:
    """The centre, (n,) float64."""
    import numpy as np

    number = options.index or 0
    points = values.reshape(len(values) if values.ndim > 1 and values.size != size else 1, -1)
    if number >= len(points):
        raise UsageError(f"there is no input {number} among {len(points)}", place=options.input)
    if points.shape[1] != size:
        raise InputError(
            f"the input has {points.shape[1]} elements, the model {size}", place=options.input
        )
    x: np.ndarray = points[number].astype(np.float64)
    if not np.isfinite(x).all():
        raise InputError("the input holds NaN or infinity", place=options.input)
    return x
