"""The bootstrap over images: its intervals, and the test of flatness that takes images as units."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.pooling import RESAMPLES, Estimate, estimate, flat_band, flatness, resampled_means, uniformity


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def histograms(images: int, bins: int = 10, seed: int = 0, bowl: float = 0.0) -> torch.Tensor:
    """Of images whose 500 ranks hang together: each has its own slope, of no direction on average."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.linspace(-1, 1, bins, dtype=torch.float64)
    slope = 0.6 * torch.randn(images, 1, generator=generator, dtype=torch.float64)
    weights = ((1 + slope * places) + bowl * (3 * places.square() - 1)).clamp_min(0.02)
    chosen = torch.multinomial(weights, 500, replacement=True, generator=generator)
    return torch.stack([torch.bincount(row, minlength=bins) for row in chosen]).double() / 500


def test_the_interval_of_a_mean_is_that_of_the_bootstrap() -> None:
    values = normal(400, 1)
    found = estimate(values, seed=0)
    error = values.std(correction=0).item() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean().item())
    assert found.images == 400
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.15 * error)
    assert resampled_means(values, 0).shape == (RESAMPLES, 1)
    assert resampled_means(values, 0).std().item() == pytest.approx(error, rel=0.07)


def test_a_ratio_of_means_is_not_a_mean_of_ratios() -> None:
    values = torch.tensor([[1.0, 1.0], [4.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    assert estimate(values, 0, lambda m: m[..., 0] / m[..., 1]).value == 1
    assert (values[:, 0] / values[:, 1]).mean() == 1.75


def test_images_without_a_figure_are_left_out_and_counted() -> None:
    values = torch.tensor([[1.0], [math.nan], [3.0]], dtype=torch.float64)
    found = estimate(values, 0)
    assert (found.value, found.images) == (2, 2)
    assert found.low < 2 < found.high
    one = estimate(values[:2], 0)
    assert (one.value, one.images) == (1, 1)
    assert math.isnan(one.low)
    none = estimate(values[1:2], 0)
    assert none.images == 0
    assert [str(part) for part in (none, one)] == ["–", "1"]
    assert str(Estimate(0.9, 0.85, 0.951, 7)) == "0.9 (0.85 to 0.951)"


def test_the_seed_decides(global_random_state_is_untouched: None) -> None:
    values = normal(30, 1)
    assert estimate(values, 0) == estimate(values, 0)
    assert estimate(values, 0) != estimate(values, 1)


@pytest.mark.parametrize("images", [5, 8, 30])
def test_flat_histograms_are_rarely_called_uneven(images: int) -> None:
    found = torch.tensor([flatness(histograms(images, seed=seed), 0) for seed in range(200)])
    # The 99.9 % bound of a binomial of 200 trials at 0.05 is 21.
    assert (found < 0.05).sum() <= 21
    assert found.min() > 0.6 * 2.0 ** (1 - images)
    assert 0.35 < found.median() < 0.65


def test_ranks_are_not_taken_for_independent() -> None:
    means = torch.stack([histograms(30, seed=seed).mean(0) for seed in range(50)])
    chi2 = 500 * 30 * 10 * (means - 0.1).square().sum(1)
    assert (chi2 > 21.7).double().mean() > 0.5  # the 99 % point of chi-square with 9 degrees of freedom


def test_a_bowl_is_found_and_more_images_find_it_sooner() -> None:
    few, many = (
        sum(flatness(histograms(images, seed=seed, bowl=0.2), 0) < 0.01 for seed in range(20)) for images in (9, 60)
    )
    assert few < many
    assert many == 20
    assert math.isnan(flatness(histograms(1), 0))


def test_the_band_is_where_flat_means_lie() -> None:
    low, high = flat_band(histograms(40), 0)
    means = torch.stack([histograms(40, seed=seed).mean(0) for seed in range(1, 101)])
    inside = ((low <= means) & (means <= high)).double().mean()
    assert 0.88 < inside < 0.99
    assert (low < 0.1).all()
    assert (high > 0.1).all()


def test_uniformity_is_exact() -> None:
    assert uniformity(torch.tensor([0.25], dtype=torch.float64)) == pytest.approx(0.5)
    assert uniformity(torch.linspace(0.4, 0.6, 50, dtype=torch.float64)) < 1e-6
