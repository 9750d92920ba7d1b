"""Large images in tiles: what they cost, and what tiles change: `python -m benchmarks.large run|overlap|runs|seams`.

The images are mosaics of the photographs that scikit-image carries, each mirrored until it fills a square of 1000
pixels, so that they hold a camera's detail at any size.

    run      one restoration of a simulated measurement through `restore`, and its files as `invdiff restore` writes
             them: seconds and peak memory, a row of results/large.csv
    overlap  the shipped prior in tiles against the same prior on the whole image, one call at each noise level: RMS
             differences, results/large_overlap.csv
    runs     the same of whole runs
    seams    a std map of two megapixels, and its gradient across the edges of tiles against elsewhere: docs/large.png
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import platform
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data
from torch import Tensor

from invdiff import Likelihood, Restoration, restore, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Mask, Operator
from invdiff.operators.mask import random_mask
from invdiff.operators.psf import gaussian_psf
from invdiff.plots import uncertainty_map
from invdiff.priors import FunctionPrior, Prior, Tiled, load
from invdiff.report import write_restoration
from invdiff.solvers import DDRM, KPS

RESULTS = Path(__file__).parent / "results"
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina")
BLOCK = 1000
SIGMAS = (0.002, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 50.0)
OVERLAPS = (16, 32, 64, 96, 136)
SIGMA_Y = 0.02


def mosaic(height: int, width: int) -> NDArray[np.uint8]:
    """(height, width, 3) from blocks of mirrored photographs."""
    rows, columns = math.ceil(height / BLOCK), math.ceil(width / BLOCK)
    names = itertools.cycle(PHOTOGRAPHS)
    lines = []
    for _ in range(rows):
        blocks = []
        for _ in range(columns):
            photograph = getattr(data, next(names))()[:BLOCK, :BLOCK]
            missing = [(0, BLOCK - side) for side in photograph.shape[:2]]
            blocks.append(np.pad(photograph, (*missing, (0, 0)), mode="symmetric"))
        lines.append(np.concatenate(blocks, axis=1))
    return np.concatenate(lines)[:height, :width]


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def operator_of(kind: str, shape: tuple[int, ...]) -> Operator:
    if kind == "mask":
        return Mask(random_mask(shape, 0.5), shape)
    if kind == "blur":
        return Blur(gaussian_psf(2.0), shape)
    return Downsample(4, shape)


def peak() -> int:
    """The largest resident memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def add(file: Path, rows: list[Mapping[str, Any]]) -> None:
    """Append rows to a table, with its head where it is new."""
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def machine() -> str:
    return f"{os.cpu_count()} cores {platform.machine()}, {torch.get_num_threads()} thread"


def run(options: argparse.Namespace) -> None:
    clock = time.monotonic()
    result = restored(options)
    seconds = time.monotonic() - clock
    memory = peak()
    with tempfile.TemporaryDirectory() as folder:
        write_restoration(Path(folder), result, {}, keep_posterior=True)
    prior = result.posterior.record["prior"]
    row = {
        "megapixels": round(options.height * options.width / 1e6, 2),
        "height": options.height,
        "width": options.width,
        "operator": options.operator,
        "solver": result.posterior.record["solver"]["name"],
        "steps": options.steps,
        "draws": options.draws,
        "tile": prior.get("tile", ""),
        "overlap": prior.get("overlap", ""),
        "precision": prior.get("inner", prior).get("precision", ""),
        "seconds": round(seconds),
        "processor_seconds": round(time.process_time()),
        "peak_mib": memory,
        "peak_with_files_mib": peak(),
        "psnr": round(result.metrics["psnr"], 2),
        "machine": machine(),
    }
    add(RESULTS / "large.csv", [row])
    print(row)


def restored(options: argparse.Namespace) -> Restoration:
    """The restoration of a mosaic, degraded first."""
    image = mosaic(options.height, options.width)
    return restore(
        image,
        lambda shape: operator_of(options.operator, shape),
        sigma=SIGMA_Y,
        solver=DDRM(steps=options.steps),
        draws=options.draws,
        simulate=True,
        tile=int(options.tile) if options.tile.isdecimal() else options.tile,
        progress=False,
    )


