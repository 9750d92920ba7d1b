"""The image that `sample` starts from: what is accepted, and the noise level from which a solver goes on."""

from __future__ import annotations

import dataclasses
import math
import numbers

import torch
from torch import Tensor

from .priors.base import Prior
from .solvers.base import CapabilityError, DiffusionSolver, Solver

__all__ = ["channels_last", "check_start", "cut_at_start", "one_for_each"]

# Beyond these an image is hardly in [0, 1] (`arrays.from_array` draws the same line).
_LEAST, _MOST = -1.0, 2.0


def check_start(start: object) -> None:
    """Refuse what is no image in floating point.

    Raises:
        TypeError: for no tensor, complex numbers or integers.
    """
    if not isinstance(start, Tensor) or start.is_complex():
        kind = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start is {kind}: expected an image as a real tensor (C, H, W); use torch.as_tensor first.")
    if not start.is_floating_point():
        white = {torch.bool: "", torch.uint16: " / 65535"}.get(start.dtype, " / 255")
        raise TypeError(f"start is {start.dtype}: expected floats in [0, 1]; give start.float(){white}.")


def channels_last(shape: tuple[int, ...], channels: int | None) -> bool:
    """Whether a shape looks like (H, W, C) to a prior that takes (C, H, W).

    >>> channels_last((64, 48, 3), 3), channels_last((3, 64, 48), 3), channels_last((64, 48, 3), None)
    (True, False, False)
    """
    return len(shape) in (3, 4) and shape[-1] == channels and shape[-3] != channels


def cut_at_start(solver: Solver, start: Tensor | None, start_sigma: float | None, prior: Prior) -> Solver:
    """The solver with its schedule cut to begin at start_sigma.

    Raises:
        CapabilityError: the prior does not serve that level.
        ValueError: start and start_sigma do not go together, or the level is below the solver's last.
    """
    if start is None:
        if start_sigma is not None:
            raise ValueError(f"start_sigma is {start_sigma} without a start: give the image to start from as well.")
        return solver
    name = type(solver).__name__
    if not isinstance(solver, DiffusionSolver):
        if start_sigma is not None:
            raise ValueError(f"start_sigma is {start_sigma}: {name} starts from `start` itself; leave it out.")
        return solver
    low, high = prior.sigma_range
    lowest = max(solver.sigma_min, low)
    number = isinstance(start_sigma, numbers.Real) and not isinstance(start_sigma, bool)
    if not number or not math.isfinite(start_sigma) or start_sigma <= lowest:  # type: ignore[arg-type, operator]
        raise ValueError(
            f"start_sigma is {start_sigma!r}: expected the noise level, above {lowest:g}, from which {name} goes on."
        )
    level = float(start_sigma)  # type: ignore[arg-type]
    if level > high:
        raise CapabilityError(
            f"start_sigma is {level:g}: {prior.name} serves noise levels up to {high:.3g}; start there or lower."
        )
    return dataclasses.replace(solver, sigma_max=level)


def one_for_each(start: Tensor, shape: tuple[int, ...], count: int, prior: Prior) -> Tensor:
    """The start of each of `count` measurements, (1 or count, *shape).

    Raises:
        ValueError: another shape, values that are not finite, or an image that is hardly in [0, 1].
    """
    whole = start[None] if tuple(start.shape) == shape else start
    if tuple(whole.shape[1:]) != shape or whole.shape[0] not in (1, count):
        turned = len(shape) == 3 and channels_last(tuple(start.shape), shape[0])
        hint = "; its channels lie last, so give start.movedim(-1, -3)" if turned else ""
        raise ValueError(f"start has shape {tuple(start.shape)}: expected {shape} or {(count, *shape)}{hint}.")
    if not bool(torch.isfinite(whole).all()):
        raise ValueError("start holds values that are not finite: expected an image.")
    low, high = float(whole.min()), float(whole.max())
    # A prior of one shape may be of anything; what takes images takes them in [0, 1].
    image = len(shape) == 3 and getattr(prior, "in_shape", None) is None
    if image and (low < _LEAST or high > _MOST):
        raise ValueError(
            f"start holds values from {low:.4g} to {high:.4g}: expected an image in about [0, 1]; divide it by the "
            f"value of white (255, say), or clip it."
        )
    return whole
