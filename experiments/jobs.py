"""One job of an experiment: its folder, whether it is done, and running it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import Likelihood, sample
from invdiff.choices import pick_device
from invdiff.metrics import measured
from invdiff.priors import Prior, match_channels
from invdiff.priors.base import as_prior
from invdiff.priors.tiled import in_tiles
from invdiff.random import MemberRandom
from invdiff.record import environment
from invdiff.report import write_json
from invdiff.solvers.base import CapabilityError

from . import protocols
from .build import build
from .figures import COLUMNS, figures, one_image, write_pictures
from .memory import Peak
from .sources import Picture
from .spent import SPENT, Spent

__all__ = ["FREE", "GROUPS", "TITLE", "Job", "State", "current", "run", "state"]

GROUPS = ("data", "operator", "noise", "prior", "solver")
TITLE = ("data", "operator", "prior", "solver")
# What changes no figure, and so does not make another job.
FREE = ("device", "engine", "experiment", "in_shape", "out", "pictures", "protocol", "store", "weights")
# The stream of a measurement's noise, as in invdiff.restoration: no draw's number gets here.
_NOISE_STREAM = 2**40


@dataclass(frozen=True)
class Job:
    """What to run, and where.

    Args:
        settings: the resolved configuration, without `hydra`.
        names: the choice in each of `GROUPS`.
        varied: the overrides, other than choices of `TITLE`, in which it differs from other jobs of its sweep.
        allow: what its configuration may call beside the list.
    """

    settings: Mapping[str, Any]
    names: Mapping[str, str]
    varied: Sequence[str] = ()
    allow: Collection[str] = ()

    @property
    def key(self) -> str:
        """SHA-256 of the settings that can change a figure."""
        kept = {name: value for name, value in self.settings.items() if name not in FREE}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    @property
    def title(self) -> str:
        """Data, operator, prior and solver, and what else differs between the jobs of a sweep."""
        return " ".join(["_".join(self.names[group] for group in TITLE), *self.varied])

    @property
    def folder(self) -> Path:
        """Its own place in `out`: readable, and of these settings alone."""
        plain = re.sub(r"[^\w.-]+", "-", "_".join(self.names[group] for group in TITLE))
        return Path(self.settings["out"]) / f"{plain}-{self.key[:8]}"


@dataclass(frozen=True)
class State:
    """How a job stands: "done", "failed", "not applicable" or "missing", why, and its figures."""

    status: str
    sentence: str = ""
    rows: Sequence[Mapping[str, str]] = ()
    record: Mapping[str, Any] | None = None


def state(job: Job) -> State:
    """What the folder of a job says.

    Raises:
        ValueError: it cannot be read, as after a full disk.
    """
    for name in ("done", "failed"):
        path = job.folder / f"{name}.json"
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            key = record["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no record of a job: remove it, and the job runs again.") from error
        if key != job.key:
            continue
        if name == "failed":
            return State(record["status"], record["sentence"], record=record)
        with (job.folder / "figures.csv").open(newline="", encoding="utf-8") as file:
            return State("done", rows=list(csv.DictReader(file)), record=record)
    return State("missing")


def current(job: Job, *, say: bool = True) -> bool:
    """Whether a job is done, with the images and files that are there now; those that are gone count as they were.

    Args:
        job: that one.
        say: print where these have changed.
    """
    found = state(job)
    if found.status != "done" or found.record is None:
        return False
    try:
        pictures: list[Picture] = build(job.settings["data"], job.allow).load()
        same = found.record["images"] == {picture.name: picture.sha256 for picture in pictures}
        before: Mapping[str, str] = found.record["files"]
        same = same and all(before.get(place, now) == now for place, now in _files(job.settings).items())
    except (ValueError, OSError):
        # Not there any more, or not here: that is no reason to lose what was done with them.
        return True
    if say and not same:
        print(f"{job.title}: its images or weights have changed since it was done: it runs again.", flush=True)
    return same


def _files(settings: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of every file of weights, PSFs and matrices that the settings name; of a folder of all its files."""
    named = {"lpips": settings["lpips"]} if settings.get("lpips") else {}
    for group in ("operator", "prior"):
        named |= _paths(settings[group], group)
    return {place: _hash(Path(path)) for place, path in named.items() if Path(path).exists()}


