"""Forward processes: what diffusion networks were trained on, in noise level, time and alpha_bar.

Every process of the field is the variance-exploding one in another coordinate and another clock,

    x_t = scale(t) (x0 + sigma(t) eps),        eps ~ N(0, I),

so that sigma tells the noise level to everybody, and a time or an alpha_bar only to the network that was trained on it.
A process speaks its network's units: for images in [-1, 1] its sigma is twice ours, and

    variance preserving   scale^2 = alpha_bar = 1 / (1 + sigma^2),    x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps
    variance exploding    scale = 1
    rectified flow        scale = 1 - t = 1 / (1 + sigma),            x_t = (1 - t) x0 + t eps

All numbers here are float64, on the CPU where the device of what is given has none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["EDM", "VE", "Discrete", "Flow", "Process", "VPCosine", "VPLinear", "karras"]


class Process(ABC):
    """x_t = scale(t) (x0 + sigma(t) eps): what a network was trained on, in its own units and its own clock.

    Times, noise levels and alpha_bar are numbers or tensors of any shape; answers are float64 tensors of that shape.

    Attributes:
        sigma_min: the lowest noise level of the clock.
        sigma_max: the highest; infinite where the image is wholly gone at the end.
    """

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """The noise level at time t."""

    @abstractmethod
    def time(self, sigma: float | Tensor) -> Tensor:
        """The time at which the noise level is sigma: the inverse of `sigma`."""

    @abstractmethod
    def scale(self, t: float | Tensor) -> Tensor:
        """The factor on the image at time t."""

    def alpha_bar(self, t: float | Tensor) -> Tensor:
        """1 / (1 + sigma(t)^2): of the variance-preserving process with the same noise level, scale(t)^2 if it is one.

        Ho et al. 2020, eq. 4.
        """
        return 1 / (1 + self.sigma(t) ** 2)

    def from_alpha_bar(self, alpha_bar: float | Tensor) -> Tensor:
        """The time with that alpha_bar: the inverse of `alpha_bar`, by sigma = sqrt((1 - alpha_bar) / alpha_bar)."""
        share = double(alpha_bar)
        return self.time(((1 - share) / share).sqrt())

    def levels(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        """`steps` noise levels that fall from sigma_max to sigma_min evenly in the time of this process."""
        first, last = float(self.time(sigma_max)), float(self.time(sigma_min))
        return self.sigma(torch.linspace(first, last, steps, dtype=torch.float64))


@dataclass(frozen=True)
class VPLinear(Process):
    """The linear-beta process, t from 0 to 1: sigma^2 = exp(B) - 1, B = t beta_min + t^2 (beta_max - beta_min) / 2.

    Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", eq. 33; its defaults
    are the 1,000 betas from 1e-4 to 0.02 of Ho et al. 2020, section 4, in continuous time.

    Args:
        beta_min: rate of noise at t = 0, at least 0.
        beta_max: rate of noise at t = 1, at least beta_min and above 0.

    Raises:
        ValueError: for rates that do not rise.

    >>> VPLinear().sigma_max > 150
    True
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not (0 <= self.beta_min <= self.beta_max < math.inf and self.beta_max > 0):
            raise ValueError(
                f"beta_min is {self.beta_min} and beta_max {self.beta_max}: expected 0 <= beta_min <= beta_max, "
                "not both 0."
            )

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return 0.0

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return float(self.sigma(1.0))

    def sigma(self, t: float | Tensor) -> Tensor:
        t = double(t)
        return torch.expm1(t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)).sqrt()

    def time(self, sigma: float | Tensor) -> Tensor:
        exponent = torch.log1p(double(sigma) ** 2)
        # The root of the quadratic in the form that does not cancel and serves beta_min = beta_max.
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * exponent).sqrt()
        return 2 * exponent / (self.beta_min + root).clamp_min(1e-300)

    def scale(self, t: float | Tensor) -> Tensor:
        return self.alpha_bar(t).sqrt()


