"""What exact draws of a Gaussian posterior stay under: the 97.5 % quantiles of their errors over many sets of draws.

The mean of n exact draws is off by a draw of N(0, C / n), and their projections on the directions of the sliced
distance are Gaussian in as many dimensions as there are directions, however many the image has. So the sets are drawn
there, and a problem takes less than a second.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from invdiff.exact.distances import transport, unit_directions
from invdiff.exact.gaussian import GaussianPosterior
from invdiff.exact.measure import Exact

__all__ = ["LEVEL", "QUANTILE", "quantiles"]

LEVEL = 0.975
# The name that the rows have in place of a solver's.
QUANTILE = f"exact {100 * LEVEL:g} %"


def quantiles(exact: Exact, sets: int, level: float = LEVEL) -> dict[str, Any]:
    """The quantile of each error over sets of exact draws: of the mean, and of the distances to `exact.reference`.

    Args:
        exact: a Gaussian problem and the number of draws in a set.
        sets: number of sets.
        level: of the quantile.

    Raises:
        ValueError: if the posterior is not Gaussian.
    """
    posterior = exact.problem.posterior
    if not isinstance(posterior, GaussianPosterior):
        raise ValueError(f"{exact.problem.name} is not Gaussian: expected a problem of the family gaussian.")
    found: dict[str, torch.Tensor] = {}
    errors = (posterior.sample(sets, seed=exact.seed(3)) - posterior.mean) / math.sqrt(exact.count)
    for name, (total, split) in exact.parts.items():
        found[f"mean_{name}"] = (split(errors).flatten(1).square().sum(1) / total).sqrt()
    axes = unit_directions(posterior.mean.numel())
    # Rounding may leave a direction that nothing varies in below 0.
    values, vectors = torch.linalg.eigh(axes.T @ posterior.covariance @ axes)
    root = vectors * values.clamp_min(0).sqrt()
    generator = torch.Generator().manual_seed(exact.seed(4))
    others = ((exact.reference[: exact.count] - posterior.mean).flatten(1) @ axes).sort(0).values
    costs = []
    for _ in range(sets):
        eps = torch.randn(len(root), exact.count, generator=generator, dtype=torch.float64)
        drawn = (root @ eps).sort(1).values.T
        costs.append(torch.stack([transport(drawn, others, p).mean() ** (1 / p) for p in (1, 2)]))
    found["sw1"], found["sw2"] = (torch.stack(costs) / exact.scale).unbind(1)
    return {name: float(values.quantile(level)) for name, values in found.items()}
