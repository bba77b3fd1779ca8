"""The worker of benchmarks/optimised.py that measures auto_LiRPA; runs in its environment.

Needs torch, auto_LiRPA, onnx and onnx2pytorch, nothing of onnxcert.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from onnx2pytorch import ConvertModel
from serving import Method, Run, serve

_ENDLESS = 10**6


class Peer:
    """One network over a batch of boxes, in the default element type of torch."""

    def __init__(self, task: Mapping[str, Any], conv_mode: str) -> None:
        """Convert the model and read what is given.

        Args:
            task: see `prepare` of benchmarks/optimised.py.
            conv_mode: ``patches`` or ``matrix``.
        """
        kind = torch.get_default_dtype()
        data = np.load(task["data"])
        lower, upper, rows = (torch.tensor(data[key]).to(kind) for key in ("lower", "upper", "C"))
        device = torch.device(task["device"])
        lower, upper, rows = (side.to(device) for side in (lower, upper, rows))
        shape = (len(lower), *task["shape"][1:])
        model = ConvertModel(onnx.load(task["onnx"]), experimental=True).eval().to(kind).to(device)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        lower, upper = lower.reshape(shape), upper.reshape(shape)
        example = torch.zeros(shape, device=device)
        options = {"conv_mode": conv_mode}
        self.net = BoundedModule(model, example, bound_opts=options, device=task["device"])
        self.net.eval()
        ball = PerturbationLpNorm(norm=np.inf, x_L=lower, x_U=upper)
        self.x = (BoundedTensor(0.5 * (lower + upper), ball),)
        self.rows = rows.expand(len(lower), *rows.shape)
        self.steps = task["steps"]
        self.layers = self._given_layers(data)
        self.slopes: dict[str, dict[str, torch.Tensor]] | None = None

    def _given_layers(self, data: Mapping[str, Any]) -> dict[str, list[torch.Tensor]]:
        """The given bounds of what the activations read, which come in the order of the file.

        Raises:
            ValueError: they do not belong to these layers.
        """
        self.bound("IBP")
        layers = [node.inputs[0] for node in self.net.get_enabled_opt_act()]
        self.net(self.x[0])
        result = {}
        for number, layer in enumerate(layers):
            value = layer.forward_value
            sides = [
                torch.tensor(data[f"{side}_{number}"]).to(value) for side in ("lower", "upper")
            ]
            lower, upper = (side.reshape(value.shape) for side in sides)
            slack = 1e-4 * (1.0 + value.abs())
            if ((value < lower - slack) | (value > upper + slack)).any():
                raise ValueError(f"the bounds given for layer {number} are those of another one")
            result[layer.name] = [lower, upper]
        if f"lower_{len(layers)}" in data:
            raise ValueError("there are bounds for more layers than the network has")
        return result

    def bound(self, method: str, layers: dict[str, list[torch.Tensor]] | None = None) -> Any:
        """Lower bounds of the margins, (B, R)."""
        lower, _ = self.net.compute_bounds(
            x=self.x, C=self.rows, method=method, bound_upper=False, interm_bounds=layers
        )
        return lower.detach()

    def plain(self, *, fixed: bool) -> Run:
        """CROWN, or its last pass alone with the bounds given for the layers."""
        return torch.no_grad()(partial(self.bound, "backward", self.layers if fixed else None))

    def optimised(self, *, fixed: bool) -> Run:
        """Optimised bounds; with fixed layers the initial slopes are given, too."""
        options = {
            "iteration": self.steps + 1,  # the last one only evaluates
            "init_alpha": not fixed,
            "early_stop_patience": _ENDLESS,
        }
        self.net.set_bound_opts({"optimize_bound_args": options})
        if fixed:
            self._reset_slopes()
        return partial(self.bound, "CROWN-Optimized", self.layers if fixed else None)

    def _reset_slopes(self) -> None:
        curves = {node.name: node for node in self.net.get_enabled_opt_act()}
        if self.slopes is None:
            self.net.init_alpha(self.x, c=self.rows, bound_upper=False, interm_bounds=self.layers)
            self.slopes = {
                name: {start: slope.detach().clone() for start, slope in node.alpha.items()}
                for name, node in curves.items()
            }
        for name, slopes in self.slopes.items():
            curves[name].alpha = {start: slope.clone() for start, slope in slopes.items()}

    def methods(self) -> dict[str, Method]:
        """By name."""
        return {
            "pass": partial(self.plain, fixed=True),
            "crown": partial(self.plain, fixed=False),
            "fixed": partial(self.optimised, fixed=True),
            "joint": partial(self.optimised, fixed=False),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--element", choices=("float32", "float64"), default="float64")
    parser.add_argument("--conv-mode", choices=("patches", "matrix"), default="patches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, arguments.element))
    serve(lambda task: Peer(task, arguments.conv_mode).methods())


if __name__ == "__main__":
    main()
