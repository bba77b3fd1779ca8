"""`onnxcert region`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from onnxcert import UsageError
from onnxcert.region import prove
from onnxcert.region.plot import draw, image_shape
from onnxcert.verdict import Reason, Result, Unknown
from tests.cli.conftest import Call, Files
from tests.region.models import DIGITS, digit


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The digit, one that is not finite, and a brighter one that leaves the domain."""
    path = tmp_path / "images.npy"
    first = digit()
    np.save(path, np.stack([first, np.full(64, np.nan), first + 2.0]).reshape(3, 8, 8))
    return path


def test_boxes_and_their_files(call: Call, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = call("region", DIGITS, "--input", images, "--all", "--domain", "0", "1", "--out", out)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split()[:3] == ["input", "label", "status"]
    assert [line.split()[1 if k else 2] for k, line in enumerate(lines[1:])] == [
        "certified",
        "not-finite",
        "outside",
    ]
    assert "input 1: the input holds NaN or infinity" in ended.err
    folder = out / "0"
    assert sorted(path.name for path in folder.iterdir()) == [
        "region.onnxcert",
        "region.vnnlib",
        "widths.npy",
    ]
    assert not (out / "1").exists()
    widths = np.load(folder / "widths.npy")
    assert widths.shape == (2, 64)
    record = json.loads((out / "regions.json").read_text())
    entries = record["regions"]
    assert [entry["status"] for entry in entries] == ["certified", "not-finite", "outside"]
    np.testing.assert_array_equal(np.array(entries[0]["upper"]) - digit(), widths[1])
    assert entries[0]["gain"] > 1.3
    answer = call(DIGITS, folder / "region.vnnlib")
    assert (answer.code, answer.out) == (0, "unsat\n")
    checked = call(
        "check", folder / "region.onnxcert", "--model", DIGITS, "--spec", folder / "region.vnnlib"
    )
    assert (checked.code, checked.out) == (0, "VERIFIED UNSAT (real)\n")
    alike = call("region", "--similarity", out)
    assert alike.code == 0
    assert alike.out.splitlines()[-1] == "mean over all pairs: 1.000000"


def test_many_inputs_without_a_box_share_a_line(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "nothing.npy"
    np.save(path, np.full((10, 64), np.nan))
    ended = call("region", DIGITS, "--input", path, "--all")
    assert ended.code == 0
    reason = "the input holds NaN or infinity"
    assert ended.err == f"inputs 0, 1, 2, 3, 4, 5, 6, 7 and 2 more: {reason}\n"


def test_one_of_several_inputs(call: Call, images: Path) -> None:
    ended = call("region", DIGITS, "--input", images, "--index", "2,1", "-q")
    assert ended.code == 0
    first, second = (line.split() for line in ended.out.splitlines()[1:])
    assert first == ["1", "not-finite"]
    assert (second[0], second[2]) == ("2", "certified")


def test_label_of_another_class(call: Call, images: Path) -> None:
    ended = call("region", DIGITS, "--input", images, "--label", "99")
    assert ended.code == 0
    assert "no-such-label" in ended.out
    ended = call("region", DIGITS, "--input", images, "--label", "0")
    assert "misclassified" in ended.out


def test_files_of_options(call: Call, images: Path, tmp_path: Path) -> None:
    domain, frozen, weights = (tmp_path / name for name in ("d.npy", "f.npy", "w.npy"))
    np.save(domain, np.stack([np.zeros(64), np.ones(64)]))
    np.save(frozen, np.arange(64) < 60)
    np.save(weights, np.ones(64))
    out = tmp_path / "out"
    words = ["--domain", domain, "--freeze", frozen, "--weights", weights, "--out", out]
    ended = call("region", DIGITS, "--input", images, *words)
    assert ended.code == 0
    widths = np.load(out / "0" / "widths.npy")
    assert (widths[:, :60] == 0).all()
    assert (widths[:, 60:].sum(axis=0) > 0).all()


SAME = ("--out", "EMPTY", "--plot", "EMPTY/regions.json")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "a model and --input are needed"),
        (["MODEL"], 2, "a model and --input are needed"),
        (["MODEL", "--input", "MISSING"], 3, "cannot be read"),
        (["MODEL", "--input", "MODEL"], 3, "no array in NumPy's format"),
        (["MODEL", "--input", "IMAGES", "--index", "7"], 2, "no input 7 among 3"),
        (["MODEL", "--input", "IMAGES", "--index", "a"], 2, "not a whole number"),
        (["MODEL", "--input", "IMAGES", "--index", "0", "--all"], 2, "not allowed with"),
        (["MODEL", "--input", "IMAGES", "--domain", "0", "x"], 2, "two numbers or one file"),
        (["MODEL", "--input", "IMAGES", "--domain", "0", "1", "2"], 2, "two numbers or one file"),
        (["MODEL", "--input", "IMAGES", "--domain", "1", "0"], 2, "empty"),
        (["MODEL", "--input", "IMAGES", "--domain", "1", "-1e-3"], 2, "empty"),
        (["--input", "IMAGES", "--domain", "0", "1", "MODEL"], 2, "MODEL comes before --domain"),
        (["MODEL", "--input", "IMAGES", "--plot", "MODEL"], 2, "would overwrite an input"),
        (["MODEL", "--input", "IMAGES", *SAME], 2, "would overwrite an input or another output"),
        (["MODEL", "--input", "IMAGES", "--margin", "-1"], 2, "from 0"),
        (["MODEL", "--input", "IMAGES", "--symmetric", "--grow", "1"], 2, "free widths grow"),
        (["MODEL", "--input", "IMAGES", "--freeze", "IMAGES"], 2, "192 numbers for 64 inputs"),
        (["MODEL", "--input", "IMAGES", "--out", "MODEL"], 2, "cannot be made"),
        (["IMAGES", "--input", "IMAGES"], 3, ""),
        (["--similarity", "EMPTY"], 3, "no boxes in the folder"),
    ],
)
def test_calls_that_fail(
    call: Call, images: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    places = {
        "MODEL": str(DIGITS),
        "IMAGES": str(images),
        "MISSING": str(tmp_path / "missing.npy"),
        "EMPTY": str(tmp_path),
        "EMPTY/regions.json": str(tmp_path / "regions.json"),
    }
    ended = call("region", *(places.get(word, word) for word in words))
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert message in ended.err


@pytest.mark.parametrize("word", ["-1e-2", "-inf", "-.01", "-0.01"])
def test_domains_below_zero(call: Call, images: Path, tmp_path: Path, word: str) -> None:
    out = tmp_path / "out"
    ended = call("region", DIGITS, "--input", images, "--domain", word, "1", "--out", out)
    assert ended.code == 0
    assert "certified" in ended.out
    assert json.loads((out / "regions.json").read_text())["options"]["domain"] == [word, "1"]


def header(text: bytes) -> bytes:
    """The beginning of a .npy file, and nothing after it."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 no archive",
        header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (4,"),
        header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}"),
    ],
    ids=["empty", "archive", "header", "memory"],
)
def test_broken_arrays_are_refused(call: Call, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0" / "widths.npy"
    path.parent.mkdir()
    path.write_bytes(content)
    ended = call("region", DIGITS, "--input", path)
    assert (ended.code, ended.out) == (3, "")
    assert "no array in NumPy's format" in ended.err
    ended = call("region", "--similarity", tmp_path)
    assert (ended.code, ended.out) == (3, "")


def test_no_file_of_an_older_box_stays(call: Call, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["region", DIGITS, "--input", images, "--out", out]
    assert call(*words).code == 0
    (out / "0" / "witnesses.npz").write_bytes(b"of a box that had grown")
    assert call(*words, "--norm", "2").code == 0
    assert not (out / "0" / "witnesses.npz").exists()
    assert call(*words, "--label", "0").code == 0
    assert list((out / "0").iterdir()) == []


def test_a_box_without_free_inputs_has_no_width(call: Call, images: Path, tmp_path: Path) -> None:
    frozen = tmp_path / "frozen.npy"
    np.save(frozen, np.ones(64))
    ended = call("region", DIGITS, "--input", images, "--freeze", frozen)
    assert ended.code == 0
    assert "certified" in ended.out
    assert "nan" not in ended.out


def test_pickles_are_refused(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "pickled.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    ended = call("region", DIGITS, "--input", path)
    assert (ended.code, ended.out) == (3, "")


def test_condition_of_a_file(call: Call, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([0.25, 0.25]))
    ended = call("region", files.model, "--input", path, "--spec", files.unsat)
    assert ended.code == 0
    assert "certified" in ended.out
    ended = call("region", files.model, "--input", path, "--spec", files.unsat, "--label", "0")
    assert ended.code == 2


def test_an_interrupt_keeps_what_was_found(
    call: Call, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[object] = []

    def verify(*arguments: object, **options: object) -> Result:
        answers.append(arguments)
        if len(answers) > 1:
            return Result(Unknown(Reason.INTERRUPTED), None)
        return real(*arguments, **options)  # type: ignore[arg-type]

    real = prove.verify
    monkeypatch.setattr(prove, "verify", verify)
    path = tmp_path / "twice.npy"
    np.save(path, np.stack([digit(), digit()]))
    out = tmp_path / "out"
    ended = call("region", DIGITS, "--input", path, "--all", "--domain", "0", "1", "--out", out)
    assert ended.code == 130
    assert "interrupted" in ended.err
    assert len(ended.out.splitlines()) == 2
    record = json.loads((out / "regions.json").read_text())
    assert [entry["status"] for entry in record["regions"]] == ["certified"]


@pytest.mark.parametrize("domain", [(), ("--domain", "0", "1")])
def test_ellipsoids_have_an_instance(
    call: Call, images: Path, tmp_path: Path, domain: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    ended = call("region", DIGITS, "--input", images, "--norm", "2", *domain, "--out", out)
    assert ended.code == 0
    assert "certified" in ended.out
    found = [path.name for path in sorted((out / "0").iterdir())]
    assert found == ["region.onnxcert", "region.vnnlib", "widths.npy"]
    spec = out / "0" / "region.vnnlib"
    assert call(DIGITS, spec).out == "unsat\n"
    proof = out / "0" / "region.onnxcert"
    assert call("check", proof, "--model", DIGITS, "--spec", spec).out == "VERIFIED UNSAT (real)\n"


def test_which_inputs_are_images() -> None:
    assert image_shape((1, 3, 32, 32), 3072) == (3, 32, 32)
    assert image_shape((1, 784), 784) == (1, 28, 28)
    assert image_shape((28, 28), 784) == (1, 28, 28)
    assert image_shape((1, 5), 5) is None
    assert image_shape((1, 4), 4) is None
    assert image_shape((1, 1, 4, 4), 20) is None  # one of two inputs


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
@pytest.mark.parametrize("size", [64, 3])
def test_pictures(size: int, tmp_path: Path) -> None:
    for name in ("widths.png", "widths"):
        path = tmp_path / name
        draw(path, {k: np.full((2, size), 0.1 + k) for k in range(3)}, (1, size))
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="cannot be 'xyz'"):
        draw(tmp_path / "widths.xyz", {0: np.ones((2, size))}, (1, size))


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is here")
def test_pictures_need_the_extra(call: Call, images: Path, tmp_path: Path) -> None:
    ended = call("region", DIGITS, "--input", images, "--plot", tmp_path / "widths.png")
    assert (ended.code, ended.out) == (2, "")
    assert "onnxcert[plot]" in ended.err
