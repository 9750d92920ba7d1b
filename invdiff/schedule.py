"""Decreasing noise levels of diffusion solvers, in sigma (variance exploding) and image units ([0, 1] range).

A variance-preserving process on [-1, 1] images, x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, is the process
x0 + sigma eps with sigma = sqrt((1 - alpha_bar) / alpha_bar) in its units, and half of that in ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["karras", "noise_levels", "vp_linear"]


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """(sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, Karras et al. 2022, eq. 5.

    >>> karras(3, 0.01, 1.0, rho=1.0)
    tensor([1.0000, 0.5050, 0.0100], dtype=torch.float64)
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def vp_linear(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The linear-beta schedule of DDPM (Ho et al. 2020, section 4), evenly spaced in time between the two sigmas.

    alpha_bar(t) = exp(-t (beta_0 + t (beta_1 - beta_0) / 2)) with beta_0 = 0.1 and beta_1 = 20 (Song et al. 2021,
    eq. 33), which the 1,000 betas from 1e-4 to 0.02 discretise.
    """

    def time(sigma: float) -> float:
        # sigma is ours; (2 sigma)^2 + 1 = 1 / alpha_bar.
        exponent = math.log1p(4 * sigma**2)
        return (-0.1 + math.sqrt(0.01 + 2 * 19.9 * exponent)) / 19.9

    t = torch.linspace(time(sigma_max), time(sigma_min), steps, dtype=torch.float64)
    return torch.expm1(t * (0.1 + t * 19.9 / 2)).sqrt() / 2


SCHEDULES = {"karras": karras, "vp": vp_linear}


def noise_levels(schedule: str, steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`steps` noise levels from sigma_max to sigma_min, then 0.

    Raises:
        ValueError: for an unknown schedule or limits that are not 0 < sigma_min < sigma_max.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}: expected one of {', '.join(SCHEDULES)}.")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min is {sigma_min} and sigma_max {sigma_max}: expected 0 < sigma_min < sigma_max.")
    return [*SCHEDULES[schedule](steps, sigma_min, sigma_max).tolist(), 0.0]
