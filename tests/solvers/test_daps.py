"""DAPS against the official code's steps on [-1, 1] images, and against posteriors where the method is exact."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Downsample, Identity, Mask, from_function, gaussian_psf
from invdiff.priors import GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import CapabilityError, daps
from invdiff.solvers.daps import DAPS

SHAPE = (1, 8, 8)


def on_symmetric_images(likelihood, prior, solver: DAPS, x: Tensor, random: MemberRandom) -> Tensor:
    """Zhang et al. 2025, algorithm 1, in their units: images in [-1, 1], tau 0.01, steps of 1e-4, their loop."""
    sigmas = [2 * s for s in solver.levels(prior)]
    y, tau = 2 * likelihood.batched_y - 1, 0.01
    for k, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        p = 7
        steps = [(sigma ** (1 / p) + i / 4 * (0.01 ** (1 / p) - sigma ** (1 / p))) ** p for i in range(5)]
        x0hat = x
        for here, there in itertools.pairwise([*steps, 0.0]):
            score = (2 * prior((x0hat + 1) / 2, here / 2) - 1 - x0hat) / here**2
            x0hat = x0hat - (there - here) * here * score
        x0y, lr = x0hat, 1e-4 * (1 - 0.99 * k / (len(sigmas) - 1))
        for first in range(0, solver.langevin_steps, 10):
            for eps in random.normal(torch.empty(x.shape[0], min(10, solver.langevin_steps - first), *SHAPE)).unbind(1):
                # The operator of this test keeps constants, so A maps [-1, 1] images to [-1, 1] measurements.
                slope = likelihood.operator.adjoint(likelihood.operator(x0y) - y) / tau**2 + (x0y - x0hat) / sigma**2
                x0y = x0y - lr * slope + (2 * lr) ** 0.5 * eps
        x = x0y + following * random.normal(x) if following > 0 else x0y
    return (x + 1) / 2


def test_equals_the_official_steps_on_symmetric_images():
    prior, operator = GaussianPrior.power_law(SHAPE), Downsample(2, SHAPE)
    y = operator(prior.sample(1, seed=1))[0] + 0.05
    likelihood = Likelihood(y, operator, GaussianNoise(0.05))
    solver = DAPS(steps=6, langevin_steps=25)
    ours = sample(solver, likelihood, prior, draws=3, seed=4, micro_batch=3).draws
    random = MemberRandom(4, [(k, 0) for k in range(3)])
    start = 0.5 + 40.0 * random.normal(torch.empty(3, *SHAPE, dtype=torch.float64))
    theirs = on_symmetric_images(likelihood, prior, solver, 2 * start - 1, random)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


class Isotropic(DAPS):
    """p(x0 | x) of a prior N(m, s^2 I) is N(D(x), s^2 sigma^2 / (s^2 + sigma^2) I): with it the method is exact."""

    def spread(self, sigma: float) -> float:
        return 0.2 * sigma / (0.2**2 + sigma**2) ** 0.5


def exact_inner(likelihood, x, centre, spread, step, count, random):
    """p(y | x0) N(x0; centre, spread^2) drawn at once, as the least squares of noised data."""
    y = likelihood.batched_y.to(x).expand(x.shape[0], *likelihood.operator.out_shape)
    noised = Likelihood(likelihood.noise.sample(y, random), likelihood.operator, likelihood.noise)
    return noised.prox(centre + spread * random.normal(x), spread**-2)


def isotropic() -> GaussianPrior:
    return GaussianPrior(torch.full((1, 3, 3), 0.5), 0.04 * torch.eye(9))


@pytest.mark.parametrize("kind", ["mask", "blur"])
def test_with_an_exact_inner_draw_it_is_the_posterior_of_an_isotropic_gaussian(kind, monkeypatch):
    monkeypatch.setattr(daps, "langevin", exact_inner)
    shape = (1, 3, 3)
    mask = (torch.arange(9).reshape(3, 3) % 2).float()
    operator = Mask(mask, shape) if kind == "mask" else Blur(gaussian_psf(0.7, 3), shape)
    y = operator(isotropic().sample(1, seed=3).float())[0]
    likelihood = Likelihood(y, operator, GaussianNoise(0.1))
    draws = sample(Isotropic(steps=20, ode_steps=1, tau=None), likelihood, isotropic(), draws=4000, micro_batch=1000)
    exact = isotropic().posterior(likelihood)
    torch.testing.assert_close(draws.draws.double().mean(0), exact.mean, atol=0.013, rtol=0)
    covariance = torch.cov(draws.draws.double().flatten(1).T)
    torch.testing.assert_close(covariance, exact.covariance, atol=0.0035, rtol=0)


SLOW = Isotropic(steps=10, sigma_max=5.0, ode_steps=1, langevin_steps=150, lr=0.05, lr_ratio=0.2, tau=None)


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of independent pixels N(0.5, 0.2^2)."""
    return 0.5 + 0.2**2 / (0.2**2 + sigma**2) * (x - 0.5)


