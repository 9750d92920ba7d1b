"""Products with the denoiser's Jacobian, against dense matrices and for priors that cannot be differentiated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invdiff import priors
from invdiff.jacobian import Linearised
from invdiff.priors import FunctionPrior, GaussianMixturePrior, GaussianPrior, Prior

SHAPE, N = (1, 3, 4), 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(seed: int) -> Tensor:
    root = normal(N, N, seed=seed)
    return root @ root.T / N


def gaussian() -> GaussianPrior:
    return GaussianPrior(torch.full(SHAPE, 0.5), covariance(1))


def mixture() -> GaussianMixturePrior:
    means = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE)])
    return GaussianMixturePrior(torch.tensor([0.4, 0.6]), means, torch.stack([covariance(2), covariance(3)]))


PRIORS = {"gaussian": gaussian, "mixture": mixture}


def stiff(prior: Prior) -> FunctionPrior:
    """The same prior, declared to be one that autograd cannot go through, and in fact so."""

    def opaque(x: Tensor, sigma: Tensor) -> Tensor:
        return prior(x.detach(), float(sigma))

    return FunctionPrior(opaque, name="stiff", differentiable=False)


def dense(prior: Prior, x: Tensor, sigma: float) -> Tensor:
    """dD / dx at every member, (b, N, N)."""
    flat = lambda v: prior(v.reshape(1, *SHAPE), sigma).flatten()  # noqa: E731
    return torch.stack([torch.autograd.functional.jacobian(flat, row) for row in x.flatten(1)])


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("sigma", [0.1, 1.0, 20.0])
def test_products_are_those_of_the_dense_jacobian(name, sigma):
    prior, x, v = PRIORS[name](), 0.5 + normal(3, *SHAPE), normal(3, *SHAPE, seed=7)
    near, jacobian = Linearised(prior, x, sigma), dense(prior, x, sigma)
    expected = (jacobian @ v.flatten(1)[..., None]).reshape(v.shape)
    torch.testing.assert_close(near.x0, prior(x, sigma))
    for product in (near.product(v), near.vjp(v), near.covariance(v) / sigma**2):
        torch.testing.assert_close(product, expected, atol=1e-10, rtol=0)


def test_the_covariance_is_that_of_the_image_given_x():
    v, sigma = normal(2, *SHAPE), 0.4
    precision = torch.linalg.inv(covariance(1)) + torch.eye(N) / sigma**2
    found = Linearised(gaussian(), normal(2, *SHAPE, seed=3), sigma).covariance(v)
    torch.testing.assert_close(found.flatten(1), torch.linalg.solve(precision, v.flatten(1).T).T, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("name", "sigma", "share"), [("gaussian", 0.3, 1e-9), ("gaussian", 3.0, 1e-9), ("mixture", 3.0, 0.03)]
)
def test_a_prior_that_cannot_be_differentiated_gives_nearly_the_same(name, sigma, share):
    prior, x, v = PRIORS[name](), 0.5 + normal(3, *SHAPE), normal(3, *SHAPE, seed=7)
    smooth, rough = Linearised(prior, x, sigma), Linearised(stiff(prior), x, sigma)
    torch.testing.assert_close(rough.x0, smooth.x0)
    error = (rough.product(v) - smooth.product(v)).flatten(1).norm(dim=1)
    assert bool((error < share * smooth.product(v).flatten(1).norm(dim=1)).all()), error
    torch.testing.assert_close(rough.covariance(v), sigma**2 * rough.product(v))


def test_the_difference_is_a_tenth_of_sigma_long_whatever_v():
    steps = []

    def watch(x: Tensor, sigma: Tensor) -> Tensor:
        steps.append(x)
        return x

    near = Linearised(FunctionPrior(watch, differentiable=False), torch.zeros(2, *SHAPE), 0.5)
    near.product(torch.stack([1e-3 * torch.ones(SHAPE), 1e4 * torch.ones(SHAPE)]))
    torch.testing.assert_close(steps[1] - steps[0], torch.full((2, *SHAPE), 0.05))


@pytest.mark.parametrize("make", [mixture, lambda: stiff(mixture())])
def test_a_member_does_not_feel_its_neighbours(make):
    prior, x, v = make(), normal(3, *SHAPE), normal(3, *SHAPE, seed=7)
    scaled = v * torch.tensor([1.0, 1e6, 0.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    together = Linearised(prior, x, 0.5).product(scaled)
    for k in range(3):
        alone = Linearised(prior, x[k : k + 1], 0.5).product(scaled[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, atol=0, rtol=1e-9)


@pytest.mark.parametrize("make", [mixture, lambda: stiff(mixture())])
def test_zero_vectors_give_zero(make):
    found = Linearised(make(), normal(2, *SHAPE), 0.5).product(torch.zeros(2, *SHAPE, dtype=torch.float64))
    assert torch.equal(found, torch.zeros(2, *SHAPE, dtype=torch.float64))


@pytest.mark.parametrize("make", [gaussian, lambda: stiff(gaussian())])
def test_inside_no_grad_and_nothing_of_the_callers_is_touched(make):
    x, v = normal(2, *SHAPE), normal(2, *SHAPE, seed=7)
    before, other = x.clone(), v.clone()
    with torch.no_grad():
        near = Linearised(make(), x, 0.5)
        product = near.product(v)
    assert torch.equal(x, before)
    assert torch.equal(v, other)
    assert not any(tensor.requires_grad for tensor in (x, near.x0, product))
    assert float(product.abs().max()) > 0


def test_the_jacobian_of_the_shipped_prior_is_no_covariance_far_above_its_limit():
    """Why there is a limit: at sigma 40 a wave of 4 cycles along each side has a negative variance."""
    prior, at = priors.load("natural"), torch.arange(32.0)
    wave = torch.cos(2 * torch.pi * 4 * (at[:, None] + at) / 32).expand(1, 3, 32, 32)
    assert prior.jacobian_limit == 1
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    precise = prior.to(precision="float32")
    above, below = (float((wave * Linearised(precise, 0.5 + s * x, s).product(wave)).sum()) for s in (40.0, 0.5))
    assert above < 0 < below
