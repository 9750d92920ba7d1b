"""Krylov posterior sampling: draws that match the posterior, for linear operators and Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..likelihood import Likelihood
from ..moments import MomentMatched
from ..priors.base import Prior
from ..transitions import Estimate
from .base import Margins, require_count, require_positive
from .guided import GuidedSolver

__all__ = ["KPS"]


@dataclass(frozen=True)
class KPS(GuidedSolver):
    """Moment matching whose linear systems are solved, with steps of third order.

    With D = D(x, sigma) and S = sigma^2 dD / dx, the covariance of x0 given x (Tweedie), and R that of the noise,

        x0 = D + S A^T u,    (A S A^T + R) u = y - A D
        x' = (t^2 / sigma^2) x + t^2 int 2 e^2l P(l) dl + t sqrt(1 - t^2 / sigma^2) eps

    from level sigma to t, with P the parabola in l = -log sigma through the last three x0 (`transitions.sde3m`). The
    equation of x0 is that of `MMPS` (Rozet, Andry, Lanusse, Louppe 2024, section 4.2), exact where x0 given x is
    Gaussian. Here u is a least-squares solution over the u of the level before and over residuals preconditioned by the
    same system for stationary images, whose power spectrum is learned from the products made anyway
    (`invdiff.moments`). Above the prior's `jacobian_limit`, 1 for networks, whose Jacobians are no covariances there, S
    is that of stationary photographs. docs/kps.md tells the whole.

    On Gaussian images (inpainting 50 % / blur / 4x downsampling / denoising; `python -m benchmarks.posterior`) the
    default gives, against the exact posterior,

        error of the mean, posterior stds:    0.04 / 0.04 / 0.04 / 0.05
        std ratio:                            1.00 / 1.00 / 1.00 / 1.00
        coverage of nominal 90 % intervals:   0.90 / 0.90 / 0.90 / 0.90

    which is what exact draws give. Where x0 given x has several modes at levels that matter, their weights are off
    (`KPSCloud` weighs them).

    Args:
        steps: number of denoiser calls.
        products: most products with the denoiser's Jacobian at each level, each one backward pass (or one call more
            where the prior cannot be differentiated).
        tolerance: share of sigma (RMS) at which a member makes no more products.

    Raises:
        CapabilityError: if the operator is not linear, or the noise not Gaussian.
    """

    steps: int = 50
    schedule: str = "ve"
    sigma_min: float = 0.002
    transition: str = "sde3m"
    products: int = 5
    tolerance: float = 0.005

    margins: ClassVar[Margins] = Margins(mean=0.06, spread=(0.98, 1.02), coverage=(0.89, 0.91))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self, "products")
        require_positive(self, "tolerance")

    def guidance(self, likelihood: Likelihood, denoiser: Prior) -> Estimate:
        estimate: MomentMatched | None = None

        def matched(x: Tensor, sigma: float) -> Tensor:
            nonlocal estimate
            if estimate is None:
                estimate = MomentMatched(likelihood, denoiser, x, self.products, self.tolerance)
            return estimate(x, sigma)

        return matched
