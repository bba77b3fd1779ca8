"""``onnxcert MODEL SPEC`` and ``onnxcert verify SPEC --network NAME=MODEL``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, cast

from onnxcert.cli import arguments, ball
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console, status_text
from onnxcert.cli.interrupts import no_interrupts
from onnxcert.errors import UsageError
from onnxcert.settings import Settings

if TYPE_CHECKING:
    from onnxcert.spec import Query
    from onnxcert.verdict import Counterexample, Progress, Proof, Result

_DESCRIPTION = """\
Decide whether the network has an input that satisfies the query. The first line of stdout is
  sat        there is one; it follows, and was confirmed by onnxruntime with zero tolerance
  unsat      there is none; the checker of certificates has accepted the proof
  unknown    no answer could be reached; stderr says why
  timed-out  the time limit was reached
"""

EXIT_INTERRUPTED = 130
EXIT_CODES = {"sat": 10, "unsat": 20, "unknown": 30, "timed-out": 40}


def run_short(words: Sequence[str], console: Console, clock: Clock) -> int:
    """The short form: a query over one model, whatever the name of its network."""
    usage = (
        "onnxcert MODEL SPEC [options]\n       onnxcert MODEL --norm 2|inf --eps E --input FILE.npy"
    )
    parser = arguments.Parser("", _DESCRIPTION, usage=usage)
    parser.add_argument("model", metavar="MODEL", help=".onnx file, or .onnx.gz")
    parser.add_argument("spec", metavar="SPEC", nargs="?", help=".vnnlib file, or .vnnlib.gz")
    parser.set_defaults(networks=[])
    ball.add_options(parser)
    return _run(parser, words, console, clock)


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """The form of the VNN-LIB standard, chapter 5."""
    parser = arguments.Parser("verify", _DESCRIPTION)
    parser.add_argument("spec", metavar="SPEC", help=".vnnlib file, or .vnnlib.gz")
    parser.add_argument(
        "--network",
        action="append",
        required=True,
        type=arguments.network,
        metavar="NAME=MODEL",
        dest="networks",
        help="the model of a declared network; once per network that is not equal-to another "
        "(VNN-LIB 1.0 declares no name: any will do)",
    )
    parser.set_defaults(norm=None, save_spec=None)
    return _run(parser, words, console, clock)


def _run(parser: arguments.Parser, words: Sequence[str], console: Console, clock: Clock) -> int:
    _add_options(parser)
    if arguments.asks_for_settings(words):
        return print_settings(console)
    options = parser.read(words)
    if options is None:
        return 0
    console.configure(options.verbosity)
    if not options.networks:
        ball.check_options(options)
    _check_order(options)
    settings = Settings.parse(options.assignments)
    with _errors_recorded(options, console):
        result = _verify(options, settings, console, clock)
        with no_interrupts():
            _deliver(result, options, console)
    return _exit_code(result, options)


def print_settings(console: Console) -> int:
    """Answer ``--set help``."""
    from onnxcert.cli.supports import settings_page

    console.answer(settings_page())
    return 0


def _add_options(parser: arguments.Parser) -> None:
    parser.add_argument(
        "--timeout",
        type=arguments.seconds,
        metavar="S",
        help="seconds, from the start of the process (default: none)",
    )
    parser.add_run_options()
    parser.add_argument(
        "--witness", metavar="FILE", help="after sat, write the input found to this file too"
    )
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        help="after sat and unsat, write the proof to this file, for `onnxcert check`",
    )
    parser.add_argument(
        "--serialise-assignments",
        metavar="DIR",
        dest="assignments_folder",
        help="after sat, write one ONNX TensorProto per variable instead of the text on stdout",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write a record of the run, also when it fails"
    )
    parser.add_argument(
        "--exit-code",
        action="store_true",
        help="exit with 10 for sat, 20 unsat, 30 unknown, 40 timed-out instead of 0",
    )
    parser.add_verbosity()


def _check_order(options: argparse.Namespace) -> None:
    """A model in the place of the specification would be refused in words that help nobody."""
    model = options.networks[0][1] if options.networks else options.model
    looks_like_spec = model.removesuffix(".gz").endswith(".vnnlib")
    if looks_like_spec and options.spec and options.spec.removesuffix(".gz").endswith(".onnx"):
        raise UsageError("the model comes first, then the specification")


def _check_outputs(options: argparse.Namespace) -> None:
    """Find out now, not after an hour of search, that a result has no place to go."""
    names = ("json", "witness", "certificate", "save_spec")
    given = {name.replace("_", "-"): getattr(options, name) for name in names}
    files = {option: path for option, path in given.items() if path is not None}
    for (one, path), (other, second) in combinations(files.items(), 2):
        if os.path.realpath(path) == os.path.realpath(second):
            raise UsageError(f"--{one} and --{other} name the same file", place=path)
    query = options.input if options.norm else options.spec
    inputs = [query, *(path for _, path in options.networks or [("", options.model)])]
    for option, path in files.items():
        if os.path.realpath(path) in map(os.path.realpath, inputs):
            raise UsageError(f"--{option} would overwrite an input", place=path)
    if not files and options.assignments_folder is None:
        return
    from onnxcert.files import check_writable, make_folder

    for path in files.values():
        check_writable(path)
    if options.assignments_folder is not None:
        make_folder(options.assignments_folder)


@contextmanager
def _errors_recorded(options: argparse.Namespace, console: Console) -> Iterator[None]:
    """Write the record also of a run that ends without a verdict, unless it was called wrongly."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if options.json is not None:
            from onnxcert.files import write_file
            from onnxcert.report import error_record, to_json

            try:
                write_file(options.json, to_json(error_record(error, _files(options))))
            except UsageError as unwritten:
                console.error(unwritten)
        raise


