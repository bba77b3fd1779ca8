"""How long does it take to start? Whole processes, by turns, so that both see the same machine.

::

    python benchmarks/start_up.py [ROUNDS]

Prints the median seconds of ``onnxcert --version`` and of importing NumPy, and their ratio (the aim
is below two), then of a complete verification of the bundled model.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

MODELS = Path(__file__).resolve().parent / "models"
VERSION = "onnxcert --version"
IMPORT = "import numpy"
COMMANDS = {
    VERSION: [sys.executable, "-m", "onnxcert", "--version"],
    IMPORT: [sys.executable, "-c", "import numpy"],
    "verify digits_robust": [
        *[sys.executable, "-m", "onnxcert"],
        *[str(MODELS / "digits.onnx"), str(MODELS / "digits_robust.vnnlib")],
    ],
}


def seconds(command: list[str]) -> float:
    """Wall seconds of one run of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Run all commands by turns and print the medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    medians = {name: median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{value:8.3f} s  {name}")
    print(f"{medians[VERSION] / medians[IMPORT]:8.2f}    {VERSION} / {IMPORT}")


if __name__ == "__main__":
    main()
