"""Noise models p(y | z) of a noiseless measurement z = A x."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .random import MemberRandom

__all__ = ["GaussianNoise", "NoiseModel", "PoissonNoise"]


class NoiseModel(Protocol):
    """What a likelihood needs to know of its noise: p(y | z), member by member."""

    def log_prob(self, y: Tensor, z: Tensor) -> Tensor:
        """log p(y | z) of each member, (b,)."""
        ...

    def score(self, y: Tensor, z: Tensor) -> Tensor:
        """The derivative of log p(y | z) with respect to z, shaped like z."""
        ...

    def sample(self, z: Tensor, random: MemberRandom) -> Tensor:
        """One measurement y of each member of z."""
        ...

    def take(self, index: Tensor, y: Tensor) -> NoiseModel:
        """The noise of the chosen ones of the measurements y, (m, *out_shape); repeats allowed."""
        ...

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> NoiseModel:
        """A copy on another device or in another dtype."""
        ...


def _sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


@dataclass(frozen=True)
class GaussianNoise:
    """y = z + sigma * n with n standard normal.

    Args:
        sigma: standard deviation in image units ([0, 1] range): one number, a tensor shaped like one measurement
            (per pixel), or with a leading axis of m measurements: (m, 1, ..., 1) or (m, *out_shape).

    Raises:
        TypeError: if sigma is neither a real number nor a tensor of them.
        ValueError: if sigma is negative or not finite.
    """

    sigma: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.sigma, Tensor):
            if self.sigma.is_complex() or self.sigma.dtype == torch.bool:
                raise TypeError(f"sigma is a tensor of {self.sigma.dtype}: expected real numbers, such as float32.")
            if not bool(torch.isfinite(self.sigma).all()) or bool((self.sigma < 0).any()):
                worst = self.sigma[~(torch.isfinite(self.sigma) & (self.sigma >= 0))].flatten()[0].item()
                raise ValueError(f"sigma holds {worst}: expected standard deviations that are finite and not negative.")
        elif isinstance(self.sigma, np.ndarray):
            raise TypeError(f"sigma is a numpy array of shape {self.sigma.shape}: use torch.as_tensor(sigma).")
        elif not _is_number(self.sigma):
            raise TypeError(f"sigma is {self.sigma!r}: expected a number or a tensor, in image units.")
        elif not math.isfinite(self.sigma) or self.sigma < 0:
            raise ValueError(f"sigma is {self.sigma}: expected a standard deviation that is finite and not negative.")

    def like(self, z: Tensor) -> Tensor:
        """sigma as a tensor that broadcasts against z, (b, *out_shape): (1 or b, 1, ..., 1) where it is one number.

        Raises:
            ValueError: if the shape of sigma fits neither one measurement nor a batch of them.
        """
        if not isinstance(self.sigma, Tensor):
            return torch.full((1,) * z.ndim, float(self.sigma), dtype=z.dtype, device=z.device)
        sigma = self.sigma.to(z)
        if sigma.ndim == 0:
            return sigma.reshape((1,) * z.ndim)
        if sigma.shape == z.shape[1:]:
            return sigma[None]
        if sigma.ndim == z.ndim and all(s in (1, n) for s, n in zip(sigma.shape, z.shape, strict=True)):
            return sigma
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}: expected one number, {tuple(z.shape[1:])} (per pixel), or a leading"
            f" axis of {z.shape[0]} measurements, for example ({z.shape[0]}, {', '.join('1' * (z.ndim - 1))})."
        )

    def member_sigma(self, z: Tensor) -> Tensor | None:
        """One sigma per member, broadcastable against z, or None where sigma differs from pixel to pixel."""
        sigma = self.like(z)
        return sigma if all(s == 1 for s in sigma.shape[1:]) else None

    def log_prob(self, y: Tensor, z: Tensor) -> Tensor:
        """log N(y; z, sigma^2), (b,).

        Raises:
            ValueError: if a sigma is 0, where the density does not exist.
        """
        sigma = self._positive(z, "log_prob")
        return _sum(-0.5 * ((y - z) / sigma) ** 2 - sigma.log().expand_as(z) - 0.5 * math.log(2 * math.pi))

    def score(self, y: Tensor, z: Tensor) -> Tensor:
        """(y - z) / sigma^2.

        Raises:
            ValueError: if a sigma is 0.
        """
        return (y - z).div_(self._positive(z, "the gradient") ** 2)

    def sample(self, z: Tensor, random: MemberRandom) -> Tensor:
        """z + sigma * n."""
        return z + self.like(z) * random.normal(z)

    def take(self, index: Tensor, y: Tensor) -> GaussianNoise:
        """The noise of the chosen measurements."""
        if not isinstance(self.sigma, Tensor):
            return self
        sigma = self.like(y)
        return GaussianNoise(sigma[index.to(sigma.device)] if sigma.shape[0] > 1 else sigma)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GaussianNoise:
        """A copy on another device or in another dtype."""
        return GaussianNoise(self.sigma.to(device=device, dtype=dtype)) if isinstance(self.sigma, Tensor) else self

    def _positive(self, z: Tensor, what: str) -> Tensor:
        sigma = self.like(z)
        # A number above 0 may be 0 in the precision of z.
        if sigma.item() == 0 if sigma.numel() == 1 else bool((sigma == 0).any()):
            raise ValueError(f"sigma is 0, where {what} does not exist: use prox, or a sigma above 0.")
        return sigma


@dataclass(frozen=True)
class PoissonNoise:
    """y = gain * Poisson(z / gain): photon noise, of variance gain * z.

    Args:
        gain: image units per photon, above 0; the peak of a [0, 1] image then counts 1 / gain photons.

    Raises:
        TypeError: if the gain is not a real number.
        ValueError: if the gain is not finite and positive.
    """

    gain: float

    def __post_init__(self) -> None:
        if not _is_number(self.gain):
            raise TypeError(f"gain is {self.gain!r}: expected one number, in image units per photon.")
        if not math.isfinite(self.gain) or self.gain <= 0:
            raise ValueError(f"gain is {self.gain}: expected a finite number above 0 (image units per photon).")

    def log_prob(self, y: Tensor, z: Tensor) -> Tensor:
        """k log(z / gain) - z / gain - log k! with k = y / gain, (b,); minus infinity where z < 0."""
        count, rate = y / self.gain, z / self.gain
        terms = torch.special.xlogy(count, rate.clamp_min(0)) - rate - torch.lgamma(count + 1)
        return _sum(torch.where(rate < 0, -torch.inf, terms))

    def score(self, y: Tensor, z: Tensor) -> Tensor:
        """(y / z - 1) / gain, with z held above a thousandth of a photon where y > 0."""
        floor = 1e-3 * self.gain
        return torch.where(y > 0, y / z.clamp_min(floor), torch.zeros_like(z)).sub(1).div(self.gain)

    def sample(self, z: Tensor, random: MemberRandom) -> Tensor:
        """gain * Poisson(max(z, 0) / gain)."""
        return self.gain * random.poisson(z.clamp_min(0) / self.gain)

    def take(self, index: Tensor, y: Tensor) -> PoissonNoise:
        """The same noise: the gain belongs to the sensor."""
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PoissonNoise:
        """The same noise: it holds no tensor."""
        return self
