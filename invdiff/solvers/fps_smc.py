"""Filtering posterior sampling: clouds of particles that follow a noisy measurement, for operators with an SVD."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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

__all__ = ["FPSSMC"]


@dataclass(frozen=True)
class FPSSMC(CloudSolver):
    """A particle filter on the noisy image, which observes a sequence of measurements that are as noisy.

    The sequence y_sigma = A x_sigma + n, n ~ N(0, sigma_y^2), is drawn first, one for each cloud, from the first level
    down: with z standard normal and t the level after sigma,

        y_t = y + sqrt(1 - c) (t / sigma) (y_sigma - y) + sqrt(c) t A z

    Then, with x0 = D(x, sigma), m = x0 + sqrt(1 - c) (t / sigma) (x - x0) and p = c t^2, particles are resampled by
    N(y_t; A m, sigma_y^2 + p A A^T) and drawn from N(x; m, p) N(y_t; A x, sigma_y^2), both in the singular coordinates
    of A. The last step gives D(x, sigma).

    Dou, Song 2024, "Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering Perspective",
    algorithm 2. The weight of a particle does not depend on its move, and is taken before it.

    The filter takes the noise n of y_sigma as fresh at every level, though the sequence carries that of y throughout:
    the measurement counts for more than it should, and where it lies between two modes, the nearer one takes all. With
    c near 1, steps also lose variance that more of them do not bring back.

    Its draws are not the posterior, even with an exact denoiser. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.16 / 0.11 / 0.09 / 0.16
        std ratio:                            0.77 / 0.71 / 0.71 / 0.80
        coverage of nominal 90 % intervals:   0.80 / 0.75 / 0.76 / 0.80

    Args:
        steps: denoiser calls for one particle (the paper uses 1,000).
        particles: number of particles in a cloud (5 in the official code's example).
        resampling: the paper's is "multinomial".
        keep: "one" or "cloud" (`CloudSolver`); all particles of a cloud follow the same sequence.
        c: share of the variance that is drawn afresh, above 0 and up to 1 (0.95 in the official code's example).

    Raises:
        CapabilityError: if the operator has no SVD, or the noise is not Gaussian with one sigma per measurement.
    """

    particles: int = 5
    resampling: str = "multinomial"
    c: float = 0.95

    margins: ClassVar[Margins] = Margins(mean=0.19, spread=(0.67, 0.83), coverage=(0.72, 0.84))

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.c, bool) or not isinstance(self.c, int | float) or not 0 < self.c <= 1:
            raise ValueError(f"c of FPSSMC is {self.c!r}: expected a number above 0 and up to 1.")

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        likelihood = require_likelihood(self, likelihood)
        require_svd(self, likelihood)

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        levels, clouds = self.levels(denoiser), x.shape[:2]
        seen = _Seen(likelihood_of_particles(likelihood, self.particles), x)
        # One path of the measurement for each cloud, the same for all of its particles.
        paths = [
            path.repeat_interleave(self.particles, 0)
            for path in self.paths(SingularCoordinates(likelihood, x), levels[:-1], x[:, 0], random)
        ]
        even = torch.zeros(clouds, device=x.device)
        x = seen.drawn_to(paths[0], x, levels[0], random)
        for (sigma, t), ybar in zip(itertools.pairwise(levels[:-1]), paths[1:], strict=True):
            x0 = denoise(denoiser, x, sigma)
            mean, fresh = x0 + (1 - self.c) ** 0.5 * t / sigma * (x - x0), self.c**0.5 * t
            log_weights = seen.log_weights(ybar, mean, fresh)
            mean = gather(mean, resample(log_weights, random, self.resampling))
            x = seen.drawn_to(ybar, mean + fresh * random.normal(x), fresh, random)
            yield self.shown(x, even)
        yield self.result(denoise(denoiser, x, levels[-2]), even, random)

    def paths(
        self, seen: SingularCoordinates, levels: Sequence[float], like: Tensor, random: MemberRandom
    ) -> list[Tensor]:
        """The sequence u^T y_sigma / s at the levels, in singular coordinates, (b, ...) for like (b, *in_shape)."""
        path = seen.ybar + levels[0] * seen.operator.vt(random.normal(like))
        out = [path]
        for sigma, t in itertools.pairwise(levels):
            fresh = self.c**0.5 * t * seen.operator.vt(random.normal(like))
            path = seen.ybar + (1 - self.c) ** 0.5 * t / sigma * (path - seen.ybar) + fresh
            out.append(path)
        return out


class _Seen(SingularCoordinates):
    """The measurement in singular coordinates; particles are (b, n, *in_shape) and its path ybar (b n, ...)."""

    def log_weights(self, ybar: Tensor, mean: Tensor, std: float) -> Tensor:
        """log N(ybar; mean, std^2 + sigma_y^2 / s^2) up to a constant of the cloud, (b, n)."""
        spread = torch.where(self.seen, self.noise, 1.0) ** 2 + std**2
        energy = (ybar - self.operator.vt(mean.flatten(0, 1))).abs().square() / spread
        return -0.5 * torch.where(self.seen, energy, 0.0).double().flatten(1).sum(1).reshape(mean.shape[:2])

    def drawn_to(self, ybar: Tensor, x: Tensor, std: float, random: MemberRandom) -> Tensor:
        """A draw of N(mean, std^2) N(ybar; z, sigma_y^2 / s^2) from x, a draw of the first factor."""
        z, e = (self.operator.vt(part.flatten(0, 1)) for part in (x, random.normal(x)))
        gain = torch.where(self.seen, std**2 / (std**2 + torch.where(self.seen, self.noise, 1.0) ** 2), 0.0)
        # x keeps (1 - gain) of its deviation; the fresh share brings the variance to (1 - gain) std^2.
        moved = gain * (ybar - z) + (gain * (1 - gain)).clamp_min(0).sqrt() * std * e
        return x + self.operator.v(moved).reshape(x.shape)
