from __future__ import annotations

import pytest
import torch

from invdiff.schedule import SCHEDULES, Flow, VPCosine, karras, noise_levels, vp_linear


def test_vp_follows_the_thousand_betas_of_ddpm():
    """Even steps in time between the ends of the discrete process reproduce its own noise levels, in our units."""
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    discrete = ((1 - alpha_bar) / alpha_bar).sqrt().flip(0) / 2
    ours = vp_linear(1000, float(discrete[-1]), float(discrete[0]))
    torch.testing.assert_close(ours[:900], discrete[:900], rtol=0.03, atol=0)


def test_karras_equals_the_published_example():
    """EDM's 18 steps from 80 to 0.002, Karras et al. 2022, table 1: spot values computed from eq. 5."""
    levels = karras(18, 0.002, 80.0)
    assert float(levels[0]) == pytest.approx(80.0)
    assert float(levels[-1]) == pytest.approx(0.002)
    third = (80 ** (1 / 7) + 3 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(levels[3]) == pytest.approx(third)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_fall_and_end_in_zero(schedule):
    levels = noise_levels(schedule, 20, 0.005, 40.0)
    assert len(levels) == 21
    assert levels[-1] == 0
    assert levels[0] == pytest.approx(40.0)
    assert levels[-2] == pytest.approx(0.005)
    assert levels == sorted(set(levels), reverse=True)


def test_ve_is_geometric():
    levels = torch.tensor(noise_levels("ve", 9, 0.01, 30.0)[:-1], dtype=torch.float64)
    torch.testing.assert_close(levels[1:] / levels[:-1], torch.full((8,), (0.01 / 30) ** (1 / 8), dtype=torch.float64))


@pytest.mark.parametrize(("schedule", "process"), [("cosine", VPCosine()), ("flow", Flow())])
def test_cosine_and_flow_are_even_in_the_time_of_images_in_minus_one_to_one(schedule, process):
    levels = torch.tensor(noise_levels(schedule, 9, 0.01, 30.0)[:-1], dtype=torch.float64)
    steps = process.time(2 * levels).diff()
    torch.testing.assert_close(steps, steps[:1].expand(8))


@pytest.mark.parametrize(
    ("schedule", "low", "high", "sentence"),
    [
        ("linear", 0.01, 1.0, "schedule is 'linear': expected one of karras, vp, cosine, ve, flow"),
        ("vp", 1.0, 0.5, r"sigma_min is 1\.0 and sigma_max 0\.5: expected 0 < sigma_min < sigma_max"),
        ("vp", 0.0, 0.5, r"sigma_min is 0\.0"),
    ],
)
def test_wrong_schedules_and_limits_are_refused(schedule, low, high, sentence):
    with pytest.raises(ValueError, match=sentence):
        noise_levels(schedule, 10, low, high)
