"""``python -m onnxcert.checker PROOF MODEL [SPEC]``: one line, and an exit code.

Where the specification declares several networks, MODEL is that of the first, and there is one
``--network NAME=MODEL`` for each other one that is not equal to an earlier one.

0   ``VERIFIED UNSAT (real)`` or the like, on stdout
1   ``REJECTED: rule, place, reason``, on stdout: the certificate proves nothing
2   a file cannot be read or is not understood, or the call makes no sense: said on stderr
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from onnxcert.checker import Rejected, Unusable, check

SEMANTICS = ("real", "ieee32-any-order")


def answer(
    certificate: str,
    model: str,
    spec: str | None,
    networks: Mapping[str, str] | None = None,
    **options: Any,
) -> tuple[int, str]:
    """Exit code and line for `onnxcert.checker.check`; the line is printable ASCII.

    Names in the files may hold anything, a line break followed by ``VERIFIED`` included.
    """
    models = {"": model, **networks} if networks else model
    try:
        code, line = 0, str(check(certificate, models, spec, **options))
    except Rejected as rejected:
        code, line = 1, f"REJECTED: {rejected.rule}, {rejected.place}, {rejected.reason}"
    except Unusable as unusable:
        code, line = 2, str(unusable)
    except MemoryError:
        code, line = 2, "there is not enough memory for this check"
    return code, "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser("python -m onnxcert.checker", allow_abbrev=False)
    for name in ("proof", "model"):
        parser.add_argument(name, metavar=name.upper())
    parser.add_argument("spec", metavar="SPEC", nargs="?", help="but for constants")
    parser.add_argument("--semantics", choices=SEMANTICS, help="what must have been proved")
    parser.add_argument("--audit", type=int, default=0, metavar="K", help="leaves checked exactly")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument(
        "--network", action="append", default=[], metavar="NAME=MODEL", help="a further one"
    )
    options = vars(parser.parse_args(arguments))
    pairs = [text.partition("=") for text in options.pop("network")]
    options["networks"] = {name: path for name, _, path in pairs}
    if len(options["networks"]) < len(pairs) or not all(map(all, pairs)):
        parser.error("--network is NAME=MODEL, once for each name")
    if options["audit"] < 0 or options["jobs"] < 1:
        parser.error("--audit is at least 0, --jobs at least 1")
    files = [options.pop(name) for name in ("proof", "model", "spec")]
    code, line = answer(*files, **options)
    print(line, file=sys.stderr if code == 2 else sys.stdout)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
