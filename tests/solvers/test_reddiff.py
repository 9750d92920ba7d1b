"""RED-diff against the official code's loss and optimiser on [-1, 1] images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Downsample, Identity, Mask, from_function
from invdiff.priors import GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import CapabilityError
from invdiff.solvers.reddiff import REDDiff

SHAPE = (1, 8, 8)


def variance_preserving(likelihood, prior, levels, mu: Tensor, random: MemberRandom) -> Tensor:
    """Mardani et al. 2024, algorithm 1, in their units: alpha-bar, [-1, 1] images, lambda 0.25 / SNR, Adam at 0.1."""
    mu = mu.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([mu], lr=0.1, betas=(0.9, 0.99))
    y = 2 * likelihood.batched_y - 1
    for level in levels:
        alpha = 1 / (1 + (2 * level) ** 2)
        noise = random.normal(mu)
        noised = alpha**0.5 * mu.detach() + (1 - alpha) ** 0.5 * noise
        x0 = 2 * prior((noised / alpha**0.5 + 1) / 2, level) - 1
        seen = (noised - alpha**0.5 * x0) / (1 - alpha) ** 0.5
        # The operator of this test keeps constants, so A maps [-1, 1] images to [-1, 1] measurements.
        misfit = ((y - likelihood.operator(mu)) ** 2).sum() / 2
        loss = 0.25 * ((1 - alpha) / alpha) ** 0.5 * ((seen - noise) * mu).sum() + misfit
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (mu.detach() + 1) / 2


@pytest.mark.parametrize("steps", [5, 200])
def test_equals_the_official_loss_on_symmetric_images(steps):
    prior, operator = GaussianPrior.power_law(SHAPE), Downsample(2, SHAPE)
    y = operator(prior.sample(1, seed=1))[0] + 0.05
    likelihood = Likelihood(y, operator, GaussianNoise(0.05))
    solver = REDDiff(steps=steps)
    ours = sample(solver, likelihood, prior, draws=3, seed=4, micro_batch=3).draws
    random = MemberRandom(4, [(k, 0) for k in range(3)])
    start = solver.start(likelihood, prior, torch.empty(3, *SHAPE, dtype=torch.float64), random)
    theirs = variance_preserving(likelihood, prior, solver.levels(prior)[:-1], 2 * start - 1, random)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_an_isotropic_gaussian_settles_between_measurement_and_prior():
    """With one noise level s the slope vanishes where lam (1 - c)(mu - m) = y - mu, c = v / (v + s^2)."""
    v, level, lam = 0.04, 0.2, 0.5
    shrink = lambda x, sigma: 0.5 + v / (v + sigma**2) * (x - 0.5)  # noqa: E731
    shape = (1, 1, 500)
    likelihood = Likelihood(torch.full(shape, 0.8), Identity(shape), GaussianNoise(0.05))

    class OneLevel(REDDiff):
        def levels(self, denoiser):
            return [level] * self.steps + [0.0]

    mu = sample(OneLevel(steps=1000, lam=lam, lr=2e-3), likelihood, shrink, draws=2).draws
    pull = lam * (1 - v / (v + level**2))
    assert float(mu.mean()) == pytest.approx((0.8 + pull * 0.5) / (1 + pull), abs=0.003)
    assert float(mu.std()) < 0.02


def test_the_noise_of_the_measurement_does_not_enter():
    prior, mask = GaussianPrior.power_law(SHAPE), (torch.arange(64).reshape(8, 8) % 2).float()
    y = Mask(mask, SHAPE)(prior.sample(1, seed=1).float())[0]
    start = torch.full(SHAPE, 0.5)
    draws = [
        sample(REDDiff(steps=20), Likelihood(y, Mask(mask, SHAPE), noise), prior, start=start, start_sigma=1.0).draws
        for noise in (GaussianNoise(0.0), GaussianNoise(0.3), GaussianNoise(torch.rand(SHAPE)))
    ]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_a_nonlinear_operator_is_differentiated_at_mu():
    """With a denoiser that agrees with everything the descent ends at x^2 = y."""
    square = from_function(lambda x: x**2, SHAPE, linear=False)
    y = torch.linspace(0.1, 0.9, 64).reshape(SHAPE)
    agree = lambda x, sigma: x  # noqa: E731
    mu = sample(REDDiff(steps=400, lr=0.01, lam=1e-9), Likelihood(y, square, GaussianNoise(0.1)), agree).draws
    torch.testing.assert_close(mu[0], y.sqrt(), atol=1e-3, rtol=0)


def test_without_a_likelihood_it_says_what_draws():
    with pytest.raises(CapabilityError, match="REDDiff needs a likelihood: to draw from the prior alone use DDPM"):
        sample(REDDiff(), None, GaussianPrior.power_law(SHAPE))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lam": 0.0}, r"lam of REDDiff is 0\.0: expected a finite number above 0"),
        ({"lr": "fast"}, "lr of REDDiff is 'fast': expected a number"),
        ({"steps": 1}, "steps of REDDiff is 1: expected a whole number from 2 on"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        REDDiff(**settings)
