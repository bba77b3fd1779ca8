"""Whole runs of our command line beside those of other tools, row by row of a list.

::

    python benchmarks/versus.py run INSTANCES.csv --out DIR --tool "NAME=COMMAND" ...
        [--verdict "NAME=REGEX" ...] [--configs CONFIGS.csv] [--rows 0,7,12] [--timeout 60]
    python benchmarks/versus.py table DIR

COMMAND is a template: ``{onnx}``, ``{vnnlib}`` (unpacked files), ``{timeout}`` (seconds),
``{python}`` (this interpreter), ``{out}`` (a file that the tool may write its answer to) and
``{config}`` are filled in. A line of CONFIGS.csv is ``PATTERN,CONFIG``: rows whose
``BENCHMARK/MODEL`` fits the shell pattern get that configuration, the first line that fits counts,
and a tool that needs one and has none leaves the row out. REGEX is searched in what the tool prints
and writes to ``{out}``; its groups ``sat`` and ``unsat`` are the verdicts, and the last match
counts. Without one, it is the line that begins with the word. ``onnxcert`` is always among the
tools; give a command of that name to change its options.

All tools do a row before the next begins, in an order that rotates, one process at a time and with
one thread. CPU seconds are user and system time of the process and of all descendants that were
waited for. Every run is a line of DIR/runs.csv; a run that is there already is not repeated.
Of several repeats the one with the least CPU time counts.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from statistics import median

from serving import ONE_THREAD, end_in_order

from onnxcert.bench.instances import Instance, networks, read_instances

OWN = "onnxcert"
OWN_COMMAND = "{python} -m onnxcert {onnx} {vnnlib} --timeout {timeout} -q --set parallel=off"
VERDICT = r"^(?:(?P<unsat>unsat)|(?P<sat>sat))\b"
SLOW = 8.0
"""CPU seconds of another tool above which its rows are also compared by themselves."""

ANSWERS = ("sat", "unsat")
ENDINGS = (*ANSWERS, "timeout", "unknown", "error")


@dataclass(frozen=True)
class Run:
    """One run of one tool.

    Attributes:
        wall, cpu: seconds.
        peak: resident megabytes of the largest process; no less than those of this program, which
            a new process shares until it begins.
        verdict: one of `ENDINGS`; error is an exit code other than 0 without an answer.
        busy: processors that others kept busy meanwhile, a mean.
    """

    number: int
    benchmark: str
    instance: str
    expected: str
    tool: str
    repeat: int
    verdict: str
    wall: float
    cpu: float
    peak: float
    busy: float
    exit_code: int


@dataclass(frozen=True)
class Tool:
    """Another program: its template and how it says what it found."""

    name: str
    template: Sequence[str]
    pattern: re.Pattern[str]

    def command(self, values: Mapping[str, str]) -> list[str] | None:
        """The template filled in; None where it lacks a value."""
        try:
            return [word.format_map(values) for word in self.template]
        except KeyError:
            return None

    def verdict(self, text: str) -> str | None:
        """The last verdict in a text."""
        found = [match.lastgroup for match in self.pattern.finditer(text)]
        return found[-1] if found else None


@dataclass(frozen=True)
class Bench:
    """What all runs share: folders, seconds and gigabytes."""

    folder: Path
    timeout: float
    grace: float
    gigabytes: float

    def run(self, tool: Tool, instance: Instance, config: str | None, repeat: int) -> Run | None:
        """Run one tool on one row; None where it has no command for it."""
        scratch = (self.folder / "scratch" / tool.name).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        answer, log = scratch / "answer.txt", scratch / f"{instance.number}_{repeat}.log"
        answer.unlink(missing_ok=True)
        seconds = min(self.timeout, instance.timeout)
        values = {
            "onnx": str(self._unpacked(instance.folder / instance.onnx)),
            "vnnlib": str(self._unpacked(instance.folder / instance.vnnlib)),
            "timeout": f"{seconds:g}",
            "python": sys.executable,
            "out": str(answer),
        }
        command = tool.command(values if config is None else values | {"config": config})
        if command is None:
            return None
        before, began = _busy_seconds(), time.monotonic()
        code, usage = self._execute(command, log, seconds + self.grace)
        wall = time.monotonic() - began
        cpu = usage.ru_utime + usage.ru_stime
        text = log.read_text(encoding="utf-8", errors="replace")
        if answer.exists():
            text += "\n" + answer.read_text(encoding="utf-8", errors="replace")
        return Run(
            instance.number,
            instance.category,
            instance.stem,
            instance.expected,
            tool.name,
            repeat,
            _ending(tool.verdict(text), code, wall, seconds),
            wall,
            cpu,
            usage.ru_maxrss / 1024,
            max(0.0, _busy_seconds() - before - cpu) / wall,
            code,
        )

    def _unpacked(self, path: Path) -> Path:
        """The file itself, or a copy that is not compressed."""
        if not path.exists() and path.with_name(f"{path.name}.gz").exists():
            path = path.with_name(f"{path.name}.gz")
        if path.suffix != ".gz":
            return path.resolve()
        name = "__".join(path.with_suffix("").resolve().parts[-3:])
        target = (self.folder / "files" / name).resolve()
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(gzip.decompress(path.read_bytes()))
        return target

    def _execute(
        self, command: Sequence[str], log: Path, seconds: float
    ) -> tuple[int, resource.struct_rusage]:
        """Run a command with everything it starts; end all of them after so many wall seconds."""
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=os.environ | ONE_THREAD,
                start_new_session=True,
            )
        size = int(self.gigabytes * 2**30)
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_AS, (size, size))
        timer = threading.Timer(seconds, _end_group, [process.pid])
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            _end_group(process.pid)
            raise
        finally:
            timer.cancel()
        _end_group(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage


def _end_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _busy_seconds() -> float:
    """Seconds that all processors of the machine were not idle since it started."""
    with open("/proc/stat", encoding="ascii") as stream:
        user, nice, system, _, _, *others = map(int, stream.readline().split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def _ending(verdict: str | None, code: int, wall: float, limit: float) -> str:
    if verdict is not None:
        return verdict
    if wall >= limit:
        return "timeout"
    return "error" if code else "unknown"


def read_configs(path: Path | None) -> Callable[[Instance], str | None]:
    """From a row to its configuration."""
    if path is None:
        return lambda instance: None
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [(row[0], row[1]) for row in csv.reader(stream) if row]

    def find(instance: Instance) -> str | None:
        name = f"{instance.category}/{Path(instance.onnx).name}"
        return next((config for pattern, config in rows if fnmatch(name, pattern)), None)

    return find


def read_tools(commands: Iterable[str], patterns: Iterable[str]) -> list[Tool]:
    """Tools from ``NAME=COMMAND`` and ``NAME=REGEX``, ours first."""
    known = dict(pair.split("=", 1) for pair in patterns)
    templates = {OWN: OWN_COMMAND} | dict(command.split("=", 1) for command in commands)
    return [
        Tool(name, shlex.split(text), re.compile(known.get(name, VERDICT), re.MULTILINE))
        for name, text in templates.items()
    ]


def read_runs(path: Path) -> list[Run]:
    """The runs that are written down."""
    if not path.exists():
        return []
    kinds = {"int": int, "float": float, "str": str}
    columns = {field.name: kinds[str(field.type)] for field in fields(Run)}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [Run(**{name: kind(row[name]) for name, kind in columns.items()}) for row in rows]


def run(arguments: argparse.Namespace) -> list[Run]:
    """All tools on all rows; what is written down already is kept."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "runs.csv"
    runs = read_runs(path)
    known = {(each.number, each.tool, each.repeat) for each in runs}
    bench = Bench(arguments.out, arguments.timeout, arguments.grace, arguments.memory)
    tools = read_tools(arguments.tool, arguments.verdict)
    config = read_configs(arguments.configs)
    with path.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Run)])
        if not runs:
            writer.writeheader()
        for turn, (instance, repeat) in enumerate(_rows(arguments)):
            first = turn % len(tools)
            for tool in [*tools[first:], *tools[:first]]:
                if (instance.number, tool.name, repeat) in known:
                    continue
                found = bench.run(tool, instance, config(instance), repeat)
                if found is None:
                    continue
                print(found, file=sys.stderr, flush=True)
                writer.writerow(asdict(found))
                stream.flush()
                runs.append(found)
    return runs


