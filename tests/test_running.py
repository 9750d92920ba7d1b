"""Running an ensemble: too little memory, draws that fail, Ctrl-C, and what is shown of it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.priors.base import Prior
from invdiff.solvers import DDRM

SHAPE = (1, 4, 4)
SOLVER = DDRM(steps=3)
EXACT = GaussianPrior.power_law(SHAPE)


class Small(Prior):
    """A machine with memory for `most` images at a time, from the call `first` on."""

    name = "small"

    def __init__(self, most: int, first: int = 0, error: type[Exception] = RuntimeError) -> None:
        self._most, self._first, self._error, self._calls = most, first, error, 0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self._calls += 1
        if self._calls > self._first and len(x) > self._most:
            raise self._error("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")
        return EXACT.denoise(x, sigma)


class Poisoned(Prior):
    """Spoils some draws from the second level on: those of the members `bad` of every micro-batch."""

    name = "poisoned"

    def __init__(self, *bad: int) -> None:
        self._bad, self._calls = bad, 0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self._calls += 1
        x0 = EXACT.denoise(x, sigma)
        if self._calls % 3 != 1:
            x0[list(self._bad)] = torch.nan
        return x0


def likelihood(measurements: int | None = None) -> Likelihood:
    y = EXACT.sample(measurements or 1, seed=1).float()
    return Likelihood(y if measurements else y[0], Identity(SHAPE), GaussianNoise(0.1))


def run(prior: Prior, draws: int = 6, given: Likelihood | None = None, **settings) -> Posterior:
    return sample(SOLVER, given or likelihood(), prior, draws=draws, **{"micro_batch": 4} | settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("kept", [False, True])
def test_a_first_micro_batch_that_does_not_fit_is_halved_until_it_does(tmp_path, error, kept):
    where = {"store": tmp_path / "run"} if kept else {}
    with pytest.warns(UserWarning, match="does not fit") as caught:
        posterior = run(Small(1, error=error), **where)
    said = [str(warning.message) for warning in caught]
    assert said == [
        f"A micro-batch of {size} does not fit into memory: {size // 2} at a time are taken, as the record says."
        for size in (4, 2)
    ]
    assert (posterior.record["micro_batch"], posterior.record["micro_batch_asked"]) == (1, 4)
    assert torch.equal(posterior.draws, run(Small(1), micro_batch=1).draws)
    assert [path.name for path in tmp_path.iterdir()] == (["run"] if kept else [])


@pytest.mark.parametrize("asked", [{}, {"micro_batch": None}])
def test_a_folder_that_took_less_at_a_time_goes_on_with_it(tmp_path, asked):
    given = likelihood(2)
    with pytest.warns(UserWarning, match="A micro-batch of 16 does not fit into memory: 8 at a time are taken"):
        run(Small(8), 3, given, micro_batch=None, store=tmp_path / "run")
    with warnings.catch_warnings(action="error"):
        more = run(Small(8), 9, given, micro_batch=None, store=tmp_path / "run")
    assert (more.record["micro_batch"], more.record["micro_batch_asked"]) == (8, 16)
    assert torch.equal(more.draws, run(Small(8), 9, given, micro_batch=8).draws)
    loaded = Posterior.load(tmp_path / "run").record
    assert (loaded["micro_batch"], loaded["micro_batch_asked"]) == (8, 16)
    # Asked for in full again, it is the same call.
    assert torch.equal(run(Small(8), 9, given, micro_batch=16, store=tmp_path / "run").draws, more.draws)


def test_memory_that_runs_out_later_stops_with_the_size_to_use(tmp_path):
    said = "Memory ran out in a micro-batch of 4, after 4 of 6 draws{}: use micro_batch=2{}."
    with pytest.raises(MemoryError, match=re.escape(said.format(", which are lost without a store", ""))):
        run(Small(2, first=3))
    path = tmp_path / "run"
    kept = f" are kept in {path}"
    cure = " and another folder, or make memory free and run it again"
    with pytest.raises(MemoryError, match=re.escape(said.format(kept, cure))):
        run(Small(2, first=3), store=path)
    assert len(Posterior.load(path)) == 4
    run(Small(4), store=path)
    run(Small(4), store=tmp_path / "whole")
    assert contents(path) == contents(tmp_path / "whole")


@pytest.mark.parametrize("kept", [False, True])
def test_one_image_that_does_not_fit(tmp_path, kept):
    where = {"store": tmp_path / "run"} if kept else {}
    said = r"One image of shape \(1, 4, 4\) does not fit into memory with DDRM and small \(.*allocate.*\): use tiles"
    with pytest.warns(UserWarning, match="does not fit"), pytest.raises(MemoryError, match=said):
        run(Small(0), **where)
    if kept:
        # Nothing is in it, and it may be begun again.
        run(Small(1), 2, micro_batch=1, store=tmp_path / "run")


def test_another_error_of_the_prior_is_its_own():
    class Wrong(Small):
        def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
            raise RuntimeError("shapes do not go together")

    with pytest.raises(RuntimeError, match="shapes do not go together"):
        run(Wrong(1))


@pytest.mark.parametrize("kept", [False, True])
def test_failed_draws_are_left_out_of_every_statistic_of_their_measurement(tmp_path, kept):
    given = likelihood(2)
    where = {"store": tmp_path / "run"} if kept else {}
    # Members 0 and 3 of a micro-batch of two draws: measurement 0 of the first, measurement 1 of the second.
    with pytest.warns(UserWarning, match=r"4 of 8 draws are not finite: DDRM diverged \(Draw 0 of measurement 0 at st"):
        posterior = run(Poisoned(0, 3), 4, given, **where)
    expected = [{"draw": k, "measurement": j, "step": 2} for k, j in ((0, 0), (1, 1), (2, 0), (3, 1))]
    assert posterior.record["failed"] == expected
    if kept:
        posterior = Posterior.load(tmp_path / "run")
        assert posterior.record["failed"] == expected
    fine = torch.stack([posterior.draws[[1, 3], 0], posterior.draws[[0, 2], 1]], 1)
    assert fine.isfinite().all()
    assert posterior.draws[[0, 2], 0].isnan().all()
    torch.testing.assert_close(fine, run(EXACT, 4, given).draws[[[1, 0], [3, 2]], [[0, 1], [0, 1]]])
    torch.testing.assert_close(posterior.mean(), fine.mean(0))
    torch.testing.assert_close(posterior.std(), fine.std(0))
    torch.testing.assert_close(posterior.quantile(0.5), fine.mean(0))
    for bound, value in zip(posterior.interval(1 / 3), (fine.amin(0), fine.amax(0)), strict=True):
        torch.testing.assert_close(bound, value)


def test_a_measurement_of_which_every_draw_failed_does_not_take_the_others_statistics(tmp_path):
    given = likelihood(2)
    with pytest.warns(UserWarning, match="4 of 8 draws are not finite"):
        posterior = run(Poisoned(0, 2), 4, given, store=tmp_path / "run")
    other = run(EXACT, 4, given)
    for here, there in (
        (posterior.mean(), other.mean()),
        (posterior.std(), other.std()),
        (posterior.quantile(0.4), other.quantile(0.4)),
        *zip(posterior.interval(0.5), other.interval(0.5), strict=True),
    ):
        assert here[0].isnan().all()
        torch.testing.assert_close(here[1], there[1])


def test_where_every_draw_failed_the_folder_says_so_at_once_again(tmp_path):
    prior = Poisoned(0, 1, 2, 3)
    for calls in (6, 6):
        with pytest.raises(FloatingPointError, match="Draw 0 of measurement 0 is not finite: DDRM diverged at step 2;"):
            run(prior, store=tmp_path / "run")
        assert prior._calls == calls


def test_ctrl_c_keeps_the_finished_draws_in_the_folder(tmp_path):
    def stop(step: int, x: Tensor) -> None:
        steps.append(step)
        if len(steps) == stopped:
            raise KeyboardInterrupt

    path, steps, stopped = tmp_path / "run", [], 2
    with pytest.raises(KeyboardInterrupt):
        run(EXACT, 9, store=path, on_step=stop)
    stopped = 2 + 6
    with pytest.warns(
        UserWarning, match=r"Interrupted: 4 of 9 draws are finished and kept in .*run; run it again to go"
    ):
        kept = run(EXACT, 9, store=path, on_step=stop)
    assert kept.record["interrupted"]
    assert len(kept) == kept.record["draws"] == 4
    whole = run(EXACT, 9, store=path)
    assert not whole.record["interrupted"]
    assert torch.equal(whole.draws, run(EXACT, 9).draws)
    assert torch.equal(whole.draws[:4], kept.draws)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, stream: io.StringIO, *settings, **more) -> list[tuple[int, int]]:
    """(done, in all) as the bar said, in order."""
    monkeypatch.setattr(sys, "stderr", stream)
    run(*settings, **more)
    found = [(int(done), int(total)) for done, total in re.findall(r"(\d+)/(\d+) draws", stream.getvalue())]
    return list(dict.fromkeys(found))


def test_the_bar_counts_the_draws_that_are_there_already(tmp_path, monkeypatch):
    path = tmp_path / "run"
    first = shown(monkeypatch, Terminal(), EXACT, 4, store=path)
    assert first[-1] == (4, 4)
    second = shown(monkeypatch, Terminal(), EXACT, 9, store=path)
    assert second[0] == (4, 9)
    assert second[-1] == (9, 9)
    assert shown(monkeypatch, Terminal(), EXACT, 9, store=path)[-1] == (9, 9)


def test_no_bar_where_nobody_looks(tmp_path, monkeypatch):
    assert not shown(monkeypatch, io.StringIO(), EXACT, 4, store=tmp_path / "run")
    assert not shown(monkeypatch, Terminal(), EXACT, 6, store=tmp_path / "run", progress=False)


def test_peak_memory_does_not_grow_with_the_draws_of_a_folder(tmp_path):
    """Tensors that are alive at the end of each step are as many for 40 draws as for 8."""
    import gc

    def alive(draws: int) -> int:
        def count(step: int, x: Tensor) -> None:
            if step == 3:
                numbers.append(sum(thing.numel() for thing in gc.get_objects() if type(thing) is Tensor))

        numbers: list[int] = []
        run(EXACT, draws, store=tmp_path / str(draws), on_step=count)
        return max(numbers[1:])

    assert alive(40) <= alive(8)


@pytest.mark.parametrize("measurements", [1, 5])
def test_draws_in_memory_are_there_once(measurements):
    """200 draws of 1 MiB in memory: the peak is theirs and little more, not that of parts and their sum."""
    line = """
import resource, sys
import torch
from invdiff import Likelihood, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
class Quick:
    stochastic = True
    def iterate(self, likelihood, denoiser, x, random):
        yield x
torch.set_num_threads(1)
shape, m = (1, 512, 512), int(sys.argv[1])
given = Likelihood(torch.full((m, *shape), 0.5), Identity(shape), GaussianNoise(0.1))
sample(Quick(), given, lambda x, sigma: x, draws=2, micro_batch=4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
posterior = sample(Quick(), given, lambda x, sigma: x, draws=200 // m, micro_batch=4)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", line, str(measurements)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300


def test_ctrl_c_in_memory_keeps_whole_draws_of_all_measurements():
    def stop(step: int, x: Tensor) -> None:
        steps.append(step)
        if len(steps) == 3 * 5:
            raise KeyboardInterrupt

    given, steps = likelihood(6), []
    with pytest.warns(UserWarning, match="Interrupted: 2 of 6 draws are finished and kept"):
        # Micro-batches hold 3 of 6 measurements: of draw 2 one half is there.
        kept = run(EXACT, 6, given, on_step=stop)
    assert torch.equal(kept.draws, run(EXACT, 6, given).draws[:2])
    assert (kept.record["draws"], len(kept)) == (2, 2)