@dataclass(frozen=True)
class VPCosine(Process):
    """The cosine process, t from 0 to 1: alpha_bar = cos^2(a) / cos^2(a_0), a = (t + s) / (1 + s) pi / 2.

    Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17. Its noise is infinite at
    t = 1, which is why their betas are cut at 0.999.

    Args:
        s: offset, at least 0 and below 1.

    Raises:
        ValueError: for another offset.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.s < 1:
            raise ValueError(f"s is {self.s}: expected at least 0 and below 1, such as 0.008.")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return 0.0

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return math.inf

    @property
    def _first(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    def sigma(self, t: float | Tensor) -> Tensor:
        span = double(t) / (1 + self.s) * math.pi / 2
        a = span + self._first
        # cos^2(a_0) - cos^2(a) = sin(a + a_0) sin(a - a_0), which keeps its digits where t is small.
        return (torch.sin(a + self._first) * torch.sin(span)).clamp_min(0).sqrt() / torch.cos(a)

    def time(self, sigma: float | Tensor) -> Tensor:
        tangent = (math.sin(self._first) ** 2 + double(sigma) ** 2).sqrt() / math.cos(self._first)
        return (torch.atan(tangent) - self._first) * 2 / math.pi * (1 + self.s)

    def scale(self, t: float | Tensor) -> Tensor:
        return self.alpha_bar(t).sqrt()


@dataclass(frozen=True)
class VE(Process):
    """The variance-exploding process, t from 0 to 1: sigma = sigma_min (sigma_max / sigma_min)^t.

    Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", the SMLD process.

    Args:
        sigma_min: noise level at t = 0.
        sigma_max: noise level at t = 1.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_limits(self.sigma_min, self.sigma_max)

    def sigma(self, t: float | Tensor) -> Tensor:
        return self.sigma_min * torch.exp(double(t) * math.log(self.sigma_max / self.sigma_min))

    def time(self, sigma: float | Tensor) -> Tensor:
        return (double(sigma).log() - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    def scale(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(double(t))


@dataclass(frozen=True)
class EDM(Process):
    """The process whose time is its noise level, with levels even in sigma^(1/rho).

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 5.

    Args:
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        rho: the higher, the more of the levels are low.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and rho > 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_limits(self.sigma_min, self.sigma_max)
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho is {self.rho}: expected a finite number above 0, such as 7.")

    def sigma(self, t: float | Tensor) -> Tensor:
        return double(t).clone()

    def time(self, sigma: float | Tensor) -> Tensor:
        return double(sigma).clone()

    def scale(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(double(t))

    def levels(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        return karras(steps, sigma_min, sigma_max, self.rho)


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow, t from 0 (image) to 1 (noise): x_t = (1 - t) x0 + t eps, so sigma = t / (1 - t).

    Liu, Gong, Liu 2023, "Flow Straight and Fast"; a code base whose t runs from noise to image has 1 - t.
    """

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return 0.0

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return math.inf

    def sigma(self, t: float | Tensor) -> Tensor:
        t = double(t)
        return t / (1 - t)

    def time(self, sigma: float | Tensor) -> Tensor:
        # The form serves sigma = infinity as well.
        return 1 - 1 / (1 + double(sigma))

    def scale(self, t: float | Tensor) -> Tensor:
        return 1 - double(t)


@dataclass(frozen=True, eq=False)
class Discrete(Process):
    """A process known at whole times 0 to T - 1 by its alpha_bar, log sigma being interpolated between them.

    Beyond its first and last level `time` gives the nearest end.

    Args:
        alphas_bar: (T,), strictly rising or falling, each above 0 and below 1.
        preserving: whether the image is scaled by sqrt(alpha_bar), as in DDPM, or left as it is, as in NCSN.

    Raises:
        ValueError: for values that are no alpha_bar.

    >>> ddpm = Discrete.from_betas(torch.linspace(1e-4, 0.02, 1000))
    >>> round(ddpm.sigma_min, 4), round(ddpm.sigma_max, 1), float(ddpm.time(ddpm.sigma(500)))
    (0.01, 157.4, 500.0)
    """

    alphas_bar: Tensor
    preserving: bool = True

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.alphas_bar).detach().to("cpu", torch.float64).clone()
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"alphas_bar has shape {tuple(values.shape)}: expected (T,) with at least two times.")
        if values[0] == 1:
            raise ValueError(
                "alphas_bar begins with 1, the image itself as step 0: leave out the first and, where the network "
                "counts it too, give from_network time=lambda t: t + 1."
            )
        if not bool(((values > 0) & (values < 1)).all()):
            raise ValueError(
                f"alphas_bar runs from {float(values.min()):.3g} to {float(values.max()):.3g}: expected numbers above "
                "0 and below 1; leave out a last one of 0 (no image left)."
            )
        steps = values.diff()
        if not (bool((steps < 0).all()) or bool((steps > 0).all())):
            raise ValueError("alphas_bar is not strictly rising or falling: expected the product of (1 - beta).")
        object.__setattr__(self, "alphas_bar", values)

    @classmethod
    def from_betas(cls, betas: Tensor) -> Discrete:
        """From the variances added by each step, (T,), above 0 and below 1: alpha_bar is the product of 1 - beta.

        Ho et al. 2020, eq. 4.

        Raises:
            ValueError: for other numbers.
        """
        wide = torch.as_tensor(betas).detach().to("cpu", torch.float64)
        if wide.ndim != 1 or not bool(((wide > 0) & (wide < 1)).all()):
            raise ValueError(
                f"betas has shape {tuple(wide.shape)} and values from {float(wide.min()):.3g} to "
                f"{float(wide.max()):.3g}: expected (T,) with numbers above 0 and below 1."
            )
        return cls((1 - wide).cumprod(0))

    @classmethod
    def from_sigmas(cls, sigmas: Tensor) -> Discrete:
        """From the noise levels of a network that sees x0 + sigma eps unscaled, (T,), rising or falling, above 0.

        Song and Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution".

        Raises:
            ValueError: for levels that are not positive and finite.
        """
        wide = torch.as_tensor(sigmas).detach().to("cpu", torch.float64)
        if wide.ndim != 1 or not bool(((wide > 0) & (wide < math.inf)).all()):
            raise ValueError(
                f"sigmas has shape {tuple(wide.shape)}: expected (T,) with finite noise levels above 0, "
                "rising or falling."
            )
        return cls(1 / (1 + wide**2), preserving=False)

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return math.exp(float(self._log_sigma.min()))

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return math.exp(float(self._log_sigma.max()))

    @property
    def _log_sigma(self) -> Tensor:
        return (torch.log1p(-self.alphas_bar) - self.alphas_bar.log()) / 2

    def sigma(self, t: float | Tensor) -> Tensor:
        t = double(t)
        return _interpolate(t, torch.arange(len(self.alphas_bar), dtype=torch.float64), self._log_sigma).exp()

    def time(self, sigma: float | Tensor) -> Tensor:
        log_sigma, times = self._log_sigma, torch.arange(len(self.alphas_bar), dtype=torch.float64)
        if bool(log_sigma[0] > log_sigma[-1]):
            log_sigma, times = log_sigma.flip(0), times.flip(0)
        return _interpolate(double(sigma).log(), log_sigma, times)

    def scale(self, t: float | Tensor) -> Tensor:
        return self.alpha_bar(t).sqrt() if self.preserving else torch.ones_like(double(t))


def _interpolate(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (knots, values), knots rising, held constant beyond the ends."""
    knots, values = knots.to(at.device), values.to(at.device)
    right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    left = right - 1
    share = ((at - knots[left]) / (knots[right] - knots[left])).clamp(0, 1)
    return values[left] + share * (values[right] - values[left])


def double(value: float | Tensor) -> Tensor:
    """In float64 where it is, or on the CPU where its device (Apple's) has none."""
    if isinstance(value, Tensor) and value.device.type == "mps":
        value = value.cpu()
    return torch.as_tensor(value, dtype=torch.float64)


def _check_limits(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min is {sigma_min} and sigma_max {sigma_max}: expected 0 < sigma_min < sigma_max.")


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """(sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, Karras et al. 2022, eq. 5.

    >>> karras(3, 0.01, 1.0, rho=1.0)
    tensor([1.0000, 0.5050, 0.0100], dtype=torch.float64)
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + ramp * (low - high)) ** rho
