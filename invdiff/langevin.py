"""Langevin steps on an image between a measurement and a Gaussian around an estimate.

The target is p(x | y, c) ~ p(y | x) N(x; c, r^2 I), for any operator, linear or not. A step of length h is

    x' = x + h (grad log p(y | x) - (x - c) / r^2) + sqrt(2 h) eps,        eps ~ N(0, I)

(the unadjusted Langevin algorithm: Roberts and Tweedie 1996, "Exponential Convergence of Langevin Distributions and
Their Discrete Approximations"). Where the target is Gaussian its draws settle around the right mean, with a variance
too large by 1 / (1 - h k / 2) in a direction of curvature k; it is stable for h k < 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .likelihood import Likelihood
from .operators import LinearOperator
from .operators.linalg import norm
from .random import MemberRandom

__all__ = ["curvature", "langevin", "stable_step"]

# Steps whose noise is drawn in one call: a call for each would cost as much as the steps themselves.
_AHEAD = 10


def langevin(
    likelihood: Likelihood,
    x: Tensor,
    centre: Tensor,
    spread: float,
    step: Tensor | float,
    count: int,
    random: MemberRandom,
) -> Tensor:
    """`count` steps from x, (b, *in_shape).

    Args:
        likelihood: p(y | x), with a gradient.
        x: where to start.
        centre: c, shaped like x.
        spread: r, image units.
        step: h, image units^2: one number, or a tensor that broadcasts against x with a length for each member.
        count: number of steps.
        random: one stream per member.
    """
    h = torch.as_tensor(step, dtype=x.dtype, device=x.device)
    fresh = (2 * h).sqrt()
    for first in range(0, count, _AHEAD):
        ahead = random.normal(x.new_empty(x.shape[0], min(_AHEAD, count - first), *x.shape[1:]))
        for eps in ahead.unbind(1):
            x = x + h * (likelihood.grad(x) - (x - centre) / spread**2) + fresh * eps
    return x


def stable_step(wanted: Tensor | float, bend: Tensor, spread: float, like: Tensor) -> Tensor:
    """The step wanted, or 1 / (bend + 1 / r^2) where that is shorter: (b, 1, ..., 1) to go with like, image units^2."""
    limit = torch.as_tensor(wanted, dtype=like.dtype, device=like.device).reshape(-1)
    return torch.minimum(1 / (bend + spread**-2), limit).reshape(-1, *(1,) * (like.ndim - 1))


def curvature(likelihood: Likelihood, x: Tensor, iterations: int = 10) -> Tensor:
    """The largest curvature of -log p(y | x) of each member, (b,), 1 / image units^2.

    Exact for an operator with an SVD, and an upper bound within 2 % for any other linear one. For a nonlinear
    operator it is local: differences of the gradient around x turn to the direction that bends most, by power
    iteration from the steepest one.

    Raises:
        CapabilityError: for a linear operator, if the noise is not Gaussian, or is 0, where no step is stable.
    """
    # Solvers import this module, so it takes their bound when it is called.
    from .solvers.base import lipschitz

    if isinstance(likelihood.operator, LinearOperator):
        return lipschitz(likelihood).to(x).expand(x.shape[0])
    here = likelihood.grad(x)
    reach = 1e-3 * math.sqrt(x[0].numel())
    change, size = here, norm(here)
    for _ in range(iterations):
        # Where nothing bends there is no direction to turn to, and the curvature stays 0.
        scale = reach / torch.where(size > 0, size, 1.0)
        change = likelihood.grad(x + scale.reshape(-1, *(1,) * (x.ndim - 1)) * change) - here
        size = norm(change)
    return size / reach
