"""Langevin steps against the law they settle in, and the curvature that keeps them stable."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff import Likelihood
from invdiff.langevin import curvature, langevin, stable_step
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import Blur, Identity, Mask, Matrix, from_function, gaussian_psf
from invdiff.random import MemberRandom
from invdiff.solvers import CapabilityError

SHAPE = (1, 2, 2)


def members(count: int) -> MemberRandom:
    return MemberRandom(0, [(k, 0) for k in range(count)])


def test_the_steps_settle_in_the_gaussian_between_measurement_and_centre():
    """Where a step of length h meets a curvature k the variance is 1 / (k (1 - h k / 2)), and the mean is right."""
    shape = (1, 2, 2000)
    mask = torch.tensor([1.0, 0.0])[:, None].expand(2, 2000)
    likelihood = Likelihood(torch.full(shape, 0.8) * mask, Mask(mask, shape), GaussianNoise(0.1))
    centre = torch.full((5, *shape), 0.2)
    step = 0.004
    x = langevin(likelihood, centre, centre, 0.1, step, 60, members(5)).double()
    for row, k, mean in ((0, 200.0, 0.5), (1, 100.0, 0.2)):
        assert float(x[:, :, row].mean()) == pytest.approx(mean, abs=0.004)
        assert float(x[:, :, row].std()) == pytest.approx((1 / (k * (1 - step * k / 2))) ** 0.5, rel=0.025)


def test_a_nonlinear_measurement_gives_the_moments_of_a_grid():
    """y = x^2 leaves two signs, which the Gaussian around the centre weighs."""
    square = from_function(lambda x: x**2, (2000,), linear=False)
    likelihood = Likelihood(torch.full((2000,), 0.2), square, GaussianNoise(0.1))
    centre = torch.full((5, 2000), 0.1)
    x = langevin(likelihood, centre, centre, 0.4, 0.004, 800, members(5)).double()
    grid = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    weight = (-((0.2 - grid**2) ** 2) / (2 * 0.1**2) - (grid - 0.1) ** 2 / (2 * 0.4**2)).softmax(0)
    mean = float((weight * grid).sum())
    std = math.sqrt(float((weight * (grid - mean) ** 2).sum()))
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x.std()) == pytest.approx(std, rel=0.03)


def test_steps_of_any_number_take_their_noise_from_each_members_own_stream():
    likelihood = Likelihood(torch.zeros(SHAPE), Identity(SHAPE), GaussianNoise(0.1))
    start = torch.zeros(3, *SHAPE)
    together = langevin(likelihood, start, start, 1.0, 1e-3, 13, members(3))
    alone = langevin(likelihood, start[:1], start[:1], 1.0, 1e-3, 13, MemberRandom(0, [(2, 0)]))
    assert torch.equal(together[2:], alone)
    assert torch.equal(start, torch.zeros(3, *SHAPE))


@pytest.mark.parametrize("boundary", ["circular", "reflect"])
def test_the_curvature_of_a_linear_operator(boundary):
    """The largest eigenvalue of A^T A over sigma^2, each member with its own sigma."""
    operator = Blur(3 * gaussian_psf(1.0, 3), (1, 6, 6), boundary=boundary)
    matrix = operator(torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)).flatten(1)
    largest = float(torch.linalg.svdvals(matrix)[0])
    sigma = torch.tensor([0.1, 0.5]).reshape(2, 1, 1, 1)
    likelihood = Likelihood(torch.zeros(2, 1, 6, 6), operator, GaussianNoise(sigma))
    found = curvature(likelihood, torch.zeros(2, 1, 6, 6))
    expected = (largest / sigma.flatten()) ** 2
    assert bool((found > 0.999 * expected).all())
    assert bool((found < 1.03 * expected).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_curvature_of_a_nonlinear_operator_is_that_of_the_place(dtype):
    """-log p = (x^2 - y)^2 / (2 sigma^2) bends by (6 x^2 - 2 y) / sigma^2."""
    square = from_function(lambda x: x**2, (4,), linear=False)
    likelihood = Likelihood(torch.full((4,), 0.2, dtype=dtype), square, GaussianNoise(0.1))
    x = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.3, 0.4, 0.6]], dtype=dtype)
    expected = (6 * x.amax(1) ** 2 - 0.4) / 0.01
    torch.testing.assert_close(curvature(likelihood, x, iterations=30), expected, rtol=0.03, atol=0)


def test_a_flat_place_has_no_curvature_and_a_step_has_its_length():
    flat = from_function(lambda x: 0 * x, SHAPE, linear=False)
    likelihood = Likelihood(torch.ones(SHAPE), flat, GaussianNoise(0.1))
    x = torch.zeros(2, *SHAPE)
    assert curvature(likelihood, x).tolist() == [0.0, 0.0]
    step = stable_step(torch.tensor([0.5, 0.001]), torch.tensor([0.0, 96.0]), 0.5, x)
    assert step.shape == (2, 1, 1, 1)
    torch.testing.assert_close(step.flatten(), torch.tensor([0.25, 0.001]))
    torch.testing.assert_close(
        stable_step(1.0, torch.tensor([96.0, 0.0]), 0.5, x).flatten(), torch.tensor([0.01, 0.25])
    )


@pytest.mark.parametrize("noise", [GaussianNoise(0.0), PoissonNoise(0.1)])
def test_a_noise_without_a_curvature_is_refused(noise):
    likelihood = Likelihood(torch.ones(2), Matrix(torch.eye(2)), noise)
    with pytest.raises(CapabilityError, match="gradient step"):
        curvature(likelihood, torch.zeros(1, 2))
