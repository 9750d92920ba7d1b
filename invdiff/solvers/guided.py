"""What guided solvers share: a guidance, which is one function, and any transition of `invdiff.transitions`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from ..transitions import TRANSITIONS, Estimate, reverse
from .base import CapabilityError, DiffusionSolver

__all__ = ["GuidedSolver"]


@dataclass(frozen=True)
class GuidedSolver(DiffusionSolver):
    """Solvers that are an estimate of E[x0 | x_sigma = x, y], followed down the noise levels by a transition.

    Args:
        transition: "ancestral", "ddim", "heun", "ode2m" or "sde2m" (`invdiff.transitions`).
        eta: share of fresh noise in "ddim", 0 to 1.
    """

    transition: str = "ddim"
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.transition not in TRANSITIONS:
            raise ValueError(f"transition of {name} is {self.transition!r}: expected one of {', '.join(TRANSITIONS)}.")
        if isinstance(self.eta, bool) or not isinstance(self.eta, int | float) or not 0 <= self.eta <= 1:
            raise ValueError(f"eta of {name} is {self.eta!r}: expected a number from 0 to 1.")

    @abstractmethod
    def guidance(self, likelihood: Likelihood, denoiser: Prior) -> Estimate:
        """The function (x, sigma) -> E[x0 | x_sigma = x, y] that this method is."""

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        if likelihood is None:
            raise CapabilityError(
                f"{type(self).__name__} needs a likelihood: to draw from the prior alone use DDPM or Heun."
            )

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        estimate = self.guidance(likelihood, denoiser)
        yield from reverse(self.transition, estimate, x, self.levels(denoiser), random, eta=self.eta)