def _rows(arguments: argparse.Namespace) -> list[tuple[Instance, int]]:
    """Rows of one network, and numbers of the repeats."""
    rows = [each for each in read_instances(arguments.instances) if not networks(each.onnx)[0][0]]
    if arguments.rows is not None:
        rows = [each for each in rows if each.number in arguments.rows]
    return [(each, repeat) for each in rows for repeat in range(arguments.repeats)]


def best(runs: Iterable[Run]) -> dict[int, dict[str, Run]]:
    """Row -> tool -> its run with an answer and the least CPU time, or its cheapest without."""
    result: dict[int, dict[str, Run]] = {}
    for each in sorted(runs, key=lambda r: (r.number, r.verdict not in ANSWERS, r.cpu)):
        result.setdefault(each.number, {}).setdefault(each.tool, each)
    return result


def table(runs: Sequence[Run]) -> str:
    """Three tables in Markdown: every row, what each tool solved, and ratios to ours."""
    tools = list(dict.fromkeys(each.tool for each in runs))
    tools = sorted(tools, key=lambda tool: tool != OWN)
    rows = best(runs)
    pages = [_row_table(rows, tools), _tool_table(rows, tools), _ratio_table(rows, tools)]
    for number, row in rows.items():
        said = {tool: each.verdict for tool, each in row.items() if each.verdict in ANSWERS}
        if len(set(said.values())) > 1:
            words = ", ".join(f"{tool} {verdict}" for tool, verdict in said.items())
            pages.append(f"CONTRADICTION in row {number}: {words}")
    return "\n\n".join(pages)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _row_table(rows: Mapping[int, Mapping[str, Run]], tools: Sequence[str]) -> str:
    """Each cell: verdict, wall seconds / CPU seconds / megabytes."""
    lines = []
    for row in rows.values():
        some = next(iter(row.values()))
        cells = [
            f"{row[t].verdict} {row[t].wall:.1f}/{row[t].cpu:.1f}/{row[t].peak:.0f}"
            if t in row
            else ""
            for t in tools
        ]
        lines.append([f"{some.benchmark} {some.instance}", some.expected, *cells])
    return _markdown(["instance", "expected", *tools], lines)


