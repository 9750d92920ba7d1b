"""W x, the part of an image that a measurement fixed, against dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invdiff import Likelihood, Posterior
from invdiff.measured_part import MeasuredPart
from invdiff.noise import GaussianNoise, PoissonNoise
from invdiff.operators import (
    Blur,
    Downsample,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    Operator,
    box_mask,
    gaussian_psf,
    random_mask,
    stack,
)
from invdiff.priors import GaussianPrior, load
from invdiff.roots import square_root
from tests.operators.examples import EVERY, Choices, contract, dense, every

F64 = torch.float64
few = settings(contract, max_examples=2)
GRAY, COLOUR = (1, 6, 8), (3, 4, 5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stationary(shape: tuple[int, ...], seed: int = 0) -> GaussianPrior:
    """Any power, and any covariance between channels."""
    mixing, power = normal(shape[0], shape[0], seed=seed), normal(*shape[1:], seed=seed + 1).abs() + 0.01
    return GaussianPrior.from_spectrum(power, 0.5, mixing @ mixing.T + 0.1 * torch.eye(shape[0], dtype=F64))


def any_gaussian(shape: tuple[int, ...], seed: int = 0) -> GaussianPrior:
    n = math.prod(shape)
    root = normal(n, n, seed=seed) / math.sqrt(n)
    return GaussianPrior(torch.zeros(shape), root @ root.T)


def likelihood_of(operator: Operator, sigma: float | Tensor) -> Likelihood:
    shape = operator.out_shape if operator.batch is None else (operator.batch, *operator.out_shape)
    return Likelihood(torch.full(shape, 0.5, dtype=F64), operator, GaussianNoise(sigma))


def matrices(part: MeasuredPart) -> np.ndarray:
    """W of every measurement, (m, n, n)."""
    n = math.prod(part.in_shape)
    eye = torch.eye(n, dtype=F64).reshape(n, 1, *part.in_shape).expand(-1, part.measurements, *part.in_shape)
    out = part(eye if part.batched else eye[:, 0])
    return out.reshape(n, part.measurements, n).permute(1, 2, 0).numpy()


def apply(part: MeasuredPart, x: np.ndarray) -> np.ndarray:
    """W x for vectors (b, m, n)."""
    images = torch.from_numpy(x).reshape(*x.shape[:2], *part.in_shape)
    return part(images if part.batched else images[:, 0]).reshape(x.shape).numpy()


def reference(matrix: np.ndarray, sigma: float | np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """W = B (I + B)^-1 with B = G^1/2 C G^1/2, where G^1/2 = V diag(s) V^T of the whitened matrix."""
    whitened = matrix / np.broadcast_to(sigma, len(matrix))[:, None]
    _, s, vh = np.linalg.svd(whitened, full_matrices=False)
    root = (vh.T * s) @ vh
    b = root @ covariance @ root
    return np.linalg.solve(np.eye(len(b)) + b, b)


@every
@few
@given(data=st.data())
def test_the_formula_with_one_tau_on_every_operator(name: str, data: st.DataObject) -> None:
    """V diag(s^2 / (s^2 + sigma^2 / tau^2)) V^T, by an SVD of the operator's own or by conjugate gradients."""
    c = Choices(data)
    operator = EVERY[name](c)
    assert isinstance(operator, LinearOperator)
    sigma, tau = 0.05 + c.integer(0, 10) / 10, 0.1 + c.integer(0, 10) / 10
    found = matrices(MeasuredPart(likelihood_of(operator, sigma), tau, tol=1e-12))
    for member, w in enumerate(found):
        _, s, vh = np.linalg.svd(dense(operator, member), full_matrices=False)
        np.testing.assert_allclose(w, (vh.T * (s**2 / (s**2 + sigma**2 / tau**2))) @ vh, atol=1e-9)


