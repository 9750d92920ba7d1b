"""Scores of one image: against scoringrules and numpy, by their expectations, and their invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import chisquare

from invdiff import Posterior, scores
from invdiff.scores import draws_needed, fair_crps, fair_error, pit, ranks, score, stream

LEVELS = (0.5, 0.8, 0.9, 0.95)
# Few different values, so that there are ties, and ordinary ones.
NUMBERS = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-2, 2, width=32))
TABLES = st.tuples(st.integers(3, 12), st.integers(1, 6)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=NUMBERS)
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(draws: torch.Tensor, truth: torch.Tensor, bins: int = 20) -> scores.Scores:
    return score(draws, truth, LEVELS, bins, stream(0, "test"))


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_fair_crps_is_that_of_scoringrules(table: np.ndarray) -> None:
    truth, draws = table[0], table[1:]
    expected = scoringrules.crps_ensemble(truth, draws, m_axis=0, estimator="fair")
    found = fair_crps(torch.from_numpy(draws), torch.from_numpy(truth))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    pairs = np.abs(draws[:, None] - draws[None]).sum((0, 1)) / (2 * len(draws) * (len(draws) - 1))
    np.testing.assert_allclose(found, np.abs(draws - truth).mean(0) - pairs, atol=1e-12)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_expectation_of_fair_crps_does_not_depend_on_the_number_of_draws(count: int, std: float) -> None:
    number = 400_000 // count
    found = fair_crps(std * normal(count, number, seed=count), normal(number, seed=1))
    # E|X - T| - E|X - X'| / 2 of normal X of this std and standard normal T.
    expected = math.sqrt(2 * (1 + std**2) / math.pi) - std / math.sqrt(math.pi)
    assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / math.sqrt(number))
    unfair = scoringrules.crps_ensemble(
        normal(number, seed=1).numpy(), std * normal(count, number, seed=count).numpy().T
    )
    assert unfair.mean() > found.mean() + std / (3 * count)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_expectation_of_fair_error_is_that_of_endless_draws(count: int) -> None:
    number, mean, std = 400_000 // count, 0.7, 2.0
    draws, truth = mean + std * normal(count, number, seed=count), normal(number, seed=1)
    found = fair_error(draws, truth)
    slack = 4 * found.std().item() / math.sqrt(number)
    assert found.mean().item() == pytest.approx(mean**2 + 1, abs=slack)
    unfair = (draws.mean(0) - truth).square().mean().item()
    assert unfair == pytest.approx(mean**2 + 1 + std**2 / count, abs=slack)


@settings(max_examples=40, deadline=None)
@given(TABLES, st.floats(0.1, 3), st.floats(-2, 2))
def test_what_shift_and_scale_do(table: np.ndarray, scale: float, shift: float) -> None:
    draws, truth = torch.from_numpy(table[1:]), torch.from_numpy(table[0])
    torch.testing.assert_close(fair_crps(scale * draws + shift, scale * truth + shift), scale * fair_crps(draws, truth))
    torch.testing.assert_close(fair_crps(-draws, -truth), fair_crps(draws, truth))
    torch.testing.assert_close(fair_crps(draws.flip(0), truth), fair_crps(draws, truth))


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_a_rank_lies_among_those_that_ties_allow(table: np.ndarray) -> None:
    draws, truth = table[1:], table[0]
    found = ranks(torch.from_numpy(draws), torch.from_numpy(truth), stream(3)).numpy()
    assert ((draws < truth).sum(0) <= found).all()
    assert (found <= (draws <= truth).sum(0)).all()
    again = pit(torch.from_numpy(draws), torch.from_numpy(truth), stream(3)).numpy()
    np.testing.assert_array_equal(np.floor(again * (len(draws) + 1) + 1e-9), found)
    # A rank is that of any increasing function.
    other = ranks(torch.from_numpy(np.arctan(draws)), torch.from_numpy(np.arctan(truth)), stream(3)).numpy()
    np.testing.assert_array_equal(other, found)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_of_exchangeable_draws_are_uniform(ties: bool) -> None:
    table = normal(8, 40_000, seed=5)
    table = table.round() if ties else table
    found = ranks(table[1:], table[0], stream(0))
    assert chisquare(torch.bincount(found, minlength=8).numpy()).pvalue > 0.01
    # Counting only draws below would not do with ties.
    below = torch.bincount((table[1:] < table[0]).sum(0), minlength=8)
    assert bool(chisquare(below.numpy()).pvalue < 1e-6) is ties
    u = pit(table[1:], table[0], stream(0))
    assert u.mean().item() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 40_000))
    assert chisquare(torch.histc(u, 13, 0, 1).numpy()).pvalue > 0.01


def test_scores_are_the_means_of_their_parts() -> None:
    draws, truth = normal(39, 200, seed=2), normal(200, seed=3)
    found = whole(draws, truth, bins=40)
    assert (found.values, found.draws) == (200, 39)
    assert found.crps == pytest.approx(fair_crps(draws, truth).mean().item())
    assert found.variance == pytest.approx(np.var(draws.numpy(), axis=0, ddof=1).mean())
    assert found.error == pytest.approx(np.square(draws.numpy().mean(0) - truth.numpy()).mean())
    places = ranks(draws, truth, stream(0, "test"))
    np.testing.assert_allclose(found.histogram, torch.bincount(places, minlength=40) / 200)
    u = pit(draws, truth, stream(0, "test"))
    assert found.centre == pytest.approx(u.mean().item())
    assert found.dispersion == pytest.approx(12 * (u - 0.5).square().mean().item())
    for level, share in zip(LEVELS, found.coverage, strict=True):
        low, high = Posterior(draws, {}).interval(level)
        assert share == pytest.approx(((low <= truth) & (truth <= high)).double().mean().item())


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draws, truth = normal(20, 333, seed=2).float(), normal(333, seed=3).float()
    at_once = whole(draws, truth)
    monkeypatch.setattr(scores, "_AT_ONCE", 20 * 50)
    in_parts = whole(draws, truth)
    assert in_parts.coverage == pytest.approx(at_once.coverage, nan_ok=True)
    assert in_parts.histogram == pytest.approx(at_once.histogram)
    for name in ("crps", "variance", "error", "centre", "dispersion"):
        assert getattr(in_parts, name) == pytest.approx(getattr(at_once, name), rel=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_the_draws_do_not_reach_is_not_a_number(level: float) -> None:
    needed = draws_needed(level)
    index = LEVELS.index(level)
    assert math.isnan(whole(normal(max(needed - 1, 2), 50), normal(50)).coverage[index]) is (needed > 2)
    draws, truth = normal(needed, 20_000, seed=8), normal(20_000, seed=9)
    # The interval is that from the lowest to the highest draw.
    held = ((draws.amin(0) <= truth) & (truth <= draws.amax(0))).double().mean().item()
    assert whole(draws, truth).coverage[index] == pytest.approx(held)
    assert held == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 20_000))
    with pytest.raises(ValueError, match=f"at least {needed} draws"):
        Posterior(draws[:-1], {}).interval(level)


def test_streams_depend_on_seed_and_names_alone(global_random_state_is_untouched: None) -> None:
    first = torch.rand(4, generator=stream(0, "a", "b"))
    assert torch.equal(first, torch.rand(4, generator=stream(0, "a", "b")))
    for other in (stream(1, "a", "b"), stream(0, "a"), stream(0, "b", "a"), stream(0, "ab")):
        assert not torch.equal(first, torch.rand(4, generator=other))
    whole(normal(5, 9), normal(9))


def test_scores_leave_their_input_alone() -> None:
    draws, truth = normal(6, 7), normal(7, seed=1)
    before = draws.clone(), truth.clone()
    whole(draws, truth)
    assert torch.equal(draws, before[0])
    assert torch.equal(truth, before[1])


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 3\): expected \(K, ...\) with \(2,\)"):
        fair_crps(torch.zeros(4, 3), torch.zeros(2))
    for function in (lambda d, t: pit(d, t, stream(0)), lambda d, t: ranks(d, t, stream(0)), fair_crps, whole):
        with pytest.raises(ValueError, match="There are 1 draws: scores of a spread need at least 2"):
            function(torch.zeros(1, 3), torch.zeros(3))
    for seed in (-1, True, 0.5):
        with pytest.raises(ValueError, match="expected an integer from 0 on"):
            stream(seed)  # type: ignore[arg-type]
