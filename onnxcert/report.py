"""What a run leaves behind: a versioned JSON record.

A record holds everything needed to judge or repeat a run: versions, hashes of both files, verdict,
the arithmetic it speaks of, whether the checker accepted a proof of it, times, proved bounds, the
witness with the outcome of its replay, settings and seed. One key of the
top level stands on one line, so that a record with a large witness is still read by eye and by
``grep``. JSON has no infinities: they are written as the strings ``"Infinity"``, ``"-Infinity"``
and ``"NaN"``, as in protocol buffers.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from onnxcert import __version__
from onnxcert.errors import OnnxcertError
from onnxcert.frontend.write import decimal
from onnxcert.spec import Query
from onnxcert.verdict import Counterexample, Result, Sat, Unknown

if TYPE_CHECKING:
    from onnxcert.continuity.bound import LipschitzBound
    from onnxcert.region.regions import Region
    from onnxcert.verifier import BoundsReport

Record: TypeAlias = dict[str, Any]

SCHEMA = 2
"""Version of the record; it rises when a key changes its meaning or goes away.

2: ``semantics`` replaces ``arithmetic``; new are ``certified`` and ``proof``.
"""

_LIBRARIES = ("numpy", "onnx", "onnxruntime", "scipy", "vnnlib", "cupy-cuda12x", "cupy-cuda13x")


def result_record(result: Result) -> Record:
    """The record of a run that ended with a verdict."""
    verdict = result.verdict
    record = _empty_record()
    record["verdict"] = result.word
    if isinstance(verdict, Unknown):
        record["reason"] = {"code": verdict.reason.name.lower(), "text": verdict.reason.value}
    record["semantics"] = result.semantics
    record["certified"] = is_certified(result)
    for key in ("proof", "seconds", "files", "settings", "statistics"):
        record[key] = plain(getattr(result, key))
    record["bounds"] = _disjuncts(result.bounds)
    if isinstance(verdict, Sat):
        record["witness"] = _witness(result.query, verdict.counterexample)
    return record


def regions_record(
    model: str, regions: Mapping[int, Region], options: Mapping[str, object]
) -> Record:
    """The record of `onnxcert.largest_regions`: one entry for each input, by its number."""
    return {
        "schema": SCHEMA,
        "tool": _tool(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "options": plain(options),
        "regions": [_region(number, region) for number, region in sorted(regions.items())],
    }


def _region(number: int, region: Region) -> Record:
    record: Record = {
        "input": number,
        "status": region.status.word,
        "text": region.status.value,
        "label": region.label,
    }
    if not region.found:
        return record
    names = ("mean_width", "log_volume", "uniform", "uniform_width", "gain", "margin")
    record |= {name: plain(getattr(region, name)) for name in names}
    record |= {
        "free": 0 if region.free is None else int(region.free.sum()),
        "ellipsoid": region.ball,
        "certified_by": region.certified_by,
        "certificate_bytes": len(region.certificate),
        "rounds": region.rounds,
        "seconds": plain(region.seconds),
        "lower": plain(region.lower),
        "upper": plain(region.upper),
    }
    if region.settled is not None:
        record["settled_faces"] = int(region.settled.sum())
        record["faces"] = int(region.settled.size)
    return record


def is_certified(result: Result) -> bool | None:
    """Whether the checker accepted a proof of the verdict.

    None where nothing was to be proved: there is no verdict, or it is ``sat`` and nobody asked for
    a certificate, so that the replay of the witness speaks for itself.
    """
    if isinstance(result.verdict, Unknown):
        return None
    if result.proof is None:
        return None if isinstance(result.verdict, Sat) else False
    return result.proof.accepted


def error_record(error: BaseException, files: Mapping[str, str | os.PathLike[str]]) -> Record:
    """The record of a run that ended without a verdict.

    Args:
        error: what ended it.
        files: ``model`` and ``spec`` -> path, as the user gave them.
    """
    record = _empty_record()
    record["files"] = {role: {"path": os.fspath(path)} for role, path in files.items()}
    description = {"kind": type(error).__name__, "cause": str(error), "place": "", "help": ""}
    if isinstance(error, OnnxcertError):
        description |= {"cause": error.cause, "place": error.place, "help": error.help}
    record["error"] = description
    return record


def bounds_record(report: BoundsReport, method: str) -> Record:
    """The record of one bounding pass."""
    layers = [
        {"layer": name, "node": source, "lower": plain(lower), "upper": plain(upper)}
        for name, source, lower, upper in report.layers
    ]
    return {
        "schema": SCHEMA,
        "tool": _tool(),
        "method": method,
        "outputs": plain(report.outputs),
        "bounds": _disjuncts(report.disjuncts),
        "layers": layers,
    }


def lipschitz_record(bound: LipschitzBound) -> Record:
    """The record of global constants."""
    return {
        "schema": SCHEMA,
        "tool": _tool(),
        "files": {"model": {"path": bound.model.source, "sha256": bound.model.sha256}},
        "norm": bound.norm,
        "domain": plain(bound.domain),
        "method": bound.method,
        "rests_on": bound.rests_on,
        "outputs": plain(bound.outputs),
        "pairs": plain(bound.pairs),
        "seen_outputs": plain(bound.seen_outputs),
        "seen_pairs": plain(bound.seen_pairs),
        "layers": [
            {"layer": x.name, "node": x.source, "norm": plain(x.norm), "seen": plain(x.seen)}
            for x in bound.layers
        ],
        "multipliers": plain(bound.multipliers),
        "proof": plain(bound.proof),
    }


def to_json(record: Mapping[str, Any]) -> str:
    """JSON text, one top-level key per line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(plain(record[key]))}" for key in record]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def plain(value: object) -> Any:
    """A value in the types of JSON: arrays become lists, unknown objects their ``str``."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if isinstance(value, Enum):
        return value.name.lower()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def _empty_record() -> Record:
    return {
        "schema": SCHEMA,
        "tool": _tool(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": None,
        "reason": None,
        "error": None,
        "semantics": None,
        "certified": None,
        "proof": None,
        "seconds": {},
        "files": {},
        "settings": {},
        "statistics": {},
        "bounds": [],
        "witness": None,
    }


def _tool() -> Record:
    return {"name": "onnxcert", "version": __version__, "libraries": _versions()}


def _disjuncts(bounds: Mapping[int, float]) -> list[Record]:
    return [{"disjunct": number, "lower": plain(lower)} for number, lower in bounds.items()]


def _versions() -> dict[str, str]:
    """Of Python and the libraries that are installed, without importing them."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow to import

    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _witness(query: object, counterexample: Counterexample) -> Record:
    values = {**counterexample.inputs, **counterexample.outputs}
    replay: Record = {"runtime": "onnxruntime", "tolerance": 0}
    if isinstance(query, Query):
        replay["holds"] = query.holds(values, counterexample.decimals)
    return {
        "inputs": [_tensor(name, array) for name, array in counterexample.inputs.items()],
        "outputs": [_tensor(name, array) for name, array in counterexample.outputs.items()],
        "decimals": {
            name: {str(index): decimal(value) for index, value in exact.items()}
            for name, exact in counterexample.decimals.items()
        },
        "replay": replay,
    }


def _tensor(name: str, values: object) -> Record:
    array = np.asarray(values)
    return {
        "name": name,
        "type": str(array.dtype),
        "shape": list(array.shape),
        "values": plain(array.ravel()),
    }
