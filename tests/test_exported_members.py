"""The public names are pinned: adding or dropping one is a decision, not an accident."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import onnxcert

PUBLIC = {
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
    "UnsupportedModel",
    "UnsupportedSpec",
    "Unsat",
    "UsageError",
    "__version__",
    "check",
    "compute_bounds",
    "box",
    "certified_radius",
    "certify",
    "largest_region",
    "largest_regions",
    "l2_ball",
    "linf_ball",
    "lipschitz",
    "load_model",
    "read_query",
    "save_vnnlib",
    "train",
    "verify",
    "with_bottom_logit",
}


def test_public_names() -> None:
    assert set(onnxcert.__all__) == PUBLIC
    assert set(dir(onnxcert)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(onnxcert, name))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = onnxcert.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", ["verify", "compute_bounds", "load_model", "Settings"])
def test_functions_are_functions_whatever_is_used_first(first: str) -> None:
    """Importing a submodule binds its name in the package; it must not hide a function."""
    program = (
        f"import onnxcert; onnxcert.{first}\n"
        "assert callable(onnxcert.compute_bounds), onnxcert.compute_bounds\n"
        "assert callable(onnxcert.verify), onnxcert.verify\n"
        "from onnxcert import verify\n"
        "assert callable(verify)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_verify_takes_its_options_by_name_only() -> None:
    parameters = inspect.signature(onnxcert.verify).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    positional = [
        name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == ["model", "spec"]
    assert {"timeout", "device", "seed", "settings", "progress"} <= set(kinds)