def _paths(tree: Any, place: str) -> dict[str, str]:
    found = {}
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if key in ("path", "pretrained", "folder") and isinstance(value, str):
            found[f"{place}.{key}"] = value
        found |= _paths(value, f"{place}.{key}")
    return found


def _hash(path: Path) -> str:
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    whole = [f"{file.relative_to(path).as_posix()} {_hash(file)}" for file in files]
    return hashlib.sha256("\n".join(whole).encode()).hexdigest()


def run(job: Job, note: str = "") -> State:
    """Run a job that is not done, into its folder; what goes wrong is written there, and raises nothing.

    Files are written first and done.json last, so that a folder with it is complete.
    """
    folder = job.folder
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "done.json").exists():
        if current(job, say=False):
            print(f"{note}{job.title}: done in the meantime by another process.", flush=True)
            return state(job)
        # Done with other images or weights: its draws are not gone on with.
        for draws in folder.glob("draws*.zarr"):
            shutil.rmtree(draws)
        (folder / SPENT).unlink(missing_ok=True)
    for name in ("done.json", "failed.json", "error.txt"):
        (folder / name).unlink(missing_ok=True)
    print(f"{note}{job.title} ...", flush=True)
    clock = time.monotonic()
    try:
        record = _run(job, folder)
    except Exception as error:
        status = "not applicable" if isinstance(error, CapabilityError) else "failed"
        said = " ".join(str(error).split()) or type(error).__name__
        expected = isinstance(error, (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError))
        if not expected:
            said = f"{type(error).__name__}: {said}"
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        _write(folder / "failed.json", _head(job) | {"status": status, "sentence": said})
        print(f"{note}{job.title}: {status}: {said}", flush=True)
        return state(job)
    seconds = time.monotonic() - clock + record["seconds_before"]
    _write(folder / "done.json", _head(job) | record | {"seconds": round(seconds, 3)})
    (folder / SPENT).unlink(missing_ok=True)
    found = state(job)
    decibels = [float(row["psnr_mean"]) for row in found.rows]
    before = f", {record['seconds_before']:.1f} s of them before it was stopped" if record["seconds_before"] else ""
    mean = sum(decibels) / len(decibels)
    print(f"{note}{job.title}: {mean:.2f} dB over {len(decibels)} images in {seconds:.1f} s{before}", flush=True)
    return found


