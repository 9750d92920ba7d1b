"""DPS against algorithm 1 of the paper as the official code runs it: variance preserving, images in [-1, 1]."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Downsample, Mask
from invdiff.priors import GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import DPS

SHAPE = (1, 8, 8)


def variance_preserving_dps(likelihood, prior, levels, zeta: float, x_vp: Tensor, random: MemberRandom) -> Tensor:
    """Chung et al. 2023, algorithm 1, written in its own coordinates: alpha-bar and images in [-1, 1]."""
    alpha_bars = [1 / (1 + (2 * s) ** 2) for s in levels]
    y = 2 * likelihood.batched_y - 1
    for alpha_bar, following in itertools.pairwise(alpha_bars):
        x_vp = x_vp.detach().requires_grad_(True)
        sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5 / 2
        x0 = 2 * prior((x_vp / alpha_bar**0.5 + 1) / 2, sigma) - 1
        alpha = alpha_bar / following
        beta = 1 - alpha
        mean = (
            alpha**0.5 * (1 - following) / (1 - alpha_bar) * x_vp.detach()
            + following**0.5 * beta / (1 - alpha_bar) * x0.detach()
        )
        std = (beta * (1 - following) / (1 - alpha_bar)) ** 0.5
        # The operators of this test keep constants, so A maps [-1, 1] images to [-1, 1] measurements.
        distance = (y - likelihood.operator(x0)).flatten(1).norm(dim=1)
        (slope,) = torch.autograd.grad(distance.sum(), x_vp)
        x_vp = mean + std * random.normal(mean) - zeta * slope
    return (x_vp.detach() + 1) / 2


@pytest.mark.parametrize("steps", [10, 60])
def test_equals_the_variance_preserving_algorithm(steps):
    prior = GaussianPrior.power_law(SHAPE)
    operator = Downsample(2, SHAPE)
    y = operator(prior.sample(1, seed=1))[0] + 0.05
    likelihood = Likelihood(y, operator, GaussianNoise(0.05))
    solver = DPS(steps=steps, zeta=0.4, sigma_max=20.0)
    levels = solver.levels(prior)
    ours = sample(solver, likelihood, prior, draws=3, seed=4, micro_batch=3).draws
    random = MemberRandom(4, [(k, 0) for k in range(3)])
    start = 0.5 + levels[0] * random.normal(torch.empty(3, *SHAPE, dtype=torch.float64))
    alpha_bar = 1 / (1 + 4 * levels[0] ** 2)
    theirs = variance_preserving_dps(likelihood, prior, levels, 0.4, alpha_bar**0.5 * (2 * start - 1), random)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_guidance_does_not_depend_on_the_batch():
    """One norm over the batch would shrink every member's step as 1 / sqrt(batch)."""
    prior = GaussianPrior.power_law(SHAPE)
    operator = Mask((torch.arange(64).reshape(8, 8) % 2).double(), SHAPE)
    likelihood = Likelihood(operator(prior.sample(1))[0], operator, GaussianNoise(0.05))
    solver = DPS(steps=30)
    wide = sample(solver, likelihood, prior, draws=8, micro_batch=8).draws
    narrow = sample(solver, likelihood, prior, draws=8, micro_batch=1).draws
    torch.testing.assert_close(wide, narrow, atol=1e-6, rtol=0)


def test_without_a_likelihood_it_draws_from_the_prior():
    prior = GaussianPrior.power_law((1, 4, 4))
    draws = sample(DPS(steps=300), None, prior, draws=4000, micro_batch=1000).draws.double()
    torch.testing.assert_close(draws.mean(0), prior.mean, atol=0.015, rtol=0)
    torch.testing.assert_close(draws.std(0), prior.mixture.std, atol=0.01, rtol=0)
