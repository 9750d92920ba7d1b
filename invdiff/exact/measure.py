"""The figures of a set of draws on one problem, and what exact draws give there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from zlib import crc32

import torch
from torch import Tensor

from ..operators import Identity, LinearOperator, Mask
from ..posterior import Posterior
from .distances import Distance, bootstrap, energy_distance, sliced_wasserstein
from .figures import coverage, density_coverage, observed_variance, residual_chi2, row_space, total_variation
from .problem import Problem
from .verdict import FIGURES, Floor

__all__ = ["Exact", "mode"]

# Exact draws for the picture, and for the variance where no covariance is known.
_REFERENCE = 2000
_VALUES = 2**24
# Problems of one cell share their operator, whose projection may take a dense decomposition.
_row_space = lru_cache(maxsize=2)(row_space)


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
        floors: how many sets of exact draws tell the Monte Carlo error; fewer, but 8, where they would fill memory.
    """

    problem: Problem
    count: int
    floors: int = 32

    def seed(self, use: int) -> int:
        """Of the random numbers of this problem for one use of them: 0 to 2 are those below."""
        # Problems of one cell share the posterior's covariance: with one seed for all they would be one experiment.
        return crc32(f"{self.problem.name} {use}".encode())

    @cached_property
    def sets(self) -> list[Tensor]:
        """The sets of exact draws, each (count, *shape)."""
        sets = max(8, min(self.floors, _VALUES // (self.count * self.problem.truth.numel())))
        many = self.problem.posterior.sample(self.count * sets, seed=self.seed(0))
        return list(many.split(self.count))

    @cached_property
    def reference(self) -> Tensor:
        """Other exact draws, (N, *shape)."""
        return self.problem.posterior.sample(max(self.count, _REFERENCE), seed=self.seed(1))

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
        operator = self.problem.likelihood.operator
        if not isinstance(operator, LinearOperator):
            return "values"
        return "pixels" if len(operator.in_shape) == 3 and isinstance(operator, Mask | Identity) else "components"

    def figures(self, draws: Tensor) -> dict[str, float]:
        """The figures of `verdict.FIGURES` of draws (n, *shape); NaN for what does not exist, as the spread of one."""
        wide = draws.double()
        posterior = self.problem.posterior
        out = dict.fromkeys(FIGURES, math.nan)
        error = wide.mean(0, keepdim=True) - posterior.mean
        centred = wide - wide.mean(0)
        for part, (total, split) in self.parts.items():
            # Each part's error against the posterior's own std in it.
            out[f"mean_{part}"] = math.sqrt(float(split(error).square().sum()) / total)
            if len(wide) > 1:
                power = float(split(centred).square().sum()) / (len(wide) - 1)
                out[f"spread_{part}"] = math.sqrt(power / total)
        out["chi2"] = residual_chi2(wide, self.problem.likelihood)
        if len(wide) < 2:
            return out
        # Against as many exact draws, so that exact draws have the distance of two such sets.
        others = self.reference[: self.count]
        out |= {name: distance(wide, others) for name, distance in self._distances.items()}
        for level in (0.5, 0.9):
            if len(wide) >= 2 / (1 - level) - 1:
                out[f"coverage{100 * level:.0f}"] = coverage(wide, posterior, level)
        if len(getattr(posterior, "weights", ())) > 1:
            out["weights_tv"] = total_variation(wide, posterior)
        if self.problem.family == "heavy":
            out["hdr90"] = density_coverage(wide, self.problem)
        return out

    def intervals(self, draws: Tensor, resamples: int = 25) -> dict[str, tuple[float, float]]:
        """95 % intervals of the distances, by resampling of draws (n, *shape) that do not depend on each other."""
        wide, others = draws.double(), self.reference[: self.count]
        return {name: bootstrap(distance, wide, others, resamples) for name, distance in self._distances.items()}

    @property
    def _distances(self) -> dict[str, Distance]:
        """The distances between two sets of draws, in the units of the figures."""
        return {
            "sw1": lambda a, b: sliced_wasserstein(a, b, 1) / self.scale,
            "sw2": lambda a, b: sliced_wasserstein(a, b, 2) / self.scale,
            "energy": lambda a, b: energy_distance(a, b) / math.sqrt(self.scale),
        }

    def independent(self) -> Tensor:
        """One more set of exact draws, (count, *shape), to be measured as if it were a solver's."""
        return self.problem.posterior.sample(self.count, seed=self.seed(2))

    @cached_property
    def parts(self) -> dict[str, tuple[float, Callable[[Tensor], Tensor]]]:
        """The posterior's variance summed over what A sees and over the rest, with the projection onto each."""
        posterior, operator = self.problem.posterior, self.problem.likelihood.operator
        whole = float(posterior.std.square().sum())
        if not isinstance(operator, LinearOperator):
            return {"observed": (whole, lambda x: x)}
        seen = _row_space(operator)
        n = posterior.std.numel()
        basis = torch.eye(n, dtype=torch.float64).reshape(n, *posterior.shape)
        rank = float(seen(basis).reshape(n, n).diagonal().sum())
        if n - rank < 0.5:
            return {"observed": (whole, lambda x: x)}
        if hasattr(posterior, "observed_variance"):
            observed = posterior.observed_variance  # computed once for all posteriors that share their covariance
        elif posterior.covariance is not None:
            observed = observed_variance(posterior.covariance, operator)
        else:
            observed = float(seen(self.reference - posterior.mean).square().sum()) / len(self.reference)
        return {"observed": (observed, seen), "null": (whole - observed, lambda x: x - seen(x))}
