from __future__ import annotations

import numpy as np
import pytest
import torch

from invdiff.random import MemberRandom


def test_a_stream_does_not_depend_on_its_neighbours(global_random_state_is_untouched):
    like = torch.empty(3, 2, 5, 5)
    together = MemberRandom(7, [(0, 0), (1, 0), (2, 0)])
    first, second = together.normal(like), together.normal(like)
    alone = MemberRandom(7, [(1, 0)])
    assert torch.equal(alone.normal(like[:1])[0], first[1])
    assert torch.equal(alone.normal(like[:1])[0], second[1])


def test_streams_differ_by_seed_draw_and_measurement():
    like = torch.empty(1, 1000)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    noise = torch.cat([MemberRandom(seed, [(draw, j)]).normal(like) for seed, draw, j in keys])
    correlation = np.corrcoef(noise.numpy())
    assert np.abs(correlation - np.eye(4)).max() < 0.15


def test_numbers_are_standard_normal_and_poisson():
    random = MemberRandom(0, [(k, 0) for k in range(50)])
    noise = random.normal(torch.empty(50, 2000))
    assert abs(float(noise.mean())) < 0.015
    assert abs(float(noise.std()) - 1) < 0.01
    counts = random.poisson(torch.full((50, 2000), 3.0))
    assert abs(float(counts.mean()) - 3) < 0.03
    assert abs(float(counts.var()) - 3) < 0.06


def test_uniform_numbers_have_a_stream_of_each_member():
    like = torch.empty(50, 2000, dtype=torch.float64)
    numbers = MemberRandom(0, [(k, 0) for k in range(50)]).uniform(like)
    assert numbers.dtype == torch.float64
    assert 0 <= float(numbers.min()) < 1e-3 < 1 - 1e-3 < float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 5e-3
    assert torch.equal(MemberRandom(0, [(7, 0)]).uniform(like[:1])[0], numbers[7])


def test_golden_values_hold_across_versions():
    """Changing these changes every published draw."""
    noise = MemberRandom(0, [(0, 0), (5, 2)]).normal(torch.empty(2, 2))
    expected = torch.tensor(GOLDEN)
    torch.testing.assert_close(noise, expected, atol=1e-6, rtol=0)


GOLDEN = [[0.9956191, 0.2642377], [0.1348669, -0.0083559]]


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(ValueError, match=r"seed is .*expected an integer from 0 on"):
        MemberRandom(seed, [(0, 0)])


def test_a_batch_of_another_size_is_refused():
    for kind in ("normal", "uniform"):
        with pytest.raises(ValueError, match="has 3 members: expected 2"):
            getattr(MemberRandom(0, [(0, 0), (1, 0)]), kind)(torch.empty(3, 4))
