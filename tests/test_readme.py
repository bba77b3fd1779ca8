"""What README promises is run: its commands, its Python, its list of operators."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxcert
from onnxcert.cli import COMMANDS
from onnxcert.errors import InputError, OnnxcertError, UsageError
from onnxcert.frontend.onnx import supported_operators

BEGIN = "<!-- operators: checked by tests/test_readme.py -->\n"
END = "<!-- end of operators -->"


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for word, body in fenced if word == language]


def operator_block() -> str:
    """The block of README between the two comments; run this file to print it."""
    entries = [
        f"{name} ({note})" if note else name for name, (_, note) in supported_operators().items()
    ]
    lines = [""]
    for entry in entries:
        item = f"{entry}{'.' if entry == entries[-1] else ','}"
        fits = len(lines[-1]) + len(item) < 100
        lines[-1:] = [f"{lines[-1]} {item}".strip()] if fits else [lines[-1], item]
    return "\n".join(lines) + "\n"


def run(
    command: str, repository: Path, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command line of README with this interpreter in place of the installed program."""
    words = command.split()
    assert words[0] == "onnxcert"
    return python(["-m", *words], repository, folder or repository)


def python(
    arguments: list[str], repository: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder with the package of the repository."""
    environment = os.environ | {"PYTHONPATH": str(repository)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment,
    )


def test_two_command_start(readme: str, repository: Path) -> None:
    install, verify = blocks(readme, "console")[0].splitlines()
    assert install == "pip install ."
    assert run(verify, repository).stdout == "unsat\n"


def test_broken_property_has_a_witness(repository: Path) -> None:
    folder = "benchmarks/models"
    done = run(f"onnxcert {folder}/digits.onnx {folder}/digits_broken.vnnlib", repository)
    assert done.stdout.startswith("sat\n((X_0 ")


def test_test_command_is_the_one_of_ci(readme: str, repository: Path) -> None:
    assert blocks(readme, "console")[1] == "pip install -e '.[test]' && pytest\n"
    script = (repository / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^\s*pytest$", script, re.MULTILINE)


def test_python_examples(readme: str, repository: Path, tmp_path: Path) -> None:
    checking, boxing, verifying = blocks(readme, "python")
    (tmp_path / "benchmarks").symlink_to(repository / "benchmarks")
    done = python(["-W", "error", "-c", verifying], repository, tmp_path)
    assert done.stdout.startswith("holds; smallest margin proved: ")
    done = python(["-W", "error", "-c", checking], repository, tmp_path)
    answer, line = done.stdout.splitlines()
    assert re.fullmatch(r"unsat real [1-9]\d* [1-9]\d*", answer)
    assert line.startswith("VERIFIED UNSAT (real)")
    done = python(["-W", "error", "-c", boxing], repository, tmp_path)
    assert done.stdout == "certified 2 (64,) True\n"


def test_certificate_commands(readme: str, repository: Path, tmp_path: Path) -> None:
    enter, verify, check = blocks(readme, "console")[2].splitlines()
    folder = shutil.copytree(repository / enter.removeprefix("cd "), tmp_path / "models")
    assert run(verify, repository, folder).stdout == "unsat\n"
    assert run(check, repository, folder).stdout == "VERIFIED UNSAT (real)\n"


def test_region_commands(readme: str, repository: Path, tmp_path: Path) -> None:
    enter, search, verify, check = blocks(readme, "console")[3].splitlines()
    folder = shutil.copytree(repository / enter.removeprefix("cd "), tmp_path / "models")
    lines = run(search, repository, folder).stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["input", "label", "status"],
        ["0", "2", "certified"],
    ]
    assert run(verify, repository, folder).stdout == "unsat\n"
    assert run(check, repository, folder).stdout == "VERIFIED UNSAT (real)\n"


def test_ball_commands(readme: str, repository: Path, tmp_path: Path) -> None:
    enter, verify, check = blocks(readme, "console")[4].splitlines()
    folder = shutil.copytree(repository / enter.removeprefix("cd "), tmp_path / "models")
    assert run(verify, repository, folder).stdout == "unsat\n"
    assert run(check, repository, folder).stdout == "VERIFIED UNSAT (real)\n"


def test_global_bound_commands(readme: str, repository: Path, tmp_path: Path) -> None:
    enter, constants, extend = blocks(readme, "console")[5].splitlines()
    folder = shutil.copytree(repository / enter.removeprefix("cd "), tmp_path / "models")
    assert run(constants, repository, folder).stdout.startswith("model digits.onnx\n")
    assert run(extend, repository, folder).stdout.startswith("wrote robust.onnx\n")
    assert (folder / "robust.onnx").is_file()


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "matplotlib")),
    reason="no PyTorch or no matplotlib",
)
def test_training_commands(readme: str, repository: Path, tmp_path: Path) -> None:
    """On images of our own, of two classes."""
    train, certify = blocks(readme, "console")[5].splitlines()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=64)
    x = rng.uniform(size=(64, 1, 4, 4)).astype(np.float32) * 0.2
    x[labels == 1, :, :2] += 0.7
    for name in ("train.npz", "test.npz"):
        np.savez(tmp_path / name, x=x, y=labels)
    assert run(train, repository, tmp_path).stdout.startswith("inputs 64, correct ")
    assert len(run(certify, repository, tmp_path).stdout.splitlines()) == 7
    assert (tmp_path / "mnist.png").is_file()


def test_names_of_the_api_exist(readme: str) -> None:
    names = set(re.findall(r"\bonnxcert\.([a-zA-Z_]\w*)", readme)) - {"onnx", "checker"}
    assert names <= set(onnxcert.__all__)


def test_commands_exist(readme: str) -> None:
    shown = set(re.findall(r"^onnxcert ([a-z]+) ", blocks(readme, "")[0], re.MULTILINE))
    assert shown == set(COMMANDS)


def test_options_exist(readme: str, repository: Path) -> None:
    option = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    forms = (*COMMANDS, "MODEL")
    pages = [run(f"onnxcert {form} --help", repository).stdout for form in forms]
    assert set(option.findall(blocks(readme, "")[0])) <= set(option.findall("".join(pages)))


def test_operators_are_those_of_the_registry(readme: str) -> None:
    shown = readme.partition(BEGIN)[2].partition(END)[0]
    assert shown == operator_block()


@pytest.mark.parametrize(("error", "code"), [(UsageError, 2), (InputError, 3), (OnnxcertError, 4)])
def test_exit_codes(readme: str, error: type[OnnxcertError], code: int) -> None:
    assert error.exit_code == code
    assert re.search(rf"^\| {code} \| ", readme, re.MULTILINE)


def test_links_lead_somewhere(readme: str, repository: Path) -> None:
    headings = re.findall(r"^#+ (.*)$", readme, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        path, hash_sign, anchor = target.partition("#")
        assert (repository / path).exists(), target
        assert not hash_sign or anchor in anchors, target


def test_version_has_an_entry_in_the_changelog(repository: Path) -> None:
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{onnxcert.__version__}]" in text


if __name__ == "__main__":
    sys.stdout.write(operator_block())
