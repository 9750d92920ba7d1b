"""One guidance on the same exact denoiser, ours against deepinv's and azula's where they state the same formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood
from invdiff.noise import GaussianNoise
from invdiff.operators import Downsample, Mask, Matrix, random_mask
from invdiff.priors import GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import MMPS, TMPD, DiffPIR, PiGDM

SHAPE = (1, 8, 8)
N = 64
SIGMA_Y = 0.1
SIGMAS = (0.05, 0.3, 2.0)


def problem() -> tuple[GaussianPrior, Likelihood, Tensor]:
    generator = torch.Generator().manual_seed(0)
    operator = Matrix(torch.rand(20, N, generator=generator).double() / 8, in_shape=SHAPE)
    prior = GaussianPrior.power_law(SHAPE)
    y = operator(prior.sample(1, seed=1))[0] + 0.05
    x = 0.5 + 0.4 * torch.randn(1, *SHAPE, generator=generator, dtype=torch.float64)
    return prior, Likelihood(y, operator, GaussianNoise(SIGMA_Y)), x


@pytest.fixture
def deepinv():
    return pytest.importorskip("deepinv", reason="the optional package deepinv is not installed")


@pytest.fixture
def azula():
    return pytest.importorskip("azula.guidance", reason="the optional package azula is not installed")


# deepinv ------------------------------------------------------------------------------------------------------------


def deepinv_problem(deepinv, kind: str):
    """A prior as deepinv's denoiser, its physics with noise, and ours of the same pixels."""
    prior = GaussianPrior.power_law(SHAPE)
    noise = deepinv.physics.GaussianNoise(SIGMA_Y)
    if kind == "mask":
        mask = random_mask(SHAPE, 0.5)
        operator = Mask(mask, SHAPE)
        physics = deepinv.physics.Inpainting(img_size=SHAPE, mask=mask, noise_model=noise)
    else:
        operator = Downsample(4, SHAPE)
        physics = deepinv.physics.LinearPhysics(
            A=lambda x, **_: operator(x), A_adjoint=lambda y, **_: operator.T(y), noise_model=noise
        )

    class Exact(deepinv.models.Denoiser):
        def forward(self, x, sigma, **_):
            return prior(x, torch.as_tensor(sigma).flatten()[0])

    y = (operator(prior.sample(1, seed=1)) + operator(torch.full((1, *SHAPE), 0.05))).float()
    x = 0.5 + 0.4 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return prior, Exact(), physics, Likelihood(y[0], operator, GaussianNoise(SIGMA_Y)), x


