"""Run a list of instances, render what came out as a table, compare two runs.

::

    python benchmarks/run.py run INSTANCES.csv --out DIR [--timeout 60] [--jobs 2] [--quick]
    python benchmarks/run.py table DIR [--by difficulty --instances INSTANCES.csv]
    python benchmarks/run.py quick INSTANCES.csv --out DIR [--allow-lost] [--store]
    python benchmarks/run.py compare OLD/results.csv NEW/results.csv

``run`` calls `onnxcert bench`, which does the work in one process per instance, and prints the
table of benchmarks/RESULTS.md. ``quick`` takes the easiest row of each benchmark, computes bounds
at the root as well, and fails where a verdict or a bound is worse than what regression.csv holds
(`regression`); ``--store`` writes that file. ``compare`` fails when one run says sat and the other
unsat; a verdict that is lost is shown, but is no contradiction.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import regression

from onnxcert.bench.instances import networks

UNSUPPORTED = 3
"""Exit code of a run whose input is well formed but has no rule."""

WORDS = ("sat", "unsat", "unknown", "timed-out", "unsupported", "error")
HEADER = ("group", "rows", *WORDS, "wrong", "median s")

Record = Mapping[str, Any]


def quick_list(source: Path, folder: Path) -> Path:
    """Write a list with the row of each benchmark that a strong tool answers fastest."""
    with source.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    best: dict[str, dict[str, str]] = {}
    for row in rows:
        seconds = float(row.get("abcrown_seconds") or "inf")
        old = best.get(row["benchmark"])
        if old is None or seconds < float(old.get("abcrown_seconds") or "inf"):
            best[row["benchmark"]] = row
    target = folder / "quick.csv"
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in best.values():
            writer.writerow(row | _absolute(row, source.parent))
    return target


def _absolute(row: Mapping[str, str], folder: Path) -> dict[str, str]:
    models = [(name, str((folder / path).resolve())) for name, path in networks(row["onnx"])]
    onnx = models[0][1] if not models[0][0] else repr(models)
    return {"onnx": onnx, "vnnlib": str((folder / row["vnnlib"]).resolve())}


def read_journal(folder: Path) -> list[Record]:
    """The outcomes of a run, as `onnxcert bench` wrote them down."""
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [record for record in records if "result" in record]


def word(record: Record) -> str:
    """The verdict of an outcome, or what kept it from having one."""
    if record["exit_code"] == UNSUPPORTED:
        return "unsupported"
    return "timed-out" if record["result"] == "timeout" else str(record["result"])


def is_wrong(record: Record) -> bool:
    """Whether the answer contradicts the list, late answers included."""
    return {record["answer"], record["expected"]} == {"sat", "unsat"}


def table(records: Iterable[Record], names: Mapping[int, str] | None = None) -> str:
    """A Markdown table: one line per group, and their sum.

    Args:
        records: the outcomes.
        names: number of an instance -> its group; None groups by benchmark.
    """
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record["number"]):
        name = names[record["number"]] if names else record["category"]
        groups.setdefault(name, []).append(record)
    everything = [record for group in groups.values() for record in group]
    lines = [_line(name, group) for name, group in groups.items()]
    rule = ["---", *["---:"] * (len(HEADER) - 1)]
    rows = [HEADER, rule, *lines, _line("all", everything)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _line(name: str, records: Sequence[Record]) -> list[str]:
    counts = Counter(map(word, records))
    times = [record["seconds"] for record in records if word(record) in ("sat", "unsat")]
    return [
        name,
        str(len(records)),
        *(str(counts[each]) for each in WORDS),
        str(sum(map(is_wrong, records))),
        f"{median(times):.2f}" if times else "",
    ]


def group_names(instances: Path, column: str) -> dict[int, str]:
    """Number of an instance -> its entry in a column of the list."""
    with instances.open(newline="", encoding="utf-8") as stream:
        return {number: row[column] for number, row in enumerate(csv.DictReader(stream))}


def read_results(path: Path) -> dict[tuple[str, str, str], str]:
    """(category, model, specification) -> result, from a results.csv in VNN-COMP's format."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    return {(row[0], Path(row[1]).name, Path(row[2]).name): row[4] for row in rows}


