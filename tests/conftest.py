"""Settings shared by all tests: how hypothesis runs, and what is skipped where it cannot run."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "onnxcert",
    deadline=None,  # machines are shared: no test depends on the time it takes
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("thorough", parent=settings.get_profile("onnxcert"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "onnxcert"))

# Shells have what runs in their background ignore interrupts; here some are sent to be heeded.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Commands keep what they find for the next run; not in the folders of whoever runs the tests.
_CACHE = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def instances() -> Path:
    """The file instances.csv of the competition set."""
    path = Path(os.environ["ONNXCERT_BENCHMARKS"]) / "instances.csv"
    assert path.is_file(), f"ONNXCERT_BENCHMARKS is set, but there is no {path}"
    return path


def _gpu_missing() -> str:
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy  # noqa: PLC0415 - only where it is installed

    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU: {error}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs a GPU or the competition files where they are missing."""
    reasons = {}
    if any(item.get_closest_marker("gpu") for item in items):
        reasons["gpu"] = _gpu_missing()
    if "ONNXCERT_BENCHMARKS" not in os.environ:
        reasons["benchmarks"] = "ONNXCERT_BENCHMARKS is not set"
    for item in items:
        for name, reason in reasons.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
