"""DDRM against the paper's update written coordinate by coordinate with a dense SVD."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Grayscale, Identity, Mask, Matrix, gaussian_psf
from invdiff.priors import GaussianPrior
from invdiff.random import MemberRandom
from invdiff.solvers import DDRM, CapabilityError

SHAPE = (3, 8, 8)


def operators():
    generator = torch.Generator().manual_seed(0)
    return {
        "identity": Identity(SHAPE),
        "mask": Mask((torch.rand(8, 8, generator=generator) < 0.5).double(), SHAPE),
        "box": Downsample(4, SHAPE),
        "bicubic": Downsample(2, SHAPE, kind="bicubic"),
        "psf": Downsample(2, SHAPE, kind=gaussian_psf(1.0, 5)),
        "gray": Grayscale(SHAPE),
        "blur": Blur(gaussian_psf(1.0, 5), SHAPE),
        "gray of blur": Grayscale(SHAPE) @ Blur(gaussian_psf(1.0, 5), SHAPE),
        "matrix": Matrix(torch.randn(20, 192, generator=generator).double() / 14, in_shape=SHAPE),
    }


def official_ddrm(
    matrix: Tensor, y: Tensor, sigma_y: float, prior, levels: list[float], solver: DDRM, x: Tensor, random: MemberRandom
) -> Tensor:
    """The official update on a dense SVD, whose basis may differ from ours: only eigenspaces enter the algorithm."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=True)
    full = torch.zeros(vh.shape[0], dtype=torch.float64)
    full[: len(s)] = torch.where(s > 1e-10, s, 0.0)
    seen = full > 0
    safe = torch.where(seen, full, 1.0)
    ybar = torch.zeros_like(full)
    ybar[: len(s)] = (u.T @ y.flatten())[: len(s)]
    ybar = ybar / safe
    noise = sigma_y / safe
    shape = x.shape
    z = (x.flatten(1) - 0.5) @ vh.T / levels[0]
    centre = torch.full_like(x, 0.5).flatten(1) @ vh.T
    informed = seen & (noise < levels[0])
    z = torch.where(informed, ybar + (levels[0] ** 2 - noise**2).clamp_min(0).sqrt() * z, centre + levels[0] * z)
    for sigma, t in itertools.pairwise(levels):
        x0 = prior((z @ vh).reshape(shape), sigma).flatten(1) @ vh.T
        eps = random.normal(x).flatten(1) @ vh.T
        keep = math.sqrt(1 - solver.eta**2)
        following = x0 + keep * t * (z - x0) / sigma + solver.eta * t * eps
        for i in range(len(full)):
            if seen[i] and t < noise[i]:
                following[:, i] = x0[:, i] + keep * t * (ybar[i] - x0[:, i]) / noise[i] + solver.eta * t * eps[:, i]
            elif seen[i]:
                left = math.sqrt(max(t**2 - (solver.eta_b * float(noise[i])) ** 2, 0))
                following[:, i] = (1 - solver.eta_b) * x0[:, i] + solver.eta_b * ybar[i] + left * eps[:, i]
        z = following
    return (z @ vh).reshape(shape)


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (0.3, 0.6)])
def test_equals_the_paper_on_a_dense_svd(name, eta, eta_b):
    prior, operator = GaussianPrior.power_law(SHAPE), operators()[name]
    y = operator(prior.sample(1, seed=1))[0] + 0.02
    solver = DDRM(steps=8, eta=eta, eta_b=eta_b, sigma_max=20.0)
    ours = sample(solver, Likelihood(y, operator, GaussianNoise(0.1)), prior, draws=2, seed=3, micro_batch=2).draws
    matrix = operator(torch.eye(192, dtype=torch.float64).reshape(192, *SHAPE)).reshape(192, -1).T
    levels = solver.levels(prior)
    random = MemberRandom(3, [(0, 0), (1, 0)])
    x = 0.5 + levels[0] * random.normal(torch.empty(2, *SHAPE, dtype=torch.float64))
    theirs = official_ddrm(matrix, y, 0.1, prior, levels, solver, x, random)
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", operators())
def test_without_noise_every_draw_reproduces_the_measurement(name):
    prior, operator = GaussianPrior.power_law(SHAPE), operators()[name]
    y = operator(prior.sample(1, seed=1))[0]
    draws = sample(DDRM(), Likelihood(y, operator, GaussianNoise(0.0)), prior, draws=2).draws
    torch.testing.assert_close(operator(draws), y.expand(2, *y.shape), atol=1e-6, rtol=0)


def test_it_needs_a_likelihood():
    with pytest.raises(CapabilityError, match="DDRM needs a likelihood: to draw from the prior alone use DDPM or Heun"):
        sample(DDRM(), None, GaussianPrior.power_law(SHAPE))


def test_an_operator_without_an_svd_is_refused_before_the_first_step():
    operator = Blur(gaussian_psf(1.0, 5), SHAPE, boundary="reflect")
    likelihood = Likelihood(torch.zeros(operator.out_shape), operator, GaussianNoise(0.1))
    calls = []

    def denoiser(x, sigma):
        calls.append(sigma)
        return x

    with pytest.raises(CapabilityError, match=r"DDRM needs an operator with an SVD; PaddedBlur has none\. Use KPS, "):
        sample(DDRM(), likelihood, denoiser)
    assert not calls


def test_a_sigma_per_pixel_is_refused():
    likelihood = Likelihood(torch.zeros(SHAPE), Identity(SHAPE), GaussianNoise(torch.full(SHAPE, 0.1)))
    with pytest.raises(CapabilityError, match="one sigma per measurement; this one has a sigma per pixel"):
        sample(DDRM(), likelihood, GaussianPrior.power_law(SHAPE))
