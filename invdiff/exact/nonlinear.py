"""Two values under a map that is not linear: small enough for the posterior to be laid out on a grid.

    phase    y = |B x| + n, the signs of two projections lost, so that every mode has up to three mirror images
    clip     y = clamp(B x, -2, 2) + n, a detector that saturates, so that a mode is known only to lie beyond the end

x is a draw of a mixture of five round Gaussians, and B a rotation of the plane. On a grid of 512 x 512 cells over all
that the prior allows, p(x | y) is proportional to p(x) p(y | x) and sums to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..likelihood import Likelihood
from ..noise import GaussianNoise
from ..operators import from_function
from ..priors import GaussianMixturePrior
from .problem import Problem, next_seed, normal, stream

__all__ = ["GridPosterior", "nonlinear_prior", "nonlinear_problems"]

_STATED = ((0.3, -3.0, -1.0), (0.2, -1.0, 2.5), (0.2, 1.0, -2.5), (0.2, 2.5, 2.0), (0.1, 4.0, -1.0))
_VARIANCES = (0.25, 0.16, 0.36, 0.25, 0.09)
_CLIP = 2.0


@dataclass(frozen=True)
class GridPosterior:
    """p(x | y) of two values as masses of the cells of a grid.

    Args:
        prior: a mixture of isotropic Gaussians over (2,).
        likelihood: one measurement, float64.
        cells: along each axis.
        reach: how far the grid goes beyond the outermost mean, in units of the largest std.
    """

    prior: GaussianMixturePrior
    likelihood: Likelihood
    cells: int = 512
    reach: float = 7.0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return (2,)

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """The centres of the cells along each axis, (cells,) each."""
        mixture = self.prior.mixture
        margin = self.reach * mixture.variances.max().sqrt()
        low, high = mixture.means.amin(0) - margin, mixture.means.amax(0) + margin
        steps = (torch.arange(self.cells, dtype=torch.float64) + 0.5) / self.cells
        return low[0] + (high - low)[0] * steps, low[1] + (high - low)[1] * steps

    @property
    def size(self) -> Tensor:
        """Width and height of a cell, (2,)."""
        return torch.stack([axis[1] - axis[0] for axis in self.axes])

    @cached_property
    def points(self) -> Tensor:
        """The centres of all cells, (cells^2, 2)."""
        return torch.cartesian_prod(*self.axes)

    @cached_property
    def _table(self) -> tuple[Tensor, float]:
        """The mass of every cell, (cells^2,), and log p(y)."""
        log = self.prior.log_prob(self.points) + self.likelihood.log_prob(self.points)
        total = log.logsumexp(0)
        return (log - total).exp(), float(total + self.size.log().sum())

    @property
    def mass(self) -> Tensor:
        """The probability of every cell, (cells, cells)."""
        return self._table[0].reshape(self.cells, self.cells)

    @cached_property
    def mean(self) -> Tensor:
        """The posterior mean, (2,)."""
        return self._table[0] @ self.points

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance, (2, 2)."""
        centred = self.points - self.mean
        return (self._table[0][:, None] * centred).T @ centred

    @property
    def std(self) -> Tensor:
        """The standard deviation of each value, (2,)."""
        return self.covariance.diagonal().sqrt()

    @cached_property
    def weights(self) -> Tensor:
        """The posterior probability of each component of the prior, (k,)."""
        return self._table[0] @ self.prior.mixture.responsibilities(self.points)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The probability of each component given x, (b, k): y adds nothing, as it depends on x alone."""
        return self.prior.mixture.responsibilities(x)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n independent draws, (n, 2): a cell, and a place in it at random."""
        generator = stream(seed, 6)
        cell = torch.multinomial(self._table[0], n, replacement=True, generator=generator)
        place = torch.rand(n, 2, generator=generator, dtype=torch.float64) - 0.5
        return self.points[cell] + place * self.size

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density by Bayes' rule, log p(x) + log p(y | x) - log p(y), (b,)."""
        wide = x.double()
        return self.prior.log_prob(wide) + self.likelihood.log_prob(wide) - self._table[1]

    def probability(self, low: Tensor, high: Tensor) -> Tensor:
        """The probability that each value lies between low and high, (2,) each; cells count by their share inside."""
        found = []
        for axis in range(2):
            below = self.mass.sum(1 - axis).cumsum(0)
            steps = [((bound[axis].double() - self.axes[axis][0]) / self.size[axis] + 0.5) for bound in (low, high)]
            found.append(_interpolated(below, steps[1]) - _interpolated(below, steps[0]))
        return torch.stack(found)


def _interpolated(below: Tensor, step: Tensor) -> Tensor:
    """The distribution function at `step` cells from the left end, given its values at the right end of each cell."""
    padded = torch.cat([below.new_zeros(1), below])
    inside = step.clamp(0, len(below))
    i = inside.floor().long().clamp_max(len(below) - 1)
    return padded[i] + (inside - i) * (padded[i + 1] - padded[i])


def nonlinear_prior() -> GaussianMixturePrior:
    """The mixture of five round Gaussians in the plane."""
    stated = torch.tensor(_STATED, dtype=torch.float64)
    return GaussianMixturePrior(stated[:, 0], stated[:, 1:], torch.tensor(_VARIANCES, dtype=torch.float64))


def nonlinear_problems(problems: int = 8) -> Iterator[Problem]:
    """`problems` measurements for each map and sigma_y 0.1 and 0.3, named "nonlinear/phase 0.1/0"."""
    angle = math.pi / 5
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    maps: dict[str, Callable[[Tensor], Tensor]] = {
        "phase": lambda x: (x @ turn.to(x).T).abs(),
        "clip": lambda x: (x @ turn.to(x).T).clamp(-_CLIP, _CLIP),
    }
    prior = nonlinear_prior()
    for i, (name, function) in enumerate(maps.items()):
        operator = from_function(function, (2,), linear=False)
        for j, sigma in enumerate((0.1, 0.3)):
            for number in range(problems):
                generator = stream(6, i, j, number)
                truth = prior.sample(1, seed=next_seed(generator))[0]
                y = function(truth[None])[0] + sigma * normal((2,), generator)
                likelihood = Likelihood(y, operator, GaussianNoise(sigma))
                yield Problem(
                    name=f"nonlinear/{name} {sigma:g}/{number}",
                    family="nonlinear",
                    prior=prior,
                    likelihood=likelihood,
                    truth=truth,
                    posterior=GridPosterior(prior, likelihood),
                    sigma_max=40.0,
                )
