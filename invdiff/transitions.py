"""Steps down the noise levels, in one place: any of them runs with any estimate of the image.

An estimate is a function (x, sigma) -> E[x0 | x_sigma = x] of shape (b, *in_shape): the denoiser itself, which gives
draws of the prior, or a guided one, E[x0 | x_sigma = x, y], which gives draws of the posterior as far as it is right.
From level sigma to the next level t, with x0 the estimate at x:

    ancestral   x' = x0 + (t^2 / sigma^2) (x - x0) + t sqrt(1 - t^2 / sigma^2) eps                    Ho et al. 2020
    ddim        x' = x0 + sqrt(t^2 - s^2) (x - x0) / sigma + s eps,  s = eta t sqrt(1 - t^2 / sigma^2)  Song et al. 2021
    heun        the ODE dx / dsigma = (x - x0) / sigma by Heun's method                              Karras et al. 2022
    ode2m       x' = (t / sigma) x + (1 - t / sigma) E                                                   Lu et al. 2022
    sde2m       x' = E + (t^2 / sigma^2) (x - E) + t sqrt(1 - t^2 / sigma^2) eps                         Lu et al. 2022
    ode3m       x' = (t / sigma) x + t int e^l P(l) dl over l = -log sigma from this level to the next
    sde3m       x' = (t^2 / sigma^2) x + t^2 int 2 e^2l P(l) dl + t sqrt(1 - t^2 / sigma^2) eps

with E the estimate extrapolated in log sigma to the middle of the step, from this one and the one before, and P the
parabola in l through the last three estimates (exponential integrators of third order).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from .random import MemberRandom

__all__ = [
    "TRANSITIONS",
    "Estimate",
    "ancestral",
    "ddim",
    "extrapolate",
    "heun",
    "ode2m",
    "ode3m",
    "reverse",
    "sde2m",
    "sde3m",
]

Estimate = Callable[[Tensor, float], Tensor]
TRANSITIONS = ("ancestral", "ddim", "heun", "ode2m", "sde2m", "ode3m", "sde3m")


def reverse(
    transition: str,
    estimate: Estimate,
    x: Tensor,
    levels: Sequence[float],
    random: MemberRandom,
    eta: float = 1.0,
) -> Iterator[Tensor]:
    """Follow the levels down by the transition of that name, yielding x after every step.

    Args:
        transition: one of TRANSITIONS.
        estimate: (x, sigma) -> E[x0 | x_sigma = x], or with a measurement E[x0 | x_sigma = x, y].
        x: where to start, at levels[0], (b, *in_shape).
        levels: falling noise levels in image units, the last one 0.
        random: one stream per member.
        eta: share of fresh noise in "ddim"; the others do not use it.

    Raises:
        ValueError: for an unknown transition.
    """
    if transition == "ddim":
        return ddim(estimate, x, levels, random, eta=eta)
    if transition == "ancestral":
        return ancestral(estimate, x, levels, random)
    if transition == "heun":
        return heun(estimate, x, levels, random)
    if transition == "ode2m":
        return ode2m(estimate, x, levels, random)
    if transition == "sde2m":
        return sde2m(estimate, x, levels, random)
    if transition == "ode3m":
        return ode3m(estimate, x, levels, random)
    if transition == "sde3m":
        return sde3m(estimate, x, levels, random)
    raise ValueError(f"transition is {transition!r}: expected one of {', '.join(TRANSITIONS)}.")


def ancestral(
    estimate: Estimate, x: Tensor, levels: Sequence[float], random: MemberRandom, variance: str = "small"
) -> Iterator[Tensor]:
    """One draw from the chain back per step, with the small or the large variance of DDPM (see `solvers.DDPM`)."""
    for sigma, t in itertools.pairwise(levels):
        x0 = estimate(x, sigma)
        x = x0 + (t / sigma) ** 2 * (x - x0)
        if t > 0:
            if variance == "small":
                fresh = t**2 * (1 - (t / sigma) ** 2)
            else:
                fresh = (1 + 4 * t**2) * (sigma**2 - t**2) / (1 + 4 * sigma**2)
            x = x + fresh**0.5 * random.normal(x)
        yield x


def ddim(
    estimate: Estimate, x: Tensor, levels: Sequence[float], random: MemberRandom, eta: float = 1.0
) -> Iterator[Tensor]:
    """Keep a share of the noise that is there, and draw eta of it afresh; eta = 1 is ancestral."""
    for sigma, t in itertools.pairwise(levels):
        x0 = estimate(x, sigma)
        fresh = (eta * t) ** 2 * (1 - (t / sigma) ** 2)
        x = x0 + (t**2 - fresh) ** 0.5 / sigma * (x - x0)
        if fresh > 0:
            x = x + fresh**0.5 * random.normal(x)
        yield x


def heun(
    estimate: Estimate,
    x: Tensor,
    levels: Sequence[float],
    random: MemberRandom,
    churn: Callable[[float], float] | None = None,
    s_noise: float = 1.0,
) -> Iterator[Tensor]:
    """Heun's method on the ODE, two estimates a step, the last one excepted.

    Args:
        churn: sigma -> the level to which noise is added before the step; None adds none.
        s_noise: factor on that noise.
    """
    for sigma, t in itertools.pairwise(levels):
        raised = sigma if churn is None else churn(sigma)
        if raised > sigma:
            x = x + (raised**2 - sigma**2) ** 0.5 * s_noise * random.normal(x)
        slope = (x - estimate(x, raised)) / raised
        ahead = x + (t - raised) * slope
        if t > 0:
            ahead = x + (t - raised) * (slope + (ahead - estimate(ahead, t)) / t) / 2
        x = ahead
        yield x


def ode2m(estimate: Estimate, x: Tensor, levels: Sequence[float], random: MemberRandom) -> Iterator[Tensor]:
    """The multistep ODE of DPM-Solver++(2M): one estimate a step, no fresh noise."""
    before: tuple[Tensor, float] | None = None
    for sigma, t in itertools.pairwise(levels):
        x0 = estimate(x, sigma)
        x = t / sigma * x + (1 - t / sigma) * extrapolate(x0, sigma, t, before)
        before = x0, sigma
        yield x


def sde2m(estimate: Estimate, x: Tensor, levels: Sequence[float], random: MemberRandom) -> Iterator[Tensor]:
    """The multistep SDE of DPM-Solver++(2M): one estimate and one draw of noise a step."""
    before: tuple[Tensor, float] | None = None
    for sigma, t in itertools.pairwise(levels):
        x0 = estimate(x, sigma)
        ahead, ratio = extrapolate(x0, sigma, t, before), t / sigma
        x = ahead + ratio**2 * (x - ahead)
        if t > 0:
            x = x + t * (1 - ratio**2) ** 0.5 * random.normal(x)
        before = x0, sigma
        yield x


def extrapolate(x0: Tensor, sigma: float, t: float, before: tuple[Tensor, float] | None) -> Tensor:
    """The estimate half-way from sigma to t in log sigma, on the line through this one and the one before."""
    if before is None or t == 0:
        return x0
    earlier, level = before
    return x0 + math.log(sigma / t) / (2 * math.log(level / sigma)) * (x0 - earlier)


def ode3m(estimate: Estimate, x: Tensor, levels: Sequence[float], random: MemberRandom) -> Iterator[Tensor]:
    """The ODE in l = -log sigma by its exact integral over the parabola through the last three estimates.

    x' = (t / sigma) x + t int e^l P(l) dl, and half-way from x to the estimate in the last step, to sigma = 0: near 0
    the ODE's slope falls as sigma does, as long as sigma is below the posterior's std.
    """
    return _multistep(estimate, x, levels, random, 1.0)


def sde3m(estimate: Estimate, x: Tensor, levels: Sequence[float], random: MemberRandom) -> Iterator[Tensor]:
    """The SDE by the same parabola as `ode3m`, and fresh noise in every step.

    x' = (t^2 / sigma^2) x + t^2 int 2 e^2l P(l) dl + t sqrt(1 - t^2 / sigma^2) eps. Exact denoisers need no fresh
    noise; where the estimates have errors, it makes the draw forget those of earlier levels.
    """
    return _multistep(estimate, x, levels, random, 2.0)


def _multistep(
    estimate: Estimate, x: Tensor, levels: Sequence[float], random: MemberRandom, rate: float
) -> Iterator[Tensor]:
    past: list[tuple[float, Tensor]] = []
    for sigma, t in itertools.pairwise(levels):
        x0 = estimate(x, sigma)
        past = [(-math.log(sigma), x0), *past][:3]
        if t > 0:
            h = math.log(sigma / t)
            past = past[: _trusted([level - past[0][0] for level, _ in past], h)]
            shares = _parabola([level - past[0][0] for level, _ in past], h, rate)
            x = (t / sigma) ** rate * x + sum(share * image for share, (_, image) in zip(shares, past, strict=True))
            if rate > 1:
                x = x + t * (1 - (t / sigma) ** 2) ** 0.5 * random.normal(x)
        else:
            x = (x + x0) / 2
        yield x


def _trusted(nodes: Sequence[float], h: float) -> int:
    """How many of the nodes a step of length h may use: a polynomial is not followed far beyond its nodes.

    A line for steps up to 1.5 times the last spacing, a parabola where that spacing is even and below 0.6 too.
    """
    if len(nodes) == 1 or h > 1.5 * -nodes[1]:
        return 1
    if len(nodes) == 2 or h > 0.6 or -nodes[1] > 1.5 * (nodes[1] - nodes[2]):
        return 2
    return 3


def _parabola(nodes: Sequence[float], h: float, rate: float) -> list[float]:
    """Weights w with sum w_i p(nodes_i) = int_0^h rate e^(rate (l - h)) p(l) dl, p of degree < len(nodes)."""
    moments = [-math.expm1(-rate * h)]
    for power in range(1, len(nodes)):
        moments.append(h**power - power / rate * moments[-1])
    powers = np.vander(np.asarray(nodes), len(nodes), increasing=True)
    return [float(weight) for weight in np.linalg.solve(powers.T, np.asarray(moments))]
