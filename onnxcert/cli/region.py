"""``onnxcert region``: the largest certified box round an input."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.interrupts import no_interrupts
from onnxcert.cli.table import table
from onnxcert.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from onnxcert.region.regions import Region
    from onnxcert.verdict import Progress

_DESCRIPTION = """\
Find the largest box round an input in which the model's answer provably stays the same: two widths
for each input value, of largest volume. Every box is proved by the verifier, from the file that
--out keeps, and its certificate is accepted by the checker. Exit code 0 when every input has its
line, whatever it says.
"""

EXIT_INTERRUPTED = 130

_RECORD = "regions.json"
"""In the folder of --out: what all boxes have in common."""

_NAMED = 8
"""Inputs that a remark names; of more it gives the number."""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Find boxes and print a line for each."""
    parser = arguments.Parser("region", _DESCRIPTION)
    _add_options(parser)
    options = parser.read(_shielded(words))
    if options is None:
        return 0
    if options.domain is not None:
        options.domain = [word.strip() for word in options.domain]
    console.configure(options.verbosity)
    if options.similarity is not None:
        return _similarity(options, console)
    if options.model is None or options.input is None:
        raise UsageError(
            "a model and --input are needed",
            help="MODEL comes before --domain, which takes every word up to the next option"
            if options.domain is not None and options.input is not None
            else "see `onnxcert region --help`",
        )
    return _Search(options, console, clock).run()


def _add_options(parser: arguments.Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help=".onnx file, or .onnx.gz")
    add("--input", metavar="FILE", help=".npy file: one input, or several along the first axis")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--index", type=_numbers, metavar="I[,J...]", help="which of several inputs (default: 0)"
    )
    which.add_argument("--all", action="store_true", help="all of them")
    add(
        "--label",
        type=arguments.label,
        default=None,
        metavar="auto|K",
        help="class (default: the model's)",
    )
    add(
        "--margin",
        type=arguments.from_zero,
        default=0.0,
        metavar="D",
        help="lead that is kept",
    )
    add("--spec", metavar="SPEC", help="VNN-LIB file whose output condition replaces the class")
    add(
        "--domain",
        nargs="+",
        metavar="VALUE",
        help="LO HI, or a .npy file with smallest and largest values along its first axis "
        "(default: the box of SPEC, else none)",
    )
    _add_boxes(parser)
    add(
        "--method",
        choices=("lagrangian", "paper"),
        default="lagrangian",
        help="paper: that of Liu, Tomioka and Cevher (2019), for comparison",
    )
    add(
        "--grow",
        type=arguments.from_zero,
        default=0.0,
        metavar="SECONDS",
        help="for each input, to enlarge its box against the complete verifier",
    )
    add("--out", metavar="DIR", help="write every box, its instance and its certificate here")
    add("--plot", metavar="FILE", help="draw the widths (needs the extra plot)")
    add("--timeout", type=arguments.seconds, metavar="S", help="seconds for all (default: none)")
    add("--device", type=arguments.device, default="auto", metavar="DEVICE", help="as for verify")
    add("--seed", type=arguments.natural, default=0, metavar="N", help="as for verify")
    add(
        "--similarity",
        metavar="DIR",
        help="print how alike the boxes are that --out DIR has kept, and nothing else",
    )
    parser.add_verbosity()


def _add_boxes(parser: arguments.Parser) -> None:
    """What kind of box it is."""
    add = parser.add_argument
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--symmetric", action="store_true", help="as wide below as above")
    shape.add_argument("--uniform", action="store_true", help="one width for all")
    add(
        "--norm",
        choices=("inf", "2"),
        default="inf",
        help="2: ellipsoids instead of boxes",
    )
    add("--shared", action="store_true", help="one vector of (symmetric) widths for all inputs")
    add("--freeze", metavar="FILE", help=".npy file: not zero where a value must not move")
    add("--weights", metavar="FILE", help=".npy file: positive weights in the log-volume")


def _shielded(words: Sequence[str]) -> list[str]:
    """Numbers of a domain such as -1e-3 and -inf behind a space: without one they are options to
    argparse, with it they are the same numbers."""
    shielded = list(words)
    for place in range(1, len(words)):
        if "--domain" in words[max(place - 2, 0) : place] and _is_number(words[place]):
            shielded[place] = f" {words[place]}"
    return shielded


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(text: str) -> list[int]:
    return [arguments.natural(part) for part in text.split(",")]


class _Search:
    """One run: what was found so far is written even when it is interrupted."""

    def __init__(self, options: argparse.Namespace, console: Console, clock: Clock) -> None:
        self.options, self.console, self.clock = options, console, clock
        self.regions: dict[int, Region] = {}

    def run(self) -> int:
        """Search, print and write."""
        options = self.options
        _check_outputs(options)
        from onnxcert.region.files import read_array, write_region

        before = self.clock.seconds
        # Files are read, and complained of, before the model and all that it needs.
        values, keywords = read_array(options.input), _keywords(options)
        from onnxcert.frontend.onnx import load_model
        from onnxcert.region.api import largest_regions

        model = load_model(options.model)
        points, numbers = _points(values, model.graph.input_size, options)

        def show(progress: Progress) -> None:
            seconds = before + progress.seconds
            text = f"{seconds:.1f} s  {progress.phase}  done {progress.closed}/{len(points)}"
            self.console.status(text)

        def found(number: int, region: Region) -> None:
            with no_interrupts():
                self.regions[numbers[number]] = region
                if options.out is not None:
                    write_region(Path(options.out) / str(numbers[number]), region)

        code = 0
        try:
            largest_regions(
                options.model,
                points,
                progress=show,
                found=found,
                timeout=self.clock.remaining(options.timeout),
                **keywords,
            )
        except KeyboardInterrupt:
            self.console.warn("interrupted")
            code = EXIT_INTERRUPTED
        with no_interrupts():
            self._deliver(model.inputs[0].shape)
        return code

    def _deliver(self, shape: Sequence[int]) -> None:
        """Print, and write what is about all boxes; shape is that of the input tensor."""
        options = self.options
        self.console.answer(page(self.regions))
        for line in remarks(self.regions):
            self.console.note(line)
        if options.out is not None:
            from onnxcert.files import write_file
            from onnxcert.report import regions_record, to_json

            hidden = ("verbosity", "similarity", "model")
            chosen = {k: v for k, v in vars(options).items() if k not in hidden}
            record = regions_record(options.model, self.regions, chosen)
            write_file(Path(options.out) / _RECORD, to_json(record))
        boxes = {n: region.widths for n, region in self.regions.items() if region.found}
        if options.plot is not None and boxes:
            from onnxcert.region.plot import draw

            draw(options.plot, boxes, shape)


