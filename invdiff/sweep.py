"""A sweep's folder read back: its finished jobs, the figures of their images, and what a reader of them must know.

A sweep holds one folder a job, at any depth. A finished job has `done.json` (settings, names and versions),
`figures.csv` (one row an image) and `pictures/IMAGE/`. Nothing here needs what made them.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "METHOD", "TASK", "Image", "Job", "Sweep", "read_sweep"]

# What figures.csv has of each image, and what a table calls it.
FIGURES = {
    "psnr_mean": "PSNR",
    "psnr_draw": "PSNR of a draw",
    "ssim_mean": "SSIM",
    "ssim_draw": "SSIM of a draw",
    "lpips": "LPIPS",
    "crps": "CRPS",
    "coverage90": "coverage of 90 %",
    "spread_skill": "spread / error",
    "chi2": "chi2",
    "nfe": "NFE",
    "nfe_backward": "passes back",
    "seconds": "seconds",
    "peak_mib": "peak MiB",
}
TASK = ("operator", "noise", "data")
METHOD = ("prior", "solver")
# The order of columns and rows: from the weakest smoother to diffusion models; other names come last.
_ORDER = ("gaussian", "median", "bilateral", "tv", "nlm", "wavelet", "bm3d", "dncnn", "ffdnet", "drunet", "natural")


@dataclass(frozen=True)
class Image:
    """One image of one job.

    Args:
        name: of the image.
        sha256: of its pixels, by which images are paired.
        figures: those of `FIGURES` that apply.
        draws: how many there are; 0 for a point estimate.
        label: what the spread is called.
        pictures: the folder of its pictures; None where there is none.
    """

    name: str
    sha256: str
    figures: Mapping[str, float]
    draws: int = 0
    label: str = ""
    pictures: Path | None = None


@dataclass(frozen=True)
class Job:
    """One finished job.

    Args:
        path: its folder, relative to the sweep.
        names: of operator, noise, prior, solver and data, with the settings in which namesakes of the sweep differ.
        settings: all of them, as they were.
        versions: of what ran.
        images: by the hash of their pixels.
        key: hash of the settings.
    """

    path: str
    names: Mapping[str, str]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    images: Mapping[str, Image]
    key: str = ""

    @property
    def task(self) -> tuple[str, ...]:
        """Operator, noise and data: methods are compared where these agree."""
        return tuple(self.names[part] for part in TASK)

    @property
    def method(self) -> str:
        """Prior and solver, "natural / ddrm"."""
        return " / ".join(self.names[part] for part in METHOD)

    @property
    def point(self) -> bool:
        """Whether it gives a point estimate of each image, and no draws."""
        return not any("psnr_draw" in image.figures or image.draws > 1 for image in self.images.values())


@dataclass(frozen=True)
class Sweep:
    """The finished jobs of a folder, and what a reader of the table must know."""

    folder: Path
    jobs: tuple[Job, ...]
    remarks: tuple[str, ...] = ()

    def tasks(self) -> dict[tuple[str, ...], list[Job]]:
        """The jobs of each task, weak priors first, the tasks in the order of their folders."""
        found: dict[tuple[str, ...], list[Job]] = {}
        for task in dict.fromkeys(job.task for job in sorted(self.jobs, key=lambda job: job.path)):
            found[task] = [job for job in self.jobs if job.task == task]
        return found

    def title(self, task: tuple[str, ...]) -> str:
        """The parts of a task that the sweep varies; the operator always."""
        tasks = self.tasks()
        varied = [any(other[place] != task[place] for other in tasks) or place == 0 for place in range(len(task))]
        return ", ".join(part for part, shown in zip(task, varied, strict=True) if shown)

    def heading(self, task: tuple[str, ...]) -> str:
        """A task with its settings: "downsample factor=4 kind=box, gaussian noise sigma=0.02, skimage crop=96"."""
        settings = next(job.settings for job in self.jobs if job.task == task)
        parts = []
        for key, name in zip(TASK, task, strict=True):
            kind, *told = name.split(" ")
            # Lists are of images, and counted elsewhere; what is None was left to the operator.
            flat = {
                where: value
                for where, value in _flat(settings.get(key)).items()
                if where.rpartition(".")[2] not in ("", "_target_", "name", "images") and value != "None"
            }
            words = dict.fromkeys([*told, *(f"{where}={value}" for where, value in flat.items())])
            parts.append(" ".join([kind, *(["noise"] if key == "noise" else []), *words]))
        return ", ".join(parts)


def read_sweep(folder: str | Path) -> Sweep:
    """Read every finished job below a folder; name those that are not finished, failed, or cannot be read.

    Raises:
        OSError: the folder does not exist or is a file.
        ValueError: it holds no finished job.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder: give the folder that the sweep was written to.")
    jobs, remarks = [], []
    for place in _places(root):
        path = place.relative_to(root).as_posix()
        if not (place / "done.json").exists():
            remarks.append(f"{path}: {_why_not(place)}")
            continue
        try:
            job, doubts = _read_job(place, path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            remarks.append(f"{path}: cannot be read and is left out ({detail}).")
            continue
        jobs.append(job)
        remarks += doubts
    if not jobs:
        reasons = "; ".join(remark.rstrip(".") for remark in remarks) or "no folder in it holds done.json"
        raise ValueError(f"{root} has no finished job to compare: {reasons}.")
    unique = sorted(_named(jobs, remarks), key=_place)
    return Sweep(root, tuple(unique), (*remarks, *_differing(unique)))


# What tells a job's folder: the last and the first of what it writes.
_MARKS = {"done.json", "failed.json", "protocol.yaml", "figures.csv"}
# Settings that change no figure.
_FREE = ("device", "engine", "experiment", "in_shape", "out", "pictures", "protocol", "store")


def _places(root: Path) -> list[Path]:
    """The jobs' folders, without a look at their pictures and draws, which may be many files."""
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name != "pictures" and not name.endswith(".zarr")]
        if _MARKS.intersection(files):
            found.append(Path(folder))
    return sorted(found)


