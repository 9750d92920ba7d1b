"""A process that is killed in the middle and run again leaves the folder of one that was not, byte for byte."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, record, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.priors.base import Prior
from invdiff.solvers import DDRM

SHAPE = (1, 4, 4)
PRIOR = GaussianPrior.power_law(SHAPE)
FORK = multiprocessing.get_context("fork")
FEW, MANY = 3, 9


@pytest.fixture(autouse=True)
def one_commit(monkeypatch):
    """A commit made while the test runs would be another environment."""
    monkeypatch.setattr(record, "_commit", lambda: "0" * 40)


class Resting(Prior):
    """A prior that takes its time."""

    name = "resting"

    def __init__(self, rest: float) -> None:
        self._rest = rest

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        time.sleep(self._rest)
        return PRIOR.denoise(x, sigma)


def run(path: Path, draws: int = MANY, rest: float = 0.0) -> None:
    """Two measurements, and micro-batches of one draw of each."""
    y = torch.full((2, *SHAPE), 0.6)
    likelihood = Likelihood(y, Identity(SHAPE), GaussianNoise(0.1))
    # A draw that is marked before it is there would be a damaged one, and warned of.
    with warnings.catch_warnings(action="error"):
        sample(
            DDRM(steps=3),
            likelihood,
            Resting(rest),
            draws=draws,
            micro_batch=2,
            store=path,
            truth=1 - y,
            progress=False,
        )


def killed(moment: int, work: Callable[[], None]) -> None:
    """Fork a process that kills itself at the moment-th call of a function in any of its threads, while it works."""

    def die() -> None:
        calls = itertools.count(1)

        def watch(frame: object, event: str, argument: object) -> None:
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        # Threads that are started from here on; zarr writes in some of its own.
        threading.setprofile(watch)
        sys.setprofile(watch)
        work()

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"exit {process.exitcode}: the work ended before call {moment}"


def calls(work: Callable[[], None]) -> int:
    """The number of calls that `killed` counts until the work is done."""

    def count() -> None:
        counter = itertools.count()

        def watch(frame: object, event: str, argument: object) -> None:
            next(counter)

        threading.setprofile(watch)
        sys.setprofile(watch)
        work()
        sys.setprofile(None)
        queue.put(next(counter))

    queue = FORK.Queue()
    process = FORK.Process(target=count)
    process.start()
    found = queue.get(timeout=60)
    process.join()
    return found


def moments(total: int, count: int, seed: int) -> list[int]:
    """One at random in each of so many equal parts of the work; threads make its length vary by a few calls."""
    chance, part = random.Random(seed), 0.95 * total / count
    return [1 + int(part * (k + chance.random())) for k in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def state(path: Path) -> str:
    """What a killed process left."""
    beside = any(other != path for other in path.parent.iterdir())
    if not path.exists():
        return "in creation" if beside else "nothing"
    assert not beside
    try:
        return f"{len(Posterior.load(path))} draws"
    except ValueError:
        return "no draw"


@pytest.fixture(scope="module")
def total(tmp_path_factory) -> int:
    """The calls of a run from nothing to its end."""
    path = tmp_path_factory.mktemp("count") / "run"
    return calls(lambda: run(path))


@pytest.fixture
def expected(tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that nobody killed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    run(path)
    return contents(path)


def cut_through(folder: Path, at: list[int], expected: dict[str, bytes]) -> list[str]:
    """Kill a run at each of these moments, and run it again: what the killed ones left."""
    found = []
    for index, moment in enumerate(at):
        path = folder / str(index) / "run"
        path.parent.mkdir()
        killed(moment, lambda path=path: run(path))
        found.append(state(path))
        run(path)
        assert contents(path) == expected, (moment, found[-1])
        assert [other.name for other in path.parent.iterdir()] == ["run"], (moment, found[-1])
    return found


def test_killed_at_any_of_20_moments_and_run_again(tmp_path, total, expected):
    found = cut_through(tmp_path, moments(total, 20, seed=0), expected)
    # The moments are spread over all of it.
    assert {"nothing", "in creation"} & set(found)
    assert len({left for left in found if left.endswith("draws")}) >= 5, found


def test_killed_while_it_is_laid_out(tmp_path, total, expected):
    found = cut_through(tmp_path, moments(total // 3, 6, seed=1), expected)
    assert found.count("in creation") >= 2, found


def test_killed_while_it_is_extended(tmp_path, expected):
    run(tmp_path / "few", FEW)
    shutil.copytree(tmp_path / "few", tmp_path / "count")
    rest = calls(lambda: run(tmp_path / "count"))
    for index, moment in enumerate(moments(rest, 8, seed=2)):
        path = tmp_path / str(index) / "run"
        shutil.copytree(tmp_path / "few", path)
        killed(moment, lambda path=path: run(path))
        assert len(Posterior.load(path)) >= FEW
        run(path)
        assert contents(path) == expected, moment


def test_killed_again_and_again(tmp_path, expected):
    path, chance, times = tmp_path / "run", random.Random(3), 0
    while not path.exists() or len(contents(path)) < len(expected):
        process = FORK.Process(target=run, args=(path, MANY, 0.005))
        process.start()
        process.join(chance.uniform(0.05, 0.3))
        process.kill()
        process.join()
        times += 1
    run(path)
    assert contents(path) == expected
    assert times > 1
    assert [other.name for other in tmp_path.iterdir()] == ["run"]
