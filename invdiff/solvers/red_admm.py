"""Regularisation by denoising, ADMM: point estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import PointSolver, column

__all__ = ["REDADMM"]


@dataclass(frozen=True)
class REDADMM(PointSolver):
    """ADMM on -log p(y | x) + w / 2 v^T (v - D(v, sigma)) with x = v, w = lam / sigma^2.

        x = argmin_x -log p(y | x) + beta / 2 |x - (v - u)|^2
        v = (beta (x + u) + w D(v, sigma)) / (beta + w),    `inner` times
        u = u + x - v

    Romano, Elad, Milanfar 2017, "The Little Engine That Could: Regularization by Denoising (RED)", its ADMM algorithm
    with the inner fixed point.

    Args:
        iterations: number of steps.
        sigma_start: first denoiser strength.
        sigma_end: last denoiser strength; the measurement's noise, at least 1/255, where left out.
        lam: weight of the prior.
        beta: penalty of the splitting, in multiples of w.
        inner: denoiser calls per step.
    """

    iterations: int = 50
    beta: float = 1.0
    inner: int = 1

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        v, u, last = x, torch.zeros_like(x), None
        for sigma in self.strengths(likelihood, denoiser, x):
            if last is not None:
                # u is the multiplier divided by the penalty, and the penalty has changed.
                u = u * column((sigma / last) ** 2, u)
            x = likelihood.prox(v - u, self.beta * self.lam / sigma**2)
            for _ in range(self.inner):
                v = (self.beta * (x + u) + denoiser(v, sigma)) / (self.beta + 1)
            u = u + x - v
            last = sigma
            yield x
