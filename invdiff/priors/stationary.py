"""A Gaussian over images on a torus, at the cost of Fourier transforms.

A covariance that is the same at every place is diagonal under the discrete Fourier transform, C = F^H diag(p) F; with
a covariance K between channels it is K (x) F^H diag(p) F (Gray 2006, "Toeplitz and Circulant Matrices: A Review",
chapter 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..likelihood import Likelihood
from .mixtures import GaussianMixture, Mixture

__all__ = ["StationaryGaussian"]


@dataclass(frozen=True)
class StationaryGaussian(Mixture):
    """One Gaussian over images (C, H, W) on a torus, C = channels (x) F^H diag(power) F, never stored densely.

    Args:
        shape: (C, H, W).
        weights: (1,), one.
        means: (1, n).
        power: (H, W), not negative and even in frequency: the eigenvalue of each orthonormal Fourier mode.
        channels: (C, C), symmetric and not negative definite.
    """

    power: Tensor
    channels: Tensor

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of the covariance, (C, H, W // 2 + 1), and the channels' eigenvectors, (C, C)."""
        values, vectors = torch.linalg.eigh(self.channels)
        half = self.power[:, : self.shape[2] // 2 + 1]
        return values.clamp_min(0)[:, None, None] * half, vectors

    def filter(self, x: Tensor, gain: Tensor) -> Tensor:
        """Multiply each eigenvector's share of x, (b, n), by gain, (C, H, W // 2 + 1) or one for each member."""
        _, vectors = self._spectrum
        images = torch.einsum("dc,bdhw->bchw", vectors, x.reshape(-1, *self.shape))
        modes = torch.fft.rfft2(images, norm="ortho") * gain
        out = torch.fft.irfft2(modes, s=self.shape[1:], norm="ortho")
        return torch.einsum("dc,bchw->bdhw", vectors, out).reshape(x.shape)

    def times_covariance(self, x: Tensor) -> Tensor:
        """C x for x of shape (b, n)."""
        return self.filter(x, self._spectrum[0])

    @property
    def variances(self) -> Tensor:
        pixel = self.channels.diagonal() * self.power.mean()
        return pixel[:, None].expand(-1, self.power.numel()).reshape(1, -1)

    @cached_property
    def covariances(self) -> Tensor:
        """The covariance as a dense matrix, (1, n, n)."""
        eye = torch.eye(self.means.shape[1], dtype=torch.float64, device=self.means.device)
        full = self.times_covariance(eye)
        return ((full + full.T) / 2)[None]

    @property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (1, n), held at or above 0, and eigenvectors (1, n, n) of the covariance."""
        return self.dense.eigen

    @cached_property
    def dense(self) -> GaussianMixture:
        return GaussianMixture(self.shape, self.weights, self.means, self.covariances)

    def _full(self) -> Tensor:
        values, _ = torch.linalg.eigh(self.channels)
        return values.clamp_min(0)[:, None, None] * self.power

    def _singular(self) -> bool:
        values = self._full()
        return bool((values <= 1e-14 * values.max()).any())

    def _coloured(self, noise: Tensor, component: Tensor) -> Tensor:
        return self.filter(noise, self._spectrum[0].sqrt())

    def log_components(self, x: Tensor, variance: Tensor | float) -> Tensor:
        centred = x.reshape(x.shape[0], -1) - self.means
        values, _ = self._spectrum
        added = variance.reshape(-1, 1, 1, 1) if isinstance(variance, Tensor) else variance
        energy = (centred * self.filter(centred, 1 / (values + added))).sum(1)
        volume = (self._full() + added).log().flatten(-3).sum(-1)
        return (self.weights.log() - 0.5 * (energy + volume + centred.shape[1] * math.log(2 * math.pi)))[:, None]

    def denoise(self, x: Tensor, variance: Tensor) -> Tensor:
        values, _ = self._spectrum
        return self.means + self.filter(x - self.means, values / (values + variance.reshape(-1, 1, 1, 1)))

    def condition(self, likelihood: Likelihood) -> GaussianMixture:
        return self.dense.condition(likelihood)

    def to(self, device: torch.device | str) -> StationaryGaussian:
        parts = (self.weights, self.means, self.power, self.channels)
        return StationaryGaussian(self.shape, *(t.to(device) for t in parts))
