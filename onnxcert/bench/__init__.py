"""Running many instances: each in its own process, with results that survive whatever happens.

::

    instances.csv -> instances -> runner -> worker -> launch -> `python -m onnxcert ...`
                                    |          one process per instance, killed at its limit
                                    v
                     journal.jsonl (a line per instance, synced) -> results.csv, summary.json

The journal is the truth, and everything else is made from it: a run that was killed continues from
there. Processes rather than a pool of workers, because an instance may exhaust the memory or crash
a library, and because that is how competitions measure.
"""

from onnxcert.bench.instances import Instance, read_instances
from onnxcert.bench.journal import Outcome
from onnxcert.bench.runner import Options, State, run_benchmark
from onnxcert.bench.summary import Summary

__all__ = [
    "Instance",
    "Options",
    "Outcome",
    "State",
    "Summary",
    "read_instances",
    "run_benchmark",
]
