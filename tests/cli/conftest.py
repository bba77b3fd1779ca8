"""Files to run on, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxcert.cli import main
from tests.cli import samples


@dataclass(frozen=True)
class Files:
    """A model with a satisfiable, an unsatisfiable and two 2.0 specifications; a hard pair."""

    folder: Path
    model: Path
    sat: Path
    unsat: Path
    sat_2: Path
    sat_2_float: Path
    hard_model: Path
    hard_spec: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("samples")
    condition = "(assert (>= B[0,0] 0.5))"
    return Files(
        folder,
        samples.small_model(folder / "model.onnx"),
        samples.spec_1(samples.SAT, folder / "sat.vnnlib"),
        samples.spec_1(samples.UNSAT, folder / "unsat.vnnlib"),
        samples.spec_2(condition, folder / "sat2.vnnlib"),
        samples.spec_2(condition, folder / "sat2f.vnnlib", "float32"),
        samples.hard_model(folder / "hard.onnx"),
        samples.hard_spec(folder / "hard.vnnlib"),
    )


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process."""

    def run(*arguments: str | Path) -> Ended:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run