def compare(old: Path, new: Path) -> int:
    """Print what changed and return how many verdicts contradict each other."""
    before, after = read_results(old), read_results(new)
    contradictions = 0
    for key in sorted(before.keys() & after.keys()):
        if before[key] == after[key]:
            continue
        contradicts = {before[key], after[key]} == {"sat", "unsat"}
        contradictions += contradicts
        note = "  CONTRADICTION" if contradicts else ""
        print(f"{' '.join(key)}: {before[key]} -> {after[key]}{note}")
    for name, results in (("old", before), ("new", after)):
        solved = sum(result in ("sat", "unsat") for result in results.values())
        print(f"{name}: {solved} of {len(results)} answered")
    return contradictions


def run(arguments: argparse.Namespace) -> int:
    """Run a list and print its table; the exit code is that of `onnxcert bench`."""
    source, out = arguments.instances, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "journal.jsonl"
    command = [sys.executable, "-m", "onnxcert", "bench", str(source), "--out", str(out)]
    command += ["--jobs", str(arguments.jobs), "--timeout", str(arguments.timeout)]
    if journal.exists():
        command.append("--resume")
    code = subprocess.run(command, check=False).returncode
    if journal.exists():
        print(table(read_journal(out)))
    return code


def quick(arguments: argparse.Namespace) -> int:
    """Run the quick list and compare it with what is stored; 1 if something became worse."""
    source, out = arguments.instances, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    arguments.instances = quick_list(source, out)
    if code := run(arguments):
        return code
    found = {}
    for record in read_journal(out):
        networks_of, spec = record["onnx"], record["vnnlib"]
        name = f"{record['category']} {Path(networks_of).name} {Path(spec).name}"
        verdict = record["result"] if record["result"] in regression.ANSWERS else ""
        found[name] = regression.measure(name, verdict, networks_of, spec)
    if arguments.store:
        regression.store(found)
        return 0
    worse = list(regression.failures(found, allow_lost=arguments.allow_lost))
    print("\n".join(worse) if worse else "nothing is worse than what is stored")
    return 1 if worse else 0


def main() -> int:
    """Parse the command line and run one of the four commands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run a list and print its table")
    runner.add_argument("instances", type=Path, metavar="INSTANCES.csv")
    runner.add_argument("--out", type=Path, required=True, metavar="DIR")
    runner.add_argument("--timeout", type=float, default=60.0)
    runner.add_argument("--jobs", type=int, default=2)
    quicker = commands.add_parser("quick", help="the easiest row of each benchmark, compared")
    quicker.add_argument("instances", type=Path, metavar="INSTANCES.csv")
    quicker.add_argument("--out", type=Path, required=True, metavar="DIR")
    quicker.add_argument("--timeout", type=float, default=20.0)
    quicker.add_argument("--jobs", type=int, default=2)
    quicker.add_argument("--allow-lost", action="store_true", help="verdicts may be missing")
    quicker.add_argument("--store", action="store_true", help="store what came out")
    printer = commands.add_parser("table", help="print the table of a finished run")
    printer.add_argument("folder", type=Path, metavar="DIR")
    printer.add_argument("--by", metavar="COLUMN", help="group by a column of the list")
    printer.add_argument("--instances", type=Path, metavar="INSTANCES.csv")
    comparer = commands.add_parser("compare", help="fail if two results contradict each other")
    comparer.add_argument("old", type=Path)
    comparer.add_argument("new", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        return run(arguments)
    if arguments.command == "quick":
        return quick(arguments)
    if arguments.command == "table":
        if (arguments.by is None) != (arguments.instances is None):
            parser.error("--by and --instances go together")
        names = group_names(arguments.instances, arguments.by) if arguments.by else None
        print(table(read_journal(arguments.folder), names))
        return 0
    return 1 if compare(arguments.old, arguments.new) else 0


if __name__ == "__main__":
    sys.exit(main())