@pytest.mark.parametrize("kind", ["mask", "down"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_pigdm_is_deepinvs(deepinv, kind, sigma):
    """It takes images of unit variance on [0, 1], which is image_std = 1."""
    from deepinv.sampling.noisy_datafidelity import PiGDMDataFidelity

    prior, exact, physics, likelihood, x = deepinv_problem(deepinv, kind)
    theirs = PiGDMDataFidelity(exact, cg_max_iter=50, cg_tol=1e-8)
    slope, x0 = theirs.grad(x, likelihood.batched_y, physics, sigma, get_model_outputs=True)
    ours = PiGDM(image_std=1.0).guidance(likelihood, prior)(x, sigma)
    torch.testing.assert_close(ours, x0 - sigma**2 * slope, atol=1e-5, rtol=0)
    assert float((ours - x0).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["mask", "down"])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("iterations", [1, 3, 30])
def test_mmps_is_deepinvs(deepinv, kind, sigma, iterations):
    """Its conjugate gradients, in float32, add 1e-8 to every denominator."""
    from deepinv.sampling.noisy_datafidelity import MomentMatchingDataFidelity

    prior, exact, physics, likelihood, x = deepinv_problem(deepinv, kind)
    theirs = MomentMatchingDataFidelity(exact, cg_max_iter=iterations, cg_tol=1e-9)
    slope, x0 = theirs.grad(x, likelihood.batched_y, physics, sigma, get_model_outputs=True)
    ours = MMPS(iterations=iterations).guidance(likelihood, prior)(x, sigma)
    torch.testing.assert_close(ours, x0 - sigma**2 * slope, atol=2e-4, rtol=0)
    assert float((ours - x0).abs().max()) > 1e-3


# azula --------------------------------------------------------------------------------------------------------------


def azula_problem():
    """A prior as azula's denoiser of vectors under a schedule whose time is sigma itself."""
    from azula.denoise import Denoiser, DiracPosterior

    prior, likelihood, x = problem()

    class Exact(Denoiser):
        schedule = staticmethod(lambda t: (torch.ones_like(t), t))

        def forward(self, x_t, t, **_):
            return DiracPosterior(prior(x_t.reshape(-1, *SHAPE), float(t)).reshape(x_t.shape))

    matrix = likelihood.operator(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).reshape(N, -1).T
    return prior, Exact(), (lambda v: v @ matrix.T), likelihood, x


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_mmps_is_azulas(azula, sigma, iterations):
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance

    prior, exact, forward, likelihood, x = azula_problem()
    cov_y = IsotropicCovariance(SIGMA_Y**2)
    settings = {"A": forward, "cov_y": cov_y, "solver": "cg", "iterations": iterations}
    theirs = MMPSDenoiser(exact, y=likelihood.y[None], **settings)
    expected = theirs(x.flatten(1), torch.tensor(sigma, dtype=torch.float64)).mean
    found = MMPS(iterations=iterations).guidance(likelihood, prior)(x, sigma)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_tmpd_is_azulas(azula, sigma):
    from azula.guidance.tmpd import TMPDenoiser

    prior, exact, forward, likelihood, x = azula_problem()
    theirs = TMPDenoiser(exact, y=likelihood.y[None], A=forward, var_y=SIGMA_Y**2)
    expected = theirs(x.flatten(1), torch.tensor(sigma, dtype=torch.float64)).mean
    found = TMPD().guidance(likelihood, prior)(x, sigma)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_diffpir_is_azulas(azula, sigma):
    """Its lambda is over sigma^2 in one unit, ours over the (2 sigma)^2 of the official code."""
    from azula.guidance.diffpir import DiffPIRDenoiser

    prior, exact, forward, likelihood, x = azula_problem()
    settings = {"var_y": SIGMA_Y**2, "lmbda": 3.0, "solver": "cg", "iterations": 60}
    theirs = DiffPIRDenoiser(exact, y=likelihood.y[None], A=forward, **settings)
    expected = theirs(x.flatten(1), torch.tensor(sigma, dtype=torch.float64)).mean
    found = DiffPIR(lam=12.0).guidance(likelihood, prior)(x, sigma)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-8, rtol=0)


def test_the_step_of_pigdm_without_noise_is_azulas(azula):
    """Its sampler has no sigma_y; its fresh noise is left out by eta = 0."""
    from azula.guidance.pgdm import PGDMSampler

    prior, exact, forward, likelihood, x = azula_problem()
    likelihood = Likelihood(likelihood.y, likelihood.operator, GaussianNoise(0.0))
    solver = PiGDM(transition="pigdm", eta=0.0, schedule="ve", steps=2, sigma_min=0.3, sigma_max=0.6)
    sigma, t, _ = (torch.tensor(level, dtype=torch.float64) for level in solver.levels(prior))
    inverse = lambda y: likelihood.operator.pinv(y).flatten(1)  # noqa: E731
    theirs = PGDMSampler(exact, y=likelihood.y[None], A=forward, A_inv=inverse, eta=0.0)
    expected = theirs.step(x.flatten(1), sigma, t)
    found = next(solver.iterate(likelihood, prior, x, MemberRandom(0, [(0, 0)])))
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-8, rtol=0)
    assert math.isclose(float(t), 0.3, rel_tol=1e-6)
