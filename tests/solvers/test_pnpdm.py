"""PnP-DM: each conditional against its closed form, and the chain against the law it settles in."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Downsample, Identity, LinearOperator, Mask, from_function, gaussian_psf
from invdiff.priors import FunctionPrior, GaussianPrior, as_prior
from invdiff.random import MemberRandom
from invdiff.schedule import noise_levels
from invdiff.solvers import CapabilityError, pnpdm
from invdiff.solvers.pnpdm import PnPDM

SHAPE = (1, 4, 4)
MASK = (torch.arange(16).reshape(4, 4) % 2).float()


def operators() -> dict[str, LinearOperator]:
    return {
        "mask": Mask(MASK, SHAPE),
        "blur": Blur(gaussian_psf(0.8, 3), SHAPE),
        "down": Downsample(2, SHAPE),
        "no svd": Blur(gaussian_psf(0.8, 3), SHAPE, boundary="reflect"),
    }


def dense(operator: LinearOperator) -> Tensor:
    return operator(torch.eye(16, dtype=torch.float64).reshape(16, *SHAPE)).flatten(1).T


def members(count: int) -> MemberRandom:
    return MemberRandom(0, [(k, 0) for k in range(count)])


@pytest.mark.parametrize("name", list(operators()))
@pytest.mark.parametrize("per_pixel", [False, True])
def test_the_likelihood_step_is_an_exact_draw(name, per_pixel):
    """Mean Q^-1 (A^T W y + x / rho^2) and covariance Q^-1, with Q = A^T W A + I / rho^2 and W the inverse variances."""
    operator, rho, count = operators()[name], 0.3, 4000
    size = operator(torch.zeros(1, *SHAPE))[0]
    y = torch.linspace(0.2, 0.9, size.numel()).reshape(size.shape)
    sigma = 0.2 + 0.2 * torch.linspace(0, 1, size.numel()).reshape(size.shape) if per_pixel else 0.3
    likelihood = Likelihood(y, operator, GaussianNoise(sigma))
    x = torch.linspace(0, 1, 16).reshape(1, *SHAPE)
    z = PnPDM().explain(likelihood, x.expand(count, *SHAPE), rho, members(count)).double().flatten(1)
    matrix = dense(operator)
    weight = torch.as_tensor(sigma).double().expand_as(y).flatten() ** -2
    covariance = torch.linalg.inv(matrix.T @ (weight[:, None] * matrix) + torch.eye(16) / rho**2)
    mean = covariance @ (matrix.T @ (weight * y.double().flatten()) + x.double().flatten() / rho**2)
    torch.testing.assert_close(z.mean(0), mean, atol=4.5 * rho / count**0.5, rtol=0)
    torch.testing.assert_close(torch.cov(z.T), covariance, atol=0.009, rtol=0)


@pytest.mark.parametrize("name", ["mask", "down"])
def test_without_noise_the_likelihood_step_meets_the_measurement(name):
    operator = operators()[name]
    y = operator(torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)).double())
    likelihood = Likelihood(y[0], operator, GaussianNoise(0.0))
    z = PnPDM().explain(likelihood, torch.full((3, *SHAPE), 0.5, dtype=torch.float64), 0.3, members(3))
    torch.testing.assert_close(operator(z), y.expand(3, *y.shape[1:]), atol=1e-6, rtol=0)
    assert float(z.std(0).max()) > 0.1


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of independent pixels N(0.5, 0.2^2)."""
    return 0.5 + 0.2**2 / (0.2**2 + sigma**2) * (x - 0.5)


def test_the_prior_step_draws_the_image_behind_a_noised_one():
    """Of a Gaussian: mean D(z, rho) and variance 1 / (1 / v + 1 / rho^2), as far as the steps are short."""
    z = torch.full((4, 1, 1, 5000), 0.9)
    levels = noise_levels("karras", 200, 0.001, 0.15)
    x = pnpdm.diffuse(as_prior(shrink), z, levels, members(4)).double()
    assert float(x.mean()) == pytest.approx(float(shrink(torch.tensor(0.9), torch.tensor(0.15))), abs=0.003)
    assert float(x.std()) == pytest.approx((1 / (0.2**-2 + 0.15**-2)) ** 0.5, rel=0.02)


