"""The figures of a set of draws on one problem, and what exact draws give there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..noise import GaussianNoise
from ..operators import Identity, LinearOperator, Mask, Spectral
from ..posterior import Posterior
from ..priors.mixtures import dense_matrix
from .distances import energy_distance, sliced_wasserstein
from .problem import Problem
from .verdict import FIGURES, Floor

__all__ = ["Exact", "mode"]

# Exact draws for the picture, and for the variance where no covariance is known.
_REFERENCE = 2000
_RANK = 1e-6


def mode(posterior: Posterior) -> str:
    """How the draws hang together: "point", "independent", "one of 64" or "all of 64" particles of each cloud.

    >>> mode(Posterior(torch.zeros(2, 1), {"cloud": 64, "dependent": True}))
    'all of 64'
    """
    if posterior.point:
        return "point"
    cloud = posterior.record.get("cloud")
    if cloud is None:
        return "independent"
    return f"{'all' if posterior.record.get('dependent') else 'one'} of {cloud}"


@dataclass(frozen=True)
class Exact:
    """Exact draws of one problem, against which every solver's draws of the same number are measured.

    Args:
        problem: the problem.
        count: number of draws.
        floors: how many sets of exact draws tell the Monte Carlo error.
    """

    problem: Problem
    count: int
    floors: int = 12

    @cached_property
    def sets(self) -> list[Tensor]:
        """The sets of exact draws, each (count, *shape)."""
        many = self.problem.posterior.sample(self.count * self.floors, seed=11)
        return list(many.split(self.count))

    @cached_property
    def reference(self) -> Tensor:
        """Other exact draws, (N, *shape)."""
        return self.problem.posterior.sample(max(self.count, _REFERENCE), seed=12)

    @cached_property
    def floor(self) -> Floor:
        """Mean and deviation of each figure over the sets."""
        found = [self.figures(part) for part in self.sets]
        columns = {name: torch.tensor([row[name] for row in found], dtype=torch.float64) for name in found[0]}
        return Floor(
            {name: float(values.mean()) for name, values in columns.items()},
            {name: float(values.std(correction=min(1, len(found) - 1))) for name, values in columns.items()},
        )

    @cached_property
    def scale(self) -> float:
        """The unit of distances: the posterior's std (root mean square) where it has one mode, else that of x."""
        if self.problem.family in ("gaussian", "heavy"):
            return float(self.problem.posterior.std.square().mean().sqrt())
        return 1.0

    @property
    def noun(self) -> str:
        """What the verdict calls the parts that the operator sees."""
        images = len(self.problem.likelihood.operator.in_shape) == 3
        exactly = isinstance(self.problem.likelihood.operator, Mask | Identity)
        return "pixels" if images and exactly else "components"

    def figures(self, draws: Tensor) -> dict[str, float]:
        """The figures of `verdict.FIGURES` of draws (n, *shape); NaN for what does not exist, as the spread of one."""
        wide = draws.double()
        posterior, likelihood = self.problem.posterior, self.problem.likelihood
        out = dict.fromkeys(FIGURES, math.nan)
        error = wide.mean(0, keepdim=True) - posterior.mean
        centred = wide - wide.mean(0)
        for part, (total, split) in self._parts.items():
            # Each part's error against the posterior's own std in it.
            out[f"mean_{part}"] = math.sqrt(float(split(error).square().sum()) / total)
            if len(wide) > 1:
                power = float(split(centred).square().sum()) / (len(wide) - 1)
                out[f"spread_{part}"] = math.sqrt(power / total)
        residual = likelihood.to(dtype=torch.float64).residual(wide)
        if isinstance(likelihood.noise, GaussianNoise):
            out["chi2"] = float((residual / likelihood.noise.like(residual[:1])).square().mean())
        if len(wide) < 2:
            return out
        # Against as many exact draws, so that exact draws have the distance of two such sets.
        others = self.reference[: self.count]
        out["sw1"] = sliced_wasserstein(wide, others, 1) / self.scale
        out["sw2"] = sliced_wasserstein(wide, others, 2) / self.scale
        out["energy"] = energy_distance(wide, others) / math.sqrt(self.scale)
        drawn = Posterior(wide, {})
        for level in (0.5, 0.9):
            if len(wide) >= 2 / (1 - level) - 1:
                out[f"coverage{100 * level:.0f}"] = float(posterior.probability(*drawn.interval(level)).mean())
        weights = getattr(posterior, "weights", None)
        if weights is not None and len(weights) > 1:
            shares = posterior.responsibilities(wide).mean(0)
            out["weights_tv"] = 0.5 * float((shares - weights).abs().sum())
        return out

    def independent(self) -> Tensor:
        """One more set of exact draws, (count, *shape), to be measured as if it were a solver's."""
        return self.problem.posterior.sample(self.count, seed=13)

    @cached_property
    def _parts(self) -> dict[str, tuple[float, Callable[[Tensor], Tensor]]]:
        """The posterior's variance summed over what A sees and over the rest, with the projection onto each."""
        posterior, operator = self.problem.posterior, self.problem.likelihood.operator
        whole = float(posterior.std.square().sum())
        if not isinstance(operator, LinearOperator):
            return {"observed": (whole, lambda x: x)}
        seen = _projection(operator)
        n = posterior.std.numel()
        basis = torch.eye(n, dtype=torch.float64).reshape(n, *posterior.shape)
        rank = float(seen(basis).reshape(n, n).diagonal().sum())
        if n - rank < 0.5:
            return {"observed": (whole, lambda x: x)}
        if posterior.covariance is not None:
            observed = float(seen(posterior.covariance.reshape(n, *posterior.shape)).reshape(n, n).diagonal().sum())
        else:
            observed = float(seen(self.reference - posterior.mean).square().sum()) / len(self.reference)
        return {"observed": (observed, seen), "null": (whole - observed, lambda x: x - seen(x))}


@lru_cache(maxsize=4)
def _projection(operator: LinearOperator) -> Callable[[Tensor], Tensor]:
    """x -> its part in the row space of A, (n, *in_shape); singular values below 1e-6 of the largest count as zero."""
    if isinstance(operator, Spectral):
        spectral = operator

        def project(x: Tensor) -> Tensor:
            z = spectral.vt(x)
            return spectral.v(torch.where(spectral.inverse_singular(z, _RANK) > 0, z, 0))

        return project
    matrix = dense_matrix(operator, torch.zeros((), dtype=torch.float64))
    _, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    rows = vt[s > _RANK * s[0]]
    return lambda x: ((x.flatten(1) @ rows.T) @ rows).reshape(x.shape)
