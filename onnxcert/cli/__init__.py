"""The command line: a thin face on the library, and the only part that prints.

stdout carries the answer, verdict first, and nothing else; everything for people goes to stderr.
The interface of the VNN-LIB standard, chapter 5, is ``verify``, ``supports``, ``--name`` and
``--version``.

Exit codes: 0 a verdict was printed, 1 ``bench`` saw a wrong verdict or ``check`` a certificate that
proves nothing, 2 usage (``check``: or unusable input), 3 input that cannot be read or is not
supported, 4 a fault of onnxcert, 130 interrupted.

Modules are imported where they are needed: ``onnxcert --version`` costs little more than Python's
own start, and a verification does not wait for the parts it does not use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.interrupts import interrupts_outside_imports
from onnxcert.errors import OnnxcertError, UsageError

Command = Callable[[Sequence[str], Console, Clock], int]

COMMANDS = (
    "verify",
    "check",
    "supports",
    "inspect",
    "bounds",
    "region",
    "bench",
    "lipschitz",
    "certify",
    "gloro",
    "train",
)

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Those that the libraries under NumPy read when they are loaded."""

EXIT_FAULT = 4
EXIT_INTERRUPTED = 130

HELP = """\
usage: onnxcert MODEL SPEC [options]
       onnxcert MODEL --norm 2|inf --eps E --input FILE.npy [--label K] [--domain LO HI] [options]
       onnxcert verify SPEC --network NAME=MODEL [options]
       onnxcert check PROOF --model MODEL --spec SPEC [options]
       onnxcert inspect MODEL [SPEC]
       onnxcert bounds MODEL SPEC [--method interval|backward] [--layers]
       onnxcert region MODEL --input FILE.npy [options]
       onnxcert lipschitz MODEL [--method product|recursion|refined] [--norm 2|inf|1] [--pairs]
       onnxcert certify MODEL --data IMAGES.npz --eps E[,E2...] [--norm 2|inf]
       onnxcert gloro MODEL --eps E -o ROBUST.onnx
       onnxcert train --data IMAGES.npz --eps E [--net NET] -o MODEL.onnx
       onnxcert bench INSTANCES.csv --out DIR [--timeout S] [--jobs N] [--resume]
       onnxcert supports CAPABILITY
       onnxcert --name | --version | --help

Decide whether a neural network (ONNX) has an input that satisfies a query (VNN-LIB). The first line
of stdout is sat (followed by the input found), unsat, unknown or timed-out. --certificate FILE
writes a proof of it, which `onnxcert check` checks.

`onnxcert verify --help` explains the options of the first two forms; likewise the other commands.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the name of the program; those of the process when omitted.

    Returns:
        The exit code.
    """
    clock = Clock.of_process() if arguments is None else Clock.starting_now()
    console = Console(sys.stdout, sys.stderr)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with interrupts_outside_imports():
            return _dispatch(words, console, clock)
    except OnnxcertError as error:
        console.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        console.warn("interrupted")
        return EXIT_INTERRUPTED
    except Exception as fault:  # noqa: BLE001 - the outermost boundary: nobody else can report it
        console.fault(fault)
        return EXIT_FAULT
    finally:
        console.close()


def _dispatch(arguments: list[str], console: Console, clock: Clock) -> int:
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        return _command(first)(arguments[1:], console, clock)
    if first in ("-h", "--help"):
        console.answer(HELP)
    elif first == "--name":
        console.answer("onnxcert\n")
    elif first == "--version":
        from onnxcert import __version__

        console.answer(f"{__version__}\n")
    elif not arguments:
        raise UsageError("a model and a specification are needed", help="see `onnxcert --help`")
    else:
        return _command("verify", "run_short")(arguments, console, clock)
    return 0


def _limit_threads() -> None:
    """Matrix products on one thread, unless the environment says something else.

    Most of them take microseconds, and threads that wait for the next one take all the time of
    their processors: on two, resnet_2b prop 47 took 27 CPU seconds instead of 7. Whole searches use
    what is idle (`onnxcert.search.crew`).
    """
    if not any(name in os.environ for name in THREAD_VARIABLES):
        os.environ |= dict.fromkeys(THREAD_VARIABLES, "1")


def _command(name: str, function: str = "run") -> Command:
    if name != "train":  # PyTorch is another matter
        _limit_threads()
    command: Command = getattr(import_module(f"onnxcert.cli.{name}"), function)
    return command