@every
@few
@given(data=st.data())
def test_any_covariance_on_every_operator(name: str, data: st.DataObject) -> None:
    c = Choices(data)
    operator = EVERY[name](c)
    by_frequency = len(operator.in_shape) == 3 and c.integer(0, 1)
    prior = (stationary if by_frequency else any_gaussian)(operator.in_shape, c.integer(0, 99))
    part = MeasuredPart(likelihood_of(operator, 0.3), prior, tol=1e-5)
    members, n = part.measurements, math.prod(operator.in_shape)
    x = normal(3, members, n, seed=c.integer(0, 99)).numpy()
    found = apply(part, x)
    # What A does not see is not measured.
    seen = [np.linalg.pinv(dense(operator, k), rcond=1e-9) @ dense(operator, k) for k in range(members)]
    hidden = np.stack([x[:, k] - x[:, k] @ seen[k] for k in range(members)], 1)
    np.testing.assert_allclose(apply(part, hidden), 0, atol=1e-3)
    for k in range(members):
        expected = x[:, k] @ reference(dense(operator, k), 0.3, prior.covariance.numpy()).T
        np.testing.assert_allclose(found[:, k], expected, atol=2e-3)
        # Symmetric, and between 0 and 1.
        forms = x[:, k] @ found[:, k].T
        np.testing.assert_allclose(forms, forms.T, atol=1e-3)
        assert np.linalg.eigvalsh((forms + forms.T) / 2).min() > -1e-3
        rest = x[:, k] @ x[:, k].T - forms
        assert np.linalg.eigvalsh((rest + rest.T) / 2).min() > -1e-3


def test_jointly_diagonal_is_wieners_filter() -> None:
    """Under a circular blur every Fourier coefficient is weighed by itself, with tau^2 its power."""
    shape, sigma = (1, 8, 10), 0.1
    prior = GaussianPrior.power_law(shape)
    power = torch.fft.fft2(prior.covariance[0].reshape(8, 10)).real
    kernel = gaussian_psf(0.8, 5)
    response = torch.fft.fft2(Blur(kernel, shape)(_point(shape)))[0, 0].abs()
    weight = response**2 / (response**2 + sigma**2 / power)
    x = normal(1, *shape)
    expected = torch.fft.ifft2(weight * torch.fft.fft2(x)).real
    found = MeasuredPart(likelihood_of(Blur(kernel, shape), sigma), prior, tol=1e-12)(x)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def _point(shape: tuple[int, ...]) -> Tensor:
    point = torch.zeros(1, *shape, dtype=F64)
    point[..., 0, 0] = 1.0
    return point


def test_gray_measures_brightness_alone() -> None:
    """Along the weights the tau is that of their direction; across them nothing is measured."""
    prior, weights = stationary(COLOUR, 3), torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    part = MeasuredPart(likelihood_of(Grayscale(COLOUR, weights), 0.2), prior, tol=1e-12)
    x = normal(1, *COLOUR)
    along = weights / weights.norm()
    share = torch.einsum("c,bchw->bhw", along, x)
    mixing = prior.mixture.channels  # type: ignore[attr-defined]
    tau2 = float(along @ mixing @ along) * prior.mixture.power  # type: ignore[attr-defined]
    s2 = float(weights.norm() ** 2)
    kept = torch.fft.ifft2(s2 / (s2 + 0.2**2 / tau2) * torch.fft.fft2(share)).real
    torch.testing.assert_close(part(x), along[:, None, None] * kept[:, None], atol=1e-8, rtol=0)


@pytest.mark.parametrize("operator", [Mask(random_mask(GRAY, 0.4), GRAY), Blur(gaussian_psf(0.6, 3), GRAY, "valid")])
@pytest.mark.parametrize("prior", ["stationary", "dense", "number"])
def test_a_sigma_of_every_pixel(operator: LinearOperator, prior: str) -> None:
    sigma = 0.1 + normal(*operator.out_shape).abs()
    given_by = {"stationary": stationary(GRAY), "dense": any_gaussian(GRAY), "number": 0.5}[prior]
    covariance = 0.25 * np.eye(48) if isinstance(given_by, float) else given_by.covariance.numpy()
    part = MeasuredPart(likelihood_of(operator, sigma), given_by, tol=1e-10)
    expected = reference(dense(operator), sigma.flatten().numpy(), covariance)
    np.testing.assert_allclose(matrices(part)[0], expected, atol=1e-6)


def test_poisson_noise_is_that_of_the_counts_and_of_one_photon_at_least() -> None:
    operator, gain = Identity(GRAY), 0.05
    y = torch.full(GRAY, 0.4, dtype=F64)
    y[..., 0] = 0.0
    poisson = MeasuredPart(Likelihood(y, operator, PoissonNoise(gain)), 0.3)
    gaussian = MeasuredPart(Likelihood(y, operator, GaussianNoise((gain * y.clamp_min(gain)).sqrt())), 0.3)
    x = normal(2, *GRAY)
    torch.testing.assert_close(poisson(x), gaussian(x))
    assert float(poisson(torch.ones(1, *GRAY))[0, 0, 0, 0]) == pytest.approx(0.09 / (0.09 + gain**2))


