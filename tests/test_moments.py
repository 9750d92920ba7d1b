"""The moment-matched estimate against the dense formula, solved to the end and by the few products of a schedule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood
from invdiff.moments import MomentMatched
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Grayscale, Identity, LinearOperator, Mask, gaussian_psf, random_mask
from invdiff.priors import FunctionPrior, GaussianPrior, Prior
from invdiff.schedule import noise_levels

GRAY, COLOUR = (1, 8, 8), (3, 6, 6)
OPERATORS: dict[str, LinearOperator] = {
    "mask": Mask(random_mask(GRAY, 0.5, seed=0), GRAY),
    "circular blur": Blur(gaussian_psf(1.0, 5), GRAY),
    "reflect blur": Blur(gaussian_psf(1.0, 5), GRAY, boundary="reflect"),
    "4x": Downsample(4, GRAY),
    "grayscale": Grayscale(COLOUR),
    "denoise": Identity(GRAY),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(operator: LinearOperator) -> Tensor:
    """A as a matrix, (k, n)."""
    n = math.prod(operator.in_shape)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *operator.in_shape)
    return operator.to(dtype=torch.float64)(basis).reshape(n, -1).T


def expected(prior: GaussianPrior, likelihood: Likelihood, x: Tensor, sigma: float) -> Tensor:
    """D + S A^T (A S A^T + R)^+ (y - A D), written with dense matrices."""
    cov, n = prior.covariance, prior.covariance.shape[0]
    s = sigma**2 * cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(n))
    d = prior(x, sigma).flatten(1)
    rows = []
    for k in range(x.shape[0]):
        one = likelihood if likelihood.measurements == 1 else likelihood.take(torch.tensor([k]))
        a, y = dense(one.operator), one.batched_y.double()
        r = torch.diag((one.noise.like(y) ** 2).expand_as(y).flatten())
        inverse = torch.linalg.pinv(a @ s @ a.T + r, hermitian=True)
        rows.append(d[k] + s @ a.T @ inverse @ (y.flatten() - a @ d[k]))
    return torch.stack(rows).reshape(x.shape)


def non_stationary() -> GaussianPrior:
    """Pixels of very different variance that hang together over the whole image."""
    root = normal(64, 64, seed=4) * torch.logspace(-2, -0.3, 64, dtype=torch.float64)
    mixed = torch.logspace(-1, 0, 64, dtype=torch.float64)[:, None] * root
    return GaussianPrior(torch.full(GRAY, 0.5), mixed @ mixed.T / 4 + 1e-4 * torch.eye(64))


def problem(name: str, sigma_y: float | Tensor = 0.05, prior: GaussianPrior | None = None):
    operator = OPERATORS[name]
    prior = GaussianPrior.power_law(operator.in_shape) if prior is None else prior
    y = operator(prior.sample(1, seed=1))[0]
    noise = GaussianNoise(sigma_y)
    y = y + noise.like(y[None])[0] * normal(*y.shape, seed=2)
    return prior, Likelihood(y, operator, noise)


def many(likelihood: Likelihood, prior: Prior, like: Tensor) -> MomentMatched:
    return MomentMatched(likelihood, prior, like, products=64, tolerance=1e-7)


def stiff(prior: Prior) -> FunctionPrior:
    rough = FunctionPrior(lambda x, sigma: prior(x.detach(), float(sigma)), name="stiff", differentiable=False)
    rough.jacobian_limit = math.inf
    return rough


def flow_errors(estimate: MomentMatched, prior: GaussianPrior, likelihood: Likelihood, steps: int = 30) -> list[float]:
    """The largest error of a member, RMS in sigma, at every level of the flow that the estimates themselves make."""
    levels = noise_levels("ve", steps, 0.005, 20.0)
    x = 0.5 + 20.0 * normal(4, *likelihood.operator.in_shape, seed=3)
    errors = []
    for sigma, t in itertools.pairwise(levels):
        x0 = estimate(x, sigma)
        missing = (x0 - expected(prior, likelihood, x, sigma)).flatten(1).square().mean(1).sqrt()
        errors.append(float(missing.max()) / sigma)
        x = t / sigma * x + (1 - t / sigma) * x0
    return errors


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sigma_y", [0.05, "per pixel"])
def test_with_many_products_it_is_the_dense_formula(name, sigma_y):
    spread = torch.linspace(0.02, 0.3, math.prod(OPERATORS[name].out_shape), dtype=torch.float64)
    prior, likelihood = problem(name, spread.reshape(OPERATORS[name].out_shape) if sigma_y == "per pixel" else sigma_y)
    x = 0.5 + normal(3, *likelihood.operator.in_shape, seed=3)
    estimate = many(likelihood, prior, x)
    for sigma in (3.0, 0.3, 0.02):
        at = 0.5 + (x - 0.5) * sigma
        torch.testing.assert_close(
            estimate(at, sigma), expected(prior, likelihood, at, sigma), atol=1e-5 * sigma, rtol=0
        )


@pytest.mark.parametrize("name", ["mask", "4x", "denoise"])
def test_without_noise_it_fits_the_measurement(name):
    prior, likelihood = problem(name, 0.0)
    x = 0.5 + normal(3, *GRAY, seed=3)
    estimate = many(likelihood, prior, x)
    for sigma in (1.0, 0.1):
        found = estimate(x, sigma)
        torch.testing.assert_close(found, expected(prior, likelihood, x, sigma), atol=1e-6, rtol=0)
        y = likelihood.y.expand(3, *likelihood.y.shape)
        torch.testing.assert_close(likelihood.operator(found), y, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("products", [2, 3])
def test_few_products_are_enough_down_a_schedule(name, products):
    prior, likelihood = problem(name)
    like = normal(4, *likelihood.operator.in_shape)
    errors = flow_errors(MomentMatched(likelihood, prior, like, products, 1e-9), prior, likelihood)
    assert max(errors) < 0.01, errors


def test_what_is_remembered_is_what_makes_few_products_enough():
    prior, likelihood = problem("mask")
    like = normal(4, *GRAY)
    warm = max(flow_errors(MomentMatched(likelihood, prior, like, 3), prior, likelihood))

    class Forgetful(MomentMatched):
        def __call__(self, x: Tensor, sigma: float) -> Tensor:
            self.u, self.spectrum.power = None, None
            return super().__call__(x, sigma)

    cold = max(flow_errors(Forgetful(likelihood, prior, like, 3), prior, likelihood))
    assert cold > 5 * warm


@pytest.mark.parametrize("name", ["mask", "reflect blur", "4x"])
def test_images_that_are_not_stationary(name):
    prior, likelihood = problem(name, prior=non_stationary())
    x = 0.5 + 0.5 * normal(3, *GRAY, seed=3)
    estimate = many(likelihood, prior, x)
    for sigma in (0.5, 0.05):
        torch.testing.assert_close(estimate(x, sigma), expected(prior, likelihood, x, sigma), atol=1e-6, rtol=0)
    few = MomentMatched(likelihood, prior, x, 5, 0.001)
    assert max(flow_errors(few, prior, likelihood)) < 0.05


@pytest.mark.parametrize("name", ["mask", "4x"])
def test_a_prior_that_cannot_be_differentiated_gives_nearly_the_same(name):
    prior, likelihood = problem(name)
    smooth = MomentMatched(likelihood, prior, normal(4, *GRAY))
    rough = MomentMatched(likelihood, stiff(prior), normal(4, *GRAY))
    for sigma in (5.0, 0.5, 0.05):
        x = 0.5 + sigma * normal(4, *GRAY, seed=3)
        torch.testing.assert_close(rough(x, sigma), smooth(x, sigma), atol=1e-5 * sigma, rtol=0)


def hard_and_easy() -> tuple[GaussianPrior, Likelihood]:
    """Two measurements: of few values that the prior foresees, and of many with little noise."""
    prior = non_stationary()
    mask = torch.stack([random_mask(GRAY, 0.3, seed=1), random_mask(GRAY, 0.9, seed=2)]).reshape(2, *GRAY)
    operator = Mask(mask, GRAY)
    y = operator(torch.stack([prior.mean, prior.sample(1, seed=3)[0]]))
    return prior, Likelihood(y, operator, GaussianNoise(torch.tensor([0.1, 0.02]).reshape(2, 1, 1, 1)))


@pytest.mark.parametrize("rough", [False, True])
def test_a_member_does_not_feel_how_hard_its_neighbour_is(rough):
    prior, joint = hard_and_easy()
    used = stiff(prior) if rough else prior
    single = [joint.take(torch.tensor([k])) for k in range(2)]
    together = MomentMatched(joint, used, normal(2, *GRAY), 8)
    alone = [MomentMatched(one, used, normal(1, *GRAY), 8) for one in single]
    for sigma in (5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05):
        x = 0.5 + sigma * normal(2, *GRAY, seed=3)
        both = together(x, sigma)
        for k in range(2):
            # A difference of two calls keeps fewer digits.
            close = 1e-7 if rough else 1e-9
            torch.testing.assert_close(both[k : k + 1], alone[k](x[k : k + 1], sigma), atol=close, rtol=0)


def test_easy_members_stop_early():
    """Products are counted by the forward passes of a prior that cannot be differentiated."""
    prior, joint = hard_and_easy()
    counts = []
    for k in range(2):
        calls: list[float] = []

        def count(x: Tensor, sigma: Tensor, calls: list[float] = calls) -> Tensor:
            calls.append(float(sigma))
            return prior(x, float(sigma))

        watched = FunctionPrior(count, differentiable=False)
        watched.jacobian_limit = math.inf
        estimate = MomentMatched(joint.take(torch.tensor([k])), watched, normal(1, *GRAY), 8)
        for sigma in (1.0, 0.5, 0.2, 0.1):
            estimate(0.5 + sigma * normal(1, *GRAY, seed=3), sigma)
        counts.append(len(calls))
    easy, hard = counts
    assert easy < hard <= 4 * (1 + 8)


def test_above_the_limit_of_the_jacobian_images_are_stationary_photographs():
    """One call of the denoiser, none of its Jacobian; below the limit the systems go on from there."""
    prior, likelihood = problem("mask")
    calls: list[float] = []

    def count(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return prior(x, float(sigma))

    network = FunctionPrior(count, differentiable=False)
    network.jacobian_limit = 0.8
    estimate, x, sigma = MomentMatched(likelihood, network, normal(3, *GRAY), inner_steps=200), normal(3, *GRAY), 2.0
    found = estimate(x, sigma)
    assert calls == [2.0]
    fy, fx = torch.fft.fftfreq(8).double()[:, None], torch.fft.fftfreq(8).double()
    radius = ((8 * fy) ** 2 + (8 * fx) ** 2).sqrt().round().clamp_min(0.5) / 8
    power = 0.00625 / 3 / radius**2
    photographs = GaussianPrior.from_spectrum(power * sigma**2 / (power + sigma**2)).covariance
    a, d = dense(likelihood.operator), prior(x, sigma).flatten(1)
    # Hidden rows of A are 0, so that the noise alone keeps the matrix regular.
    gain = photographs @ a.T @ torch.linalg.inv(a @ photographs @ a.T + 0.05**2 * torch.eye(64))
    expected = (d + (likelihood.y.flatten() - d @ a.T) @ gain.T).reshape(x.shape)
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)
    estimate(x, 0.5)
    assert calls.count(0.5) > 1


def test_nothing_of_the_callers_is_touched():
    prior, likelihood = problem("mask")
    x = normal(2, *GRAY)
    before, y = x.clone(), likelihood.y.clone()
    estimate = MomentMatched(likelihood, prior, x)
    first = estimate(x, 0.5)
    estimate(x, 0.4)
    assert torch.equal(x, before)
    assert torch.equal(likelihood.y, y)
    assert not first.requires_grad
    assert first.dtype == x.dtype
