"""Multipliers that were found before, kept on disk.

What takes long about constants is the descent of `onnxcert.continuity.refine`; the constants do not
rest on it. `onnxcert.continuity.ellipsoid` makes a bound of any multipliers, with all rounding
charged, and does so again with those that are read here. So no file can make a bound wrong, and one
that is not what was written, because it was cut or changed, is as good as none.

A file begins with the SHA-256 of the rest, which are rows of float64, one for each stage of the
descent. Its name is a hash of all that a descent depends on. The newest files are kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcert import __version__
from onnxcert.arrays import FloatArray
from onnxcert.continuity.network import Network
from onnxcert.continuity.refine import Objective, refined
from onnxcert.errors import UsageError
from onnxcert.files import make_folder, write_file

_MOST_FILES = 200
_MOST_STAGES = 16
_SUFFIX = ".multipliers"
_DIGEST = 32

_log = logging.getLogger(__name__)


def default_folder() -> Path | None:
    """``onnxcert`` in the user's folder for caches (XDG_CACHE_HOME); None if there is no such."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "onnxcert"


@dataclass(frozen=True)
class Store:
    """The place for the multipliers of one optimisation.

    Attributes:
        path: of the file, which need not exist.
    """

    path: Path

    @classmethod
    def of(
        cls, folder: str | os.PathLike[str], model_sha256: str, network: Network, norm: str
    ) -> Store:
        """The place for a model, the slopes of its curves and a norm of inputs."""
        digest = hashlib.sha256(f"{__version__} {model_sha256} {norm} {network.share}".encode())
        for name, slopes in network.slopes.items():
            digest.update(f" {name} {slopes.even} ".encode())
            for part in (slopes.mid, slopes.rad):
                digest.update(np.ascontiguousarray(part).tobytes())
        return cls(Path(folder) / f"{digest.hexdigest()}{_SUFFIX}")

    def read(self, size: int) -> list[FloatArray]:
        """What was written for so many variables, arrays (size,); nothing if that is not there."""
        try:
            with self.path.open("rb") as stream:
                data = stream.read(_DIGEST + 8 * size * _MOST_STAGES + 1)
        except OSError:
            return []
        body = data[_DIGEST:]
        if hashlib.sha256(body).digest() != data[:_DIGEST] or not size or len(body) % (8 * size):
            _log.info("%s is damaged and not used", self.path)
            return []
        return list(np.frombuffer(body, "<f8").reshape(-1, size).astype(float))

    def write(self, rows: Sequence[FloatArray]) -> None:
        """Keep rows (size,) each; where that is not possible, go without."""
        body = b"".join(row.astype("<f8").tobytes() for row in rows)
        if not body:
            return
        try:
            make_folder(self.path.parent)
            write_file(self.path, hashlib.sha256(body).digest() + body)
            self._tidy()
        except (UsageError, OSError) as error:
            _log.info("multipliers are not kept: %s", error)

    def _tidy(self) -> None:
        """Remove the oldest files."""
        found = sorted(self.path.parent.glob(f"*{_SUFFIX}"), key=lambda p: p.stat().st_mtime_ns)
        for path in found[:-_MOST_FILES]:
            path.unlink(missing_ok=True)


def kept_stages(
    objective: Objective,
    start: FloatArray,
    *,
    store: Store | None,
    expired: Callable[[], bool] = lambda: False,
) -> Iterator[FloatArray]:
    """`refined`, or what it gave when it ran to its end before."""
    known = store.read(objective.size) if store else []
    made = []
    for variables in known or refined(objective, start, expired):
        made.append(variables)
        yield variables
    if store and not known and not expired():
        store.write(made)
