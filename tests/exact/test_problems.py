"""The problems of the laboratory: what each family promises, and each posterior by an independent route."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from invdiff import Likelihood, sample
from invdiff.exact import FAMILIES, Problem, problems
from invdiff.exact.gaussian import Conditioning, gaussian_problems
from invdiff.exact.heavy import heavy_problems
from invdiff.exact.mixtures import mixture16_problems, mixture25_problems
from invdiff.exact.nonlinear import nonlinear_problems
from invdiff.noise import GaussianNoise
from invdiff.operators import LinearOperator, Matrix, Spectral
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM, DPS

MAKERS = {
    "gaussian": gaussian_problems,
    "mixture25": mixture25_problems,
    "mixture16": mixture16_problems,
    "heavy": heavy_problems,
    "nonlinear": nonlinear_problems,
}


def first(family: str, count: int = 1) -> list[Problem]:
    return list(itertools.islice(problems(family), count))


@pytest.mark.parametrize("family", FAMILIES)
def test_problems_are_the_same_in_every_run(family, global_random_state_is_untouched):
    one, again = first(family, 2), first(family, 2)
    assert one[0].name != one[1].name
    assert one[0].cell == one[1].cell
    for a, b in zip(one, again, strict=True):
        assert a.name == b.name
        assert a.family == family
        assert torch.equal(a.likelihood.y, b.likelihood.y)
    assert not torch.equal(one[0].likelihood.y, one[1].likelihood.y)
    assert torch.equal(one[0].posterior.sample(3, 1), again[0].posterior.sample(3, 1))
    assert not torch.equal(one[0].posterior.sample(3, 1), one[0].posterior.sample(3, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_posterior_agrees_with_its_own_draws(family):
    (problem,) = first(family)
    posterior, n = problem.posterior, 3000
    x = posterior.sample(n, 0)
    assert x.dtype == torch.float64
    assert tuple(x.shape[1:]) == posterior.shape == tuple(problem.truth.shape) == problem.likelihood.operator.in_shape
    assert posterior.mean.shape == posterior.std.shape == posterior.shape
    z = ((x.mean(0) - posterior.mean) / posterior.std).abs().max() * n**0.5
    assert float(z) < 4.5
    torch.testing.assert_close(x.std(0), posterior.std, rtol=0.1, atol=0)
    torch.testing.assert_close(posterior.covariance.diagonal(), posterior.std.flatten() ** 2)
    low, high = posterior.mean - 0.5 * posterior.std, posterior.mean + 2 * posterior.std
    inside = ((x > low) & (x < high)).double().mean(0)
    torch.testing.assert_close(posterior.probability(low, high), inside, atol=0.045, rtol=0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "heavy"])
def test_the_log_density_is_bayes_rule_and_is_normalised(family):
    (problem,) = first(family)
    x = problem.posterior.sample(50, 0)
    log = problem.posterior.log_prob(x)
    rest = problem.log_density(x) - log
    torch.testing.assert_close(rest, rest[:1].expand(50), atol=1e-6, rtol=1e-9)
    if family == "gaussian":
        dense = torch.distributions.MultivariateNormal(
            problem.posterior.mean.flatten(), problem.posterior.covariance + 1e-14 * torch.eye(256)
        )
        torch.testing.assert_close(log, dense.log_prob(x.flatten(1)), rtol=1e-5, atol=1e-3)
    elif family == "nonlinear":
        assert float(problem.posterior.mass.sum()) == pytest.approx(1)


@pytest.mark.parametrize("family", ["mixture16", "nonlinear"])
def test_a_posterior_by_importance_sampling(family):
    problem = first(family, 3)[2]
    if family == "mixture16":
        problem = next(p for p in problems(family) if p.name.startswith("mixture16/A1 0.5"))
    x = problem.prior.sample(400_000, seed=5)
    weight = problem.likelihood.log_prob(x).softmax(0)
    size = float(1 / weight.square().sum())
    mean = weight @ x
    std = (weight @ (x - mean) ** 2).sqrt()
    assert size > 100
    assert float(((mean - problem.posterior.mean) / std).abs().max()) < 4.5 / size**0.5
    torch.testing.assert_close(std, problem.posterior.std, rtol=4 / size**0.5, atol=0)
    shares = weight @ problem.prior.mixture.responsibilities(x)
    torch.testing.assert_close(shares, problem.posterior.weights, atol=2.5 / size**0.5, rtol=0)


def test_names_counts_and_families():
    found = [p.name for family in ("mixture16", "nonlinear") for p in problems(family)]
    assert len(found) == len(set(found)) == 4 * 5 + 4 * 8
    assert [p.family for p in itertools.islice(problems(), 1)] == ["gaussian"]
    assert set(MAKERS) == set(FAMILIES)
    with pytest.raises(ValueError, match="family is 'gausian': expected one of gaussian, mixture25"):
        problems("gausian")


def test_the_gaussian_family_holds_every_operator_and_noise():
    cells = list(gaussian_problems(measurements=1))
    assert len(cells) == 3 * (6 + 7 + 6 + 7)
    assert {p.likelihood.noise.sigma for p in cells} == {0.01, 0.05, 0.2}
    assert {p.posterior.shape for p in cells} == {(1, 16, 16), (3, 16, 16), (1, 32, 32), (3, 32, 32)}
    plain = {p.cell.split()[2] for p in cells if not isinstance(p.likelihood.operator, Spectral)}
    assert plain == {"reflect"}
    assert all(isinstance(p.likelihood.operator, LinearOperator) for p in cells)


@pytest.mark.parametrize("name", ["inpaint", "down4", "gray", "reflect"])
def test_a_gaussian_posterior_equals_the_dense_formula(name):
    problem = next(p for p in gaussian_problems(1) if f"colour {name} 0.05" in p.name)
    dense = problem.prior.posterior(problem.likelihood)
    posterior = problem.posterior
    torch.testing.assert_close(posterior.mean, dense.mean)
    torch.testing.assert_close(posterior.std, dense.std)
    torch.testing.assert_close(posterior.covariance, dense.covariance, atol=1e-10, rtol=1e-6)


def test_draws_of_a_gaussian_posterior_have_its_covariance():
    prior = GaussianPrior.power_law((1, 3, 3))
    operator = Matrix(torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), in_shape=(1, 3, 3))
    posterior = Conditioning(prior, operator, 0.1).given(torch.full((4,), 0.3))
    x = posterior.sample(100_000, 1).flatten(1)
    scale = posterior.std.flatten()
    torch.testing.assert_close(
        torch.cov((x / scale).T), posterior.covariance / scale / scale[:, None], atol=0.02, rtol=0
    )
    dense = prior.posterior(Likelihood(torch.full((4,), 0.3), operator, GaussianNoise(0.1)))
    torch.testing.assert_close(posterior.log_prob(x[:5].reshape(5, 1, 3, 3)), dense.log_prob(x[:5]))
    by_hand = Conditioning(GaussianPrior(prior.mean, prior.covariance), operator, 0.1).given(torch.full((4,), 0.3))
    torch.testing.assert_close(by_hand.mean, posterior.mean)


def test_the_mixture_of_25_is_the_papers():
    found = list(mixture25_problems(problems=2))
    assert len(found) == 2 * 9
    for problem in found:
        d, d_y = problem.truth.numel(), problem.likelihood.y.numel()
        assert problem.name.startswith(f"mixture25/d={d} dy={d_y}/")
        means = problem.prior.mixture.means
        assert torch.equal(means[:, :2].repeat(1, d // 2), means)
        assert {tuple(m) for m in means[:, :2].tolist()} == {
            (8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)
        }
        assert torch.equal(problem.prior.mixture.variances, torch.ones(25, d, dtype=torch.float64))
        s = problem.likelihood.operator.singular
        assert bool((s.diff() <= 0).all())
        assert 0 < float(s.min()) <= float(s.max()) < 1
        assert 0 < problem.likelihood.noise.sigma < float(s.max())
        assert problem.sigma_max == pytest.approx(2 * float(torch.cdist(means, means).max()))
        assert float(problem.posterior.weights.sum()) == pytest.approx(1)
    weights = torch.cat([p.prior.mixture.weights * 25 for p in found])
    # Squares of standard normals: mean 1, and a share of .68 below 1, here over their own mean.
    assert 0.55 < float((weights < 1).double().mean()) < 0.8


def test_a_posterior_of_the_mixture_of_25_by_its_marginal_in_the_measured_direction():
    problem = next(mixture25_problems(1))
    matrix = problem.likelihood.operator.forward(torch.eye(8, dtype=torch.float64)).T[0]
    s, sigma, y = matrix.norm(), problem.likelihood.noise.sigma, problem.likelihood.y
    t = torch.linspace(-200, 200, 400_001, dtype=torch.float64)
    centres = problem.prior.mixture.means @ matrix / s
    log = problem.prior.mixture.weights.log() - 0.5 * (t[:, None] - centres) ** 2
    post = (log.logsumexp(1) - 0.5 * ((y - s * t) / sigma) ** 2).softmax(0)
    direction = (matrix / s)[:, None]
    mean = float(post @ t)
    assert float(problem.posterior.mean @ direction) == pytest.approx(mean, abs=1e-6)
    std = float((post @ (t - mean) ** 2).sqrt())
    exact = float((direction.T @ problem.posterior.covariance @ direction).sqrt())
    assert exact == pytest.approx(std, rel=1e-6)


def test_the_mixture_of_16_is_the_papers():
    found = list(mixture16_problems(problems=1))
    assert [p.likelihood.noise.sigma for p in found] == [0.2, 0.5, 0.2, 0.5]
    x = torch.arange(1.0, 17.0)[None]
    torch.testing.assert_close(found[0].likelihood.operator(x)[0], torch.linspace(0.1, 0.75, 14) * x[0, 2:])
    torch.testing.assert_close(found[2].likelihood.operator(x)[0], 3 * x[0, :4])
    # The pair that A1 does not see keeps the prior's weights and moments.
    torch.testing.assert_close(found[0].posterior.weights, torch.tensor([0.8, 0.2], dtype=torch.float64))
    assert found[0].posterior.mean[:2].tolist() == pytest.approx([0.6, 0.6])


def test_sampling_and_prox_on_vectors():
    problem = next(mixture25_problems(1))
    solvers = (DDRM(steps=10, sigma_max=problem.sigma_max), DPS(steps=10, sigma_max=problem.sigma_max))
    for solver in solvers:
        drawn = sample(solver, problem.likelihood, problem.prior, draws=3, progress=False).draws
        assert drawn.shape == (3, 8)
        assert drawn.dtype == torch.float64
    z = problem.prior.sample(2)
    x = problem.likelihood.prox(z, 0.7)
    slope = problem.likelihood.grad(x) - 0.7 * (x - z)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)


def test_a_problem_is_one_measurement_with_a_prior_and_a_posterior():
    (problem,) = first("mixture16")
    y = problem.likelihood.y
    several = Likelihood(y.expand(2, -1), problem.likelihood.operator, problem.likelihood.noise)
    with pytest.raises(ValueError, match="holds a batch of 2: a problem is one measurement"):
        dataclasses.replace(problem, likelihood=several)
    with pytest.raises(TypeError, match="prior is function: expected a Prior"):
        dataclasses.replace(problem, prior=lambda x, sigma: x)
    with pytest.raises(TypeError, match="posterior is Tensor, without covariance, sample, probability"):
        dataclasses.replace(problem, posterior=y)
    assert math.isfinite(problem.sigma_max)
