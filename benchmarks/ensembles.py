"""What an ensemble costs, and what it does not cost: `python -m benchmarks.ensembles`.

memory    peak resident memory of a process that makes 32, 128 and 512 draws of a 3x256x256 image with their std and
          90 % intervals, in memory and with a store (DDRM with 2 steps and the smoother "gaussian": more steps need no
          more memory, and a network adds its own)
scaling   draws of 3x64x64 (DDRM, 20 steps, micro-batches of 16) a second: one process with as many threads as cores,
          and dask with 1 and 2 workers that share the cores, taken in turns; workers are started before the clock
study     seconds and bytes of one draw of a 3x256x256 image with the solvers that `docs/ensembles.md` reckons with;
          --device cuda measures a GPU

The last two with the prior that ships. Rows go to results/ensembles.csv; "part" says which of the three.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import torch
from distributed import LocalCluster
from skimage import data
from torch import Tensor

from invdiff import Likelihood, priors, sample, solvers
from invdiff.distributed import Dask
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, gaussian_psf
from invdiff.record import machine

RESULTS = Path(__file__).parent / "results" / "ensembles.csv"
COLUMNS = ("part", "what", "draws", "value", "unit", "device", "threads", "torch")
PARTS = ("memory", "scaling", "study")
DRAWS = (32, 128, 512)
STUDY: dict[str, dict[str, Any]] = {"ddrm": {}, "kps": {"steps": 30, "products": 3}, "dps": {"steps": 100}}
Row = dict[str, object]


def measurement(size: int) -> Likelihood:
    """A blurred part of scikit-image's astronaut."""
    image: Tensor = torch.from_numpy(data.astronaut()[:size, 96 : 96 + size].copy()).permute(2, 0, 1).float() / 255
    operator = Blur(gaussian_psf(2.0), tuple(image.shape))
    return Likelihood(operator(image[None])[0], operator, GaussianNoise(0.02))


def one_ensemble(draws: int, kept: str) -> float:
    """Make draws with their statistics and return the peak resident memory of this process, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/run.zarr" if kept == "store" else None
        settings: dict[str, Any] = {"draws": draws, "micro_batch": 1, "progress": False}
        posterior = sample(solvers.DDRM(steps=2), measurement(256), priors.load("gaussian"), store=store, **settings)
        posterior.std(), posterior.interval(0.9)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory() -> Iterator[Row]:
    """Peak memory against the number of draws."""
    for draws in DRAWS:
        for kept in ("memory", "store"):
            command = [sys.executable, "-m", "benchmarks.ensembles", "--one", str(draws), kept]
            found = subprocess.run(command, capture_output=True, text=True, check=True)
            yield {"what": f"in {kept}", "draws": draws, "value": round(float(found.stdout)), "unit": "MiB"}


def scaling(repeats: int = 1, draws: int = 256) -> Iterator[Row]:
    """Draws a second of one process and of workers."""
    cores = len(os.sched_getaffinity(0))
    likelihood, prior = measurement(64), priors.load("natural")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        engines: dict[str, Dask | None] = {f"1 process, {cores} threads": None}
        # As `Dask()` starts its own; see docs/ensembles.md.
        stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}))
        for n in (1, 2):
            cluster = LocalCluster(n_workers=n, threads_per_worker=1, memory_limit=0, dashboard_address=":0")
            address = stack.enter_context(cluster).scheduler_address
            engines[f"{n} worker{'s'[: n > 1]}, {cores // n} threads each"] = Dask(address, threads=cores // n)
        spent: dict[str, list[float]] = {name: [] for name in engines}
        # The first round warms up, and is not counted.
        for repeat in range(repeats + 1):
            for number, (name, engine) in enumerate(engines.items()):
                settings: dict[str, Any] = {"store": f"{folder}/{number}-{repeat}.zarr", "engine": engine}
                clock = time.monotonic()
                sample(solvers.DDRM(steps=20), likelihood, prior, draws=draws, micro_batch=16, **settings)
                spent[name] += [time.monotonic() - clock] * (repeat > 0)
    for name, times in spent.items():
        yield {"what": name, "draws": draws, "value": round(draws / sorted(times)[repeats // 2], 3), "unit": "draws/s"}


def study(device: str) -> Iterator[Row]:
    """What one draw of a 256x256 image costs."""
    likelihood, prior = measurement(256).to(device), priors.load("natural")
    for name, options in STUDY.items():
        solver, batch = solvers.load(name, **options), 1 if device == "cpu" else 16
        settings: dict[str, Any] = {"draws": batch, "micro_batch": batch, "progress": False}
        sample(solvers.load(name, **(options | {"steps": 2})), likelihood, prior, **settings)
        posterior = sample(solver, likelihood, prior, **settings)
        label = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
        seconds = posterior.record["seconds"] / batch
        for what, value, unit in (
            (label, round(seconds, 3), "s a draw"),
            (label, posterior.record["nfe"], "calls"),
            (label, posterior.record["nfe_backward"], "backward"),
        ):
            yield {"what": what, "draws": batch, "value": value, "unit": unit}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--device", default="cpu", help="of the study: cpu, or cuda (then give --parts study)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV; rows of other parts in it stay")
    parser.add_argument("--one", nargs=2, metavar=("DRAWS", "KEPT"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.device != "cpu" and given.parts != ["study"]:
        parser.error(f"--device {given.device} is of the study: add --parts study")
    if given.one:
        print(one_ensemble(int(given.one[0]), given.one[1]))
        return
    rows: list[Row] = []
    if given.out.exists():
        with given.out.open(newline="") as handle:
            kind = machine(torch.device(given.device))["device"]
            rows = [row for row in csv.DictReader(handle) if row["part"] not in given.parts or row["device"] != kind]
    for part in given.parts:
        found = {"memory": memory, "scaling": scaling}[part]() if part != "study" else study(given.device)
        for row in found:
            where = torch.device(given.device if part == "study" else "cpu")
            row = {"part": part, **row, **machine(where)}
            rows.append(row)
            print(*(row[key] for key in COLUMNS[:5]), flush=True)
    with given.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{given.out.name}: {len(rows)} rows, {platform.machine()}")


if __name__ == "__main__":
    main()
