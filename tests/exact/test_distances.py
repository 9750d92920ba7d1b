"""Distances between sets of draws against scipy, closed forms and repetition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from invdiff.exact import bootstrap, bootstrap_mean, energy_distance, sliced_wasserstein
from invdiff.exact.distances import unit_directions


def draws(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return shift + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("m", [50, 37, 100])
def test_one_dimension_equals_scipy(m):
    a, b = draws(50, 1, 0), draws(m, 1, 1, 0.4) * 1.5
    flat = a.flatten().numpy(), b.flatten().numpy()
    assert sliced_wasserstein(a, b, p=1) == pytest.approx(stats.wasserstein_distance(*flat), rel=1e-9)
    assert energy_distance(a, b) == pytest.approx(stats.energy_distance(*flat), rel=1e-9)


@pytest.mark.parametrize("m", [6, 15])
def test_w2_of_unequal_sets_equals_that_of_repeated_ones(m):
    a, b = draws(10, 1, 2), draws(m, 1, 3)
    size = np.lcm(10, m)
    left, right = a.repeat_interleave(size // 10, 0), b.repeat_interleave(size // m, 0)
    expected = (left.sort(0).values - right.sort(0).values).square().mean().sqrt()
    assert sliced_wasserstein(a, b, p=2) == pytest.approx(float(expected), rel=1e-9)


def test_a_shift_is_seen_at_its_projected_size():
    a, shift = draws(300, 3, 4), torch.tensor([0.0, 0.0, 2.0])
    # The mean of |u_3| and of u_3^2 over the sphere in three dimensions is 1/2 and 1/3.
    assert sliced_wasserstein(a, a + shift, 1, directions=20_000) == pytest.approx(1, rel=0.02)
    assert sliced_wasserstein(a, a + shift, 2, directions=20_000) == pytest.approx(2 / 3**0.5, rel=0.02)


def test_energy_distance_in_several_dimensions_by_its_definition():
    a, b = draws(20, 4, 5), draws(30, 4, 6, 0.5)
    pairs = [np.linalg.norm(x[:, None] - y[None], axis=2).mean() for x, y in ((a, b), (a, a), (b, b))]
    assert energy_distance(a, b) == pytest.approx((2 * pairs[0] - pairs[1] - pairs[2]) ** 0.5, rel=1e-9)
    assert energy_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_shapes_dtypes_and_seeds():
    a, b = draws(40, 12, 7), draws(40, 12, 8)
    images = sliced_wasserstein(a.reshape(40, 3, 2, 2).float(), b.reshape(40, 3, 2, 2))
    assert images == pytest.approx(sliced_wasserstein(a, b), rel=1e-6)
    assert sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b)
    assert sliced_wasserstein(a, b, directions=unit_directions(12)) == sliced_wasserstein(a, b)


def test_the_bootstrap_interval_is_as_wide_as_repetition_tells():
    repeated = torch.tensor([sliced_wasserstein(draws(200, 2, k), draws(200, 2, 500 + k, 0.5)) for k in range(100)])
    low, high = bootstrap(sliced_wasserstein, draws(200, 2, 0), draws(200, 2, 500, 0.5), resamples=100)
    assert (high - low) / (2 * 1.96) == pytest.approx(float(repeated.std()), rel=0.3)
    assert low < sliced_wasserstein(draws(200, 2, 0), draws(200, 2, 500, 0.5)) < high


def test_the_interval_of_a_mean_over_problems():
    values = draws(200, 1, 9, 3.0)
    low, high = bootstrap_mean(values)
    half = 1.96 * float(values.std()) / 200**0.5
    assert (low, high) == pytest.approx((float(values.mean()) - half, float(values.mean()) + half), abs=0.03)
    assert bootstrap_mean(values) == (low, high)
    pairs = torch.cat([values, 2 * values], 1)
    assert bootstrap_mean(pairs, lambda means: means[..., 1] / means[..., 0]) == pytest.approx((2, 2))


def test_wrong_use_is_refused_in_a_sentence(global_random_state_is_untouched):
    a = draws(5, 2, 0)
    with pytest.raises(ValueError, match="p is 3: expected 1 or 2"):
        sliced_wasserstein(a, a, p=3)
    for distance in (sliced_wasserstein, energy_distance):
        with pytest.raises(ValueError, match=r"shapes \(5, 2\) and \(5, 3\): expected \(n, ...\) and \(m, ...\)"):
            distance(a, draws(5, 3, 0))
    with pytest.raises(ValueError, match="level is 95: expected a probability between 0 and 1"):
        bootstrap(sliced_wasserstein, a, a, level=95)
