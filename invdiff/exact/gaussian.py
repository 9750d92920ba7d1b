"""Gaussian images of power 1/f^2 under every kind of linear operator: the posterior is Gaussian.

With x ~ N(m, C), y = A x + n, n ~ N(0, sigma_y^2 I) and the gain K = C A^T (A C A^T + sigma_y^2 I)^-1,

    x | y ~ N(m + K (y - A m), C - K A C)

(Rasmussen and Williams 2006, eq. A.6). K does not depend on y and is computed once per operator and sigma_y. A draw
needs no square root of the posterior's covariance: with x' a draw of the prior and n' of the noise,
x' + K (y - A x' - n') is one of the posterior (Hoffman and Ribak 1991).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import (
    Blur,
    Downsample,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    box_mask,
    gaussian_psf,
    random_mask,
)
from ..priors import GaussianPrior
from ..priors.mixtures import dense_matrix
from ..priors.stationary import StationaryGaussian
from .figures import observed_variance
from .problem import Problem, next_seed, normal, stream

__all__ = ["Conditioning", "GaussianPosterior", "gaussian_operators", "gaussian_problems"]

SHAPES = ((1, 16, 16), (3, 16, 16), (1, 32, 32), (3, 32, 32))
SIGMAS = (0.01, 0.05, 0.2)
# The standard deviation of the prior is 0.15 and its mean 0.5: sigma 40 is where solvers start on images.
SIGMA_MAX = 40.0


@dataclass(frozen=True)
class Conditioning:
    """What the posteriors of all measurements through one operator with one noise level share.

    Args:
        prior: the Gaussian prior.
        operator: a linear map with at most 8,192 values going in.
        sigma: sigma_y above 0.
    """

    prior: GaussianPrior
    operator: LinearOperator
    sigma: float

    @cached_property
    def matrix(self) -> Tensor:
        """A as a matrix, (m, n)."""
        return dense_matrix(self.operator, self.prior.mixture.means)

    @cached_property
    def cross(self) -> Tensor:
        """A C, (m, n)."""
        mixture = self.prior.mixture
        if isinstance(mixture, StationaryGaussian):
            return mixture.times_covariance(self.matrix)
        return self.matrix @ mixture.dense.covariances[0]

    @cached_property
    def _innovation(self) -> tuple[Tensor, Tensor]:
        """The Cholesky factor of A C A^T + sigma^2 I, and that matrix's inverse times A C, (m, n)."""
        # Rows of A that are zero, such as hidden pixels, are kept: they are noise alone and change nothing.
        total = self.cross @ self.matrix.T
        total.diagonal().add_(self.sigma**2)
        factor = torch.linalg.cholesky((total + total.T) / 2)
        return factor, torch.cholesky_solve(self.cross, factor)

    @property
    def gain(self) -> Tensor:
        """K transposed, (m, n)."""
        return self._innovation[1]

    @cached_property
    def covariance(self) -> Tensor:
        """The posterior's covariance, (n, n)."""
        out = self.prior.covariance - self.cross.T @ self.gain
        return (out + out.T) / 2

    @cached_property
    def std(self) -> Tensor:
        """The posterior's standard deviation of each value, (n,)."""
        variance = self.prior.mixture.variances[0] - (self.cross * self.gain).sum(0)
        return variance.clamp_min(0).sqrt()

    @cached_property
    def observed_variance(self) -> float:
        """The part of the covariance's trace in the row space of A."""
        return observed_variance(self.covariance, self.operator)

    def given(self, y: Tensor) -> GaussianPosterior:
        """The posterior given one measurement, (*out_shape)."""
        return GaussianPosterior(self, y.double())