@pytest.mark.parametrize(
    "operator",
    [
        Mask(box_mask(GRAY), GRAY),
        Downsample(2, GRAY, "bicubic"),
        Blur(gaussian_psf(0.5, 3), GRAY, "valid"),
        stack(Downsample(2, GRAY), 0.5 * Mask(random_mask(GRAY, 0.3), GRAY)),
    ],
)
def test_sigma_from_nothing_to_infinity(operator: LinearOperator) -> None:
    """Without noise W is the projection on the row space, little noise comes near it, and much leaves nothing."""
    matrix = dense(operator)
    projection = np.linalg.pinv(matrix) @ matrix
    prior = GaussianPrior.power_law(GRAY)
    exact = matrices(MeasuredPart(likelihood_of(operator, 0.0), prior))[0]
    np.testing.assert_allclose(exact, projection, atol=1e-6)
    near = matrices(MeasuredPart(likelihood_of(operator, 1e-4), prior, tol=1e-10))[0]
    np.testing.assert_allclose(near, projection, atol=1e-2)
    far = matrices(MeasuredPart(likelihood_of(operator, 1e4), prior))[0]
    np.testing.assert_allclose(far, 0, atol=1e-6)


def test_below_the_noise_is_not_measured() -> None:
    """Under noise as strong as fine detail of photographs, coarse structure counts as measured and fine does not."""
    shape = (1, 32, 32)
    part = MeasuredPart(likelihood_of(Identity(shape), 0.3))
    columns = torch.arange(32, dtype=F64)
    coarse, fine = (torch.cos(2 * math.pi * f * columns).expand(1, *shape) for f in (1 / 32, 0.5))
    assert float((part(coarse) * coarse).sum() / (coarse * coarse).sum()) > 0.9
    assert float((part(fine) * fine).sum() / (fine * fine).sum()) < 0.1


