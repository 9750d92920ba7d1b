"""Every solver that draws is held to the margins it declares, where the posterior is known in closed form.

Few draws on the four problems of `benchmarks.posterior`; the Monte Carlo error is measured on exact draws of the same
number and added to what is declared.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks import posterior as report
from invdiff import Likelihood, Posterior, sample, solvers
from invdiff.noise import GaussianNoise
from invdiff.priors import GaussianPrior
from invdiff.priors.analytic import GaussianMixture
from invdiff.random import MemberRandom
from invdiff.solvers.base import CapabilityError, Margins, Solver

DRAWS, MEASUREMENTS = 24, 2
DRAWING = sorted(
    name
    for name in solvers.names()
    if solvers.load(name).stochastic and not isinstance(solvers.load(name), solvers.PriorSampler)
)
# Where the covariance of every particle takes seconds the problem of fewest measured values stands for the four.
ONLY = {"kps_cloud": ("down4",)}
# For Gaussians a cloud is worth one particle; the steps and the small space on which it knows S are its defaults.
LIGHT: dict[str, dict[str, int]] = {"kps_cloud": {"particles": 1}}
KEYS = ("mean_error", "std_ratio", "coverage")


@cache
def prior() -> GaussianPrior:
    return GaussianPrior.power_law(report.SHAPE)


@cache
def problems() -> dict[str, tuple[Likelihood, list[GaussianMixture]]]:
    """The likelihood of both measurements and the exact posterior of each, per operator, as the report has them."""
    x0 = prior().sample(MEASUREMENTS, seed=1)
    members = [(0, j) for j in range(MEASUREMENTS)]
    out = {}
    for name, operator in report.operators().items():
        y = GaussianNoise(report.SIGMA_Y).sample(operator(x0), MemberRandom(2, members)).float()
        likelihood = Likelihood(y, operator, GaussianNoise(report.SIGMA_Y))
        exact = [prior().posterior(likelihood.take(torch.tensor([j]))) for j in range(MEASUREMENTS)]
        out[name] = likelihood, exact
    return out


def figures(draws: Tensor, exact: list[GaussianMixture]) -> dict[str, float]:
    """The report's figures of draws (K, m, C, H, W), less what K draws add to the mean's error by themselves."""
    rows = [report.verdict(Posterior(draws[:, j], {}), e, e.sample(len(draws), seed=0)) for j, e in enumerate(exact)]
    for row in rows:
        row["mean_error"] = math.sqrt(max(row["mean_error"] ** 2 - row["std_ratio"] ** 2 / len(draws), 0.0))
    return {key: sum(row[key] for row in rows) / len(rows) for key in KEYS}


@cache
def room() -> dict[str, dict[str, float]]:
    """Three standard deviations of each figure over exact sets of the same size, per operator."""
    out = {}
    for name, (_, exact) in problems().items():
        pools = torch.stack([e.sample(24 * DRAWS, seed=5) for e in exact], 1)
        sets = [figures(part, exact) for part in pools.split(DRAWS)]
        out[name] = {key: 3 * float(torch.tensor([s[key] for s in sets]).std()) for key in KEYS}
    return out


def broken_promises(solver: Solver, only: tuple[str, ...] = report.OPERATORS) -> list[str]:
    """What the solver's draws do not keep of its margins, in words; all of its figures lie inside where empty."""
    margins: Margins = solver.margins  # type: ignore[attr-defined]
    found, ran = [], 0
    for name in only:
        likelihood, exact = problems()[name]
        try:
            draws = sample(solver, likelihood, prior(), draws=DRAWS, seed=0, micro_batch=DRAWS * MEASUREMENTS).draws
        except CapabilityError:
            continue
        ran += 1
        got, spare = figures(draws, exact), room()[name]
        bounds = {"mean_error": (0.0, margins.mean), "std_ratio": margins.spread, "coverage": margins.coverage}
        for key, (low, high) in bounds.items():
            if not low - spare[key] <= got[key] <= high + spare[key]:
                found.append(f"{name}: {key} {got[key]:.3f} outside {low:.2f} to {high:.2f} +/- {spare[key]:.3f}")
    return found if ran else ["no problem could be run"]


@pytest.mark.parametrize("name", DRAWING)
def test_a_solver_that_draws_declares_its_margins_and_keeps_them(name):
    solver = solvers.load(name, **LIGHT.get(name, {}))
    assert isinstance(getattr(solver, "margins", None), Margins), f"{name} declares no margins"
    assert broken_promises(solver, ONLY.get(name, report.OPERATORS)) == []


def test_margins_that_are_too_good_are_found_out():
    class Boasting(solvers.DDRM):
        margins = Margins(mean=0.1, spread=(0.9, 1.1), coverage=(0.87, 0.93))

    found = broken_promises(Boasting())
    assert any(line.startswith("blur: std_ratio 0.5") for line in found)
    assert any(line.startswith("inpaint: mean_error") for line in found)
    assert any(line.startswith("blur: coverage") for line in found)


@pytest.mark.parametrize("name", list(report.operators()))
def test_exact_draws_keep_the_promise_of_a_perfect_sampler(name):
    _, exact = problems()[name]
    got = figures(torch.stack([e.sample(DRAWS, seed=9) for e in exact], 1), exact)
    spare = room()[name]
    assert got["mean_error"] < spare["mean_error"] < 0.35
    assert abs(got["std_ratio"] - 1) < spare["std_ratio"] < 0.1
    assert abs(got["coverage"] - 0.9) < spare["coverage"] < 0.06
