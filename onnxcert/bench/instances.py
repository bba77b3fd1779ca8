"""Lists of instances: the ``instances.csv`` of VNN-COMP, or the same with a header.

Without a header the columns are model, specification, seconds. With one, ``onnx``, ``vnnlib`` and
``timeout`` are needed; ``benchmark`` and ``expected`` are used if they are there. Paths are
relative to the list, and a file may be stored with ``.gz`` added to its name. A query over several
networks has ``[('f', 'path'), ('g', 'path')]`` in its first column.
"""

from __future__ import annotations

import ast
import csv
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnxcert.errors import InputError

_HEADERLESS = ("onnx", "vnnlib", "timeout")
_VERDICTS = ("sat", "unsat")


@dataclass(frozen=True)
class Instance:
    """One row of a list.

    Attributes:
        number: of the row, from 0, not counting a header.
        category: name of the benchmark.
        onnx, vnnlib: as the list writes them.
        timeout: seconds.
        expected: ``sat``, ``unsat``, or empty if the list does not know.
        folder: what paths are relative to.
        stem: name of the instance's own files, unique in its category.
    """

    number: int
    category: str
    onnx: str
    vnnlib: str
    timeout: float
    expected: str
    folder: Path
    stem: str

    @property
    def arguments(self) -> list[str]:
        """Of the command line, without options: the short form, or ``verify`` with networks."""
        models = [(name, str(_stored(self.folder / path))) for name, path in networks(self.onnx)]
        spec = str(_stored(self.folder / self.vnnlib))
        if not models[0][0]:
            return [models[0][1], spec]
        return ["verify", spec, *(f"--network={name}={path}" for name, path in models)]

    @property
    def onnx_path(self) -> str:
        """The first column of a results file: absolute and without ``.gz``, as the scorer needs."""
        paths = [(name, str(_plain(self.folder / path))) for name, path in networks(self.onnx)]
        return paths[0][1] if not paths[0][0] else repr(paths)

    @property
    def vnnlib_path(self) -> str:
        """Likewise for the specification."""
        return str(_plain(self.folder / self.vnnlib))


def networks(column: str) -> list[tuple[str, str]]:
    """Network name -> path of a first column; the name is empty where it is only a path.

    Raises:
        ValueError: it looks like a list but is none.
    """
    if not column.lstrip().startswith("["):
        return [("", column)]
    try:
        pairs = ast.literal_eval(column.strip())
        named = [(str(name), str(path)) for name, path in pairs]
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"not a list of (name, path) pairs: {column}") from error
    if not named or not all(name.isidentifier() and path for name, path in named):
        raise ValueError(f"not a list of (name, path) pairs: {column}")
    return named


def read_instances(path: str | os.PathLike[str]) -> list[Instance]:
    """Read a list.

    Raises:
        InputError: it cannot be read, has no rows, or a row makes no sense.
    """
    source = Path(path)
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            rows = [(reader.line_num, row) for reader in (csv.reader(stream),) for row in reader]
    except OSError as error:
        raise InputError(f"the list cannot be read: {error.strerror}", place=str(path)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the list is no CSV file: {error}", place=str(path)) from error
    records = list(_records([row for row in rows if any(row[1])], source))
    if not records:
        raise InputError("the list has no instances", place=str(path))
    stems = _stems([record for _, record in records])
    return [
        _instance(number, record, stems[number], source, line)
        for number, (line, record) in enumerate(records)
    ]


def _records(
    rows: Sequence[tuple[int, list[str]]], source: Path
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Line number and columns by name; a header is told by its words."""
    header: Sequence[str] = _HEADERLESS
    if rows and {"onnx", "vnnlib"} <= {cell.strip() for cell in rows[0][1]}:
        header = [cell.strip() for cell in rows[0][1]]
        rows = rows[1:]
    category = _folder_category(source)
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"the row has {len(row)} columns instead of {len(header)}",
                place=f"{source}:{line}",
                help="a model that is a list of networks has to stand in double quotes",
            )
        cells = (cell.strip() for cell in row)
        yield line, {"benchmark": category, **dict(zip(header, cells, strict=True))}


def _folder_category(source: Path) -> str:
    """The benchmark's folder; below it there may be one for the version of VNN-LIB."""
    folder = source.resolve().parent
    is_version = folder.name.replace(".", "").isdigit()
    return (folder.parent if is_version else folder).name or "benchmark"


def _instance(
    number: int, record: Mapping[str, str], stem: str, source: Path, line: int
) -> Instance:
    place = f"{source}:{line}"
    category = record["benchmark"]
    if any("\0" in cell for cell in record.values()):
        raise InputError("the row has a NUL byte", place=place)
    if category in ("", ".", "..") or "/" in category:
        raise InputError(f"{category!r} cannot name a benchmark", place=place)
    if not record["onnx"] or not record["vnnlib"]:
        raise InputError("a model and a specification are needed", place=place)
    try:
        timeout = float(record.get("timeout", ""))
        networks(record["onnx"])
    except ValueError as error:
        raise InputError(str(error), place=place) from error
    if not 0 < timeout < math.inf:
        raise InputError("the time limit must be a positive number of seconds", place=place)
    expected = record.get("expected", "")
    return Instance(
        number,
        category,
        record["onnx"],
        record["vnnlib"],
        timeout,
        expected if expected in _VERDICTS else "",
        source.resolve().parent,
        stem,
    )


def _stems(records: Sequence[Mapping[str, str]]) -> list[str]:
    """``<net>_<property>`` per row, as the competition names counterexamples.

    Models that lie in several folders of one benchmark get the folder's name in front (VNN-COMP
    does so for safenlp); what is still equal gets the number of its row.
    """
    folders = defaultdict(set)
    for record in records:
        folders[record["benchmark"]].add(PurePosixPath(record["onnx"]).parent)
    stems = [_stem(record, len(folders[record["benchmark"]]) > 1) for record in records]
    keys = [(record["benchmark"], stem) for record, stem in zip(records, stems, strict=True)]
    count = Counter(keys)
    return [
        stem if count[key] == 1 else f"{stem}_{number}"
        for number, (key, stem) in enumerate(zip(keys, stems, strict=True))
    ]


def _stem(record: Mapping[str, str], is_spread: bool) -> str:
    prop = _plain(Path(record["vnnlib"])).stem
    if record["onnx"].startswith("["):
        try:
            names = [name for name, _ in networks(record["onnx"])]
        except ValueError:
            names = ["networks"]  # reported with its line by the caller
        return f"{'_'.join(names)}_{prop}"
    model = _plain(Path(record["onnx"]))
    folder = f"{model.parent.name}_" if is_spread and model.parent.name not in ("", "onnx") else ""
    return f"{folder}{model.stem}_{prop}"


def _plain(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path


def _stored(path: Path) -> Path:
    """The file as it lies on the disk, which may be compressed."""
    compressed = path.with_name(f"{path.name}.gz")
    return compressed if not path.exists() and compressed.exists() else path
