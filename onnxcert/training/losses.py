"""Losses of a batch that know constants and a radius.

All take logits y (B, m), labels (B,), constants K (m, m) of y_i - y_j and a radius eps, and return
the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

_LEAST_SHARE = 0.01
"""Of the radius, that EMMA asks for at least."""

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, float], torch.Tensor]
"""From logits, labels, constants, radius and the weight of the second term."""


def with_bottom(logits: torch.Tensor, pairs: torch.Tensor, eps: float) -> torch.Tensor:
    """Append the bottom logit: the most that other classes than the winner may reach."""
    winner = logits.argmax(dim=1)
    raised = logits + eps * pairs[winner]
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, winner[:, None], value=False)
    bottom = torch.where(others, raised, -torch.inf).amax(dim=1, keepdim=True)
    return torch.cat([logits, bottom], dim=1)


def gloro(
    logits: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor, eps: float, weight: float
) -> torch.Tensor:
    """Cross-entropy of all logits and the bottom one (Leino, Wang, Fredrikson, ICML 2021)."""
    del weight
    return functional.cross_entropy(with_bottom(logits, pairs, eps), labels)


def trades(
    logits: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor, eps: float, weight: float
) -> torch.Tensor:
    """Cross-entropy, and ``weight`` times the divergence of the answer without bottom from that
    with it."""
    clean = functional.log_softmax(logits, dim=1)
    extended = functional.log_softmax(with_bottom(logits, pairs, eps), dim=1)[:, :-1]
    divergence = (clean.exp() * (clean - extended)).sum(dim=1).mean()
    return functional.nll_loss(clean, labels) + weight * divergence


def emma(
    logits: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor, eps: float, weight: float
) -> torch.Tensor:
    """Cross-entropy where each wrong logit is raised by what it may gain within a radius that it
    nearly reaches, at most eps (Hu et al., NeurIPS 2023)."""
    del weight
    constants = pairs[labels]
    own = logits.gather(1, labels[:, None])
    reached = (own - logits).detach() / constants.detach().clamp_min(1e-12)
    radius = reached.clamp(_LEAST_SHARE * eps, eps)
    wrong = torch.ones_like(logits).scatter_(1, labels[:, None], 0.0)
    return functional.cross_entropy(logits + wrong * radius * constants, labels)


LOSSES: Mapping[str, Loss] = {"gloro": gloro, "trades": trades, "emma": emma}
