"""The prox of a Poisson likelihood: pixel by pixel in closed form, else by Newton's method."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .operators import Identity, LinearOperator, Mask
from .operators.linalg import column, conjugate_gradient

__all__ = ["poisson_prox"]


def poisson_prox(operator: LinearOperator, y: Tensor, gain: float, z: Tensor, rho: Tensor) -> Tensor:
    """argmin over x of sum(A x / g - (y / g) log(A x)) + rho / 2 |x - z|^2, member by member.

    With a mask m every pixel has its own quadratic equation, whose root b / 2 + sqrt(b^2 / 4 + y / (g rho)) with
    b = z - m / (g rho) is never negative. With other operators see `newton_prox`.

    Args:
        operator: linear A.
        y: measurement, (1 or b, *out_shape), in image units.
        gain: g, image units per photon.
        z: (b, *in_shape).
        rho: (1 or b, 1, ..., 1).

    Raises:
        ValueError: photons were counted where the mask sees nothing; as `newton_prox`.
    """
    if not isinstance(operator, Mask | Identity):
        return newton_prox(operator, y, gain, z, rho)
    mask = operator.singular_as(z)
    if bool(((mask == 0) & (y > 0)).any()):
        raise ValueError("y counts photons where the mask sees nothing (0): give 0 there, or the mask that was used.")
    b, c = z - mask / (gain * rho), y / (gain * rho)
    root = (b.square() + 4 * c).sqrt()
    # Of the two forms of the root the one that does not subtract nearly equal numbers.
    x = torch.where(b > 0, (b + root) / 2, 2 * c / (root - b).clamp_min(torch.finfo(z.dtype).tiny))
    return torch.where(mask > 0, x, z)


def newton_prox(operator: LinearOperator, y: Tensor, gain: float, z: Tensor, rho: Tensor) -> Tensor:
    """argmin over x with A x >= 0 of sum(A x / g - (y / g) log(A x)) + rho / 2 |x - z|^2, member by member.

    First by Newton's method with A x / g, also for A x < 0, where no photon was counted (y = 0): where its minimum has
    A x >= 0 it is the one looked for. Elsewhere by a barrier: no photon counts as m photons, which keeps A x positive,
    and m falls to 0.001, in float64 to 1e-6; by duality the objective is then at most m above its minimum for each
    pixel without photons (Boyd, Vandenberghe 2004, "Convex Optimization", section 11.2). It takes 5 to 20 times as
    long. Where A of a constant image is not positive A x / g stays.

    Args:
        operator: linear A.
        y: measurement, (1 or b, *out_shape), in image units.
        gain: image units per photon.
        z: (b, *in_shape); where one is not finite, what comes back is NaN.
        rho: (1 or b, 1, ..., 1).

    Raises:
        ValueError: if no image was found for which A x is positive where photons were counted.
    """
    fine = torch.isfinite(z).flatten(1).all(1).reshape((-1,) + (1,) * (z.ndim - 1))
    if not bool(fine.all()):
        # What is no image has no prox: lifted to a start where A x is positive, it would become one.
        return torch.where(fine, newton_prox(operator, y, gain, torch.where(fine, z, 0.5), rho), torch.nan)
    count = (y / gain).expand(z.shape[0], *y.shape[1:])
    x = _newton(operator, count, gain, z, rho, _positive_start(operator, z, count > 0))
    dark = (count == 0) & (operator.forward(torch.full_like(z, 0.5)) > 1e-4)
    negative = (dark & (operator.forward(x) < 0)).flatten(1).any(1)
    if not bool(negative.any()):
        return x
    # Members that need no barrier get none, and no start that a barrier asks for.
    asked = (count > 0) | (dark & column(negative, dark))
    held = _positive_start(operator, z, asked)
    for power in range(1, 7 if z.dtype == torch.float64 else 4):
        held = _newton(operator, torch.where(asked & dark, 10.0**-power, count), gain, z, rho, held)
    return torch.where(column(negative, z), held, x)


def _newton(operator: LinearOperator, count: Tensor, gain: float, z: Tensor, rho: Tensor, x: Tensor) -> Tensor:
    """The minimum from x on, by Newton steps, each solved by conjugate gradients.

    They are shortened until the objective falls and A x stays positive where photons were counted.
    """
    counted = count > 0

    def objective(x: Tensor, ax: Tensor) -> Tensor:
        data = ax / gain - torch.where(counted, count * ax.clamp_min(1e-38).log(), 0.0)
        inside = (~counted | (ax > 0)).flatten(1).all(1)
        value = data.flatten(1).sum(1) + (rho / 2 * (x - z) ** 2).flatten(1).sum(1)
        return torch.where(inside, value, torch.inf)

    def along(step: Tensor, x: Tensor) -> Tensor:
        return step.reshape((-1,) + (1,) * (x.ndim - 1)) * x

    ax = operator.forward(x)
    value = objective(x, ax)
    tolerance = 1e-10 if z.dtype == torch.float64 else 1e-6
    moving = torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
    for _ in range(60):
        safe = torch.where(counted, ax, 1.0)
        slope = operator.adjoint(1 / gain - torch.where(counted, count / safe, 0.0)) + rho * (x - z)
        curvature = torch.where(counted, count / safe**2, 0.0)
        newton = conjugate_gradient(
            lambda v, c=curvature: operator.adjoint(c * operator.forward(v)) + rho * v,  # type: ignore[misc]
            -slope,
            # What a step leaves the next ones remove, in a third of the time of exact steps.
            tol=0.1,
            max_iter=200,
        ).x
        newton = along(moving.to(z), newton)
        descent = (slope * newton).flatten(1).sum(1)
        step = torch.ones_like(value)
        for _ in range(50):
            trial = x + along(step, newton)
            trial_ax = operator.forward(trial)
            trial_value = objective(trial, trial_ax)
            # Rounding in the sum of the objective must not be taken for an increase.
            slack = torch.finfo(z.dtype).eps * 8 * value.abs()
            rejected = ~(trial_value <= value + 1e-4 * step * descent + slack)
            if not bool(rejected.any()):
                break
            step = torch.where(rejected, step / 2, step)
        moving = moving & ~rejected
        keep = rejected.reshape((-1,) + (1,) * (x.ndim - 1))
        x = torch.where(keep, x, trial)
        ax = torch.where(rejected.reshape((-1,) + (1,) * (ax.ndim - 1)), ax, trial_ax)
        value = torch.where(rejected, value, trial_value)
        size = newton.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp_min(1e-12)
        moving = moving & (size > tolerance)
        if not bool(moving.any()):
            return x
    warnings.warn("The Poisson prox stopped after 60 Newton steps: use a larger rho or gain.", stacklevel=5)
    return x


def _positive_start(operator: LinearOperator, z: Tensor, counted: Tensor) -> Tensor:
    """z, lifted by as much as it takes for A x to be positive where photons were counted."""

    def valid(x: Tensor, least: float) -> Tensor:
        return (~counted | (operator.forward(x) > least)).flatten(1).all(1)

    x, found = z.clone(), valid(z, 1e-4)
    for trial in (z.clamp_min(0.02), z.clamp_min(0.1), z.clamp_min(0.5), torch.full_like(z, 0.5)):
        if bool(found.all()):
            return x
        better = ~found & valid(trial, 1e-4)
        x = torch.where(better.reshape((-1,) + (1,) * (x.ndim - 1)), trial, x)
        found = found | better
    if not bool(found.all()):
        raise ValueError(
            "A x is not positive where photons were counted, even for a constant image: Poisson noise needs an "
            "operator with rows that sum to a positive number."
        )
    return x
