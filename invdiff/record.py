"""What ran: versions, settings and machine, so that anyone can run it again."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import numbers
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .operators import Operator
from .priors.base import Prior

__all__ = ["describe", "environment", "machine", "own_constants", "weight_hash"]

# What an operator computes from its other constants when it first needs it, and so holds in some runs only.
_DERIVED = {"phase", "singular", "u", "unit", "vt"}


def describe(thing: object) -> Any:
    """A description of an object that JSON can hold: its class name and its settings, tensors by shape and hash.

    JSON knows no infinity: it is the word "inf", as in the files of `restore`.

    A prior adds its plain settings, the prior that it wraps and the hash of its weights; an operator its plain
    settings, the hash of every constant and the operators that it is made of.

    >>> from invdiff.operators import Identity
    >>> describe(2 * Identity((1, 2, 2)))["factor"]
    2.0
    """
    if thing is None or isinstance(thing, (bool, int, str)):
        return thing
    if isinstance(thing, numbers.Integral):  # numpy's integers are no subclass of int
        return int(thing)
    if isinstance(thing, numbers.Real):
        number = float(thing)
        return number if math.isfinite(number) else str(number)
    if isinstance(thing, (torch.dtype, torch.device, torch.memory_format)):
        return str(thing).removeprefix("torch.")
    if isinstance(thing, Tensor):
        return {"shape": list(thing.shape), "dtype": describe(thing.dtype), "sha256": digest(thing)}
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
    if isinstance(thing, Prior):
        return _settings(thing, out) | _hash(thing)
    if isinstance(thing, Operator):
        return _settings(thing, out) | _constants(thing) | _hash(thing)
    return out


def _settings(thing: Prior | Operator, out: dict[str, Any]) -> dict[str, Any]:
    """`out` with the public attributes that are settings (plain values, tensors, dataclasses) and a wrapped prior."""
    for name, value in vars(thing).items():
        if isinstance(value, Prior):
            out["inner"] = describe(value)
        elif not name.startswith("_") and name not in out and _is_setting(value):
            out[name] = describe(value)
    return out


def _is_setting(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and (item is None or _is_setting(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_setting(item) for item in value)
    plain = isinstance(value, (bool, str, numbers.Real, Tensor, torch.dtype, torch.device, torch.memory_format))
    return plain or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def own_constants(operator: Operator) -> dict[str, Any]:
    """What an operator was built from, without what it computed from that."""
    builds = type(operator)._build is not Operator._build
    return {k: v for k, v in sorted(operator._constants.items()) if not (builds and k in _DERIVED)}


def _constants(operator: Operator) -> dict[str, Any]:
    kept = own_constants(operator)
    out: dict[str, Any] = {"constants": describe(kept)} if kept else {}
    if operator._children:
        out["operators"] = [describe(child) for child in operator._children]
    return out


def _hash(thing: object) -> dict[str, str]:
    found = weight_hash(thing)
    return {} if found is None else {"sha256": found}


def weight_hash(thing: object) -> str | None:
    """SHA-256 over the names and values of all networks that a prior holds; None where it holds no weights."""
    total, empty = hashlib.sha256(), True
    for network in _networks(thing, set()):
        for name, tensor in sorted(network.state_dict().items()):
            if isinstance(tensor, Tensor):
                total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                total.update(_bytes(tensor))
                empty = False
    return None if empty else total.hexdigest()


def _networks(thing: object, seen: set[int]) -> Iterator[nn.Module]:
    """The modules in the public attributes of a prior, and in the priors that it wraps; private ones are copies."""
    if id(thing) in seen or isinstance(thing, Tensor | str | bytes | int | float | type):
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    for name, value in vars(thing).items() if hasattr(thing, "__dict__") else ():
        if name.startswith("_"):
            continue
        if isinstance(value, nn.Module) or type(value).__module__.startswith("invdiff."):
            yield from _networks(value, seen)


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bytes."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    # Conjugation and negation may be pending in a flag, and the bytes those of other values.
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    return plain.view(torch.uint8).numpy().tobytes()


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


def machine(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """What machines must share for the same bits: the kind of device, the threads of the CPU, torch's version.

    Args:
        device: that computes.
        threads: of the CPU; those of this process if left out.

    >>> sorted(machine(torch.device("cpu")))
    ['device', 'threads', 'torch']
    """
    if device.type == "cuda":
        return {"device": f"cuda {torch.cuda.get_device_name(device)}", "threads": None, "torch": torch.__version__}
    kind = device.type
    if kind == "cpu":
        kind = f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"device": kind, "threads": threads or torch.get_num_threads(), "torch": torch.__version__}


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
