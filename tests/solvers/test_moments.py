"""MMPS and TMPD, which take the covariance of the image from the denoiser's Jacobian, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Identity, LinearOperator, Mask, gaussian_psf, random_mask
from invdiff.priors import FunctionPrior, GaussianPrior
from invdiff.solvers import MMPS, TMPD

SHAPE = (1, 8, 8)
N = 64


def operators() -> dict[str, LinearOperator]:
    return {
        "mask": Mask(random_mask(SHAPE, 0.5), SHAPE),
        "down": Downsample(4, SHAPE),
        "no svd": Blur(gaussian_psf(0.7, 3), SHAPE, boundary="reflect"),
    }


def dense(operator: LinearOperator) -> Tensor:
    return operator(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).reshape(N, -1).T


def problem(name: str, sigma_y: float = 0.1) -> tuple[GaussianPrior, Likelihood, Tensor]:
    prior, operator = GaussianPrior.power_law(SHAPE), operators()[name]
    y = operator(prior.sample(1, seed=1))[0] + 0.05
    x = 0.5 + 0.4 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return prior, Likelihood(y, operator, GaussianNoise(sigma_y)), x


def conditional(prior: GaussianPrior, sigma: float) -> Tensor:
    """Cov[x0 | x_sigma]."""
    cov = prior.covariance
    return sigma**2 * cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(N))


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_mmps_solved_to_the_end_is_exact_for_gaussian_images(name, sigma):
    prior, likelihood, x = problem(name)
    found = MMPS(iterations=200).guidance(likelihood, prior)(x, sigma)
    a = dense(operators()[name])
    precision = torch.linalg.inv(prior.covariance) + torch.eye(N) / sigma**2 + a.T @ a / 0.1**2
    centred = likelihood.y.flatten() - a @ prior.mean.flatten()
    right = (x - prior.mean).flatten(1) / sigma**2 + centred @ a / 0.1**2
    exact = prior.mean.flatten() + torch.linalg.solve(precision, right.T).T
    torch.testing.assert_close(found.flatten(1), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("iterations", [1, 3])
def test_mmps_cut_short_is_the_minimiser_over_the_krylov_space(iterations):
    """What conjugate gradients stand for: the least energy u' M u / 2 - u' r over span(r, M r, ...)."""
    prior, likelihood, x = problem("down")
    a, sigma = dense(operators()["down"]), 0.3
    cov = conditional(prior, sigma)
    matrix = a @ cov @ a.T + 0.1**2 * torch.eye(len(a))
    found = MMPS(iterations=iterations).guidance(likelihood, prior)(x, sigma).flatten(1)
    x0 = prior(x, sigma).flatten(1)
    for k in range(3):
        residual = likelihood.y.flatten() - a @ x0[k]
        basis = torch.stack([torch.linalg.matrix_power(matrix, j) @ residual for j in range(iterations)], 1)
        u = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ residual)
        torch.testing.assert_close(found[k], x0[k] + cov @ a.T @ u, atol=1e-8, rtol=0)


def test_mmps_without_noise_fits_the_measurement():
    prior, likelihood, x = problem("down", sigma_y=0.0)
    found = MMPS(iterations=50).guidance(likelihood, prior)(x, 0.3)
    torch.testing.assert_close(likelihood.operator(found), likelihood.y.expand(3, -1, -1, -1), atol=1e-9, rtol=0)


def test_a_jacobian_that_is_no_covariance_leaves_the_denoised_image():
    """A network's Jacobian need not be positive: no step is taken along a direction of negative curvature."""
    likelihood = Likelihood(torch.full(SHAPE, 0.9), Identity(SHAPE), GaussianNoise(0.01))
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    found = MMPS(iterations=5).guidance(likelihood, FunctionPrior(lambda x, sigma: 1 - x))(x, 0.5)
    torch.testing.assert_close(found, 1 - x)


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_tmpd_is_exact_where_pixels_are_independent(sigma):
    operator = operators()["mask"]
    variances = torch.linspace(0.01, 0.2, N)
    prior = GaussianPrior(torch.full(SHAPE, 0.5), torch.diag(variances))
    _, likelihood, x = problem("mask")
    found = TMPD().guidance(likelihood, prior)(x, sigma).flatten(1)
    mask = dense(operator).diagonal()
    precision = 1 / variances + sigma**-2 + mask / 0.1**2
    right = 0.5 / variances + x.flatten(1) / sigma**2 + likelihood.y.flatten() * mask / 0.1**2
    torch.testing.assert_close(found, right / precision, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", operators())
def test_tmpd_divides_by_the_row_sums(name):
    prior, likelihood, x = problem(name)
    a, sigma = dense(operators()[name]), 0.3
    cov = conditional(prior, sigma)
    rows = (a @ cov @ a.T).sum(1)
    assert float(rows.min()) >= 0
    x0 = prior(x, sigma).flatten(1)
    expected = x0 + (likelihood.y.flatten() - x0 @ a.T) / (rows + 0.1**2) @ a @ cov
    found = TMPD().guidance(likelihood, prior)(x, sigma).flatten(1)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("sigma_y", [0.1, 0.0])
def test_tmpd_takes_no_negative_row_sum_for_a_variance(sigma_y):
    """D = 1 - x has row sums -sigma^2: only sigma_y^2 is left, and without noise nothing."""
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    likelihood = Likelihood(torch.full(SHAPE, 0.9), Identity(SHAPE), GaussianNoise(sigma_y))
    found = TMPD().guidance(likelihood, FunctionPrior(lambda x, sigma: 1 - x))(x, 0.1)
    gain = -(0.1**2) / sigma_y**2 if sigma_y else 0.0
    torch.testing.assert_close(found, 1 - x + gain * (0.9 - (1 - x)))


def test_backward_passes_are_as_declared():
    prior, likelihood, _ = problem("mask")
    for solver, passes in ((MMPS(steps=6, iterations=3), 18), (TMPD(steps=6), 12)):
        record = sample(solver, likelihood, prior).record
        assert (record["nfe"], record["nfe_backward"]) == (6, passes)


def test_iterations_that_are_none_are_refused():
    with pytest.raises(ValueError, match="iterations of MMPS is 0: expected a whole number from 1 on"):
        MMPS(iterations=0)
