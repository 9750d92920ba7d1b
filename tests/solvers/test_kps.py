"""KPS against exact posteriors: with an exact denoiser its draws are within the Monte Carlo floor."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, sample
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Identity, LinearOperator, Mask, from_function, gaussian_psf, random_mask
from invdiff.priors import FunctionPrior, GaussianPrior, Prior
from invdiff.priors.analytic import GaussianMixture
from invdiff.random import MemberRandom
from invdiff.solvers import KPS, MMPS, CapabilityError

SHAPE, SMALL = (1, 16, 16), (1, 8, 8)
DRAWS = 192


def problem(operator: LinearOperator, sigma_y: float | Tensor, prior: GaussianPrior | None = None):
    """A measurement of a draw of the prior, the prior and the exact posterior."""
    prior = GaussianPrior.power_law(operator.in_shape) if prior is None else prior
    noise = GaussianNoise(sigma_y)
    y = noise.sample(operator(prior.sample(1, seed=1)), MemberRandom(2, [(0, 0)]))
    likelihood = Likelihood(y[0], operator, noise)
    return likelihood, prior, prior.posterior(likelihood)


def figures(draws: Tensor, exact: GaussianMixture) -> tuple[float, float, float]:
    """Error of the mean, in posterior stds; spread over the true one; true coverage of the 90 % interval."""
    posterior, scale = Posterior(draws, {}), float(exact.std.square().mean().sqrt())
    low, high = (torch.special.ndtr((bound.double() - exact.mean) / exact.std) for bound in posterior.interval(0.9))
    error = float((draws.double().mean(0) - exact.mean).square().mean().sqrt()) / scale
    spread = float(draws.double().var(0).mean().sqrt()) / scale
    return error, spread, float((high - low).mean())


def assert_exact(draws: Tensor, exact: GaussianMixture) -> None:
    """Within what exact sets of the same size show: mean, spread 1 +/- 0.02 and coverage 0.9 +/- 0.01 beside it."""
    sets = torch.tensor([figures(exact.sample(len(draws), seed=100 + k), exact) for k in range(20)])
    error, spread, coverage = figures(draws, exact)
    room = 3 * sets.std(0)
    assert error < float(sets[:, 0].mean() + room[0])
    assert abs(spread - 1) < 0.02 + float(room[1])
    assert abs(coverage - 0.9) < 0.01 + float(room[2])


OPERATORS = {
    "inpaint": Mask(random_mask(SHAPE, 0.5, seed=0), SHAPE),
    "blur": Blur(gaussian_psf(1.0), SHAPE),
    "reflect blur": Blur(gaussian_psf(1.0, 5), SHAPE, boundary="reflect"),
}


@pytest.mark.parametrize(("name", "sigma_y"), [("inpaint", 0.01), ("blur", 0.05), ("reflect blur", 0.01)])
def test_thirty_steps_are_within_the_floor(name, sigma_y):
    likelihood, prior, exact = problem(OPERATORS[name], sigma_y)
    draws = sample(KPS(steps=30), likelihood, prior, draws=DRAWS, micro_batch=DRAWS).draws
    assert_exact(draws, exact)


def test_the_floor_is_one_that_moment_matching_does_not_keep():
    """What the assertion above is worth: a sampler that is nearly right does not pass it."""
    likelihood, prior, exact = problem(OPERATORS["inpaint"], 0.05)
    draws = sample(MMPS(steps=40), likelihood, prior, draws=DRAWS, micro_batch=DRAWS).draws
    with pytest.raises(AssertionError):
        assert_exact(draws, exact)


def non_stationary() -> GaussianPrior:
    """Images that are nothing like a stationary texture: neighbours far apart hang together, corners hardly vary."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(64, 64, generator=generator, dtype=torch.float64) * torch.logspace(-1.5, 0, 64).double()
    scale = torch.linspace(0.03, 0.3, 64, dtype=torch.float64)
    cov = scale[:, None] * (root @ root.T / 8 + 0.05 * torch.eye(64)) * scale
    return GaussianPrior(torch.full(SMALL, 0.5), cov)


def test_images_that_are_not_stationary():
    likelihood, prior, exact = problem(Mask(random_mask(SMALL, 0.5, seed=0), SMALL), 0.02, non_stationary())
    draws = sample(KPS(products=8), likelihood, prior, draws=DRAWS, micro_batch=DRAWS).draws
    assert_exact(draws, exact)


