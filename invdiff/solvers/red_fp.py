"""Regularisation by denoising, fixed point: point estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import PointSolver

__all__ = ["REDFP"]


@dataclass(frozen=True)
class REDFP(PointSolver):
    """Solve -grad log p(y | x) + w (x - D(x, sigma)) = 0 with the denoised image held from the step before.

        x_{k+1} = argmin_x -log p(y | x) + w / 2 |x - D(x_k, sigma_k)|^2,    w = lam / sigma_k^2

    Romano, Elad, Milanfar 2017, "The Little Engine That Could: Regularization by Denoising (RED)", its fixed-point
    algorithm.

    Args:
        iterations: number of steps.
        sigma_start: first denoiser strength.
        sigma_end: last denoiser strength; the measurement's noise, at least 1/255, where left out.
        lam: weight of the prior.
    """

    iterations: int = 50

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        for sigma in self.strengths(likelihood, denoiser, x):
            x = likelihood.prox(denoiser(x, sigma), self.lam / sigma**2)
            yield x
