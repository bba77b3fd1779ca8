"""What a run amounts to: the competition's results file, and counts per benchmark."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from onnxcert.bench.instances import Instance
from onnxcert.bench.journal import Outcome

RESULTS = ("sat", "unsat", "unknown", "timeout", "error")


@dataclass(frozen=True)
class Counts:
    """Of one benchmark, or of all.

    Attributes:
        instances: in the list.
        counts: result -> how many; an instance that has not been run yet is in none.
        solved: how many are sat or unsat.
        certified: how many of those come with a proof that the checker accepted.
        median_seconds: of the solved ones; ``None`` if there are none.
        wrong: how many answers contradict the list.
    """

    instances: int
    counts: Mapping[str, int]
    solved: int
    certified: int
    median_seconds: float | None
    wrong: int

    @classmethod
    def of(cls, instances: int, outcomes: Sequence[Outcome]) -> Counts:
        """Count."""
        times = [outcome.seconds for outcome in outcomes if outcome.is_solved]
        return cls(
            instances,
            {name: sum(outcome.result == name for outcome in outcomes) for name in RESULTS},
            len(times),
            sum(outcome.is_solved and outcome.certified for outcome in outcomes),
            median(times) if times else None,
            sum(outcome.is_wrong for outcome in outcomes),
        )


@dataclass(frozen=True)
class Summary:
    """Counts, and every outcome that contradicts the list."""

    benchmarks: Mapping[str, Counts]
    total: Counts
    wrong: tuple[Outcome, ...]

    @classmethod
    def of(cls, instances: Iterable[Instance], outcomes: Mapping[int, Outcome]) -> Summary:
        """Summarise, benchmarks in the order of the list."""
        rows: dict[str, list[int]] = {}
        for instance in instances:
            rows.setdefault(instance.category, []).append(instance.number)
        benchmarks = {
            category: Counts.of(len(numbers), [outcomes[n] for n in numbers if n in outcomes])
            for category, numbers in rows.items()
        }
        done = [outcomes[number] for number in sorted(outcomes)]
        total = Counts.of(sum(map(len, rows.values())), done)
        return cls(benchmarks, total, tuple(outcome for outcome in done if outcome.is_wrong))


def results_csv(instances: Iterable[Instance], outcomes: Mapping[int, Outcome]) -> str:
    """``category,onnx,vnnlib,prepare_seconds,result,run_seconds`` in the order of the list.

    There is nothing to prepare, hence the 0. Instances that have not been run are left out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for instance in instances:
        outcome = outcomes.get(instance.number)
        if outcome is not None:
            paths = (instance.onnx_path, instance.vnnlib_path)
            writer.writerow((instance.category, *paths, 0, outcome.result, outcome.seconds))
    return text.getvalue()
