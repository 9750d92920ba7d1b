"""The peers in the benchmarks: as many evaluations as asked for, at the cost that is counted."""

from __future__ import annotations

import csv

import pytest
import torch

from benchmarks import posterior_peers, quality
from invdiff import Likelihood, compare
from invdiff.noise import GaussianNoise
from invdiff.operators import Mask, random_mask
from invdiff.priors.base import as_prior

SHAPE, SIGMA_Y, STEPS = (3, 12, 12), 0.05, 6
PEERS = [method for method in quality.METHODS if not method.startswith("invdiff")]


def task():
    operator = Mask(random_mask(SHAPE, 0.3, seed=0), SHAPE)
    x = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Likelihood(operator(x)[0], operator, GaussianNoise(SIGMA_Y))


def half(x, sigma):
    return 0.5 * x + 0.25


shrunk = as_prior(half)


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


def test_intervals_of_the_table_are_those_of_compare():
    head = {"sigma_y": "0.05", "task": "blur", "nfe": "5", "nfe_backward": "2"}
    rows = [
        head | {"method": method, "image": str(place), "psnr_mean": str(value)}
        for method, values in (("invdiff kps", (20, 25, 30)), ("deepinv ddrm", (19, 23, 27)))
        for place, value in enumerate(values)
    ]
    low, high = compare.interval([-1, -2, -3])
    assert quality.table(rows)[-1].split(" | ")[3:5] == ["5 + 2", f"23.00 [{low:+.2f}, {high:+.2f}]"]


def test_a_case_alone_keeps_the_rows_of_the_others(tmp_path, monkeypatch):
    rows = [{"operator": "blur", "solver": "deepinv ddrm", "coverage": 0.5}]
    monkeypatch.setattr(posterior_peers, "run", lambda *_: iter(rows))
    posterior_peers.main(["--out", str(tmp_path / "a.csv")])
    rows[:] = [{"operator": "blur", "solver": "azula dps", "coverage": 0.25}, {**rows[0], "coverage": 0.75}]
    posterior_peers.main(["--out", str(tmp_path / "a.csv")])
    with (tmp_path / "a.csv").open(newline="") as handle:
        assert [(row["solver"], row["coverage"]) for row in csv.DictReader(handle)] == [
            ("deepinv ddrm", "0.7500"),
            ("azula dps", "0.2500"),
        ]
