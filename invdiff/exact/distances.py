"""How far one set of draws is from another: sliced Wasserstein and energy distances, with intervals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .problem import stream

__all__ = ["Distance", "bootstrap", "bootstrap_mean", "energy_distance", "sliced_wasserstein"]

Distance = Callable[[Tensor, Tensor], float]


def sliced_wasserstein(a: Tensor, b: Tensor, p: int = 1, directions: int | Tensor = 100, seed: int = 0) -> float:
    """The mean over random directions u of the p-Wasserstein distance between the projections of two sets,

        (mean_u  integral_0^1 |F_a,u^-1(t) - F_b,u^-1(t)|^p dt)^(1/p).

    Bonneel, Rabin, Peyre, Pfister 2015, "Sliced and Radon Wasserstein barycenters of measures".

    Args:
        a: draws, (n, ...).
        b: draws, (m, ...); as many as in a is quickest.
        p: 1 or 2.
        directions: number of random directions on the unit sphere, the same for every call of this seed; or the
            directions themselves, columns of length 1.
        seed: of the directions.

    Raises:
        ValueError: if the sets are of different shapes or empty, or p is neither 1 nor 2.
    """
    if p not in (1, 2):
        raise ValueError(f"p is {p!r}: expected 1 or 2.")
    left, right = _pair(a, b)
    axes = directions if isinstance(directions, Tensor) else unit_directions(left.shape[1], directions, seed)
    axes = axes.to(left)
    cost = transport((left @ axes).sort(0).values, (right @ axes).sort(0).values, p)
    return float(cost.mean() ** (1 / p))


def unit_directions(n: int, count: int = 100, seed: int = 0) -> Tensor:
    """Random directions, (n, count) of columns of length 1, float64."""
    axes = torch.randn(n, count, generator=stream(seed), dtype=torch.float64)
    return axes / axes.norm(dim=0)


def transport(a: Tensor, b: Tensor, p: int) -> Tensor:
    """integral |F_a^-1 - F_b^-1|^p of each column of sorted values, (n, u) and (m, u) -> (u,)."""
    n, m = len(a), len(b)
    if n == m:
        return (a - b).abs().pow(p).mean(0)
    # Both quantile functions are steps; between two neighbouring steps of either they are constant.
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).to(a.device).unique()
    width = torch.diff(steps, prepend=steps.new_zeros(1)).to(a) / (n * m)
    i, j = ((steps - 1) // m), ((steps - 1) // n)
    return (width[:, None] * (a[i] - b[j]).abs().pow(p)).sum(0)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|) over all pairs of draws, each set's own zero distances included.

    Szekely and Rizzo 2013, "Energy statistics: A class of statistics based on distances"; its root, as in scipy.

    Args:
        a: draws, (n, ...).
        b: draws, (m, ...).

    Raises:
        ValueError: if the sets are of different shapes or empty.
    """
    left, right = _pair(a, b)
    between = torch.cdist(left, right).mean()
    within = torch.cdist(left, left).mean() + torch.cdist(right, right).mean()
    return float((2 * between - within).clamp_min(0).sqrt())


def bootstrap(
    distance: Distance, a: Tensor, b: Tensor, resamples: int = 50, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The interval distance(a, b) +/- z * (std of the distance over resampled sets), not below 0, of independent draws.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap". Resampled sets repeat draws and are
    further apart than new ones would be, so their spread is used and not their quantiles.

    Args:
        distance: a function of two sets of draws.
        a: draws, (n, ...).
        b: draws, (m, ...).
        resamples: number of resampled pairs of sets.
        level: nominal coverage.
        seed: of the resampling.
    """
    generator = stream(seed)
    values = []
    for _ in range(resamples):
        i = torch.randint(len(a), (len(a),), generator=generator)
        j = torch.randint(len(b), (len(b),), generator=generator)
        values.append(distance(a[i.to(a.device)], b[j.to(b.device)]))
    half = _normal_quantile(level) * float(torch.tensor(values, dtype=torch.float64).std())
    middle = distance(a, b)
    return max(middle - half, 0.0), middle + half


def bootstrap_mean(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of the mean over problems, or of a statistic of several such means.

    Of paired differences, or of the ratio of two means over the same problems, it compares two solvers. Efron and
    Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    Args:
        values: one number per problem, (n,), or several, (n, parts).
        statistic: of means (..., parts) -> (...); the mean itself where left out.
        resamples: number of resampled sets of problems.
        level: nominal coverage.
        seed: of the resampling.
    """
    wide = values.double()
    generator = torch.Generator().manual_seed(seed)
    means = wide[torch.randint(len(wide), (resamples, len(wide)), generator=generator).to(wide.device)].mean(1)
    found = means.flatten() if statistic is None else statistic(means)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = found.quantile(ends.to(found)).tolist()
    return low, high


def _normal_quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: expected a probability between 0 and 1, such as 0.95.")
    return float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape[1:] != b.shape[1:] or not len(a) or not len(b):
        raise ValueError(
            f"The sets of draws have shapes {tuple(a.shape)} and {tuple(b.shape)}: expected (n, ...) and (m, ...)."
        )
    return a.double().flatten(1), b.double().flatten(1).to(a.device)
