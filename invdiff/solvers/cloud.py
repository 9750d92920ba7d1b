"""What solvers share that move a cloud of weighted particles: how many, how they are resampled, what comes back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..clouds import RESAMPLING, gather, shuffled
from ..likelihood import Likelihood
from ..priors.base import Prior
from ..random import MemberRandom
from .base import DiffusionSolver, require_count

__all__ = ["CloudSolver"]


@dataclass(frozen=True)
class CloudSolver(DiffusionSolver):
    """Solvers whose every member is an independent cloud: `iterate` takes x of shape (b, particles, *in_shape).

    It yields (b, *in_shape), the particle that stands for its cloud, or with keep="cloud" (b, particles, *in_shape).
    A subclass calls `shown` after every step, and `result` once at the end.

    Args:
        particles: number of particles in a cloud.
        resampling: "systematic" or "multinomial" (`invdiff.clouds`).
        keep: "one" returns one draw per cloud, drawn by weight: draws are independent. "cloud" returns all particles
            of a cloud: they cost no more than one, and are dependent.
    """

    particles: int = 64
    resampling: str = "systematic"
    keep: str = "one"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self, "particles")
        name = type(self).__name__
        if self.resampling not in RESAMPLING:
            raise ValueError(f"resampling of {name} is {self.resampling!r}: expected one of {', '.join(RESAMPLING)}.")
        if self.keep not in ("one", "cloud"):
            raise ValueError(
                f"keep of {name} is {self.keep!r}: expected 'one' (one draw per cloud) or 'cloud' (all its particles)."
            )

    def start(self, likelihood: Likelihood | None, denoiser: Prior, like: Tensor, random: MemberRandom) -> Tensor:
        """0.5 + sigma_max * eps for every particle, (b, particles, *in_shape), as `DiffusionSolver.start`."""
        centre = self.centre(likelihood, denoiser, like[:, 0])
        return centre[:, None] + self.levels(denoiser)[0] * random.normal(like)

    def shown(self, x: Tensor, log_weights: Tensor) -> Tensor:
        """The iterate of a step on the way: the heaviest particle of every cloud, or with keep="cloud" all of them."""
        return x if self.keep == "cloud" else gather(x, log_weights.argmax(1, keepdim=True))[:, 0]

    def result(self, x: Tensor, log_weights: Tensor, random: MemberRandom) -> Tensor:
        """The last iterate: every cloud as draws of equal weight, of which the first one comes back, or all."""
        draws = shuffled(x, log_weights, random)
        return draws if self.keep == "cloud" else draws[:, 0]
