"""The exact-posterior laboratory: problems whose posterior is known, and how far a sampler's draws are from it.

for problem in problems("mixture25"):
    draws = sample(solver, problem.likelihood, problem.prior, draws=2000).draws
    sliced_wasserstein(draws, problem.posterior.sample(2000))
"""

from __future__ import annotations

from .distances import bootstrap, bootstrap_mean, energy_distance, floor, sliced_wasserstein
from .problem import ExactPosterior, Problem
from .problems import FAMILIES, problems

__all__ = [
    "FAMILIES",
    "ExactPosterior",
    "Problem",
    "bootstrap",
    "bootstrap_mean",
    "energy_distance",
    "floor",
    "problems",
    "sliced_wasserstein",
]