def _files(options: argparse.Namespace) -> dict[str, str]:
    models = {f"model {name}": path for name, path in options.networks}
    if len(models) < 2:
        models = {"model": options.networks[0][1] if options.networks else options.model}
    return {**models, "spec": options.input if options.norm else options.spec}


def _verify(
    options: argparse.Namespace, settings: Settings, console: Console, clock: Clock
) -> Result:
    query = None
    try:
        _check_outputs(options)
        if options.norm:
            query = ball.make_query(options)
        else:
            from onnxcert.frontend.vnnlib import read_query

            query = read_query(options.spec)
        return _search(_models(options), query, options, settings, console, clock)
    except (KeyboardInterrupt, MemoryError) as error:
        from onnxcert.verdict import Reason, Result, Unknown

        was_interrupted = isinstance(error, KeyboardInterrupt)
        return Result(Unknown(Reason.INTERRUPTED if was_interrupted else Reason.MEMORY), query)


def _models(options: argparse.Namespace) -> str | dict[str, str]:
    """The model, or those of declared networks."""
    networks = dict(options.networks)
    if len(networks) < len(options.networks):
        raise UsageError("--network gives one name twice")
    return networks or str(options.model)


def _search(
    model: str | dict[str, str],
    query: Query,
    options: argparse.Namespace,
    settings: Settings,
    console: Console,
    clock: Clock,
) -> Result:
    from onnxcert.verifier import verify

    before = clock.seconds

    def show(progress: Progress) -> None:
        seconds = before + progress.seconds
        console.status(status_text(progress, seconds, options.timeout))

    result = verify(
        model,
        query,
        timeout=clock.remaining(options.timeout),
        device=options.device,
        seed=options.seed,
        settings=settings,
        progress=show,
        semantics=options.semantics,
        certificate=options.certificate,
        certified=not options.uncertified,
    )
    chosen = {
        "timeout": options.timeout,
        "semantics": options.semantics,
        "certified": not options.uncertified,
    }
    return replace(
        result,
        settings={**result.settings, **chosen},
        seconds={**result.seconds, "start": before, "process": clock.seconds},
    )


def _remark(result: Result, options: argparse.Namespace, console: Console) -> None:
    """Say on stderr what the one word of the verdict leaves out."""
    from onnxcert.report import is_certified
    from onnxcert.verdict import Unsat

    certified = is_certified(result)
    if certified is False:
        why = f": {result.proof.message}" if result.proof else " (--uncertified)"
        console.warn(f"{result.word} is uncertified: no checker has accepted a proof of it{why}")
    if isinstance(result.verdict, Unsat) and result.semantics == "real":
        _warn_about_rounding(cast("Query", result.query), console)
    if certified is not None and options.certificate and not (result.proof and result.proof.path):
        console.warn(f"no certificate was written to {options.certificate}")
    if result.proof is not None and console.verbosity > 0:
        console.say(_proof_line(result.proof))


def _warn_about_rounding(query: Query, console: Console) -> None:
    """Chapter 5 lets a query consent to real arithmetic by its type; others rest on an option."""
    types = {tensor.element_type for tensor in query.tensors} - {"real"}
    if types and query.version != "1.0" and console.verbosity >= 0:
        console.warn(
            f"the query declares {', '.join(sorted(types))}, but unsat is proved for real "
            "arithmetic, as --semantics real allows: rounding inside the network is not covered"
        )


def _proof_line(proof: Proof) -> str:
    """``proof: accepted (real); leaves 12, bytes 3,456, check 0.03 s``."""
    state = f"accepted ({', '.join(proof.claims)})" if proof.accepted else "not accepted"
    size = f"leaves {proof.leaves:,}, bytes {proof.bytes:,}"
    return f"proof: {state}; {size}, check {proof.seconds:.2f} s"


def _deliver(result: Result, options: argparse.Namespace, console: Console) -> None:
    """Verdict and witness to stdout first, because they are what counts; then the files."""
    from onnxcert.verdict import Reason, Sat, Unknown

    verdict = result.verdict
    if isinstance(verdict, Unknown):
        console.note(f"{result.word}: {verdict.reason.value}")
        if verdict.reason is Reason.ROUNDING:
            console.note("  help: --semantics real consents to an answer over the reals")
    if isinstance(verdict, Sat):
        _deliver_witness(cast("Query", result.query), verdict.counterexample, options, console)
    else:
        console.answer(f"{result.word}\n")
    _remark(result, options, console)
    if options.json is not None:
        from onnxcert.files import write_file
        from onnxcert.report import result_record, to_json

        write_file(options.json, to_json(result_record(result)))


def _deliver_witness(
    query: Query, found: Counterexample, options: argparse.Namespace, console: Console
) -> None:
    from onnxcert.files import write_file
    from onnxcert.frontend.witness import format_witness, write_assignments

    values = {**found.inputs, **found.outputs}
    text = f"{format_witness(query, values, found.decimals)}\n"
    console.answer("sat\n" if options.assignments_folder is not None else f"sat\n{text}")
    if options.witness is not None:
        write_file(options.witness, text)
    if options.assignments_folder is not None:
        try:
            write_assignments(options.assignments_folder, query, values)
        except OSError as error:
            raise UsageError(
                f"the assignments cannot be written: {error.strerror}",
                place=options.assignments_folder,
            ) from error


def _exit_code(result: Result, options: argparse.Namespace) -> int:
    from onnxcert.verdict import Reason, Unknown

    if result.verdict == Unknown(Reason.INTERRUPTED):
        return EXIT_INTERRUPTED
    return EXIT_CODES[result.word] if options.exit_code else 0