def _head(job: Job) -> dict[str, Any]:
    return {
        "key": job.key,
        "names": dict(job.names),
        "varied": list(job.varied),
        "settings": dict(job.settings),
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """At once or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    write_json(temporary, content)
    os.replace(temporary, path)


def _run(job: Job, folder: Path) -> dict[str, Any]:
    settings, allow = job.settings, job.allow
    pictures: list[Picture] = build(settings["data"], allow).load()
    # A protocol that cannot be read is said before hours of sampling.
    protocol = protocols.read(settings["protocol"]) if settings["protocol"] else None
    followed = protocols.followed(settings, pictures)
    differs = protocols.differences(protocol, followed) if protocol is not None else []
    for sentence in differs:
        print(f"  differs from the protocol {settings['protocol']}: {sentence}", flush=True)
    protocols.write(folder / "protocol.yaml", followed)
    perceptual = None
    if settings["lpips"]:
        from .lpips import LPIPS

        perceptual = LPIPS(settings["lpips"])
    solver, prior = build(settings["solver"], allow), as_prior(build(settings["prior"], allow))
    shutil.rmtree(folder / "pictures", ignore_errors=True)
    rows: dict[int, dict[str, Any]] = {}
    records, before = [], 0.0
    for number, (shape, members) in enumerate(_by_shape(pictures).items()):
        made = _Group(job, folder / ("draws.zarr" if number == 0 else f"draws_{number}.zarr"), shape, solver, prior)
        found, record = made.run([(index, pictures[index]) for index in members], perceptual)
        rows |= found
        records.append(record)
        before += record["seconds_before"]
    with (folder / "figures.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows[index] for index in sorted(rows))
    write_json(folder / "record.json", {"runs": records})
    protocol_record = None if protocol is None else {"name": settings["protocol"], "differs": differs}
    return {
        "versions": environment(pick_device(settings["device"])),
        "images": {picture.name: picture.sha256 for picture in pictures},
        "files": _files(settings),
        "protocol": protocol_record,
        "seconds_before": round(before, 3),
    }


def _by_shape(pictures: Sequence[Picture]) -> dict[tuple[int, ...], list[int]]:
    """The numbers of the images of each shape: they go through one operator, and one micro-batch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        groups.setdefault(tuple(picture.pixels.shape), []).append(index)
    return groups


@dataclass
class _Group:
    """The images of one shape."""

    job: Job
    store: Path
    shape: tuple[int, ...]
    solver: Any
    prior: Prior

    def run(
        self, pictures: Sequence[tuple[int, Picture]], perceptual: Any
    ) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
        settings, allow = self.job.settings, self.job.allow
        operator = build(_with_shape(settings["operator"], self.shape), allow)
        noise = build(settings["noise"], allow)
        clean = torch.stack([picture.pixels for _, picture in pictures])
        y = self._measure([picture for _, picture in pictures], clean, operator, noise)
        slot = in_tiles(self.prior, settings["tile"], self.shape)
        if slot.channels is not None and slot.channels != self.shape[0]:
            slot = match_channels(slot, self.shape[0])
        where = pick_device(settings["device"])
        engine = build(settings["engine"], allow) or None
        store = self.store if settings["store"] or engine is not None else None
        before = Spent(store).begin() if store is not None else 0.0
        peak = Peak(where)
        posterior = sample(
            self.solver,
            Likelihood(y.to(where), operator.to(where), noise),
            slot,
            draws=settings["draws"] if getattr(self.solver, "stochastic", True) else 1,
            seed=settings["seed"],
            device=where,
            micro_batch=settings["micro_batch"],
            store=store,
            engine=engine,
        )
        if posterior.record.get("interrupted"):
            raise KeyboardInterrupt
        megabytes = peak.mib()
        record = posterior.portable_record | {"seconds_before": round(before, 3)}
        common = {
            "nfe": record["nfe"],
            "nfe_backward": record.get("nfe_backward", 0),
            "seconds": round((before + record["seconds"]) / len(pictures), 4),
            "peak_mib": None if megabytes is None else round(megabytes, 1),
            "label": posterior.label,
        }
        rows: dict[int, dict[str, Any]] = {}
        for number, (index, picture) in enumerate(pictures):
            own = one_image(posterior, number)
            found: dict[str, Any] = dict(figures(own, picture.pixels, y[number], operator, noise))
            if perceptual is not None:
                found["lpips"] = perceptual(own.mean(), picture.pixels)
            rows[index] = {"image": picture.name, "sha256": picture.sha256, "draws": len(own), **common, **found}
            if settings["pictures"]:
                write_pictures(self.store.parent / "pictures" / picture.name, own, picture.pixels, y[number])
        return rows, record

    def _measure(self, pictures: Sequence[Picture], x: Tensor, operator: Any, noise: Any) -> Tensor:
        """One measurement of each image, its noise a function of the seed and the image alone."""
        streams = [(_NOISE_STREAM, int(picture.sha256[:12], 16)) for picture in pictures]
        random = MemberRandom(self.job.settings["seed"], streams)
        return noise.sample(operator(x), random) * measured(operator).to(x)


def _with_shape(tree: Any, shape: tuple[int, ...]) -> Any:
    """The settings of an operator, its `in_shape` the image's."""
    if isinstance(tree, Mapping):
        return {
            key: list(shape) if key == "in_shape" and value is None else _with_shape(value, shape)
            for key, value in tree.items()
        }
    return tree