def test_the_diffusion_takes_the_official_steps_on_symmetric_images():
    """Wu et al. 2024's Euler steps of the reverse SDE in their units, images in [-1, 1]; the last one is D."""
    levels = [0.4, 0.2, 0.1, 0.0]
    z = torch.linspace(0, 1, 12).reshape(2, 1, 2, 3)
    ours = pnpdm.diffuse(as_prior(shrink), z, levels, members(2))
    x, random = 2 * z - 1, members(2)
    for here, there in itertools.pairwise([2 * level for level in levels]):
        d = 2 * shrink((x + 1) / 2, torch.tensor(here / 2)) - 1
        if there > 0:
            x = x + 2 * (here - there) * here * (d - x) / here**2
            x = x + (here - there) ** 0.5 * (2 * here) ** 0.5 * random.normal(x)
        else:
            x = d
    torch.testing.assert_close(ours, (x + 1) / 2)


def test_a_prior_that_serves_no_low_level_leaves_none_of_its_noise():
    """Of pixels that are all but 0.5 the draws are too, however high the lowest level."""
    shape = (1, 1, 2000)
    narrow = FunctionPrior(lambda x, sigma: 0.5 + 1e-4 / (1e-4 + sigma**2) * (x - 0.5), sigma_range=(0.05, 5.0))
    likelihood = Likelihood(torch.full(shape, 0.5), Identity(shape), GaussianNoise(0.2))
    draws = sample(PnPDM(steps=10), likelihood, narrow, draws=2).draws
    assert 0 < float(draws.std()) < 0.01


def test_the_whole_chain_on_independent_pixels():
    solver = PnPDM(steps=40, sigma_max=0.3, rho_min=0.1, prior_steps=200)
    shape = (1, 1, 4000)
    likelihood = Likelihood(torch.full(shape, 0.7), Identity(shape), GaussianNoise(0.05))
    x = sample(solver, likelihood, shrink, draws=4, micro_batch=4).draws.double()
    noise = 0.05**2 + solver.rho_min**2
    assert float(x.mean()) == pytest.approx(0.5 + 0.2**2 / (0.2**2 + noise) * 0.2, abs=0.005)
    assert float(x.std()) == pytest.approx((1 / (0.2**-2 + 1 / noise)) ** 0.5, rel=0.03)


def exact_prior_step(prior: GaussianPrior):
    """p(x) N(z; x, rho^2 I) drawn at once, in place of the diffusion."""
    values, vectors = prior.mixture.eigen

    def draw(denoiser, z, levels, random):
        mean = prior(z, levels[0])
        spread = (values[0] * levels[0] ** 2 / (values[0] + levels[0] ** 2)).sqrt()
        eps = random.normal(z).double().flatten(1)
        return mean + (((eps @ vectors[0]) * spread) @ vectors[0].T).reshape(z.shape).to(z)

    return draw


@pytest.mark.parametrize(("name", "rho"), [("mask", 0.02), ("blur", 0.15), ("no svd", 0.03)])
def test_with_an_exact_prior_step_it_settles_in_the_posterior_of_a_noisier_measurement(name, rho, monkeypatch):
    """Covariance sigma_y^2 I + rho^2 A A^T: the posterior itself as rho vanishes."""
    prior, operator, count = GaussianPrior.power_law(SHAPE), operators()[name], 800
    monkeypatch.setattr(pnpdm, "diffuse", exact_prior_step(prior))
    y = operator(prior.sample(1, seed=1).float())[0]
    solver = PnPDM(steps=100, sigma_max=0.5, decay=0.95, rho_min=rho)
    likelihood = Likelihood(y, operator, GaussianNoise(0.05))
    draws = sample(solver, likelihood, prior, draws=count, micro_batch=count).draws.double().flatten(1)
    matrix, covariance = dense(operator), prior.covariance
    noise = 0.05**2 * torch.eye(len(matrix)) + rho**2 * matrix @ matrix.T
    gain = torch.linalg.solve(matrix @ covariance @ matrix.T + noise, matrix @ covariance).T
    mean = 0.5 + gain @ (y.double().flatten() - matrix @ torch.full((16,), 0.5, dtype=torch.float64))
    expected = covariance - gain @ matrix @ covariance
    std = expected.diagonal().sqrt()
    assert float(((draws.mean(0) - mean) / std).abs().max()) < 4.5 / count**0.5
    torch.testing.assert_close(draws.std(0), std, atol=0, rtol=0.1)
    ratio = float(torch.cov(draws.T).trace() / expected.trace())
    assert ratio == pytest.approx(1, abs=0.04)
    if rho < 0.1:
        exact = prior.posterior(likelihood)
        assert float(((draws.mean(0) - exact.mean.flatten()) / std).abs().max()) < 0.25
        assert float(draws.std(0).square().mean() / exact.std.square().mean()) == pytest.approx(1, abs=0.12)