@dataclass(frozen=True)
class GaussianPosterior:
    """The exact posterior of a Gaussian prior given one measurement; see the module.

    Args:
        shared: the part that does not depend on y.
        y: the measurement, (*out_shape), float64.
    """

    shared: Conditioning
    y: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return self.shared.prior.mixture.shape

    @cached_property
    def mean(self) -> Tensor:
        """The posterior mean, (*shape)."""
        prior = self.shared.prior.mean
        return prior + self._pull(self._y - self._forward(prior[None])).reshape(self.shape)

    @property
    def std(self) -> Tensor:
        """The standard deviation of each value, (*shape)."""
        return self.shared.std.reshape(self.shape)

    @property
    def covariance(self) -> Tensor:
        """The covariance, (n, n)."""
        return self.shared.covariance

    @property
    def observed_variance(self) -> float:
        """The part of the covariance's trace in the row space of A."""
        return self.shared.observed_variance

    @property
    def _y(self) -> Tensor:
        return self.y.reshape(1, -1)

    def _forward(self, x: Tensor) -> Tensor:
        return self.shared.operator.forward(x).flatten(1)

    def _pull(self, residual: Tensor) -> Tensor:
        return residual @ self.shared.gain

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n independent exact draws, (n, *shape)."""
        x = self.shared.prior.sample(n, seed=next_seed(stream(seed, 0)))
        noise = normal((n, self.y.numel()), stream(seed, 1))
        residual = self._y - self._forward(x) - self.shared.sigma * noise.to(x)
        return x + self._pull(residual).reshape(x.shape)

    @cached_property
    def log_evidence(self) -> float:
        """log p(y)."""
        factor, _ = self.shared._innovation
        residual = self._y - self._forward(self.shared.prior.mean[None])
        white = torch.linalg.solve_triangular(factor, residual.T, upper=False)
        volume = 2 * factor.diagonal().log().sum() + self.y.numel() * math.log(2 * math.pi)
        return -0.5 * float((white**2).sum() + volume)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density by Bayes' rule, log p(x) + log p(y | x) - log p(y), (b,)."""
        wide = x.double()
        likelihood = Likelihood(self.y, self.shared.operator, GaussianNoise(self.shared.sigma))
        return self.shared.prior.log_prob(wide) + likelihood.log_prob(wide) - self.log_evidence

    def probability(self, low: Tensor, high: Tensor) -> Tensor:
        """The exact probability that each value lies between low and high, all of shape (*shape)."""
        above, below = ((bound.to(self.mean) - self.mean) / self.std.clamp_min(1e-150) for bound in (low, high))
        return torch.special.ndtr(below) - torch.special.ndtr(above)


def gaussian_operators(in_shape: tuple[int, ...]) -> dict[str, LinearOperator]:
    """The operators of the family, by name: grayscale for colour images only, and one, "reflect", without an SVD."""
    operators: dict[str, LinearOperator] = {
        "inpaint": Mask(random_mask(in_shape, 0.5, seed=0), in_shape),
        "box": Mask(box_mask(in_shape), in_shape),
        "blur": Blur(gaussian_psf(1.0), in_shape),
        "down4": Downsample(4, in_shape),
        "denoise": Identity(in_shape),
        "reflect": Blur(gaussian_psf(1.0), in_shape, boundary="reflect"),
    }
    if in_shape[0] == 3:
        operators["gray"] = Grayscale(in_shape)
    return operators


def gaussian_problems(measurements: int = 8) -> Iterator[Problem]:
    """Every size, operator and noise level, `measurements` images each, small images first.

    Images are draws of `GaussianPrior.power_law` (pixel std 0.15, mean 0.5, channels correlated by 0.9) in float32.
    The posteriors of one cell share their matrices, which go when the next cell begins.
    """
    for i, shape in enumerate(SHAPES):
        prior = GaussianPrior.power_law(shape)
        colour = "colour" if shape[0] == 3 else "gray"
        for j, (name, operator) in enumerate(gaussian_operators(shape).items()):
            for k, sigma in enumerate(SIGMAS):
                shared = Conditioning(prior, operator, sigma)
                for number in range(measurements):
                    generator = stream(1, i, j, k, number)
                    truth = prior.sample(1, seed=next_seed(generator))
                    z = operator.forward(truth)[0]
                    y = (z + sigma * normal(z.shape, generator)).float()
                    yield Problem(
                        name=f"gaussian/{shape[1]}x{shape[2]} {colour} {name} {sigma:g}/{number}",
                        family="gaussian",
                        prior=prior,
                        likelihood=Likelihood(y, operator, GaussianNoise(sigma)),
                        truth=truth[0],
                        posterior=shared.given(y),
                        sigma_max=SIGMA_MAX,
                    )
