"""What ran: versions, settings and machine, so that anyone can run it again."""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import functools
import hashlib
import json
import math
import numbers
import platform
import subprocess
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .callables import code_of_class, describe_callable, is_library, qualified
from .operators import Operator
from .priors.base import Prior

__all__ = ["describe", "environment", "machine", "own_constants", "weight_hash"]

# What an operator computes from its other constants when it first needs it, and so holds in some runs only.
_DERIVED = {"phase", "singular", "u", "unit", "vt"}
# What torch and an operator keep in every object, described in other ways or not a setting.
_HELD = {*vars(nn.Module()), "_children", "_constants", "_per_member", "_cache"}

Describe = Callable[[object], Any]

# Descriptions of operators' constants by id, each with the constant itself, weakly, and its version.
_KNOWN: dict[int, tuple[weakref.ref[Tensor], int, dict[str, Any]]] = {}


def describe(thing: object, within: tuple[int, ...] = ()) -> Any:
    """A description of an object that JSON can hold: its class name and its settings, tensors by shape and hash.

    JSON knows no infinity: it is the word "inf", as in the files of `restore`.

    A prior adds its plain settings, the prior that it wraps and the hash of its weights; an operator its plain
    settings, the hash of every constant and the operators that it is made of. A function is described by its code and
    what it reads: closure, defaults, globals. An object of a class that is not ours adds the code of that class, its
    public attributes, and the private ones that are arrays, networks or functions. What no description can tell is
    {"opaque": name}, and so are other private attributes, which may be counters.

    Args:
        thing: the object.
        within: the ids of the objects that are being described around it.

    >>> from invdiff.operators import Identity
    >>> describe(2 * Identity((1, 2, 2)))["factor"]
    2.0
    """
    if thing is None or isinstance(thing, (bool, str)):
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
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        found = hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()
        return {"shape": list(thing.shape), "dtype": thing.dtype.name, "sha256": found}
    if isinstance(thing, (bytes, complex, range, slice, enum.Enum, PurePath, type(...))):
        return repr(thing)
    if id(thing) in within:
        return {"within": qualified(type(thing))}

    def inner(part: object) -> Any:
        return describe(part, (*within, id(thing)))

    if isinstance(thing, (list, tuple)):
        return [inner(item) for item in thing]
    if isinstance(thing, dict):
        return {str(key): inner(value) for key, value in thing.items()}
    if isinstance(thing, (set, frozenset)):
        return sorted((inner(item) for item in thing), key=json.dumps)
    if isinstance(thing, type):
        return {"class": qualified(thing)} | ({} if is_library(thing.__module__) else code_of_class(thing, inner))
    return describe_callable(thing, inner) or _object(thing, inner)


def _object(thing: object, inner: Describe) -> dict[str, Any]:
    """An object by its class and what it holds."""
    kind = type(thing)
    if not _describable(thing):
        return {"opaque": qualified(kind)}
    if isinstance(thing, nn.Module):
        return _module(thing, inner)
    out: dict[str, Any] = {"name": kind.__name__ if _is_ours(kind) else qualified(kind)}
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    out |= {field.name: inner(getattr(thing, field.name)) for field in fields}
    for attribute in ("name", "sigma_range", "channels", "in_shape", "out_shape", "precision", "card", "sha256"):
        value = getattr(thing, attribute, None)
        if value is not None and attribute not in out:
            out[attribute] = inner(value)
        elif attribute == "name" and isinstance(value, str):
            out["prior"] = value
    if _is_ours(kind):
        if isinstance(thing, Prior | Operator):
            out = _settings(thing, out, inner)
    else:
        out = _attributes(thing, out, inner)
    if isinstance(thing, Operator):
        out |= _constants(thing, inner)
    return out | (_hash(thing) if isinstance(thing, Prior | Operator) else {})


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "invdiff"


def _describable(thing: object) -> bool:
    """Whether what an object does follows from its attributes, as far as anybody knows."""
    kind = type(thing)
    if isinstance(thing, nn.Module | types.SimpleNamespace) or dataclasses.is_dataclass(kind) or _is_ours(kind):
        return True
    return hasattr(thing, "__dict__") and kind.__module__.partition(".")[0] not in {"torch", *sys.stdlib_module_names}


