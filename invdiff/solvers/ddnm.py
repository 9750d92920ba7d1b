"""Denoising diffusion null-space models (DDNM, DDNM+): draws, for linear operators and any diffusion prior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import LinearOperator, Spectral
from ..priors.base import Prior
from ..random import MemberRandom
from ..transitions import Estimate, reverse
from .base import CapabilityError, Margins, instead, require_count
from .guided import GuidedSolver

__all__ = ["DDNM"]


@dataclass(frozen=True)
class DDNM(GuidedSolver):
    """Every estimate of the image gets what A shows of it from the measurement, and its null space from the denoiser.

    With x0 = D(x, sigma) and the rectified estimate x0^ = x0 + A^+ (y - A x0), from level sigma to the next level t:

        x' = x0^ + eta t eps + sqrt(1 - eta^2) t (x - x0) / sigma

    DDNM+, for noise, weakens the correction by Lambda and lowers the fresh noise to Phi in the singular coordinates of
    A where s > 0, so that the noise sigma_y / s which y brings along and the fresh one are together that of the step:

        t >= sigma_y / s:  x0 + (ybar - x0) + sqrt(t^2 - sigma_y^2 / s^2) eps
        t < sigma_y / s:   x0 + sqrt(1 - eta^2) t (s / sigma_y) (ybar - x0) + eta t eps

    Wang, Yu, Zhang 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", eqs. 12 to 19, in
    the official code's form with its eta; coordinate by coordinate that form of DDNM+ is DDRM with eta_b = 1. The
    paper's text has the ancestral step instead (transition "ancestral"): x' = x + a (x0^ - x) + fresh noise of variance
    v = t^2 a, with a = 1 - t^2 / sigma^2, Lambda = min(1, sqrt(v) s / (a sigma_y)) and
    Phi = v - (a Lambda sigma_y / s)^2. There every step adds the same noise of y once more, which piles up where s is
    small. Without noise both are DDNM, for any operator and transition.

    Its draws are not the posterior, even with an exact denoiser. On Gaussian images (inpainting 50 % / blur / 4x
    downsampling / denoising; `python -m benchmarks.posterior`) the default gives, against the exact posterior,

        error of the mean, posterior stds:    0.20 / 0.58 / 0.05 / 0.05
        std ratio:                            0.83 / 0.53 / 0.79 / 0.60
        coverage of nominal 90 % intervals:   0.76 / 0.55 / 0.80 / 0.68

    By the ancestral step the means are off by 0.36 / 2.94 / 0.19 / 0.35.

    Args:
        steps: number of denoiser calls, each stage's repeats not counted.
        transition: "ddnm" as above, "ancestral", or without noise any of `invdiff.transitions`.
        eta: share of fresh noise in "ddnm" and "ddim", 0 to 1.
        plus: whether the noise of y enters (DDNM+); false takes y as exact.
        travel_length: steps of a stage that is gone through again (the paper's time-travel).
        travel_repeat: how often each stage is gone through; 1 is no time-travel.

    Raises:
        CapabilityError: if the operator is not linear or the noise not Gaussian; with noise, if the operator has no SVD
            or sigma differs from pixel to pixel.
    """

    steps: int = 100
    transition: str = "ddnm"
    eta: float = 0.85
    plus: bool = True
    travel_length: int = 1
    travel_repeat: int = 1

    margins: ClassVar[Margins] = Margins(mean=0.68, spread=(0.50, 0.86), coverage=(0.52, 0.83))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self, "travel_length", "travel_repeat")
        if self.plus not in (True, False):
            raise ValueError(f"plus of DDNM is {self.plus!r}: expected true or false.")

    @classmethod
    def transitions(cls) -> tuple[str, ...]:
        return ("ddnm", *super().transitions())

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        assert likelihood is not None
        if not self._noisy(likelihood):
            return
        if not isinstance(likelihood.operator, Spectral):
            kind = type(likelihood.operator).__name__
            raise CapabilityError(
                f"DDNM+ needs an operator with an SVD where there is noise; {kind} has none. {instead(likelihood)}"
            )
        assert isinstance(likelihood.noise, GaussianNoise)
        if likelihood.noise.member_sigma(likelihood.batched_y) is None:
            raise CapabilityError(
                f"DDNM+ needs one sigma per measurement; this one has a sigma per pixel. {instead(likelihood)}"
            )
        if self.transition not in ("ddnm", "ancestral"):
            raise CapabilityError(
                f"DDNM+ has no {self.transition!r} step for a measurement with noise: use transition 'ddnm' or "
                "'ancestral', or PiGDM, which takes any."
            )

    def guidance(self, likelihood: Likelihood, denoiser: Prior) -> Estimate:
        """x0 + A^+ (y - A x0), for a measurement without noise."""
        assert isinstance(likelihood.operator, LinearOperator)
        pinv = likelihood.operator.pinv

        def estimate(x: Tensor, sigma: float) -> Tensor:
            x0 = denoiser(x, sigma)
            return x0 + pinv(likelihood.residual(x0))

        return estimate

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        levels = self.levels(denoiser)
        length = self.steps if self.travel_repeat == 1 else self.travel_length
        measured = _Measured(likelihood, x) if self._noisy(likelihood) else None
        for first in range(0, self.steps, length):
            stage = levels[first : first + length + 1]
            for again in range(self.travel_repeat):
                if again:
                    x = x + (stage[0] ** 2 - stage[-1] ** 2) ** 0.5 * random.normal(x)
                for after in self._stage(likelihood, measured, denoiser, x, stage, random):
                    x = after
                    yield x

    def _stage(
        self,
        likelihood: Likelihood,
        measured: _Measured | None,
        denoiser: Prior,
        x: Tensor,
        levels: list[float],
        random: MemberRandom,
    ) -> Iterator[Tensor]:
        if measured is None and self.transition != "ddnm":
            estimate = self.guidance(likelihood, denoiser)
            yield from reverse(self.transition, estimate, x, levels, random, eta=self.eta)
            return
        assert isinstance(likelihood.operator, LinearOperator)
        for sigma, t in itertools.pairwise(levels):
            x0 = denoiser(x, sigma)
            residual, eps = likelihood.residual(x0), random.normal(x)
            if measured is not None and self.transition == "ancestral":
                x = measured.ancestral(x, x0, residual, eps, sigma, t)
            else:
                old = (1 - self.eta**2) ** 0.5 * t / sigma * (x - x0)
                if measured is not None:
                    x = x0 + measured.ddnm(self.eta, old, residual, eps, t)
                else:
                    x = x0 + likelihood.operator.pinv(residual) + old + self.eta * t * eps
            yield x

    def _noisy(self, likelihood: Likelihood) -> bool:
        """Whether the noise of y enters: DDNM+ without noise is DDNM."""
        assert isinstance(likelihood.noise, GaussianNoise)
        return self.plus and bool((likelihood.noise.like(likelihood.batched_y) > 0).any())


class _Measured:
    """The singular coordinates of an operator, and the noise sigma_y / s that y carries in them (0 where s is 0)."""

    def __init__(self, likelihood: Likelihood, like: Tensor) -> None:
        assert isinstance(likelihood.operator, Spectral)
        assert isinstance(likelihood.noise, GaussianNoise)
        self.operator = likelihood.operator
        y = likelihood.batched_y.to(like)
        coordinates = self.operator.ut(y)
        self.inverse = self.operator.inverse_singular(coordinates)
        sigma = likelihood.noise.like(y).reshape(-1, *(1,) * (coordinates.ndim - 1))
        self.noise = sigma * self.inverse

    def ddnm(self, eta: float, old: Tensor, residual: Tensor, eps: Tensor, t: float) -> Tensor:
        """What is added to x0: the weakened correction, the old noise where y has none, and the lowered fresh one."""
        v, vt = self.operator.v, self.operator.vt
        gap, e, free = self.inverse * self.operator.ut(residual), vt(eps), old + eta * t * eps
        noise = torch.where(self.noise > 0, self.noise, 1.0)
        weak = (1 - eta**2) ** 0.5 * t / noise * gap + eta * t * e
        full = gap + (t**2 - noise**2).clamp_min(0).sqrt() * e
        moved = torch.where(self.noise > t, weak, full)
        return free + v(torch.where(self.noise > 0, moved - vt(free), gap))

    def ancestral(self, x: Tensor, x0: Tensor, residual: Tensor, eps: Tensor, sigma: float, t: float) -> Tensor:
        """The ancestral step, its correction weakened to what its noise leaves room for."""
        share = 1 - (t / sigma) ** 2
        fresh = t * share**0.5
        brought = share * self.noise
        weight = torch.where(brought > fresh, fresh / torch.where(brought > 0, brought, 1.0), 1.0)
        left = (fresh**2 - (weight * brought) ** 2).clamp_min(0).sqrt()
        x0 = x0 + self.operator.v(weight * self.inverse * self.operator.ut(residual))
        return x0 + (1 - share) * (x - x0) + fresh * eps - self.operator.v((fresh - left) * self.operator.vt(eps))
