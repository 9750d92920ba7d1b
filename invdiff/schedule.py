"""Decreasing noise levels of diffusion solvers, in sigma (variance exploding) and image units ([0, 1] range).

A variance-preserving process on [-1, 1] images, x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps, is the process
x0 + sigma eps with sigma = sqrt((1 - alpha_bar) / alpha_bar) in its units, and half of that in ours. The processes
themselves are in `invdiff.process`.
"""

from __future__ import annotations

import math

from torch import Tensor

from .process import EDM, VE, Discrete, Flow, Process, VPCosine, VPLinear, karras

__all__ = [
    "EDM",
    "VE",
    "Discrete",
    "Flow",
    "Process",
    "VPCosine",
    "VPLinear",
    "karras",
    "noise_levels",
    "vp_linear",
]


def vp_linear(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The linear-beta schedule of DDPM (`VPLinear`) on [-1, 1] images, in image units."""
    return VPLinear().levels(steps, 2 * sigma_min, 2 * sigma_max) / 2


def vp_cosine(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The cosine schedule (`VPCosine`) on [-1, 1] images, in image units."""
    return VPCosine().levels(steps, 2 * sigma_min, 2 * sigma_max) / 2


def ve_geometric(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in log sigma, the schedule of `VE`."""
    return VE(sigma_min, sigma_max).levels(steps, sigma_min, sigma_max)


def flow_linear(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Evenly spaced in the time of `Flow` on [-1, 1] images, in image units."""
    return Flow().levels(steps, 2 * sigma_min, 2 * sigma_max) / 2


SCHEDULES = {"karras": karras, "vp": vp_linear, "cosine": vp_cosine, "ve": ve_geometric, "flow": flow_linear}


def noise_levels(schedule: str, steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """`steps` noise levels from sigma_max to sigma_min, image units, then 0.

    Args:
        schedule: "karras" (EDM, rho 7), "vp" (even in the time of the linear betas), "cosine", "ve" (geometric) or
            "flow" (even in the time of rectified flow).
        steps: how many.
        sigma_min: last level before 0, image units.
        sigma_max: first level, image units.

    Raises:
        ValueError: for an unknown schedule or limits that are not 0 < sigma_min < sigma_max.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}: expected one of {', '.join(SCHEDULES)}.")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min is {sigma_min} and sigma_max {sigma_max}: expected 0 < sigma_min < sigma_max.")
    return [*SCHEDULES[schedule](steps, sigma_min, sigma_max).tolist(), 0.0]
