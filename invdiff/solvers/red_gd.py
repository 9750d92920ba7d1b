"""Regularisation by denoising, gradient descent: point estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import PointSolver, column, lipschitz

__all__ = ["REDGD"]


@dataclass(frozen=True)
class REDGD(PointSolver):
    """Steepest descent on -log p(y | x) + w / 2 x^T (x - D(x, sigma)), with w = lam / sigma^2.

        x = x - step (-grad log p(y | x) + w (x - D(x, sigma))),    step = 1 / (L + w),    L = |A|^2 / sigma_y^2

    Romano, Elad, Milanfar 2017, "The Little Engine That Could: Regularization by Denoising (RED)", its steepest-descent
    algorithm. The paper's lambda is our w times sigma_y^2, up to its image range of 255. Pixels that were not measured
    move by w / (L + w) of what the denoiser asks for, which is little: for missing pixels use REDFP or REDADMM.

    Args:
        iterations: number of steps.
        sigma_start: first denoiser strength.
        sigma_end: last denoiser strength; the measurement's noise, at least 1/255, where left out.
        lam: weight of the prior.

    Raises:
        CapabilityError: if the step length is not known: a nonlinear operator, Poisson noise, or sigma_y = 0.
    """

    iterations: int = 200

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        assert likelihood is not None
        lipschitz(likelihood)

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        curvature = column(lipschitz(likelihood).to(x), x)
        for sigma in self.strengths(likelihood, denoiser, x):
            weight = column(self.lam / sigma**2, x)
            # In place and in few passes, which are the time where the denoiser is quick; the same bits.
            uphill = (x - denoiser(x, sigma)).mul_(weight).sub_(likelihood.grad(x))
            x = torch.addcdiv(x, uphill, curvature + weight, value=-1)
            yield x