def _why_not(place: Path) -> str:
    if not (place / "failed.json").exists():
        return "not finished, left out; the same sweep again goes on with it."
    try:
        record = json.loads((place / "failed.json").read_text())
        status, sentence = str(record["status"]), " ".join(str(record["sentence"]).split())
    except (OSError, ValueError, KeyError, TypeError):
        status, sentence = "failed", "its failed.json cannot be read"
    return f"{status}, left out ({sentence.rstrip('.')})."


def _place(job: Job) -> tuple[Any, ...]:
    """By prior and then by solver, steps=5 before steps=12."""
    prior = job.names["prior"].partition(" ")[0]
    place = _ORDER.index(prior) if prior in _ORDER else len(_ORDER)
    # Of the parts every second is a number.
    parts = [re.split(r"(\d+)", job.names[part]) for part in METHOD]
    numbered = [[int(text) if number % 2 else text for number, text in enumerate(own)] for own in parts]
    return place, *numbered, job.path


def _read_job(place: Path, path: str) -> tuple[Job, list[str]]:
    """One finished job, and what is wrong with some of its rows."""
    done = json.loads((place / "done.json").read_text())
    names = {part: str(done["names"][part]) for part in (*TASK, *METHOD)}
    versions = {str(name): str(version) for name, version in done.get("versions", {}).items()}
    images: dict[str, Image] = {}
    protocol = done.get("protocol") or {}
    doubts = [
        f"{path}: differs from its protocol {protocol.get('name')}: {text}" for text in protocol.get("differs", ())
    ]
    with (place / "figures.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        image = _read_image(row, place)
        strange = [key for key in FIGURES if row.get(key, "").strip() and key not in image.figures]
        if strange:
            doubts.append(f"{path}: {', '.join(strange)} of {image.name} is not a finite number and counts nowhere.")
        if image.sha256 in images:
            doubts.append(
                f"{path}: {image.name} has the pixels of {images[image.sha256].name} and counts once, as the first."
            )
        images.setdefault(image.sha256, image)
    if not images:
        raise ValueError("its figures.csv has no image")
    return Job(path, names, dict(done["settings"]), versions, images, str(done.get("key", ""))), doubts


def _read_image(row: Mapping[str, str], place: Path) -> Image:
    figures = {}
    for key in FIGURES:
        try:
            value = float(row.get(key) or "nan")
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            figures[key] = value
    pictures = place / "pictures" / row["image"]
    # An image's name comes from a file: it must not lead out of the job.
    inside = pictures.is_dir() and pictures.resolve().is_relative_to(place.resolve())
    draws = int(float(row.get("draws") or 0))
    return Image(row["image"], row["sha256"], figures, draws, row.get("label") or "", pictures if inside else None)


def _named(jobs: Sequence[Job], remarks: list[str]) -> list[Job]:
    """The jobs with the settings in their names that tell namesakes apart; the same settings twice count once."""
    kept: list[Job] = []
    for job in jobs:
        same = next((other for other in kept if other.key and other.key == job.key), None)
        if same is None:
            kept.append(job)
        else:
            remarks.append(f"{job.path}: has the same settings as {same.path} and is left out.")
    for part in (*TASK, *METHOD):
        kept = _told_apart(kept, [job.names[part] for job in kept], [job.settings.get(part) for job in kept], part)
    # Draws, seeds and whatever else stands outside of the five parts belong to the method.
    rest = [{key: v for key, v in job.settings.items() if key not in (*TASK, *METHOD, *_FREE)} for job in kept]
    return _told_apart(kept, [f"{job.task} {job.method}" for job in kept], rest, "solver")


def _told_apart(jobs: Sequence[Job], groups: Sequence[str], settings: Sequence[Any], part: str) -> list[Job]:
    """Add to the name of that part the settings in which jobs of one group differ."""
    flat = [_flat(value) for value in settings]
    out = []
    for job, group, own in zip(jobs, groups, flat, strict=True):
        peers = [other for other, name in zip(flat, groups, strict=True) if name == group]
        keys = sorted({key for peer in peers for key in peer if any(other.get(key) != peer[key] for other in peers)})
        short = {key: key.rpartition(".")[2] for key in keys}
        clear = len(set(short.values())) == len(short)
        words = [f"{short[key] if clear else key}={own.get(key, '-')}" for key in keys]
        name = f"{job.names[part]} {' '.join(words)}" if words else job.names[part]
        out.append(replace(job, names={**job.names, part: name}))
    return out


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        return {
            k: v for key, part in value.items() for k, v in _flat(part, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: f"{value:g}" if isinstance(value, float) else str(value)}


def _differing(jobs: Sequence[Job]) -> list[str]:
    """Sentences on jobs that ran with other versions or on other images than the rest."""
    remarks = []
    for name in sorted({name for job in jobs for name in job.versions}):
        counts = Counter(job.versions.get(name, "an unknown version") for job in jobs)
        if len(counts) > 1:
            parts = [f"{count} with {version[:12]}" for version, count in counts.most_common()]
            remarks.append(
                f"The jobs differ in {name}: {', '.join(parts)}; seconds and last digits may differ by that."
            )
    hashes: dict[str, dict[str, str]] = {}
    for job in jobs:
        for image in job.images.values():
            hashes.setdefault(image.name, {}).setdefault(image.sha256, job.path)
    for name, found in hashes.items():
        if len(found) > 1:
            where = " and ".join(list(found.values())[:2])
            remarks.append(f"{name} has other pixels in {where}: these are different images and are not paired.")
    for task in Sweep(Path(), tuple(jobs)).tasks().values():
        everything = set().union(*(job.images for job in task))
        lacking = [
            f"{job.method} lacks {len(everything) - len(job.images)}" for job in task if set(job.images) != everything
        ]
        if lacking:
            remarks.append(
                f"{task[0].names['operator']}: not all jobs have the same {len(everything)} images "
                f"({', '.join(lacking)}): means are over different images, differences over those that both have."
            )
    return remarks
