"""Every kind of network output says the same image: conversions are exact, losses equal, scores Tweedie's."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invdiff.priors import GaussianPrior
from invdiff.priors.parametrization import (
    FAMILIES,
    KINDS,
    convert,
    from_x0,
    input_scale,
    loss,
    scalings,
    score,
    target,
    to_x0,
    weight,
)
from invdiff.schedule import VE, Flow, VPCosine, VPLinear

levels = st.floats(1e-3, 1e3)
data_stds = st.floats(0.1, 2.0)
pairs = list(itertools.product(KINDS, KINDS))


def noisy(sigma: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, eps, x0 + sigma * eps


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(sigma=levels, sigma_data=data_stds)
def test_the_target_of_a_kind_says_the_image(kind, sigma, sigma_data):
    x0, eps, x = noisy(sigma)
    f = target(kind, x0, eps, sigma, sigma_data)
    torch.testing.assert_close(to_x0(kind, f, x, sigma, sigma_data), x0, rtol=0, atol=1e-11 * (1 + sigma))


@pytest.mark.parametrize(("source", "wanted"), pairs)
@settings(deadline=None, max_examples=25)
@given(sigma=levels, sigma_data=data_stds)
def test_every_kind_converts_to_every_other_and_back(source, wanted, sigma, sigma_data):
    x0, eps, x = noisy(sigma)
    f, g = (target(kind, x0, eps, sigma, sigma_data) for kind in (source, wanted))
    # Rounding grows with the condition of the conversion: x counts sigma, and out divides.
    loose = 1e-12 * (1 + sigma) * (1 + 1 / abs(float(scalings(wanted, sigma, sigma_data).out)))
    torch.testing.assert_close(convert(f, x, sigma, source, wanted, sigma_data), g, rtol=1e-12, atol=loose)
    there = convert(f, x, sigma, source, wanted, sigma_data)
    back = convert(there, x, sigma, wanted, source, sigma_data)
    worst = 1e-12 * (1 + sigma) * (1 + 1 / abs(float(scalings(source, sigma, sigma_data).out)))
    torch.testing.assert_close(back, f, rtol=1e-9, atol=worst)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(sigma=levels, sigma_data=data_stds)
def test_the_output_that_stands_for_an_image(kind, sigma, sigma_data):
    x0, _, x = noisy(sigma)
    guess = 0.3 * x0
    f = from_x0(kind, guess, x, sigma, sigma_data)
    torch.testing.assert_close(to_x0(kind, f, x, sigma, sigma_data), guess, rtol=0, atol=1e-11 * (1 + sigma))


def test_targets_are_the_published_ones():
    """v = alpha eps - s x0 with alpha^2 + s^2 = 1; the velocity eps - x0; EDM's (x0 - c_skip x) / c_out."""
    sigma = 0.7
    x0, eps, x = noisy(sigma)
    alpha = (1 + sigma**2) ** -0.5
    torch.testing.assert_close(target("v", x0, eps, sigma), alpha * eps - sigma * alpha * x0)
    torch.testing.assert_close(target("flow", x0, eps, sigma), eps - x0)
    torch.testing.assert_close(target("score", x0, eps, sigma), -eps / sigma)
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
    torch.testing.assert_close(target("F", x0, eps, sigma), (x0 - c_skip * x) / c_out)


@settings(deadline=None)
@given(sigma=levels, sigma_data=data_stds)
def test_the_loss_is_the_same_for_every_kind(sigma, sigma_data):
    x0, eps, x = noisy(sigma)
    wrong = x0 + 0.1 * noisy(sigma, seed=1)[0]
    expected = (wrong - x0).square().flatten(1).mean(1) * (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    for kind in KINDS:
        output = from_x0(kind, wrong, x, sigma, sigma_data)
        torch.testing.assert_close(loss(kind, output, x0, eps, sigma, sigma_data), expected, rtol=1e-5, atol=0)


def test_edm_starts_from_a_loss_of_one_and_weight_one():
    sigma = torch.logspace(-3, 3, 13)
    torch.testing.assert_close(weight("F", sigma), torch.ones(13, dtype=torch.float64))
    x0, eps, _ = noisy(1.0)
    silent = [float(loss("F", 0 * x0, 0.5 * x0, eps, s).mean()) for s in sigma.tolist()]
    assert all(0.6 < value < 1.5 for value in silent)


def test_one_sigma_per_member():
    x0, eps, _ = noisy(1.0)
    sigma = torch.tensor([0.1, 3.0])
    x = x0 + sigma[:, None, None, None].double() * eps
    for kind in KINDS:
        f = target(kind, x0, eps, sigma)
        torch.testing.assert_close(to_x0(kind, f, x, sigma), x0)
        alone = to_x0(kind, f[1:], x[1:], sigma[1])
        torch.testing.assert_close(to_x0(kind, f, x, sigma)[1:], alone)
        assert scalings(kind, sigma).skip.shape == (2,)


def test_float32_images_stay_float32_and_unwritten():
    x0, eps, x = (t.float() for t in noisy(0.01))
    before = x.clone()
    for kind in KINDS:
        f = target(kind, x0, eps, 0.01)
        assert f.dtype == to_x0(kind, f, x, 0.01).dtype == torch.float32
        torch.testing.assert_close(convert(f, x, 0.01, kind, "eps"), eps, atol=2e-4, rtol=0)
    assert torch.equal(x, before)


@settings(deadline=None)
@given(sigma=levels)
def test_the_input_scale_is_the_scale_of_the_process(sigma):
    for family, process in (("vp", VPLinear()), ("vp", VPCosine()), ("ve", VE()), ("flow", Flow())):
        expected = process.scale(process.time(sigma))
        torch.testing.assert_close(input_scale(family, sigma), expected, rtol=1e-6, atol=0)
    assert float(input_scale("edm", sigma, 0.3)) == pytest.approx((sigma**2 + 0.09) ** -0.5)


def test_the_score_of_a_gaussian():
    prior = GaussianPrior.power_law((1, 4, 4))
    x = prior.sample(3) + 0.2 * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    covariance = prior.covariance + 0.2**2 * torch.eye(16, dtype=torch.float64)
    expected = -torch.linalg.solve(covariance, (x - prior.mean).flatten(1).T).T.reshape(x.shape)
    torch.testing.assert_close(score(x, prior(x, 0.2), 0.2), expected)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda x: to_x0("noise", x, x, 1.0), "output is 'noise': expected one of eps, x0, v, F, flow, score"),
        (lambda x: convert(x, x, 1.0, "eps", "V"), "output is 'V': expected one of"),
        (lambda x: target("epsilon", x, x, 1.0), "output is 'epsilon': expected one of"),
        (lambda x: from_x0("eps", x, x, 0.0), "sigma is 0, where an image has no eps: expected noise levels above 0"),
        (lambda x: score(x, x, torch.tensor([1.0, 0.0])), "sigma is 0, where an image has no score"),
        (lambda x: input_scale("VP", 1.0), f"a process is 'VP': expected one of {', '.join(FAMILIES)}"),
    ],
)
def test_wrong_use_is_refused_in_a_sentence(use, sentence):
    with pytest.raises(ValueError, match=sentence):
        use(torch.ones(2, 1, 2, 2))
