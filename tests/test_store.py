"""The folder of an ensemble: the same bytes however it came to be, and a sentence for everything that goes wrong."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import resource
import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import Likelihood, Posterior, folders, sample, store
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity, Mask
from invdiff.priors import FunctionPrior, GaussianPrior
from invdiff.priors.base import Prior
from invdiff.solvers import DDRM, DPS

SHAPE = (1, 4, 4)
SOLVER = DDRM(steps=3)
PRIOR = GaussianPrior.power_law(SHAPE)


def likelihood(measurements: int | None = None, value: float = 0.6) -> Likelihood:
    y = torch.full(SHAPE if measurements is None else (measurements, *SHAPE), value)
    return Likelihood(y, Identity(SHAPE), GaussianNoise(0.1))


def keep(path: Path, draws: int = 6, given: Likelihood | None = None, **settings) -> Posterior:
    settings = {"micro_batch": 2} | settings
    return sample(settings.pop("solver", SOLVER), given or likelihood(), PRIOR, draws=draws, store=path, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("measurements", [None, 3])
def test_pieces_restarts_and_extensions_give_the_bytes_of_one_run(tmp_path, measurements):
    given = likelihood(measurements)
    for draws in (1, 5, 4, 11):
        pieces = keep(tmp_path / "pieces", draws, given)
        assert len(pieces) == draws
    whole = keep(tmp_path / "whole", 11, given)
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    in_memory = sample(SOLVER, given, PRIOR, draws=11, micro_batch=2)
    assert torch.equal(whole.draws, in_memory.draws)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces", "whole"]


def test_more_draws_leave_the_first_ones_untouched(tmp_path):
    keep(tmp_path / "run", 6)
    before = {path: path.stat() for path in (tmp_path / "run").glob("*/*/c/**/*") if path.is_file()}
    keep(tmp_path / "run", 12)
    assert len(before) >= 9
    for path, stat in before.items():
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (stat.st_mtime_ns, stat.st_ino)


def test_what_is_there_is_not_computed_again(tmp_path):
    calls = []

    def counted(x, sigma):
        calls.append(len(x))
        return PRIOR(x, sigma)

    def run(draws: int) -> None:
        prior = FunctionPrior(counted, name="counted", per_member=True)
        sample(SOLVER, likelihood(), prior, draws=draws, micro_batch=2, store=tmp_path / "run")

    for draws, new in ((4, 6), (4, 0), (2, 0), (5, 3), (6, 3)):
        calls.clear()
        run(draws)
        assert len(calls) == new


def test_the_micro_batch_of_the_folder_is_taken_where_none_is_given(tmp_path):
    keep(tmp_path / "run", 4)
    more = sample(SOLVER, likelihood(), PRIOR, draws=6, store=tmp_path / "run")
    assert more.record["micro_batch"] == 2
    assert torch.equal(more.draws, sample(SOLVER, likelihood(), PRIOR, draws=6, micro_batch=2).draws)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0 there and 1 here"),
        ({"solver": DDRM(steps=3, eta=0.5)}, "solver.eta 0.85 there and 0.5 here"),
        ({"solver": DPS(steps=3)}, 'solver.name "DDRM" there and "DPS" here'),
        ({"given": likelihood(value=0.5)}, "y.sha256"),
        ({"given": likelihood(2)}, "y.shape"),
        ({"given": Likelihood(torch.full(SHAPE, 0.6), Identity(SHAPE), GaussianNoise(0.2))}, "noise.sigma"),
        ({"given": Likelihood(likelihood().y, Mask(torch.ones(4, 4), SHAPE), GaussianNoise(0.1))}, "operator.name"),
        ({"micro_batch": 3}, "micro_batch 2 there and 3 here"),
        ({"start": torch.zeros(SHAPE), "start_sigma": 5.0}, "start null there and"),
    ],
)
def test_other_settings_are_refused_naming_what_differs(tmp_path, change, named):
    keep(tmp_path / "run", 2)
    before = contents(tmp_path / "run")
    sentence = rf"was begun with other settings \(.*{re.escape(named)}.*use the same settings, or another folder\.$"
    with pytest.raises(ValueError, match=sentence):
        keep(tmp_path / "run", 4, **change)
    assert contents(tmp_path / "run") == before


def test_other_threads_are_taken_for_those_that_it_was_begun_with(tmp_path):
    keep(tmp_path / "run", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        more = keep(tmp_path / "run", 4)
        assert torch.get_num_threads() == threads + 1
        assert more.record["machine"]["threads"] == threads
    finally:
        torch.set_num_threads(threads)
    keep(tmp_path / "whole", 4)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_folder_that_is_something_else_is_refused_and_left_alone(tmp_path):
    for name, make in (
        ("empty", lambda path: path.mkdir()),
        ("photographs", lambda path: (path.mkdir(), (path / "a.png").write_bytes(b"png"))),
        ("file", lambda path: path.write_text("text")),
        ("zarr", lambda path: (path.mkdir(), (path / "zarr.json").write_text('{"attributes": {}}'))),
        ("odd", lambda path: (path.mkdir(), (path / "zarr.json").write_text("[]"))),
    ):
        make(tmp_path / name)
        with pytest.raises(FileExistsError, match=f"{name} is no ensemble of invdiff: choose another folder, or rem"):
            keep(tmp_path / name)
    assert (tmp_path / "photographs" / "a.png").read_bytes() == b"png"
    assert len(list(tmp_path.rglob("*"))) == 8


def test_without_a_folder_to_put_it_in_nothing_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*missing to keep run in: make it first"):
        keep(tmp_path / "missing" / "run")
    assert not list(tmp_path.iterdir())


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    keep(tmp_path / "run", 2)
    with (
        store.Store(tmp_path / "run").locked(),
        pytest.raises(BlockingIOError, match="run is being written to by another process: wait for it, or choose an"),
    ):
        keep(tmp_path / "run", 4)
    assert len(keep(tmp_path / "run", 4)) == 4


def test_two_processes_do_not_lay_out_one_folder(tmp_path, monkeypatch):
    lay_out = store.Store._lay_out

    def overtaken(self, *args) -> None:
        lay_out(self, *args)
        monkeypatch.undo()
        keep(tmp_path / "run", 2)

    monkeypatch.setattr(store.Store, "_lay_out", overtaken)
    with pytest.raises(FileExistsError, match="run came to be while it was being laid out: another process writes th"):
        keep(tmp_path / "run", 4)
    assert len(Posterior.load(tmp_path / "run")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_killed_processes_left_beside_the_folder_is_swept_but_not_what_lives(tmp_path):
    dead, alive, other = (
        tmp_path / f".{name}.{digit * 32}.part" for name, digit in (("r", "1"), ("r", "2"), ("rr", "3"))
    )
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "zarr.json").write_text("{}")
    handle = folders.locked(alive)
    keep(tmp_path / "r", 2)
    os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, other.name, "r"])


@pytest.mark.parametrize("moment", [1, 3])
@pytest.mark.parametrize("instead", [None, "another"])
def test_a_folder_deleted_while_it_is_written_to(tmp_path, moment, instead):
    path, steps = tmp_path / "run", []

    def remove(step, x):
        steps.append(step)
        if len(steps) == 3 * (moment - 1) + 2:
            shutil.rmtree(path)
            if instead:
                path.mkdir()

    with pytest.raises(FileNotFoundError, match="run was removed while it was being written to: nothing is left"):
        keep(path, 6, on_step=remove)
    assert not path.exists() or not any(path.iterdir())


def test_a_disk_that_is_too_small_is_seen_before_the_first_step(tmp_path, monkeypatch):
    keep(tmp_path / "run", 2)
    usage = namedtuple("usage", "total used free")(0, 0, 6 * 64)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"8 draws take 0 MB more, and .* has 0 MB left: make room, choose another fold"):
        keep(tmp_path / "new", 8)
    assert not (tmp_path / "new").exists()
    # Only what is missing counts.
    with pytest.raises(OSError, match="10 draws take 0 MB more"):
        keep(tmp_path / "run", 10)
    assert len(keep(tmp_path / "run", 8)) == 8


def test_a_disk_that_fills_up_keeps_what_is_done(tmp_path):
    """The limit on a file's size stands for the disk's: small marks are still written, and a chunk of draws is not."""

    def fill(path: Path, queue: multiprocessing.Queue) -> None:
        def limit(step: int, x: torch.Tensor) -> None:
            steps.append(step)
            if len(steps) == 8:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

        steps: list[int] = []
        try:
            keep(path, 6, on_step=limit)
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            queue.put(str(error))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=fill, args=(tmp_path / "run", queue))
    process.start()
    said = queue.get(timeout=60)
    process.join()
    assert re.search(
        r"run could not be written to \(File too large; \d+ MB are free\): 4 of 6 draws are kept; make room and", said
    )
    whole = keep(tmp_path / "whole", 6)
    partial = Posterior.load(tmp_path / "run")
    assert partial.record["interrupted"]
    assert torch.equal(partial.draws, whole.draws[:4])
    keep(tmp_path / "run", 6)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


class Rounding(Prior):
    """What a prior computes with does not always stand in its settings."""

    name = "rounding"

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._calls = 0

    def denoise(self, x, sigma):
        self._calls += 1
        return PRIOR.denoise(x, sigma) * self._factor


@pytest.mark.parametrize(("draws", "more"), [(3, 4), (4, 6)])
def test_draws_that_come_out_otherwise_are_not_mixed(tmp_path, draws, more):
    """Where the settings cannot tell, one standing micro-batch is computed again before others are added."""
    path, prior = tmp_path / "run", Rounding(1.0)
    sample(SOLVER, likelihood(), prior, draws=draws, micro_batch=2, store=path)
    before = contents(path / "posterior" / "x" / "c")
    with pytest.raises(
        ValueError,
        match=r"Draws 0 to 1 came out otherwise than those that .*run holds: .*Rounding\._.*, which the settings "
        r"cannot tell, is another one, or this machine d",
    ):
        sample(SOLVER, likelihood(), Rounding(1.0 + 1e-5), draws=more, micro_batch=2, store=path)
    assert contents(path / "posterior" / "x" / "c") == before
    sample(SOLVER, likelihood(), prior, draws=more, micro_batch=2, store=path)
    assert prior._calls == 3 * (2 + 2)
    sample(SOLVER, likelihood(), prior, draws=more, micro_batch=2, store=path)
    assert prior._calls == 3 * (2 + 2), "nothing is to be added"


def test_functions_that_hold_other_numbers_are_not_mixed(tmp_path):
    def run(factor: float) -> None:
        prior = FunctionPrior(lambda x, sigma: PRIOR(x, sigma) * factor, name="scaled", per_member=True)
        sample(SOLVER, likelihood(), prior, draws=4, micro_batch=2, store=tmp_path / "run")

    run(1.0)
    run(1.0)
    with pytest.raises(ValueError, match=r"prior\.function\.closure\.factor 1\.0 there and 1\.5 here"):
        run(1.5)


def test_a_folder_taken_for_a_leftover_is_begun_again(tmp_path, monkeypatch):
    """Another process removes it before it has its lock."""
    lock, removed = folders.locked, []

    def late(folder: Path) -> int:
        if not removed:
            removed.append(folder)
            shutil.rmtree(folder)
        return lock(folder)

    monkeypatch.setattr(folders, "locked", late)
    assert len(keep(tmp_path / "run", 2)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    import fcntl

    def unsupported(handle: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(
        OSError, match=r"cannot be locked \(Operation not supported\): choose a folder on another file s"
    ):
        keep(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("measurements", [None, 2])
def test_xarray_reads_it_with_arvizs_names(tmp_path, measurements):
    xarray = pytest.importorskip("xarray")
    posterior = keep(tmp_path / "run", 3, likelihood(measurements))
    with warnings.catch_warnings(action="error"):
        tree = xarray.open_datatree(tmp_path / "run", engine="zarr")
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data"}
    head = ("chain", "draw", *(["measurement"] if measurements else []))
    assert tree["posterior/x"].dims == (*head, "channel", "row", "column")
    assert tree["observed_data/y"].dims == (*head[2:], "measured_channel", "measured_row", "measured_column")
    assert all(tree[f"sample_stats/{name}"].dims == head for name in ("done", "failed_step", "nfe", "nfe_backward"))
    np.testing.assert_array_equal(tree["posterior/x"][0], np.asarray(posterior))
    np.testing.assert_array_equal(tree["observed_data/y"], likelihood(measurements).y)
    assert bool(tree["sample_stats/done"].all())
    assert (tree["sample_stats/nfe"] == 3).all()
    tree.close()


def test_the_root_says_what_ran(tmp_path):
    keep(tmp_path / "run", 2, seed=7)
    root = json.loads((tmp_path / "run" / "zarr.json").read_text())
    said = root["attributes"]
    assert said["seed"] == said["settings"]["seed"] == 7
    assert said["scheme"] == 2
    assert said["settings"]["solver"] == {"name": "DDRM"} | dataclasses.asdict(SOLVER)
    assert re.fullmatch("[0-9a-f]{64}", said["settings_sha256"])
    assert said["environment"]["torch"] == torch.__version__
    assert {"git_commit", "device", "threads"} <= set(said["environment"])
    assert said["weights_sha256"] is None
    keep(tmp_path / "other", 2, seed=8)
    other = json.loads((tmp_path / "other" / "zarr.json").read_text())["attributes"]
    assert other["settings_sha256"] != said["settings_sha256"]
