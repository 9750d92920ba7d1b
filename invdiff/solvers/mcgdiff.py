"""Monte Carlo guided diffusion: clouds of particles, for operators with an SVD."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..clouds import denoise, gather, likelihood_of_particles, resample
from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import Margins, SingularCoordinates, require_likelihood, require_svd
from .cloud import CloudSolver

__all__ = ["MCGDiff"]


@dataclass(frozen=True)
class MCGDiff(CloudSolver):
    """Particles drawn to the measurement where it is the less noisy, and weighted by how well they foresee it.

    In the singular coordinates of A the measurement ybar = u^T y / s carries the noise tau = sigma_y / s, as a noisy
    image does at level tau: it is taken as what the path of the diffusion shows at that level. Above it, a coordinate z
    has the potential g_sigma(z) = N(z; ybar, sigma^2 - tau^2). From level sigma to the next level t, with
    x0 = D(x, sigma), m = x0 + (t^2 / sigma^2) (x - x0) and p = t^2 (1 - t^2 / sigma^2), coordinates move to

        t >= tau:          K ybar + (1 - K) m + sqrt(K (t^2 - tau^2)) eps,    K = p / (p + t^2 - tau^2)
        t < tau or s = 0:  m + sqrt(p) eps

    where a coordinate with sigma > tau > t stops at tau on its way, at ybar, with the same x0; before that particles
    are resampled by the probability that their moves give to ybar, divided by g_sigma. Stopping there, no potential is
    narrower than the moves, which the official code, whose coordinates are freed at the level nearest to tau, holds
    open by a small kappa.

    Cardoso, Janati El Idrissi, Le Corff, Moulines 2024, "Monte Carlo Guided Denoising Diffusion Models for Bayesian
    Linear Inverse Problems", algorithm 1 and its extension to noise.

    Its draws are not the posterior, even with an exact denoiser. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.37 / 0.04 / 0.06 / 0.06
        std ratio:                            0.94 / 0.85 / 0.90 / 0.64
        coverage of nominal 90 % intervals:   0.80 / 0.84 / 0.86 / 0.71

    What it does not see it finds by its weights alone, which takes many particles (inpainting); below the noise of the
    measurement its steps lose variance, as ancestral steps do (denoising).

    Args:
        steps: denoiser calls for one particle.
        particles: number of particles in a cloud (the official code has 64 for images).
        resampling: the paper's is "multinomial".
        keep: "one" or "cloud" (`CloudSolver`).

    Raises:
        CapabilityError: if the operator has no SVD, or the noise is not Gaussian with one sigma per measurement.
    """

    particles: int = 16
    resampling: str = "multinomial"

    margins: ClassVar[Margins] = Margins(mean=0.44, spread=(0.61, 0.98), coverage=(0.67, 0.90))

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        likelihood = require_likelihood(self, likelihood)
        require_svd(self, likelihood)

    def start(self, likelihood: Likelihood | None, denoiser: Prior, like: Tensor, random: MemberRandom) -> Tensor:
        """0.5 + sigma_max * eps, moved to the product of that with the first potential; (b, particles, *in_shape)."""
        x = super().start(likelihood, denoiser, like, random)
        if likelihood is None:
            return x
        levels = self.levels(denoiser)
        seen = _Seen(likelihood_of_particles(likelihood, self.particles), x, levels[-2])
        return seen.first(self.centre(likelihood, denoiser, like[:, 0])[:, None], x, levels[0])

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        levels = self.levels(denoiser)
        seen = _Seen(likelihood_of_particles(likelihood, self.particles), x, levels[-2])
        vt, v, shape = seen.operator.vt, seen.operator.v, x.shape
        even = torch.zeros(shape[:2], device=x.device)
        for sigma, t in itertools.pairwise(levels):
            x0 = denoise(denoiser, x, sigma)
            z, z0 = vt(x.flatten(0, 1)), vt(x0.flatten(0, 1))
            log_weights = seen.log_weights(z, z0, sigma, t).reshape(shape[:2])
            # Particles of equal weight, below the last tau, stay what they are: chance would only lose some.
            equal = (log_weights == log_weights[:, :1]).all(1, keepdim=True)
            themselves = torch.arange(self.particles, device=x.device)
            ancestors = torch.where(equal, themselves, resample(log_weights, random, self.resampling))
            x, x0 = gather(x, ancestors), gather(x0, ancestors)
            z, z0 = (gather(part.unflatten(0, shape[:2]), ancestors).flatten(0, 1) for part in (z, z0))
            eps = random.normal(x)
            e, share, fresh = vt(eps.flatten(0, 1)), (t / sigma) ** 2, t * (1 - (t / sigma) ** 2) ** 0.5
            x = x0 + share * (x - x0) + fresh * eps
            guided = torch.where(seen.seen, seen.move(z, z0, e, sigma, t) - z0 - share * (z - z0) - fresh * e, 0.0)
            x = x + v(guided).reshape(shape)
            yield self.shown(x, even) if t > 0 else self.result(x, even, random)


class _Seen(SingularCoordinates):
    """The measurement in singular coordinates, and the moves of particles (b, n, *in_shape) towards it."""

    def __init__(self, likelihood: Likelihood, x: Tensor, lowest: float) -> None:
        super().__init__(likelihood, x)
        # At its last level a denoiser knows the image to about that level, which is the least noise ybar can have.
        self.tau = self.noise.clamp_min(lowest)

    def first(self, centre: Tensor, x: Tensor, sigma: float) -> Tensor:
        """x ~ N(centre, sigma^2) moved to the product of that with the potential."""
        z, c = self.operator.vt(x.flatten(0, 1)), self.operator.vt(centre.expand_as(x).flatten(0, 1))
        above = self.tau < sigma
        rest = torch.where(above, (sigma - self.tau) * (sigma + self.tau), 0.0)
        gain = sigma**2 / (sigma**2 + rest)
        moved = c + gain * (self.ybar - c) + (gain * rest).sqrt() * (z - c) / sigma
        return x + self.operator.v(torch.where(above, moved, z) - z).reshape(x.shape)

    def log_weights(self, z: Tensor, z0: Tensor, sigma: float, t: float) -> Tensor:
        """log of the probability of ybar at the next stop over the potential, up to a constant of the cloud; (b n,)."""
        above = self.tau < sigma
        stop = torch.where(above, self.tau.clamp_min(t), t)
        foreseen = z0 + (stop / sigma) ** 2 * (z - z0)
        spread = stop**2 * (1 - (stop / sigma) ** 2) + torch.where(above, stop**2 - self.tau**2, 1.0)
        here = torch.where(above, (sigma - self.tau) * (sigma + self.tau), 1.0)
        energy = (self.ybar - foreseen).abs().square() / spread - (self.ybar - z).abs().square() / here
        return -0.5 * torch.where(above, energy, 0.0).double().flatten(1).sum(1)

    def move(self, z: Tensor, z0: Tensor, e: Tensor, sigma: float, t: float) -> Tensor:
        """The coordinates at the next level, with e standard normal."""
        stops = (self.tau < sigma) & (self.tau > t)
        before, level = torch.where(stops, self.ybar, z), torch.where(stops, self.tau, sigma)
        mean = z0 + (t / level) ** 2 * (before - z0)
        fresh = t**2 * (1 - (t / level) ** 2)
        active = self.tau <= t
        rest = torch.where(active, t**2 - self.tau**2, 1.0)
        gain = fresh / (fresh + rest)
        drawn = gain * self.ybar + (1 - gain) * mean + (gain * rest).sqrt() * e
        moved = torch.where(active, drawn, mean + fresh.sqrt() * e)
        return torch.where(self.noise == 0, self.ybar, moved) if t == 0 else moved
