"""Decoupled annealing posterior sampling: draws, for any operator and any prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..langevin import curvature, langevin, stable_step
from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import LinearOperator
from ..priors.base import Prior
from ..random import MemberRandom
from ..schedule import noise_levels
from ..transitions import ddim
from .base import (
    CapabilityError,
    DiffusionSolver,
    Margins,
    instead,
    require_count,
    require_likelihood,
    require_positive,
)

__all__ = ["DAPS"]


@dataclass(frozen=True)
class DAPS(DiffusionSolver):
    """At every noise level a fresh image between estimate and measurement, and then noise anew down to the next level.

    From level sigma to the next level t:

        x0hat = the ODE dx / dsigma = (x - D(x, sigma)) / sigma from x down to 0, in a few Euler steps
        x0y   = Langevin steps from x0hat for p(y | x0) N(x0; x0hat, sigma^2 I)  (`invdiff.langevin`)
        x'    = x0y + t eps

    Zhang, Chu, Berner, Meng, Anandkumar, Song 2025, "Improving Diffusion Inverse Problem Solving with Decoupled Noise
    Annealing", algorithm 1, with the official code's spread r = sigma of p(x0 | x) and its settings, on [-1, 1] images:
    200 levels of Karras from 100 to 0.1 (here 40, or what the prior serves, to 0.05), 5 Euler steps down to 0.01, 100
    Langevin steps of 1e-4 falling to a hundredth of that, and a likelihood of noise tau = 0.01 whatever the noise is.

    Its draws are not the posterior, even with an exact denoiser: p(x0 | x) is no Gaussian of equal variance in every
    direction around the end of the ODE, and y is trusted to tau. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.20 / 0.50 / 0.15 / 0.49
        std ratio:                            0.84 / 0.79 / 0.86 / 0.25
        coverage of nominal 90 % intervals:   0.58 / 0.76 / 0.84 / 0.29

    With tau = None, the noise that y has, the spread is too large instead: over 128 draws the std ratio is
    1.34 / 1.32 / 1.31 / 1.06 and the coverage 0.94 / 0.97 / 0.97 / 0.91.

    Args:
        steps: number of noise levels.
        schedule: spacing of the noise levels, a name of `invdiff.schedule.noise_levels`.
        sigma_min: last noise level before 0, image units.
        sigma_max: first noise level; where left out the highest of the prior's range, and at most 40.
        ode_steps: denoiser calls per level; 1 takes D(x, sigma) itself.
        langevin_steps: gradients of the likelihood per level.
        lr: first Langevin step in units of tau^2; never longer than one over the curvature, where it stays stable.
        lr_ratio: the last Langevin step over the first, falling evenly in between.
        tau: the noise assumed by the Langevin steps, image units; None takes the noise that y has.

    Raises:
        CapabilityError: if the noise is not Gaussian, or tau is None where sigma_y is 0.
    """

    steps: int = 200
    schedule: str = "karras"
    sigma_min: float = 0.05
    ode_steps: int = 5
    langevin_steps: int = 100
    lr: float = 1.0
    lr_ratio: float = 0.01
    tau: float | None = 0.005

    margins: ClassVar[Margins | None] = Margins(mean=0.6, spread=(0.22, 0.89), coverage=(0.26, 0.87))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self, "ode_steps", "langevin_steps")
        require_positive(self, "lr", "lr_ratio", "tau")

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        likelihood = require_likelihood(self, likelihood)
        if not isinstance(likelihood.noise, GaussianNoise):
            raise CapabilityError(
                f"DAPS takes Langevin steps for Gaussian noise; this is {type(likelihood.noise).__name__}. "
                f"{instead(likelihood)}"
            )
        if self.tau is None and bool((likelihood.noise.like(likelihood.batched_y) == 0).any()):
            raise CapabilityError(
                "sigma_y is 0, where a Langevin step of DAPS has no length: give a tau, or for a linear operator "
                "use PnPADMM or PnPHQS, which project."
            )

    def spread(self, sigma: float) -> float:
        """The standard deviation r of p(x0 | x_sigma) around x0hat, in every direction alike."""
        return sigma

    def estimate(self, denoiser: Prior, x: Tensor, sigma: float, random: MemberRandom) -> Tensor:
        """x0hat: the end of the ODE from x, in `ode_steps` denoiser calls."""
        # 0.005 is the paper's last level before 0.
        last = max(0.005, denoiser.sigma_range[0])
        if self.ode_steps == 1 or sigma <= last:
            return denoiser(x, sigma)
        for iterate in ddim(denoiser, x, noise_levels("karras", self.ode_steps, last, sigma), random, eta=0.0):
            x = iterate
        return x

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        if self.tau is not None:
            likelihood = replace(likelihood, noise=GaussianNoise(self.tau))
        assert isinstance(likelihood.noise, GaussianNoise)
        variance = likelihood.noise.like(likelihood.batched_y).flatten(1).min(1).values.to(x) ** 2
        linear = isinstance(likelihood.operator, LinearOperator)
        bend = curvature(likelihood, x)
        for k, (sigma, t) in enumerate(itertools.pairwise(self.levels(denoiser))):
            x0 = self.estimate(denoiser, x, sigma, random)
            if not linear:
                bend = curvature(likelihood, x0)
            spread = self.spread(sigma)
            wanted = self.lr * (1 - (1 - self.lr_ratio) * k / self.steps) * variance
            step = stable_step(wanted, bend, spread, x)
            x = langevin(likelihood, x0, x0, spread, step, self.langevin_steps, random)
            if t > 0:
                x = x + t * random.normal(x)
            yield x
