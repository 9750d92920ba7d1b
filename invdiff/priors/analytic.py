"""Priors known in closed form: the exact denoiser, exact samples and the exact posterior under Gaussian noise.

With x0 ~ N(m, C) and x = x0 + sigma * eps the posterior mean is

    E[x0 | x] = m + C (C + sigma^2 I)^-1 (x - m),

and with y = A x0 + n, n ~ N(0, Sigma_y), the posterior of x0 is Gaussian with

    mean = m + C A^T (A C A^T + Sigma_y)^-1 (y - A m),    covariance = C - C A^T (A C A^T + Sigma_y)^-1 A C

(Rasmussen and Williams 2006, eq. A.6). A mixture of Gaussians stays one: each component is conditioned as above and its
weight is multiplied by its evidence. A sampler that is right reproduces these posteriors; everything here is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import LinearOperator
from .base import Prior, check_sigma, lies_on

__all__ = ["GaussianMixture", "GaussianMixturePrior", "GaussianPrior"]

_LARGEST = 8192


@dataclass(frozen=True)
class GaussianMixture:
    """The distribution sum_k w_k N(m_k, C_k) over images of shape `shape`; one component makes it a Gaussian.

    Args:
        shape: image shape without batch axis, n values in all.
        weights: (k,), positive, sum 1.
        means: (k, n).
        covariances: (k, n, n), symmetric and not negative definite.
    """

    shape: tuple[int, ...]
    weights: Tensor
    means: Tensor
    covariances: Tensor

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (k, n), held at or above 0, and eigenvectors (k, n, n) of the covariances."""
        values, vectors = torch.linalg.eigh(self.covariances)
        return values.clamp_min(0), vectors

    @property
    def mean(self) -> Tensor:
        """The exact mean, (*shape)."""
        return (self.weights @ self.means).reshape(self.shape)

    @cached_property
    def covariance(self) -> Tensor:
        """The exact covariance, (n, n)."""
        centred = self.means - self.weights @ self.means
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + between

    @property
    def std(self) -> Tensor:
        """The exact pixel-wise standard deviation, (*shape)."""
        return self.covariance.diagonal().clamp_min(0).sqrt().reshape(self.shape)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n independent samples, (n, *shape)."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64).to(self.means)
        values, vectors = self.eigen
        out = torch.empty_like(noise)
        for k in range(len(self.weights)):
            chosen = component == k
            out[chosen] = self.means[k] + (noise[chosen] * values[k].sqrt()) @ vectors[k].T
        return out.reshape(n, *self.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of each member of x, (b,).

        Raises:
            ValueError: if a covariance is singular, where there is no density.
        """
        values, _ = self.eigen
        if bool((values <= 1e-14 * values.max()).any()):
            raise ValueError(
                "The distribution has no density: a covariance is singular (an exact measurement fixes x)."
            )
        return torch.logsumexp(self.log_components(x.to(self.means), 0.0), dim=1)

    def log_components(self, x: Tensor, variance: Tensor | float) -> Tensor:
        """log w_k N(x; m_k, C_k + variance I), (b, k), with variance one number or (b,)."""
        coordinates, values = self.coordinates(x)
        total = values + (variance[:, None, None] if isinstance(variance, Tensor) else variance)
        total = total.reshape(-1, *values.shape)
        energy = (coordinates**2 / total).sum(2) + total.log().sum(2)
        return self.weights.log() - 0.5 * (energy + values.shape[1] * math.log(2 * math.pi))

    def coordinates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x - m_k in the eigenvectors of every component, (b, k, n), and the eigenvalues, (k, n)."""
        values, vectors = self.eigen
        centred = x.reshape(x.shape[0], 1, -1) - self.means
        # BLAS may round differently with the batch size, so equal bits need the same micro-batches; see `sample`.
        return torch.einsum("bkj,kji->bki", centred, vectors), values

    def condition(self, likelihood: Likelihood) -> GaussianMixture:
        """The exact posterior given one measurement of a linear operator with Gaussian noise.

        Raises:
            ValueError: if the operator is not linear, the noise not Gaussian, or there are several measurements.
        """
        operator, noise = likelihood.operator, likelihood.noise
        if not isinstance(operator, LinearOperator) or not isinstance(noise, GaussianNoise):
            raise ValueError(
                f"The exact posterior needs a linear operator and GaussianNoise: got {type(operator).__name__} "
                f"and {type(noise).__name__}."
            )
        if likelihood.measurements != 1:
            raise ValueError(
                f"The exact posterior is of one measurement at a time: got {likelihood.measurements}; use take()."
            )
        y = likelihood.batched_y.to(self.means)
        matrix = _dense(operator, y)
        variance = (noise.like(y) ** 2).expand_as(y).flatten()
        weights, means, covariances = [], [], []
        for k in range(len(self.weights)):
            cross = self.covariances[k] @ matrix.T
            innovation = matrix @ cross + torch.diag(variance)
            residual = y.flatten() - matrix @ self.means[k]
            if bool((variance == 0).any()):
                # Without noise the innovation can be singular; its pseudo-inverse conditions on what is measured.
                gain = cross @ torch.linalg.pinv(innovation, hermitian=True)
                evidence = torch.zeros((), dtype=torch.float64)
                if len(self.weights) > 1:
                    raise ValueError("The exact posterior of a mixture needs a sigma above 0.")
            else:
                factor = torch.linalg.cholesky(innovation)
                gain = torch.cholesky_solve(cross.T, factor).T
                white = torch.linalg.solve_triangular(factor, residual[:, None], upper=False)
                evidence = -0.5 * (white**2).sum() - factor.diagonal().log().sum()
            covariance = self.covariances[k] - gain @ cross.T
            weights.append(self.weights[k].log() + evidence)
            means.append(self.means[k] + gain @ residual)
            covariances.append((covariance + covariance.T) / 2)
        return GaussianMixture(
            self.shape, torch.stack(weights).softmax(0), torch.stack(means), torch.stack(covariances)
        )


def _dense(operator: LinearOperator, like: Tensor) -> Tensor:
    size = math.prod(operator.in_shape)
    if size > _LARGEST:
        raise ValueError(f"The exact posterior works with dense matrices: {size} values are more than {_LARGEST}.")
    basis = torch.eye(size, dtype=torch.float64, device=like.device).reshape(size, *operator.in_shape)
    columns = operator.take(torch.zeros(size, dtype=torch.long)).forward(basis)
    return columns.reshape(size, -1).T.to(like)


class _AnalyticPrior(Prior):
    """Shared by the exact priors: they hold a mixture in float64 and answer in the dtype of their input."""

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture
        self.in_shape = mixture.shape
        self.sigma_range = (0.0, math.inf)
        self.differentiable = True

    @property
    def mean(self) -> Tensor:
        """The exact mean, (*in_shape)."""
        return self.mixture.mean

    @property
    def covariance(self) -> Tensor:
        """The exact covariance, (n, n)."""
        return self.mixture.covariance

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n exact samples, (n, *in_shape), float64."""
        return self.mixture.sample(n, seed)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x0) of each member, (b,)."""
        return self.mixture.log_prob(x)

    def posterior(self, likelihood: Likelihood) -> GaussianMixture:
        """The exact posterior given a linear measurement with Gaussian noise (module docstring)."""
        return self.mixture.condition(likelihood)

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str | None = None,
        compile: bool | None = None,
    ) -> _AnalyticPrior:
        """A copy on another device; the prior's own numbers stay float64 and answers take their input's dtype."""
        m = self.mixture
        if device is None or lies_on(m.means.device, device):
            return self
        copy: _AnalyticPrior = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.mixture = GaussianMixture(m.shape, m.weights.to(device), m.means.to(device), m.covariances.to(device))
        return copy

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x0 + sigma * eps = x] for x of shape (b, *in_shape): vectors as well as images.

        Raises:
            ValueError: for another shape, or a sigma that is negative or not finite.
        """
        if tuple(x.shape[1:]) != self.in_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}: this prior is of images of shape {self.in_shape}.")
        return self.denoise(x, check_sigma(sigma, x, self.sigma_range, self.name))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x0 + sigma * eps = x] = sum_k r_k(x) (m_k + C_k (C_k + sigma^2)^-1 (x - m_k))."""
        wide = x.to(self.mixture.means)
        variance = sigma.to(wide) ** 2
        # With no noise the image is its own estimate; the tiny variance keeps singular directions defined.
        variance = variance.clamp_min(1e-30)
        coordinates, values = self.mixture.coordinates(wide)
        shrunk = coordinates * (values / (values + variance[:, None, None]))
        _, vectors = self.mixture.eigen
        means = self.mixture.means + torch.einsum("bki,kji->bkj", shrunk, vectors)
        if len(self.mixture.weights) == 1:
            return means[:, 0].reshape(x.shape).to(x)
        share = self.mixture.log_components(wide, variance).softmax(1)
        return torch.einsum("bk,bkj->bj", share, means).reshape(x.shape).to(x)


