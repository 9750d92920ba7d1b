"""Settings of deepinv's DPIR where those that it documents fail: `python -m benchmarks.tuning`.

It starts at a denoiser of 49 / 255 from A^T y, and so leaves missing pixels black. Every setting of a grid is run on a
crop of scikit-image's astronaut, which is in no test set, on the seven tasks of `benchmarks.quality` at sigma_y 0.05,
with our prior. The one of highest mean PSNR is `peers.TUNED`, one for all tasks; a test holds it to the CSV.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from skimage import data

from invdiff import priors
from invdiff.metrics import psnr

from . import peers, quality, quality_tables
from .restoration import crop
from .rows import Row, write

RESULTS = Path(__file__).parent / "results" / "tuning.csv"
SIZE, SIGMA_Y = 48, 0.05
GRID: dict[str, Sequence[Any]] = {"start": (49 / 255, 0.5, 2.0), "iterations": (8, 24), "fill": (False, True)}
COLUMNS = ("method", "settings", "psnr", *quality_tables.TASKS)


def grid() -> list[dict[str, Any]]:
    """Every setting."""
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def best(rows: Sequence[Row]) -> str:
    """The setting that is chosen, as the CSV writes it."""
    return max(rows, key=lambda row: float(row["psnr"]))["settings"]


def rows() -> Iterator[Row]:
    """A row for every setting: the PSNR of every task, and their mean."""
    prior, forward = priors.load("natural"), quality.operators(SIZE, Path(os.environ["INVDIFF_DATA"]))
    image = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None].float() / 255
    truth = crop(image, SIZE)[2]
    for chosen in grid():
        found: dict[str, float] = {}
        for task, operator in forward.items():
            z = operator(truth[None])[0]
            y = z + SIGMA_Y * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
            physics = peers.same(operator, "dpir_tuned", SIGMA_Y)
            made = peers.deepinv("dpir_tuned", physics, y, prior, SIGMA_Y, settings=chosen)(1)
            found[task] = float(psnr(made.float(), truth[None]))
        row = {"method": "dpir_tuned", "settings": str(chosen), "psnr": f"{sum(found.values()) / len(found):.3f}"}
        yield row | {task: f"{value:.2f}" for task, value in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args(argv)
    if not os.environ.get("INVDIFF_DATA"):
        raise SystemExit("INVDIFF_DATA is not set: expected the folder that holds kernels/.")
    made: list[Row] = []
    for row in rows():
        made.append(row)
        write(settings.out, COLUMNS, made)
        print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
