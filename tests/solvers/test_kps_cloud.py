"""KPSCloud: exact on Gaussians by steps of any length, and near the floor where a posterior has several modes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.exact import problems, sliced_wasserstein
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Identity, Matrix, from_function
from invdiff.priors import FunctionPrior, GaussianMixturePrior, GaussianPrior
from invdiff.solvers import DDRM, CapabilityError, KPSCloud, kps_cloud

N = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(n: int = N) -> GaussianPrior:
    root = normal(n, n, seed=1)
    return GaussianPrior(torch.full((n,), 0.5), root @ root.T / (4 * n) + 0.01 * torch.eye(n))


def mixture(n: int = N) -> GaussianMixturePrior:
    means = torch.stack([torch.full((n,), -1.0), torch.full((n,), 2.0)])
    return GaussianMixturePrior(torch.tensor([0.5, 0.5]), means, torch.tensor([0.2, 0.2]))


def likelihood(n: int = N, rows: int = 2, sigma_y: float = 0.1, dtype: torch.dtype = torch.float64) -> Likelihood:
    return Likelihood(
        torch.tensor([0.9, 0.1, 0.4][:rows], dtype=dtype), Matrix(normal(rows, n)), GaussianNoise(sigma_y)
    )


@pytest.mark.parametrize("steps", [3, 12])
def test_on_gaussians_weights_are_one_and_draws_exact(steps, monkeypatch):
    heard: list[Tensor] = []
    real = kps_cloud.effective_size
    monkeypatch.setattr(kps_cloud, "effective_size", lambda w: heard.append(w) or real(w))
    prior, given, count = gaussian(), likelihood(), 2000
    exact = prior.posterior(given)
    cloud = sample(KPSCloud(steps=steps, particles=count, keep="cloud"), given, prior, draws=count).draws
    # The first holds the evidence of the start; without resampling the weights add up from there.
    assert len(heard) == steps
    for weights in heard[1:]:
        assert float((weights - heard[0]).std()) < 1e-6 or float(weights.std()) < 1e-6
    std = exact.std
    assert float(((cloud.mean(0) - exact.mean) / std).abs().max()) < 5 / math.sqrt(count)
    scaled = torch.outer(std, std)
    torch.testing.assert_close(cloud.T.cov() / scaled, exact.covariance / scaled, atol=0.13, rtol=0)


def test_modes_are_weighed():
    problem = next(p for p in problems("mixture25") if p.name == "mixture25/d=8 dy=2/1")
    settings = {"sigma_max": problem.sigma_max}
    cloud = KPSCloud(particles=500, keep="cloud", **settings)
    draws = sample(cloud, problem.likelihood, problem.prior, draws=1000, micro_batch=2).draws
    exact = problem.posterior.sample(1000, seed=1)
    floor = sliced_wasserstein(exact, problem.posterior.sample(1000, seed=2))
    other = sample(DDRM(**settings), problem.likelihood, problem.prior, draws=1000, micro_batch=500).draws
    found = sliced_wasserstein(draws, exact)
    assert found < 6 * floor
    assert found < 0.3 * sliced_wasserstein(other, exact)


def test_the_small_space_is_as_good_as_the_whole_covariance():
    prior, given = mixture(24), likelihood(24, 1)
    whole, small = (
        sample(KPSCloud(steps=8, particles=300, full=full, keep="cloud"), given, prior, draws=600, micro_batch=2).draws
        for full in (64, 8)
    )
    exact = prior.posterior(given)
    floor = sliced_wasserstein(exact.sample(600, seed=1), exact.sample(600, seed=2))
    for draws in (whole, small):
        assert sliced_wasserstein(draws, exact.sample(600, seed=1)) < 4 * floor


def test_one_draw_or_all_of_a_cloud():
    prior, given = mixture(), likelihood()
    solver = KPSCloud(steps=4, particles=8)
    one = sample(solver, given, prior, draws=3)
    whole = sample(dataclasses.replace(solver, keep="cloud"), given, prior, draws=24)
    assert one.draws.shape == (3, N)
    assert whole.draws.shape == (24, N)
    torch.testing.assert_close(one.draws, whole.draws[::8])
    assert (one.record["dependent"], whole.record["dependent"]) == (False, True)
    assert (one.record["nfe"], whole.record["nfe"]) == (4 * 8, 4)
    # A backward pass for each of the values, at every step of every particle.
    assert (one.record["nfe_backward"], whole.record["nfe_backward"]) == (4 * 8 * N, 4 * N)


def test_a_cloud_does_not_feel_its_neighbours():
    """Each with its operator and its noise: one is foreseen by the prior, the other far from it and exact."""
    prior = mixture()
    operator = Matrix(torch.stack([normal(2, N, seed=3), 5 * normal(2, N, seed=4)]))
    y = torch.tensor([[0.0, 0.0], [40.0, -30.0]], dtype=torch.float64)
    joint = Likelihood(y, operator, GaussianNoise(torch.tensor([2.0, 0.01])[:, None]))
    solver = KPSCloud(steps=6, particles=16, keep="cloud")
    together = sample(solver, joint, prior, draws=16, micro_batch=2).draws
    apart = sample(solver, joint, prior, draws=16, micro_batch=1).draws
    torch.testing.assert_close(together, apart, atol=1e-8, rtol=1e-8)
    first = Likelihood(y[0], operator.take(torch.tensor([0])), GaussianNoise(2.0))
    alone = sample(solver, first, prior, draws=16, micro_batch=1).draws
    torch.testing.assert_close(together[:, 0], alone, atol=1e-6, rtol=1e-6)


def test_a_prior_that_cannot_be_differentiated_gives_nearly_the_same():
    shape = (1, 2, 3)
    plain = GaussianPrior(torch.full(shape, 0.5), gaussian().covariance)
    rough = FunctionPrior(lambda x, sigma: plain(x.detach(), float(sigma)), name="stiff", differentiable=False)
    given = Likelihood(torch.full(shape, 0.7, dtype=torch.float64), Identity(shape), GaussianNoise(0.1))
    solver = KPSCloud(steps=5, particles=16, keep="cloud")
    smooth, stiff = (sample(solver, given, prior, draws=16) for prior in (plain, rough))
    torch.testing.assert_close(stiff.draws, smooth.draws, atol=1e-5, rtol=0)
    assert (stiff.record["nfe"], stiff.record["nfe_backward"]) == (5 * (1 + N), 0)


def test_float32_measurements():
    draws = sample(KPSCloud(steps=5, particles=8), likelihood(dtype=torch.float32), mixture(), draws=2).draws
    wide = sample(KPSCloud(steps=5, particles=8), likelihood().to(dtype=torch.float64), mixture(), draws=2).draws
    assert draws.dtype == torch.float32
    torch.testing.assert_close(draws.double(), wide, atol=2e-2, rtol=0)


def test_refusals():
    prior, y = mixture(), torch.full((N,), 0.5)
    with pytest.raises(CapabilityError, match="sigma_y is 0, where particles have no weights: use KPS, or a small sig"):
        sample(KPSCloud(), likelihood(sigma_y=0.0), prior)
    many = Likelihood(torch.zeros(1, 1, 257), Identity((1, 1, 257)), GaussianNoise(0.1))
    with pytest.raises(CapabilityError, match=r"measurement, which has 257 values: more than 256\. Use KPS\."):
        sample(KPSCloud(), many, lambda x, sigma: x)
    square = Likelihood(y, from_function(lambda x: x**2, (N,), linear=False), GaussianNoise(0.1))
    with pytest.raises(CapabilityError, match=r"KPSCloud needs a linear operator; .* is not one\. Use DAPS, TDS or "):
        sample(KPSCloud(), square, prior)
    with pytest.raises(CapabilityError, match="KPSCloud needs GaussianNoise; this is PoissonNoise"):
        sample(KPSCloud(), Likelihood(y, Identity((N,)), PoissonNoise(0.1)), prior)
    with pytest.raises(CapabilityError, match="KPSCloud needs a likelihood: to draw from the prior alone use DDPM"):
        sample(KPSCloud(), None, prior)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"depth": 0}, "depth of KPSCloud is 0: expected a whole number from 1 on"),
        ({"full": 2.5}, r"full of KPSCloud is 2\.5: expected a whole number from 1 on"),
        ({"threshold": 1.5}, r"threshold of KPSCloud is 1\.5: expected a number from 0 to 1"),
        ({"particles": 0}, "particles of KPSCloud is 0: expected a whole number from 1 on"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        KPSCloud(**settings)


@pytest.mark.parametrize(("steps", "found"), [(3, 0.646), (6, 0.654), (20, 0.671)])
def test_the_weights_of_unequal_modes_come_right_with_steps(steps, found):
    """The docstring's figures: what the Gaussian bridge misses falls with steps, whatever the number of particles."""
    covariances = torch.stack([torch.diag(torch.tensor([0.04, 1.0])), torch.eye(2)])
    prior = GaussianMixturePrior(torch.tensor([0.7, 0.3]), torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), covariances)
    given = Likelihood(torch.tensor([0.4], dtype=torch.float64), Matrix(torch.tensor([[0.1, 1.0]])), GaussianNoise(0.2))
    posterior = prior.posterior(given)
    assert float(posterior.weights[0]) == pytest.approx(0.668, abs=0.001)
    draws = sample(KPSCloud(steps=steps, particles=3000, keep="cloud"), given, prior, draws=24_000, micro_batch=1).draws
    assert float((draws[:, 0] < 0).double().mean()) == pytest.approx(found, abs=0.012)