def test_rho_falls_as_in_the_official_code():
    """10 times 0.9^k and at least 0.3 for [-1, 1] images; fewer iterations go as far."""
    prior = GaussianPrior.power_law(SHAPE)
    expected = [max(10 * 0.9**k, 0.3) / 2 for k in range(100)]
    assert PnPDM().levels(prior) == pytest.approx([*expected, 0.0])
    assert PnPDM(steps=50).levels(prior) == pytest.approx([*expected[::2], 0.0])


def test_the_denoiser_is_called_at_rho_and_below():
    asked = []

    def watch(x, sigma):
        asked.append(float(sigma))
        return x / (1 + sigma**2)

    likelihood = Likelihood(torch.ones(SHAPE), Identity(SHAPE), GaussianNoise(0.05))
    prior = FunctionPrior(watch, sigma_range=(0.01, 20.0))
    sample(PnPDM(steps=2, sigma_max=0.5, decay=0.99, prior_steps=30), likelihood, prior)
    starts = [k for k in range(len(asked)) if k == 0 or asked[k] > asked[k - 1]]
    assert [asked[k] for k in starts] == pytest.approx([0.5, 0.5 * 0.99**50])
    assert min(asked) == pytest.approx(0.01)
    assert len(set(asked)) == len(asked) - len([a for a in asked[starts[1] + 1 :] if a in asked[: starts[1]]])


def test_a_nonlinear_operator_gives_the_law_of_a_grid():
    """One pixel value, y = x^2, prior N(0.5, 0.2^2): p(x, z | y) on a grid, x by summing over z."""
    square = from_function(lambda x: x**2, (1, 1, 3000), linear=False)
    likelihood = Likelihood(torch.full((1, 1, 3000), 0.3), square, GaussianNoise(0.1))
    solver = PnPDM(steps=30, sigma_max=0.2, rho_min=0.1, prior_steps=200, lr=0.03, langevin_steps=60)
    x = sample(solver, likelihood, shrink, draws=4, micro_batch=4).draws.double()
    grid = torch.linspace(-0.7, 1.7, 1201, dtype=torch.float64)
    joint = -((grid[:, None] - 0.5) ** 2) / (2 * 0.2**2) - (grid[:, None] - grid) ** 2 / (2 * 0.1**2)
    weight = (joint - (0.3 - grid**2) ** 2 / (2 * 0.1**2)).flatten().softmax(0).reshape(1201, 1201).sum(1)
    mean = float((weight * grid).sum())
    assert float(x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(x.std()) == pytest.approx(float((weight * (grid - mean) ** 2).sum().sqrt()), rel=0.04)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Likelihood(torch.ones(SHAPE), Identity(SHAPE), PoissonNoise(0.1)),
            "PnPDM draws from a Gaussian likelihood; this is PoissonNoise. Use DiffPIR, PnPADMM or REDFP",
        ),
        (
            lambda: Likelihood(
                torch.ones(SHAPE), from_function(lambda x: x**2, SHAPE, linear=False), GaussianNoise(0.0)
            ),
            "sigma_y is 0, where a Langevin step of PnPDM has no length: give a nonlinear operator a small sigma",
        ),
        (lambda: None, "PnPDM needs a likelihood: to draw from the prior alone use DDPM or Heun"),
    ],
)
def test_what_it_cannot_do_is_said(make, sentence):
    with pytest.raises(CapabilityError, match=sentence):
        sample(PnPDM(), make(), GaussianPrior.power_law(SHAPE))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prior_steps": 1}, "prior_steps of PnPDM is 1: expected a whole number from 2 on"),
        ({"langevin_steps": 0}, "langevin_steps of PnPDM is 0: expected a whole number from 1 on"),
        ({"rho_min": 0.0}, r"rho_min of PnPDM is 0\.0: expected a finite number above 0"),
        ({"decay": 1.1}, r"decay of PnPDM is 1\.1: expected a number above 0 and at most 1"),
        ({"lr": float("inf")}, "lr of PnPDM is inf: expected a finite number above 0"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        PnPDM(**settings)
