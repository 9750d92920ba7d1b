"""Denoising diffusion restoration models: draws, for operators with an SVD."""

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
from .base import DiffusionSolver, Margins, SingularCoordinates, require_likelihood, require_svd

__all__ = ["DDRM"]


@dataclass(frozen=True)
class DDRM(DiffusionSolver):
    """Diffusion in the singular coordinates of A, each drawn to its measurement while that is the less noisy.

    With ybar = u^T y / s, the noise sigma_y / s of ybar, and x0 = D(x, sigma), a coordinate moves to the next level t:

        s = 0:             x0 + sqrt(1 - eta^2) t (x - x0) / sigma + eta t eps
        t < sigma_y / s:   x0 + sqrt(1 - eta^2) t (ybar - x0) s / sigma_y + eta t eps
        t >= sigma_y / s:  (1 - eta_b) x0 + eta_b ybar + sqrt(t^2 - eta_b^2 sigma_y^2 / s^2) eps

    Kawar, Elad, Ermon, Song 2022, "Denoising Diffusion Restoration Models", eqs. 7 and 8, in the official code's form
    and with its eta and eta_b.

    Its draws are not the posterior, even with an exact denoiser. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.30 / 0.43 / 0.05 / 0.21
        std ratio:                            0.84 / 0.53 / 0.77 / 0.71
        coverage of nominal 90 % intervals:   0.79 / 0.58 / 0.79 / 0.75

    More steps help where pixels are missing and hurt under blur: at 200 the means are off by 0.15 / 0.76 / 0.08 / 0.03.

    Args:
        steps: number of denoiser calls (the paper uses 20, which leaves scattered missing pixels visible).
        eta: share of fresh noise in what the measurement does not decide, 0 to 1.
        eta_b: weight of the measurement where it is the less noisy, 0 to 1.

    Raises:
        CapabilityError: if the operator has no SVD, or the noise is not Gaussian with one sigma per measurement.
    """

    steps: int = 50
    eta: float = 0.85
    eta_b: float = 1.0

    margins: ClassVar[Margins] = Margins(mean=0.50, spread=(0.50, 0.87), coverage=(0.55, 0.82))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eta", "eta_b"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name} of DDRM is {value!r}: expected a number from 0 to 1.")

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        likelihood = require_likelihood(self, likelihood)
        require_svd(self, likelihood)

    def start(self, likelihood: Likelihood | None, denoiser: Prior, like: Tensor, random: MemberRandom) -> Tensor:
        """0.5 + sigma_max eps, moved to ybar + sqrt(sigma_max^2 - sigma_y^2 / s^2) eps where y is the less noisy."""
        x = super().start(likelihood, denoiser, like, random)
        if likelihood is None or self.heuristic(denoiser):
            return x
        measured = _Measured(likelihood, like)
        first = self.levels(denoiser)[0]
        eps = measured.operator.vt((x - 0.5) / first)
        z = measured.operator.vt(x)
        informed = measured.ybar + (first**2 - measured.noise**2).clamp_min(0).sqrt() * eps
        return x + measured.operator.v(torch.where(measured.noise < first, informed, z) - z)

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        measured = _Measured(likelihood, x)
        z = measured.operator.vt(x)
        for sigma, t in itertools.pairwise(self.levels(denoiser)):
            x, z = measured.move(self, x, z, denoiser(x, sigma), random.normal(x), sigma, t)
            yield x


class _Measured(SingularCoordinates):
    """The measurement in singular coordinates, and how DDRM moves there."""

    def __init__(self, likelihood: Likelihood, like: Tensor) -> None:
        super().__init__(likelihood, like)
        self.full = bool(self.seen.all())
        self.unseen = (~self.seen).to(like.dtype)
        # 1 / noise, and 0 where that is infinite: those coordinates never ask for it.
        self.rate = torch.where(self.seen & (self.noise > 0), 1 / self.noise, 0.0)

    def move(
        self, solver: DDRM, x: Tensor, z: Tensor, x0: Tensor, eps: Tensor, sigma: float, t: float
    ) -> tuple[Tensor, Tensor]:
        """The image at the next level and its coordinates, from the image, its coordinates and the estimate x0."""
        v, vt, eta, eta_b = self.operator.v, self.operator.vt, solver.eta, solver.eta_b
        keep = (1 - eta**2) ** 0.5
        # Every coordinate is z0 + share (ybar - z0) + hold (z - z0) + fresh e.
        before = self.noise <= t
        share = torch.where(before, eta_b, keep * t * self.rate)
        fresh = torch.where(before, (t**2 - (eta_b * self.noise) ** 2).clamp_min(0).sqrt(), eta * t)
        z0, e = vt(x0), vt(eps)
        moved = z0 + share * (self.ybar - z0) + fresh * e
        if not self.full:
            moved = moved + (keep * t / sigma) * self.unseen * (z - z0)
        if self.operator.complete:
            return v(moved), moved
        free = z0 + (keep * t / sigma) * (z - z0) + (eta * t) * e
        return x0 + (keep * t / sigma) * (x - x0) + (eta * t) * eps + v(moved - free), moved
