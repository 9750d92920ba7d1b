"""Pseudo-inverse guided diffusion: draws, for linear operators and a differentiable prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..jacobian import Linearised
from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from ..transitions import Estimate
from .base import Margins, require_positive
from .guided import GuidedSolver

__all__ = ["PiGDM"]


@dataclass(frozen=True)
class PiGDM(GuidedSolver):
    """Guidance by the likelihood of y under x0 | x ~ N(D(x, sigma), r^2 I), through the denoiser's Jacobian.

    From level sigma to the next level t, with x0 = D(x, sigma) and J = dD / dx:

        g = J^T A^T (r^2 A A^T + sigma_y^2)^-1 (y - A x0),    r^2 = sigma^2 s^2 / (sigma^2 + s^2),    s = image_std
        x' = DDIM step from x with x0 (`invdiff.transitions`) + r^2 g

    Song, Vahdat, Mardani, Kautz 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems": images of unit
    variance on [-1, 1], which is s = 0.5 here, and eta = 1. The step is that of public implementations (RED-diff's and
    azula's PGDM), whose factor on the gradient in x_t is sqrt(abar_s abar_t), from level t to level s; the step printed
    as algorithm 1 has another factor. The inverse is exact where there is an SVD and by conjugate gradients elsewhere;
    without noise it is the pseudo-inverse. The other transitions follow the estimate E[x0 | x, y] = x0 + sigma^2 g of
    the same model. That is the better one while r^2 is not far from the variance, but pixels that vary together have
    far more of it: on images of many pixels and at high noise x0 + sigma^2 g overshoots, which the weight r^2 prevents.

    Its draws are not the posterior, even with an exact denoiser. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.19 / 0.50 / 0.25 / 0.33
        std ratio:                            0.80 / 0.77 / 0.84 / 0.56
        coverage of nominal 90 % intervals:   0.72 / 0.75 / 0.82 / 0.62

    By transition "ddim" they are 0.32 / 0.12 / 0.07 / 0.34, 0.96 / 0.88 / 0.91 / 0.87 and 0.86 / 0.85 / 0.86 / 0.83.

    Args:
        steps: number of denoiser calls and backward passes.
        transition: "pigdm" as above, or one of `invdiff.transitions`.
        eta: share of fresh noise in "ddim" and "pigdm", 0 to 1.
        image_std: standard deviation s of the pixels where nothing is known, image units.

    Raises:
        CapabilityError: if the prior cannot be differentiated, the operator is not linear or the noise not Gaussian.
    """

    steps: int = 100
    transition: str = "pigdm"
    image_std: float = 0.5

    margins: ClassVar[Margins] = Margins(mean=0.60, spread=(0.53, 0.87), coverage=(0.59, 0.85))
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "image_std")

    @classmethod
    def transitions(cls) -> tuple[str, ...]:
        return ("pigdm", *super().transitions())

    def variance(self, sigma: float) -> float:
        """r^2 at level sigma, image units^2."""
        return sigma**2 * self.image_std**2 / (sigma**2 + self.image_std**2)

    def guidance(self, likelihood: Likelihood, denoiser: Prior) -> Estimate:
        """x0 + sigma^2 g, E[x0 | x, y] of the model."""

        def estimate(x: Tensor, sigma: float) -> Tensor:
            x0, pull = self.pull(likelihood, denoiser, x, sigma)
            return x0 + sigma**2 / self.variance(sigma) * pull

        return estimate

    def pull(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """x0 and r^2 g, (b, *in_shape) each."""
        here = Linearised(denoiser, x, sigma)
        # prox(x0, 1 / r^2) is x0 + r^2 A^T (r^2 A A^T + sigma_y^2)^-1 (y - A x0).
        return here.x0, here.vjp(likelihood.prox(here.x0, 1 / self.variance(sigma)) - here.x0)

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        if self.transition != "pigdm":
            yield from super().iterate(likelihood, denoiser, x, random)
            return
        for sigma, t in itertools.pairwise(self.levels(denoiser)):
            x0, pull = self.pull(likelihood, denoiser, x, sigma)
            fresh = (self.eta * t) ** 2 * (1 - (t / sigma) ** 2)
            x = x0 + (t**2 - fresh) ** 0.5 / sigma * (x - x0) + pull
            if fresh > 0:
                x = x + fresh**0.5 * random.normal(x)
            yield x
