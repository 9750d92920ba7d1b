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

import torch
from torch import Tensor

from ..likelihood import Likelihood
from .base import Prior, check_sigma, lies_on
from .mixtures import GaussianMixture, IsotropicMixture, Mixture
from .stationary import StationaryGaussian

__all__ = ["GaussianMixture", "GaussianMixturePrior", "GaussianPrior"]


class _AnalyticPrior(Prior):
    """Shared by the exact priors: they hold a mixture in float64 and answer in the dtype of their input."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.in_shape = mixture.shape
        self.sigma_range = (0.0, math.inf)
        self.differentiable = True
        self.jacobian_limit = math.inf

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

    def posterior(self, likelihood: Likelihood) -> Mixture:
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
        copy.mixture = m.to(device)
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
        # With no noise the image is its own estimate; the tiny variance keeps singular directions defined.
        variance = (sigma.to(wide) ** 2).clamp_min(1e-30)
        return self.mixture.denoise(wide.flatten(1), variance).reshape(x.shape).to(x)


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
    mixture: GaussianMixture

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
        channels = channels.to(power.device).double()
        wide = power.double()
        # The real part of the modes: a power that is not even in frequency counts as the mean of both signs.
        mirrored = wide.flip(0, 1).roll((1, 1), (0, 1))
        even = (wide + mirrored) / 2
        lowest = float(even.min())
        if lowest < -1e-8 * float(even.max()):
            raise ValueError(f"power holds {lowest:.3g}: expected eigenvalues, none below 0.")
        smallest = float(torch.linalg.eigvalsh(channels)[0])
        if smallest < -1e-8 * float(channels.diagonal().max()):
            raise ValueError(f"channel_covariance has the eigenvalue {smallest:.3g}: expected none below 0.")
        full = torch.zeros(len(channels), height, width, dtype=torch.float64, device=power.device)
        full = full + torch.as_tensor(mean, device=power.device).double()
        one = torch.ones(1, dtype=torch.float64, device=power.device)
        prior: GaussianPrior = object.__new__(cls)
        _AnalyticPrior.__init__(
            prior, StationaryGaussian(tuple(full.shape), one, full.reshape(1, -1), even.clamp_min(0), channels)
        )
        return prior

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
        if wide.shape not in ((count, n, n), (count,)):
            raise ValueError(
                f"covariances have shape {tuple(covariances.shape)}: expected ({count}, {n}, {n}) or ({count},)."
            )
        share = weights.double() / weights.double().sum()
        shape, flat = tuple(means.shape[1:]), means.double().reshape(count, n)
        if wide.ndim == 3:
            super().__init__(GaussianMixture(shape, share, flat, wide))
        else:
            super().__init__(IsotropicMixture(shape, share, flat, wide, flat.new_zeros(n, 0), flat.new_zeros(count, 0)))
