"""DPM-Solver++ (2M), the second-order multistep sampler: draws of the prior in few steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from ..transitions import ode2m
from .prior_sampler import PriorSampler

__all__ = ["DPMpp2M"]


@dataclass(frozen=True)
class DPMpp2M(PriorSampler):
    """Follow the probability-flow ODE with the denoised image extrapolated from the last two steps.

    From level sigma to the next level t, with h = log(sigma / t), h' that of the step before, D' its denoised image:

        E = D + h / (2 h') (D - D')    (D in the first step and in the last, where h is infinite)
        x' = (t / sigma) x + (1 - t / sigma) E

    Lu, Zhou, Bao, Chen, Li, Zhu 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
    Models", algorithm 2. One call of the prior a step; deterministic after the start.

    On Gaussian images of power 1/f^2 (8x8, exact denoiser, from sigma 40; `python -m benchmarks.samplers`) the
    covariance of the draws is off by 9.0 / 1.9 / 0.4 % at 20 / 40 / 80 steps (Frobenius norm), as Heun's for half
    the calls; against the closed form of the ODE its order of convergence is 1.97.

    Raises:
        CapabilityError: if there is a likelihood, or the prior does not serve all noise levels.
    """

    steps: int = 40
    schedule: str = "karras"
    sigma_min: float = 0.002

    def iterate(
        self, likelihood: Likelihood | None, denoiser: Prior, x: Tensor, random: MemberRandom
    ) -> Iterator[Tensor]:
        yield from ode2m(denoiser, x, self.levels(denoiser), random)
