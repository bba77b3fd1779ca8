"""The loop over batches, and the state it can be continued from."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from onnxcert.arrays import Array
from onnxcert.errors import InputError, UsageError
from onnxcert.files import write_file
from onnxcert.training.architecture import Architecture
from onnxcert.training.losses import LOSSES, with_bottom
from onnxcert.training.network import Network
from onnxcert.training.options import Options

_MOMENTS = ("exp_avg", "exp_avg_sq")

_SEEN_EVERY = 20
"""Batches between looks at the figures: each look makes a GPU wait."""

_ABOVE_SEEDS = 1_000_003
"""Epochs have their own random numbers, so that a continued run is the same run."""


@dataclass(frozen=True)
class Epoch:
    """Where training is; the figures are of batches in training and prove nothing.

    Attributes:
        epoch: the current one, from 1; epochs: all of them.
        done: the share of the whole run that is done.
        loss: mean over the batches seen in this epoch.
        accuracy, robust: shares of their inputs that are right, and right beyond eps by constants
            of the power method.
    """

    epoch: int
    epochs: int
    done: float
    loss: float
    accuracy: float
    robust: float


def device_named(name: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N`` from a name that may be ``auto``.

    Raises:
        UsageError: there is no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and int(number or 0) >= count:
        raise UsageError(f"PyTorch sees no device {name}", help="use --device cpu")
    return name


def fit(
    architecture: Architecture,
    x: Array,
    labels: Array,
    options: Options,
    *,
    device: str = "auto",
    state: str | os.PathLike[str] | None = None,
    progress: Callable[[Epoch], None] = lambda epoch: None,
) -> Network:
    """Train a network.

    Args:
        architecture: of it.
        x: (N, *input_shape); labels: (N,) classes.
        options: of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        state: a file that is rewritten after each epoch; where it exists, the run goes on from it.
        progress: called now and then.

    Raises:
        UsageError: the state is of another run, there is no such device, or training diverges.
        InputError: the state cannot be read.
    """
    device = device_named(device)
    run = _Run(
        Network.fresh(architecture, options.seed, device),
        torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(device),
        torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)).to(device),
        options,
        progress,
    )
    if state is not None and Path(state).exists():
        run.restore(state)
    for epoch in range(run.epoch, options.epochs):
        run.train_epoch(epoch)
        if state is not None:
            run.save(state)
    return run.network


class _Run:
    """A network, its optimiser and its data."""

    def __init__(
        self,
        network: Network,
        x: torch.Tensor,
        labels: torch.Tensor,
        options: Options,
        progress: Callable[[Epoch], None],
    ) -> None:
        self.network, self.x, self.labels = network, x, labels
        self.options, self.progress = options, progress
        self.optimiser = torch.optim.Adam(network.parameters, lr=options.learning_rate)
        self.epoch = 0
        self.batches = max(1, len(x) // options.batch)

    def train_epoch(self, epoch: int) -> None:
        """One pass over the data; inputs that fill no batch wait for the next order."""
        options = self.options
        generator = torch.Generator().manual_seed(_ABOVE_SEEDS * (options.seed + 1) + epoch)
        order = torch.randperm(len(self.x), generator=generator).to(self.x.device)
        seen: list[torch.Tensor] = []
        for number in range(self.batches):
            rows = order[number * options.batch : (number + 1) * options.batch]
            share = (epoch + number / self.batches) / options.epochs
            batch = augmented(self.x[rows], options, generator)
            seen.append(self._step(batch, self.labels[rows], share))
            if number % _SEEN_EVERY == 0 or number == self.batches - 1:
                self._report(epoch, number, seen)
        self.epoch = epoch + 1

    def _step(self, x: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
        """One step of Adam; returns (loss, accuracy, robust)."""
        options = self.options
        for group in self.optimiser.param_groups:
            group["lr"] = options.learning_rate_at(share)
        logits, pairs = self.network.logits(x), self.network.pairs(options.steps)
        radius, weight = options.radius_at(share), options.weight_at(share)
        loss = LOSSES[options.loss](logits, labels, pairs, radius, weight)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            right = logits.argmax(dim=1) == labels
            sure = with_bottom(logits, pairs, options.eps).argmax(dim=1) == labels
            return torch.stack([loss.detach(), right.float().mean(), sure.float().mean()])

    def _report(self, epoch: int, number: int, seen: list[torch.Tensor]) -> None:
        loss, accuracy, robust = torch.stack(seen).mean(dim=0).tolist()
        if not math.isfinite(loss):
            raise UsageError(
                f"training diverges: the loss is {loss} in epoch {epoch + 1}",
                help="use a smaller --learning-rate, or look at the sizes of the inputs",
            )
        done = (epoch + (number + 1) / self.batches) / self.options.epochs
        self.progress(Epoch(epoch + 1, self.options.epochs, done, loss, accuracy, robust))

    def _meaning(self) -> str:
        """What a state belongs to."""
        shape = "x".join(map(str, self.x.shape))
        total = float(self.x.double().sum()), int(self.labels.sum())
        return f"{self.options.to_json()} {shape} {total}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that `restore` needs."""
        arrays: dict[str, Any] = dict(self.network.state())
        for k, parameter in enumerate(self.network.parameters):
            kept = self.optimiser.state[parameter]
            for name in _MOMENTS:
                arrays[f"{name}/{k}"] = kept[name].cpu().numpy()
        arrays["epoch"] = np.array(self.epoch)
        arrays["steps"] = np.array(self.epoch * self.batches)
        arrays["run"] = np.array(self._meaning())
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_file(path, buffer.getvalue())

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file.

        Raises:
            InputError: it cannot be read. UsageError: it is of another run.
        """
        arrays = _read(path)
        if str(arrays["run"]) != self._meaning():
            raise UsageError(
                "the state is of a run with other options or data",
                place=os.fspath(path),
                help="choose another file, or delete this one",
            )
        shapes = {name: value.shape for name, value in self.network.state().items()}
        for k, parameter in enumerate(self.network.parameters):
            shapes |= {f"{name}/{k}": tuple(parameter.shape) for name in _MOMENTS}
        shapes |= {"epoch": (), "steps": (), "run": ()}
        if {name: value.shape for name, value in arrays.items()} != shapes:
            raise InputError("the state is not whole", place=os.fspath(path))
        self.network.restore(arrays)
        for k, parameter in enumerate(self.network.parameters):
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(arrays["steps"])),
                **{
                    name: torch.from_numpy(arrays[f"{name}/{k}"]).to(parameter.device)
                    for name in _MOMENTS
                },
            }
        self.epoch = int(arrays["epoch"])


def _read(path: str | os.PathLike[str]) -> Mapping[str, Array]:
    try:
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            arrays = dict(stored) if isinstance(stored, np.lib.npyio.NpzFile) else {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the state cannot be read: {' '.join(str(error).split())}", place=os.fspath(path)
        ) from error
    if "run" not in arrays:
        raise InputError("this is no state of a training run", place=os.fspath(path))
    return arrays


def augmented(x: torch.Tensor, options: Options, generator: torch.Generator) -> torch.Tensor:
    """Images moved, warped and mirrored at random, (B, ..., height, width)."""
    if not (options.shift or options.warp or options.flip):
        return x
    images = x.reshape(len(x), -1, *x.shape[-2:])
    chosen = torch.rand(7, len(x), generator=generator).to(x.device)
    if options.flip:
        images = torch.where((chosen[0] < 0.5)[:, None, None, None], images.flip(3), images)
    if options.shift or options.warp:
        images = _warped(images, options, 2.0 * chosen[1:] - 1.0)
    return images.reshape(x.shape)


def _warped(images: torch.Tensor, options: Options, chosen: torch.Tensor) -> torch.Tensor:
    """Affine maps of the plane, with linear interpolation; ``chosen`` (6, B) in [-1, 1]."""
    height, width = images.shape[2:]
    identity = torch.eye(2, device=images.device).reshape(1, 2, 2)
    turned = identity + options.warp * chosen[:4].T.reshape(-1, 2, 2)
    sides = torch.tensor([width, height], device=images.device)
    moved = 2.0 * options.shift * chosen[4:].T / sides
    maps = torch.cat([turned, moved[:, :, None]], dim=2)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)
