"""The exact-posterior laboratory: problems whose posterior is known, and how far a sampler's draws are from it.

for problem in problems("mixture25"):
    draws = sample(solver, problem.likelihood, problem.prior, draws=2000).draws
    sliced_wasserstein(draws, problem.posterior.sample(2000))

check(solver) runs a solver on a listed part of it and says in words whether its spread can be used as an error bar.
"""

from __future__ import annotations

from .check import Report, check
from .distances import bootstrap, bootstrap_mean, energy_distance, sliced_wasserstein
from .figures import (
    coverage,
    density_coverage,
    residual_chi2,
    row_space,
    stein_discrepancy,
    total_variation,
)
from .problem import ExactPosterior, Problem
from .problems import FAMILIES, problems

__all__ = [
    "FAMILIES",
    "ExactPosterior",
    "Problem",
    "Report",
    "bootstrap",
    "bootstrap_mean",
    "check",
    "coverage",
    "density_coverage",
    "energy_distance",
    "problems",
    "residual_chi2",
    "row_space",
    "sliced_wasserstein",
    "stein_discrepancy",
    "total_variation",
]
