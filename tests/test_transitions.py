"""Every transition follows the flow of a Gaussian, and the one of third order is of third order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from invdiff.random import MemberRandom
from invdiff.schedule import noise_levels
from invdiff.transitions import TRANSITIONS, _parabola, ode3m, reverse, sde3m

MEAN, STD = 0.4, 0.15


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x_sigma = x] for x0 ~ N(MEAN, STD^2), value by value."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def flowed(x: Tensor, sigma: float, t: float) -> Tensor:
    """Where dx / dsigma = (x - E) / sigma brings x from sigma to t."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + t**2) / (STD**2 + sigma**2))


def error(transition: str, steps: int) -> float:
    """How far from the flow x is at the last level above 0, on a geometric grid."""
    # Ended where the estimate still bends: further down the errors of both sides cancel, and the order looks higher.
    levels = noise_levels("ve", steps, 0.1, 20.0)
    x = torch.tensor([[7.0]], dtype=torch.float64)
    *_, last, _ = reverse(transition, gaussian, x, levels, MemberRandom(0, [(0, 0)]))
    return abs(float(last - flowed(x, 20.0, 0.1)))


@pytest.mark.parametrize(("transition", "low", "high"), [("ode3m", 2.7, 3.4), ("ode2m", 1.7, 2.4), ("heun", 1.7, 2.4)])
def test_order_of_convergence(transition, low, high):
    order = math.log2(error(transition, 61) / error(transition, 121))
    assert low < order < high


def test_the_third_order_wins_at_the_same_number_of_estimates():
    assert error("ode3m", 41) < 0.6 * error("ode2m", 41)


@pytest.mark.parametrize("rate", [1.0, 2.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_weights_are_exact_for_parabolas(count, rate):
    generator = np.random.default_rng(count)
    for h in (1e-3, 0.2, 3.0):
        nodes = [0.0, *np.cumsum(-h * (0.3 + generator.random(2)))][:count]
        coefficients = generator.normal(size=count)
        weights = _parabola(nodes, h, rate)
        found = sum(w * np.polyval(coefficients, node) for w, node in zip(weights, nodes, strict=True))
        integral, _ = scipy.integrate.quad(
            lambda at, c=coefficients, h=h: rate * math.exp(rate * (at - h)) * np.polyval(c, at), 0, h
        )
        assert found == pytest.approx(integral, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("step", "rate"), [(ode3m, 1), (sde3m, 2)])
def test_a_step_of_the_third_order_is_the_integral_over_the_parabola(step, rate):
    """Estimates that are a parabola in log sigma, whatever x is: from the third step on nothing is lost."""

    def parabola(x: Tensor, sigma: float) -> Tensor:
        return torch.full_like(x, 0.3 + 0.5 * math.log(sigma) - 0.2 * math.log(sigma) ** 2)

    levels = [1.0, 0.64, 0.4, 0.26, 0.16, 0.0]
    x = torch.zeros(1, 1, dtype=torch.float64)
    path, noise = list(step(parabola, x, levels, MemberRandom(0, [(0, 0)]))), MemberRandom(0, [(0, 0)])
    fresh = [float(noise.normal(x)) * (rate - 1) for _ in levels[1:-1]]
    for k in range(2, 4):
        sigma, t = levels[k], levels[k + 1]
        # Over s = e^-l: e^(rate l) dl = s^-(rate + 1) ds.
        integral, _ = scipy.integrate.quad(lambda s: rate * float(parabola(x, s)) / s ** (rate + 1), t, sigma)
        expected = (t / sigma) ** rate * float(path[k - 1]) + t**rate * integral
        expected += t * (1 - (t / sigma) ** 2) ** 0.5 * fresh[k]
        assert float(path[k]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["ve", "karras", "vp", "cosine", "flow"])
@pytest.mark.parametrize("step", [ode3m, sde3m])
def test_no_schedule_makes_the_multistep_diverge(step, schedule):
    """Steps that grow, as the last ones of vp do: a parabola followed that far multiplied the spread by seven."""
    random = MemberRandom(0, [(0, 0)])
    for steps in (10, 20, 50):
        levels = noise_levels(schedule, steps, 0.002, 40.0)
        x = 0.4 + levels[0] * random.normal(torch.empty(1, 20_000, dtype=torch.float64))
        *_, draws = step(gaussian, x, levels, random)
        assert float(draws.std()) < 1.5 * STD, (steps, schedule)


def test_the_last_step_goes_half_way_to_the_estimate():
    x = torch.tensor([[0.2, 0.8]])
    (only,) = ode3m(lambda x, sigma: torch.ones_like(x), x, [0.01, 0.0], MemberRandom(0, [(0, 0)]))
    torch.testing.assert_close(only, torch.tensor([[0.6, 0.9]]))
    torch.testing.assert_close(x, torch.tensor([[0.2, 0.8]]), rtol=0, atol=0)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_many_steps_draw_the_gaussian(transition):
    levels, count = noise_levels("ve", 500, 0.002, 5.0), 40_000
    random = MemberRandom(0, [(0, 0)])
    x = 0.4 + (STD**2 + 25.0) ** 0.5 * random.normal(torch.empty(1, count, dtype=torch.float64))
    *_, draws = reverse(transition, gaussian, x, levels, random)
    assert float(draws.mean()) == pytest.approx(MEAN, abs=4 * STD / count**0.5)
    assert float(draws.std()) == pytest.approx(STD, rel=0.02)
    # Beyond mean and spread: the share of draws below each decile.
    below = (draws < MEAN + STD * torch.special.ndtri(torch.linspace(0.1, 0.9, 9).double())[:, None]).double().mean(1)
    torch.testing.assert_close(below, torch.linspace(0.1, 0.9, 9).double(), atol=0.012, rtol=0)


def test_estimates_are_made_once_a_step():
    for transition in TRANSITIONS:
        asked: list[float] = []

        def watched(x: Tensor, sigma: float, asked: list[float] = asked) -> Tensor:
            asked.append(sigma)
            return gaussian(x, sigma)

        levels = [2.0, 1.0, 0.5, 0.0]
        list(reverse(transition, watched, torch.ones(1, 1), levels, MemberRandom(0, [(0, 0)])))
        assert asked == ([2.0, 1.0, 1.0, 0.5, 0.5] if transition == "heun" else [2.0, 1.0, 0.5])


def test_an_unknown_transition_is_refused():
    known = "ancestral, ddim, heun, ode2m, sde2m, ode3m, sde3m"
    with pytest.raises(ValueError, match=rf"transition is 'euler': expected one of {known}\."):
        reverse("euler", gaussian, torch.ones(1, 1), [1.0, 0.0], MemberRandom(0, [(0, 0)]))


@pytest.mark.parametrize(
    ("transition", "steps", "ratio"),
    [("sde3m", 30, 1.008), ("sde3m", 60, 1.004), ("ode3m", 30, 1.001), ("sde2m", 30, 1.016), ("sde2m", 60, 1.007)],
)
def test_the_spread_of_a_scalar_gaussian_is_what_the_page_on_kps_says(transition, steps, ratio):
    """docs/kps.md; 400,000 draws tell a ratio of stds to 0.001."""
    random = MemberRandom(0, [(0, 0)])
    levels = noise_levels("ve", steps, 0.002, 40.0)
    x = MEAN + (STD**2 + levels[0] ** 2) ** 0.5 * random.normal(torch.empty(1, 400_000, dtype=torch.float64))
    *_, draws = reverse(transition, gaussian, x, levels, random)
    assert float(draws.std()) / STD == pytest.approx(ratio, abs=0.003)
