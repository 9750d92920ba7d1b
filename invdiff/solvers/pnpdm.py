"""Plug-and-play diffusion models (split Gibbs): draws, for any operator and any prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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
from .base import (
    CapabilityError,
    DiffusionSolver,
    Margins,
    instead,
    require_count,
    require_likelihood,
    require_positive,
)

__all__ = ["PnPDM"]


@dataclass(frozen=True)
class PnPDM(DiffusionSolver):
    """A Gibbs sampler of an image z that explains y and an image x of the prior, tied to each other by |x - z| / rho.

    Its target is p(x, z | y) ~ p(x) exp(-|x - z|^2 / (2 rho^2)) p(y | z), one conditional after the other:

        z ~ p(y | z) N(z; x, rho^2 I)   linear A: argmin_z |y + n' - A z|^2 / sigma_y^2 + |z - x - rho eps|^2 / rho^2
        x ~ p(x) N(z; x, rho^2 I)       the reverse diffusion from z at noise level rho down to 0, by Euler steps
                                        x' = x - 2 (1 - t / sigma) (x - D(x, sigma)) + sqrt(2 sigma (sigma - t)) eps
                                        and D(x, sigma) at the end

    with rho falling over the run. n' has the law of the measurement noise, which makes the first line an exact draw,
    of covariance (A^T A / sigma_y^2 + I / rho^2)^-1; for a nonlinear A it is Langevin steps (`invdiff.langevin`).

    Wu, Sun, Chen, Zhang, Yue, Bouman 2024, "Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play
    Priors", algorithm 1, with the official code's settings, on [-1, 1] images: 100 iterations, rho from 10 by 0.9 down
    to 0.3 (here 5 and 0.15), the levels below rho of Karras's 100 from 80 to 0.002, Langevin steps 100 of sigma_y^2.
    Its diffusion starts at rho itself, not at the next level of the grid, and ends in D at the last level above 0 where
    the official code's step is 2 D - x: where a prior serves no level below 0.05 that would leave noise of 0.05. Its
    mode of an ODE is left out: from one z it ends in one x and draws none.

    As far as the diffusion is exact, x follows the posterior of a noisier measurement, of covariance
    sigma_y^2 I + rho^2 A A^T: that is the method's bias. A small rho has little of it but takes some (std / rho)^2
    iterations to forget where it started. On Gaussian images (inpainting 50 % / blur / 4x downsampling / denoising;
    `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.65 / 0.29 / 0.11 / 1.39
        std ratio:                            1.35 / 1.17 / 1.03 / 2.11
        coverage of nominal 90 % intervals:   0.94 / 0.94 / 0.91 / 0.96

    With rho_min = 0.05 the means are off by 0.18 / 0.08 / 0.05 / 0.40 and the coverage is 0.93 / 0.90 / 0.90 / 0.96.

    Args:
        steps: number of iterations.
        schedule: spacing of the diffusion's noise levels, a name of `invdiff.schedule.noise_levels`.
        sigma_min: last noise level of the diffusion before 0, image units.
        sigma_max: first rho, image units; where left out 5, or the highest of the prior's range.
        rho_min: last rho, image units (the paper's nonlinear problems have 0.05).
        decay: factor on rho for each hundredth of the run.
        prior_steps: noise levels from 40 to sigma_min, of which a diffusion takes those below its rho.
        langevin_steps: gradients of the likelihood per iteration, for a nonlinear operator.
        lr: Langevin step in units of sigma_y^2; never longer than one over the curvature, where it stays stable.

    Raises:
        CapabilityError: if the noise is not Gaussian, or sigma_y is 0 with a nonlinear operator.
    """

    schedule: str = "karras"
    sigma_min: float = 0.001
    rho_min: float = 0.15
    decay: float = 0.9
    prior_steps: int = 100
    langevin_steps: int = 100
    lr: float = 1.0

    margins: ClassVar[Margins | None] = Margins(mean=1.6, spread=(1.0, 2.2), coverage=(0.87, 0.99))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self, "langevin_steps")
        require_count(self, "prior_steps", least=2)
        require_positive(self, "rho_min", "decay", "lr")
        if self.decay > 1:
            raise ValueError(f"decay of PnPDM is {self.decay}: expected a number above 0 and at most 1.")

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        likelihood = require_likelihood(self, likelihood)
        if not isinstance(likelihood.noise, GaussianNoise):
            raise CapabilityError(
                f"PnPDM draws from a Gaussian likelihood; this is {type(likelihood.noise).__name__}. "
                f"{instead(likelihood)}"
            )
        exact = bool((likelihood.noise.like(likelihood.batched_y) == 0).any())
        if exact and not isinstance(likelihood.operator, LinearOperator):
            raise CapabilityError(
                "sigma_y is 0, where a Langevin step of PnPDM has no length: give a nonlinear operator a small sigma."
            )

    def levels(self, denoiser: Prior) -> list[float]:
        """rho of every iteration, and then 0."""
        low, high = denoiser.sigma_range
        first = self.sigma_max if self.sigma_max is not None else min(high, 5.0)
        last = min(max(self.rho_min, low), first)
        return [*(max(first * self.decay ** (100 * k / self.steps), last) for k in range(self.steps)), 0.0]

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        lowest = max(self.sigma_min, denoiser.sigma_range[0])
        grid = noise_levels(self.schedule, self.prior_steps, lowest, 40.0)
        for rho in self.levels(denoiser)[:-1]:
            z = self.explain(likelihood, x, rho, random)
            # A level next to rho would cost a call and move nothing.
            below = [level for level in grid if level < 0.999 * rho]
            x = diffuse(denoiser, z, [rho, *below], random)
            yield x

    def explain(self, likelihood: Likelihood, x: Tensor, rho: float, random: MemberRandom) -> Tensor:
        """One draw of z ~ p(y | z) N(z; x, rho^2 I): exact for a linear operator, Langevin steps otherwise."""
        noise = likelihood.noise
        assert isinstance(noise, GaussianNoise)
        y = likelihood.batched_y.to(x)
        if isinstance(likelihood.operator, LinearOperator):
            perturbed = noise.sample(y.expand(x.shape[0], *y.shape[1:]), random)
            return replace(likelihood, y=perturbed).prox(x + rho * random.normal(x), rho**-2)
        variance = noise.like(y).flatten(1).min(1).values ** 2
        step = stable_step(self.lr * variance, curvature(likelihood, x), rho, x)
        return langevin(likelihood, x, x, rho, step, self.langevin_steps, random)


def diffuse(denoiser: Prior, x: Tensor, levels: Sequence[float], random: MemberRandom) -> Tensor:
    """One draw of the image behind x at noise level levels[0]: Euler steps of the reverse SDE."""
    for sigma, t in itertools.pairwise(levels):
        x0 = denoiser(x, sigma)
        if t == 0:
            # The Euler step would be 2 D - x, which keeps the noise that is left over and turns its sign.
            return x0
        x = x - 2 * (1 - t / sigma) * (x - x0) + (2 * sigma * (sigma - t)) ** 0.5 * random.normal(x)
    return x
