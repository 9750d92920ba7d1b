"""Gibbs sampling of heavy-tailed walks against quadrature in one dimension, dense algebra and importance sampling."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import integrate, stats

from invdiff import Likelihood
from invdiff.exact import problems
from invdiff.exact.gibbs import NUMBERS, BandedWalk, Increments, PinnedWalk, Walk, sweeps
from invdiff.exact.heavy import WalkPosterior, WalkPrior, heavy_operators, heavy_problems
from invdiff.jacobian import Linearised
from invdiff.noise import GaussianNoise
from invdiff.operators import Matrix

LAWS = {"laplace": stats.laplace(), "student": stats.t(2)}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("law", LAWS)
def test_increments_have_their_law(law):
    increments = Increments(law)
    u = increments.sample((20_000,), torch.Generator().manual_seed(1))
    assert stats.kstest(u.numpy(), LAWS[law].cdf).pvalue > 1e-3
    torch.testing.assert_close(increments.log_prob(u), torch.from_numpy(LAWS[law].logpdf(u.numpy())))


@pytest.mark.parametrize("law", LAWS)
def test_variances_given_an_increment_are_the_scale_mixtures(law):
    """u | v ~ N(0, v) with v of the draws must give back u's own law: Gibbs without a measurement."""
    increments = Increments(law)
    u = increments.sample((20_000,), torch.Generator().manual_seed(2))
    for step in range(5):
        v = increments.variance_given(u, normal(3, 20_000, seed=3 + step))
        u = v.sqrt() * normal(20_000, seed=30 + step)
    assert stats.kstest(u.numpy(), LAWS[law].cdf).pvalue > 1e-3
    v = increments.variance_given(torch.full((20_000,), 0.7, dtype=torch.float64), normal(3, 20_000, seed=9))
    exact = stats.invgauss(1 / 0.7) if law == "laplace" else stats.gamma(1.5, scale=2 / (2 + 0.49))
    assert stats.kstest((1 / v).numpy(), exact.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["pinned", "banded"])
def test_a_walk_given_its_variances_is_the_dense_gaussian(kind):
    n, v = 9, 0.05 + 3 * torch.rand(9, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y, sigma = normal(9, seed=5), 0.4
    difference = torch.eye(n, dtype=torch.float64) - torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)
    if kind == "pinned":
        matrix = torch.eye(n, dtype=torch.float64)
        ones = torch.ones_like(v)
        walk: Walk = PinnedWalk(ones / sigma**2, y[:, None] * ones / sigma**2)
    else:
        places = torch.arange(n)
        matrix = torch.exp(-0.3 * (places[:, None] - places).double() ** 2)
        matrix[(places[:, None] - places).abs() > 2] = 0
        walk = BandedWalk(matrix, y, sigma)
    precision = difference.T @ torch.diag_embed(1 / v.T) @ difference + matrix.T @ matrix / sigma**2
    covariance = torch.linalg.inv(precision)
    mean, _ = walk.moments(v, torch.zeros_like(v))
    torch.testing.assert_close(mean.T, covariance @ (matrix.T @ y) / sigma**2)
    torch.testing.assert_close(walk.std(v).T, covariance.diagonal(dim1=1, dim2=2).sqrt())
    torch.testing.assert_close(walk.mean_covariance(v), covariance.mean(0))
    b = normal(9, 4, seed=6)
    torch.testing.assert_close(walk.solve(v, b).T, (covariance @ b.T[..., None])[..., 0])
    columns = torch.stack([walk.moments(v, torch.eye(n, dtype=torch.float64)[:, [i] * 4])[1] - mean for i in range(n)])
    torch.testing.assert_close(torch.einsum("imc,inc->cmn", columns, columns), covariance)


@pytest.mark.parametrize("law", LAWS)
def test_one_increment_against_quadrature(law):
    """E[x | y] and Var[x | y] for x of one place, where the integral over x can be done."""
    y, sigma, chains = 2.5, 0.9, 4000
    density = lambda x: math.exp(LAWS[law].logpdf(x) - 0.5 * ((y - x) / sigma) ** 2)  # noqa: E731
    total, first, second = (
        integrate.quad(lambda x, p=p: x**p * density(x), -60, 60, points=[0, y], limit=200)[0] for p in (0, 1, 2)
    )
    means, draws = [], []

    def keep(index, v, mean, draw):
        if index >= 20:
            means.append(mean)
            draws.append(draw)

    generator = torch.Generator().manual_seed(7)
    ones = torch.ones(1, chains, dtype=torch.float64)
    walk = PinnedWalk(ones / sigma**2, ones * y / sigma**2)
    numbers = lambda index: torch.randn(NUMBERS, 1, chains, generator=generator, dtype=torch.float64)  # noqa: E731
    sweeps(Increments(law), walk, 2 * ones, numbers, 60, keep)
    assert float(torch.stack(means).mean()) == pytest.approx(first / total, abs=0.006)
    std = (second / total - (first / total) ** 2) ** 0.5
    assert float(torch.stack(draws).std()) == pytest.approx(std, rel=0.01)


