"""``onnxcert bench``: a list of instances, with a progress bar and a table at the end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxcert.cli import arguments
from onnxcert.cli.clock import Clock
from onnxcert.cli.console import Console
from onnxcert.cli.table import table
from onnxcert.cli.verify import print_settings
from onnxcert.settings import Settings

if TYPE_CHECKING:
    from onnxcert.bench import Options, Outcome, State, Summary
    from onnxcert.bench.summary import Counts

_DESCRIPTION = """\
Run every instance of a list in a process of its own. DIR gets results.csv (VNN-COMP's format),
summary.json, and per benchmark the witnesses and records; journal.jsonl is what --resume continues
from, after Ctrl-C as well as after a crash. Exit code 1 if a verdict contradicts the list.
"""

EXIT_WRONG = 1
_BAR = 24


def run(words: Sequence[str], console: Console, clock: Clock) -> int:
    """Run the list and print the table to stderr."""
    if arguments.asks_for_settings(words):
        return print_settings(console)
    options = _parser().read(words)
    if options is None:
        return 0
    console.configure(options.verbosity)
    Settings.parse(options.assignments)
    from onnxcert.bench import run_benchmark

    def show(state: State) -> None:
        if state.latest is not None and (not console.is_live or state.latest.is_wrong):
            console.note(outcome_line(state.latest, len(state.outcomes), state.total))
        if console.is_live:
            console.status(progress_bar(state))

    summary = run_benchmark(
        options.instances, options.out, _options(options), resume=options.resume, report=show
    )
    console.note(summary_page(summary))
    for outcome in summary.wrong:
        console.warn(f"WRONG VERDICT: {outcome_line(outcome)}")
    return EXIT_WRONG if summary.wrong else 0


def _parser() -> arguments.Parser:
    parser = arguments.Parser("bench", _DESCRIPTION)
    parser.add_argument("instances", metavar="INSTANCES.csv", help="list of instances")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for all results")
    parser.add_argument(
        "--timeout",
        type=arguments.seconds,
        metavar="S",
        help="seconds per instance (default: as in the list)",
    )
    parser.add_argument(
        "--jobs", type=arguments.positive, default=1, metavar="N", help="instances at a time"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR")
    parser.add_argument(
        "--grace",
        type=arguments.seconds,
        default=10.0,
        metavar="S",
        help="kill a process this long after its limit (default: 10)",
    )
    parser.add_argument(
        "--memory",
        type=arguments.gigabytes,
        metavar="GB",
        help="private memory of one process (default: no limit)",
    )
    parser.add_argument(
        "--certificates",
        action="store_true",
        help="keep the certificate of every sat and unsat, as STEM.onnxcert",
    )
    parser.add_run_options()
    parser.add_verbosity()
    return parser


def _options(options: argparse.Namespace) -> Options:
    from onnxcert.bench import Options

    passed = [f"--device={options.device}", f"--seed={options.seed}"]
    passed += [f"--set={assignment}" for assignment in options.assignments]
    passed.append(f"--semantics={options.semantics}")
    if options.uncertified:
        passed.append("--uncertified")
    limits = (options.timeout, options.jobs, options.grace, options.memory)
    return Options(*limits, tuple(passed), options.certificates)


def outcome_line(outcome: Outcome, done: int = 0, total: int = 0) -> str:
    """``[3/182] acasxu_2023/ACASXU_run2a_1_1_prop_3: unsat in 1.2 s``."""
    counter = f"[{done}/{total}] " if total else ""
    expected = f", but the list says {outcome.expected}" if outcome.is_wrong else ""
    why = f" ({outcome.message})" if outcome.message else ""
    word = outcome.answer if outcome.is_wrong else outcome.result
    name = f"{outcome.category}/{outcome.stem}"
    return f"{counter}{name}: {word} in {outcome.seconds:.1f} s{expected}{why}"


def progress_bar(state: State) -> str:
    """``[######------] 12/182  sat 3  unsat 8  ...  3:05, 41:40 left``."""
    done = len(state.outcomes)
    filled = _BAR * done // state.total
    counts: dict[str, int] = {}
    for outcome in state.outcomes.values():
        counts[outcome.result] = counts.get(outcome.result, 0) + 1
    parts = [f"[{'#' * filled}{'-' * (_BAR - filled)}] {done}/{state.total}"]
    parts += [f"{name} {count}" for name, count in sorted(counts.items())]
    left = (state.total - done) * state.seconds / state.fresh if state.fresh else None
    parts.append(_clock(state.seconds) + (f", {_clock(left)} left" if left is not None else ""))
    return "  ".join(parts)


def summary_page(summary: Summary) -> str:
    """Counts per benchmark and in all."""
    names = list(summary.total.counts)
    header = ("benchmark", "instances", *names, "solved", "certified", "median s", "wrong")
    rows = [_row(category, counts) for category, counts in summary.benchmarks.items()]
    rows.append(_row("all", summary.total))
    return table(header, rows, right=header[1:]).rstrip()


def _row(name: str, counts: Counts) -> tuple[str, ...]:
    seconds = "" if counts.median_seconds is None else f"{counts.median_seconds:.2f}"
    numbers = (counts.instances, *counts.counts.values(), counts.solved, counts.certified)
    return (name, *map(str, numbers), seconds, str(counts.wrong))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
