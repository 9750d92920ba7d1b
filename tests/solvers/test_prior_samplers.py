"""Samplers of the prior alone against priors known in closed form, and from an image instead of noise."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor

from benchmarks.samplers import distance, order, propagate
from invdiff import sample, solvers
from invdiff.priors import FunctionPrior, GaussianMixturePrior, GaussianPrior
from invdiff.record import describe
from invdiff.solvers import DDIM, DDPM, PFODE, CapabilityError, DPMpp2M, Heun

SHAPE = (1, 4, 4)
# Name, settings, and the error that the covariance of a Gaussian prior may have, relative in the Frobenius norm.
CASES = [
    ("ddpm", {"steps": 1000}, 0.025),
    ("ddpm", {"steps": 1000, "variance": "large"}, 0.006),
    ("ddim", {"steps": 100}, 0.075),
    ("ddim", {"steps": 400, "eta": 0.5}, 0.025),
    ("heun", {"steps": 40}, 0.025),
    ("heun", {"steps": 80, "s_churn": 10.0}, 0.02),
    ("dpmpp_2m", {"steps": 40}, 0.025),
    ("dpmpp_sde", {"steps": 100}, 0.01),
    ("pf_ode", {"steps": 20}, 0.002),
]
cases = pytest.mark.parametrize(("name", "settings", "error"), CASES)
ALONE = sorted(name for name in solvers.names() if isinstance(solvers.load(name), solvers.PriorSampler))


def gaussian() -> GaussianPrior:
    return GaussianPrior.power_law(SHAPE)


def mixture() -> GaussianMixturePrior:
    means = torch.tensor([[0.2, 0.3], [0.8, 0.5], [0.4, 0.9]])
    return GaussianMixturePrior(torch.tensor([0.5, 0.3, 0.2]), means, torch.tensor([0.003, 0.01, 0.002]))


def test_every_sampler_is_judged():
    assert {name for name, _, _ in CASES} == set(ALONE)


@cases
def test_the_mean_and_covariance_of_what_is_drawn(name, settings, error):
    """The sampler's own distribution on a Gaussian prior, without sampling error."""
    variances = gaussian().mixture.eigen[0][0]
    mean = torch.linspace(0.3, 0.7, 16, dtype=torch.float64)
    found, spread = propagate(solvers.load(name, **settings), mean, variances)
    # Starting at sigma 40 around 0.5 instead of infinity leaves sqrt(lambda) / 40 of the way from there to the mean.
    torch.testing.assert_close(found, mean, atol=0.002, rtol=0)
    assert float((spread - variances).norm() / variances.norm()) < error
    if error < 0.03:
        assert float(((spread / variances).sqrt() - 1).abs().max()) < 2 * error


def test_the_propagated_variance_is_that_of_draws():
    prior = GaussianPrior(torch.full((3,), 0.4), torch.diag(torch.tensor([0.1, 0.01, 0.001])))
    solver = Heun(steps=8, s_churn=10.0)
    mean, variance = propagate(solver, prior.mean, prior.covariance.diagonal())
    draws = sample(solver, None, prior, draws=4096, micro_batch=4096).draws.double()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.08, atol=0)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=4 * float(variance.max() / 4096) ** 0.5)


@pytest.fixture(scope="module")
def exact() -> tuple[list[Tensor], float]:
    """Sets of exact draws, and how far one of them may be from the others: sliced Wasserstein at the sampling floor."""
    sets = [mixture().sample(1000, seed=seed) for seed in range(1, 9)]
    return sets, max(distance(one, [other for other in sets if other is not one]) for one in sets)


@cases
def test_draws_of_a_mixture_are_as_good_as_exact_ones(name, settings, error, exact):
    references, floor = exact
    prior, solver = mixture(), solvers.load(name, **settings | {"steps": min(settings["steps"], 200)})
    draws = sample(solver, None, prior, draws=1000, micro_batch=1000).draws.double()
    assert distance(draws, references) < floor
    torch.testing.assert_close(draws.mean(0), prior.mean, atol=0.04, rtol=0)
    torch.testing.assert_close(draws.T.cov(), prior.covariance, atol=0.008, rtol=0)


@pytest.mark.parametrize("name", ALONE)
def test_too_few_steps_are_seen(name, exact):
    """What the floor is worth: three steps from noise to image do not reach it."""
    references, floor = exact
    draws = sample(solvers.load(name, steps=3), None, mixture(), draws=1000, micro_batch=1000).draws
    assert distance(draws, references) > 2 * floor


