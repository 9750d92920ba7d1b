"""The figures of draws: what exact draws give, what known errors give, and each by its definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from invdiff import Likelihood
from invdiff.exact import (
    coverage,
    density_coverage,
    problems,
    residual_chi2,
    row_space,
    stein_discrepancy,
    total_variation,
)
from invdiff.exact.gaussian import gaussian_operators
from invdiff.exact.measure import Exact
from invdiff.exact.mixtures import mixture16_problems
from invdiff.noise import PoissonNoise
from invdiff.operators import Identity, from_function
from invdiff.priors.mixtures import dense_matrix

SHAPE = (3, 12, 12)


def inpainting():
    return next(p for p in problems("gaussian") if "inpaint 0.05" in p.name)


def mixture():
    return next(itertools.islice(mixture16_problems(), 10, None))


@pytest.mark.parametrize("name", gaussian_operators(SHAPE))
def test_the_row_space_is_that_of_the_dense_matrix(name):
    operator = gaussian_operators(SHAPE)[name]
    matrix = dense_matrix(operator, torch.zeros((), dtype=torch.float64))
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projection = torch.linalg.pinv(matrix, rtol=1e-6) @ matrix
    torch.testing.assert_close(row_space(operator)(x).flatten(1), x.flatten(1) @ projection.T, atol=1e-7, rtol=0)


def test_the_row_space_of_an_operator_without_an_svd():
    matrix = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = from_function(lambda x: x @ matrix.to(x).T, (7,))
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(row_space(operator)(x), x @ (torch.linalg.pinv(matrix) @ matrix).T)


def test_a_map_that_is_not_linear_sees_everything():
    x = torch.rand(2, 3)
    assert torch.equal(row_space(from_function(lambda x: x**2, (3,), linear=False))(x), x)


@pytest.mark.parametrize("make", [inpainting, mixture])
def test_moments_tell_what_is_seen_from_what_is_not(make):
    problem = make()
    posterior, n = problem.posterior, 2000
    project = row_space(problem.likelihood.operator)
    x = posterior.sample(n, 0)
    exact = Exact(problem, n)
    found = exact.figures(x)
    assert found["mean_observed"] < 0.05
    assert found["mean_null"] < 0.05
    assert found["spread_observed"] == pytest.approx(1, abs=0.04)
    assert found["spread_null"] == pytest.approx(1, abs=0.04)
    # Halve the spread and move the mean by half a posterior std, in the null space alone.
    null = x - project(x)
    centre = posterior.mean - project(posterior.mean[None])[0]
    wrong = project(x) + centre + 0.5 * (null - centre)
    side = torch.randn(posterior.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    side = side - project(side[None])[0]
    covariance = posterior.covariance
    rest = torch.eye(len(covariance), dtype=torch.float64)
    rest = rest - project(rest.reshape(-1, *posterior.shape)).reshape(rest.shape)
    wrong = wrong + 0.5 * side / side.norm() * float((rest @ covariance).trace()) ** 0.5
    moved = exact.figures(wrong)
    assert moved["spread_null"] == pytest.approx(0.5 * found["spread_null"], rel=1e-6)
    assert moved["mean_null"] == pytest.approx(0.5, abs=0.05)
    assert moved["mean_observed"] == pytest.approx(found["mean_observed"], abs=1e-9)
    assert moved["spread_observed"] == pytest.approx(found["spread_observed"], rel=1e-6)


def test_where_there_is_no_null_space_its_figures_are_nan():
    problem = next(p for p in problems("gaussian") if "denoise 0.05" in p.name)
    found = Exact(problem, 1).figures(problem.posterior.sample(1))
    assert math.isnan(found["mean_null"])
    assert math.isnan(found["spread_observed"])
    assert math.isfinite(found["mean_observed"])


@pytest.mark.parametrize(("level", "scale"), [(0.5, 1.0), (0.9, 1.0), (0.9, 0.5)])
def test_coverage_of_draws_that_are_right_and_of_narrow_ones(level, scale):
    posterior = inpainting().posterior
    draws = posterior.mean + scale * (posterior.sample(4000, 0) - posterior.mean)
    z = scale * torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
    expected = 2 * float(torch.special.ndtr(z)) - 1
    assert coverage(draws, posterior, level) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("make", [inpainting, mixture])
def test_the_highest_density_region(make):
    problem = make()
    draws = problem.posterior.sample(4000, 0)
    assert density_coverage(draws, problem, 0.9, seed=1) == pytest.approx(0.9, abs=0.025)
    assert density_coverage(draws, problem, 0.5, seed=1) == pytest.approx(0.5, abs=0.04)
    narrow = problem.posterior.mean + 0.5 * (draws - problem.posterior.mean)
    assert density_coverage(narrow, problem, 0.9, seed=1) < 0.3


def test_total_variation_of_mode_weights():
    problem = next(mixture16_problems())
    draws = problem.posterior.sample(20_000, 0)
    assert total_variation(draws, problem.posterior) < 0.01
    one = problem.posterior.means[0] + 0.1 * (draws - problem.posterior.means[0])
    assert total_variation(one, problem.posterior) == pytest.approx(0.2, abs=0.02)
    with pytest.raises(ValueError, match="GaussianPosterior has no modes: expected the posterior of a mixture"):
        total_variation(inpainting().posterior.sample(2), inpainting().posterior)


def test_residual_chi2_by_its_definition():
    problem = mixture()
    x, sigma = problem.posterior.sample(50, 0), problem.likelihood.noise.sigma
    expected = ((problem.likelihood.y - problem.likelihood.operator(x)) / sigma).square().mean()
    assert residual_chi2(x, problem.likelihood) == pytest.approx(float(expected))
    photons = Likelihood(torch.ones(1, 2, 2), Identity((1, 2, 2)), PoissonNoise(0.1))
    with pytest.raises(ValueError, match="is of GaussianNoise: this is PoissonNoise"):
        residual_chi2(torch.ones(1, 1, 2, 2), photons)


def test_the_stein_discrepancy_by_automatic_differentiation():
    problem = mixture()
    x = problem.posterior.sample(6, 0)

    def score(x):
        leaf = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(problem.log_density(leaf[None]).sum(), leaf)
        return slope

    def kernel(a, b):
        return (1 + (a - b).square().sum()) ** -0.5

    total = 0.0
    for a, b in itertools.product(x, x):
        da, db = torch.func.grad(kernel, 0)(a, b), torch.func.grad(kernel, 1)(a, b)
        mixed = torch.func.jacfwd(torch.func.grad(kernel, 0), 1)(a, b).trace()
        sa, sb = score(a), score(b)
        total += float(sa @ sb * kernel(a, b) + sa @ db + sb @ da + mixed)
    assert stein_discrepancy(x, problem) == pytest.approx((total / 36) ** 0.5, rel=1e-8)


def test_the_stein_discrepancy_of_exact_draws_is_small():
    problem = next(mixture16_problems())
    draws = problem.posterior.sample(400, 0)
    assert stein_discrepancy(draws, problem) < 0.5 * stein_discrepancy(draws + 0.5, problem)
