"""What `invdiff calibrate` does: find the scale of the spread from folders of draws that keep their truths."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from .calibrator import percent, refuse
from .conformal import calibrate as find
from .kept_truth import read_truth
from .posterior import Posterior
from .risk import check_terms

__all__ = ["calibrate"]


def calibrate(runs: Sequence[str], *, level: float, delta: float, method: str, out: Path, overwrite: bool) -> None:
    """Write the calibrator of some runs to a file, and say what it promises.

    Args:
        runs: folders of `--store`, or patterns of them that no shell has filled in.
        level, delta, method: see `conformal.calibrate`.
        out: the file.
        overwrite: replace one that is there.

    Raises:
        FileNotFoundError: a folder that is not there, or that keeps no draws or no truth.
        FileExistsError: the file is there, without `overwrite`.
        ValueError: as `conformal.calibrate`, and for draws that are not finished.
    """
    check_terms(method, level, delta)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} in: make it first.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already: choose another name, or give --overwrite.")
    folders = [folder for run in runs for folder in _folders(run)]
    # All of them before the first is gone through, which takes its time.
    for folder in folders:
        _load(folder)
        _truth(folder)
    posteriors, truths = map(_load, folders), map(_truth, folders)
    calibrator = find(posteriors, truths, level, delta, method, names=map(str, folders))
    calibrator.save(out)
    print(f"{calibrator.label}: the spread is multiplied by {calibrator.scale:.3g}")
    print(
        f"values outside their interval of level {percent(level)}, over {calibrator.images} images: "
        f"{percent(calibrator.risk_before)} before, {percent(calibrator.risk)} after"
    )
    print(calibrator.guarantee)
    print(f"written to {out}; invdiff report RUN --calibrator {out} applies it")


def _folders(run: str) -> Iterator[Path]:
    """The folder of that name, or those that a pattern names, as shells fill it in, in order."""
    if Path(run).exists() or not glob.has_magic(run):
        yield Path(run)
        return
    found = sorted(glob.glob(run))
    if not found:
        raise FileNotFoundError(f"No folder matches {run}: expected folders of --store.")
    yield from map(Path, found)


def _load(folder: Path) -> Posterior:
    if not (folder / "zarr.json").is_file():
        there = "holds no draws" if folder.exists() else "is not there"
        raise FileNotFoundError(f"{folder} {there}: expected a folder of restore --store (or sample(..., store=...)).")
    posterior = Posterior.load(folder)
    refuse(posterior, f"{folder}: ")
    if posterior.record["interrupted"]:
        raise ValueError(
            f"{folder} is not finished: {len(posterior)} draws are there so far; run it again to go on, or leave it "
            "out."
        )
    return posterior


def _truth(folder: Path) -> Tensor:
    truth = read_truth(folder)
    if truth is None:
        raise FileNotFoundError(
            f"{folder} keeps no truth: run its restore again with --truth (or sample with truth=...), which adds it, "
            "or leave it out."
        )
    return truth
