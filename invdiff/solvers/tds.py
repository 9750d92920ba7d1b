"""Twisted diffusion sampler: clouds of particles, for any operator and a differentiable prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..clouds import gather, likelihood_of_particles, resample
from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import Spectral
from ..priors.base import Prior
from ..random import MemberRandom
from .base import CapabilityError, Margins, SingularCoordinates, instead, require_likelihood, require_positive
from .cloud import CloudSolver

__all__ = ["TDS"]


@dataclass(frozen=True)
class TDS(CloudSolver):
    """Guided particles, with weights that take back what the guidance has got wrong.

    The twist at level sigma is what the denoised image x0 = D(x, sigma) says of y,

        T_sigma(x) = N(y; A x0, sigma_y^2 + r^2 A A^T),    r^2 = sigma^2 tau^2 / (sigma^2 + tau^2)

    (r^2 in place of r^2 A A^T where A has no SVD). From level sigma to the next level t, particles are resampled by
    their weights, drawn from the guided step q and weighted against the step p of the prior:

        p(x' | x) = N(x0 + (t^2 / sigma^2) (x - x0), t^2 (1 - t^2 / sigma^2))
        q(x' | x) = the same with x0 + sigma^2 grad log T_sigma(x) in place of x0
        w = p(x' | x) T_t(x') / (q(x' | x) T_sigma(x))

    The last step is x' = x0, with the likelihood p(y | x') in place of p T_t / q where sigma_y > 0. With enough
    particles a cloud is the posterior of the chain of the steps p, whatever the twist.

    Wu, Trippe, Naesseth, Blei, Cunningham 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion
    Models", algorithm 1, with the twist of its inpainting and sigma_y^2 added.

    Its draws are not the posterior, even with an exact denoiser. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.19 / 0.06 / 0.11 / 0.23
        std ratio:                            0.90 / 0.88 / 0.90 / 0.86
        coverage of nominal 90 % intervals:   0.85 / 0.85 / 0.86 / 0.83

    What is left is of the steps, 100 of which are too few for the chain to be the prior, more than of the particles.
    Nothing tells that steps are far too few, as no draw is infinite: with 5 of them and 2 particles pixels of these
    images lie between -1.9 and 2.5, where exact draws lie between -0.1 and 1.1. `invdiff check` says so.

    Args:
        steps: denoiser calls and backward passes for one particle (100 in the official code's experiments with images).
        particles: number of particles in a cloud (4 in the official code's experiments with images).
        resampling: "systematic", as there, before every step.
        keep: "one" or "cloud" (`CloudSolver`).
        tau: standard deviation of images in the twist, image units; None makes r = sigma.

    Raises:
        CapabilityError: if the prior cannot be differentiated, or the noise is not Gaussian.
    """

    particles: int = 4
    # The official code's tau^2 = 0.12 on [-1, 1].
    tau: float | None = 0.17

    margins: ClassVar[Margins] = Margins(mean=0.27, spread=(0.82, 0.94), coverage=(0.80, 0.89))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "tau")

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        likelihood = require_likelihood(self, likelihood)
        if not denoiser.differentiable:
            raise CapabilityError(
                f"TDS differentiates its prior, and {denoiser.name} cannot be. {instead(likelihood, denoiser)}"
            )
        if not isinstance(likelihood.noise, GaussianNoise):
            raise CapabilityError(
                f"TDS weights particles by a Gaussian residual; {type(likelihood.noise).__name__} has none. "
                f"{instead(likelihood)}"
            )

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        levels, clouds = self.levels(denoiser), x.shape[:2]
        misfit = _Misfit(likelihood_of_particles(likelihood, self.particles), x)
        x0, twist, guide = self._twisted(misfit, denoiser, x, levels[0])
        log_weights = twist
        for sigma, t in itertools.pairwise(levels[:-1]):
            ancestors = resample(log_weights, random, self.resampling)
            x, x0, before, guide = (gather(part, ancestors) for part in (x, x0, twist, guide))
            x, ratio = _step(x, x0, guide, sigma, t, random.normal(x))
            x0, twist, guide = self._twisted(misfit, denoiser, x, t)
            log_weights = ratio + twist - before
            yield self.shown(x, log_weights)
        ancestors = resample(log_weights, random, self.resampling)
        x0, twist = gather(x0, ancestors), gather(twist, ancestors)
        exact = misfit(x0.flatten(0, 1), self._spread(levels[-2]), last=True).reshape(clouds)
        yield self.result(x0, exact - twist, random)

    def _spread(self, sigma: float) -> float:
        """r^2."""
        return sigma**2 if self.tau is None else sigma**2 * self.tau**2 / (sigma**2 + self.tau**2)

    def _twisted(self, misfit: _Misfit, denoiser: Prior, x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """x0, log T_sigma(x) up to a constant of the level (b, n), and sigma^2 times its gradient."""
        with torch.enable_grad():
            leaf = x.flatten(0, 1).detach().requires_grad_(True)
            x0 = denoiser(leaf, sigma)
            log_twist = misfit(x0, self._spread(sigma))
            # Summed only to be differentiated: each gradient is its own particle's.
            (slope,) = torch.autograd.grad(log_twist.sum(), leaf)
        twist = log_twist.detach().double().reshape(x.shape[:2])
        return x0.detach().reshape(x.shape), twist, sigma**2 * slope.reshape(x.shape)


def _step(x: Tensor, x0: Tensor, guide: Tensor, sigma: float, t: float, eps: Tensor) -> tuple[Tensor, Tensor]:
    """x' ~ q(x' | x) by the standard normal eps, and log p(x' | x) / q(x' | x), (b, n)."""
    share, fresh = (t / sigma) ** 2, t * (1 - (t / sigma) ** 2) ** 0.5
    shift = (1 - share) * guide
    # x' is eps from the mean of q, and eps + shift / fresh from that of p, in units of the std that they share.
    ratio = -(shift / fresh * (eps + shift / (2 * fresh))).double().flatten(2).sum(2)
    return x0 + share * (x - x0) + shift + fresh * eps, ratio


class _Misfit:
    """-1/2 |y - A x0|^2 in units of sigma_y^2 + r^2 A A^T, or of sigma_y^2 + r^2 where A has no SVD."""

    def __init__(self, likelihood: Likelihood, x: Tensor) -> None:
        noise = likelihood.noise
        assert isinstance(noise, GaussianNoise)
        self.likelihood = likelihood
        self.seen: SingularCoordinates | None = None
        y = likelihood.batched_y.to(x)
        if isinstance(likelihood.operator, Spectral) and noise.member_sigma(y) is not None:
            self.seen = SingularCoordinates(likelihood, x)
            self.sigma = torch.where(self.seen.seen, self.seen.noise, 1.0)
        else:
            self.sigma = noise.like(y)

    def __call__(self, x0: Tensor, spread: float, last: bool = False) -> Tensor:
        """The misfit of particles x0 (b n, *in_shape) with r^2 = spread, (b n,); `last` leaves r out if sigma_y > 0."""
        variance = self.sigma**2 + spread
        if last:
            variance = torch.where(self.sigma > 0, self.sigma**2, variance)
        if self.seen is None:
            energy = self.likelihood.residual(x0).square() / variance
        else:
            residual = self.seen.ybar - self.seen.operator.vt(x0)
            energy = torch.where(self.seen.seen, (residual * residual.conj()).real, 0.0) / variance
        return -0.5 * energy.flatten(1).sum(1)
