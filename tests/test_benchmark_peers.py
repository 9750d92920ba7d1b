"""The peers in the benchmarks: as many evaluations as asked for, at the cost that is counted."""

from __future__ import annotations

import pytest
import torch

from benchmarks import quality
from invdiff import Likelihood
from invdiff.noise import GaussianNoise
from invdiff.operators import Mask, random_mask

SHAPE, SIGMA_Y, STEPS = (3, 12, 12), 0.05, 6
PEERS = [method for method in quality.METHODS if not method.startswith("invdiff")]


def task():
    operator = Mask(random_mask(SHAPE, 0.3, seed=0), SHAPE)
    x = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Likelihood(operator(x)[0], operator, GaussianNoise(SIGMA_Y))


def shrunk(x, sigma):
    return 0.5 * x + 0.25


@pytest.mark.parametrize("method", PEERS)
def test_a_peer_takes_the_evaluations_that_it_is_given(method):
    library, name = method.split()
    pytest.importorskip(library, reason=f"the optional package {library} is not installed")
    made = quality.peer(library, name, task(), shrunk, 2, STEPS)
    assert made is not None
    assert made[1]["nfe"] == str(STEPS)
    assert torch.isfinite(made[0].draws).all()
    share = quality.DRAWN.get(method, quality.DRAWN.get(name, 1))
    assert share * STEPS == STEPS + 2 * int(made[1]["nfe_backward"])


def test_our_methods_cost_what_is_counted():
    for name in quality.OURS:
        share = quality.DRAWN.get(name)
        if share:
            row = quality.own(name, task(), shrunk, 1, STEPS)[1]
            assert (name, int(row["nfe"]) + 2 * int(row["nfe_backward"])) == (name, share * STEPS)