class GaussianPrior(_AnalyticPrior):
    """x0 ~ N(mean, covariance).

    Args:
        mean: (*in_shape), image units.
        covariance: (n, n) with n the number of values in an image.

    Raises:
        ValueError: if the covariance has another shape, is not symmetric, or has a clearly negative eigenvalue.

    >>> prior = GaussianPrior(torch.zeros(2), torch.eye(2))
    >>> prior(torch.ones(1, 2), 1.0)
    tensor([[0.5000, 0.5000]])
    """

    name = "gaussian prior"

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        mean, covariance = mean.double(), covariance.double()
        n = mean.numel()
        if covariance.shape != (n, n):
            raise ValueError(
                f"covariance has shape {tuple(covariance.shape)}: expected ({n}, {n}), as mean has {n} values."
            )
        if not torch.allclose(covariance, covariance.T, rtol=1e-8, atol=1e-12):
            raise ValueError("covariance is not symmetric: expected C = C^T.")
        one = torch.ones(1, dtype=torch.float64, device=mean.device)
        mixture = GaussianMixture(tuple(mean.shape), one, mean.reshape(1, n), covariance[None])
        lowest = float(torch.linalg.eigvalsh(covariance)[0])
        if lowest < -1e-8 * float(covariance.diagonal().max()):
            raise ValueError(f"covariance has the eigenvalue {lowest:.3g}: expected none below 0.")
        super().__init__(mixture)

    @classmethod
    def from_spectrum(
        cls, power: Tensor, mean: float | Tensor = 0.5, channel_covariance: Tensor | None = None
    ) -> GaussianPrior:
        """A stationary prior of images (C, H, W) on a torus, C = C_channels (x) F^H diag(power) F.

        Args:
            power: (H, W), the eigenvalue of each orthonormal Fourier mode in torch.fft.fft2 order, even in frequency.
            mean: one number or (C, H, W).
            channel_covariance: (C, C); one channel of variance 1 where left out.
        """
        height, width = power.shape
        channels = torch.ones(1, 1) if channel_covariance is None else channel_covariance
        row = torch.fft.ifft2(power.double()).real
        i, j = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        i, j = i.flatten(), j.flatten()
        spatial = row[(i[:, None] - i) % height, (j[:, None] - j) % width]
        spatial = (spatial + spatial.T) / 2
        full = torch.full((len(channels), height, width), 0.0, dtype=torch.float64) + torch.as_tensor(mean).double()
        return cls(full, torch.kron(channels.double().contiguous(), spatial))

    @classmethod
    def power_law(
        cls,
        in_shape: Sequence[int],
        std: float = 0.15,
        mean: float = 0.5,
        exponent: float = 2.0,
        channel_correlation: float = 0.9,
    ) -> GaussianPrior:
        """Images whose power falls as 1 / f^exponent, as that of photographs does, scaled to a pixel std.

        Args:
            in_shape: (C, H, W).
            std: standard deviation of every pixel, image units.
            mean: mean of every pixel.
            exponent: of the power spectrum; the mode at frequency 0 has the power of the lowest other one.
            channel_correlation: between any two channels.
        """
        channels, height, width = in_shape
        fy, fx = torch.fft.fftfreq(height).double()[:, None], torch.fft.fftfreq(width).double()
        radius = (fy**2 + fx**2).sqrt()
        lowest = 1.0 if height * width == 1 else float(radius[radius > 0].min())
        power = radius.clamp_min(lowest) ** -exponent
        power = power * (std**2 / power.mean())
        mixing = torch.full((channels, channels), channel_correlation).fill_diagonal_(1.0)
        return cls.from_spectrum(power, mean, mixing)


class GaussianMixturePrior(_AnalyticPrior):
    """x0 ~ sum_k w_k N(m_k, C_k).

    Args:
        weights: (k,), positive; normalised to sum 1.
        means: (k, *in_shape).
        covariances: (k, n, n), or (k,) variances of isotropic components.

    Raises:
        ValueError: if the shapes disagree or a weight is not positive.
    """

    name = "gaussian mixture prior"

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        count, n = means.shape[0], means[0].numel()
        if weights.shape != (count,) or not bool((weights > 0).all()):
            raise ValueError(f"weights are {weights.tolist()}: expected {count} positive numbers, one per mean.")
        wide = covariances.double()
        if wide.shape == (count,):
            wide = wide[:, None, None] * torch.eye(n, dtype=torch.float64, device=wide.device)
        if wide.shape != (count, n, n):
            raise ValueError(
                f"covariances have shape {tuple(covariances.shape)}: expected ({count}, {n}, {n}) or ({count},)."
            )
        share = weights.double() / weights.double().sum()
        super().__init__(GaussianMixture(tuple(means.shape[1:]), share, means.double().reshape(count, n), wide))
