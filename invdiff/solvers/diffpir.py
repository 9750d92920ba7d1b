"""Diffusion plug-and-play restoration (DiffPIR): draws, for linear operators and any diffusion prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from ..transitions import Estimate
from .base import Margins, require_positive
from .guided import GuidedSolver, require_share

__all__ = ["DiffPIR"]


@dataclass(frozen=True)
class DiffPIR(GuidedSolver):
    """The denoised image moved towards the measurement by a proximal step, then noised again.

    From level sigma to the next level t:

        x0 = argmin_z |y - A z|^2 / (2 sigma_y^2) + rho / 2 |z - D(x, sigma)|^2,    rho = lam / (2 sigma)^2
        x' = x0 + t (sqrt(1 - zeta) (x - x0) / sigma + sqrt(zeta) eps)

    Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool 2023, "Denoising Diffusion Models for Plug-and-Play Image
    Restoration", algorithm 1. The official code divides a sigma_y of [0, 1] images by a sigma of [-1, 1] images, which
    is twice ours: hence the 2. Its lam and zeta for deblurring are the defaults here; it goes from 1 and 1
    (inpainting) to 7 and 0.3.

    Its draws are not the posterior, even with an exact denoiser. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.33 / 0.11 / 0.10 / 0.08
        std ratio:                            1.03 / 0.91 / 0.94 / 0.96
        coverage of nominal 90 % intervals:   0.89 / 0.86 / 0.88 / 0.88

    Args:
        steps: number of denoiser calls.
        transition: "diffpir" as above, or one of `invdiff.transitions`, to which x0 is the estimate.
        eta: share of fresh noise in "ddim", 0 to 1.
        lam: weight of the denoised image.
        zeta: share of fresh noise in "diffpir", 0 to 1.

    Raises:
        CapabilityError: if the operator is not linear.
    """

    steps: int = 100
    transition: str = "diffpir"
    lam: float = 7.0
    zeta: float = 0.3

    margins: ClassVar[Margins] = Margins(mean=0.40, spread=(0.88, 1.06), coverage=(0.84, 0.92))
    gaussian: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "lam")
        require_share(self, "zeta")

    @classmethod
    def transitions(cls) -> tuple[str, ...]:
        return ("diffpir", *super().transitions())

    def guidance(self, likelihood: Likelihood, denoiser: Prior) -> Estimate:
        """The image nearest to the denoised one for what it misses of y."""

        def estimate(x: Tensor, sigma: float) -> Tensor:
            return likelihood.prox(denoiser(x, sigma), self.lam / (2 * sigma) ** 2)

        return estimate

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        if self.transition != "diffpir":
            yield from super().iterate(likelihood, denoiser, x, random)
            return
        estimate = self.guidance(likelihood, denoiser)
        for sigma, t in itertools.pairwise(self.levels(denoiser)):
            x0 = estimate(x, sigma)
            x = torch.lerp(x0, x, (1 - self.zeta) ** 0.5 * t / sigma)
            if t > 0 and self.zeta > 0:
                x = torch.add(x, random.normal(x), alpha=self.zeta**0.5 * t)
            yield x
