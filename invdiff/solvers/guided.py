"""What guided solvers share: a guidance, which is one function, and any transition of `invdiff.transitions`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import LinearOperator
from ..priors.base import Prior
from ..random import MemberRandom
from ..transitions import TRANSITIONS, Estimate, reverse
from .base import CapabilityError, DiffusionSolver, instead, require_likelihood

__all__ = ["GuidedSolver", "require_differentiable", "require_gaussian", "require_linear", "require_share"]


def require_share(solver: object, *names: str) -> None:
    """Refuse settings that are not numbers from 0 to 1."""
    for name in names:
        value = getattr(solver, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{name} of {type(solver).__name__} is {value!r}: expected a number from 0 to 1.")


def require_differentiable(solver: object, likelihood: Likelihood, denoiser: Prior) -> None:
    """Refuse a prior that autograd cannot go through."""
    if not denoiser.differentiable:
        raise CapabilityError(
            f"{type(solver).__name__} differentiates its prior, and {denoiser.name} cannot be. "
            f"{instead(likelihood, denoiser)}"
        )


def require_linear(solver: object, likelihood: Likelihood, denoiser: Prior) -> None:
    """Refuse an operator that is not linear."""
    if not isinstance(likelihood.operator, LinearOperator):
        kind = type(likelihood.operator).__name__
        raise CapabilityError(
            f"{type(solver).__name__} needs a linear operator; {kind} is not one. {instead(likelihood, denoiser)}"
        )


def require_gaussian(solver: object, likelihood: Likelihood) -> None:
    """Refuse noise that is not Gaussian."""
    if not isinstance(likelihood.noise, GaussianNoise):
        raise CapabilityError(
            f"{type(solver).__name__} needs GaussianNoise; this is {type(likelihood.noise).__name__}. "
            f"{instead(likelihood)}"
        )


@dataclass(frozen=True)
class GuidedSolver(DiffusionSolver):
    """Solvers that are an estimate of E[x0 | x_sigma = x, y], followed down the noise levels by a transition.

    Args:
        transition: the step from one level to the next, one of `invdiff.transitions.TRANSITIONS`.
        eta: share of fresh noise in "ddim", 0 to 1.
    """

    transition: str = "ddim"
    eta: float = 1.0

    # What a guidance asks of the prior and of the noise; the operator has to be linear for all of them.
    differentiates: ClassVar[bool] = False
    gaussian: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transition not in self.transitions():
            known = ", ".join(self.transitions())
            raise ValueError(f"transition of {type(self).__name__} is {self.transition!r}: expected one of {known}.")
        require_share(self, "eta")

    @classmethod
    def transitions(cls) -> tuple[str, ...]:
        """The transitions this solver knows: those of `invdiff.transitions`, before them any of its own."""
        return TRANSITIONS

    @abstractmethod
    def guidance(self, likelihood: Likelihood, denoiser: Prior) -> Estimate:
        """The function (x, sigma) -> E[x0 | x_sigma = x, y] that this method is."""

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        likelihood = require_likelihood(self, likelihood)
        if self.differentiates:
            require_differentiable(self, likelihood, denoiser)
        require_linear(self, likelihood, denoiser)
        if self.gaussian:
            require_gaussian(self, likelihood)

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        estimate = self.guidance(likelihood, denoiser)
        yield from reverse(self.transition, estimate, x, self.levels(denoiser), random, eta=self.eta)
