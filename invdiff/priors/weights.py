"""Read and write weights without ever running code from the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fill", "load_state_dict", "read_prior", "save_prior", "write_safetensors"]

# Training scripts put the weights beside other entries under one of these names.
_CONTAINERS = ("state_dict", "params_ema", "params", "model_state_dict", "model", "net")


def save_prior(path: Path, state: Mapping[str, Tensor], network: dict[str, Any], card: dict[str, Any]) -> None:
    """Write weights in half precision with their network configuration and model card in the file's header."""
    tensors = {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in state.items()}
    write_safetensors(path, tensors, {"network": json.dumps(network), "card": json.dumps(card)})


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with the permissions of any other file: safetensors lets its owner alone read it."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def read_prior(
    path: str | Path, *, sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read what `save_prior` wrote: the weights, the network's configuration and the model card.

    Args:
        path: the file.
        sha256: the expected SHA-256 of the file, hexadecimal.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no safetensors file, is cut short, has another SHA-256 or no header of `save_prior`.
    """
    path = _existing(path, sha256)
    state, header = _read_safetensors(path)
    try:
        network, card = json.loads(header["network"]), json.loads(header["card"])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} holds weights without the network and card that save_prior writes; load it with load_state_dict "
            f"and build the network yourself."
        ) from error
    return state, network, card


def load_state_dict(path: str | Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, on the CPU, without running any code that it holds.

    A `.safetensors` file is read as such and anything else by `torch.load(weights_only=True)`. Where the weights lie
    under `state_dict`, `params` or the like, that entry is taken, and a `module.` before every name is dropped.

    Args:
        path: the file.
        sha256: the SHA-256 that the file must have, hexadecimal; not checked where left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or cut short, has another SHA-256, needs code to be loaded, or holds no named
            tensors.
    """
    path = _existing(path, sha256)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    import pickle
    import re

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names the objects that it would have to build ("Unsupported global", "GLOBAL"); damage has other words.
        # Pickles of later protocols (EDM's .pkl) stop its reader at an instruction before any object.
        with path.open("rb") as file:
            later = file.read(2) in (b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if later or "global" in str(error).lower():
            found_class = re.search(r"GLOBAL ([\w.]+)", str(error))
            named = f" ({found_class[1]})" if found_class else ""
            raise ValueError(
                f"{path} holds pickled Python objects{named}, and loading them would run code from the file; where you "
                f"trust it, load it in the program that made it, save model.state_dict() with torch.save or "
                f"safetensors, and load that file here."
            ) from error
        raise ValueError(f"{path} is not a file of weights that torch can read; is it complete?") from error
    except Exception as error:  # the reader of older files trusts them: IndexError, struct.error, AssertionError, ...
        raise ValueError(
            f"{path} is damaged or cut short ({path.stat().st_size} bytes) and cannot be read; fetch it again."
        ) from error
    state = _named_tensors(found)
    if state is None:
        raise ValueError(
            f"{path} holds {type(found).__name__} and not named tensors; save model.state_dict() and load that file."
        )
    return state


def fill(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights into a network of the same names and shapes.

    A network built under `torch.device("meta")` takes the tensors over in its own dtype, without a second copy.

    Raises:
        ValueError: a name is missing or unexpected, or a shape differs; the sentence names the first.
    """
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    kind = type(network).__name__
    for keys, what in ((missing, "lacks"), (extra, "has unexpected")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{path} does not fit {kind}: it {what} {keys[0]!r}{more}; is it another architecture?")
    for key, tensor in wanted.items():
        if tensor.shape != state[key].shape:
            raise ValueError(
                f"{path} does not fit {kind}: {key!r} has shape {tuple(state[key].shape)} and not "
                f"{tuple(tensor.shape)}; check the number of channels and features."
            )
    if any(tensor.is_meta for tensor in wanted.values()):
        network.load_state_dict({key: state[key].to(tensor.dtype) for key, tensor in wanted.items()}, assign=True)
    else:
        network.load_state_dict(dict(state))


def _existing(path: str | Path, sha256: str | None = None) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"The file of weights {path} {what}; give the path of a checkpoint.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; fetch it again.")
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256.lower():
            raise ValueError(
                f"{path} has the SHA-256 {found} and not the expected {sha256.lower()}; fetch it again or check where "
                f"it is from."
            )
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); fetch it again.") from error


def _named_tensors(found: Any) -> dict[str, Tensor] | None:
    """The mapping of names to tensors in what was loaded, at its top or in one of the usual containers."""
    if not isinstance(found, Mapping):
        return None
    for name in _CONTAINERS:
        if isinstance(found.get(name), Mapping):
            return _named_tensors(found[name])
    if not found or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        return None
    wrapped = all(key.startswith("module.") for key in found)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in found.items()}
