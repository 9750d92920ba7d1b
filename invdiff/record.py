"""What ran: versions, settings and machine, so that anyone can run it again."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["describe", "environment"]


def describe(thing: object) -> Any:
    """A description of an object that JSON can hold: its class name and its settings, tensors by shape and hash."""
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, Tensor):
        return {"shape": list(thing.shape), "dtype": str(thing.dtype).removeprefix("torch."), "sha256": digest(thing)}
    if isinstance(thing, (list, tuple)):
        return [describe(item) for item in thing]
    if isinstance(thing, dict):
        return {str(key): describe(value) for key, value in thing.items()}
    out: dict[str, Any] = {"name": type(thing).__name__}
    if dataclasses.is_dataclass(thing):
        out |= {field.name: describe(getattr(thing, field.name)) for field in dataclasses.fields(thing)}
    for attribute in ("name", "sigma_range", "channels", "in_shape", "out_shape", "precision", "card", "sha256"):
        value = getattr(thing, attribute, None)
        if value is not None and attribute not in out:
            out[attribute] = describe(value)
        elif attribute == "name" and isinstance(value, str):
            out["prior"] = value
    return out


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bytes."""
    import hashlib

    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, git commit (of a source checkout), device and thread count."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "invdiff": _version("invdiff"),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "git_commit": _commit(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
