"""DiffPIR against the official steps in their own coordinates, VP on [-1, 1] images."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Identity, Mask, from_function, gaussian_psf, random_mask
from invdiff.priors import FunctionPrior, GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import CapabilityError, DiffPIR

SHAPE = (1, 8, 8)
MEMBERS = [(k, 0) for k in range(3)]


def problem(sigma_y: float = 0.1):
    prior, operator = GaussianPrior.power_law(SHAPE), Mask(random_mask(SHAPE, 0.5), SHAPE)
    y = operator(prior.sample(1, seed=1) + 0.05)[0]
    x = 0.5 + 0.4 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return prior, Likelihood(y, operator, GaussianNoise(sigma_y)), x


@pytest.mark.parametrize(("lam", "zeta"), [(7.0, 0.3), (1.0, 1.0), (3.0, 0.0)])
def test_one_step_is_the_official_one(lam, zeta):
    prior, likelihood, x = problem()
    solver = DiffPIR(lam=lam, zeta=zeta, schedule="ve", steps=2, sigma_min=0.3, sigma_max=0.6)
    sigma, following, _ = solver.levels(prior)
    ours = next(solver.iterate(likelihood, prior, x, MemberRandom(0, MEMBERS)))

    alpha_t, alpha_s = 1 / (1 + 4 * sigma**2), 1 / (1 + 4 * following**2)
    xt = math.sqrt(alpha_t) * (2 * x - 1)
    x0 = 2 * prior(xt / math.sqrt(alpha_t) / 2 + 0.5, sigma) - 1
    mask, y = likelihood.operator(torch.ones_like(x)), likelihood.y
    # sigma_y as it is for [0, 1] images, over the noise of [-1, 1] images.
    rho = lam * 0.1**2 / ((1 - alpha_t) / alpha_t)
    x0 = 2 * (mask * y + rho * (x0 + 1) / 2) / (mask + rho) - 1
    eps = (xt - math.sqrt(alpha_t) * x0) / math.sqrt(1 - alpha_t)
    fresh = MemberRandom(0, MEMBERS).normal(x)
    spread = math.sqrt(1 - alpha_s) * (math.sqrt(1 - zeta) * eps + math.sqrt(zeta) * fresh)
    expected = (math.sqrt(alpha_s) * x0 + spread) / math.sqrt(alpha_s) / 2 + 0.5
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=0)


def test_without_fresh_noise_it_is_ddim_without():
    prior, likelihood, _ = problem()
    own = sample(DiffPIR(steps=10, zeta=0.0), likelihood, prior, seed=1).draws
    other = sample(DiffPIR(steps=10, transition="ddim", eta=0.0), likelihood, prior, seed=1).draws
    torch.testing.assert_close(own, other)


def test_without_measurement_noise_the_draws_fit_the_measurement():
    prior, likelihood, _ = problem(sigma_y=0.0)
    draws = sample(DiffPIR(steps=10), likelihood, prior, draws=2).draws
    torch.testing.assert_close(likelihood.operator(draws), likelihood.y.expand(2, -1, -1, -1), atol=1e-6, rtol=0)


def test_it_asks_the_prior_for_its_call_alone():
    """No gradient: a prior that forbids one will do, under any operator and noise that has a proximal step."""
    stiff = FunctionPrior(lambda x, sigma: (x / (1 + sigma**2)).detach(), name="stiff", differentiable=False)
    y = torch.full(SHAPE, 0.5)
    for operator, noise in (
        (Blur(gaussian_psf(1.0, 3), SHAPE, boundary="reflect"), GaussianNoise(0.1)),
        (Identity(SHAPE), PoissonNoise(0.05)),
        (Identity(SHAPE), GaussianNoise(torch.full(SHAPE, 0.1))),
    ):
        assert torch.isfinite(sample(DiffPIR(steps=4), Likelihood(y, operator, noise), stiff).draws).all()


def test_refusals():
    prior, likelihood, _ = problem()
    square = from_function(lambda x: x**2, SHAPE, linear=False)
    with pytest.raises(CapabilityError, match=r"DiffPIR needs a linear operator; .* is not one\. Use DAPS, TDS or DPS"):
        sample(DiffPIR(), dataclasses.replace(likelihood, operator=square), prior)
    with pytest.raises(ValueError, match=r"zeta of DiffPIR is 1\.5: expected a number from 0 to 1"):
        DiffPIR(zeta=1.5)
    with pytest.raises(ValueError, match=r"lam of DiffPIR is 0\.0: expected a finite number above 0"):
        DiffPIR(lam=0.0)
