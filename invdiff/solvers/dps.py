"""Diffusion posterior sampling: draws, for any operator and a differentiable prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators.linalg import norm
from ..priors.base import Prior
from ..random import MemberRandom
from .base import CapabilityError, DiffusionSolver, Margins, instead, require_positive

__all__ = ["DPS"]


@dataclass(frozen=True)
class DPS(DiffusionSolver):
    """Ancestral sampling with a step down the gradient of the residual's norm, taken through the denoiser.

    From level sigma to the next level t, with x0 = D(x, sigma):

        x' = x0 + (t^2 / sigma^2) (x - x0) + t sqrt(1 - t^2 / sigma^2) eps
        x' - zeta / 2 sqrt((1 + 4 sigma^2)(1 + 4 t^2)) grad_x |y - A x0|

    Chung, Kim, Mccann, Klasky, Ye 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems", algorithm 1
    with the official code's gradient of the norm (not of its square). The square root carries the step from the
    variance-preserving process on [-1, 1] images, where it is zeta, to ours; each member has its own norm. The noise
    level sigma_y does not enter: the method pulls the residual to 0, whatever its size should be.

    Its draws are not the posterior, even with an exact denoiser. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.49 / 1.06 / 0.28 / 0.58
        std ratio:                            0.82 / 0.73 / 0.90 / 0.35
        coverage of nominal 90 % intervals:   0.42 / 0.59 / 0.85 / 0.38

    With zeta = 0.3 the coverage is 0.49 / 0.80 / 0.85 / 0.11.

    Args:
        steps: number of denoiser calls and backward passes (the paper uses 1,000; 20 left a blurred photograph
            worse than its measurement).
        zeta: step size of the paper (0.3 to 1).

    Raises:
        CapabilityError: if the prior cannot be differentiated, or the noise is not Gaussian.
    """

    steps: int = 1000
    zeta: float = 1.0

    margins: ClassVar[Margins] = Margins(mean=1.15, spread=(0.32, 0.93), coverage=(0.36, 0.88))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "zeta")

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        if likelihood is None:
            return
        if not denoiser.differentiable:
            raise CapabilityError(
                f"DPS differentiates its prior, and {denoiser.name} cannot be. {instead(likelihood, denoiser)}"
            )
        if not isinstance(likelihood.noise, GaussianNoise):
            raise CapabilityError(
                f"DPS steps down the norm of a Gaussian residual; {type(likelihood.noise).__name__} has none. "
                f"{instead(likelihood)}"
            )

    def iterate(
        self, likelihood: Likelihood | None, denoiser: Prior, x: Tensor, random: MemberRandom
    ) -> Iterator[Tensor]:
        levels = self.levels(denoiser)
        for sigma, t in itertools.pairwise(levels):
            if likelihood is None:
                x0, slope = denoiser(x, sigma), None
            else:
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_(True)
                    estimate = denoiser(leaf, sigma)
                    # The members' norms are summed only to be differentiated: each gradient is its own member's.
                    misfit = norm(likelihood.residual(estimate)).sum()
                    (slope,) = torch.autograd.grad(misfit, leaf)
                x0 = estimate.detach()
            ratio = t / sigma
            x = x0 + ratio**2 * (x - x0) + t * (1 - ratio**2) ** 0.5 * random.normal(x)
            if slope is not None:
                x = x - self.zeta / 2 * ((1 + 4 * sigma**2) * (1 + 4 * t**2)) ** 0.5 * slope
            yield x
