"""Figures of many images as one figure with an interval: images are the units, pixels never are.

Pixels of one image err together, so that a million of them say hardly more than the image does. All that is resampled
here are images, by the bootstrap (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13). Below
some 20 images its percentile intervals are too narrow, and of one image there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CONFIDENCE", "Estimate", "estimate", "flat_band", "flatness", "resampled_means", "uniformity", "unit_means"]

RESAMPLES = 2000
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A figure, its 95 % interval (NaN where fewer than 2 images have the figure), and how many images have it."""

    value: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.3g}" if math.isnan(self.low) else f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def resampled_means(values: Tensor, seed: int) -> Tensor:
    """The means (RESAMPLES, parts) of as many images drawn with replacement from values (images, parts)."""
    return _weights(len(values), seed) @ values


# The same for every figure of a check, which makes figures of the same resampled images comparable.
@lru_cache(maxsize=2)
def _weights(images: int, seed: int) -> Tensor:
    """The share that each image has in each resampled set, (RESAMPLES, images)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(images, (RESAMPLES, images), generator=generator)
    counts = torch.zeros(RESAMPLES, images, dtype=torch.float64)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64)) / images


def unit_means(values: Tensor, units: Sequence[str]) -> Tensor:
    """Rows (rows, parts) that belong to one image as one row, their mean without what is NaN: (images, parts).

    >>> unit_means(torch.tensor([[1.0], [5.0], [3.0]]), ["a", "b", "a"]).tolist()
    [[2.0], [5.0]]
    """
    members: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    if len(members) == len(values):
        return values
    return torch.stack([values[rows].nanmean(0) for rows in members.values()])


def estimate(values: Tensor, seed: int, statistic: Callable[[Tensor], Tensor] | None = None) -> Estimate:
    """The mean over images, or a statistic of several means, with its percentile interval.

    Args:
        values: one row for each image, (images, parts); rows that hold a NaN are left out.
        seed: of the resampling.
        statistic: of means (..., parts) -> (...); of one part, the mean itself where left out.
    """
    there = values[~values.isnan().any(1)]
    if len(there) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)

    def found(means: Tensor) -> Tensor:
        return means[..., 0] if statistic is None else statistic(means)

    value = float(found(there.mean(0)))
    if len(there) == 1:
        return Estimate(value, math.nan, math.nan, 1)
    ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = found(resampled_means(there, seed)).quantile(ends).tolist()
    return Estimate(value, low, high, len(there))


def flatness(histograms: Tensor, seed: int) -> float:
    """How likely histograms of images that are calibrated are as far from flat as these: a p-value.

    The statistic is that of a chi-square test, sum_b (h_b - 1/B)^2 / (1/B) of the mean histogram h. Its distribution is
    not chi-square, as ranks of one image depend on each other: it is that of the same deviations with a random sign for
    each image (the randomisation test of Fisher 1935, "The Design of Experiments", chapter 3), which holds its level
    for few images too. Of n images it cannot fall below 2^(1 - n).

    Args:
        histograms: shares of each image, (images, bins).
        seed: of the signs.

    Returns:
        The p-value; NaN for fewer than 2 images.
    """
    images, bins = histograms.shape
    if images < 2:
        return math.nan
    off = histograms - 1 / bins
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (RESAMPLES, images), generator=generator).double() * 2 - 1
    null = (signs @ off / images).square().sum(1)
    # All signs alike give the statistic itself, up to rounding.
    reached = null >= off.mean(0).square().sum() * (1 - 1e-9)
    return float((1 + reached.sum()) / (1 + RESAMPLES))


def flat_band(histograms: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Where 95 % of the means of as many calibrated images lie in each bin, (bins,) each: 1 / bins and its scatter.

    Args:
        histograms: shares of each image, (images, bins), at least 2 images.
        seed: of the resampling.
    """
    ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = (resampled_means(histograms, seed) - histograms.mean(0)).quantile(ends, dim=0) + 1 / histograms.shape[1]
    return low, high


def uniformity(values: Tensor) -> float:
    """How likely as many independent uniform numbers are as far from uniform as these (Kolmogorov and Smirnov).

    Args:
        values: one PIT of each image, (images,).
    """
    from scipy.stats import kstest

    return float(kstest(values.numpy(), "uniform").pvalue)
