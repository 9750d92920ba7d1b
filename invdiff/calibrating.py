"""What `invdiff calibrate` does: find the scale of the spread from folders of draws that keep their truths."""

from __future__ import annotations

import glob
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from .calibrator import percent, refuse, settings_of
from .conformal import agreed, too_few
from .conformal import calibrate as find
from .kept_truth import read_truth
from .posterior import Posterior
from .record import digest
from .risk import check_terms, images_needed

__all__ = ["calibrate"]


def calibrate(
    runs: Sequence[str], *, level: float, delta: float | None, method: str, out: Path, overwrite: bool
) -> None:
    """Write the calibrator of some runs to a file, and say what it promises.

    Args:
        runs: folders of `--store`, or patterns of them that no shell has filled in.
        level, delta, method: see `conformal.calibrate`; delta is 0.1 if left out, and of "rcps" alone.
        out: the file.
        overwrite: replace one that is there.

    Raises:
        FileNotFoundError: a folder that is not there, or that keeps no draws or no truth.
        FileExistsError: the file is there, without `overwrite`, or is a folder.
        OSError: a folder is damaged.
        ValueError: as `conformal.calibrate`, for draws that are not finished, and for a delta of "crc".
    """
    chance = 0.1 if delta is None else delta
    check_terms(method, level, chance)
    if delta is not None and method == "crc":
        raise ValueError(f"--delta is {delta:g} with --method crc, which promises on average: give --method rcps.")
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder: expected the name of a file, such as {out / 'calibrator.json'}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} in: make it first.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already: choose another name, or give --overwrite.")
    folders = [folder for run in runs for folder in _folders(run)]
    seeds = _look_through(folders, method, level, chance)
    with _shown(folders, "calibrating") as shown:
        posteriors, truths = map(_load, shown), map(_truth, folders)
        calibrator = find(posteriors, truths, level, chance, method, names=map(str, folders))
    calibrator.save(out)
    again = len(seeds) - len(set(seeds))
    if again:
        warnings.warn(
            f"{again} of {len(seeds)} runs have the seed of another one, and with it the noise of their draws (and of "
            "--simulate their measurement's): the promise is of images whose noise has nothing in common, so give each "
            "run a --seed of its own.",
            stacklevel=2,
        )
    print(f"{calibrator.label}: the spread is multiplied by {calibrator.scale:.3g}")
    print(
        f"values outside their interval of level {percent(level)}, over {calibrator.images} images: "
        f"{percent(calibrator.risk_before)} before, {percent(calibrator.risk)} after"
    )
    print(calibrator.guarantee)
    print(f"written to {out}; invdiff report RUN --calibrator {out} applies it")


def _look_through(folders: Sequence[Path], method: str, level: float, delta: float) -> list[Any]:
    """Refuse what is wrong with one of them before the first is gone through, which takes its time; their seeds."""
    settings: dict[str, Any] | None = None
    images: set[str] = set()
    seeds = []
    with _shown(folders, "looking through") as shown:
        for folder in shown:
            posterior, truth = _load(folder), _truth(folder)
            try:
                posterior._refuse_interval(level)
            except ValueError as error:
                raise ValueError(f"{folder}: {error}") from error
            settings = agreed(settings, settings_of(posterior.record), str(folder))
            images |= {digest(image) for image in (truth if posterior.record["batched"] else truth[None])}
            # One folder given twice is one run.
            seeds.append((posterior.record["seed"], folder.resolve()))
    needed = images_needed(method, level, delta)
    if len(images) < needed:
        raise ValueError(too_few(method, level, delta, len(images), needed))
    return [seed for seed, _ in dict.fromkeys(seeds)]


@contextmanager
def _shown(folders: Sequence[Path], words: str) -> Iterator[Iterable[Path]]:
    """The folders, with a bar of how many are done and the time left where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield folders
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        yield bar.track(folders, description=words)


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
            f"{folder} keeps no truth: run its restore again with --truth, or as it was with --simulate (or sample "
            "with truth=...), which adds it, or leave it out."
        )
    return truth
