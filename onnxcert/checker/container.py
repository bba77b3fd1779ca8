"""The certificate file: a zip archive of one JSON header and NumPy arrays, one of each kind.

::

    header.json   {"format": "onnxcert-1", "verdict": "unsat" | "sat" | "lipschitz",
                   "semantics": "real" | "ieee32-any-order",
                   "model_sha256": hex, "spec_sha256": hex,    of the files as they are; of several
                                                               models with blanks between, in the
                                                               order of the networks
                   "tool": {...},                              for people, ignored
                   "layers": [label, ...]}                     unsat: what ``layer`` counts in
                   "decimals": {index: "0.1", ...}}            sat: exact inputs, see rule R13
                   "norm": "2" | "inf" | "1",                  lipschitz, which has no spec_sha256:
                   "domain": null | [low, high]}               of input differences, of every input

    group          int64 (G, 6)   kind, cases, nodes, and entries of combine, column, hint
    case           uint32         per group: the cases it refutes, as numbers in the order of
                                  `onnxcert.checker.spec`
    op             uint8          per group: one tree per root in preorder, 0 leaf, 1 split, the
                                  lower half first; 2 for a root that is handed on to halves, 3
                                  for one that is handed on alone; in a group that splits inputs, 2
                                  for a node that is handed on, 3 for a split whose halves are
                                  bounded with the network folded on the box (rule R22), and 4 for
                                  a split of a box that is not bounded itself
    arg            uint32         per split: the input, or the position of the neuron; the split of
                                  a group that hands cases on comes before those of its trees
    layer          uint16         per split of a neuron: its layer
    point          float64        per split of a neuron: where
    combine        uint32 (., 2)  per input group, ordered: node and case whose rows are combined
    column         uint32 (., 2)  per neuron group: layer and position of neurons with slopes; a
                                  layer of products has pairs in the place of neurons
    hint           int64 (., 3)   per neuron group: layer, side (0 lower, 1 upper), rows K
    hint_row       uint32         per hint: K positions
    hint_slope     uint8          per hint: K x columns, the group's columns before that layer; of
                                  a group of kind 4 all columns
    slope          uint8          per leaf of a neuron group: all columns of the group
    multiplier     uint16         per leaf of a neuron group: one for each split above, root first;
                                  before these, per hint of a group of kind 4, K x splits of the set
    weight         uint16         per entry of ``combine`` and per leaf of a neuron group: one for
                                  each row of the case; before these, per hint of a group of kind 4,
                                  K x rows
    constant       float64        for the group of kind 3: a weight for each input, then multipliers
                                  as in a file of constants; may be missing without such a group
    tilt           int64 (., 5)   planes above relus: group of kind 1, root in it, layer, neurons K
                                  and shares S
    tilt_row       uint32         per entry of ``tilt``: K positions, increasing
    tilt_share     uint8          per entry of ``tilt``: S, for each neuron one for each factor that
                                  is not zero, in the order of the scalars
    tilt_leaf      uint8          per leaf of a root with planes: 1 if it takes them, else 0; all of
                                  these may be missing
    x<i>           the type of input i, sat only: a witness

and of a file with the verdict lipschitz, all float64, see rule R14::

    multiplier     one for each value that curves make, curve by curve in the order of the file's
                   nodes, row-major; where slopes are all the same they are not looked at
    share          one for each input: weights of the inputs
    outputs        the constant of each output
    pairs          of the differences of outputs 1 and 0, 2 and 0, 2 and 1, 3 and 0, ...

A group of kind 0 splits inputs; its roots are the distinct boxes of its cases in order of
appearance, and a node is a box with the cases still open there; it is split in the middle of an
input, or next to that where the input counts as a whole number (rule R24). A group of kind 1 splits
neurons; all its cases share one box, and each case is a root. Cases that it hands on are refuted by
the two groups of kind 2 that follow, each with all that it hands on in turn: the lower and the
upper half of a split of the whole. They have no entries in ``case``. The bounds known at the root
of a group hold in its halves, and are tightened there from what the split makes of them, without
plain bounds in between; multipliers of leaves are for the splits of the halves first. Slopes are
positions k / 255: of the free line between the two slopes of a kinked curve; for sigmoid and tanh
of the point where the tangent touches, from the near end of the concave (below: convex) side, or
from where a line from the far end touches it, to the outer end of the interval; for products
between two planes (`onnxcert.checker.pairs`); for sums of relus that are one curve between three
slopes (`onnxcert.checker.pieces`). Multipliers and weights are the upper 16 bits of a binary32.
Planes above relus are in the order of groups, roots and, without repetition, layers (rule R18). A
neuron is a label and a position: see `onnxcert.checker.model`. Neurons that no case depends on need
no slopes; where some are named all of the network is bounded (rule R21).

A group of kind 4 is about the same set as the one that hands its case on, and about that case
alone: its hints are bounds of neurons where the case holds (rule R20), and each may use what those
of other layers before it have found. What it hands on is as narrow. Such groups come before the
halves, in the order of their cases, each followed by all that it hands on in turn; they have no
entries in ``case`` either.

Nodes of a group of kind 0 that are handed on are refuted by groups of kind 5, one for each of them
in the order of the nodes, each followed by all that it hands on in turn. Such a group is like one
of kind 1, but its set is the box of that node with the bounds known there. Its cases, which are
among those of the group of kind 0, are all that are open at the node, and maybe more.

A group of kind 3 has no trees: Lipschitz constants refute its cases (rule R14). There is one at
most, for all cases that they refute: every other one would cost a factorisation again.

Everything is a hint or a decision, or the claim itself; no bound is believed. What is missing, left
over, of another type, or unknown makes the file invalid.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcert.checker.curves import Array
from onnxcert.checker.errors import Rejected

FORMAT = "onnxcert-1"
LARGEST = 1 << 27
"""Bytes of all members together, unpacked."""

ARRAYS = {
    "group": ("<i8", 6),
    "case": ("<u4", 0),
    "op": ("|u1", 0),
    "arg": ("<u4", 0),
    "layer": ("<u2", 0),
    "point": ("<f8", 0),
    "combine": ("<u4", 2),
    "column": ("<u4", 2),
    "hint": ("<i8", 3),
    "hint_row": ("<u4", 0),
    "hint_slope": ("|u1", 0),
    "slope": ("|u1", 0),
    "multiplier": ("<u2", 0),
    "weight": ("<u2", 0),
}
EXTRA = {
    "constant": ("<f8", 0),
    "tilt": ("<i8", 5),
    "tilt_row": ("<u4", 0),
    "tilt_share": ("|u1", 0),
    "tilt_leaf": ("|u1", 0),
}
CONSTANTS = dict.fromkeys(("multiplier", "share", "outputs", "pairs"), ("<f8", 0))
_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    OSError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    NotImplementedError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    MemoryError,
)
"""What the libraries raise for damaged archives, JSON and array headers."""

_HEADER = re.compile(
    rb"\{'descr': '([<|][fiu][1248])', 'fortran_order': False, 'shape': \(([\d, ]{0,99})\), \} *\n"
)

_KEYS = {"format", "verdict", "semantics", "model_sha256", "tool"}
_OWN_KEYS = {
    "unsat": {"spec_sha256", "layers"},
    "sat": {"spec_sha256", "decimals"},
    "lipschitz": {"norm", "domain"},
}


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Header and arrays of a certificate.

    Raises:
        Rejected: the bytes are not exactly as described above.
    """
    try:
        members = _members(data)
        header = json.loads(members.pop("header.json"), object_pairs_hook=_unique)
        arrays = {name.removesuffix(".npy"): _array(part) for name, part in members.items()}
        if not all(name.endswith(".npy") for name in members):
            raise ValueError("a member that is no array")
    except _DAMAGE as error:
        raise Rejected("container", "file", f"it cannot be read: {error!r}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise Rejected("container", "header.json", f"the format is not {FORMAT}")
    verdict = header.get("verdict")
    own = _OWN_KEYS.get(verdict) if isinstance(verdict, str) else None
    if own is None or set(header) != _KEYS | own:
        raise Rejected("container", "header.json", "unknown or missing keys")
    if not isinstance(header.get("layers", []), list):
        raise Rejected("container", "header.json", "the layers are no list")
    if verdict == "unsat":
        _check_arrays(arrays, ARRAYS | {name: EXTRA[name] for name in EXTRA.keys() & arrays.keys()})
    if verdict == "lipschitz":
        _check_arrays(arrays, CONSTANTS)
    return header, arrays


def _check_arrays(arrays: Mapping[str, Array], wanted: Mapping[str, tuple[str, int]]) -> None:
    if set(arrays) != set(wanted):
        raise Rejected("container", "arrays", f"not these: {sorted(set(arrays) ^ set(wanted))}")
    for name, (kind, width) in wanted.items():
        array, tail = arrays[name], (width,)[: width > 0]
        if array.dtype.str != kind or array.ndim != 1 + len(tail) or array.shape[1:] != tail:
            raise Rejected("container", name, f"not an array of type {kind}, width {width}")


def pack(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a certificate; equal contents give equal bytes."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        text = json.dumps(header, sort_keys=True).encode()
        for name, data in [
            ("header.json", text),
            *((f"{n}.npy", _npy(a)) for n, a in arrays.items()),
        ]:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return result.getvalue()


def _npy(array: Array) -> bytes:
    result = io.BytesIO()
    np.lib.format.write_array(result, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
    return result.getvalue()


def _members(data: bytes) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    left = LARGEST
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            with archive.open(info) as stream:
                part = stream.read(left + 1)
            left -= len(part)
            if left < 0:
                raise Rejected("container", info.filename, f"more than {LARGEST} bytes unpacked")
            if info.filename in members:
                raise Rejected("container", info.filename, "is there twice")
            members[info.filename] = part
    return members


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise Rejected("container", "header.json", "a key is there twice")
    return dict(pairs)


def _array(data: bytes) -> Array:
    """An array as NumPy writes it, format 1.0, row by row; nothing else is parsed."""
    if data[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("no array of format 1.0")
    start = 10 + int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10:start])
    if header is None:
        raise ValueError("the header of an array is not as NumPy writes it")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(n) for n in header[2].split(b",") if n.strip())
    if len(data) - start != dtype.itemsize * math.prod(shape):
        raise ValueError("an array has more or fewer bytes than its header says")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)
