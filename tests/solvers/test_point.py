"""PnP and RED against their fixed points, known in closed form for a linear denoiser."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample, solvers
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Mask, gaussian_psf
from invdiff.priors import FunctionPrior, GaussianPrior

SHAPE = (1, 6, 6)
SIGMA, SIGMA_Y = 0.15, 0.1
EYE = torch.eye(36, dtype=torch.float64)


def pieces(operator) -> tuple[Likelihood, GaussianPrior, Tensor, Tensor, Tensor]:
    """The problem, and its A, W and b with D(x) = W x + b."""
    prior = GaussianPrior.power_law(SHAPE)
    y = operator(prior.sample(1, seed=1))[0]
    likelihood = Likelihood(y, operator, GaussianNoise(SIGMA_Y))
    a = operator(EYE.reshape(36, *SHAPE)).reshape(36, -1).T
    b = prior(torch.zeros(1, *SHAPE, dtype=torch.float64), SIGMA).flatten()
    w = prior(EYE.reshape(36, *SHAPE), SIGMA).reshape(36, 36).T - b[:, None]
    return likelihood, prior, a, w, b


def operators():
    mask = (torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.6).double()
    return [Mask(mask, SHAPE), Blur(gaussian_psf(0.8, 3), SHAPE, boundary="reflect")]


def settings(name: str) -> dict[str, float]:
    steps = {"red_gd": 3_000, "pnp_pgd": 2_000}.get(name, 300)
    return {"iterations": steps, "sigma_start": SIGMA, "sigma_end": SIGMA}


@pytest.mark.parametrize("operator", operators(), ids=["mask", "blur"])
@pytest.mark.parametrize("name", ["red_gd", "red_fp", "red_admm"])
def test_red_solves_its_equation(name, operator):
    """Romano et al. 2017, stationarity of the RED objective: A^T (A x - y) / sigma_y^2 + w (x - D(x)) = 0."""
    likelihood, prior, a, w, b = pieces(operator)
    solver = solvers.load(name, **settings(name))
    weight = solver.lam / SIGMA**2
    matrix = a.T @ a / SIGMA_Y**2 + weight * (EYE - w)
    expected = torch.linalg.solve(matrix, a.T @ likelihood.y.flatten() / SIGMA_Y**2 + weight * b)
    found = sample(solver, likelihood, prior).draws[0].flatten()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("operator", operators(), ids=["mask", "blur"])
@pytest.mark.parametrize("name", ["pnp_pgd", "pnp_pgd plain", "pnp_admm"])
def test_pgd_and_admm_share_their_fixed_point(name, operator):
    """x = D(x - gamma A^T (A x - y) / sigma_y^2), gamma the step or 1 / rho."""
    likelihood, prior, a, w, b = pieces(operator)
    solver = solvers.load(name.split()[0], **settings(name.split()[0]))
    if name == "pnp_pgd":
        solver = dataclasses.replace(solver, accelerate=True)
    if name == "pnp_admm":
        gamma = SIGMA**2 / solver.lam
    else:
        # The power iteration behind the step of a blur without an SVD is held 1 % above its estimate.
        norm = torch.linalg.matrix_norm(a, 2) * (1.0 if isinstance(operator, Mask) else 1.01)
        gamma = float(SIGMA_Y**2 / (norm**2 * solver.lam))
    matrix = EYE - w @ (EYE - gamma * a.T @ a / SIGMA_Y**2)
    expected = torch.linalg.solve(matrix, w @ (gamma * a.T @ likelihood.y.flatten() / SIGMA_Y**2) + b)
    found = sample(solver, likelihood, prior).draws[0].flatten()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("operator", operators(), ids=["mask", "blur"])
def test_hqs_stops_where_prox_and_denoiser_agree(operator):
    likelihood, prior, a, w, b = pieces(operator)
    solver = solvers.load("pnp_hqs", **settings("pnp_hqs"))
    rho = solver.lam / SIGMA**2
    prox = torch.linalg.inv(a.T @ a / SIGMA_Y**2 + rho * EYE)
    matrix = EYE - w @ prox * rho
    expected = torch.linalg.solve(matrix, w @ prox @ (a.T @ likelihood.y.flatten()) / SIGMA_Y**2 + b)
    found = sample(solver, likelihood, prior).draws[0].flatten()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_admm_with_the_exact_prox_of_a_quadratic_is_the_map():
    """With lam = 1 and D the prox of -log p of a Gaussian prior, PnP-ADMM must reach the MAP: the posterior mean."""
    prior = GaussianPrior.power_law(SHAPE)
    operator = operators()[0]
    likelihood = Likelihood(operator(prior.sample(1, seed=1))[0], operator, GaussianNoise(SIGMA_Y))
    solver = solvers.load("pnp_admm", **settings("pnp_admm") | {"lam": 1.0})
    found = sample(solver, likelihood, prior).draws[0]
    torch.testing.assert_close(found, prior.posterior(likelihood).mean, atol=1e-6, rtol=0)


def test_strengths_fall_from_start_to_the_noise_of_each_measurement():
    operator = operators()[0]
    sigma = torch.tensor([0.02, 0.1, 0.0]).reshape(3, 1, 1, 1)
    likelihood = Likelihood(torch.zeros(3, *SHAPE), operator, GaussianNoise(sigma))
    levels = torch.stack(
        solvers.PnPHQS(iterations=5).strengths(likelihood, GaussianPrior.power_law(SHAPE), torch.zeros(3, 1))
    )
    torch.testing.assert_close(levels[0], torch.full((3,), 0.5))
    torch.testing.assert_close(levels[-1], torch.tensor([0.02, 0.1, 1 / 255]))
    torch.testing.assert_close(levels[1] / levels[0], levels[2] / levels[1])
    limited = FunctionPrior(lambda x, sigma: x, sigma_range=(0.0, 0.2))
    cut = torch.stack(solvers.PnPHQS(iterations=5).strengths(likelihood, limited, torch.zeros(3, 1)))
    torch.testing.assert_close(cut[0], torch.full((3,), 0.2))
    assert bool((cut[1] < cut[0]).all())
    alone = solvers.PnPHQS(iterations=1).strengths(likelihood, GaussianPrior.power_law(SHAPE), torch.zeros(3, 1))
    torch.testing.assert_close(alone[0], torch.tensor([0.02, 0.1, 1 / 255]))
