"""What the samplers of the prior alone share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import CapabilityError, DiffusionSolver, require_positive

__all__ = ["PriorSampler"]


@dataclass(frozen=True)
class PriorSampler(DiffusionSolver):
    """Samplers of the prior alone: they take no likelihood, and with a `start` they go on from its noise level.

    Args:
        steps: number of steps.
        schedule: spacing of the noise levels, a name of `invdiff.schedule.noise_levels`.
        sigma_min: last noise level before 0, image units; at least the lowest of the prior's range.
        sigma_max: first noise level; where left out the highest of the prior's range, and at most 40.
        sigmas: the noise levels themselves, falling and above 0, image units, in place of steps, schedule and
            sigma_min; 0 follows by itself. A sigma_max, or a start_sigma, cuts them and goes before those below it.
    """

    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.sigmas is None:
            super().__post_init__()
            return
        try:
            given = [float(sigma) for sigma in self.sigmas]
        except (TypeError, ValueError):
            given = []
        falling = all(high > low for high, low in itertools.pairwise(given))
        if not given or not falling or not 0 < given[-1] <= given[0] < math.inf:
            raise ValueError(
                f"sigmas of {type(self).__name__} are {self.sigmas!r}: expected falling noise levels above 0, such as "
                "(10.0, 1.0, 0.1)."
            )
        require_positive(self, "sigma_max")
        if self.sigma_max is not None:
            given = [self.sigma_max, *(sigma for sigma in given if sigma < self.sigma_max)]
        for name, value in (("sigmas", tuple(given)), ("steps", len(given)), ("sigma_min", given[-1])):
            object.__setattr__(self, name, value)

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        name = type(self).__name__
        if likelihood is not None:
            raise CapabilityError(
                f"{name} draws from the prior alone and takes no likelihood: use DDRM or DPS to restore a measurement."
            )
        super().check(likelihood, denoiser)
        if self.sigmas is None:
            return
        low, high = denoiser.sigma_range
        # Levels taken from the table of a network may differ from its range in their last digit.
        if self.sigmas[-1] < low * (1 - 1e-6):
            raise CapabilityError(
                f"{name} is to go down to sigma {self.sigmas[-1]:g}; {denoiser.name} serves at least {low:.3g}. "
                "End there or higher."
            )
        if self.sigmas[0] > high * (1 + 1e-6):
            raise CapabilityError(
                f"{name} is to start at sigma {self.sigmas[0]:g}; {denoiser.name} serves at most {high:.3g}. "
                "Start there or lower."
            )

    def iterate(
        self, likelihood: Likelihood | None, denoiser: Prior, x: Tensor, random: MemberRandom
    ) -> Iterator[Tensor]:
        """Yield one iterate (b, *in_shape) per step, starting from x; there is no likelihood."""
        raise NotImplementedError

    def levels(self, denoiser: Prior) -> list[float]:
        """The noise levels from the first to 0."""
        return super().levels(denoiser) if self.sigmas is None else [*self.sigmas, 0.0]
