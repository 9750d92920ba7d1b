"""Muon: momentum whose matrices are made orthogonal before they are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonal"]

# The quintic of Jordan 2024: its slope at 0 is steep, so that small singular values reach about 1 in five steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """U V^T of the SVD U S V^T, its singular values 0.7 to 1.2 and not 1, by a Newton-Schulz iteration in bfloat16."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16().T if tall else matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for the convolutions of a network: W <- W - 0.2 lr sqrt(max(m, n)) U V^T.

    A kernel (out, in, k, k) is the matrix m = out by n = in k k. The factor 0.2 sqrt(max(m, n)) gives the step the root
    mean square of an Adam step, so that both take the same learning rate. Jordan et al. 2024, "Muon: an optimizer for
    hidden layers in neural networks"; the factor from Liu et al. 2025, "Muon is scalable for LLM training", eq. 4.
    `torch.optim.Muon` takes matrices only.

    Args:
        params: weights of two dimensions or more.
        lr: learning rate.
        momentum: weight of the past in the Nesterov momentum.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                past: Tensor = state["momentum"]
                past.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(past, group["momentum"]).flatten(1)
                scale = 0.2 * max(update.shape) ** 0.5
                weight.add_(orthogonal(update).view_as(weight), alpha=-group["lr"] * scale)