@pytest.mark.parametrize(("name", "expected"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("pf_ode", 4)])
def test_order_of_convergence_to_the_closed_form_of_the_ode(name, expected):
    assert order(name, 40) == pytest.approx(expected, abs=0.1)


def test_ddim_with_eta_one_is_ddpm():
    prior = mixture()
    ancestral = sample(DDPM(steps=30), None, prior, draws=4).draws
    torch.testing.assert_close(sample(DDIM(steps=30, eta=1.0), None, prior, draws=4).draws, ancestral)
    large = sample(DDPM(steps=30, variance="large"), None, prior, draws=4).draws
    assert not torch.allclose(large, ancestral, atol=1e-3)


def test_ddim_without_fresh_noise_is_euler():
    prior, levels = gaussian(), (3.0, 1.0, 0.2)
    x = prior.sample(2) + 3.0
    solver = DDIM(sigmas=levels)
    for sigma, t, found in zip(levels, (1.0, 0.2, 0.0), solver.iterate(None, prior, x, None), strict=True):
        x = x + (t - sigma) * (x - prior(x, sigma)) / sigma
        torch.testing.assert_close(found, x)


def test_churn_equals_the_published_algorithm():
    """Karras et al. 2022, algorithm 2, in the paper's loop over indices, with limits and a factor on the noise."""
    prior = gaussian()
    solver = Heun(steps=10, s_churn=6.0, s_min=0.05, s_max=5.0, s_noise=1.01)

    def noise() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    class Noise:
        generator = noise()

        def normal(self, like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=self.generator, dtype=torch.float64)

    x = prior.sample(2) + 40 * torch.randn(2, *SHAPE, generator=noise(), dtype=torch.float64)
    t, generator, published = solver.levels(prior), noise(), x
    for i in range(10):
        gamma = min(6.0 / 10, math.sqrt(2) - 1) if 0.05 <= t[i] <= 5.0 else 0.0
        hat = t[i] + gamma * t[i]
        if gamma:
            eps = 1.01 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
            published = published + math.sqrt(hat**2 - t[i] ** 2) * eps
        d = (published - prior(published, hat)) / hat
        following = published + (t[i + 1] - hat) * d
        if t[i + 1] != 0:
            other = (following - prior(following, t[i + 1])) / t[i + 1]
            following = published + (t[i + 1] - hat) * (d / 2 + other / 2)
        published = following
    *_, found = solver.iterate(None, prior, x, Noise())
    torch.testing.assert_close(found, published)


@pytest.mark.parametrize("level", [0.03, 0.2])
@pytest.mark.parametrize("name", ALONE)
def test_an_image_as_start_is_noised_and_denoised_from_its_level(name, level):
    """From level s around an image a, each mode of a Gaussian prior N(m, lambda) has a closed form.

    A stochastic sampler draws from the posterior given a + s eps, of gain g = lambda / (lambda + s^2): mean
    m + g (a - m), variance g^2 s^2 + g s^2. The ODE scales a + s eps - m by sqrt(g): variance g s^2.
    """
    count, prior = 1000, gaussian()
    start = torch.full(SHAPE, 0.9, dtype=torch.float64)
    solver = dataclasses.replace(solvers.load(name), steps=100)
    draws = sample(solver, None, prior, draws=count, micro_batch=count, start=start, start_sigma=level).draws
    variances, modes = torch.linalg.eigh(prior.covariance)
    gain, offset = variances / (variances + level**2), (start - prior.mean).flatten() @ modes
    if name in ("ddpm", "dpmpp_sde"):
        mean, variance = gain * offset, level**2 * (gain**2 + gain)
    else:
        mean, variance = gain.sqrt() * offset, level**2 * gain
    white = ((draws - prior.mean).flatten(1) @ modes - mean) / variance.sqrt()
    assert float(white.mean(0).abs().max()) < 4.5 / count**0.5
    # Sampling error is 0.011 over the 16 modes; DDPM in 100 steps is 3 % short.
    assert float(white.square().mean()) == pytest.approx(1, abs=0.05)
    assert float((white.var(0) - 1).abs().max()) < 4.5 * (2 / count) ** 0.5
    assert bool((start == 0.9).all())