def _keywords(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `largest_regions`."""
    from onnxcert.region.files import read_array

    shape = "symmetric" if options.symmetric or options.shared else "free"
    return {
        "label": options.label,
        "margin": options.margin,
        "spec": options.spec,
        "domain": _domain(options.domain),
        "shape": "uniform" if options.uniform else shape,
        "norm": options.norm,
        "shared": options.shared,
        "freeze": None if options.freeze is None else read_array(options.freeze),
        "weights": None if options.weights is None else read_array(options.weights),
        "method": options.method,
        "grow": options.grow,
        "device": options.device,
        "seed": options.seed,
    }


def _domain(words: list[str] | None) -> tuple[Any, Any] | None:
    if words is None:
        return None
    if len(words) == 1:
        from onnxcert.region.files import read_array

        sides = read_array(words[0])
        if len(sides.shape) < 2 or len(sides) != 2:
            raise InputError("a domain has two rows, smallest and largest values", place=words[0])
        return sides[0], sides[1]
    try:
        low, high = map(float, words)
    except ValueError as error:
        raise UsageError(
            f"--domain takes two numbers or one file, not {' '.join(words)!r}",
            help="MODEL comes before it",
        ) from error
    return low, high


def _points(
    values: np.ndarray, size: int, options: argparse.Namespace
) -> tuple[list[np.ndarray], list[int]]:
    """The inputs that were asked for, and their numbers."""
    several = values.ndim > 1 and values.size != size
    points = list(values) if several else [values]
    numbers = list(range(len(points))) if options.all else options.index or [0]
    for number in numbers:
        if number >= len(points):
            raise UsageError(f"there is no input {number} among {len(points)}", place=options.input)
    return [points[number] for number in numbers], numbers


def _check_outputs(options: argparse.Namespace) -> None:
    """Find out now, not after the search, that boxes or their picture have no place to go."""
    from onnxcert.files import check_outputs, make_folder

    record = None
    if options.out is not None:
        make_folder(options.out)
        record = Path(options.out) / _RECORD
    files = (options.model, options.input, options.spec, options.freeze, options.weights)
    check_outputs((record, options.plot), (*files, *(options.domain or ())))
    if options.plot is not None:
        from onnxcert.pictures import check_format

        check_format(options.plot)


def page(regions: Mapping[int, Region]) -> str:
    """A line for each input."""
    header = (
        "input",
        "label",
        "status",
        "mean width",
        "log volume",
        "gain",
        "certified by",
        "seconds",
    )
    rows = []
    for number, region in sorted(regions.items()):
        label = "" if region.label is None else str(region.label)
        cells = [str(number), label, region.status.word]
        if region.found:
            seconds = sum(region.seconds.values())
            cells += [
                _known(region.mean_width, ".6g"),
                _known(region.log_volume, ".6g"),
                _known(region.gain, ".4g"),
                region.certified_by,
                f"{seconds:.2f}",
            ]
        else:
            cells += [""] * 5
        rows.append(cells)
    right = ("input", "label", "mean width", "log volume", "gain", "seconds")
    return table(header, rows, right=right)


def _known(value: float, form: str) -> str:
    """A number, or nothing for NaN: there is none where no input is free, or none to compare."""
    return "" if math.isnan(value) else format(value, form)


def remarks(regions: Mapping[int, Region]) -> list[str]:
    """Why there are no boxes: a line for each reason."""
    reasons: dict[str, list[int]] = {}
    for number, region in sorted(regions.items()):
        if not region.found:
            reasons.setdefault(region.status.value, []).append(number)
    lines = []
    for reason, numbers in reasons.items():
        names = ", ".join(map(str, numbers[:_NAMED]))
        more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
        lines.append(f"input{'s' if len(numbers) > 1 else ''} {names}{more}: {reason}")
    return lines


def _similarity(options: argparse.Namespace, console: Console) -> int:
    """The measure of the paper for the boxes of a folder."""
    from onnxcert.region.similarity import read_widths, similarity

    numbers, widths = read_widths(options.similarity)
    matrix, mean = similarity(widths)
    rows = [
        (number, f"{(row.sum() - 1.0) / (len(row) - 1) if len(row) > 1 else 1.0:.6f}")
        for number, row in zip(numbers, matrix, strict=True)
    ]
    console.answer(table(("input", "mean cosine"), rows, right=("input", "mean cosine")))
    console.answer(f"mean over all pairs: {mean:.6f}\n")
    return 0
