"""PiGDM against dense matrices, a posterior it knows exactly, and the public step in the paper's coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, LinearOperator, Mask, Matrix, gaussian_psf, random_mask
from invdiff.priors import GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import PiGDM

SHAPE = (1, 8, 8)
SIGMAS = (0.02, 0.3, 5.0)


def operators() -> dict[str, LinearOperator]:
    generator = torch.Generator().manual_seed(0)
    return {
        "mask": Mask(random_mask(SHAPE, 0.5), SHAPE),
        "down": Downsample(4, SHAPE),
        "blur": Blur(gaussian_psf(0.7, 3), SHAPE),
        "no svd": Blur(gaussian_psf(0.7, 3), SHAPE, boundary="reflect"),
        "matrix": Matrix(torch.randn(20, 64, generator=generator).double() / 8, in_shape=SHAPE),
    }


def dense(operator: LinearOperator) -> Tensor:
    return operator(torch.eye(64, dtype=torch.float64).reshape(64, *SHAPE)).reshape(64, -1).T


def problem(name: str, sigma_y: float = 0.1) -> tuple[GaussianPrior, Likelihood, Tensor]:
    prior, operator = GaussianPrior.power_law(SHAPE), operators()[name]
    y = operator(prior.sample(1, seed=1))[0] + 0.05
    x = 0.5 + 0.4 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return prior, Likelihood(y, operator, GaussianNoise(sigma_y)), x


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("sigma_y", [0.1, 0.0])
def test_the_guidance_is_the_papers_with_dense_matrices(name, sigma, sigma_y):
    prior, likelihood, x = problem(name, sigma_y)
    if sigma_y == 0 and name == "no svd":
        pytest.skip("its smallest singular values stop conjugate gradients early")
    found = PiGDM().guidance(likelihood, prior)(x, sigma)
    a, eye = dense(operators()[name]), torch.eye(64, dtype=torch.float64)
    jacobian = prior.covariance @ torch.linalg.inv(prior.covariance + sigma**2 * eye)
    r2 = sigma**2 / (1 + 4 * sigma**2)
    inverse = torch.linalg.pinv(r2 * a @ a.T + sigma_y**2 * torch.eye(len(a), dtype=torch.float64), hermitian=True)
    x0 = prior(x, sigma).flatten(1)
    expected = x0 + sigma**2 * (likelihood.y.flatten() - x0 @ a.T) @ inverse @ a @ jacobian
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", operators())
def test_independent_pixels_of_that_std_are_its_exact_case(name):
    """For x0 ~ N(m, s^2 I) the guided estimate is E[x0 | x, y] itself."""
    _, likelihood, x = problem(name)
    std, sigma = 0.3, 0.2
    prior = GaussianPrior(torch.full(SHAPE, 0.4), std**2 * torch.eye(64))
    found = PiGDM(image_std=std).guidance(likelihood, prior)(x, sigma)
    a, eye = dense(operators()[name]), torch.eye(64, dtype=torch.float64)
    precision = (std**-2 + sigma**-2) * eye + a.T @ a / 0.1**2
    right = 0.4 / std**2 + x.flatten(1) / sigma**2 + (likelihood.y.flatten() @ a) / 0.1**2
    torch.testing.assert_close(found.flatten(1), torch.linalg.solve(precision, right.T).T, atol=1e-7, rtol=0)


@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_the_public_step_in_the_papers_own_coordinates(eta):
    """One step of DDIM between two alpha-bars on [-1, 1] images, plus the r^2-weighted gradient in x_t."""
    prior, likelihood, x = problem("matrix")
    a = dense(operators()["matrix"])
    solver = PiGDM(transition="pigdm", eta=eta, schedule="ve", steps=2, sigma_min=0.3, sigma_max=0.6)
    sigma, following, _ = solver.levels(prior)
    eps = MemberRandom(0, [(k, 0) for k in range(3)]).normal(x).flatten(1)
    ours = next(solver.iterate(likelihood, prior, x, MemberRandom(0, [(k, 0) for k in range(3)]))).flatten(1)

    alpha_t, alpha_s = 1 / (1 + 4 * sigma**2), 1 / (1 + 4 * following**2)
    mean, cov = 2 * prior.mean.flatten() - 1, 4 * prior.covariance
    xt = math.sqrt(alpha_t) * (2 * x.flatten(1) - 1)
    gain = math.sqrt(alpha_t) * cov @ torch.linalg.inv(alpha_t * cov + (1 - alpha_t) * torch.eye(64))
    xhat = mean + (xt - math.sqrt(alpha_t) * mean) @ gain
    # y = A (x + 1) / 2 + n is 2 y - A 1 = A x + 2 n on [-1, 1] images.
    y = 2 * likelihood.y.flatten() - a.sum(1)
    r2 = 1 - alpha_t
    inverse = torch.linalg.inv(r2 * a @ a.T + 0.2**2 * torch.eye(len(a)))
    gradient = r2 * (y - xhat @ a.T) @ inverse @ a @ gain
    c1 = eta * math.sqrt((1 - alpha_t / alpha_s) * (1 - alpha_s) / (1 - alpha_t))
    c2 = math.sqrt(1 - alpha_s - c1**2)
    noise = (xt - math.sqrt(alpha_t) * xhat) / math.sqrt(1 - alpha_t)
    xs = math.sqrt(alpha_s) * xhat + c1 * eps + c2 * noise + math.sqrt(alpha_s * alpha_t) * gradient
    torch.testing.assert_close(ours, (xs / math.sqrt(alpha_s) + 1) / 2, atol=1e-8, rtol=0)


def test_one_forward_and_one_backward_a_step():
    prior, likelihood, _ = problem("mask")
    record = sample(PiGDM(steps=7), likelihood, prior).record
    assert (record["nfe"], record["nfe_backward"]) == (7, 7)


def test_an_image_std_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"image_std of PiGDM is 0\.0: expected a finite number above 0"):
        PiGDM(image_std=0.0)
