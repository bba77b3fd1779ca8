"""Certificates of global constants: what is written for the checker, and what it proves.

The checker (`onnxcert.checker.lipschitz`) takes multipliers t and weights p of the inputs and works
out constants of its own. The recursion has the same ones in another form: a neuron with D in
`onnxcert.continuity.ellipsoid` has t = 1 / (D rad^2), and an input with q has p = 1 / q. They are
hints. Whatever they are, a constant that is claimed is one that the checker proves.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxcert.arrays import FloatArray
from onnxcert.checker import Rejected, Unusable, Verified
from onnxcert.checker.certificate import REAL, check_constants
from onnxcert.checker.container import FORMAT, pack
from onnxcert.checker.lipschitz import bounds
from onnxcert.checker.model import read_network
from onnxcert.checker.network import Curve
from onnxcert.checker.network import Network as CheckedNetwork
from onnxcert.checker.quadratic import WIDEST
from onnxcert.continuity.network import Network
from onnxcert.errors import UnsupportedModel
from onnxcert.frontend.onnx import Model
from onnxcert.proof.certify import TOOL

_log = logging.getLogger(__name__)

_LEAST, _MOST = 1e-60, 1e60
"""Multipliers that are written: far from where products of them underflow."""

_FILLS = (1.0, 1e-4)
"""Multipliers of neurons that the engine does not know, as parts of others: it has dropped them,
so they may weigh nothing, or it knows better bounds, so they are like others."""

LIFTS = (1.0, 1.0 - 1e-6, 1.0 - 1e-4, 1.0 - 1e-2)
"""Factors of multipliers that are nearly too large for the checker's rounding."""

_CLOSE = 1e-6


@dataclass(frozen=True, eq=False)
class Hints:
    """What the checker is given.

    Attributes:
        multipliers: engine's D of each curve, as in `onnxcert.continuity.ellipsoid`.
        diagonal: (n,) of the ellipsoid round the inputs.
    """

    multipliers: Mapping[str, FloatArray]
    diagonal: FloatArray


@dataclass(frozen=True, eq=False)
class CertifiedConstants:
    """A certificate that the checker has accepted.

    Attributes:
        data: the bytes of the file.
        outputs, pairs: the constants it proves, (m,) and (m, m): those asked for, or the checker's
            where these are larger.
        verified: what the checker says.
    """

    data: bytes
    outputs: FloatArray
    pairs: FloatArray
    verified: Verified


def require_provable(network: Network) -> None:
    """Refuse before any work what the checker's matrix cannot hold.

    Raises:
        UnsupportedModel: inputs and bent neurons are too many, or some value has too many entries.
    """
    bent = sum(int((slopes.rad != 0.0).sum()) for slopes in network.slopes.values())
    shared = sum(int((network.slopes[name].rad != 0.0).sum()) for name in network.twins)
    count = network.graph.input_size + bent - shared
    if count > WIDEST:
        raise UnsupportedModel(
            f"the checker's matrix would have {count} rows, one for each input and each neuron; "
            f"the most is {WIDEST}",
            help="without --certificate any size has constants (--method product)",
        )


