"""Settings of a training run, checked before anything is read or built."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["FREE", "SettingsError", "check", "same_run"]

# What may change between a run and its continuation: none of them changes what the steps before would have done.
FREE = (
    "cache",
    "checkpoint_every",
    "compile",
    "data",
    "decay",
    "device",
    "init",
    "licences",
    "memory_gb",
    "name",
    "out",
    "precision",
    "progress",
    "sheets",
    "steps",
    "tensorboard",
    "validate_every",
    "validation",
)
KINDS = ("unet", "dncnn", "drunet", "ffdnet")
PREDICTS = ("F", "eps", "x0", "v", "flow")
CHOICES = {
    "optimizer": ("adamw", "muon"),
    "schedule": ("linear", "cosine"),
    "precision": ("auto", "float32", "bfloat16"),
    "channels": (1, 3),
}


class SettingsError(ValueError):
    """What the user can put right, in one sentence."""


def check(cfg: dict[str, Any]) -> None:
    """Raise a sentence unless the settings can be used together.

    Raises:
        SettingsError: names the setting, its value and what was expected.
    """
    for key, allowed in CHOICES.items():
        if cfg[key] not in allowed:
            raise SettingsError(f"{key}={cfg[key]} is unknown: expected one of {', '.join(map(str, allowed))}.")
    kind = cfg["network"].get("kind")
    if kind not in KINDS:
        raise SettingsError(f"network.kind={kind} is unknown: expected one of {', '.join(KINDS)}.")
    if kind == "unet" and cfg["predicts"] not in PREDICTS:
        raise SettingsError(f"predicts={cfg['predicts']} is unknown: expected one of {', '.join(PREDICTS)}.")
    for key in ("batch", "steps", "warmup", "decay", "checkpoint_every", "crop"):
        _whole(key, cfg[key], 1)
    for key in ("validate_every", "sheets"):
        _whole(key, cfg[key], 0)
    for key in ("lr", "clip", "memory_gb"):
        if not (_number(cfg[key]) and cfg[key] > 0):
            raise SettingsError(f"{key}={cfg[key]} cannot be used: expected a number above 0.")
    averages = cfg["ema"] if isinstance(cfg["ema"], list) else [cfg["ema"]]
    if not averages or not all(_number(value) and 0 <= value < 1 for value in averages):
        raise SettingsError(f"ema={cfg['ema']} cannot be used: expected a number from 0 to below 1, or a list of them.")
    held = cfg["heldout"]
    if not isinstance(held, str) and not (_number(held) and held >= 0 and (held < 1 or held == int(held))):
        raise SettingsError(f"heldout={held} cannot be used: expected a file, a share below 1 or a whole number.")
    try:
        re.compile(cfg["group"] or "")
    except re.error as error:
        raise SettingsError(f"group={cfg['group']} is no regular expression: {error}.") from error
    levels = cfg["sigma_range"]
    low, high = levels if len(levels) == 2 and all(map(_number, levels)) else (-1, -1)
    # A U-Net is told the logarithm of sigma; a denoiser may be trained from clean images on.
    if not 0 <= low < high or (low == 0 and kind == "unet"):
        raise SettingsError(f"sigma_range={levels} cannot be used: expected [lowest, highest], 0 < lowest < highest.")
    stride = stride_of(cfg["network"])
    if cfg["crop"] % stride:
        near = max(stride, round(cfg["crop"] / stride) * stride)
        raise SettingsError(
            f"crop={cfg['crop']} is no multiple of {stride}, by which this {kind} reduces an image: use crop={near}."
        )


def stride_of(network: dict[str, Any]) -> int:
    """What the sides of a network's input are multiples of."""
    if network["kind"] == "unet":
        return int(2 ** (len(network["widths"]) - 1))
    return {"dncnn": 1, "ffdnet": 2, "drunet": 8}[network["kind"]]


def same_run(cfg: dict[str, Any], held: dict[str, Any]) -> None:
    """Raise a sentence if a checkpoint was made with settings that these steps would not have had.

    Raises:
        SettingsError: names the first setting that differs.
    """
    for key in sorted(set(cfg) - set(FREE)):
        # Only the linear schedule is the same up to its decay, whatever the number of steps.
        if cfg[key] != held.get(key):
            raise SettingsError(
                f"out={cfg['out']} holds a run with {key}={held.get(key)}, and this one has {key}={cfg[key]}: use the "
                "same, or another out=."
            )
    if cfg["schedule"] == "cosine" and cfg["steps"] != held["steps"]:
        raise SettingsError(
            f"out={cfg['out']} holds a run of steps={held['steps']} with a cosine, which {cfg['steps']} steps would "
            "bend: use the same number, or schedule=linear, which can be prolonged."
        )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(key: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{key}={value} cannot be used: expected a whole number from {least} on.")
