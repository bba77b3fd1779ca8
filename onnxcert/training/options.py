"""Settings of a training run, and what they say at each moment of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from onnxcert.errors import UsageError

ACTIVATIONS = ("minmax", "relu")
LOSSES = ("gloro", "trades", "emma")
DECAYS = ("cosine", "exponential")

_WARM_UP = 0.05
"""Share of the run in which the learning rate grows."""

_DECADES = 3.0
"""That the learning rate falls by, in the second half, where it decays exponentially."""


@dataclass(frozen=True)
class Options:
    """How to train; the defaults suit images with values in [0, 1].

    Attributes:
        eps: the Euclidean radius that is wanted.
        net: as `onnxcert.training.architecture` says.
        activation: ``minmax`` sorts pairs of neurons; or ``relu``.
        loss: ``gloro``, ``trades`` or ``emma``.
        weight: of the second term of ``trades``, when training ends; it grows like the radius.
        train_eps: the radius in the loss, when it has grown; by default half as much again as eps.
        ramp: share of the run in which that grows from zero.
        epochs, batch: passes over the data, and inputs of one step, at most.
        learning_rate: of Adam, at its largest; decay: ``cosine``, or ``exponential`` over the
            second half.
        steps: of the power method, for each layer and batch.
        shift: pixels that training images are moved by, at most.
        warp: share of their size that the edges of training images are moved by, at most: turned,
            scaled and sheared.
        flip: whether half of the training images are mirrored.
        seed: of weights and order.
    """

    eps: float
    net: str = "mlp:256,128"
    activation: str = "minmax"
    loss: str = "gloro"
    weight: float = 2.0
    train_eps: float | None = None
    ramp: float = 0.5
    epochs: int = 20
    batch: int = 256
    learning_rate: float = 2e-3
    decay: str = "cosine"
    steps: int = 3
    shift: int = 0
    warp: float = 0.0
    flip: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: an option is out of its range.
        """
        self._one_of("activation", ACTIVATIONS)
        self._one_of("loss", LOSSES)
        self._one_of("decay", DECAYS)
        self._number("eps", "a radius above 0", lambda v: v > 0.0)
        if self.train_eps is not None:
            self._number("train_eps", "a radius above 0", lambda v: v > 0.0)
        self._number("weight", "a number from 0", lambda v: v >= 0.0)
        self._number("learning_rate", "a number above 0", lambda v: v > 0.0)
        self._number("ramp", "a share, from 0 to 1", lambda v: 0.0 <= v <= 1.0)
        self._number("warp", "a share, from 0 to 0.5", lambda v: 0.0 <= v <= 0.5)
        for name in ("epochs", "batch", "steps"):
            self._number(name, "a whole number above 0", lambda v: v >= 1 and v == int(v))
        for name in ("shift", "seed"):
            self._number(name, "a whole number from 0", lambda v: v >= 0 and v == int(v))

    def _one_of(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise UsageError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")

    def _number(self, name: str, what: str, fits: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        known = isinstance(value, (int, float)) and math.isfinite(value)
        if not known or not fits(value):
            raise UsageError(f"{name} is {what}, not {value!r}")

    def radius_at(self, share: float) -> float:
        """The radius in the loss when this share of the run, from 0 to 1, is done."""
        full = 1.5 * self.eps if self.train_eps is None else self.train_eps
        return full * self._grown(share)

    def weight_at(self, share: float) -> float:
        """The weight of the second term of ``trades``."""
        return self.weight * self._grown(share)

    def _grown(self, share: float) -> float:
        return min(1.0, share / self.ramp) if self.ramp else 1.0

    def learning_rate_at(self, share: float) -> float:
        """Adam's learning rate."""
        rate = self.learning_rate * min(1.0, share / _WARM_UP)
        if self.decay == "cosine":
            return rate * 0.5 * (1.0 + math.cos(math.pi * share))
        return rate * float(10.0 ** (-_DECADES * max(0.0, 2.0 * share - 1.0)))

    def to_json(self) -> str:
        """All of them, in one line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, chosen: Mapping[str, Any]) -> Options:
        """From keywords, eps among them.

        Raises:
            UsageError: there is no such option, or it is out of its range.
        """
        known = [option.name for option in fields(cls)]
        for name in chosen:
            if name not in known:
                raise UsageError(f"there is no option {name!r}", help=f"one of {', '.join(known)}")
        options = cls(**chosen)
        options.check()
        return options
