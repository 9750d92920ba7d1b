"""Protocols: what was measured, exactly enough for another to measure the same.

A protocol names the images with the SHA-256 of their pixels, the crop, the operator with every parameter and seed, the
noise with its range, and the number of draws. A run writes the one that it followed, `protocol.yaml` in its folder; and
it is told of the one that it should follow with `protocol=NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .sources import Picture

__all__ = ["differences", "followed", "read", "write"]

_FOLDER = Path(__file__).with_name("protocols")
_PARTS = ("images", "data", "operator", "noise", "range", "draws", "seed")


def followed(settings: Mapping[str, Any], pictures: Sequence[Picture]) -> dict[str, Any]:
    """The protocol that a run with these settings and images follows."""
    places = ("_target_", "path", "name", "images", "limit")
    return {
        "images": {picture.name: picture.sha256 for picture in pictures},
        "data": {key: value for key, value in settings["data"].items() if key not in places},
        "operator": settings["operator"],
        "noise": settings["noise"],
        "range": [0.0, 1.0],
        "draws": settings["draws"],
        "seed": settings["seed"],
    }


def read(name: str) -> dict[str, Any]:
    """A protocol of `experiments/protocols` by its name, or a file by its path.

    Raises:
        ValueError: there is none, or it is not a protocol.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.yaml")))
        raise ValueError(f"protocol is {name}: expected a .yaml file, or one of {known}.")
    found = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(found, dict) or set(found) != set(_PARTS):
        raise ValueError(f"{path} is no protocol: expected exactly {', '.join(_PARTS)}.")
    return {str(key): value for key, value in found.items()}


def write(path: Path, protocol: Mapping[str, Any]) -> None:
    """Write a protocol so that `read` has it again."""
    path.write_text(OmegaConf.to_yaml(dict(protocol)), encoding="utf-8")


def differences(protocol: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """In what a run differs from a protocol, a sentence each; the images first.

    >>> differences({"images": {"a": "1" * 64}, "draws": 8}, {"images": {"a": "2" * 64}, "draws": 8})
    ['the image a has the SHA-256 22222222..., the protocol 11111111...: its pixels are others.']
    """
    said = []
    wanted, had = protocol["images"], run["images"]
    for name in wanted:
        if name not in had:
            said.append(f"the image {name} is missing.")
        elif wanted[name] != had[name]:
            said.append(
                f"the image {name} has the SHA-256 {had[name][:8]}..., the protocol {wanted[name][:8]}...: its pixels "
                "are others."
            )
    said += [f"the image {name} is not in the protocol." for name in had if name not in wanted]
    for part in protocol:
        if part != "images":
            said += _unequal(part, protocol[part], run.get(part))
    return said


def _unequal(place: str, wanted: Any, had: Any) -> list[str]:
    if isinstance(wanted, Mapping) and isinstance(had, Mapping):
        keys = [*wanted, *(key for key in had if key not in wanted)]
        return [line for key in keys for line in _unequal(f"{place}.{key}", wanted.get(key), had.get(key))]
    return [] if wanted == had else [f"{place} is {had}, the protocol has {wanted}."]
