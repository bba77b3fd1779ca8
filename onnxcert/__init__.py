"""onnxcert: verification of neural networks in ONNX files against VNN-LIB properties.

The public names below are loaded when they are first used (PEP 562), so that ``import onnxcert``
costs nothing and the checker of certificates can live in this package without loading the engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BoundsReport": "verifier",
    "Certification": "continuity.certified",
    "Counterexample": "verdict",
    "InputError": "errors",
    "ModelError": "errors",
    "LipschitzBound": "continuity.bound",
    "OnnxcertError": "errors",
    "Progress": "verdict",
    "Reason": "verdict",
    "Region": "region.regions",
    "Result": "verdict",
    "Sat": "verdict",
    "Screen": "continuity.screen",
    "Settings": "settings",
    "SpecError": "errors",
    "Specification": "spec.build",
    "Trained": "training.api",
    "Unknown": "verdict",
    "Unsat": "verdict",
    "UnsupportedModel": "errors",
    "UnsupportedSpec": "errors",
    "UsageError": "errors",
    "certified_radius": "continuity.bound",
    "certify": "continuity.certified",
    "check": "checker",
    "compute_bounds": "verifier",
    "box": "spec.build",
    "largest_region": "region.api",
    "largest_regions": "region.api",
    "l2_ball": "spec.build",
    "linf_ball": "spec.build",
    "lipschitz": "continuity.bound",
    "load_model": "frontend.onnx",
    "read_query": "frontend.vnnlib",
    "save_vnnlib": "frontend.write",
    "train": "training.api",
    "verify": "verifier",
    "with_bottom_logit": "continuity.bottom",
}

__all__ = [
    "BoundsReport",
    "Certification",
    "Counterexample",
    "InputError",
    "LipschitzBound",
    "ModelError",
    "OnnxcertError",
    "Progress",
    "Reason",
    "Region",
    "Result",
    "Sat",
    "Screen",
    "Settings",
    "SpecError",
    "Specification",
    "Trained",
    "Unknown",
    "Unsat",
    "UnsupportedModel",
    "UnsupportedSpec",
    "UsageError",
    "__version__",
    "box",
    "certified_radius",
    "certify",
    "check",
    "compute_bounds",
    "l2_ball",
    "largest_region",
    "largest_regions",
    "linf_ball",
    "lipschitz",
    "load_model",
    "read_query",
    "save_vnnlib",
    "train",
    "verify",
    "with_bottom_logit",
]

if TYPE_CHECKING:
    from onnxcert.checker import check
    from onnxcert.continuity.bottom import with_bottom_logit
    from onnxcert.continuity.bound import LipschitzBound, certified_radius, lipschitz
    from onnxcert.continuity.certified import Certification, certify
    from onnxcert.continuity.screen import Screen
    from onnxcert.errors import (
        InputError,
        ModelError,
        OnnxcertError,
        SpecError,
        UnsupportedModel,
        UnsupportedSpec,
        UsageError,
    )
    from onnxcert.frontend.onnx import load_model
    from onnxcert.frontend.vnnlib import read_query
    from onnxcert.frontend.write import save_vnnlib
    from onnxcert.region.api import largest_region, largest_regions
    from onnxcert.region.regions import Region
    from onnxcert.settings import Settings
    from onnxcert.spec.build import Specification, box, l2_ball, linf_ball
    from onnxcert.training.api import Trained, train
    from onnxcert.verdict import Counterexample, Progress, Reason, Result, Sat, Unknown, Unsat
    from onnxcert.verifier import BoundsReport, compute_bounds, verify


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
