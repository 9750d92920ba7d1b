"""A problem of the laboratory: a prior known exactly, one measurement, and the posterior that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..priors.base import Prior

__all__ = ["ExactPosterior", "Problem", "next_seed", "normal", "stream"]


class ExactPosterior(Protocol):
    """What the laboratory knows of p(x | y), x of shape `shape`.

    Beside these, where the posterior has them: `log_prob(x)`, the normalised log density, (b,); and for mixtures
    `weights`, (k,), and `responsibilities(x)`, (b, k), whose mean over exact draws is `weights`.
    """

    shape: tuple[int, ...]

    @property
    def mean(self) -> Tensor:
        """The posterior mean, (*shape)."""
        ...

    @property
    def std(self) -> Tensor:
        """The standard deviation of each value, (*shape)."""
        ...

    @property
    def covariance(self) -> Tensor | None:
        """The covariance, (n, n)."""
        ...

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n independent exact draws, (n, *shape)."""
        ...

    def probability(self, low: Tensor, high: Tensor) -> Tensor:
        """The probability that each value lies between low and high, all of shape (*shape)."""
        ...


@dataclass(frozen=True)
class Problem:
    """One measurement whose posterior is known, to test a sampler on.

    Args:
        name: unique among all problems, "family/cell/number".
        family: "gaussian", "mixture25", "mixture16", "heavy" or "nonlinear".
        prior: the exact denoiser, with `sample(n, seed)` and `log_prob(x)`.
        likelihood: one measurement, y without a batch axis.
        truth: the x that was measured, (*in_shape), float64.
        posterior: the exact posterior.
        sigma_max: noise level from which a sampler should start, where x has been forgotten.
    """

    name: str
    family: str
    prior: Any
    likelihood: Likelihood
    truth: Tensor
    posterior: Any
    sigma_max: float

    @property
    def cell(self) -> str:
        """The name without the number: problems of one cell differ in the measurement, or the seed, alone."""
        return self.name.rpartition("/")[0]

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) + log p(y | x), the posterior's log density but for a constant: (b, *in_shape) -> (b,)."""
        wide = x.double()
        total: Tensor = self.prior.log_prob(wide) + self.likelihood.to(dtype=torch.float64).log_prob(wide)
        return total

    def __post_init__(self) -> None:
        if not isinstance(self.prior, Prior):
            raise TypeError(f"prior is {type(self.prior).__name__}: expected a Prior, such as GaussianPrior.")
        if self.likelihood.batched:
            raise ValueError(
                f"The likelihood holds a batch of {self.likelihood.measurements}: a problem is one measurement."
            )
        # Asked of the class: isinstance with a protocol would compute the covariance.
        missing = [name for name in _NEEDED if not hasattr(type(self.posterior), name)]
        if missing:
            kind = type(self.posterior).__name__
            raise TypeError(f"posterior is {kind}, without {', '.join(missing)}: expected all of ExactPosterior.")


_NEEDED = ("mean", "std", "covariance", "sample", "probability")


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def next_seed(generator: torch.Generator) -> int:
    """A seed of its own for what draws by a seed."""
    return int(torch.randint(2**62, (), generator=generator))


def stream(*key: int) -> torch.Generator:
    """A generator of random numbers of its own for each key of integers from 0 on."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
