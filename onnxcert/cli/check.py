"""``onnxcert check``: a thin face on the checker, which is a program of its own."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.errors import UsageError

_DESCRIPTION = """\
Check a certificate with the independent checker: it reads the model and the specification itself
and believes no number of the certificate. stdout gets one line,
  VERIFIED UNSAT (real)            or another verdict and what was proved (exit code 0)
  REJECTED: rule, place, reason    the certificate proves nothing (exit code 1)
Exit code 2: a file cannot be read, or is not understood exactly.
`python -m onnxcert.checker PROOF MODEL [SPEC]` is the same, and loads nothing else of onnxcert.
"""


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Print the checker's line.

    Raises:
        UsageError: a file is unusable; the exit codes here are those of the checker.
    """
    parser = arguments.Parser("check", _DESCRIPTION)
    parser.add_argument("proof", metavar="PROOF", help="certificate, as --certificate writes it")
    parser.add_argument("--model", required=True, metavar="MODEL", help=".onnx file, or .onnx.gz")
    parser.add_argument(
        "--network",
        action="append",
        default=[],
        type=arguments.network,
        metavar="NAME=MODEL",
        dest="networks",
        help="the model of another network of the specification; once per network that is neither "
        "the first nor equal-to another",
    )
    parser.add_argument(
        "--spec",
        metavar="SPEC",
        help=".vnnlib file, or .vnnlib.gz; a certificate of constants has none",
    )
    parser.add_argument(
        "--semantics",
        choices=("real", arguments.EXECUTED),
        help="what must have been proved; ieee32-any-order implies real "
        "(default: what the certificate claims)",
    )
    parser.add_argument(
        "--audit",
        type=arguments.natural,
        default=0,
        metavar="K",
        help="bound K leaves again in exact rational arithmetic (default: 0)",
    )
    parser.add_argument(
        "--jobs", type=arguments.positive, default=1, metavar="N", help="processes (default: 1)"
    )
    options = parser.read(words)
    if options is None:
        return 0
    networks = dict(options.networks)
    if len(networks) < len(options.networks):
        raise UsageError("--network gives one name twice")
    from onnxcert.checker.__main__ import answer

    code, line = answer(
        *(options.proof, options.model, options.spec, networks),
        semantics=options.semantics,
        audit=options.audit,
        jobs=options.jobs,
    )
    if code == 2:
        raise UsageError(line)
    console.answer(f"{line}\n")
    return code
