"""Seconds of draws, ours against deepinv and azula: `python -m benchmarks.speed [--quick]`.

The same network (the prior that ships), image (scikit-image's astronaut), noise, measurement and number of network
evaluations; each library with its own operators, except azula, which has none and takes ours. Calls are taken in turns
in one process, so that a slow minute meets all alike, and a median is reported. Of every method:

    invdiff bfloat16    as it is used: precision "auto", channels last
    invdiff float32     with the network as PyTorch makes it
    deepinv float32     as it is documented
    deepinv bfloat16    deepinv given our prior, which runs in bfloat16 inside
    azula ...           the same two, for the methods that it has

parts (column "part"):

    draw, ensemble      one draw and --draws of 3x256x256: seconds, PSNR of their mean, ratio to deepinv float32
    forward             seconds of the bare network, and of it and the pass back: what no draw can be quicker than
    outside             milliseconds a step with a network that costs nothing
    memory              peak resident memory of a process that makes the ensemble
    curve               seconds of our DDRM against the side of the image, the number of draws, and the micro-batch;
                        "ratio" is the exponent from the row before

Rows that stand in the CSV stay until they are measured anew. On a GPU (--device cuda) calls are timed with the device
synchronised.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from skimage import data
from torch import Tensor

from invdiff import Likelihood, priors, sample, solvers
from invdiff.metrics import psnr
from invdiff.noise import GaussianNoise
from invdiff.priors.precision import NetworkPrior, lay_out
from invdiff.record import environment, machine

from . import peers
from .peers import TASKS
from .restoration import operators
from .rows import Row, merge, read, write

RESULTS = Path(__file__).parent / "results" / "speed.csv"
COLUMNS = (
    *("part", "solver", "task", "library", "network", "size", "draws", "nfe"),
    *("value", "unit", "ratio", "psnr", "device", "threads", "torch", "commit"),
)
# What tells one measured figure from another.
KEY = ("part", "solver", "task", "library", "network", "size", "draws", "nfe")
SOLVERS = ("ddrm", "diffpir", "dps", "pnp_hqs", "red_gd")
# What azula has of them.
IN_AZULA = ("diffpir", "dps")
POINTS = ("pnp_hqs", "red_gd")
SIGMA_Y = 0.05


@functools.cache
def photograph(size: int) -> Tensor:
    """(3, size, size), the astronaut's face; larger than 512 the photograph is repeated."""
    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 255
    if size <= 416:
        return image[:, :size, 96 : 96 + size]
    times = math.ceil(size / 512)
    return image.repeat(1, times, times)[:, :size, :size]


@functools.cache
def networks(device: str) -> dict[str, peers.Slot]:
    """The prior as it is used, in float32, and in name only."""
    prior = priors.load("natural").to(device)
    return {"bfloat16": prior, "float32": peers.plain(prior), "none": _free}


def _free(x: Tensor, sigma: object) -> Tensor:
    return 0.5 * x


def ours(
    solver: str, task: str, network: str, size: int, nfe: int, device: str, micro_batch: int | None = None
) -> peers.Draws:
    likelihood = measurement(task, size, device)
    chosen = solvers.load(solver, **{"steps" if hasattr(solvers.load(solver), "steps") else "iterations": nfe})
    slot = networks(device)[network]

    def draws(count: int) -> Tensor:
        wanted = 1 if solver in POINTS else count
        return sample(chosen, likelihood, slot, draws=wanted, micro_batch=micro_batch, progress=False).draws

    return draws


def measurement(task: str, size: int, device: str) -> Likelihood:
    operator = operators(size)[task]
    z = operator(photograph(size)[None])[0]
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    return Likelihood(z + SIGMA_Y * noise, operator, GaussianNoise(SIGMA_Y)).to(device)


def theirs(library: str, solver: str, task: str, network: str, size: int, nfe: int, device: str) -> peers.Draws:
    likelihood, slot = measurement(task, size, device), networks(device)[network]
    if library == "azula":
        return peers.azula(solver, likelihood.operator, likelihood.y, slot, SIGMA_Y, nfe)
    # Their own operator, whose bicubic kernel is not exactly ours, measures with the same noise.
    operator = peers.physics(task, size, SIGMA_Y).to(device)
    x = photograph(size)[None].to(device)
    y = operator.A(x)[0] + (likelihood.y - likelihood.operator(x)[0])
    return peers.deepinv(solver, operator, y, slot, SIGMA_Y, nfe)


def calls(solver: str, task: str, kinds: Sequence[str], size: int, nfe: int, device: str) -> dict[str, peers.Draws]:
    """The callables of one solver and task, by library and network."""
    found: dict[str, peers.Draws] = {}
    for kind in kinds:
        found[f"invdiff {kind}"] = ours(solver, task, kind, size, nfe, device)
        for library, has in (("deepinv", SOLVERS), ("azula", IN_AZULA)):
            if solver in has and (library, solver, task) not in peers.MISSING:
                found[f"{library} {kind}"] = theirs(library, solver, task, kind, size, nfe, device)
    return found


