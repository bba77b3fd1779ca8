"""``onnxcert certify``: certified accuracy of a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.table import table

if TYPE_CHECKING:
    from onnxcert.continuity.certified import Certification

_DESCRIPTION = """\
Prove the inputs of a data set robust: clean accuracy, and at each radius the share of inputs that
are classified as labelled and cannot change their class within it.
"""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Print the shares."""
    parser = arguments.Parser("certify", _DESCRIPTION)
    _add_options(parser)
    options = parser.read(words)
    if options is None:
        return 0
    console.configure(options.verbosity)
    _check_outputs(options)
    from onnxcert.continuity.cache import default_folder
    from onnxcert.continuity.certified import certify, read_data

    x, labels = read_data(options.data, options.limit)
    done = certify(
        options.model,
        x,
        labels,
        eps=options.eps,
        norm=options.norm,
        method=options.method,
        domain=None if options.domain is None else tuple(options.domain),
        cache=None if options.no_cache else default_folder(),
        progress=lambda done, total: console.status(f"linear bounds  {done}/{total}"),
    )
    console.answer(certification_page(done))
    if options.out is not None:
        from onnxcert.files import write_file

        write_file(options.out, certification_lines(done))
    if options.plot is not None:
        from onnxcert.continuity.plot import draw_accuracy

        draw_accuracy(options.plot, done)
    return 0


def _add_options(parser: arguments.Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help=".onnx file, or .onnx.gz")
    add(
        "--data",
        required=True,
        metavar="FILE",
        help=".npz file with the array x (inputs, numbers as the model wants them) and y (labels)",
    )
    add("--eps", type=arguments.radii, required=True, metavar="E[,E2...]", help="radii")
    add("--norm", choices=("2", "inf"), default="2", help="(default: 2)")
    add(
        "--method",
        choices=("lipschitz", "backward", "union"),
        default="union",
        help="global constants, linear bounds over each ball, or both (default)",
    )
    parser.add_domain("of every input: linear bounds look at the part of the ball in there")
    add("--limit", type=arguments.positive, metavar="N", help="only the first N inputs")
    add("--out", metavar="FILE", help="write one line for each input (CSV)")
    add("--plot", metavar="FILE", help="draw the share over radii (needs the extra plot)")
    parser.add_cache()
    parser.add_verbosity()


def _check_outputs(options: argparse.Namespace) -> None:
    """Find out now, not after the work, that results have no place to go."""
    from onnxcert.files import check_outputs

    check_outputs((options.out, options.plot), (options.model, options.data))
    if options.plot is not None:
        from onnxcert.pictures import check_format

        check_format(options.plot)


def certification_page(done: Certification) -> str:
    """Clean accuracy, and a table of radii."""
    count = len(done.predicted)
    what = "correct" if done.labels is not None else "with a class"
    head = f"inputs {count}, {what} {100.0 * done.accuracy:.2f} %, norm {done.norm}\n"
    rows = [
        (repr(eps), str(int(number)), f"{100.0 * number / count:.2f} %")
        for eps, number in zip(done.eps, (done.robust & done.correct).sum(axis=1), strict=True)
    ]
    header = ("radius", f"{what} and robust", "share")
    return head + "\n" + table(header, rows, right=header)


def certification_lines(done: Certification) -> str:
    """CSV: one line for each input; radii with all digits, since fewer may round up."""
    header = ["index", "label", "class", "radius", *(f"robust_{eps!r}" for eps in done.eps)]
    lines = [",".join(header)]
    for k, predicted in enumerate(done.predicted):
        label = "" if done.labels is None else str(int(done.labels[k]))
        radius = "" if done.radius is None else repr(float(done.radius[k]))
        robust = [str(int(row[k])) for row in done.robust]
        lines.append(",".join([str(k), label, str(int(predicted)), radius, *robust]))
    return "\n".join(lines) + "\n"