def test_the_start_tells_the_shape():
    prior = FunctionPrior(lambda x, sigma: x / (1 + sigma**2), name="shrink", channels=1)
    start = torch.full((1, 3, 5), 0.2)
    assert sample(DDIM(steps=3), None, prior, start=start, start_sigma=0.5).draws.shape == (1, 1, 3, 5)
    assert sample(DDIM(steps=3), None, prior, draws=2, start=start[None], start_sigma=0.5).draws.shape == (2, 1, 3, 5)
    with pytest.raises(CapabilityError, match=r"shrink serves images of 1 channels; in_shape is \(3, 4, 4\)\. Wrap"):
        sample(DDIM(steps=3), None, prior, in_shape=(3, 4, 4))


def test_a_start_below_every_given_level_is_refused_and_between_them_cuts():
    solver = DPMpp2M(sigmas=(10.0, 1.0, 0.1))
    assert dataclasses.replace(solver, sigma_max=0.5).levels(gaussian()) == [0.5, 0.1, 0.0]
    assert dataclasses.replace(solver, sigma_max=0.5).steps == 2
    with pytest.raises(ValueError, match=r"start_sigma is 0\.05: expected the noise level, above 0\.1"):
        sample(solver, None, gaussian(), start=torch.zeros(SHAPE), start_sigma=0.05)


def test_given_levels_are_used_and_must_lie_in_the_priors_range():
    asked = []

    def watch(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(round(float(sigma), 4))
        return x

    prior = FunctionPrior(watch, name="watched", sigma_range=(0.0, 20.0))
    result = sample(DDIM(sigmas=[15.0, 2.0, 0.3]), None, prior, in_shape=SHAPE)
    assert asked == [15.0, 2.0, 0.3]
    assert result.record["solver"]["sigmas"] == [15.0, 2.0, 0.3]
    assert result.record["solver"]["steps"] == 3
    with pytest.raises(CapabilityError, match="DDIM is to start at sigma 25; watched serves at most 20"):
        sample(DDIM(sigmas=(25.0, 1.0)), None, prior, in_shape=SHAPE)
    low = FunctionPrior(watch, name="low", sigma_range=(0.04, 20.0))
    with pytest.raises(
        CapabilityError, match=r"DDIM is to go down to sigma 0\.03; low serves at least 0\.04\. End ther"
    ):
        sample(DDIM(sigmas=(15.0, 0.03)), None, low, in_shape=SHAPE)
    # The last digit of a table is no reason to refuse it.
    sample(DDIM(sigmas=(20.0 * (1 + 1e-9), 0.04 * (1 - 1e-9))), None, low, in_shape=SHAPE)


@pytest.mark.parametrize("sigmas", [0.5, "0.5", ("high", "low"), ()])
def test_levels_that_are_no_levels_are_refused_in_a_sentence(sigmas):
    with pytest.raises(ValueError, match=r"sigmas of DDIM are .*: expected falling noise levels above 0, such as"):
        DDIM(sigmas=sigmas)


def test_heun_without_a_limit_is_json():
    assert json.loads(json.dumps(describe(Heun()), allow_nan=False))["s_max"] is None
    assert Heun(s_max=math.inf) == Heun()
    ends = [
        sample(Heun(steps=5, s_churn=3.0, s_max=s_max), None, gaussian(), micro_batch=1).draws
        for s_max in (None, math.inf, 100.0, 1.0)
    ]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[3])
    with pytest.raises(ValueError, match="s_churn of Heun is inf: expected a number from 0 on"):
        Heun(s_churn=math.inf)


def test_the_ode_gives_one_image_for_one_start():
    """Deterministic after the start: fine Runge-Kutta, Heun and 2M meet, whatever the seed of later noise."""
    prior, start = mixture(), torch.tensor([[0.3, 1.2], [0.9, -0.4]], dtype=torch.float64) * 10
    ends = []
    for solver in (PFODE(steps=60), Heun(steps=400), DPMpp2M(steps=800), DDIM(steps=4000, schedule="karras")):
        cut = dataclasses.replace(solver, sigma_max=10.0, sigma_min=0.002)
        *_, end = cut.iterate(None, prior, start, None)
        ends.append(end)
    for end, tolerance in zip(ends[1:], (1e-4, 1e-4, 2e-3), strict=True):
        torch.testing.assert_close(end, ends[0], atol=tolerance, rtol=0)
