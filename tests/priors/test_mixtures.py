"""The forms of the exact priors that make no matrices, against the one that does."""

from __future__ import annotations

import pytest
import torch

from invdiff import Likelihood
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Identity, Mask, Matrix, gaussian_psf
from invdiff.priors import GaussianMixturePrior, GaussianPrior
from invdiff.priors.mixtures import GaussianMixture, IsotropicMixture
from invdiff.priors.stationary import StationaryGaussian

SHAPE = (3, 6, 5)


def isotropic(measured: bool = False) -> IsotropicMixture:
    """Three components in six dimensions, before or after two of them are measured."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(3, 6, generator=generator, dtype=torch.float64)
    mixture = GaussianMixturePrior(torch.tensor([0.2, 0.5, 0.3]), means, torch.tensor([0.5, 1.0, 2.0])).mixture
    if measured:
        mixture = mixture.condition(likelihood(Matrix(torch.randn(2, 6, generator=generator))))
    assert isinstance(mixture, IsotropicMixture)
    return mixture


def stationary() -> StationaryGaussian:
    channels = torch.tensor([[1.0, 0.6, 0.2], [0.6, 2.0, 0.5], [0.2, 0.5, 0.7]], dtype=torch.float64)
    power = GaussianPrior.power_law((1, 6, 5)).mixture.power
    mean = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    mixture = GaussianPrior.from_spectrum(power, mean, channels).mixture
    assert isinstance(mixture, StationaryGaussian)
    return mixture


def likelihood(operator, sigma=0.3) -> Likelihood:
    y = torch.randn(operator.out_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Likelihood(y, operator, GaussianNoise(sigma))


MIXTURES = {"isotropic": isotropic, "measured": lambda: isotropic(True), "stationary": stationary}


@pytest.mark.parametrize("name", MIXTURES)
def test_equals_the_same_distribution_with_matrices(name):
    mixture = MIXTURES[name]()
    dense = GaussianMixture(mixture.shape, mixture.weights, mixture.means, mixture.covariances)
    x = 2 * torch.randn(7, mixture.means.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    variance = torch.logspace(-4, 4, 7, dtype=torch.float64)
    torch.testing.assert_close(mixture.denoise(x, variance), dense.denoise(x, variance))
    torch.testing.assert_close(mixture.log_components(x, variance), dense.log_components(x, variance))
    torch.testing.assert_close(mixture.log_prob(x), dense.log_prob(x))
    torch.testing.assert_close(mixture.responsibilities(x), dense.responsibilities(x))
    torch.testing.assert_close(mixture.std, dense.std)
    torch.testing.assert_close(mixture.covariance, dense.covariance)
    torch.testing.assert_close(mixture.variances, dense.variances)


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_have_the_covariance(name):
    mixture = MIXTURES[name]()
    x = mixture.sample(40_000, seed=4).flatten(1)
    deviation = mixture.covariance.diagonal().sqrt()
    white = (x - mixture.mean.flatten()) / deviation
    assert float(white.mean(0).abs().max()) < 0.025
    expected = mixture.covariance / deviation / deviation[:, None]
    torch.testing.assert_close(torch.cov(white.T), expected, atol=0.03, rtol=0)
    torch.testing.assert_close(mixture.responsibilities(x).mean(0), mixture.weights, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", MIXTURES)
def test_gradients_of_the_denoiser(name):
    mixture = MIXTURES[name]()
    x = torch.randn(2, mixture.means.shape[1], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    variance = torch.tensor([0.2, 3.0], dtype=torch.float64)
    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: mixture.denoise(x, variance), (x,), fast_mode=True)


def test_the_denoiser_of_an_isotropic_mixture_is_tweedies_formula():
    mixture = isotropic(True)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64).requires_grad_(True)
    variance = torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=torch.float64)
    (score,) = torch.autograd.grad(mixture.log_components(x, variance).logsumexp(1).sum(), x)
    torch.testing.assert_close(mixture.denoise(x, variance), x + variance[:, None] * score)


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_an_isotropic_mixture_is_conditioned_as_the_dense_one(rows):
    matrix = torch.randn(rows, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    measured = likelihood(Matrix(matrix), torch.rand(rows, generator=torch.Generator().manual_seed(8)) + 0.1)
    fast, slow = isotropic().condition(measured), isotropic().dense.condition(measured)
    assert isinstance(fast, IsotropicMixture)
    torch.testing.assert_close(fast.weights, slow.weights)
    torch.testing.assert_close(fast.means, slow.means)
    torch.testing.assert_close(fast.covariances, slow.covariances)


def test_a_second_measurement_and_one_without_noise():
    again = likelihood(Matrix(torch.eye(1, 6)))
    twice = isotropic(True).condition(again)
    torch.testing.assert_close(twice.mean, isotropic(True).dense.condition(again).mean)
    with pytest.raises(ValueError, match="posterior of a mixture needs a sigma above 0"):
        isotropic().condition(likelihood(Matrix(torch.eye(1, 6)), 0.0))
    exact = GaussianMixturePrior(torch.ones(1), torch.zeros(1, 6), torch.ones(1)).posterior(
        likelihood(Matrix(torch.eye(1, 6)), 0.0)
    )
    assert float(exact.std[0]) == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match="no density"):
        exact.log_prob(torch.zeros(1, 6))


@pytest.mark.parametrize(
    "operator", [Identity(SHAPE), Mask(torch.eye(6, 5), SHAPE), Blur(gaussian_psf(0.5, 3), SHAPE, boundary="reflect")]
)
def test_a_stationary_prior_is_conditioned_as_the_dense_one(operator):
    fast, slow = (m.condition(likelihood(operator)) for m in (stationary(), stationary().dense))
    torch.testing.assert_close(fast.mean, slow.mean)
    torch.testing.assert_close(fast.covariances, slow.covariances)


def test_a_stationary_covariance_is_the_kronecker_product_of_its_parts():
    mixture = stationary()
    height, width = SHAPE[1:]
    f = torch.fft.fft2(torch.eye(30, dtype=torch.complex128).reshape(30, height, width), norm="ortho").reshape(30, 30)
    spatial = (f.conj() @ torch.diag(mixture.power.flatten().to(f)) @ f.T).real
    torch.testing.assert_close(mixture.covariances[0], torch.kron(mixture.channels, spatial))
    torch.testing.assert_close(mixture.times_covariance(mixture.means), mixture.means @ mixture.covariances[0])


def test_marginal_probabilities():
    mixture = isotropic(True)
    x = mixture.sample(200_000, seed=9)
    low, high = mixture.mean - 0.7 * mixture.std, mixture.mean + mixture.std
    inside = ((x > low) & (x < high)).double().mean(0)
    torch.testing.assert_close(mixture.probability(low, high), inside, atol=5e-3, rtol=0)
    likeliest = isotropic().responsibilities(isotropic().means).argmax(1)
    assert torch.equal(likeliest, torch.arange(3))


def test_copies_on_another_device():
    for make in MIXTURES.values():
        assert make().to("meta").means.device.type == "meta"


def test_a_spectrum_that_is_no_covariance_is_refused():
    with pytest.raises(ValueError, match="power holds -1: expected eigenvalues, none below 0"):
        GaussianPrior.from_spectrum(-torch.ones(4, 4))
    with pytest.raises(ValueError, match="channel_covariance has the eigenvalue -1: expected none below 0"):
        GaussianPrior.from_spectrum(torch.ones(4, 4), channel_covariance=torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


def test_power_that_is_not_even_counts_as_the_mean_of_both_signs():
    power = torch.rand(5, 4, generator=torch.Generator().manual_seed(10))
    row = torch.fft.ifft2(power.double()).real
    covariance = GaussianPrior.from_spectrum(power).covariance
    torch.testing.assert_close(covariance[:, 0], row.flatten())
