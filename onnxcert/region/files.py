"""Files of boxes: arrays that are read, and what ``onnxcert region --out`` keeps of each box."""

from __future__ import annotations

import io
import os
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcert.errors import InputError, UsageError
from onnxcert.files import make_folder, write_file

if TYPE_CHECKING:
    from onnxcert.region.regions import Region

_NAMES = ("region.onnxcert", "region.vnnlib", "widths.npy", "witnesses.npz")


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """An array of numbers, of any shape, from a ``.npy`` file; never a pickle or an archive.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    place = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise InputError(
            f"the file cannot be read: {error.strerror or error}", place=place
        ) from error
    # A broken header may also be no Python, or promise more numbers than there is memory.
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError, MemoryError) as error:
        raise InputError("the file is no array in NumPy's format", place=place) from error
    if array.dtype.kind not in "fiub":
        raise InputError("the file holds no array of numbers", place=place)
    return array


def write_region(folder: Path, region: Region) -> None:
    """The files of one box, in the place of those of an older one; none where there is no box.

    Raises:
        UsageError: they cannot be written.
    """
    files: dict[str, str | bytes] = {}
    if region.found:
        files["widths.npy"] = _saved(np.save, region.widths)
        files["region.vnnlib"] = region.to_vnnlib()
    if region.certificate:
        files["region.onnxcert"] = region.certificate
    if region.witnesses:
        files["witnesses.npz"] = _saved(np.savez, **_columns(region))
    # The old ones first: at no moment lies a certificate beside a file that it does not prove.
    _remove(folder)
    if files:
        make_folder(folder)
    for name, content in files.items():
        write_file(folder / name, content)


def _columns(region: Region) -> dict[str, Any]:
    """The witnesses of a box, one array for each attribute."""
    return {
        name: np.array([getattr(found, name) for found in region.witnesses])
        for name in ("input", "upper", "distance", "point")
    }


def _saved(save: Any, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def _remove(folder: Path) -> None:
    for name in _NAMES:
        path = folder / name
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            return  # `make_folder` says what is wrong
        except OSError as error:
            raise UsageError(
                f"an older file cannot be replaced: {error.strerror}", place=os.fspath(path)
            ) from error
