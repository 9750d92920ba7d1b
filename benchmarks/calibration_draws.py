"""Draws on which the calibration of solvers is measured: `python -m benchmarks.calibration_draws`.

One crop of each photograph that the shipped prior's training left out (`experiments/heldout.txt`, whose 300 files are
tiles of 168 photographs: the first tile of each by a hash of its name, as photographs and not tiles are the
exchangeable units) and one of each image of CBSD68 and Kodak24, the two in turn and each in an order fixed by a hash,
so that what is finished at any time is a fair part of the whole. Operators, noise and crops are those of
`benchmarks.restoration`. Each ensemble is kept in `--folder` as it comes, and what is there is not made again;
`python -m benchmarks.calibration` makes figures of what there is.

The folder of the data is INVDIFF_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff import Likelihood, priors, sample, solvers
from invdiff.noise import GaussianNoise
from invdiff.priors import Prior

from .denoising import load_image
from .restoration import TASKS, crop, measure, operators

FOLDER = Path("runs/calibration")
HELDOUT = Path(__file__).parents[1] / "experiments" / "heldout.txt"
TEST_SETS = ("CBSD68", "Kodak24")
SIZE, DRAWS, SIGMA_Y, SEED = 32, 19, 0.02, 0
# The flagship as `restore` takes it. PiGDM, whose steps pass back through the network, takes as many as cost the same
# (41 forward and back on most crops); the others their own number of steps.
SOLVERS: dict[str, dict[str, int]] = {
    "kps": {"steps": 30, "products": 3},
    "ddrm": {},
    "diffpir": {},
    "pigdm": {"steps": 41},
}


@dataclass(frozen=True)
class Unit:
    """One crop of one image.

    Args:
        role: "calibration" or "test".
        name: of the image, after the set that it belongs to.
        path: of its file.
    """

    role: str
    name: str
    path: Path

    def truth(self) -> Tensor:
        """(3, SIZE, SIZE)."""
        return crop(load_image(self.path), SIZE)[2]

    def measure(self, task: str) -> Likelihood:
        """The measurement, its noise fixed by the names of image and task."""
        return measure(self.name, task, self.truth(), SIGMA_Y)


def _order(name: str) -> int:
    return zlib.crc32(name.encode())


def photograph(tile: str) -> str:
    """The photograph that a file of the training data is a tile of, from its name.

    >>> photograph("elementary__Sunset_Tree__1440_02.webp"), photograph("grocery__Fruit_Lime_Lime_019.webp")
    ('elementary__Sunset_Tree', 'grocery__Fruit_Lime_Lime_019')
    """
    parts = Path(tile).stem.split("__")
    return "__".join(parts[:2])


def units(data: Path) -> list[Unit]:
    """All crops in the order in which they are drawn: calibration and test in turn, in proportion to their numbers."""
    tiles: dict[str, str] = {}
    for tile in sorted(HELDOUT.read_text().split(), key=_order):
        tiles.setdefault(photograph(tile), tile)
    left = [Unit("calibration", name, data / "train_natural" / tile) for name, tile in tiles.items()]
    right = [
        Unit("test", f"{name}/{path.stem}", path)
        for name in TEST_SETS
        for path in sorted((data / "test" / name).glob("*.png"))
    ]
    placed = [
        ((place + 0.5) / len(part), unit)
        for part in (left, right)
        for place, unit in enumerate(sorted(part, key=lambda unit: _order(unit.name)))
    ]
    return [unit for _, unit in sorted(placed, key=lambda pair: pair[0])]


def ensemble(folder: Path, unit: Unit, task: str, solver: str) -> Path:
    """The file of one ensemble."""
    return folder / task / solver / (unit.name.replace("/", "__") + ".npz")


def draw(prior: Prior, batch: Sequence[Unit], task: str, solver: str, folder: Path) -> None:
    """The ensembles of several crops measured by one operator, in one batch, each into its file."""
    operator = operators(SIZE)[task]
    y = torch.stack([unit.measure(task).y for unit in batch])
    likelihood = Likelihood(y, operator, GaussianNoise(SIGMA_Y))
    chosen = solvers.load(solver, **SOLVERS[solver])
    posterior = sample(chosen, likelihood, prior, draws=DRAWS, seed=SEED, progress=False)
    record = json.dumps(posterior.portable_record)
    for place, unit in enumerate(batch):
        path = ensemble(folder, unit, task, solver)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as handle:
            # Half precision is finer than the grey levels of 8 bits by a factor of eight.
            np.savez(handle, draws=posterior.draws[:, place].half().numpy(), record=record)
        part.replace(path)


def missing(
    everything: Sequence[Unit], names: Sequence[str], folder: Path, at_a_time: int
) -> Iterator[tuple[list[Unit], str, str]]:
    """What is still to be drawn with the solvers of these names: crops with task and solver."""
    for first in range(0, len(everything), at_a_time):
        part = everything[first : first + at_a_time]
        for task in TASKS:
            for solver in names:
                todo = [unit for unit in part if not ensemble(folder, unit, task, solver).exists()]
                if todo:
                    yield todo, task, solver


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="that keeps the draws")
    parser.add_argument("--images", type=int, help="stop after so many; all of them if left out")
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS), choices=SOLVERS, metavar="NAME")
    parser.add_argument("--at-a-time", type=int, default=4, help="images in one batch")
    parser.add_argument("--compile", action="store_true", help="the network: quicker, with other last bits")
    settings = parser.parse_args(argv)
    if not os.environ.get("INVDIFF_DATA"):
        raise SystemExit("INVDIFF_DATA is not set: expected the folder that holds train_natural/ and test/.")
    prior = priors.load("natural").to("cpu", compile=settings.compile)
    everything = units(Path(os.environ["INVDIFF_DATA"]))[: settings.images]
    for batch, task, solver in missing(everything, settings.solvers, settings.folder, settings.at_a_time):
        draw(prior, batch, task, solver, settings.folder)
        print(task, solver, *(unit.name for unit in batch), flush=True)


if __name__ == "__main__":
    main()
