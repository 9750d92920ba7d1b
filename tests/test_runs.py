"""A folder is one run's at a time, wherever it is and on whatever system."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from invdiff import Likelihood, Posterior, folders, sample
from invdiff.ensemble import Block, Ensemble
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM
from invdiff.store import Store

SHAPE = (1, 4, 4)
PRIOR = GaussianPrior.power_law(SHAPE)
PROBLEM = Likelihood(torch.full(SHAPE, 0.6), Identity(SHAPE), GaussianNoise(0.1))
ENSEMBLE = Ensemble(DDRM(steps=3), PROBLEM, PRIOR, 0, SHAPE, 2, torch.float32, torch.device("cpu"))
STALE = "run is no longer written to by this run, which has ended or whose folder was replaced: nothing more is writ"


def keep(path: Path | str, draws: int = 4, problem: Likelihood = PROBLEM) -> Posterior:
    return sample(DDRM(steps=3), problem, PRIOR, draws=draws, store=path, micro_batch=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("meanwhile", ["ended", "locked again", "laid out anew"])
def test_a_worker_of_another_run_is_refused(tmp_path, meanwhile):
    path, outcome = tmp_path / "run", ENSEMBLE.run(Block(2, 0))
    keep(path, 2)
    store = Store(path)
    with store.locked():
        store.prepare(ENSEMBLE, 4)
        worker = Store(path, store.run)
        worker.require_there()
    if meanwhile == "laid out anew":
        shutil.rmtree(path)
        keep(path, 4)
        with pytest.raises(FileNotFoundError, match=STALE):
            worker.write(ENSEMBLE, Block(2, 0), outcome)
        return
    before = contents(path)
    with pytest.raises(FileNotFoundError, match=STALE):
        worker.write(ENSEMBLE, Block(2, 0), outcome)
    if meanwhile == "locked again":
        with Store(path).locked(), pytest.raises(FileNotFoundError, match=STALE):
            worker.write(ENSEMBLE, Block(2, 0), outcome)
    assert contents(path) == before
    keep(path, 4)
    keep(tmp_path / "whole", 4)
    assert contents(path) == contents(tmp_path / "whole")


def test_a_run_does_not_end_in_the_middle_of_a_write(tmp_path):
    keep(tmp_path / "run", 2)
    store, ended = Store(tmp_path / "run"), threading.Event()

    def hold() -> None:
        with store.locked():
            begun.set()
            writing.wait(10)
        ended.set()

    begun, writing = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(10)
    with folders.turn(tmp_path / "run"):
        writing.set()
        assert not ended.wait(0.3)
        assert folders.whose(tmp_path / "run") == store.run
        with pytest.raises(BlockingIOError):
            folders.locked(tmp_path / "run")
    assert ended.wait(10)
    thread.join()
    assert folders.whose(tmp_path / "run") == ""


def test_a_folder_without_its_hidden_files_is_gone_on_with(tmp_path):
    keep(tmp_path / "run", 2)
    for name in (".lock", ".run"):
        (tmp_path / "run" / name).unlink()
    keep(tmp_path / "run", 4)
    keep(tmp_path / "whole", 4)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_path_may_be_a_link_or_at_home(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    for draws in (2, 4):
        assert len(keep(tmp_path / "link", draws)) == draws
    assert (tmp_path / "link").is_symlink()
    assert len(Posterior.load(tmp_path / "disk" / "run")) == 4
    monkeypatch.setenv("HOME", str(tmp_path / "disk"))
    assert len(keep("~/run", 6)) == 6
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["run"]


def test_a_system_without_locks_is_refused(tmp_path, monkeypatch):
    keep(tmp_path / "old", 2)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    said = r"store= needs a system with POSIX file locks \(Linux, macOS\), and this one is .*: leave out store"
    for path in (tmp_path / "new", tmp_path / "old"):
        with pytest.raises(OSError, match=said):
            keep(path)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_end_while_the_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    def end(folder: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "locked", end)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_half_precision(tmp_path):
    def half(dtype: torch.dtype) -> Likelihood:
        return Likelihood(PROBLEM.y.to(dtype), PROBLEM.operator, PROBLEM.noise)

    with pytest.raises(
        ValueError, match=r"y is bfloat16, which a store cannot hold: use y\.float\(\), or leave out st"
    ):
        keep(tmp_path / "run", 4, half(torch.bfloat16))
    assert not list(tmp_path.iterdir())
    kept = keep(tmp_path / "run", 4, half(torch.float16))
    assert kept.draws.dtype == torch.float16
    assert kept.mean().isfinite().all()
    assert kept.quantile(0.5).isfinite().all()


def test_cores_and_interrupts_of_other_systems(monkeypatch):
    pytest.importorskip("distributed")
    from invdiff import distributed as ours

    with ours._without_interrupts():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    monkeypatch.delattr(os, "sched_getaffinity")
    assert ours._cores() == os.cpu_count()
    monkeypatch.delattr(signal, "pthread_sigmask")
    with ours._without_interrupts():
        assert ours.Dask()._count() == os.cpu_count()


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (RuntimeError("Nanny failed to start worker process"), "as each runs the main script first: put what the scr"),
        (OSError("no port is free"), "^Nanny failed to start$"),
        (None, "^Nanny failed to start$"),
    ],
)
def test_why_workers_did_not_start(tmp_path, monkeypatch, cause, said):
    pytest.importorskip("distributed")
    from invdiff import distributed as ours

    def fail(**settings: object) -> None:
        raise RuntimeError("Nanny failed to start") from cause

    monkeypatch.setattr(ours, "LocalCluster", fail)
    with pytest.raises(RuntimeError, match=said):
        sample(DDRM(steps=3), PROBLEM, PRIOR, store=tmp_path / "run", engine="dask")
    # Without a script none is run first.
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    with pytest.raises(RuntimeError, match=r"^Nanny failed to start$"):
        sample(DDRM(steps=3), PROBLEM, PRIOR, store=tmp_path / "run", engine="dask")


def test_workers_keep_the_memory_of_a_layer_for_the_next(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    import dask

    from invdiff import distributed as ours

    seen = []

    def start(**settings: object) -> None:
        seen.append(dict(dask.config.get("distributed.nanny.pre-spawn-environ")))
        raise RuntimeError("enough")

    monkeypatch.setattr(ours, "LocalCluster", start)
    with pytest.raises(RuntimeError, match="enough"):
        sample(DDRM(steps=3), PROBLEM, PRIOR, store=tmp_path / "run", engine="dask")
    # Left to itself dask sets 64 KiB, and networks are three times as slow.
    assert seen[0]["MALLOC_TRIM_THRESHOLD_"] is None


def test_a_lock_given_back_is_free_whoever_has_a_copy_of_its_handle(tmp_path):
    handle = folders.locked(tmp_path)
    copy = os.dup(handle)  # as a process has that is being started
    folders.release(handle)
    try:
        folders.release(folders.locked(tmp_path))
    finally:
        os.close(copy)


def test_a_worker_does_not_start_workers(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match="as each runs the main script first"):
        sample(DDRM(steps=3), PROBLEM, PRIOR, store=tmp_path / "run", engine="dask")
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
import torch
from invdiff import Likelihood, sample
from invdiff.distributed import Dask
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.solvers import DDRM

problem = Likelihood(torch.full((1, 4, 4), 0.6), Identity((1, 4, 4)), GaussianNoise(0.1))
sample(DDRM(steps=2), problem, lambda x, sigma: x, draws=2, store=sys.argv[1], engine=Dask(workers=1))
"""


def test_a_script_without_a_guard_is_told_so(tmp_path):
    pytest.importorskip("distributed")
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "RuntimeError: The workers could not be started, as each runs the main script first" in last, ended.stderr