def _tool_table(rows: Mapping[int, Mapping[str, Run]], tools: Sequence[str]) -> str:
    lines = []
    for tool in tools:
        done = [row[tool] for row in rows.values() if tool in row]
        solved = [each for each in done if each.verdict in ANSWERS]
        alone = sum(
            row[tool].verdict in ANSWERS
            and not any(e.verdict in ANSWERS for t, e in row.items() if t != tool)
            for row in rows.values()
            if tool in row
        )
        wrong = sum(each.expected in ANSWERS and each.verdict != each.expected for each in solved)
        counts = [sum(each.verdict == word for each in done) for word in ENDINGS]
        medians = [median(getattr(e, key) for e in solved) if solved else 0.0 for key in TIMES]
        lines.append(
            [tool, *map(str, (len(done), *counts, wrong, alone)), *(f"{m:.2f}" for m in medians)]
        )
    head = ["tool", "rows", *ENDINGS, "wrong", "alone", "median CPU s", "median wall s"]
    return _markdown(head, lines)


TIMES = ("cpu", "wall")


def _ratio_table(rows: Mapping[int, Mapping[str, Run]], tools: Sequence[str]) -> str:
    """Geometric means of the other tool's seconds over ours, where both have an answer.

    Rows on which the other tool is slow are chosen by its own times and favour us.
    """
    lines = []
    for tool in tools:
        both = [
            (row[OWN], row[tool])
            for row in rows.values()
            if tool != OWN and {OWN, tool} <= row.keys()
        ]
        pairs = [(ours, other) for ours, other in both if {ours.verdict, other.verdict} <= _SOLVED]
        if not pairs:
            continue
        slow = [pair for pair in pairs if pair[1].cpu > SLOW]
        faster = sum(ours.cpu < other.cpu for ours, other in pairs)
        means = [_mean_ratio(chosen, key) for chosen in (pairs, slow) for key in TIMES]
        numbers = [str(len(pairs)), *means[:2], str(len(slow)), *means[2:]]
        lines.append([tool, *numbers, f"{faster} / {len(pairs) - faster}"])
    head = ["tool / onnxcert", "both", "CPU", "wall", f"over {SLOW:g} CPU s", "CPU", "wall"]
    return _markdown([*head, "we are faster / slower"], lines)


_SOLVED = set(ANSWERS)


def _mean_ratio(pairs: Sequence[tuple[Run, Run]], key: str) -> str:
    if not pairs:
        return ""
    logs = [math.log(getattr(other, key) / getattr(ours, key)) for ours, other in pairs]
    return f"{math.exp(sum(logs) / len(logs)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run all tools, then print the tables")
    runner.add_argument("instances", type=Path, metavar="INSTANCES.csv")
    runner.add_argument("--out", type=Path, required=True, metavar="DIR")
    runner.add_argument("--tool", action="append", default=[], metavar="NAME=COMMAND")
    runner.add_argument("--verdict", action="append", default=[], metavar="NAME=REGEX")
    runner.add_argument("--configs", type=Path, metavar="CONFIGS.csv")
    runner.add_argument("--rows", type=lambda text: {int(part) for part in text.split(",")})
    runner.add_argument("--timeout", type=float, default=60.0, help="most seconds of a row")
    runner.add_argument("--grace", type=float, default=20.0, help="seconds before it is ended")
    runner.add_argument("--repeats", type=int, default=1)
    runner.add_argument("--memory", type=float, default=12.0, help="gigabytes of each process")
    printer = commands.add_parser("table", help="print the tables of a run")
    printer.add_argument("out", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    end_in_order()
    if arguments.command == "run":
        print(table(run(arguments)))
    else:
        print(table(read_runs(arguments.out / "runs.csv")))


if __name__ == "__main__":
    main()
