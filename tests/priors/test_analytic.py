"""The exact priors against automatic differentiation, Monte Carlo and torch.distributions."""

from __future__ import annotations

import pytest
import torch

from invdiff import Likelihood
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Downsample, Identity, Mask, Matrix
from invdiff.priors import GaussianMixturePrior, GaussianPrior


def mixture() -> GaussianMixturePrior:
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(3, 4, 4, generator=generator).double()
    covariances = roots @ roots.mT + 0.1 * torch.eye(4)
    means = 3 * torch.randn(3, 1, 2, 2, generator=generator)
    return GaussianMixturePrior(torch.tensor([0.2, 0.5, 0.3]), means, covariances)


def density(prior: GaussianMixturePrior) -> torch.distributions.Distribution:
    m = prior.mixture
    parts = torch.distributions.MultivariateNormal(m.means, m.covariances)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(m.weights), parts)


def test_log_prob_equals_torch_distributions():
    prior = mixture()
    x = prior.sample(20, seed=1)
    torch.testing.assert_close(prior.log_prob(x), density(prior).log_prob(x.flatten(1)))


@pytest.mark.parametrize("sigma", [0.05, 0.7, 5.0])
def test_denoiser_is_tweedies_formula_on_the_smoothed_density(sigma):
    prior = mixture()
    m = prior.mixture
    smoothed = GaussianMixturePrior(m.weights, m.means.reshape(3, 1, 2, 2), m.covariances + sigma**2 * torch.eye(4))
    x = smoothed.sample(10, seed=2).requires_grad_(True)
    (score,) = torch.autograd.grad(density(smoothed).log_prob(x.flatten(1)).sum(), x)
    torch.testing.assert_close(prior(x.detach(), sigma), x.detach() + sigma**2 * score)


def test_denoiser_takes_one_sigma_per_member_and_keeps_the_dtype():
    prior = mixture()
    x = prior.sample(2).float()
    both = prior(x, torch.tensor([0.1, 2.0]))
    assert both.dtype == torch.float32
    torch.testing.assert_close(both[1], prior(x[1:], 2.0)[0])
    torch.testing.assert_close(both[0], prior(x[:1], 0.1)[0])


def test_samples_have_the_moments():
    prior = mixture()
    x = prior.sample(200_000, seed=3).flatten(1)
    torch.testing.assert_close(x.mean(0), prior.mean.flatten(), atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), prior.covariance, atol=0.15, rtol=0)
    assert torch.equal(prior.sample(3, seed=4), prior.sample(3, seed=4))
    assert not torch.equal(prior.sample(3, seed=0), prior.sample(3, seed=1))


def test_posterior_density_is_prior_times_likelihood():
    prior = mixture()
    operator = Matrix(torch.randn(2, 4, generator=torch.Generator().manual_seed(5)), in_shape=(1, 2, 2))
    likelihood = Likelihood(torch.tensor([0.3, -1.0], dtype=torch.float64), operator, GaussianNoise(0.4))
    posterior = prior.posterior(likelihood)
    x = prior.sample(30, seed=6)
    difference = posterior.log_prob(x) - prior.log_prob(x) - likelihood.log_prob(x)
    torch.testing.assert_close(difference, difference[:1].expand(30), atol=1e-8, rtol=1e-8)


def test_gaussian_posterior_by_importance_sampling():
    prior = GaussianPrior.power_law((1, 2, 3))
    operator = Mask(torch.tensor([[1.0, 0, 1], [0, 1, 0]]), (1, 2, 3))
    y = torch.tensor([[[0.7, 0, 0.2], [0, 0.4, 0]]], dtype=torch.float64)
    likelihood = Likelihood(y, operator, GaussianNoise(0.2))
    x = prior.sample(400_000, seed=7)
    weight = likelihood.log_prob(x).softmax(0)
    posterior = prior.posterior(likelihood)
    mean = torch.einsum("b,bchw->chw", weight, x)
    torch.testing.assert_close(mean, posterior.mean, atol=3e-3, rtol=0)
    std = torch.einsum("b,bchw->chw", weight, (x - mean) ** 2).sqrt()
    torch.testing.assert_close(std, posterior.std, atol=3e-3, rtol=0)


def test_power_law_has_the_std_and_the_spectrum():
    prior = GaussianPrior.power_law((2, 8, 8), std=0.15, mean=0.4)
    torch.testing.assert_close(prior.mixture.std, torch.full((2, 8, 8), 0.15, dtype=torch.float64))
    assert float(prior.mean.mean()) == pytest.approx(0.4)
    power = torch.fft.fft2(prior.sample(20_000)[:, 0] - 0.4, norm="ortho").abs().square().mean(0)
    assert float(power[0, 1] / power[0, 2]) == pytest.approx(4, rel=0.05)
    assert float(power[2, 0] / power[0, 4]) == pytest.approx(4, rel=0.05)


def test_moving_to_where_it_lies_copies_nothing():
    prior = GaussianPrior.power_law((1, 3, 3))
    assert prior.to("cpu") is prior
    assert prior.to(torch.device("cpu", 0)) is prior
    assert prior.to("meta") is not prior


def test_posterior_without_noise_fixes_what_is_measured():
    prior = GaussianPrior.power_law((1, 4, 4))
    operator = Downsample(2, (1, 4, 4))
    y = torch.full((1, 2, 2), 0.6, dtype=torch.float64)
    posterior = prior.posterior(Likelihood(y, operator, GaussianNoise(0.0)))
    torch.testing.assert_close(operator(posterior.mean[None])[0], y)
    torch.testing.assert_close(operator(posterior.sample(5)), y.expand(5, 1, 2, 2), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no density"):
        posterior.log_prob(posterior.mean[None])


def test_wrong_use_is_refused_in_a_sentence():
    prior = GaussianPrior.power_law((1, 3, 3))
    y = torch.zeros(1, 3, 3)
    with pytest.raises(ValueError, match="needs a linear operator and GaussianNoise: got Identity and PoissonNoise"):
        prior.posterior(Likelihood(y, Identity((1, 3, 3)), PoissonNoise(0.1)))
    with pytest.raises(ValueError, match="one measurement at a time: got 2"):
        prior.posterior(Likelihood(y.expand(2, 1, 3, 3), Identity((1, 3, 3)), GaussianNoise(0.1)))
    with pytest.raises(ValueError, match=r"covariance has shape \(3, 3\): expected \(2, 2\)"):
        GaussianPrior(torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="not symmetric"):
        GaussianPrior(torch.zeros(2), torch.tensor([[1.0, 0.5], [0, 1]]))
    with pytest.raises(ValueError, match=r"eigenvalue -1"):
        GaussianPrior(torch.zeros(2), torch.diag(torch.tensor([1.0, -1])))
    with pytest.raises(ValueError, match="weights are"):
        GaussianMixturePrior(torch.tensor([1.0, 0.0]), torch.zeros(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match="covariances have shape"):
        GaussianMixturePrior(torch.ones(2), torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"x has shape \(1, 1, 2, 2\): this prior is of images of shape \(1, 3, 3\)"):
        prior(torch.zeros(1, 1, 2, 2), 0.1)
