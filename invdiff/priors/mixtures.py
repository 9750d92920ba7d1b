"""Mixtures of Gaussians with exact moments, samples, densities, denoisers and posteriors, each in its cheapest form.

    GaussianMixture      any covariances, as dense matrices
    IsotropicMixture     C_k = c_k (I - V diag(g_k) V^T) with V of few columns: no matrix of n x n is ever made
    StationaryGaussian   one Gaussian on a torus, diagonal under the FFT (in `stationary`)

With x = x0 + sigma eps, r_k(x) the probability of component k given x, and y = A x0 + n, n ~ N(0, Sigma_y),

    E[x0 | x] = sum_k r_k(x) (m_k + C_k (C_k + sigma^2 I)^-1 (x - m_k)),
    m_k' = m_k + C_k A^T (A C_k A^T + Sigma_y)^-1 (y - A m_k),    C_k' = C_k - C_k A^T (A C_k A^T + Sigma_y)^-1 A C_k

(Rasmussen and Williams 2006, eq. A.6), and w_k' is w_k times the evidence N(y; A m_k, A C_k A^T + Sigma_y).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import LinearOperator

__all__ = ["GaussianMixture", "IsotropicMixture", "Mixture", "dense_matrix"]

_LARGEST = 8192


@dataclass(frozen=True)
class Mixture(ABC):
    """What the mixtures share: sum_k w_k N(m_k, C_k) over images, or vectors, of shape `shape` with n values.

    Args:
        shape: shape without batch axis, n values in all.
        weights: (k,), positive, sum 1.
        means: (k, n).
    """

    shape: tuple[int, ...]
    weights: Tensor
    means: Tensor

    @property
    @abstractmethod
    def variances(self) -> Tensor:
        """Diagonals of the covariances, (k, n)."""

    @abstractmethod
    def log_components(self, x: Tensor, variance: Tensor | float) -> Tensor:
        """log w_k N(x; m_k, C_k + variance I), (b, k), with variance one number or (b,)."""

    @abstractmethod
    def denoise(self, x: Tensor, variance: Tensor) -> Tensor:
        """E[x0 | x0 + sqrt(variance) eps = x] for x (b, n) in float64 and variance (b,) above 0: (b, n)."""

    @abstractmethod
    def condition(self, likelihood: Likelihood) -> Mixture:
        """The exact posterior given one measurement of a linear operator with Gaussian noise.

        Raises:
            ValueError: if the operator is not linear, the noise not Gaussian, or there are several measurements.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Mixture:
        """A copy on another device."""

    @property
    @abstractmethod
    def dense(self) -> GaussianMixture:
        """The same distribution with dense matrices."""

    @abstractmethod
    def _singular(self) -> bool:
        """Whether a covariance is singular, so that there is no density."""

    @abstractmethod
    def _coloured(self, noise: Tensor, component: Tensor) -> Tensor:
        """Samples of N(0, C_component) made of white noise: both (b, n), component (b,)."""

    @property
    def mean(self) -> Tensor:
        """The exact mean, (*shape)."""
        return (self.weights @ self.means).reshape(self.shape)

    @cached_property
    def covariance(self) -> Tensor:
        """The exact covariance, (n, n)."""
        centred = self.means - self.weights @ self.means
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return torch.einsum("k,kij->ij", self.weights, self.dense.covariances) + between

    @property
    def std(self) -> Tensor:
        """The exact pixel-wise standard deviation, (*shape)."""
        centred = self.means - self.weights @ self.means
        return (self.weights @ (self.variances + centred**2)).clamp_min(0).sqrt().reshape(self.shape)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n independent samples, (n, *shape)."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64).to(self.means)
        component = component.to(self.means.device)
        return (self.means[component] + self._coloured(noise, component)).reshape(n, *self.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of each member of x, (b,).

        Raises:
            ValueError: if a covariance is singular, where there is no density.
        """
        if self._singular():
            raise ValueError(
                "The distribution has no density: a covariance is singular (an exact measurement fixes x)."
            )
        return torch.logsumexp(self.log_components(x.to(self.means), 0.0), dim=1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each component given x, (b, k); its mean over exact samples is `weights`."""
        return self.log_components(x.to(self.means), 0.0).softmax(1)

    def probability(self, low: Tensor, high: Tensor) -> Tensor:
        """The exact probability that each value lies between low and high, all of shape (*shape)."""
        std = self.variances.clamp_min(1e-300).sqrt()
        above, below = ((bound.to(self.means).reshape(1, -1) - self.means) / std for bound in (low, high))
        inside = torch.special.ndtr(below) - torch.special.ndtr(above)
        return (self.weights @ inside).reshape(self.shape)


@dataclass(frozen=True)
class GaussianMixture(Mixture):
    """The distribution sum_k w_k N(m_k, C_k) over images of shape `shape`; one component makes it a Gaussian.

    Args:
        shape: image shape without batch axis, n values in all.
        weights: (k,), positive, sum 1.
        means: (k, n).
        covariances: (k, n, n), symmetric and not negative definite.
    """

    covariances: Tensor

    @property
    def dense(self) -> GaussianMixture:
        return self

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (k, n), held at or above 0, and eigenvectors (k, n, n) of the covariances."""
        values, vectors = torch.linalg.eigh(self.covariances)
        return values.clamp_min(0), vectors

    @property
    def variances(self) -> Tensor:
        return self.covariances.diagonal(dim1=1, dim2=2)

    def _singular(self) -> bool:
        values, _ = self.eigen
        return bool((values <= 1e-14 * values.max()).any())

    def _coloured(self, noise: Tensor, component: Tensor) -> Tensor:
        values, vectors = self.eigen
        out = torch.empty_like(noise)
        for k in range(len(self.weights)):
            chosen = component == k
            out[chosen] = (noise[chosen] * values[k].sqrt()) @ vectors[k].T
        return out

    def log_components(self, x: Tensor, variance: Tensor | float) -> Tensor:
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

    def denoise(self, x: Tensor, variance: Tensor) -> Tensor:
        coordinates, values = self.coordinates(x)
        shrunk = coordinates * (values / (values + variance[:, None, None]))
        _, vectors = self.eigen
        means = self.means + torch.einsum("bki,kji->bkj", shrunk, vectors)
        if len(self.weights) == 1:
            return means[:, 0]
        return torch.einsum("bk,bkj->bj", self.log_components(x, variance).softmax(1), means)

    def condition(self, likelihood: Likelihood) -> GaussianMixture:
        operator, y, variance = _measured(likelihood, self.means)
        matrix = dense_matrix(operator, y)
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

    def to(self, device: torch.device | str) -> GaussianMixture:
        moved = (t.to(device) for t in (self.weights, self.means, self.covariances))
        return GaussianMixture(self.shape, *moved)


@dataclass(frozen=True)
class IsotropicMixture(Mixture):
    """Components C_k = c_k (I - V diag(g_k) V^T): isotropic, but for the r directions that a measurement narrowed.

    Args:
        shape: shape without batch axis, n values in all.
        weights: (k,), positive, sum 1.
        means: (k, n).
        spread: c_k above 0, (k,).
        basis: V, (n, r) with orthonormal columns; r is 0 before any measurement.
        shrink: g_k, (k, r), in [0, 1].
    """

    spread: Tensor
    basis: Tensor
    shrink: Tensor

    @property
    def variances(self) -> Tensor:
        return self.spread[:, None] * (1 - self.shrink @ (self.basis**2).T)

    @cached_property
    def covariances(self) -> Tensor:
        """The covariances as dense matrices, (k, n, n)."""
        narrowed = torch.einsum("ir,kr,jr->kij", self.basis, self.shrink, self.basis)
        eye = torch.eye(self.means.shape[1], dtype=torch.float64, device=self.means.device)
        return self.spread[:, None, None] * (eye - narrowed)

    @cached_property
    def dense(self) -> GaussianMixture:
        return GaussianMixture(self.shape, self.weights, self.means, self.covariances)

    @property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (k, n), held at or above 0, and eigenvectors (k, n, n) of the covariances."""
        return self.dense.eigen

    def _singular(self) -> bool:
        values = self.spread[:, None] * (1 - self.shrink)
        return bool((values <= 1e-14 * self.spread.max()).any())

    def _coloured(self, noise: Tensor, component: Tensor) -> Tensor:
        # The square root of I - V g V^T is I + V (sqrt(1 - g) - 1) V^T.
        narrowed = (noise @ self.basis) * ((1 - self.shrink[component]).clamp_min(0).sqrt() - 1)
        return self.spread[component].sqrt()[:, None] * (noise + narrowed @ self.basis.T)

    def _parts(self, x: Tensor, variance: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """|x - m_k|^2, V^T (x - m_k), and the variances outside and inside the basis: (b, k, ...) each."""
        flat = x.reshape(x.shape[0], -1)
        squared = (flat**2).sum(1, keepdim=True) - 2 * flat @ self.means.T + (self.means**2).sum(1)
        inside = (flat @ self.basis)[:, None] - self.means @ self.basis
        added = variance.reshape(-1, 1) if isinstance(variance, Tensor) else variance
        wide = self.spread + torch.zeros_like(squared) + added
        narrow = (self.spread[:, None] * (1 - self.shrink)) + torch.zeros_like(inside)
        narrow = narrow + (added[..., None] if isinstance(added, Tensor) else added)
        return squared, inside, wide, narrow

    def log_components(self, x: Tensor, variance: Tensor | float) -> Tensor:
        return self._log(*self._parts(x, variance))

    def _log(self, squared: Tensor, inside: Tensor, wide: Tensor, narrow: Tensor) -> Tensor:
        n, r = self.basis.shape
        energy = squared / wide + (inside**2 * (1 / narrow - 1 / wide[..., None])).sum(2)
        volume = (n - r) * wide.log() + narrow.log().sum(2)
        return self.weights.log() - 0.5 * (energy + volume + n * math.log(2 * math.pi))

    def denoise(self, x: Tensor, variance: Tensor) -> Tensor:
        squared, inside, wide, narrow = self._parts(x, variance)
        share = self._log(squared, inside, wide, narrow).softmax(1)
        # As sums over components before anything of size (b, k, n) is made.
        keep = self.spread / wide
        narrowed = (self.spread[:, None] * (1 - self.shrink) / narrow - keep[..., None]) * inside
        out = (share * keep).sum(1, keepdim=True) * x + (share * (1 - keep)) @ self.means
        return out + torch.einsum("bk,bkr->br", share, narrowed) @ self.basis.T

    def condition(self, likelihood: Likelihood) -> Mixture:
        operator, y, variance = _measured(likelihood, self.means)
        if self.basis.shape[1] or bool((variance == 0).any()):
            return self.dense.condition(likelihood)
        white = dense_matrix(operator, y) / variance.sqrt()[:, None]
        u, s, vt = torch.linalg.svd(white, full_matrices=False)
        residual = y.flatten() / variance.sqrt() - self.means @ white.T
        total = 1 + self.spread[:, None] * s**2
        seen = residual @ u
        energy = (seen**2 / total).sum(1) + (residual**2).sum(1) - (seen**2).sum(1) + total.log().sum(1)
        weights = (self.weights.log() - 0.5 * energy).softmax(0)
        means = self.means + (self.spread[:, None] * s / total * seen) @ vt
        return IsotropicMixture(self.shape, weights, means, self.spread, vt.T.contiguous(), 1 - 1 / total)

    def to(self, device: torch.device | str) -> IsotropicMixture:
        parts = (self.weights, self.means, self.spread, self.basis, self.shrink)
        return IsotropicMixture(self.shape, *(t.to(device) for t in parts))


def _measured(likelihood: Likelihood, like: Tensor) -> tuple[LinearOperator, Tensor, Tensor]:
    """The operator, y with a batch axis, and the variance of its noise, (m,), checked."""
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
    y = likelihood.batched_y.to(like)
    return operator, y, (noise.like(y) ** 2).expand_as(y).flatten()


def dense_matrix(operator: LinearOperator, like: Tensor) -> Tensor:
    """The matrix of a linear operator, (n_out, n_in), in float64 on the device of like.

    Raises:
        ValueError: if the operator takes more than 8,192 values.
    """
    size = math.prod(operator.in_shape)
    if size > _LARGEST:
        raise ValueError(f"The exact posterior works with dense matrices: {size} values are more than {_LARGEST}.")
    basis = torch.eye(size, dtype=torch.float64, device=like.device).reshape(size, *operator.in_shape)
    columns = operator.take(torch.zeros(size, dtype=torch.long)).forward(basis)
    return columns.reshape(size, -1).T.to(like)
