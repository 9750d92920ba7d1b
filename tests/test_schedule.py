from __future__ import annotations

import pytest
import torch

from invdiff.schedule import karras, noise_levels, vp_linear


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


@pytest.mark.parametrize("schedule", ["vp", "karras"])
def test_levels_fall_and_end_in_zero(schedule):
    levels = noise_levels(schedule, 20, 0.005, 40.0)
    assert len(levels) == 21
    assert levels[-1] == 0
    assert levels[0] == pytest.approx(40.0)
    assert levels[-2] == pytest.approx(0.005)
    assert levels == sorted(set(levels), reverse=True)
