"""How alike the widths of boxes round different inputs are: a measure of feature robustness.

The mean cosine between vectors of widths (Liu, Tomioka and Cevher, 2019): if every answer rests on
the same features, the boxes have one shape. It needs no labels and no attack.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.errors import InputError
from onnxcert.region.files import read_array


def similarity(widths: Sequence[FloatArray]) -> tuple[FloatArray, float]:
    """Cosines of all pairs (N, N), and their mean over different ones (1.0 for a single vector).

    Args:
        widths: N vectors of one length, not zero.

    Raises:
        InputError: the lengths differ, or a vector is zero.
    """
    if len({len(vector) for vector in widths}) != 1:
        raise InputError("the boxes have different numbers of inputs")
    matrix = np.stack(widths)
    largest = matrix.max(axis=1, initial=0.0)
    if not (largest > 0).all():
        raise InputError("a box is a single point and has no direction")
    matrix = matrix / largest[:, None]  # boxes without a domain may be too wide to be squared
    unit = matrix / np.linalg.norm(matrix, axis=1)[:, None]
    cosines = unit @ unit.T
    count = len(unit)
    if count == 1:
        return cosines, 1.0
    return cosines, float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def read_widths(folder: str | os.PathLike[str]) -> tuple[list[str], list[FloatArray]]:
    """Names and total widths (n,) of the boxes that ``onnxcert region --out`` has written.

    Raises:
        InputError: there are none, or a file is broken.
    """
    names, vectors = [], []
    for path in sorted(Path(folder).glob("*/widths.npy"), key=_by_number):
        array = read_array(path)
        if array.ndim != 2 or len(array) != 2 or array.dtype.kind != "f":
            raise InputError("the file holds no widths", place=os.fspath(path))
        names.append(path.parent.name)
        vectors.append(array.sum(axis=0))
    if not vectors:
        raise InputError("there are no boxes in the folder", place=os.fspath(folder))
    return names, vectors


def _by_number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdecimal() else -1), name
