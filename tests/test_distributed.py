"""Micro-batches on the workers of dask: the bytes of one process, whatever becomes of the workers."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, record, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.priors.base import Prior
from invdiff.progress import Progress
from invdiff.solvers import DDRM, DPS
from invdiff.stored import DamagedError, Stored

distributed = pytest.importorskip("distributed", reason="engine='dask' needs dask.distributed")

SHAPE = (1, 4, 4)
PRIOR = GaussianPrior.power_law(SHAPE)


@pytest.fixture(scope="module")
def lives(tmp_path_factory) -> Iterator[Path]:
    """A folder that workers know of from their start."""
    folder = tmp_path_factory.mktemp("lives")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INVDIFF_TEST_LIVES", str(folder))
        yield folder


@pytest.fixture(scope="module")
def cluster(lives, tmp_path_factory) -> Iterator[distributed.LocalCluster]:
    """Three workers for the whole module: each has to import torch."""
    import dask

    folder = str(tmp_path_factory.mktemp("scratch"))
    with (
        dask.config.set({"temporary-directory": folder}),
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, memory_limit=0, dashboard_address=":0", silence_logs=50
        ) as started,
    ):
        yield started


@pytest.fixture(autouse=True)
def one_commit(monkeypatch):
    monkeypatch.setattr(record, "_commit", lambda: "0" * 40)


@dataclasses.dataclass(frozen=True)
class Mortal(DDRM):
    """Kills its process in the middle of a micro-batch, once for every file in a folder."""

    def iterate(self, likelihood, denoiser, x, random):
        for step, iterate in enumerate(super().iterate(likelihood, denoiser, x, random)):
            for life in Path(os.environ["INVDIFF_TEST_LIVES"]).iterdir() if step == 1 else ():
                life.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            yield iterate


class Failing(Prior):
    """A prior that cannot go on."""

    def __init__(self, error: Exception) -> None:
        self._error, self.name = error, "failing"

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        raise self._error


class Slow(Prior):
    """A prior that takes its time."""

    name = "slow"

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        time.sleep(0.02)
        return PRIOR.denoise(x, sigma)


def likelihood() -> Likelihood:
    y = PRIOR.sample(2, seed=1).float()
    return Likelihood(y, Identity(SHAPE), GaussianNoise(0.1))


def run(path: Path | None, draws: int = 8, cluster: distributed.LocalCluster | None = None, **settings) -> Posterior:
    settings = {"solver": DDRM(steps=3), "denoiser": PRIOR, "micro_batch": 2} | settings
    if cluster is not None:
        from invdiff.distributed import Dask

        settings["engine"] = Dask(address=cluster.scheduler_address)
    return sample(settings.pop("solver"), likelihood(), settings.pop("denoiser"), draws=draws, store=path, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_workers_write_the_bytes_of_one_process(tmp_path, cluster):
    both = [run(tmp_path / "dask", cluster=cluster), run(tmp_path / "one")]
    assert contents(tmp_path / "dask") == contents(tmp_path / "one")
    assert torch.equal(both[0].draws, both[1].draws)
    # Either goes on with what the other began.
    run(tmp_path / "dask", 11)
    run(tmp_path / "one", 11, cluster)
    assert contents(tmp_path / "dask") == contents(tmp_path / "one")


def test_a_worker_killed_in_the_middle_changes_nothing(tmp_path, cluster, lives):
    (lives / "one").touch()
    before = set(cluster.scheduler.workers)
    run(tmp_path / "dask", cluster=cluster, solver=Mortal(steps=3))
    assert not os.listdir(lives)
    assert before != set(cluster.scheduler.workers)
    run(tmp_path / "one", solver=Mortal(steps=3))
    assert contents(tmp_path / "dask") == contents(tmp_path / "one")
    assert sorted(os.listdir(tmp_path)) == ["dask", "one"]


def test_a_micro_batch_that_kills_its_workers(tmp_path, cluster, lives, monkeypatch):
    (lives / "one").touch()
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(
        RuntimeError, match="A micro-batch lost its workers, 1 in all, for want of memory perhaps: use fewer"
    ):
        run(tmp_path / "dask", cluster=cluster, solver=Mortal(steps=3))
    run(tmp_path / "dask", solver=Mortal(steps=3))
    run(tmp_path / "one", solver=Mortal(steps=3))
    assert contents(tmp_path / "dask") == contents(tmp_path / "one")


def test_an_interrupt_keeps_what_is_finished(tmp_path, cluster, monkeypatch):
    block = Progress.block

    def stop(self: Progress, draws: int) -> None:
        block(self, draws)
        if Stored(tmp_path / "dask").finished:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "block", stop)
    with pytest.warns(UserWarning, match=r"Interrupted: \d+ of 16 draws are finished and kept"):
        kept = run(tmp_path / "dask", 16, cluster, denoiser=Slow())
    monkeypatch.setattr(Progress, "block", block)
    assert kept.record["interrupted"]
    run(tmp_path / "dask", 16, cluster, denoiser=Slow())
    run(tmp_path / "one", 16, denoiser=Slow())
    assert contents(tmp_path / "dask") == contents(tmp_path / "one")


class Noting(Slow):
    """Tells of every call."""

    def __init__(self, note: Path) -> None:
        self._note = note

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        with self._note.open("a") as file:
            file.write(".")
        time.sleep(0.2)
        return PRIOR.denoise(x, sigma)


def test_nothing_is_computed_or_written_after_the_interrupt(tmp_path, cluster, monkeypatch):
    note, block = tmp_path / "note", Progress.block

    def stop(self: Progress, draws: int) -> None:
        block(self, draws)
        if Stored(tmp_path / "dask").finished:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "block", stop)
    with pytest.warns(UserWarning, match="Interrupted"):
        run(tmp_path / "dask", 60, cluster, denoiser=Noting(note))
    left = contents(tmp_path / "dask"), note.read_text()
    # A micro-batch takes 0.6 s, and two workers were in the middle of one.
    time.sleep(1.0)
    assert (contents(tmp_path / "dask"), note.read_text()) == left
    assert left[0][".run"] == b""
    assert len(left[1]) < 60 / 2 * 3


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (ZeroDivisionError("what the prior says"), ZeroDivisionError, "^what the prior says$"),
        (
            MemoryError("no"),
            MemoryError,
            "micro-batch of 2 does not fit into the memory of a worker: use micro_batch=1",
        ),
        (RuntimeError("can't allocate memory"), MemoryError, "does not fit into the memory of a worker"),
    ],
)
def test_an_error_on_a_worker_reaches_the_caller(tmp_path, cluster, error, kind, sentence):
    with pytest.raises(kind, match=sentence):
        run(tmp_path / "dask", cluster=cluster, denoiser=Failing(error))


def test_a_worker_of_another_kind_is_refused(tmp_path, cluster, monkeypatch):
    from invdiff import distributed as ours

    machine = ours.machine
    monkeypatch.setattr(ours, "machine", lambda *args: machine(*args) | {"torch": "1.0"})
    said = rf"A worker is of another kind than the machine that asked \(torch 1\.0 there and {torch.__version__} here\)"
    with pytest.raises(RuntimeError, match=said.replace("+", r"\+")):
        run(tmp_path / "dask", cluster=cluster)


def test_a_worker_of_another_version_is_refused(tmp_path, cluster, monkeypatch):
    from invdiff import distributed as ours

    monkeypatch.setattr(ours, "__version__", "0.0.1")
    with pytest.raises(
        RuntimeError, match=r"A worker is of another kind .* \(invdiff 0\.0\.1 there and .* here\): use"
    ):
        run(tmp_path / "dask", cluster=cluster)


def test_a_worker_of_another_scheme_is_refused(tmp_path, cluster, monkeypatch):
    from invdiff import ensemble

    monkeypatch.setattr(ensemble, "SCHEME", 3)
    with pytest.raises(ValueError, match=r"begun with other settings \(scheme 3 there and 2 here\)"):
        run(tmp_path / "dask", cluster=cluster)
    assert not Stored(tmp_path / "dask").done.any()


class Rounding(Prior):
    """Computes otherwise from one machine to another."""

    def __init__(self, factor: float) -> None:
        self._factor, self.name = factor, "rounding"

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return PRIOR.denoise(x, sigma) * self._factor


def test_what_is_there_is_compared_before_workers_add_to_it(tmp_path, cluster):
    run(tmp_path / "dask", 2, denoiser=Rounding(1.0))
    before = contents(tmp_path / "dask" / "posterior" / "x" / "c")
    with pytest.raises(ValueError, match="Draws 0 to 0 came out otherwise"):
        run(tmp_path / "dask", 8, cluster, denoiser=Rounding(1.001))
    assert contents(tmp_path / "dask" / "posterior" / "x" / "c") == before


def test_what_cannot_be_sent_is_refused(tmp_path, cluster):
    class Held(Failing):
        def __init__(self) -> None:
            self._lock, self.name = threading.Lock(), "held"

    with pytest.raises(
        TypeError, match=r"prior cannot be sent to other processes \(.*\): use compile=False and what a"
    ):
        run(tmp_path / "dask", cluster=cluster, denoiser=Held())


def test_the_prior_does_not_stay_on_workers_of_somebody_else(tmp_path, cluster):
    run(tmp_path / "dask", 2, cluster)
    with distributed.Client(cluster) as client:
        plugins = client.run(lambda dask_worker: list(dask_worker.plugins))
    assert len(plugins) == 3
    assert not [name for names in plugins.values() for name in names if name.startswith("invdiff")]


def test_a_folder_removed_under_the_workers(tmp_path, cluster, monkeypatch):
    import shutil

    block = Progress.block

    def remove(self: Progress, draws: int) -> None:
        block(self, draws)
        shutil.rmtree(tmp_path / "dask", ignore_errors=True)

    monkeypatch.setattr(Progress, "block", remove)
    with pytest.raises(FileNotFoundError, match="dask was removed while it was being written to"):
        run(tmp_path / "dask", 60, cluster, denoiser=Slow())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"engine": "dask", "store": None}, "engine is 'dask' without a store: give store=FOLDER, which the workers w"),
        ({"engine": "ray"}, r"engine is 'ray': expected None, 'dask' or invdiff\.distributed\.Dask\(\.\.\.\)\."),
        ({"engine": "dask", "on_step": print}, "on_step is given with an engine: the steps happen in other processes"),
    ],
)
def test_an_engine_that_cannot_be_used_is_refused(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample(DPS(steps=2), likelihood(), PRIOR, **{"store": tmp_path / "run"} | settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": 0}, "workers of Dask is 0: expected a whole number from 1 on"),
        ({"workers": True}, "workers of Dask is True"),
        ({"threads": 0.5}, r"threads of Dask is 0\.5: expected"),
        ({"retries": -1}, "retries of Dask is -1: expected a whole number from 0 on"),
        ({"retries": None}, "retries of Dask is None"),
        ({"address": "tcp://a:1", "workers": 2}, "workers of Dask is 2 with the address tcp://a:1: its scheduler has"),
    ],
)
def test_settings_of_the_engine(settings, sentence):
    from invdiff.distributed import Dask

    with pytest.raises(ValueError, match=sentence):
        Dask(**settings)


def test_threads_are_shared_out_among_workers():
    from invdiff.distributed import Dask

    cores = len(os.sched_getaffinity(0))
    assert Dask(workers=1)._threads() == cores
    assert Dask(workers=cores)._threads() == Dask(workers=2 * cores)._threads() == 1
    assert Dask(address="tcp://a:1")._threads() == 1
    assert Dask(workers=2, threads=3)._threads() == 3


def test_a_damaged_file_can_be_told_of_by_a_worker():
    error = pickle.loads(pickle.dumps(DamagedError(Path("a/b"), "a/b is damaged.")))
    assert (error.file, str(error)) == (Path("a/b"), "a/b is damaged.")


SCRIPT = """
import sys, time
import torch
from invdiff import Likelihood, sample
from invdiff.distributed import Dask
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.solvers import DDRM

def slow(x, sigma):
    time.sleep(0.05)
    return x

if __name__ == "__main__":
    problem = Likelihood(torch.full((1, 4, 4), 0.6), Identity((1, 4, 4)), GaussianNoise(0.1))
    kept = sample(DDRM(steps=4), problem, slow, draws=1000, micro_batch=1, store=sys.argv[1], engine=Dask(workers=1))
    print("kept", len(kept), kept.record["interrupted"])
"""


def test_ctrl_c_ends_the_workers_it_started_and_leaves_nothing(tmp_path):
    """The terminal sends it to every process of the group, workers too."""
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run")],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        while process.poll() is None and len(list(tmp_path.glob("run/sample_stats/done/c/0/*"))) < 4:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    kept = Posterior.load(tmp_path / "run")
    assert out == f"kept {len(kept)} True\n"
    assert len(kept) >= 1
    assert "Interrupted:" in err
    assert "Traceback" not in err, err
    assert not list(here.iterdir())
    # The last of them may take a moment to go.
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("processes are left")