def overlap(options: argparse.Namespace) -> None:
    """Four tiles that meet in the middle of 512 x 512 pixels, so that edges are denser than by default."""
    rows: list[Mapping[str, Any]] = []
    side = 512

    def row(what: str, precision: str, sigma: object, width: object, difference: float, greatest: float) -> None:
        found = {"what": what, "precision": precision, "sigma": sigma, "overlap": width}
        rows.append(found | {"rms": f"{difference:.2e}", "greatest": f"{greatest:.2e}"})
        print(rows[-1], flush=True)

    image = as_tensor(mosaic(1500, 2000))[..., 700 : 700 + side, 700 : 700 + side]
    for precision in ("float32", "bfloat16"):
        prior = load("natural", precision=precision)
        for sigma in SIGMAS:
            x = image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                whole = prior(x, sigma)
                for width in OVERLAPS:
                    off = Tiled(prior, side // 2 + width, width)(x, sigma) - whole
                    row("call", precision, sigma, width, float(off.square().mean().sqrt()), float(off.abs().max()))
    add(RESULTS / "large_overlap.csv", rows)


def runs(options: argparse.Namespace) -> None:
    """Whole runs in tiles that decide 80 pixels against untiled ones, and runs of a prior a millionth larger."""
    image = as_tensor(mosaic(1500, 2000))[..., 800:1056, 800:1160]
    shape = tuple(image.shape[1:])
    for solver, kind, precision in (
        (DDRM(steps=20), "mask", "float32"),
        (DDRM(steps=20), "blur", "float32"),
        (DDRM(steps=20), "mask", "bfloat16"),
        (DDRM(steps=20), "blur", "bfloat16"),
        (KPS(steps=options.steps), "mask", "bfloat16"),
    ):
        prior = load("natural", precision=precision)
        operator = operator_of(kind, shape)
        noise = torch.randn(operator.out_shape, generator=torch.Generator().manual_seed(1))
        likelihood = Likelihood(operator(image)[0] + SIGMA_Y * noise, operator, GaussianNoise(SIGMA_Y))
        whole = sample(solver, likelihood, prior, progress=False).draws
        nearly = FunctionPrior(
            lambda x, sigma, inner=prior: 1.000001 * inner(x, sigma),
            sigma_range=prior.sigma_range,
            channels=3,
            per_member=True,
        )
        rows: list[Mapping[str, Any]] = []
        others: dict[object, Prior] = {"a millionth more": nearly}
        for width in (32, 64, 96, 136):
            others[width] = Tiled(prior, 2 * width + 80, width)
        for name, other in others.items():
            off = sample(solver, likelihood, other, progress=False).draws - whole
            told = f"{type(solver).__name__}({solver.steps}) {kind}"
            found = {"what": told, "precision": precision, "sigma": "", "overlap": name}
            size = {"rms": f"{float(off.square().mean().sqrt()):.2e}", "greatest": f"{float(off.abs().max()):.2e}"}
            rows.append(found | size)
            print(rows[-1], flush=True)
        add(RESULTS / "large_overlap.csv", rows)


def seams(options: argparse.Namespace) -> None:
    """Print the mean gradient of the std map across edges of tiles over that across other lines."""
    result = restored(options)
    std = result.posterior.std().square().mean(0).sqrt()
    prior = load("natural")
    tiled = Tiled(prior) if options.tile == "auto" else Tiled(prior, int(options.tile))
    for axis, length in enumerate(std.shape):
        gradient = std.diff(dim=axis).abs().mean(1 - axis)
        edges = torch.tensor([part.kept.start for part in tiled._parts(length, std)][1:]) - 1
        others = torch.ones_like(gradient, dtype=torch.bool)
        others[edges] = False
        ratio = float(gradient[edges].mean() / gradient[others].mean())
        spread = float(gradient[others].std() / gradient[others].mean())
        print(f"axis {axis}: {len(edges)} edges at {edges.tolist()}, ratio {ratio:.3f}, one line's spread {spread:.3f}")
    uncertainty_map(result.posterior).savefig(options.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("run", "overlap", "runs", "seams"))
    parser.add_argument("--operator", choices=("mask", "blur", "downsample"), default="mask")
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--tile", default="auto", help="a number of pixels, auto or off")
    parser.add_argument("--out", type=Path, default=Path("docs/large.png"))
    options = parser.parse_args()
    {"run": run, "overlap": overlap, "runs": runs, "seams": seams}[options.task](options)


if __name__ == "__main__":
    main()
