"""Walks with heavy-tailed increments: priors unlike any Gaussian, with the exact denoiser and posterior by Gibbs.

x_k = u_1 + ... + u_k, k up to 64, with independent increments of Laplace's law (scale 1) or Student's (2 degrees of
freedom), measured by deconvolution, subsampling or directly, at 25 dB: after Zach, Haouchat and Unser, "A statistical
benchmark for diffusion posterior sampling algorithms", ICLR 2026. The means are Rao-Blackwellised: E[x | y] is the
average of E[x | v, y] over draws of the increments' variances v, whose own Monte Carlo error is stated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import Matrix
from ..priors.base import Prior, check_sigma
from .gibbs import NUMBERS, BandedWalk, Increments, PinnedWalk, Walk, sweeps
from .problem import Problem, normal, stream

__all__ = ["WalkPosterior", "WalkPrior", "heavy_operators", "heavy_problems"]

PLACES = 64
# Signal over noise, in dB, of the median measurement.
SNR = 25.0
# Where sampling starts, in units of the 99 % quantile of the largest |x|.
REACH = 4.0


class WalkPrior(Prior):
    """The law of a walk with independent heavy-tailed increments, and its denoiser by Gibbs sampling.

    The estimate is a function of x and sigma alone: the random numbers of a member are taken from a fixed pool, at a
    place that x (rounded to an eighth of sigma) and sigma decide. It carries a Monte Carlo error, which differs from
    one noise level and member to the next and is told by `standard_error`: with the default chains, from sigma 0.05 to
    300, 0.3 to 3.4 % of the posterior std (root mean squares) for Laplace's law and 0.3 to 9 % for Student's, most at
    sigma 1 and 10. Its derivative is
    Cov[x0 | x] / sigma^2 by the same draws, not the derivative of the draws.

    Args:
        law: "laplace" (scale 1) or "student" (2 degrees of freedom).
        chains: Gibbs chains of each member.
        kept: sweeps whose means are averaged.
        burn: sweeps before those.

    Raises:
        ValueError: for another law.

    >>> prior = WalkPrior("laplace")
    >>> prior(torch.zeros(1, 64), 0.5).shape
    torch.Size([1, 64])
    """

    def __init__(self, law: str, chains: int = 8, kept: int = 24, burn: int = 8) -> None:
        self.law = Increments(law)
        self.name = f"{law} walk"
        self.in_shape = (PLACES,)
        self.chains, self.kept, self.burn = chains, kept, burn

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n exact samples, (n, 64), float64."""
        return self.law.sample((n, PLACES), stream(seed)).cumsum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x0) of each member, (b,)."""
        wide = x.double()
        return self.law.log_prob(torch.diff(wide, dim=1, prepend=torch.zeros_like(wide[:, :1]))).sum(1)

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x0 + sigma * eps = x] for x of shape (b, 64).

        Raises:
            ValueError: for another shape, or a sigma that is negative or not finite.
        """
        if tuple(x.shape[1:]) != self.in_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}: this prior is of vectors of shape {self.in_shape}.")
        return self.denoise(x, check_sigma(sigma, x, self.sigma_range, self.name))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate for checked input."""
        estimate: Tensor = _Estimate.apply(x.double(), sigma.double().clamp_min(1e-5), self)
        return estimate.to(x)

    def standard_error(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The Monte Carlo standard error of the estimate, from the spread between chains, (b, 64)."""
        levels = check_sigma(sigma, x, self.sigma_range, self.name).double().clamp_min(1e-5)
        _, means = self.chains_at(x.double(), levels)
        return (means.mean(0).std(-1) / self.chains**0.5).T

    def chains_at(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The variances of the increments and E[x0 | v, x] in every sweep kept, (kept, 64, b, chains) each."""
        weight = sigma[:, None] ** -2
        walk = PinnedWalk(weight.expand(PLACES, -1, 1), (x.T / sigma**2)[..., None])
        width = NUMBERS * PLACES * self.chains
        windows = _pool().to(x.device).unfold(0, width, 1)
        place = self._places(x, sigma)

        def numbers(index: int) -> Tensor:
            rows = windows[(place + index * width).remainder(len(windows))]
            return rows.reshape(-1, NUMBERS, PLACES, self.chains).permute(1, 2, 0, 3).contiguous()

        found: list[tuple[Tensor, Tensor]] = []

        def keep(index: int, v: Tensor, mean: Tensor, draw: Tensor) -> None:
            if index >= self.burn:
                found.append((v, mean))

        start = torch.full((PLACES, len(x), self.chains), 2.0, dtype=torch.float64, device=x.device)
        sweeps(self.law, walk, start, numbers, self.burn + self.kept, keep)
        variances, means = zip(*found, strict=True)
        return torch.stack(variances), torch.stack(means)

    @staticmethod
    def _places(x: Tensor, sigma: Tensor) -> Tensor:
        """Where in the pool each member's numbers begin: a hash of x, coarse enough to forgive rounding."""
        cells = (8 * x / sigma[:, None]).round().clamp(-(2**40), 2**40).long()
        level = (1e4 * sigma.log()).round().long()
        total = level * 0x9E3779B1
        for column in cells.unbind(1):
            total = (total ^ column) * 0x100000001B3
            total = total ^ (total >> 29)
        return total.remainder(2**31)


class _Estimate(torch.autograd.Function):
    """E[x0 | x] with the derivative Cov[x0 | x] / sigma^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sigma: Tensor, prior: WalkPrior) -> Tensor:
        variances, means = prior.chains_at(x, sigma)
        ctx.save_for_backward(variances, means, sigma)
        return means.mean((0, 3)).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        variances, means, sigma = ctx.saved_tensors
        kept, places, members, chains = variances.shape
        columns = variances.permute(1, 0, 2, 3).reshape(places, -1)
        b = gradient.double().T[:, None, :, None].expand(places, kept, members, chains).reshape(places, -1)
        weight = (sigma**-2)[None, :, None].expand(kept, members, chains).reshape(1, -1).expand(places, -1)
        within = PinnedWalk(weight, b).solve(columns, b).reshape(places, kept, members, chains).mean((1, 3))
        centred = means - means.mean((0, 3), keepdim=True)
        shares = torch.einsum("spmc,mp->smc", centred, gradient.double())
        between = torch.einsum("smc,spmc->pm", shares, centred) / (kept * chains)
        return ((within + between) / sigma**2).T, None, None


_POOL: list[Tensor] = []


def _pool() -> Tensor:
    """2^21 standard normal numbers, the same in every run."""
    if not _POOL:
        _POOL.append(torch.randn(2**21, generator=stream(5), dtype=torch.float64))
    return _POOL[0]


@dataclass(frozen=True)
class WalkPosterior:
    """The posterior of a walk given one measurement, from 256 Gibbs chains; it has no normalised density.

    The Monte Carlo error of the mean, `mean_error`, is at most 3.3 % of the posterior std at any place of the problems
    0 to 2 of each cell, and runs of five times the length differ from these by no more than the two errors explain
    (mean square of the standardised difference 0.7 to 1.5); the stds agree within 5.4 %.

    Args:
        law: of the increments.
        matrix: A, (m, 64).
        y: the measurement, (m,), float64.
        sigma: its noise.
        seed: of the chains.
    """

    law: Increments
    matrix: Tensor
    y: Tensor
    sigma: float
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return (PLACES,)

    chains = 256
    burn = 150
    kept = 150
    # Draws are this many sweeps away from the states they start at.
    apart = 25

    def _walk(self, chains: int) -> Walk:
        single = (self.matrix != 0).sum(1) == 1
        if not bool(single.all()):
            return BandedWalk(self.matrix, self.y, self.sigma)
        weight = (self.matrix**2).sum(0) / self.sigma**2
        pull = self.matrix.T @ self.y / self.sigma**2
        return PinnedWalk(weight[:, None].expand(-1, chains), pull[:, None].expand(-1, chains))

    @cached_property
    def _run(self) -> tuple[Tensor, Tensor]:
        """Means of x given v, (kept, 64, chains), and the variances v of every tenth sweep side by side, (64, ...)."""
        generator = stream(self.seed, 1)
        means, variances = [], []

        def keep(index: int, v: Tensor, mean: Tensor, draw: Tensor) -> None:
            if index >= self.burn:
                means.append(mean)
                if index % 10 == 0:
                    variances.append(v)

        # Started from the prior's own variances, which are spread more widely than the posterior's.
        u = self.law.sample((PLACES, self.chains), generator)
        v = self.law.variance_given(u, normal((3, *u.shape), generator))
        numbers = lambda index: normal((NUMBERS, *u.shape), generator)  # noqa: E731
        sweeps(self.law, self._walk(self.chains), v, numbers, self.burn + self.kept, keep)
        return torch.stack(means), torch.cat(variances, 1)

    @cached_property
    def _components(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each place given each of the kept variances, (64, states)."""
        _, v = self._run
        walk = self._walk(v.shape[1])
        return walk.moments(v, torch.zeros_like(v))[0], walk.std(v)

    @cached_property
    def mean(self) -> Tensor:
        """The posterior mean, (64,)."""
        return self._run[0].mean((0, 2))

    @property
    def mean_error(self) -> Tensor:
        """The Monte Carlo standard error of the mean, (64,)."""
        return self._run[0].mean(0).std(1) / self.chains**0.5

    @cached_property
    def std(self) -> Tensor:
        """The standard deviation of each place, (64,)."""
        means, stds = self._components
        return ((stds**2).mean(1) + means.var(1)).sqrt()

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance, (64, 64)."""
        _, v = self._run
        return self._walk(v.shape[1]).mean_covariance(v) + torch.cov(self._components[0])

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws, (n, 64): chains that leave a state of the long run at random and go their own way."""
        generator = stream(self.seed, 2, seed)
        _, states = self._run
        v = states[:, torch.randint(states.shape[1], (n,), generator=generator)]
        draws: list[Tensor] = []

        def keep(index: int, v: Tensor, mean: Tensor, draw: Tensor) -> None:
            draws[:] = [draw]

        numbers = lambda index: normal((NUMBERS, *v.shape), generator)  # noqa: E731
        sweeps(self.law, self._walk(n), v, numbers, self.apart, keep)
        return draws[0].T.contiguous()

    def probability(self, low: Tensor, high: Tensor) -> Tensor:
        """The probability that each place lies between low and high, (64,) each, averaged over variances."""
        means, stds = self._components
        above, below = ((bound.to(means)[:, None] - means) / stds for bound in (low, high))
        return (torch.special.ndtr(below) - torch.special.ndtr(above)).mean(1)


def heavy_operators() -> dict[str, Matrix]:
    """All places, every fourth of them, and a blur (Gaussian of std 2, 13 taps, mirrored ends)."""
    taps = torch.exp(-0.5 * (torch.arange(-6, 7, dtype=torch.float64) / 2) ** 2)
    padded = torch.arange(PLACES + 12) - 6
    padded = torch.where(padded < 0, -padded, padded)
    padded = torch.where(padded >= PLACES, 2 * (PLACES - 1) - padded, padded)
    blur = torch.zeros(PLACES, PLACES, dtype=torch.float64)
    for i in range(PLACES):
        blur[i].index_add_(0, padded[i : i + 13], taps / taps.sum())
    eye = torch.eye(PLACES, dtype=torch.float64)
    return {"denoise": Matrix(eye), "subsample": Matrix(eye[3::4]), "deconvolve": Matrix(blur)}


def heavy_problems(problems: int = 8) -> Iterator[Problem]:
    """`problems` walks of both laws for each operator, named "heavy/laplace denoise/0".

    sigma_y is fixed for each law and operator, 25 dB below the median over walks of the root mean square of A x: it
    tells nothing of the walk that was measured.
    """
    for i, law in enumerate(("laplace", "student")):
        prior = WalkPrior(law)
        many = prior.sample(1000, seed=0)
        first = REACH * float(many.abs().amax(1).quantile(0.99))
        for j, (name, operator) in enumerate(heavy_operators().items()):
            rms = operator.forward(many).square().mean(1).sqrt()
            sigma = float(rms.median()) * 10 ** (-SNR / 20)
            matrix = operator.forward(torch.eye(PLACES, dtype=torch.float64)).T
            for number in range(problems):
                generator = stream(4, i, j, number)
                truth = prior.law.sample((PLACES,), generator).cumsum(0)
                z = operator.forward(truth[None])[0]
                y = z + sigma * normal(z.shape, generator)
                yield Problem(
                    name=f"heavy/{law} {name}/{number}",
                    family="heavy",
                    prior=prior,
                    likelihood=Likelihood(y, operator, GaussianNoise(sigma)),
                    truth=truth,
                    posterior=WalkPosterior(prior.law, matrix, y, sigma),
                    sigma_max=float(f"{first:.2g}"),
                )
