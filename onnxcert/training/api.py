"""Train a classifier, write it as ONNX, and prove what it can do: `train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxcert import __version__
from onnxcert.arrays import Array
from onnxcert.continuity.bound import lipschitz
from onnxcert.continuity.certified import Certification, certify
from onnxcert.errors import UsageError
from onnxcert.frontend.onnx import load_model
from onnxcert.training.architecture import Architecture
from onnxcert.training.export import to_onnx
from onnxcert.training.options import Options

if TYPE_CHECKING:
    from onnxcert.training.loop import Epoch

_HELD_BACK = 10
"""One of so many inputs is held back where there are no others to judge by."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained classifier.

    Attributes:
        model: inputs (batch, ...) to logits (batch, classes), float32; `onnx.save` writes it.
        certification: of that model, on inputs that it was not trained on.
        options: of the run.
    """

    model: onnx.ModelProto
    certification: Certification
    options: Options


def train(
    x: Array,
    labels: Array,
    *,
    eps: float,
    test: tuple[Array, Array] | None = None,
    device: str = "auto",
    state: str | os.PathLike[str] | None = None,
    method: str = "auto",
    progress: Callable[[Epoch], None] = lambda epoch: None,
    **options: Any,
) -> Trained:
    """Train a classifier for certified accuracy in Euclidean balls (extra ``train``: PyTorch).

    Args:
        x: (N, ...) inputs, numbers as the model wants them; images as (N, channels, height, width),
            or (N, height, width) with one channel.
        labels: (N,) classes, from 0.
        eps: the radius that is wanted, in the units of x.
        test: inputs and labels to judge by; by default a tenth of the data, which is held back.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        state: a file that is rewritten after each epoch; where it exists, the run goes on from it.
        method: of `lipschitz`, for what is proved.
        progress: called now and then.
        **options: the other fields of `onnxcert.training.options.Options`.

    Returns:
        The model, and its accuracy and certified accuracy: of the written model, by upper bounds
        of its constants, never by those that training has estimated.

    Raises:
        UsageError: PyTorch is missing, the arguments make no sense, or training diverges.
        InputError: the state cannot be read.
    """
    chosen = Options.of({"eps": eps} | options)
    x, labels, count = _checked(x, labels)
    if test is None:
        (x, labels), test = _held_back(x, labels, chosen.seed)
    else:
        given = _checked(*test)
        count, test = max(count, given[2]), (given[0], given[1])
    if x.shape[1:] != test[0].shape[1:]:
        raise UsageError(f"inputs have shape {list(x.shape[1:])}, tests {list(test[0].shape[1:])}")
    images = len(x.shape) > 2
    if (chosen.shift or chosen.warp or chosen.flip) and not images:
        raise UsageError("only images can be moved, warped or mirrored", help="store x as images")
    architecture = Architecture.of(chosen.net, x.shape[1:], count, chosen.activation)
    network = _loop().fit(
        architecture, x, labels, chosen, device=device, state=state, progress=progress
    )
    facts = {"onnxcert.training": chosen.to_json(), "onnxcert.version": __version__}
    model = to_onnx(architecture, network.exported(), facts)
    read = load_model(model)
    bound = lipschitz(read, method=method)
    certification = certify(read, *test, eps=chosen.eps, method="lipschitz", bound=bound)
    return Trained(model, certification, chosen)


def _loop() -> Any:
    """The part that needs PyTorch."""
    try:
        import torch  # noqa: PLC0415 - optional
    except ImportError as error:
        raise UsageError("training needs PyTorch", help="install onnxcert[train]") from error
    del torch
    from onnxcert.training import loop  # noqa: PLC0415

    return loop


def _checked(x: Array, labels: Array) -> tuple[Array, Array, int]:
    """Inputs in float32, labels, and how many classes there are at least."""
    x, labels = np.asarray(x), np.asarray(labels)
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise UsageError(f"x holds inputs along its first axis, not type {x.dtype}, {x.ndim}-d")
    if labels.dtype.kind not in "iu" or labels.shape != x.shape[:1] or len(x) == 0:
        raise UsageError(f"labels have type {labels.dtype}, shape {list(labels.shape)}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise UsageError("the inputs are not all finite")
    if labels.min() < 0 or labels.max() > len(labels):
        raise UsageError(f"labels lie from {labels.min()} to {labels.max()}; they count from 0")
    return x, labels.astype(np.int64), max(2, int(labels.max()) + 1)


def _held_back(x: Array, labels: Array, seed: int) -> tuple[Any, Any]:
    order = np.random.default_rng(seed).permutation(len(x))
    kept, back = order[len(x) // _HELD_BACK :], order[: len(x) // _HELD_BACK]
    if not len(back):
        raise UsageError(f"{len(x)} inputs are too few to hold some back", help="give a test set")
    return (x[kept], labels[kept]), (x[back], labels[back])