def test_measurements_have_their_own_noise_and_map() -> None:
    masks = torch.stack([random_mask(GRAY, 0.5, seed=k) for k in range(3)])
    sigma = torch.tensor([0.1, 0.0, 0.5], dtype=F64).reshape(3, 1, 1, 1)
    together = likelihood_of(Mask(masks, GRAY), sigma)
    part = MeasuredPart(together, stationary(GRAY), tol=1e-9)
    x = normal(2, 3, *GRAY)
    found = part(x)
    for k in range(3):
        alone = MeasuredPart(likelihood_of(Mask(masks[k], GRAY), float(sigma[k])), stationary(GRAY), tol=1e-9)
        torch.testing.assert_close(found[:, k], alone(x[:, k]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("boundary", ["circular", "zero"])
def test_images_do_not_feel_each_other(boundary: str) -> None:
    part = MeasuredPart(likelihood_of(Blur(gaussian_psf(0.6, 3), GRAY, boundary), 0.1))
    x = normal(3, *GRAY) * torch.tensor([1.0, 1e-3, 100.0], dtype=F64).reshape(3, 1, 1, 1)
    together = part(x)
    for k in range(3):
        torch.testing.assert_close(together[k], part(x[k]), rtol=1e-6, atol=0)


def test_linear_in_the_callers_dtype_and_nothing_is_written() -> None:
    part = MeasuredPart(likelihood_of(Mask(random_mask(GRAY, 0.5), GRAY), 0.1), tol=1e-9)
    x, y = normal(*GRAY), normal(*GRAY, seed=1)
    kept = x.clone()
    torch.testing.assert_close(part(2 * x - 3 * y), 2 * part(x) - 3 * part(y), atol=1e-7, rtol=0)
    assert torch.equal(x, kept)
    assert part(x.float()).dtype == torch.float32
    assert part(x[None][:0]).shape == (0, *GRAY)


def test_tau_by_a_function_of_frequency_and_from_photographs() -> None:
    likelihood = likelihood_of(Downsample(2, GRAY), 0.1)
    x = normal(1, *GRAY)
    flat = MeasuredPart(likelihood, lambda f: torch.full_like(f, 0.4), tol=1e-10)
    torch.testing.assert_close(flat(x), MeasuredPart(likelihood, 0.4, tol=1e-10)(x), atol=1e-8, rtol=0)
    part = MeasuredPart(likelihood_of(Identity((3, 16, 16)), 0.1))
    assert part.record["prior_std"]["kind"] == "photographs"
    # Octaves from the finest on: tau doubles with each, as the power falls as 1 / f^2, and colours have a fifteenth.
    std = np.array(part.record["prior_std"]["std"])
    assert np.all(np.diff(std[:, 0]) > 0)
    np.testing.assert_allclose(std[:, 0] / std[:, 1], math.sqrt(15), rtol=1e-9)
    np.testing.assert_allclose(std[:, 1], std[:, 2])


def test_tau_from_the_draws_is_that_of_their_power() -> None:
    prior = GaussianPrior.power_law((1, 16, 16))
    draws = Posterior(prior.sample(400), {})
    likelihood = likelihood_of(Mask(random_mask((1, 16, 16), 0.5), (1, 16, 16)), 0.05)
    found = MeasuredPart(likelihood, "draws", posterior=draws)
    exact = MeasuredPart(likelihood, prior)
    ours, truth = (np.array(part.record["prior_std"]["std"]) for part in (found, exact))
    np.testing.assert_allclose(ours, truth, rtol=0.2)
    x = prior.sample(4, seed=1) - 0.5
    assert float((found(x) - exact(x)).norm() / x.norm()) < 0.02


def test_square_root_against_dense() -> None:
    values = torch.tensor([[0.0, 0.0, 1e-4, 1.0, 9.0, 100.0], [0.0] * 6, [2.0] * 6], dtype=F64)
    vectors = torch.linalg.qr(normal(3, 6, 6)).Q
    matrix, root = (vectors @ torch.diag_embed(v) @ vectors.mT for v in (values, values.sqrt()))
    x = normal(3, 6, seed=1)
    x[2] = 0.0
    found = square_root(lambda v: torch.einsum("bij,bj->bi", matrix, v), x)
    torch.testing.assert_close(found, torch.einsum("bij,bj->bi", root, x), atol=1e-6, rtol=0)


def test_refusals() -> None:
    class Square(Operator):
        def forward(self, x: Tensor) -> Tensor:
            return x**2

    class Laplace:
        def log_prob(self, y: Tensor, z: Tensor) -> Tensor:
            return -(y - z).abs().flatten(1).sum(1)

    identity = Identity(GRAY)
    y = torch.zeros(GRAY)
    with pytest.raises(ValueError, match="need a linear operator; Square is not one"):
        MeasuredPart(Likelihood(y, Square(GRAY, GRAY), GaussianNoise(0.1)))
    # A noise of somebody else's.
    with pytest.raises(TypeError, match="Laplace is neither"):
        MeasuredPart(Likelihood(y, identity, Laplace()))  # type: ignore[arg-type]
    some = torch.full(GRAY, 0.1)
    some[0, 0, 0] = 0.0
    with pytest.raises(ValueError, match="sigma is 0 for some values"):
        MeasuredPart(likelihood_of(identity, some))
    likelihood = likelihood_of(identity, 0.1)
    for bad in (0, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="expected a finite number above 0"):
            MeasuredPart(likelihood, bad)
    for bad in (True, "paintings", [0.1], load("tv")):
        with pytest.raises(TypeError, match="expected a number, a function of frequency"):
            MeasuredPart(likelihood, bad)  # type: ignore[arg-type]
    for function in (lambda f: 0.1, lambda f: -f, lambda f: 1 / f, lambda f: f[0]):
        with pytest.raises(ValueError, match="as many finite standard deviations"):
            MeasuredPart(likelihood, function)
    with pytest.raises(ValueError, match="and there are none"):
        MeasuredPart(likelihood, "draws")
    with pytest.raises(ValueError, match=r"images of shape \(1, 4, 4\): expected \(1, 6, 8\)"):
        MeasuredPart(likelihood, GaussianPrior.power_law((1, 4, 4)))
    with pytest.raises(ValueError, match="which is no image"):
        MeasuredPart(likelihood_of(Identity((5,)), 0.1))
    with pytest.raises(ValueError, match=r"expected one that ends in \(1, 6, 8\)"):
        MeasuredPart(likelihood)(torch.zeros(2, 1, 8, 6))


def test_a_system_that_is_not_solved_is_said() -> None:
    part = MeasuredPart(likelihood_of(Mask(random_mask(GRAY, 0.5), GRAY), 0.01), stationary(GRAY), tol=1e-9, max_iter=2)
    with pytest.warns(UserWarning, match="it is approximate; raise max_iter"):
        part(normal(1, *GRAY))