def timed(todo: Mapping[str, Callable[[], Tensor]], repeats: int, device: str) -> dict[str, tuple[float, Tensor]]:
    """Median seconds and the last result of each, taken in turns."""
    spent: dict[str, list[float]] = {name: [] for name in todo}
    made: dict[str, Tensor] = {}
    for _, (name, call) in itertools.product(range(repeats), todo.items()):
        if device != "cpu":
            torch.cuda.synchronize()
        clock = time.perf_counter()
        made[name] = call()
        if device != "cpu":
            torch.cuda.synchronize()
        spent[name].append(time.perf_counter() - clock)
    return {name: (statistics.median(values), made[name]) for name, values in spent.items()}


def draws_row(settings: argparse.Namespace, solver: str, task: str, count: int) -> Iterator[Row]:
    found = calls(solver, task, ("bfloat16", "float32"), settings.size, settings.nfe, settings.device)
    for call in found.values():
        call(1)
    todo = {name: functools.partial(call, count) for name, call in found.items()}
    outcome = timed(todo, settings.repeats if count == 1 else max(1, settings.repeats // 3), settings.device)
    truth, base = photograph(settings.size)[None], outcome.get("deepinv float32")
    for name, (seconds, made) in outcome.items():
        library, network = name.split()
        yield {
            "part": "draw" if count == 1 else "ensemble",
            **{"library": library, "network": network, "draws": str(count), "value": f"{seconds:.4g}", "unit": "s"},
            "ratio": f"{base[0] / seconds:.2f}" if base else "",
            "psnr": f"{float(psnr(made.mean(0, keepdim=True).cpu().float(), truth)):.3f}",
        }


def outside_rows(settings: argparse.Namespace, solver: str, task: str) -> Iterator[Row]:
    nfe = 20
    found = calls(solver, task, ("none",), settings.size, nfe, settings.device)
    for call in found.values():
        call(1)
    outcome = timed({name: functools.partial(call, 1) for name, call in found.items()}, 7, settings.device)
    for name, (seconds, _) in outcome.items():
        base = outcome.get("deepinv none")
        yield {
            "part": "outside",
            **{"library": name.split()[0], "network": "none", "draws": "1", "nfe": str(nfe)},
            "value": f"{1000 * seconds / nfe:.3g}",
            "unit": "ms a step",
            "ratio": f"{base[0] / seconds:.2f}" if base else "",
        }


def _peak() -> int:
    """The most memory that this process has held, MiB."""
    # What getrusage says begins with that of the process that started this one.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return round((int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024)


def memory_rows(settings: argparse.Namespace, solver: str, task: str) -> Iterator[Row]:
    for library, network in (("invdiff", "bfloat16"), ("deepinv", "float32")):
        if (library, solver, task) in peers.MISSING:
            continue
        own = ["--one", library, network, solver, task, "--size", str(settings.size), "--draws", str(settings.draws)]
        command = [sys.executable, "-m", "benchmarks.speed", *own]
        peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        row = {"part": "memory", "library": library, "network": network, "nfe": "2"}
        row["draws"] = str(settings.draws)
        yield row | {"value": peak, "unit": "MiB"}


def forward_rows(settings: argparse.Namespace) -> Iterator[Row]:
    """Of a batch of one, as our draws of images of this size go through the network one at a time."""
    todo: dict[str, Callable[[], Tensor]] = {}
    for kind in ("bfloat16", "float32"):
        prior = networks(settings.device)[kind]
        assert isinstance(prior, NetworkPrior)
        last = prior.layout is torch.channels_last
        run, _ = lay_out(prior.network, prior.precision, channels_last=last)
        # Its first and last layers compute in float32.
        x = photograph(settings.size)[None].to(settings.device, memory_format=prior.layout)
        todo[f"{kind} forward"] = functools.partial(_forward, run, x)
        todo[f"{kind} forward+back"] = functools.partial(_back, run, x)
    for call in todo.values():
        call()
    for name, (seconds, _) in timed(todo, 3 * settings.repeats, settings.device).items():
        network, task = name.split()
        row = {"part": "forward", "solver": "bare", "task": task, "library": "invdiff", "network": network}
        yield row | {"draws": "1", "nfe": "1", "value": f"{seconds:.4g}", "unit": "s"}


def _forward(run: Callable[..., Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return run(x, torch.zeros(1, device=x.device))


def _back(run: Callable[..., Tensor], x: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(run(leaf, torch.zeros(1, device=x.device)).float().sum(), leaf)[0]


def curve_rows(settings: argparse.Namespace) -> Iterator[Row]:
    """Seconds of our DDRM on blur: of one draw by side, and of 64x64 by draws and by micro-batch."""
    sides = (128, 256, 512) if settings.quick else (128, 256, 512, 1024)
    # From one full micro-batch on, which 16 draws of 64x64 are.
    counts, batches = ((16, 32), (1, 4)) if settings.quick else ((16, 32, 64, 128), (1, 4, 16))
    ladders: dict[str, list[tuple[int, int, int | None]]] = {
        "side": [(side, 1, 1) for side in sides],
        "draws": [(64, count, None) for count in counts],
        "batch": [(64, max(batches), batch) for batch in batches],
    }
    base = {"part": "curve", "solver": "ddrm", "task": "blur", "library": "invdiff"}
    for ladder, rungs in ladders.items():
        before: tuple[int, float] | None = None
        for side, count, batch in rungs:
            call = ours("ddrm", "blur", "bfloat16", side, settings.nfe, settings.device, batch)
            call(1)
            seconds = timed({"one": functools.partial(call, count)}, 3, settings.device)["one"][0]
            rung = {"side": side, "draws": count, "batch": batch or 0}[ladder]
            exponent = f"{math.log(seconds / before[1]) / math.log(rung / before[0]):.2f}" if before else ""
            before = (rung, seconds)
            row = {"network": f"bfloat16 by {ladder}", "size": str(side), "draws": str(count)}
            # One ladder has the batch in place of the draws, which are the same on all of its rungs.
            row |= {"draws": str(batch)} if ladder == "batch" else {}
            yield base | row | {"value": f"{seconds:.4g}", "unit": "s", "ratio": exponent}


def rows(settings: argparse.Namespace) -> Iterator[Row]:
    common = {"size": str(settings.size), "nfe": str(settings.nfe)}
    if "forward" in settings.parts:
        for row in forward_rows(settings):
            yield common | row
    for solver, task in itertools.product(settings.solvers, settings.tasks):
        cells: list[Iterator[Row]] = []
        if "outside" in settings.parts:
            cells.append(outside_rows(settings, solver, task))
        if "draw" in settings.parts:
            cells.append(draws_row(settings, solver, task, 1))
        if "ensemble" in settings.parts and solver not in POINTS:
            cells.append(draws_row(settings, solver, task, settings.draws))
        # Of a process, and so of the CPU's; with --quick of one pair, as each row starts a process.
        first = not settings.quick or (solver, task) == (settings.solvers[0], settings.tasks[0])
        if "memory" in settings.parts and solver not in POINTS and settings.device == "cpu" and first:
            cells.append(memory_rows(settings, solver, task))
        for row in itertools.chain(*cells):
            yield common | {"solver": solver, "task": task} | row
    if "curve" in settings.parts:
        for row in curve_rows(settings):
            yield common | row


def main(argv: Sequence[str] | None = None) -> None:
    parts = ("forward", "outside", "draw", "ensemble", "memory", "curve")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="DDRM and DiffPIR on blur and masks, few steps and draws: 2 minutes"
    )
    parser.add_argument("--solvers", nargs="*", choices=SOLVERS, metavar="NAME")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, metavar="TASK")
    parser.add_argument("--parts", nargs="*", default=list(parts), choices=parts, metavar="PART")
    parser.add_argument("--size", type=int, default=256, help="side of the image, pixels")
    parser.add_argument("--nfe", type=int, help="network evaluations of a draw; 20, or 4 with --quick")
    parser.add_argument("--draws", type=int, help="of an ensemble; 16, or 4 with --quick")
    parser.add_argument("--repeats", type=int, help="of a draw, 5, or 3 with --quick")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="results/speed.csv, speed_quick.csv, speed_cuda.csv")
    parser.add_argument("--one", nargs=4, metavar=("LIBRARY", "NETWORK", "SOLVER", "TASK"), help=argparse.SUPPRESS)
    settings = parser.parse_args(argv)
    # The tables are of the CPU.
    stem = "speed" + "_cuda" * (settings.device != "cpu") + "_quick" * settings.quick
    settings.out = settings.out or RESULTS.with_name(f"{stem}.csv")
    settings.nfe = settings.nfe or (4 if settings.quick else 20)
    settings.draws = settings.draws or (4 if settings.quick else 16)
    settings.repeats = settings.repeats or (3 if settings.quick else 5)
    settings.solvers = settings.solvers or (SOLVERS[:2] if settings.quick else SOLVERS)
    settings.tasks = settings.tasks or (["blur", "inpaint"] if settings.quick else TASKS)
    if settings.one:
        library, network, solver, task = settings.one
        make = ours if library == "invdiff" else functools.partial(theirs, library)
        make(solver, task, network, settings.size, 2, "cpu")(settings.draws)
        print(_peak())
        return
    where = {
        **machine(torch.device(settings.device)),
        "commit": str(environment(torch.device(settings.device))["git_commit"])[:10],
    }
    written = read(settings.out)
    for row in rows(settings):
        made = {key: str((row | where).get(key, "")) for key in COLUMNS}
        written = merge(written, [made], KEY)
        print(*(made[key] for key in COLUMNS[:12]), flush=True)
        write(settings.out, COLUMNS, written)


if __name__ == "__main__":
    main()
