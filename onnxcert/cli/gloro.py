"""``onnxcert gloro``: write a model that certifies itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.lipschitz import add_bound_options

_DESCRIPTION = """\
Add to a classifier a logit for "not certified at this radius", and the outputs `certified` (whether
no input within the radius has another class, in any binary32 execution) and `radius`.
The result is an ordinary ONNX model: any runtime certifies with it at the price of a forward pass.
"""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Write the model, and say what it was made from."""
    parser = arguments.Parser("gloro", _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=".onnx file, or .onnx.gz")
    parser.add_argument(
        "--eps", type=arguments.radius, required=True, metavar="E", help="the radius"
    )
    parser.add_argument(
        "--eps-input",
        action="store_true",
        help="make the radius an input of the new model, at most E",
    )
    parser.add_domain(
        "of every input; the claim speaks of pairs of which one lies in it (default: 0 1)",
        default=(0.0, 1.0),
    )
    parser.add_argument(
        "--test-domain",
        action=argparse.BooleanOptionalAction,
        help="never certify an input outside of the domain, which reads inputs twice more "
        "(default: where the domain makes constants smaller)",
    )
    add_bound_options(parser)
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="where to write")
    parser.add_verbosity()
    options = parser.read(words)
    if options is None:
        return 0
    console.configure(options.verbosity)
    from onnxcert.files import check_output, write_file

    check_output(options.out, [options.model])
    from onnxcert.continuity.bottom import with_bottom_logit
    from onnxcert.continuity.cache import default_folder

    proto = with_bottom_logit(
        options.model,
        options.eps,
        domain=tuple(options.domain),
        eps_input=options.eps_input,
        test_domain=options.test_domain,
        method=options.method,
        norm=options.norm,
        cache=None if options.no_cache else default_folder(),
    )
    write_file(options.out, proto.SerializeToString())
    facts = {
        entry.key.removeprefix("onnxcert."): entry.value
        for entry in proto.metadata_props
        if entry.key.startswith("onnxcert.")
    }
    lines = [f"{name:17} {value}" for name, value in facts.items()]
    console.answer(f"wrote {options.out}\n" + "".join(f"  {line}\n" for line in lines))
    return 0
