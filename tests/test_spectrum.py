"""The power learned from products with the Jacobian gives the covariance of stationary images exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invdiff.jacobian import Linearised
from invdiff.priors import GaussianPrior
from invdiff.spectrum import Spectrum

GRAY, COLOUR, ODD, TWO = (1, 8, 8), (3, 8, 6), (3, 7, 5), (2, 5, 8)
MIXING = {
    1: torch.ones(1, 1),
    # One eigenvalue for brightness, one for both colours.
    3: torch.full((3, 3), 0.7).fill_diagonal_(1.0),
    2: torch.eye(2),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rings(shape: tuple[int, ...]) -> Tensor:
    _, height, width = shape
    fy, fx = torch.fft.fftfreq(height).double()[:, None], torch.fft.fftfreq(width).double()
    return (max(height, width) * (fy**2 + fx**2).sqrt().float()).round().double()


def stationary(shape: tuple[int, ...], strength: float = 1.0) -> GaussianPrior:
    """Images whose power is the same all along a ring of frequencies."""
    return GaussianPrior.from_spectrum(strength / (1 + rings(shape)) ** 2, 0.5, MIXING[shape[0]])


def heard(prior: GaussianPrior, shape: tuple[int, ...], sigma: float, members: int = 2) -> Spectrum:
    """A spectrum after one product at this level."""
    spectrum, v = Spectrum(shape), normal(members, *shape)
    spectrum.listen(v, Linearised(prior, normal(members, *shape, seed=1), sigma).product(v))
    spectrum.learn(sigma)
    return spectrum


@pytest.mark.parametrize("shape", [GRAY, COLOUR, ODD, TWO])
@pytest.mark.parametrize("sigma", [0.05, 1.0])
def test_one_product_is_enough_for_images_of_equal_rings(shape, sigma):
    prior = stationary(shape)
    spectrum, v = heard(prior, shape, 0.3), normal(2, *shape, seed=2)
    exact = Linearised(prior, normal(2, *shape, seed=3), sigma).covariance(v)
    torch.testing.assert_close(spectrum.covariance(v, sigma), exact, atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 15)])
def test_power_laws_are_met_closely(shape):
    """A power that falls along the width of a ring is met by its mean."""
    prior = GaussianPrior.power_law(shape)
    spectrum, v = heard(prior, shape, 0.1), normal(2, *shape, seed=2)
    exact = Linearised(prior, normal(2, *shape, seed=3), 0.1).covariance(v)
    error = (spectrum.covariance(v, 0.1) - exact).square().mean() / exact.square().mean()
    assert float(error) < 0.06**2


@pytest.mark.parametrize("shape", [(1, 12, 24), (3, 6, 16)])
def test_photographs_turned_are_as_likely(shape):
    """Frequencies count in cycles a pixel along both sides."""
    turned = (shape[0], shape[2], shape[1])
    upright, lying = Spectrum(shape), Spectrum(turned)
    v = normal(2, *shape)
    upright.assume_photographs(v)
    lying.assume_photographs(v.mT)
    torch.testing.assert_close(lying.covariance(v.mT, 3.0).mT, upright.covariance(v, 3.0))


def test_gray_photographs_vary_as_the_pixels_of_colour_ones():
    """The mean of three channels has the power of (R + G + B) / sqrt(3), divided by 3."""
    gray, colour = Spectrum((1, 8, 8)), Spectrum((3, 8, 8))
    v = normal(1, 1, 8, 8)
    gray.assume_photographs(v)
    colour.assume_photographs(v.expand(1, 3, 8, 8))
    of_colour = colour.covariance(v.expand(1, 3, 8, 8), 1e4).mean(1, keepdim=True)
    torch.testing.assert_close(gray.covariance(v, 1e4), of_colour / 3, rtol=1e-3, atol=1e-6)


def test_vectors_have_one_power():
    spectrum, v = Spectrum((5,)), normal(2, 5)
    variance, sigma = torch.tensor([[0.2], [3.0]], dtype=torch.float64), 0.5
    spectrum.listen(v, variance / (variance + sigma**2) * v)
    spectrum.learn(sigma)
    assert spectrum.power is not None
    torch.testing.assert_close(spectrum.power, variance)
    torch.testing.assert_close(spectrum.covariance(v, 2.0), 4 * variance / (variance + 4) * v)


def test_products_of_one_level_are_taken_together():
    """The shares of two products count by the power that their vectors have."""
    spectrum, v = Spectrum((4,)), torch.ones(1, 4, dtype=torch.float64)
    spectrum.listen(v, 0.2 * v)
    spectrum.listen(3 * v, 0.6 * 3 * v)
    spectrum.learn(1.0)
    share = (0.2 + 9 * 0.6) / 10
    assert float(spectrum.power) == pytest.approx(share / (1 - share))
    spectrum.forget()
    spectrum.listen(v, 0.5 * v)
    spectrum.learn(2.0)
    assert float(spectrum.power) == pytest.approx(4.0)


def test_a_level_without_products_leaves_the_power():
    spectrum = Spectrum(GRAY)
    spectrum.learn(1.0)
    assert spectrum.power is None
    spectrum = heard(stationary(GRAY), GRAY, 0.3)
    before = spectrum.power
    spectrum.forget()
    spectrum.learn(0.1)
    assert spectrum.power is before


def test_shares_outside_0_to_1_stay_covariances():
    """A network's Jacobian may have any eigenvalue: the power stays finite and above 0."""
    spectrum, v = Spectrum(GRAY), normal(3, *GRAY)
    factors = torch.tensor([-2.0, 1.5, 0.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    spectrum.listen(v, factors * v)
    spectrum.learn(0.5)
    assert spectrum.power is not None
    assert bool(torch.isfinite(spectrum.power).all())
    assert bool((spectrum.power > 0).all())
    quadratic = (v * spectrum.covariance(v, 0.5)).flatten(1).sum(1)
    assert bool((quadratic > 0).all())


def test_members_have_their_own_power():
    shape, sigma, v = COLOUR, 0.3, normal(2, *COLOUR)
    images = [Linearised(stationary(shape, s), v[:1], sigma).product(v[k : k + 1]) for k, s in enumerate((0.01, 4.0))]
    together = Spectrum(shape)
    together.listen(v, torch.cat(images))
    together.learn(sigma)
    for k in range(2):
        alone = Spectrum(shape)
        alone.listen(v[k : k + 1], images[k])
        alone.learn(sigma)
        found = together.covariance(v, sigma)[k : k + 1]
        torch.testing.assert_close(found, alone.covariance(v[k : k + 1], sigma), atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_of_the_callers_is_touched(dtype):
    v, product = normal(2, *COLOUR).to(dtype), 0.5 * normal(2, *COLOUR).to(dtype)
    kept = v.clone(), product.clone()
    spectrum = Spectrum(COLOUR)
    spectrum.listen(v, product)
    spectrum.learn(0.3)
    assert spectrum.covariance(v, 0.3).dtype == dtype
    assert torch.equal(v, kept[0])
    assert torch.equal(product, kept[1])