@pytest.mark.parametrize("law", LAWS)
def test_a_posterior_by_importance_sampling(law):
    """Only the first three places are measured, broadly, so that the prior's own draws reach the posterior."""
    prior = WalkPrior(law)
    matrix = torch.eye(64, dtype=torch.float64)[:3]
    y, sigma = torch.tensor([1.0, 2.5, 1.5], dtype=torch.float64), 1.2
    x = prior.sample(200_000, seed=8)
    weight = Likelihood(y, Matrix(matrix), GaussianNoise(sigma)).log_prob(x).softmax(0)
    mean = weight @ x[:, :3]
    std = (weight @ (x[:, :3] - mean) ** 2).sqrt()
    posterior = WalkPosterior(prior.law, matrix, y, sigma)
    torch.testing.assert_close(posterior.mean[:3], mean, atol=0.03, rtol=0)
    torch.testing.assert_close(posterior.std[:3], std, rtol=0.03, atol=0)
    inside = weight @ ((x > 0.5) & (x < 2)).double()[:, :3]
    wide = torch.ones(64, dtype=torch.float64)
    torch.testing.assert_close(posterior.probability(0.5 * wide, 2 * wide)[:3], inside, atol=0.015, rtol=0)


def test_both_walks_give_one_posterior():
    """Denoising runs through the tridiagonal factor; a matrix with one tiny neighbour runs through the banded one."""
    problem = next(heavy_problems(1))
    posterior = problem.posterior
    matrix = posterior.matrix.clone()
    matrix[0, 1] = 1e-9
    banded = WalkPosterior(posterior.law, matrix, posterior.y, posterior.sigma, seed=1)
    assert isinstance(banded._walk(2), BandedWalk)
    off = (banded.mean - posterior.mean) / (posterior.mean_error**2 + banded.mean_error**2).sqrt()
    assert float(off.square().mean()) == pytest.approx(1, abs=0.7)
    torch.testing.assert_close(banded.std, posterior.std, rtol=0.1, atol=0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_the_denoiser_is_the_posterior_mean_within_its_stated_error(law, sigma):
    prior = WalkPrior(law)
    y = (prior.sample(1, seed=9) + sigma * normal(1, 64, seed=10))[0]
    exact = WalkPosterior(prior.law, torch.eye(64, dtype=torch.float64), y, sigma)
    estimate, error = prior(y[None], sigma)[0], prior.standard_error(y[None], sigma)[0]
    off = (estimate - exact.mean) / (error**2 + exact.mean_error**2).sqrt()
    # Eight chains tell their own spread with some error of its own.
    assert 0.4 < float(off.square().mean()) < 2.5
    assert float(error.mean()) < 0.12 * float(exact.std.mean())


def test_an_estimate_depends_on_its_own_member_alone(global_random_state_is_untouched):
    prior = WalkPrior("student")
    x = prior.sample(3, seed=11) + normal(3, 64, seed=12)
    sigma = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    together = prior(x, sigma)
    assert torch.equal(prior(x, sigma), together)
    torch.testing.assert_close(prior(x[1:2], 1.0)[0], together[1])
    torch.testing.assert_close(prior(x.flip(0), sigma.flip(0)).flip(0), together)
    assert prior(x.float(), 1.0).dtype == torch.float32
    torch.testing.assert_close(prior(x, 0.0), x, atol=1e-3, rtol=0)


def test_the_derivative_is_the_covariance():
    """J sigma^2 against the covariance of the same law by long chains, and symmetric."""
    sigma = 1.0
    prior = WalkPrior("laplace", chains=64, kept=40)
    y = (prior.sample(1, seed=13) + sigma * normal(1, 64, seed=14))[0]
    exact = WalkPosterior(prior.law, torch.eye(64, dtype=torch.float64), y, sigma).covariance
    near = Linearised(prior, y.expand(64, -1), sigma)
    found = near.covariance(torch.eye(64, dtype=torch.float64))
    torch.testing.assert_close(found, found.T)
    assert float((found - exact).norm() / exact.norm()) < 0.1


def test_the_family_is_as_stated():
    cells = list(heavy_problems(1))
    assert [p.cell for p in cells] == [
        f"heavy/{law} {name}" for law, name in itertools.product(LAWS, ("denoise", "subsample", "deconvolve"))
    ]
    blur = heavy_operators()["deconvolve"]
    torch.testing.assert_close(blur(torch.ones(1, 64)), torch.ones(1, 64))
    for problem in cells:
        many = problem.prior.sample(1000, seed=20)
        z = problem.likelihood.operator(many)
        snr = 20 * torch.log10(z.square().mean(1).sqrt().median() / problem.likelihood.noise.sigma)
        assert float(snr) == pytest.approx(25, abs=1)
        assert 2 * float(many.abs().amax(1).quantile(0.95)) < problem.sigma_max


def test_wrong_use_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="law is 'cauchy': expected laplace or student"):
        WalkPrior("cauchy")
    with pytest.raises(ValueError, match=r"x has shape \(1, 32\): this prior is of vectors of shape \(64,\)"):
        WalkPrior("laplace")(torch.zeros(1, 32), 1.0)
    problem = next(problems("heavy"))
    assert not hasattr(problem.posterior, "log_prob")
