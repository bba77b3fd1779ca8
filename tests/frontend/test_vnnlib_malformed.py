"""Broken files: each is refused, at the right place, in words that help."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcert.errors import SpecError, UnsupportedSpec
from onnxcert.frontend import typecheck, vnnlib
from onnxcert.frontend.vnnlib import parse_query, read_query
from tests.frontend.queries import box_texts

FOLDER = Path(__file__).parent / "malformed"
MESSAGES = tomllib.loads((FOLDER / "messages.toml").read_text("utf-8"))
UNSUPPORTED = {"v2_initialized", "v2_string_type", "v2_version_1", "v2_version_3"}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.vnnlib")))
def test_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The words of the reference parser depend on its version.
    monkeypatch.setattr(vnnlib, "typecheck", lambda text: None)
    monkeypatch.chdir(FOLDER)
    with pytest.raises(SpecError) as caught:
        read_query(f"{name}.vnnlib")
    assert str(caught.value) == MESSAGES[name].strip()
    assert isinstance(caught.value, UnsupportedSpec) == (name in UNSUPPORTED)


def test_every_message_has_its_file() -> None:
    assert set(MESSAGES) == {path.stem for path in FOLDER.glob("*.vnnlib")}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.vnnlib")))
def test_scanner_does_not_change_the_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vnnlib, "typecheck", lambda text: None)
    text = (FOLDER / f"{name}.vnnlib").read_bytes()
    said = []
    for fast in (True, False):
        with pytest.raises(SpecError) as caught:
            parse_query(text, fast=fast)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_the_reference_parser_is_quoted() -> None:
    text = (FOLDER / "v2_index_out_of_range.vnnlib").read_bytes()
    with pytest.raises(SpecError) as caught:
        parse_query(text)
    assert "indices count from 0; the reference parser says: line 7:" in caught.value.help


def test_the_reference_parser_is_not_asked_about_too_much() -> None:
    header = "(vnnlib-version <2.0>)(declare-network N (declare-input X real [1])"
    header += "(declare-output Y real [1]))"
    assert typecheck.typecheck((header + "(assert (<= Z[0] 1.0))").encode()) is not None
    deep = header + "(assert " + "(and " * 200_000 + "(<= Z[0] 1.0)" + ")" * 200_001
    large = header + "(assert (<= Z[0] 1.0))" + " " * typecheck.LARGEST_CHECKED
    for text in (deep, large):
        assert typecheck.typecheck(text.encode()) is None
        with pytest.raises(SpecError, match="'Z' is not declared"):
            parse_query(text)


@given(box_texts(), st.data())
def test_a_damaged_file_is_read_or_refused(text: str, data: st.DataObject) -> None:
    """Cutting out, doubling or exchanging a piece never ends in anything but a SpecError."""
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 20)))
    piece = data.draw(st.sampled_from(["", text[start:stop] * 2, "(", ")", "[", '"', "\x00", "é"]))
    damaged = text[:start] + piece + text[stop:]
    outcomes = []
    for fast in (True, False):
        try:
            query = parse_query(damaged, fast=fast)
        except SpecError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(repr([tensor.size for tensor in query.tensors]))
    assert outcomes[0] == outcomes[1]
