"""Multipliers kept on disk: the same bounds, whatever lies there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from onnxcert import certify, lipschitz, with_bottom_logit
from onnxcert.continuity import cache as module
from onnxcert.continuity.bound import LipschitzBound
from onnxcert.continuity.cache import Store, default_folder
from tests.cli import samples
from tests.cli.samples import dense_model

SIZES = (3, 12, 10, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(4)
    layers = [rng.normal(size=pair) for pair in pairwise(SIZES)]
    return dense_model(layers, tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture(scope="module")
def fresh(model: Path) -> LipschitzBound:
    return lipschitz(model, method="refined")


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.multipliers"))


def assert_same(found: LipschitzBound, expected: LipschitzBound) -> None:
    assert np.array_equal(found.outputs, expected.outputs)
    assert np.array_equal(found.pairs, expected.pairs)
    for name, values in expected.multipliers.items():
        assert np.array_equal(found.multipliers[name], values)


def no_descent(*arguments: object) -> None:
    raise AssertionError(f"a descent begins: {arguments}")


def test_the_second_run_needs_no_descent(
    model: Path, fresh: LipschitzBound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "not" / "there"
    assert_same(lipschitz(model, method="refined", cache=folder), fresh)
    (path,) = kept(folder)
    monkeypatch.setattr(module, "refined", no_descent)
    assert_same(lipschitz(model, method="refined", cache=folder), fresh)
    assert kept(folder) == [path]
    for method in ("product", "recursion"):
        lipschitz(model, method=method, cache=folder)
    assert kept(folder) == [path]
    with pytest.raises(AssertionError, match="a descent"):
        lipschitz(model, method="refined", norm="inf", cache=folder)
    with pytest.raises(AssertionError, match="a descent"):  # other slopes
        lipschitz(model, method="refined", domain=(2.0, 2.5), cache=folder)


def flipped(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda data: data[:-8],
        lambda data: data + bytes(8),
        lambda data: hashlib.sha256(bytes(10**6)).digest() + bytes(10**6),
        lambda data: data[:32],
        lambda data: b"",
        lambda data: b"multipliers\n" * 100,
        lambda data: hashlib.sha256(b"").digest(),
        lambda data: hashlib.sha256(data[32:-8]).digest() + data[32:-8],
    ],
)
def test_damaged_files_change_nothing(
    model: Path, fresh: LipschitzBound, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    lipschitz(model, method="refined", cache=tmp_path)
    (path,) = kept(tmp_path)
    written = path.read_bytes()
    path.write_bytes(damage(written))
    assert_same(lipschitz(model, method="refined", cache=tmp_path), fresh)
    assert path.read_bytes() == written


@pytest.mark.parametrize("norm", ["2", "inf"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 1e3, 1e300, np.inf, np.nan])
def test_forged_files_make_no_bound_wrong(
    model: Path, tmp_path: Path, norm: str, scale: float
) -> None:
    """Any numbers with a right digest: each bound is one, if not a good one."""
    fresh = lipschitz(model, method="refined", norm=norm, cache=tmp_path)
    (path,) = kept(tmp_path)
    count = (path.stat().st_size - 32) // 8
    rng = np.random.default_rng(1)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = (scale * rng.normal(size=count)).astype("<f8")
    body = rows.tobytes()
    path.write_bytes(hashlib.sha256(body).digest() + body)
    found = lipschitz(model, method="refined", norm=norm, cache=tmp_path)
    assert (found.pairs >= found.seen_pairs).all()
    assert (found.pairs <= lipschitz(model, method="recursion", norm=norm).pairs).all()
    assert (found.pairs >= fresh.seen_pairs).all()


def test_no_place_is_no_obstacle(model: Path, fresh: LipschitzBound, tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("not a folder")
    assert_same(lipschitz(model, method="refined", cache=taken), fresh)
    assert taken.read_text() == "not a folder"
    assert_same(lipschitz(model, method="refined", cache=tmp_path), fresh)
    (path,) = kept(tmp_path)
    path.unlink()
    path.mkdir()
    assert_same(lipschitz(model, method="refined", cache=tmp_path), fresh)


def test_a_descent_that_was_cut_short_is_not_kept(model: Path, tmp_path: Path) -> None:
    lipschitz(model, method="refined", cache=tmp_path, expired=lambda: True)
    assert not kept(tmp_path)


def test_only_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_FILES", 3)
    for number in range(5):
        path = tmp_path / f"{number}.multipliers"
        Store(path).write([np.full(2, float(number))])
        os.utime(path, (number, number))
    assert [path.name[0] for path in kept(tmp_path)] == ["2", "3", "4"]
    (row,) = Store(tmp_path / "4.multipliers").read(2)
    assert row.tolist() == [4.0, 4.0]
    assert Store(tmp_path / "4.multipliers").read(3) == []


def test_commands_and_functions_share_a_file(model: Path, tmp_path: Path) -> None:
    """Slopes of sorted pairs and rectifiers are the same with a domain and without, mostly."""
    x = np.random.default_rng(0).uniform(size=(3, SIZES[0]))
    certify(model, x, eps=0.1, method="lipschitz", cache=tmp_path)
    with_bottom_logit(model, 0.1, domain=(-50.0, 50.0), cache=tmp_path)
    assert len(kept(tmp_path)) == 1


def test_the_command(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnxcert"
    variables = {"XDG_CACHE_HOME": str(tmp_path)}
    pages = []
    for words in (("--no-cache",), (), ()):
        ended = samples.run(
            "lipschitz", model, "--method", "refined", "--pairs", *words, **variables
        )
        assert ended.returncode == 0, ended.stderr
        assert len(kept(folder)) == (words == ())
        pages.append(ended.stdout)
    assert len(set(pages)) == 1


def test_where_files_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "onnxcert"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_folder() == tmp_path / ".cache" / "onnxcert"