def certify_constants(
    model: Model, network: Network, norm: str, hints: Hints, outputs: FloatArray, pairs: FloatArray
) -> CertifiedConstants:
    """Make a certificate and have it checked.

    Args:
        model: the network as read; network: with its slopes and domain.
        norm: of input differences.
        hints: multipliers.
        outputs, pairs: constants that are known.

    Raises:
        UnsupportedModel: the checker does not know an operator, or holds no matrix so large, or
            rounding stands in the way.
        ModelError: the file has changed since it was read.
    """
    data, folder = model.stored(), None if model.proto else Path(model.source).parent
    box = network.domain
    domain = None if box is None else [float(box.lower[0, 0]), float(box.upper[0, 0])]
    try:
        checked = read_network(data, directory=folder)
        share = 1.0 / hints.diagonal
        multipliers, proved = _best(checked, network, hints, norm, domain, share)
        found = _joined(outputs, proved[0]), _joined(pairs, proved[1])
        np.fill_diagonal(found[1], 0.0)
        header = {
            "format": FORMAT,
            "verdict": "lipschitz",
            "semantics": REAL,
            "model_sha256": hashlib.sha256(data).hexdigest(),
            "tool": dict(TOOL),
            "norm": norm,
            "domain": domain,
        }
        arrays = {
            "multiplier": multipliers,
            "share": share,
            "outputs": found[0],
            "pairs": found[1][np.tril_indices(len(found[0]), -1)],
        }
        packed = pack(header, arrays)
        verified = check_constants(packed, data, folder)
    except (Rejected, Unusable) as error:
        raise UnsupportedModel(
            f"the checker cannot prove the constants: {error}",
            place=model.source,
            help="without --certificate the constants rest on the engine's own bounds",
        ) from error
    return CertifiedConstants(packed, *found, verified)


def _joined(known: FloatArray, proved: FloatArray) -> FloatArray:
    """The larger constants; says so where the checker's are."""
    more = float(np.max(proved / np.where(known > 0.0, known, np.inf), initial=0.0))
    if more > 1.0 + _CLOSE:
        _log.info("the checker proves constants up to %.6f times those known", more)
    result: FloatArray = np.fmax(known, proved)
    return np.where(np.isfinite(known), result, proved)


def _best(
    checked: CheckedNetwork,
    network: Network,
    hints: Hints,
    norm: str,
    domain: list[float] | None,
    share: FloatArray,
) -> tuple[FloatArray, tuple[FloatArray, FloatArray]]:
    """Multipliers in the checker's order, and what they prove."""
    known = _known(checked, network, hints)
    rejected: Rejected | None = None
    best: tuple[FloatArray, tuple[FloatArray, FloatArray]] | None = None
    fills = _FILLS if np.isnan(known).any() else _FILLS[:1]
    for fill in fills:
        for lift in LIFTS:
            values = np.clip(_filled(checked, known, fill) * lift, _LEAST, _MOST)
            try:
                proved = bounds(checked, norm, domain, values, share)
            except Rejected as error:
                rejected = error
                continue
            if best is None or proved[0].sum() < best[1][0].sum():
                best = values, proved
            break
    if best is None:
        assert rejected is not None
        raise rejected
    return best


def multipliers_for(checked: CheckedNetwork, network: Network, hints: Hints) -> FloatArray:
    """t of every neuron in the checker's order; those the engine lacks are like others."""
    filled = _filled(checked, _known(checked, network, hints), _FILLS[0])
    return np.clip(filled, _LEAST, _MOST)


def _known(checked: CheckedNetwork, network: Network, hints: Hints) -> FloatArray:
    """t of every neuron in the checker's order, NaN where the engine has none."""
    table = {block.label: np.full(block.size, np.nan) for block in _curves(checked)}
    for node in network.graph.nodes:
        values = hints.multipliers.get(network.twins.get(node.name, node.name))
        if values is None or node.neurons is None or node.neurons.label not in table:
            continue
        rad = network.slopes[node.name].rad
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            t = np.where((values > 0.0) & (rad > 0.0), 1.0 / (values * rad**2), np.nan)
        table[node.neurons.label][node.neurons.at(np.arange(len(t)))] = t
    return np.concatenate([*table.values(), np.zeros(0)])


def _curves(checked: CheckedNetwork) -> list[Curve]:
    return [block for block in checked.blocks if isinstance(block, Curve)]


def _filled(checked: CheckedNetwork, known: FloatArray, fill: float) -> FloatArray:
    """Known multipliers, and part of the median of a layer, or of all, for the others."""
    values, start = known.copy(), 0
    whole = np.median(known[~np.isnan(known)]) if (~np.isnan(known)).any() else 1.0
    for block in _curves(checked):
        part = values[start : start + block.size]
        start += block.size
        missing = np.isnan(part)
        middle = whole if missing.all() else np.median(part[~missing])
        part[missing] = fill * middle
    return values