def test_its_langevin_steps_reach_the_posterior_of_an_isotropic_gaussian():
    shape = (1, 2, 1000)
    mask = torch.tensor([1.0, 0.0])[:, None].expand(2, 1000)
    likelihood = Likelihood(torch.full(shape, 0.8) * mask, Mask(mask, shape), GaussianNoise(0.1))
    draws = sample(SLOW, likelihood, shrink, draws=8, micro_batch=8).draws.double()
    for row, mean, std in ((0, 0.74, (0.2**-2 + 0.1**-2) ** -0.5), (1, 0.5, 0.2)):
        assert float(draws[:, :, row].mean()) == pytest.approx(mean, abs=0.01)
        assert float(draws[:, :, row].std()) == pytest.approx(std, rel=0.04)


def test_a_nonlinear_operator_gives_the_posterior_of_a_grid():
    square = from_function(lambda x: x**2, (1, 3, 1000), linear=False)
    y = torch.tensor([0.05, 0.3, 0.6])
    likelihood = Likelihood(y[:, None].expand(1, 3, 1000), square, GaussianNoise(0.1))
    draws = sample(SLOW, likelihood, shrink, draws=8, micro_batch=8).draws.double()
    grid = torch.linspace(-2, 3, 5001, dtype=torch.float64)[:, None]
    weight = (-((y - grid**2) ** 2) / (2 * 0.1**2) - (grid - 0.5) ** 2 / (2 * 0.2**2)).softmax(0)
    mean = (weight * grid).sum(0)
    std = (weight * (grid - mean) ** 2).sum(0).sqrt()
    torch.testing.assert_close(draws.mean((0, 1, 3)), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std((0, 1, 3)), std, atol=0, rtol=0.08)


def test_tau_stands_for_the_noise_whatever_it_is():
    y = torch.full(SHAPE, 0.6)
    quiet, loud = (Likelihood(y, Identity(SHAPE), GaussianNoise(sigma)) for sigma in (0.0, 0.3))
    prior = GaussianPrior.power_law(SHAPE)
    assert torch.equal(sample(DAPS(steps=3), quiet, prior).draws, sample(DAPS(steps=3), loud, prior).draws)
    apart = [sample(DAPS(steps=3, tau=tau), loud, prior).draws for tau in (None, 0.3)]
    torch.testing.assert_close(apart[0], apart[1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Likelihood(torch.ones(SHAPE), Identity(SHAPE), PoissonNoise(0.1)),
            "this is PoissonNoise. Use DiffPIR, PnPADMM",
        ),
        (
            lambda: Likelihood(torch.ones(SHAPE), Identity(SHAPE), GaussianNoise(0.0)),
            "sigma_y is 0, where .* give a tau",
        ),
        (lambda: None, "DAPS needs a likelihood: to draw from the prior alone use DDPM"),
    ],
)
def test_what_it_cannot_do_is_said(make, sentence):
    with pytest.raises(CapabilityError, match=sentence):
        sample(DAPS(tau=None), make(), GaussianPrior.power_law(SHAPE))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"ode_steps": 0}, "ode_steps of DAPS is 0: expected a whole number from 1 on"),
        ({"langevin_steps": 2.5}, r"langevin_steps of DAPS is 2\.5: expected a whole number"),
        ({"lr": -1.0}, r"lr of DAPS is -1\.0: expected a finite number above 0"),
        ({"tau": 0.0}, r"tau of DAPS is 0\.0: expected a finite number above 0"),
        ({"lr_ratio": "a"}, "lr_ratio of DAPS is 'a': expected a number"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        DAPS(**settings)
