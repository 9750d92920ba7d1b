"""The file that a run ends in: the weights with a card that says what they learned from and how well they denoise."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.priors import Prior
from invdiff.record import weight_hash

from .objective import Objective
from .parallel import World
from .settings import SettingsError

__all__ = ["check_licences", "make_card", "mean_psnr", "write_prior"]

# Places and habits of the machine that trained, which say nothing of the weights.
_PRIVATE = ("cache", "data", "device", "heldout", "init", "memory_gb", "out", "progress", "sheets", "tensorboard")


def check_licences(licences: Mapping[str, str], sources: Sequence[str]) -> list[str]:
    """A sentence where the licence of a source is not known.

    Raises:
        SettingsError: a licence is given for something that is not among the sources.
    """
    unknown = sorted(set(licences) - set(sources)) if sources else []
    if unknown:
        raise SettingsError(
            f"licences names {unknown[0]!r}, which no file comes from: the sources are {', '.join(sources)}."
        )
    missing = [source for source in sources if source not in licences]
    if missing:
        return [f"No licence is stated for {', '.join(missing)}: give +licences.NAME=... so that the card says it."]
    return [] if licences else ["No licence of the images is stated: give +licences.NAME=... so that the card says it."]


def make_card(
    settings: Mapping[str, Any],
    *,
    sources: Sequence[str],
    images: int,
    scores: Mapping[str, float],
    average: float,
    steps: int,
    seconds: float,
    world: World,
    precision: str,
    origin: str | None,
) -> dict[str, Any]:
    """What the file says of itself; no place of the machine that trained it."""
    return {
        "sources": list(sources) or sorted(settings["licences"]),
        "licences": dict(settings["licences"]),
        "images": images,
        "config": {key: value for key, value in settings.items() if key not in _PRIVATE},
        "validation": dict(scores),
        # The file of weights that the run started from.
        "init_sha256": origin,
        "ema": average,
        "steps": steps,
        "training": {
            "hours": round(seconds / 3600, 3),
            "processes": world.size,
            "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "precision": precision,
            "torch": torch.__version__,
        },
    }


def mean_psnr(scores: Mapping[str, float]) -> float:
    """The mean over the noise levels, by which averages of the weights are compared; -inf where there are none."""
    values = [value for key, value in scores.items() if key.startswith("psnr")]
    return sum(values) / len(values) if values else float("-inf")


def write_prior(objective: Objective, path: Path, state: Mapping[str, Tensor], card: Mapping[str, Any]) -> Prior:
    """Write the file with the SHA-256 of its weights in the card, at once or not at all, and return its prior."""
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    objective.save(temporary, state, card)
    # The hash is of the weights as they will be read: rounded to half precision, and widened again.
    objective.save(temporary, state, {**card, "sha256": weight_hash(objective.open(temporary))})
    os.replace(temporary, path)
    return objective.open(path)
