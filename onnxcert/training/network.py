"""Networks in PyTorch whose constants have gradients.

Every affine layer keeps an iterate of the power method, v of length 1 near its first right singular
vector. A few steps of ``v <- A^T A v`` a batch, without gradient, follow the weights; ``|A v|`` is
then the layer's norm from below, and its gradient in A is that of the norm at v. With activations
that never stretch, the constant of y_i - y_j is at most the product of the norms of all layers but
the last, times ``|w_i - w_j|``, w the rows of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from onnxcert.arrays import Array
from onnxcert.training.architecture import Architecture, Conv, Dense, Layer

_CONVERGED = 200
"""Steps of the power method where its start is of no use."""

_TINY = 1e-12


@dataclass(eq=False)
class Affine:
    """One layer with its weights.

    Attributes:
        layer: its sizes.
        weight: as `Dense` and `Conv` say; bias: (outputs,) or (channels,).
        iterate: of the power method: (1, inputs), or (1, channels, height, width).
    """

    layer: Layer
    weight: torch.Tensor
    bias: torch.Tensor
    iterate: torch.Tensor

    @classmethod
    def fresh(cls, layer: Layer, generator: torch.Generator, device: str) -> Affine:
        """Orthogonal weights of norm 1, no bias; the same for a seed on every device."""
        rows = int(np.prod(layer.weight_shape[1:]))
        shape = (layer.weight_shape[0], rows)
        noise = torch.randn(max(shape), min(shape), generator=generator)
        factor, triangle = torch.linalg.qr(noise)
        factor = factor * torch.sign(torch.diagonal(triangle))
        weight = (factor if shape[0] >= shape[1] else factor.T).reshape(layer.weight_shape)
        start = layer.shape if isinstance(layer, Conv) else (layer.inputs,)
        iterate = torch.randn(1, *start, generator=generator)
        bias = torch.zeros(layer.weight_shape[0])
        made = cls(layer, *(part.to(device).contiguous() for part in (weight, bias, iterate)))
        with torch.no_grad():
            made.weight /= made.norm(_CONVERGED)
        for part in (made.weight, made.bias):
            part.requires_grad_()
        return made

    @property
    def kernel(self) -> torch.Tensor:
        """The weight, with the identity of a residual layer."""
        residual = self.layer.residual if isinstance(self.layer, Conv) else None
        if residual is None:
            return self.weight
        identity = torch.zeros_like(self.weight)
        middle = self.weight.shape[2] // 2
        channels = torch.arange(len(identity))
        identity[channels, channels, middle, middle] = 1.0
        return identity + residual * self.weight

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Rows, or images, (B, ...)."""
        if isinstance(self.layer, Dense):
            return functional.linear(x.flatten(1), self.weight, self.bias)
        return self._convolved(x, self.kernel, self.bias)

    def _convolved(
        self, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        assert isinstance(self.layer, Conv)
        above, left, below, right = self.layer.padding
        stride = self.layer.stride
        if (above, left) == (below, right):
            return functional.conv2d(x, kernel, bias, stride, (above, left))
        padded = functional.pad(x, (left, right, above, below))
        return functional.conv2d(padded, kernel, bias, stride)

    def _adjoint(self, y: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.layer, Conv)
        above, left, below, right = self.layer.padding
        channels, height, width = self.layer.shape
        shape = (1, channels, height + above + below, width + left + right)
        wide = torch.nn.grad.conv2d_input(shape, kernel, y, self.layer.stride)
        return wide[:, :, above : above + height, left : left + width]

    def norm(self, steps: int) -> torch.Tensor:
        """The norm from below, with a gradient; the iterate moves on by so many steps."""
        kernel = self.kernel if isinstance(self.layer, Conv) else self.weight
        with torch.no_grad():
            found = self.iterate
            for _ in range(steps):
                found = found / torch.linalg.vector_norm(found).clamp_min(_TINY)
                if isinstance(self.layer, Conv):
                    found = self._adjoint(self._convolved(found, kernel, None), kernel)
                else:
                    found = (found @ kernel.T) @ kernel
            self.iterate = found / torch.linalg.vector_norm(found).clamp_min(_TINY)
        if isinstance(self.layer, Conv):
            moved = self._convolved(self.iterate, kernel, None)
        else:
            moved = self.iterate @ kernel.T
        return torch.linalg.vector_norm(moved)


@dataclass(eq=False)
class Network:
    """A classifier in training."""

    architecture: Architecture
    layers: list[Affine]

    @classmethod
    def fresh(cls, architecture: Architecture, seed: int, device: str) -> Network:
        """Before training; the same for a seed."""
        generator = torch.Generator().manual_seed(seed)
        layers = [Affine.fresh(layer, generator, device) for layer in architecture.layers]
        return cls(architecture, layers)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Everything that is trained."""
        return [part for layer in self.layers for part in (layer.weight, layer.bias)]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Of inputs (B, ...): (B, classes)."""
        if isinstance(self.architecture.layers[0], Conv):
            x = x.reshape(len(x), *self.architecture.layers[0].shape)
        for layer in self.layers[:-1]:
            x = layer.apply(x)
            if self.architecture.activation == "minmax":
                first, second = x.chunk(2, dim=1)
                x = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)
            else:
                x = torch.relu(x)
        return self.layers[-1].apply(x)

    def pairs(self, steps: int) -> torch.Tensor:
        """Constants of y_i - y_j (classes, classes), after so many steps of the power method.

        They are below those that the power method would come to.
        """
        product = torch.ones((), device=self.layers[0].weight.device)
        for layer in self.layers[:-1]:
            product = product * layer.norm(steps)
        rows = self.layers[-1].weight
        gaps = rows[:, None] - rows
        return product * torch.sqrt(gaps.square().sum(dim=2) + _TINY)

    def exported(self) -> list[tuple[Array, Array]]:
        """(weight, bias) of each layer in float32, identities of residual layers added."""
        with torch.no_grad():
            return [
                (layer.kernel.cpu().numpy().copy(), layer.bias.cpu().numpy().copy())
                for layer in self.layers
            ]

    def state(self) -> dict[str, Array]:
        """Arrays that `restore` takes."""
        return {
            f"{k}/{name}": getattr(layer, name).detach().cpu().numpy().copy()
            for k, layer in enumerate(self.layers)
            for name in ("weight", "bias", "iterate")
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go back to an earlier state of the same architecture."""
        with torch.no_grad():
            for k, layer in enumerate(self.layers):
                for name in ("weight", "bias", "iterate"):
                    getattr(layer, name).copy_(torch.from_numpy(state[f"{k}/{name}"]))
