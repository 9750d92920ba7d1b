"""Micro-batches as tasks of a `dask.distributed` cluster: on the cores of one machine, on SLURM, on several GPUs."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from . import __version__
from .ensemble import Block, Ensemble
from .progress import Progress
from .record import machine
from .running import out_of_memory
from .store import Store
from .stored import Stored

try:
    import dask
    from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, as_completed, get_worker
    from distributed.comm.core import CommClosedError
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "engine='dask' needs dask.distributed: pip install 'invdiff[dask]', or leave out engine."
    ) from missing

__all__ = ["Dask"]

GUARD = (
    "The workers could not be started, as each runs the main script first: put what the script does below "
    "`if __name__ == '__main__':`, or connect to a scheduler with Dask(address)."
)


@dataclass(frozen=True)
class Dask:
    """The engine of `sample(..., store=folder, engine=Dask())`: workers compute micro-batches and write them.

    The prior goes to every worker once, and stays there. A micro-batch whose worker died goes to another one. The
    draws have the same bits as those of one process with as many threads on a machine of the same kind; a worker of
    another kind or with another version refuses. Workers must see the folder, so that a cluster of machines needs a
    shared file system with locks. When `sample` has returned, workers write nothing more.

    A micro-batch that does not fit into the memory of a worker is an error, also the first one: it is not made smaller.

    Args:
        address: of a scheduler that is running, "tcp://host:8786"; None starts workers on this machine, and ends them.
        workers: how many to start; the number of cores if left out.
        threads: of each worker; if left out those that the folder was begun with, and for a new one the cores divided
            by the workers, 1 for those of an address.
        retries: how often a micro-batch may lose its worker before that is an error; with an address the setting of
            its scheduler decides, `distributed.scheduler.allowed-failures`.

    Raises:
        ValueError: for settings that cannot be used.
    """

    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("threads", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is None and name != "retries":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} of Dask is {value!r}: expected a whole number from {least} on.")
        if self.address is not None and self.workers is not None:
            raise ValueError(
                f"workers of Dask is {self.workers} with the address {self.address}: its scheduler has workers of its "
                "own; leave one of them out."
            )

    def refuse_worker(self) -> None:
        """Refuse to start workers from one of them.

        Raises:
            RuntimeError: the main script is being run again by a worker, and got here.
        """
        # Every worker begins by running the main script again, up to here where nothing tells it to stop.
        if self.address is None and getattr(multiprocessing.current_process(), "_inheriting", False):
            raise RuntimeError(GUARD)

    def fitted(self, ensemble: Ensemble) -> Ensemble:
        """A new ensemble with the number of threads that workers compute with."""
        return replace(ensemble, threads=self._threads())

    def run(self, ensemble: Ensemble, store: Store, todo: list[Block], bar: Progress) -> None:
        """Compute the micro-batches on workers, which write them to the folder.

        Raises:
            RuntimeError: a micro-batch lost its worker too often, workers are of another kind, or could not be started.
            MemoryError: a micro-batch does not fit into the memory of a worker.
            TypeError: something of the user's cannot be sent to other processes.
        """
        if not todo:
            return
        setting = _Setting(ensemble, store)
        with self._client() as client:
            try:
                client.register_plugin(setting)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                raise TypeError(
                    f"The solver, likelihood or prior cannot be sent to other processes ({error}): use compile=False "
                    "and what a module defines, or leave out engine."
                ) from error
            futures: list[Future] = []
            try:
                for blocks in _in_turn(todo, ensemble, store):
                    futures = [client.submit(_compute, setting.name, block, pure=False) for block in blocks]
                    for future in as_completed(futures):
                        bar.block(future.result())
            except KilledWorker as error:
                raise RuntimeError(
                    f"A micro-batch lost its workers, {error.allowed_failures + 1} in all, for want of memory perhaps: "
                    "use fewer workers or a smaller micro_batch; what is finished is kept."
                ) from error
            except (MemoryError, RuntimeError) as error:
                if out_of_memory(error):
                    raise MemoryError(
                        f"A micro-batch of {ensemble.size} does not fit into the memory of a worker: use "
                        f"micro_batch={max(1, ensemble.size // 2)} and another folder, or fewer workers."
                    ) from error
                raise
            finally:
                # Tasks that are at work go on until `Store.locked` ends their run.
                with contextlib.suppress(CommClosedError, OSError):
                    client.cancel(futures)
                    if self.address is not None:
                        # The workers are somebody else's, who wants the memory back.
                        client.unregister_worker_plugin(setting.name)

    def _count(self) -> int:
        return self.workers or _cores()

    def _threads(self) -> int:
        if self.threads is not None:
            return self.threads
        return 1 if self.address is not None else max(1, _cores() // self._count())

    @contextlib.contextmanager
    def _client(self) -> Iterator[Client]:
        # Nannies that keep workers below some share of the memory would kill what fits; and no web page is opened.
        with dask.config.set({"distributed.scheduler.allowed-failures": self.retries}):
            if self.address is not None:
                with Client(self.address) as client:
                    yield client
                return
            with self._cluster() as cluster, Client(cluster) as client:
                yield client

    def _cluster(self) -> LocalCluster:
        try:
            # dask has its workers give every block of memory back at once and ask for the next anew, which makes a
            # network on a CPU three times as slow.
            memory = {"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}
            with _without_interrupts(), dask.config.set(memory):
                return LocalCluster(
                    n_workers=self._count(),
                    threads_per_worker=1,
                    memory_limit=0,
                    dashboard_address=":0",
                    # What its end interrupts is critical to it; to the user it is the end.
                    silence_logs=logging.CRITICAL + 1,
                    scheduler_kwargs={"dashboard": False},
                )
        except RuntimeError as error:
            # A worker that ended without a word of its own had not come to its own beginning; where there is a script,
            # that comes first.
            silent = "failed to start worker process" in str(error.__cause__)
            if silent and getattr(sys.modules["__main__"], "__file__", None):
                raise RuntimeError(GUARD) from error
            raise


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started here ignore Ctrl-C, which reaches all of a terminal, and leave it to this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Workers inherit what is blocked; the tracker of resources unblocks it where it is not running yet.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Setting(WorkerPlugin):
    """What holds the ensemble on a worker, also on those that join later, so that its prior is sent once."""

    def __init__(self, ensemble: Ensemble, store: Store) -> None:
        self.ensemble, self.folder, self.run = ensemble, os.fspath(store.path), store.run
        self.name = f"invdiff-{os.urandom(8).hex()}"
        self.kind = _kind(ensemble)
        self.refused: Exception | None = None

    def setup(self, worker: Worker) -> None:
        """On every worker: the folder is opened once, and seen to be of these settings."""
        self.store = Store(self.folder, self.run)
        try:
            self._require_kind()
            self.store.require_there()
            self.store.require_same(self.ensemble)
        except Exception as error:
            # What is raised here reaches nobody where the worker came later.
            self.refused = error

    def _require_kind(self) -> None:
        here = _kind(self.ensemble)
        differing = ", ".join(
            f"{key} {value} there and {here[key]} here" for key, value in self.kind.items() if value != here[key]
        )
        if differing:
            raise RuntimeError(
                f"A worker is of another kind than the machine that asked ({differing}): use workers of one kind."
            )


def _kind(ensemble: Ensemble) -> dict[str, Any]:
    """What must be the same on all machines."""
    return {"invdiff": __version__, "numpy": np.__version__} | machine(ensemble.device, ensemble.threads)


def _in_turn(todo: list[Block], ensemble: Ensemble, store: Store) -> list[list[Block]]:
    """The micro-batches that may be computed side by side: one that is there is compared before others are added."""
    stored = Stored(store.path)
    if stored.stat("done", ensemble.place(todo[0], stored.shape[0])).all():
        return [todo[:1], todo[1:]]
    return [todo]


def _compute(name: str, block: Block) -> int:
    """One micro-batch on a worker; the number of draws that it gave."""
    setting = get_worker().plugins[name]
    assert isinstance(setting, _Setting)
    if setting.refused is not None:
        raise setting.refused
    # A run that has ended does not want what is computed for it.
    outcome = setting.ensemble.run(block, lambda step: setting.store.require_there())
    setting.store.write(setting.ensemble, block, outcome)
    return outcome.failed.numel()
