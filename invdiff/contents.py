"""What a run keeps beside its draws: measurement, truth, operator and noise, as far as they can be had again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from . import operators
from .kept_truth import read_truth
from .noise import GaussianNoise, NoiseModel, PoissonNoise
from .operators import LinearOperator, Operator, Spectral
from .operators.color import ChannelMix, ChannelSpatial
from .operators.downsample import BicubicDownsample, BoxDownsample
from .posterior import Posterior
from .record import describe, digest
from .stored import DamagedError, read_constants

__all__ = ["Contents", "contents", "rebuild_noise", "rebuild_operator", "require_same_operator"]

Described = Mapping[str, Any]


@dataclass(frozen=True)
class Contents:
    """What is known of one run; None where it is not.

    Args:
        measurement: y, ([m,] *out_shape).
        truth: ([m,] *in_shape).
        operator, noise: what measured it.
    """

    measurement: Tensor | None = None
    truth: Tensor | None = None
    operator: Operator | None = None
    noise: NoiseModel | None = None


def contents(posterior: Posterior) -> Contents:
    """What stands beside the draws of a posterior that was loaded from a folder, and what its record says of the rest.

    Without a folder there is no measurement and no truth, and of operators those alone that need no array.

    Raises:
        DamagedError: a file of it cannot be read, or no longer holds what was put there.
    """
    record, folder = posterior.record, posterior.record.get("store")
    noise = rebuild_noise(record.get("noise"))
    if folder is None or not Path(folder).is_dir():
        return Contents(operator=rebuild_operator(record.get("operator"), {}), noise=noise)
    path = Path(folder)
    y, given = read_constants(path, "observed_data").get("y"), record.get("y") or {}
    # A chunk that is gone reads as zeros, and would be taken for a black measurement.
    if y is not None and str(y.dtype) == f"torch.{given.get('dtype')}" and digest(y) != given.get("sha256"):
        raise DamagedError(
            path / "observed_data" / "y",
            f"{path / 'observed_data' / 'y'} does not hold the measurement that the draws were made of: restore it "
            "from a copy.",
        )
    constants = read_constants(path, "constant_data")
    _require_sound(path, record.get("operator") or {}, constants)
    return Contents(y, read_truth(path), rebuild_operator(record.get("operator"), constants), noise)


def _require_sound(path: Path, described: Described, constants: Mapping[str, Tensor], prefix: str = "") -> None:
    """Refuse arrays of an operator that are not those of the record: a chunk that is gone reads as zeros here too."""
    for name, given in described.get("constants", {}).items():
        value = constants.get(prefix + name)
        if value is None or str(value.dtype) != f"torch.{given.get('dtype')}" or digest(value) == given.get("sha256"):
            continue
        place = path / "constant_data" / f"{prefix}{name}"
        raise DamagedError(
            place,
            f"{place} does not hold what the operator of the draws was built from: restore it from a copy.",
        )
    for index, child in enumerate(described.get("operators", ())):
        _require_sound(path, child, constants, f"{prefix}{index}_")


def rebuild_noise(described: Described | None) -> NoiseModel | None:
    """The noise of a record; None where there is none, or one that no record holds (a tensor, a class of others).

    >>> rebuild_noise({"name": "GaussianNoise", "sigma": 0.05})
    GaussianNoise(sigma=0.05)
    """
    kinds: dict[str, tuple[Callable[[float], NoiseModel], str]] = {
        "GaussianNoise": (GaussianNoise, "sigma"),
        "PoissonNoise": (PoissonNoise, "gain"),
    }
    if described is None or described.get("name") not in kinds:
        return None
    make, key = kinds[described["name"]]
    value = described.get(key)
    return make(value) if isinstance(value, float) and math.isfinite(value) else None


def rebuild_operator(described: Described | None, constants: Mapping[str, Tensor]) -> Operator | None:
    """The operator of a record from the arrays it was built from; None for those of functions, and of other classes.

    Args:
        described: what `record.describe` says of it.
        constants: its arrays, and those of the operators that it is made of, by the names that a folder gives them.
    """
    if described is None:
        return None
    parts = []
    for index, child in enumerate(described.get("operators", ())):
        prefix = f"{index}_"
        own = {name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)}
        part = rebuild_operator(child, own)
        if part is None:
            return None
        parts.append(part)
    make = _MAKERS.get(described["name"])
    try:
        return None if make is None else make(described, constants, parts)
    except KeyError:
        # A constant that the folder does not hold.
        return None


def require_same_operator(operator: Operator, described: Described | None) -> None:
    """Refuse an operator that is plainly not the one of a record.

    What follows from other constants, such as a spectrum, may differ by rounding between machines and is not compared.

    Raises:
        ValueError: naming what differs.
    """
    if described is None:
        raise ValueError("An operator is given, and these are draws of the prior alone: leave it out.")
    wanted, found = _plain(described), _plain(describe(operator))
    for key in wanted.keys() & found.keys():
        if wanted[key] != found[key]:
            raise ValueError(
                f"The operator given is not the one that the draws are of: its {key} is {found[key]}, and the record "
                f"says {wanted[key]}; give the operator of that run."
            )


def _plain(described: Described) -> dict[str, Any]:
    """The settings of an operator, and the hashes of what the caller gave it."""
    keys = ("name", "in_shape", "out_shape", "factor", "boundary")
    given = described.get("constants", {})
    return {key: described[key] for key in keys if key in described} | {
        name: str(given[name]["sha256"])[:12] for name in ("mask", "kernel", "matrix") if name in given
    }


_Maker = Callable[[Described, Mapping[str, Tensor], list[Operator]], Operator]
_MAKERS: dict[str, _Maker] = {
    "Identity": lambda d, c, parts: operators.Identity(d["in_shape"]),
    "Mask": lambda d, c, parts: operators.Mask(c["mask"], d["in_shape"]),
    "CircularBlur": lambda d, c, parts: operators.Blur(c["kernel"], d["in_shape"]),
    "PaddedBlur": lambda d, c, parts: operators.Blur(c["kernel"], d["in_shape"], d["boundary"]),
    "BoxDownsample": lambda d, c, parts: BoxDownsample(d["factor"], d["in_shape"]),
    "BicubicDownsample": lambda d, c, parts: BicubicDownsample(d["factor"], d["in_shape"]),
    "Grayscale": lambda d, c, parts: operators.Grayscale(d["in_shape"], c["matrix"][0]),
    "Matrix": lambda d, c, parts: operators.Matrix(c["matrix"], d["in_shape"], d["out_shape"]),
    "ChannelSpatial": lambda d, c, parts: ChannelSpatial(cast(ChannelMix, parts[0]), cast(Spectral, parts[1])),
    "LinearComposition": lambda d, c, parts: parts[0] @ parts[1],
    "LinearSum": lambda d, c, parts: parts[0] + parts[1],
    "LinearStacked": lambda d, c, parts: operators.stack(*parts),
    "Scaled": lambda d, c, parts: d["factor"] * parts[0],
    "SpectralScaled": lambda d, c, parts: d["factor"] * parts[0],
    "Transpose": lambda d, c, parts: cast(LinearOperator, parts[0]).T,
    "SpectralTranspose": lambda d, c, parts: cast(LinearOperator, parts[0]).T,
}
