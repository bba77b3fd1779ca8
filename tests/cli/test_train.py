"""`onnxcert train`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Call

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="no PyTorch")

WORDS = ("-q", "--net", "mlp:8", "--epochs", "6", "--batch", "16", "--learning-rate", "0.02")


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Two classes in the plane, with a strip of width 1 between them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=160)
    x = rng.uniform(size=(160, 2)).astype(np.float32)
    x[:, 0] += np.where(labels == 1, 0.5, -1.5)
    return x, labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x, y = blobs()
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y)
    return path


@needs_torch
def test_the_command(call: Call, data: Path, tmp_path: Path) -> None:
    """What is printed is what certify says of the file."""
    model = tmp_path / "model.onnx"
    ended = call("train", "--data", data, "--test", data, "--eps", "0.2", *WORDS, "-o", model)
    assert (ended.code, ended.err) == (0, "")
    again = call("certify", model, "--data", data, "--eps", "0.2", "--method", "lipschitz")
    assert (again.code, again.out) == (0, ended.out)
    assert call("lipschitz", model).code == 0
    assert call("gloro", model, "--eps", "0.2", "-o", tmp_path / "robust.onnx").code == 0
    onnx.checker.check_model(onnx.load(model))


@needs_torch
def test_a_state_is_kept(call: Call, data: Path, tmp_path: Path) -> None:
    model, state = tmp_path / "model.onnx", tmp_path / "state.npz"
    words = ("--data", data, "--eps", "0.2", *WORDS, "--state", state, "-o", model)
    first = call("train", *words)
    assert first.code == 0
    assert state.exists()
    written = model.read_bytes()
    assert call("train", *words) == first  # nothing is left to do
    assert model.read_bytes() == written
    assert call("train", *words, "--seed", "1").code == 2


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is here")
def test_training_needs_the_extra(call: Call, data: Path, tmp_path: Path) -> None:
    ended = call("train", "--data", data, "--eps", "0.2", "-o", tmp_path / "model.onnx")
    assert (ended.code, ended.out) == (2, "")
    assert "onnxcert[train]" in ended.err


def test_a_failed_run_leaves_no_file(call: Call, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    np.savez(tmp_path / "x.npz", x=blobs()[0])
    ended = call("train", "--data", tmp_path / "x.npz", "--eps", "0.2", "-o", model)
    assert ended.code == 3
    assert "no array y" in ended.err
    ended = call("train", "--data", tmp_path / "no.npz", "--eps", "0.2", "-o", model)
    assert ended.code == 3
    ended = call("train", "--data", data, "--eps", "0.2", "-o", tmp_path / "no" / "model.onnx")
    assert ended.code == 2
    ended = call("train", "--data", data, "--eps", "0.2", "--net", "5C5F", "-o", model)
    assert ended.code == 2
    assert "mlp:256,128" in ended.err
    assert not model.exists()
    ended = call("train", "--data", data, "--eps", "0.2", "-o", data)
    assert ended.code == 2
    assert "overwrite an input" in ended.err


def test_help_names_every_option(call: Call) -> None:
    ended = call("train", "--help")
    assert ended.code == 0
    for word in ("--net", "--train-eps", "--warp", "--flip", "--state", "gloro,trades,emma"):
        assert word in ended.out
