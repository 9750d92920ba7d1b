"""Statistics of draws in a folder: those of the same draws in memory, without ever holding them all."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invdiff import Likelihood, Posterior, sample, statistics
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM, PnPHQS
from invdiff.stored import Stored

SHAPE = (1, 4, 4)
PRIOR = GaussianPrior.power_law(SHAPE)


def likelihood(measurements: int | None = None) -> Likelihood:
    y = PRIOR.sample(measurements or 1, seed=1).float()
    return Likelihood(y if measurements else y[0], Identity(SHAPE), GaussianNoise(0.1))


def run(measurements: int | None = None, draws: int = 23, **where) -> Posterior:
    return sample(DDRM(steps=3), likelihood(measurements), PRIOR, draws=draws, micro_batch=4, **where)


def all_of(posterior: Posterior) -> list[Tensor]:
    return [posterior.mean(), posterior.std(), posterior.quantile(0.3), *posterior.interval(0.9)]


@pytest.mark.parametrize("measurements", [None, 1, 6])
@pytest.mark.parametrize("at_once", [1, 100, 2**24])
def test_statistics_of_a_folder_are_those_in_memory(tmp_path, monkeypatch, measurements, at_once):
    monkeypatch.setattr(statistics, "_AT_ONCE", at_once)
    kept, held = run(measurements, store=tmp_path / "run"), run(measurements)
    for here, there, plain in zip(
        all_of(Posterior.load(tmp_path / "run")),
        all_of(held),
        [held.draws.mean(0), held.draws.std(0), held.draws.quantile(0.3, 0)],
        strict=False,
    ):
        assert here.shape == there.shape == plain.shape
        assert here.dtype == there.dtype
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kept.mean(), held.draws.mean(0))
    torch.testing.assert_close(kept.std(), held.draws.std(0))
    order = held.draws.sort(0).values
    for bound, value in zip(kept.interval(0.5), (order[5], order[17]), strict=True):
        torch.testing.assert_close(bound, value)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30),
    lost=st.sets(st.integers(0, 29), max_size=8),
    width=st.integers(1, 9),
    q=st.floats(0.05, 0.95),
)
def test_moments_and_quantiles_by_parts_without_what_failed(values, lost, width, q):
    draws = torch.tensor(values, dtype=torch.float64)
    failed = torch.tensor([k in lost for k in range(len(values))])
    draws[failed] = torch.nan
    fine = draws[~failed]
    mean, std = statistics.moments(draws.split(width), failed)
    if len(fine):
        torch.testing.assert_close(mean, fine.mean())
    else:
        assert mean.isnan()
    if len(fine) > 1:
        torch.testing.assert_close(std, fine.std(), atol=1e-9, rtol=1e-7)
    else:
        assert std.isnan()
    (found,) = statistics.quantiles(draws, failed, [q])
    if 1 <= (len(fine) + 1) * q <= len(fine):
        torch.testing.assert_close(found, torch.tensor(np.quantile(fine, q, method="weibull")), atol=1e-9, rtol=1e-9)
    elif (len(fine) + 1) * q < 0.99 or (len(fine) + 1) * q > len(fine) + 0.01:
        assert found.isnan()


def test_the_spread_around_a_large_mean_keeps_its_digits():
    draws = 1e4 + torch.randn(64, generator=torch.Generator().manual_seed(0))
    expected = draws.double().std().float()
    torch.testing.assert_close(statistics.moments(draws.split(16))[1], expected, rtol=1e-6, atol=0)


def test_no_statistic_reads_more_than_a_micro_batch_at_a_time(tmp_path, monkeypatch):
    read, most = Stored._get, []

    def watched(self: Stored, name: str, place: tuple[slice, slice]):
        found = read(self, name, place)
        if name == "x":
            most.append(len(found))
        return found

    run(3, 40, store=tmp_path / "run")
    monkeypatch.setattr(Stored, "_get", watched)
    posterior = Posterior.load(tmp_path / "run")
    assert (len(posterior), posterior.shape, posterior.point) == (40, (40, 3, *SHAPE), False)
    assert repr(posterior) == "Posterior((40, 3, 1, 4, 4), DDRM, uncalibrated spread)"
    assert not most
    all_of(posterior)
    assert max(most) == 1
    assert posterior._draws is None
    # A slab reads each chunk once for its checksum, however many slabs there are.
    most.clear()
    posterior.quantile(0.5)
    assert not most
    assert np.asarray(posterior).shape == (40, 3, *SHAPE)


def test_peak_memory_of_the_statistics_does_not_grow_with_the_draws(tmp_path):
    """Draws of 1 MB: 8 and 64 of them in a folder; the peak is the process's own."""
    line = """
import resource, sys
import torch
from invdiff import Posterior
torch.set_num_threads(1)
posterior = Posterior.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
posterior.mean(), posterior.std()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    shape = (1, 512, 512)
    problem = Likelihood(torch.full(shape, 0.5), Identity(shape), GaussianNoise(0.1))
    grown = []
    for draws in (8, 64):
        path = str(tmp_path / str(draws))
        sample(DDRM(steps=2), problem, lambda x, sigma: x, draws=draws, micro_batch=1, store=path)
        done = subprocess.run([sys.executable, "-c", line, path], capture_output=True, text=True, check=True)
        grown.append(int(done.stdout))
    assert grown[1] < grown[0] + 8 * 1024, grown


def test_an_unfinished_folder_gives_its_finished_draws(tmp_path):
    def stop(step: int, x: Tensor) -> None:
        steps.append(step)
        if len(steps) == 3 * 5:
            raise KeyboardInterrupt

    steps: list[int] = []
    with pytest.warns(UserWarning, match="Interrupted: 2 of 6 draws"):
        # Micro-batches hold 3 of 6 measurements: of draw 2 one half is there.
        sample(DDRM(steps=3), likelihood(6), PRIOR, draws=6, micro_batch=4, store=tmp_path / "run", on_step=stop)
    posterior = Posterior.load(tmp_path / "run")
    assert (len(posterior), posterior.record["draws"], posterior.record["interrupted"]) == (2, 2, True)
    assert torch.equal(posterior.draws, run(6, 2).draws)
    assert posterior.record["store"] == str(tmp_path / "run")


def test_a_folder_without_a_draw(tmp_path):
    def stop(step: int, x: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(store=tmp_path / "run", on_step=stop)
    with pytest.raises(ValueError, match=r"run holds no draws yet: run its sample.* again to go on"):
        Posterior.load(tmp_path / "run")


def test_what_is_no_folder_of_draws(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(FileExistsError, match="other is no ensemble of invdiff"):
        Posterior.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="missing is not there"):
        Posterior.load(tmp_path / "missing")


def test_a_folder_loaded_has_the_record_of_its_run(tmp_path):
    made = run(2, store=tmp_path / "run")
    loaded = Posterior.load(tmp_path / "run")
    ours = made.record.copy()
    ours.pop("seconds")
    assert loaded.record == ours
    assert loaded.label == made.label
    in_memory = run(2).record
    assert {key for key in in_memory if in_memory[key] != made.record.get(key)} == {"seconds"}
    loaded = Posterior.load(tmp_path / "run")
    loaded.save(tmp_path / "one.safetensors")
    again = Posterior.load(tmp_path / "one.safetensors")
    assert torch.equal(again.draws, made.draws)
    assert loaded._draws is None, "a part at a time"
    ours.pop("store")
    assert again.record == ours, "the path is left out"


def test_a_point_estimate_in_a_folder(tmp_path):
    posterior = sample(PnPHQS(iterations=2), likelihood(2), PRIOR, store=tmp_path / "run")
    held = sample(PnPHQS(iterations=2), likelihood(2), PRIOR)
    assert torch.equal(Posterior.load(tmp_path / "run").draws, held.draws)
    assert torch.equal(posterior.mean(), held.mean())
    with pytest.raises(ValueError, match="one point estimate, which has no spread"):
        Posterior.load(tmp_path / "run").std()


def test_both_moments_are_read_once(tmp_path, monkeypatch):
    read, places = Stored._get, []

    def watched(self: Stored, name: str, place: tuple[slice, slice]):
        if name == "x":
            places.append(place)
        return read(self, name, place)

    run(store=tmp_path / "run")
    monkeypatch.setattr(Stored, "_get", watched)
    posterior = Posterior.load(tmp_path / "run")
    mean = posterior.mean()
    once = len(places)
    assert once == 6
    mean.zero_()
    assert posterior.std().isfinite().all()
    assert posterior.mean().ne(0).any(), "the caller's own copy"
    assert len(places) == once