def test_a_sigma_for_every_pixel():
    sigma = torch.linspace(0.02, 0.2, 64).reshape(SMALL)
    likelihood, prior, exact = problem(Identity(SMALL), sigma)
    assert_exact(sample(KPS(), likelihood, prior, draws=DRAWS, micro_batch=DRAWS).draws, exact)


def stiff(prior: Prior) -> FunctionPrior:
    rough = FunctionPrior(lambda x, sigma: prior(x.detach(), float(sigma)), name="stiff", differentiable=False)
    rough.jacobian_limit = math.inf
    return rough


def test_a_prior_that_cannot_be_differentiated_gives_the_same_draws():
    likelihood, prior, exact = problem(Mask(random_mask(SMALL, 0.5, seed=0), SMALL), 0.05)
    plain, rough = (sample(KPS(), likelihood, p, draws=DRAWS, micro_batch=DRAWS) for p in (prior, stiff(prior)))
    torch.testing.assert_close(rough.draws, plain.draws, atol=5e-3, rtol=0)
    assert_exact(rough.draws, exact)
    # Each product is one call more, and nothing is passed back.
    assert rough.record["nfe_backward"] == 0
    assert 50 < rough.record["nfe"] <= 50 * 6


def test_without_noise_draws_fit_the_measurement_and_vary_beside_it():
    mask = random_mask(SMALL, 0.5, seed=0)
    likelihood, prior, exact = problem(Mask(mask, SMALL), 0.0)
    draws = sample(KPS(), likelihood, prior, draws=DRAWS, micro_batch=DRAWS).draws
    missing = likelihood.operator(draws) - likelihood.y
    assert float(missing.abs().max()) < 0.005
    hidden = mask.expand(SMALL) == 0
    spread = draws.var(0)[hidden].mean().sqrt() / exact.std.square()[hidden].mean().sqrt()
    assert float(spread) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("products", [1, 3])
def test_what_a_draw_costs(products):
    likelihood, prior, _ = problem(Mask(random_mask(SMALL, 0.5, seed=0), SMALL), 0.05)
    record = sample(KPS(steps=30, products=products), likelihood, prior).record
    assert record["nfe"] == 30
    assert 0 < record["nfe_backward"] <= 30 * products


def test_a_larger_tolerance_costs_less():
    likelihood, prior, _ = problem(Mask(random_mask(SMALL, 0.5, seed=0), SMALL), 0.01)
    costs = [sample(KPS(tolerance=t), likelihood, prior).record["nfe_backward"] for t in (1e-6, 0.5)]
    assert costs[1] < 0.7 * costs[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_dtype_of_y(dtype):
    likelihood, prior, _ = problem(Mask(random_mask(SMALL, 0.5, seed=0), SMALL), 0.05)
    wide = sample(KPS(), likelihood.to(dtype=torch.float64), prior, draws=2).draws
    draws = sample(KPS(), likelihood.to(dtype=dtype), prior, draws=2).draws
    assert draws.dtype == dtype
    torch.testing.assert_close(draws.double(), wide, atol=2e-3, rtol=0)


def test_refusals():
    prior, y = GaussianPrior.power_law(SMALL), torch.full(SMALL, 0.5)
    square = Likelihood(y, from_function(lambda x: x**2, SMALL, linear=False), GaussianNoise(0.1))
    with pytest.raises(CapabilityError, match=r"KPS needs a linear operator; .* is not one\. Use DAPS, TDS or DPS\."):
        sample(KPS(), square, prior)
    with pytest.raises(
        CapabilityError, match=r"KPS needs GaussianNoise; this is PoissonNoise\. Use DiffPIR, PnPADMM or"
    ):
        sample(KPS(), Likelihood(y, Identity(SMALL), PoissonNoise(0.1)), prior)
    with pytest.raises(
        CapabilityError, match=r"KPS needs a likelihood: to draw from the prior alone use DDPM or Heun\."
    ):
        sample(KPS(), None, prior)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"products": 0}, "products of KPS is 0: expected a whole number from 1 on"),
        ({"products": 2.5}, r"products of KPS is 2\.5: expected a whole number from 1 on"),
        ({"tolerance": 0.0}, r"tolerance of KPS is 0\.0: expected a finite number above 0"),
        ({"tolerance": math.nan}, "tolerance of KPS is nan: expected a finite number above 0"),
        ({"transition": "euler"}, "transition of KPS is 'euler': expected one of"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(KPS(), **settings)
