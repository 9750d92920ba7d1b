"""Coverage before and after recalibration, on photographs: `python -m benchmarks.calibration`.

Of the ensembles that `python -m benchmarks.calibration_draws` has made so far, for every task and solver: how those of
the test images (CBSD68 and Kodak24) stand to the truth as they are; and after `invdiff.calibration.calibrate` on those
of the photographs that the prior's training left out, by conformal risk control (crc, in expectation) and, where there
are enough of them, by risk-controlling prediction sets (rcps, with probability 0.9). All solvers are held to the same
images, those that every solver has draws of. Columns of results/calibration.csv:

    state        uncalibrated, crc or rcps
    scale        by which the spread was multiplied
    coverage_L   share of true values inside the central interval of level L, the mean over test images, with the 95 %
                 interval of a bootstrap over images in _low and _high
    crps         fair CRPS, the same
    spread       spread-skill ratio, the same
    beyond       share of test images of which less than the level is covered

19 draws reach levels up to 90 %. The calibration photographs are not of the same kind as the test images (a third of
them are product photographs and wallpapers), so that the promise, which is for images like those of the calibration, is
put to a test here that it does not have to pass. The rows "held-out half" are of images of the same kind: the
calibration photographs in two halves by a hash, calibrated on one and tested on the other.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff import Posterior
from invdiff.calibration import Calibrator, calibrate, check

from .calibration_draws import FOLDER, SOLVERS, Unit, ensemble, units
from .restoration import TASKS
from .rows import Row, write

RESULTS = Path(__file__).parent / "results" / "calibration.csv"
LEVEL = 0.9
FIGURES = ("coverage_50", "coverage_80", "coverage_90", "crps", "spread")
COLUMNS = (
    *("task", "solver", "tested_on", "state", "calibration_images", "test_images", "draws", "scale"),
    *(f"{figure}{end}" for figure in FIGURES for end in ("", "_low", "_high")),
    "beyond",
)
Pair = tuple[Posterior, Tensor]


def load(folder: Path, unit: Unit, task: str, solver: str) -> Pair:
    """The ensemble of one crop, and its truth."""
    with np.load(ensemble(folder, unit, task, solver)) as held:
        draws, record = torch.from_numpy(held["draws"]).float(), json.loads(str(held["record"]))
    # Made in a batch of several measurements, of which this is one.
    record |= {"measurements": 1, "batched": False, "failed": []}
    return Posterior(draws, record), unit.truth()


def finished(everything: Sequence[Unit], folder: Path, task: str, solvers: Sequence[str]) -> list[Unit]:
    """The crops of which every solver has draws."""
    return [unit for unit in everything if all(ensemble(folder, unit, task, solver).exists() for solver in solvers)]


def figures(pairs: Sequence[Pair], calibrator: Calibrator | None) -> Row:
    """The figures of one set of ensembles, as they are or recalibrated."""
    posteriors = [posterior if calibrator is None else calibrator(posterior) for posterior, _ in pairs]
    truths = [truth for _, truth in pairs]
    pooled = check(posteriors, truths, levels=(0.5, 0.8, LEVEL), functionals={}).pooled["pixels"]
    found = {
        "coverage_50": pooled.coverage[0.5],
        "coverage_80": pooled.coverage[0.8],
        "coverage_90": pooled.coverage[LEVEL],
        "crps": pooled.crps,
        "spread": pooled.spread_skill,
    }
    row = {"test_images": str(len(pairs)), "draws": str(len(posteriors[0]))}
    for name, estimate in found.items():
        for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
            row[name + end] = f"{value:.5g}"
    row["scale"] = "1" if calibrator is None else f"{calibrator.scale:.4g}"
    row["beyond"] = f"{np.mean([_covered(p, t) < LEVEL for p, t in zip(posteriors, truths, strict=True)]):.3f}"
    return row


def _covered(posterior: Posterior, truth: Tensor) -> float:
    low, high = posterior.interval(LEVEL)
    return float(((truth >= low) & (truth <= high)).double().mean())


def states(calibration: Sequence[Pair], tested: Sequence[Pair], solver: str) -> Iterator[Row]:
    """The test images as they are, and recalibrated by each method that has enough images."""
    yield {"state": "uncalibrated", "calibration_images": "0"} | figures(tested, None)
    for method in ("crc", "rcps"):
        posteriors, truths = [pair[0] for pair in calibration], [pair[1] for pair in calibration]
        try:
            calibrator = calibrate(posteriors, truths, LEVEL, method=method)
        except ValueError as error:
            print(f"{solver} {method}: {error}")
            continue
        yield {"state": method, "calibration_images": str(len(calibration))} | figures(tested, calibrator)


def rows(everything: Sequence[Unit], folder: Path, solvers: Sequence[str]) -> Iterator[Row]:
    for task in TASKS:
        here = finished(everything, folder, task, solvers)
        for solver in solvers:
            pairs = {unit: load(folder, unit, task, solver) for unit in here}
            left = [unit for unit in here if unit.role == "calibration"]
            right = [pairs[unit] for unit in here if unit.role == "test"]
            head = {"task": task, "solver": solver}
            if right:
                for row in states([pairs[unit] for unit in left], right, solver):
                    yield head | {"tested_on": "CBSD68 and Kodak24"} | row
            odd = [unit for unit in left if zlib.crc32(unit.name.encode()) >> 8 & 1]
            even = [unit for unit in left if unit not in odd]
            if odd and even:
                for row in states([pairs[unit] for unit in even], [pairs[unit] for unit in odd], solver):
                    yield head | {"tested_on": "held-out half"} | row


def table(found: Sequence[Row]) -> list[str]:
    """Markdown: coverage of nominal 90 % before and after, CRPS and spread, by task and solver."""
    lines = [
        "| task | solver | images | CRPS | spread / error | coverage at 90 % | after crc | its scale | calibrated on |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    keyed = {(row["task"], row["solver"], row["tested_on"], row["state"]): row for row in found}
    for (task, solver, on, state), row in keyed.items():
        if state != "uncalibrated" or on != "CBSD68 and Kodak24":
            continue
        after = keyed.get((task, solver, on, "crc"))
        cells = [row["test_images"], f"{float(row['crps']):.4f}", f"{float(row['spread']):.2f}", _interval(row)]
        cells += [_interval(after), after["scale"], after["calibration_images"]] if after else ["", "", ""]
        lines.append(f"| {task} | {solver} | " + " | ".join(cells) + " |")
    return lines


def _interval(row: Row) -> str:
    value, low, high = (float(row[f"coverage_90{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="that keeps the draws")
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS), choices=SOLVERS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args(argv)
    if not os.environ.get("INVDIFF_DATA"):
        raise SystemExit("INVDIFF_DATA is not set: expected the folder that holds train_natural/ and test/.")
    found: list[Row] = []
    for row in rows(units(Path(os.environ["INVDIFF_DATA"])), settings.folder, settings.solvers):
        found.append(row)
        print(
            *(row[key] for key in (*COLUMNS[:4], "test_images", "scale", "coverage_90", "crps", "spread")), flush=True
        )
    write(settings.out, COLUMNS, found)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
