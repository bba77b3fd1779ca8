"""`onnxcert lipschitz`, `onnxcert certify` and `onnxcert gloro`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcert import certified_radius, certify
from onnxcert.continuity.certified import read_data
from onnxcert.continuity.plot import accuracy_curve
from tests.cli.conftest import Call, Files
from tests.continuity.test_bottom import classifier, grid, run
from tests.frontend.onnx_models import model_of, single


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "classifier.onnx"
    onnx.save(classifier(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = grid(5)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=run(classifier(), x=x)[0].argmax(axis=1))
    return path


@pytest.mark.parametrize("method", ["product", "recursion", "refined"])
def test_constants(call: Call, model: Path, tmp_path: Path, method: str) -> None:
    record_path = tmp_path / "constants.json"
    words = ("--method", method, "--json", record_path, "--pairs")
    ended = call("lipschitz", model, *words)
    assert (ended.code, ended.err) == (0, "")
    assert f"  method    {method}\n" in ended.out
    record = json.loads(record_path.read_text())
    assert record["method"] == method
    pairs = np.array(record["pairs"])
    assert (pairs == pairs.T).all()
    shown = [line.split() for line in ended.out.split("pair")[1].splitlines()[1:4]]
    for i, j, bound, seen in shown:
        assert float(bound) >= pairs[int(i), int(j)] >= float(seen) * (1 - 1e-4)
    assert len(record["layers"]) == 2


def test_a_domain_is_named(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "sign.onnx"
    onnx.save(single("Sign", (1, 2)), path)
    ended = call("lipschitz", path)
    assert ended.code == 3
    assert "the_node" in ended.err
    assert "--domain LOW HIGH" in ended.err
    ended = call("lipschitz", path, "--domain", "-2", "-1")
    assert ended.code == 0
    assert "for inputs in [-2, -1]" in ended.out
    assert call("lipschitz", path, "--domain", "-2e0", "-1e-3").code == 0


def test_shares(call: Call, model: Path, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    ended = call("certify", model, "--data", data, "--eps", "0.01,0.1", "--out", table)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("inputs 25, correct 100.00 %, norm 2\n")
    lines = [line.split(",") for line in table.read_text().splitlines()]
    assert lines[0] == ["index", "label", "class", "radius", "robust_0.01", "robust_0.1"]
    radius = certified_radius(onnx.load(model), grid(5))
    assert [float(line[3]) for line in lines[1:]] == radius.tolist()  # never rounded up
    assert len(lines) == 26
    robust = sum(int(line[5]) for line in lines[1:])
    assert ended.out.splitlines()[-1].split() == ["0.1", str(robust), f"{4.0 * robust:.2f}", "%"]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
@pytest.mark.parametrize("method", ["lipschitz", "backward", "union"])
def test_pictures(call: Call, model: Path, data: Path, tmp_path: Path, method: str) -> None:
    picture = tmp_path / "curve.png"
    words = ("certify", model, "--data", data, "--eps", "0.01,0.1", "--method", method)
    ended = call(*words, "--plot", picture)
    assert (ended.code, ended.err) == (0, "")
    assert ended == call(*words)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert call(*words, "--plot", tmp_path / "curve.xyz").code == 2
    assert not (tmp_path / "curve.xyz").exists()


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is here")
def test_pictures_need_the_extra(call: Call, model: Path, data: Path, tmp_path: Path) -> None:
    words = ("certify", model, "--data", data, "--eps", "0.1", "--plot", tmp_path / "curve.png")
    ended = call(*words)
    assert (ended.code, ended.out) == (2, "")
    assert "onnxcert[plot]" in ended.err


def test_outputs_are_no_inputs(call: Call, model: Path, data: Path) -> None:
    kept = data.read_bytes()
    for option in ("--out", "--plot"):
        ended = call("certify", model, "--data", data, "--eps", "0.1", option, data)
        assert ended.code == 2
        assert "overwrite an input" in ended.err
    assert data.read_bytes() == kept


def test_outputs_are_neither_models_nor_other_outputs(
    call: Call, model: Path, data: Path, tmp_path: Path
) -> None:
    kept, out = model.read_bytes(), tmp_path / "out.png"
    for words in (
        ("lipschitz", model, "--json", model),
        ("lipschitz", model, "--certificate", model),
        ("lipschitz", model, "--certificate", out, "--json", out),
        ("gloro", model, "--eps", "0.1", "-o", model),
        ("certify", model, "--data", data, "--eps", "0.1", "--out", out, "--plot", out),
    ):
        ended = call(*words)
        assert (ended.code, ended.out) == (2, "")
        assert "overwrite an input or another output" in ended.err
    assert model.read_bytes() == kept
    assert not out.exists()


def test_the_curve_is_what_is_certified(model: Path, data: Path) -> None:
    """At every radius the share is that of certify, and it never rises."""
    x, labels = read_data(data)
    radii = np.array([0.0, 0.02, 0.05, 0.1, 0.2])
    done = certify(model, x, labels, eps=radii.tolist(), method="lipschitz")
    places, shares = accuracy_curve(done)
    assert places[0] == 0.0
    assert places[-1] == 0.25
    assert (np.diff(places) > 0.0).all()
    assert (np.diff(shares) <= 0.0).all()
    steps = np.searchsorted(places, radii, side="right") - 1
    assert shares[steps].tolist() == done.certified.tolist()


def test_models_are_written(call: Call, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "robust.onnx"
    ended = call("gloro", model, "--eps", "0.05", "-o", path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"wrote {path}\n")
    logits, certified, _ = run(onnx.load(path), x=grid(5))
    assert logits.shape == (25, 4)
    assert certified.any()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("lipschitz",), 2),
        (("lipschitz", "absent.onnx"), 3),
        (("lipschitz", "MODEL", "--domain", "1", "0"), 2),
        (("lipschitz", "MODEL", "--json", "/absent/file"), 2),
        (("gloro", "MODEL", "-o", "x.onnx"), 2),
        (("gloro", "MODEL", "--eps", "-1", "-o", "x.onnx"), 2),
        (("gloro", "MODEL", "--eps", "1", "-o", "/absent/x.onnx"), 2),
        (("certify", "MODEL", "--data", "absent.npz", "--eps", "1"), 3),
        (("certify", "MODEL", "--data", "MODEL", "--eps", "1"), 3),
        (("certify", "MODEL", "--data", "DATA", "--eps", "1,x"), 2),
    ],
)
def test_bad_calls_end_in_three_lines(
    call: Call, model: Path, data: Path, words: tuple[str, ...], code: int
) -> None:
    places = {"MODEL": model, "DATA": data}
    ended = call(*(places.get(word, word) for word in words))
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert not list(model.parent.glob("x.onnx"))


def test_models_of_other_commands_work(call: Call, files: Files) -> None:
    assert call("lipschitz", files.model).code == 0


@pytest.mark.parametrize("method", ["product", "recursion", "refined"])
@pytest.mark.parametrize("norm", ["2", "inf", "1"])
def test_constants_are_certified(
    call: Call, model: Path, tmp_path: Path, method: str, norm: str
) -> None:
    proof, record_path = tmp_path / "proof.onnxcert", tmp_path / "constants.json"
    words = ("--method", method, "--norm", norm, "--json", record_path)
    assert call("lipschitz", model, *words).code == 0
    plain = json.loads(record_path.read_text())
    assert plain["proof"] is None
    ended = call("lipschitz", model, *words, "--certificate", proof)
    assert (ended.code, ended.err) == (0, "")
    assert f"  proof     accepted by the checker, {proof}\n" in ended.out
    record = json.loads(record_path.read_text())
    assert record["proof"]["path"] == str(proof)
    assert (np.array(record["outputs"]) >= np.array(plain["outputs"])).all()
    assert (np.array(record["pairs"]) >= np.array(plain["pairs"])).all()
    if norm != "inf":
        # Pairs may be best at different stages of a descent; one stage is certified.
        limit = 1e-2 if method == "refined" else 1e-6
        assert np.allclose(record["pairs"], plain["pairs"], rtol=limit)
    ended = call("check", proof, "--model", model)
    assert (ended.code, ended.err) == (0, "")
    line = f"VERIFIED LIPSCHITZ (real, norm {norm}, for all inputs, outputs up to "
    assert ended.out.startswith(line)
    command = [sys.executable, "-m", "onnxcert.checker", str(proof), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ended.out


def test_certificates_need_the_right_files(call: Call, model: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof.onnxcert"
    words = ("lipschitz", model, "--domain", "0", "1", "--certificate")
    assert call(*words, proof).code == 0
    assert "for inputs in [0.0, 1.0]" in call("check", proof, "--model", model).out
    spec = tmp_path / "any.vnnlib"
    spec.write_text("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 Y_0))")
    ended = call("check", proof, "--model", model, "--spec", spec)
    assert (ended.code, ended.out) == (2, "")
    other = tmp_path / "other.onnx"
    onnx.save(single("Relu", (1, 2)), other)
    ended = call("check", proof, "--model", other)
    assert (ended.code, ended.out[:12]) == (1, "REJECTED: R0")
    ended = call(*words, tmp_path)
    assert ended.code == 2


def test_what_cannot_be_certified_is_refused(call: Call, tmp_path: Path) -> None:
    path, proof = tmp_path / "wide.onnx", tmp_path / "proof.onnxcert"
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["h"]),
        onnx.helper.make_node("ReduceSum", ["h"], ["y"], keepdims=0),
    ]
    onnx.save(model_of(nodes, {"x": (1, 6000)}, ["y"]), path)
    ended = call("lipschitz", path, "--method", "product", "--certificate", proof)
    assert (ended.code, ended.out) == (3, "")
    assert "would have 12000 rows" in ended.err
    assert not proof.exists()
    assert call("lipschitz", path, "--method", "product").code == 0
