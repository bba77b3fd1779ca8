"""`onnxcert inspect` and `onnxcert bounds`."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from onnxcert.cli.table import table
from tests.cli.conftest import Call, Files


def test_inspect_describes_the_model(call: Call, files: Files) -> None:
    ended = call("inspect", files.model)
    assert (ended.code, ended.err) == (0, "")
    assert (
        ended.out
        == f"""model {files.model}
  sha256      {sha256(files.model.read_bytes()).hexdigest()}
  written by  an unnamed exporter, operator set 17
  inputs      X float32 [1,2]
  outputs     Y float32 [1,2]
  parameters  8
  layers      3, unsupported 0

layer  operator  shape  parameters  node
    0  Gemm      [1,2]           4  gemm0
    1  Relu      [1,2]              relu1
    2  Gemm      [1,2]           4  gemm1
"""
    )


@pytest.mark.parametrize("words", [("model", "sat", "-v"), ("model", "-v", "sat")])
def test_inspect_describes_the_specification(
    call: Call, files: Files, words: tuple[str, ...]
) -> None:
    ended = call("inspect", *(getattr(files, word, word) for word in words))
    assert ended.code == 0
    assert f"\nspecification {files.sat}\n" in ended.out
    assert "VNN-LIB 1.0" in ended.out


@pytest.mark.parametrize("method", ["interval", "backward"])
def test_bounds(call: Call, files: Files, tmp_path: Path, method: str) -> None:
    path = tmp_path / "bounds.json"
    ended = call("bounds", files.model, files.unsat, "--method", method, "--json", path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("output ")
    assert "impossible" in ended.out
    record = json.loads(path.read_text())
    assert (record["schema"], record["method"]) == (2, method)
    assert record["layers"] == []
    for lower, upper in record["outputs"]:
        assert lower == pytest.approx(0.0, abs=1e-6)
        assert upper == pytest.approx(1.0, abs=1e-6)
        assert lower <= 0.0
        assert upper >= 1.0
    (disjunct,) = record["bounds"]
    assert disjunct["lower"] == pytest.approx(4.0, abs=1e-6)
    assert disjunct["lower"] <= 4.0


def test_bounds_of_layers(call: Call, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "bounds.json"
    ended = call("bounds", files.model, files.sat, "--layers", "--json", path)
    assert "relu1" in ended.out
    assert "open" in ended.out
    layers = json.loads(path.read_text())["layers"]
    assert {len(layer["lower"]) for layer in layers} == {2}
    assert "relu1" in {layer["layer"] for layer in layers}


def test_bounds_checks_its_output_first(call: Call, files: Files, tmp_path: Path) -> None:
    ended = call("bounds", files.folder / "missing", files.sat, "--json", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"error: the output file is a folder\n  --> {tmp_path}\n"


def test_table_aligns_columns() -> None:
    text = table(("name", "n"), [("a", "10"), ("long name", "5")], right=("n",))
    assert text == "name        n\na          10\nlong name   5\n"
