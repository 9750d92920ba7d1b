"""What `restore` is told in words and numbers, checked and made into objects: sigma, device, solver, prior."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import priors, solvers
from .priors.base import Prior, as_prior
from .solvers import Solver

__all__ = ["QUICK", "check_sigma", "load_prior", "load_solver", "options_belong", "pick_device"]

# What KPS takes where nobody chose: on photographs half the calls do as well, as the prior's own error is larger.
QUICK = {"steps": 30, "products": 3}


def check_sigma(sigma: float | str, *, simulate: bool = False) -> float | None:
    """sigma as a number, None for "auto".

    Raises:
        ValueError: not a number, negative, not finite, or so large that it can only be in grey levels.
    """
    if isinstance(sigma, str) and sigma.strip().lower() == "auto":
        if simulate:
            raise ValueError("sigma is 'auto': to simulate a measurement, state the noise level as a number.")
        return None
    try:
        level = float("" if isinstance(sigma, bool) else sigma)
    except (TypeError, ValueError):
        raise ValueError(f"sigma is {sigma!r}: expected a number in units of the data range, or 'auto'.") from None
    if not math.isfinite(level) or level < 0:
        raise ValueError(f"sigma is {level:g}: expected a standard deviation that is finite and not negative.")
    if level > 2:
        raise ValueError(
            f"sigma is {level:g}: expected units of the data range, where white is 1; for grey levels of 8 bits divide "
            f"by 255 ({level / 255:.4g})."
        )
    return level


def pick_device(device: torch.device | str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: an unknown device, or CUDA where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {str(device)!r}: expected 'auto', 'cpu' or 'cuda'.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r} and torch finds no CUDA device: use 'cpu' or 'auto'.")
    if chosen.type == "cuda" and chosen.index is not None and chosen.index >= torch.cuda.device_count():
        raise ValueError(
            f"device is {str(device)!r} and the last CUDA device is 'cuda:{torch.cuda.device_count() - 1}': use that."
        )
    return chosen


def options_belong(thing: object, options: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    if options and not isinstance(thing, str):
        raise ValueError(f"{what}_options {sorted(options)} go with a {what} given by name: set them on the object.")
    return dict(options or {})


def load_solver(solver: str | Solver | None, options: Mapping[str, Any]) -> Solver:
    """The solver of that name with the given settings, a solver as it is; for None what `restore` takes by itself."""
    if solver is None:
        return solvers.load("kps", **(QUICK | dict(options)))
    return solvers.load(solver, **options) if isinstance(solver, str) else solver


def load_prior(prior: str | Prior | Callable[..., Tensor], options: Mapping[str, Any]) -> Prior:
    """The prior of that name with the given settings; a denoiser passes through.

    Raises:
        ValueError: an unknown name or setting, or a setting of the wrong type.
    """
    if not isinstance(prior, str):
        return as_prior(prior)
    try:
        made = priors.load(prior, **options)
    except TypeError as error:
        if not options:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        if "unexpected keyword argument" in str(error) or "multiple values" in str(error):
            # Python's own words: the settings of priors are those of their constructors.
            raise ValueError(f"The prior {prior!r} does not take the settings {given}: {error}.") from error
        raise ValueError(
            f"The prior {prior!r} got the settings {given}: one is not of the type that it takes."
        ) from error
    _check_types(prior, made, options)
    return made


def _check_types(name: str, prior: Prior, options: Mapping[str, Any]) -> None:
    """Refuse a setting whose default is a number and which is not one, before a computation stumbles on it."""
    parameters = inspect.signature(type(prior)).parameters
    for setting, value in options.items():
        default = parameters[setting].default if setting in parameters else None
        for kind, words in ((int, "a whole number"), (float, "a number")):
            wanted = numbers.Integral if kind is int else numbers.Real
            if type(default) is kind and (isinstance(value, bool) or not isinstance(value, wanted)):
                raise ValueError(f"{setting} of the prior {name!r} is {value!r}: expected {words}.")
