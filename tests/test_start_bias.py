"""The bias of a finite sigma_max: the closed form is that of the samplers, and the FFT prior is what it says."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from benchmarks import start_bias
from benchmarks.samplers import propagate
from invdiff import solvers
from invdiff.random import MemberRandom


@pytest.mark.parametrize("sigma", [10.0, 40.0])
@pytest.mark.parametrize(("name", "closed"), [("heun", start_bias.ode), ("pf_ode", start_bias.ode)])
def test_the_ode_leaves_a_share_of_the_start(name, closed, sigma):
    lam, prior_mean = 75.0**2, torch.tensor([0.1], dtype=torch.float64)
    solver = dataclasses.replace(solvers.load(name, steps=60), sigma_max=sigma)
    mean, variance = propagate(solver, prior_mean, torch.tensor([lam], dtype=torch.float64))
    share, ratio = closed(lam, sigma)
    assert math.sqrt(float(variance) / lam) == pytest.approx(ratio, rel=4e-3)
    assert float(mean - 0.1) / 0.4 == pytest.approx(share, rel=4e-3)


@pytest.mark.parametrize("sigma", [10.0, 40.0])
def test_the_sde_forgets_more_of_it(sigma):
    lam, prior_mean = 75.0**2, torch.tensor([0.1], dtype=torch.float64)
    solver = solvers.DPMppSDE(steps=200, sigma_max=sigma)
    mean, variance = propagate(solver, prior_mean, torch.tensor([lam], dtype=torch.float64))
    share, ratio = start_bias.sde(lam, sigma)
    assert math.sqrt(float(variance) / lam) == pytest.approx(ratio, rel=1e-2)
    assert float(mean - 0.1) / 0.4 == pytest.approx(share, rel=1e-2)
    assert ratio > start_bias.ode(lam, sigma)[1]


def test_the_fft_prior_is_an_exact_denoiser_with_the_measured_mean(monkeypatch):
    """Noise goes, images of the prior stay, and the mean brightness is shrunk by lambda / (lambda + sigma^2)."""
    monkeypatch.setattr(start_bias, "SIDE", 16)
    prior = start_bias.stationary()
    assert float(start_bias.spectrum()[0, 0, 0]) == pytest.approx((0.294 * 16) ** 2)
    assert float(start_bias.spectrum()[:, 0, 1].sum() / start_bias.spectrum()[:, 0, 2].sum()) == pytest.approx(4.0)
    x = 0.41 + MemberRandom(0, [(0, 0), (1, 0)]).normal(torch.empty(2, 3, 16, 16))
    before, after = start_bias.brightness(x - 0.41), start_bias.brightness(prior(x, 2.0) - 0.41)
    lam = (0.294 * 16) ** 2
    torch.testing.assert_close(after, before * lam / (lam + 4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior(x, 1e-4), x, rtol=0, atol=1e-3)
