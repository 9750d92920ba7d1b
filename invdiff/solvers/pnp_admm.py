"""Plug-and-play ADMM: point estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import PointSolver, column

__all__ = ["PnPADMM"]


@dataclass(frozen=True)
class PnPADMM(PointSolver):
    """ADMM with a denoiser in the place of the prior's prox.

        x = argmin_x -log p(y | x) + rho / 2 |x - (v - u)|^2,    v = D(x + u, sigma),    u = u + x - v

    with rho = lam / sigma^2. Venkatakrishnan, Bouman, Wohlberg 2013, "Plug-and-Play Priors for Model Based
    Reconstruction", its plug-and-play ADMM algorithm.

    Args:
        iterations: number of steps.
        sigma_start: first denoiser strength.
        sigma_end: last denoiser strength; the measurement's noise, at least 1/255, where left out.
        lam: weight of the prior.
    """

    iterations: int = 30

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        v, u, last = x, torch.zeros_like(x), None
        for sigma in self.strengths(likelihood, denoiser, x):
            if last is not None:
                # u is the multiplier divided by rho, and rho has changed.
                u = u * column((sigma / last) ** 2, u)
            x = likelihood.prox(v - u, self.lam / sigma**2)
            v = denoiser(x + u, sigma)
            u = u + x - v
            last = sigma
            yield v
