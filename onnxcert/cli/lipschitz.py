"""``onnxcert lipschitz``: how far the outputs of a model can move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.table import table

if TYPE_CHECKING:
    from onnxcert.continuity.bound import LipschitzBound

_DESCRIPTION = """\
Bound how far the outputs of a network can move when its input does: certified global Lipschitz
constants of every output, every difference of outputs and every layer, each beside the largest
value seen at random points. Exit code 3 if an operator has no such constant.
"""

METHODS = ("auto", "product", "recursion", "refined")
"""How constants are found: `onnxcert.lipschitz` says what each of them does."""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Print the constants."""
    parser = arguments.Parser("lipschitz", _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=".onnx file, or .onnx.gz")
    add_bound_options(parser)
    parser.add_domain(
        "of every input: constants on that box alone, also where there are none elsewhere"
    )
    parser.add_argument("--pairs", action="store_true", help="also every difference of outputs")
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        help="write a proof to this file, for `onnxcert check`; the constants are those it proves",
    )
    parser.add_argument("--json", metavar="FILE", help="write all constants to this file")
    parser.add_argument(
        "--seed", type=arguments.natural, default=0, metavar="N", help="of the random points"
    )
    parser.add_verbosity()
    options = parser.read(words)
    if options is None:
        return 0
    console.configure(options.verbosity)
    from onnxcert.files import check_outputs

    check_outputs((options.certificate, options.json), (options.model,))
    from onnxcert.continuity.bound import lipschitz
    from onnxcert.continuity.cache import default_folder

    bound = lipschitz(
        options.model,
        method=options.method,
        norm=options.norm,
        domain=None if options.domain is None else tuple(options.domain),
        seed=options.seed,
        certificate=options.certificate,
        cache=None if options.no_cache else default_folder(),
    )
    console.answer(lipschitz_page(bound, pairs=options.pairs))
    if options.json is not None:
        from onnxcert.files import write_file
        from onnxcert.report import lipschitz_record, to_json

        write_file(options.json, to_json(lipschitz_record(bound)))
    return 0


def add_bound_options(parser: arguments.Parser) -> None:
    """``--norm``, ``--method`` and ``--no-cache``, shared by the commands that need constants."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="product of norms, closed-form matrix recursion, the same with optimised multipliers; "
        "by default the strongest that the size of the network allows",
    )
    parser.add_argument(
        "--norm", choices=("2", "inf", "1"), default="2", help="of input differences (default: 2)"
    )
    parser.add_cache()


def lipschitz_page(bound: LipschitzBound, *, pairs: bool) -> str:
    """Tables of outputs, pairs and layers."""
    where = "for all inputs"
    if bound.domain is not None:
        where = f"for inputs in [{bound.domain[0]:g}, {bound.domain[1]:g}]"
    parts = [
        f"model {bound.model.source}\n"
        f"  norm      {bound.norm} of input differences, {where}\n"
        f"  method    {bound.method}\n"
        f"  rests on  {bound.rests_on}\n"
    ]
    if bound.proof is not None:
        parts[0] += f"  proof     accepted by the checker, {bound.proof.path}\n"
    numbers = ("output", "pair", "bound", "seen", "norm")
    outputs = [
        (str(k), _up(value), _number(seen))
        for k, (value, seen) in enumerate(zip(bound.outputs, bound.seen_outputs, strict=True))
    ]
    parts.append(table(("output", "bound", "seen"), outputs, right=numbers))
    size = len(bound.outputs)
    if size > 1:
        both = [(i, j) for i in range(size) for j in range(i)]
        if not pairs and len(both) > 1:
            both = [max(both, key=lambda pair: bound.pairs[pair])]
        rows = [
            (f"{j} {i}", _up(bound.pairs[i, j]), _number(bound.seen_pairs[i, j])) for i, j in both
        ]
        name = "pair" if pairs else "largest pair"
        parts.append(table((name, "bound", "seen"), rows, right=(*numbers, name)))
    if bound.layers:
        layers = [(x.name, _up(x.norm), _number(x.seen), x.source) for x in bound.layers]
        parts.append(table(("layer", "norm", "seen", "node"), layers, right=numbers))
    return "\n".join(parts)


def _up(value: float) -> str:
    """Seven digits that are no less than the value."""
    text = f"{float(value):.7g}"
    if float(text) < value:
        text = f"{float(value) * (1.0 + 1e-6):.7g}"
    return text


def _number(value: float) -> str:
    return f"{float(value):.5g}"
