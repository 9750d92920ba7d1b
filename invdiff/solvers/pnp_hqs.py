"""Plug-and-play half-quadratic splitting (DPIR): point estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import PointSolver

__all__ = ["PnPHQS"]


@dataclass(frozen=True)
class PnPHQS(PointSolver):
    """Alternate the prox of the data with a denoiser of decreasing strength.

        x_k = argmin_x -log p(y | x) + lam / (2 sigma_k^2) |x - z_{k-1}|^2,    z_k = D(x_k, sigma_k)

    Zhang, Li, Zuo, Zhang, Van Gool, Timofte 2021, "Plug-and-Play Image Restoration with Deep Denoiser Prior", eqs. 6
    and 7: sigma_k log-spaced down to the noise of the measurement, lam = 0.23. The paper starts at 49/255, near the
    limit of its denoiser, and so does this with such a prior; a prior that goes further starts at 0.5, which missing
    pixels need.

    Args:
        iterations: number of steps (the paper uses 8 for deblurring, 24 for super-resolution).
        sigma_start: first denoiser strength, at most the highest of the prior's range.
        sigma_end: last denoiser strength; the measurement's noise, at least 1/255, where left out.
        lam: weight of the prior.
    """

    iterations: int = 24

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        z = x
        for sigma in self.strengths(likelihood, denoiser, x):
            z = denoiser(likelihood.prox(z, self.lam / sigma**2), sigma)
            yield z