def _settings(thing: Prior | Operator, out: dict[str, Any], inner: Describe) -> dict[str, Any]:
    """`out` with the public attributes of ours that are settings, a wrapped prior, and the functions of others."""
    for name, value in vars(thing).items():
        if isinstance(value, Prior):
            out["inner"] = inner(value)
        elif name.startswith("_"):
            # Where an operator keeps what it was made from: functions, a physics.
            if isinstance(thing, Operator) and _is_foreign(value):
                out[name.removeprefix("_")] = inner(value)
        elif name not in out and (_is_setting(value) or name == "function" or _is_function(value)):
            out[name] = inner(value)
    return out


def _attributes(thing: object, out: dict[str, Any], inner: Describe) -> dict[str, Any]:
    """`out` with the attributes of an object of somebody else's class, and the code of that class."""
    written = not is_library(type(thing).__module__)
    if written:
        out |= code_of_class(type(thing), inner)
    for name, value in getattr(thing, "__dict__", {}).items():
        if name in out or (name in _HELD and isinstance(thing, nn.Module | Operator)):
            continue
        if not name.startswith("_") or isinstance(value, Tensor | np.ndarray | Prior) or _is_foreign(value):
            out[name] = inner(value)
        elif written:
            out["opaque"] = f"{qualified(type(thing))}.{name}"
    return out


def _module(thing: nn.Module, inner: Describe) -> dict[str, Any]:
    """A network by its parts and the hash of its weights."""
    saved, parts = thing.state_dict().keys(), {}
    for name, part in thing.named_modules():
        parts[name] = _attributes(part, {"name": qualified(type(part))}, inner)
    # Their values are in the hash; those that are not saved are not.
    more = {name: inner(value) for name, value in thing.named_buffers() if name not in saved}
    return {"name": qualified(type(thing)), "modules": parts, **({"buffers": more} if more else {})} | _hash(thing)


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, nn.Module | type)


def _is_foreign(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(_is_foreign(item) for item in value)
    return callable(value) and not isinstance(value, Operator | type)


def _is_setting(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and (item is None or _is_setting(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_setting(item) for item in value)
    kinds = (bool, str, numbers.Real, Tensor, np.ndarray, torch.dtype, torch.device, torch.memory_format)
    return isinstance(value, kinds) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def own_constants(operator: Operator) -> dict[str, Any]:
    """What an operator was built from, without what it computed from that."""
    builds = type(operator)._build is not Operator._build
    return {k: v for k, v in sorted(operator._constants.items()) if not (builds and k in _DERIVED)}


def _constants(operator: Operator, inner: Describe) -> dict[str, Any]:
    kept = own_constants(operator)
    told = _constant if _is_ours(type(operator)) else inner
    out: dict[str, Any] = {"constants": {name: told(part) for name, part in kept.items()}} if kept else {}
    if operator._children:
        out["operators"] = [inner(child) for child in operator._children]
    return out


def _constant(tensor: Tensor) -> Any:
    """The description of a constant, a copy that one of our operators made: hashed anew only where it was changed."""
    # One made under inference_mode has no version, and that of memory shared with numpy tells of torch's writes alone;
    # such memory, which has another owner too, cannot be resized.
    if tensor.is_inference() or not tensor.untyped_storage().resizable():
        return describe(tensor)
    known = _KNOWN.get(id(tensor))
    if known is None or known[0]() is not tensor:
        weakref.finalize(tensor, _KNOWN.pop, id(tensor), None).atexit = False
        known = None
    if known is None or known[1] != tensor._version:
        known = _KNOWN[id(tensor)] = weakref.ref(tensor), tensor._version, describe(tensor)
    return dict(known[2])


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
                _feed(total, tensor)
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
    total = hashlib.sha256()
    _feed(total, tensor)
    return total.hexdigest()


def _feed(total: hashlib._Hash, tensor: Tensor) -> None:
    """Hash the bytes of a tensor, not copied where they lie in memory in a row."""
    # Conjugation and negation may be pending in a flag, and the bytes those of other values.
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    size = plain.numel() * plain.element_size()
    # Not by .numpy(), which marks the memory, that of the caller too, as shared: never to be resized.
    total.update((ctypes.c_ubyte * size).from_address(plain.data_ptr()) if size else b"")


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


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
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
