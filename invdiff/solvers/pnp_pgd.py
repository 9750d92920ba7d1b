"""Plug-and-play proximal gradient descent: point estimate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import PointSolver, column, lipschitz

__all__ = ["PnPPGD"]


@dataclass(frozen=True)
class PnPPGD(PointSolver):
    """A gradient step on the data, then the denoiser; with momentum it is plug-and-play FISTA.

        x_{k+1} = D(z_k + step / L grad log p(y | z_k), sigma_k),    L = |A|^2 / sigma_y^2,
        z_{k+1} = x_{k+1} + (t_k - 1) / t_{k+1} (x_{k+1} - x_k),     t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2

    Kamilov, Mansour, Wohlberg 2017, "A Plug-and-Play Priors Approach for Solving Nonlinear Imaging Inverse Problems",
    algorithm 1; momentum of Beck and Teboulle 2009, eqs. 4.2 and 4.3.

    Args:
        iterations: number of steps.
        sigma_start: first denoiser strength.
        sigma_end: last denoiser strength; the measurement's noise, at least 1/255, where left out.
        lam: the step is divided by it, so that a larger one trusts the prior more; 1 is the step 1 / L.
        accelerate: whether to use momentum: faster with a denoiser that does not expand distances; a learned one
            may, and then it can diverge.

    Raises:
        CapabilityError: if the step length is not known: a nonlinear operator, Poisson noise, or sigma_y = 0.
    """

    iterations: int = 100
    lam: float = 1.0
    accelerate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.accelerate, bool):
            raise ValueError(f"accelerate of PnPPGD is {self.accelerate!r}: expected true or false.")

    def check(self, likelihood: Likelihood | None, denoiser: Prior) -> None:
        """Refuse what this solver cannot do, in a sentence."""
        super().check(likelihood, denoiser)
        assert likelihood is not None
        lipschitz(likelihood)

    def iterate(self, likelihood: Likelihood, denoiser: Prior, x: Tensor, random: MemberRandom) -> Iterator[Tensor]:
        step = column(1 / (self.lam * lipschitz(likelihood).to(x)), x)
        z, t = x, 1.0
        for sigma in self.strengths(likelihood, denoiser, x):
            previous = x
            x = denoiser(z + step * likelihood.grad(z), sigma)
            following = (1 + (1 + 4 * t**2) ** 0.5) / 2
            z = x + (t - 1) / following * (x - previous) if self.accelerate else x
            t = following
            yield x
