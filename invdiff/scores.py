"""What K draws say of one image whose truth is known: coverage, fair CRPS, spread, error, and where the truth ranks.

Everything works on a table of draws (K, values) beside one truth (values,), a block of values at a time, so that what
is sorted at once stays small. Truth and draws that come from the same distribution are exchangeable, and so the truth's
rank among them is uniform on 0 .. K and its randomised probability integral transform (PIT)

    u = (rank + U) / (K + 1),    U uniform on [0, 1),

uniform on [0, 1) for every K: with ties the rank is drawn at random from those that the truth may have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .statistics import at_positions

__all__ = ["Scores", "draws_needed", "fair_crps", "fair_error", "pit", "ranks", "score", "stream"]

# Values of draws that are sorted at a time, in float64: 32 MB.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class Scores:
    """Means over the values of one image, or over those that a functional makes of it.

    Args:
        values: how many values.
        draws: the number K of draws that did not fail.
        coverage: for each level the share of values whose truth lies in the central interval; NaN where K draws do not
            reach the level.
        crps: fair CRPS, in the units of the values.
        variance: of the draws (ddof = 1).
        error: square of the mean's error.
        centre: mean of the PIT u; above 1/2 where the truth lies above the draws.
        dispersion: mean of 12 (u - 1/2)^2, 1 where u is uniform, larger where the draws are too narrow.
        histogram: share of u in each of as many equal bins.
    """

    values: int
    draws: int
    coverage: tuple[float, ...]
    crps: float
    variance: float
    error: float
    centre: float
    dispersion: float
    histogram: tuple[float, ...]


def draws_needed(level: float) -> int:
    """The smallest number of draws whose central interval reaches a level, 2 / (1 - level) - 1.

    >>> draws_needed(0.9), draws_needed(0.95)
    (19, 39)
    """
    return math.ceil(round(2 / (1 - level) - 1, 9))


def stream(seed: int, *names: str) -> torch.Generator:
    """Random numbers that depend on a seed and on names alone, whatever was drawn before.

    Raises:
        ValueError: the seed is not an integer from 0 on.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}: expected an integer from 0 on.")
    found = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(found[:8], "big") >> 1)


def fair_crps(draws: Tensor, truth: Tensor) -> Tensor:
    """The fair continuous ranked probability score of every value, shaped like the truth, float64.

        1 / K sum_i |x_i - t|  -  1 / (2 K (K - 1)) sum_ij |x_i - x_j|,

    whose expectation does not depend on the number K of draws, and is least where they come from the distribution of
    the truth (Ferro 2014, "Fair scores for ensemble forecasts"). It costs one sort: the sum over pairs is one over
    sorted draws, 2 sum_k (2 k - K - 1) x_(k). One value may be below 0, the mean of many is not.

    Args:
        draws: (K, ...), at least 2.
        truth: (...).

    Raises:
        ValueError: fewer than 2 draws, or another shape.

    >>> fair_crps(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0]))
    tensor([1.], dtype=torch.float64)
    """
    return _fair(_sorted(_errors(draws, truth)))


def fair_error(draws: Tensor, truth: Tensor) -> Tensor:
    """The squared error of the mean of infinitely many draws, estimated from K, shaped like the truth, float64.

        (mean_k x_k - t)^2  -  1 / (K (K - 1)) sum_k (x_k - mean)^2,

    as the mean of K draws is off by 1/K of their variance more: a fair score in the sense of Ferro 2014. One value may
    be below 0.

    Args:
        draws: (K, ...), at least 2.
        truth: (...).

    Raises:
        ValueError: fewer than 2 draws, or another shape.

    >>> fair_error(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0]))
    tensor([3.], dtype=torch.float64)
    """
    errors = _errors(draws, truth)
    return errors.mean(0).square() - errors.var(0) / len(errors)


def pit(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """The randomised PIT u of every value, in [0, 1), shaped like the truth, float64; see the module docstring.

    Args:
        draws: (K, ...), at least 2.
        truth: (...).
        generator: that breaks ties.

    Raises:
        ValueError: fewer than 2 draws, or another shape.
    """
    return _places(_errors(draws, truth), generator) / (len(draws) + 1)


def ranks(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """How many of K draws lie below the truth, 0 .. K, ties broken at random, shaped like the truth.

    Hamill 2001, "Interpretation of rank histograms for verifying ensemble forecasts". Arguments and refusals are those
    of `pit`.

    >>> ranks(torch.tensor([[1.0, 5.0], [2.0, 6.0]]), torch.tensor([3.0, 4.0]), torch.Generator()).tolist()
    [2, 0]
    """
    return _places(_errors(draws, truth), generator).long().clamp_max(len(draws))


def score(draws: Tensor, truth: Tensor, levels: Sequence[float], bins: int, generator: torch.Generator) -> Scores:
    """All scores of one image at once, from one sort of each block of values.

    Args:
        draws: (K, values), at least 2.
        truth: (values,).
        levels: probabilities of central intervals, whose ends are those of `Posterior.interval`.
        bins: of the histogram.
        generator: that breaks ties.

    Raises:
        ValueError: fewer than 2 draws, or another shape.
    """
    count = len(draws)
    inside = torch.zeros(len(levels), dtype=torch.float64)
    sums = torch.zeros(5, dtype=torch.float64)
    histogram = torch.zeros(bins, dtype=torch.float64)
    width = max(1, _AT_ONCE // max(count, 1))
    for first in range(0, truth.numel(), width):
        part = slice(first, first + width)
        errors = _errors(draws[:, part], truth[part])
        ordered = _sorted(errors)
        for i, level in enumerate(levels):
            low, high = at_positions(ordered, [(1 - level) / 2, (1 + level) / 2])
            inside[i] += ((low <= 0) & (high >= 0)).sum()
        u = _places(errors, generator) / (count + 1)
        means = errors.mean(0)
        parts = (_fair(ordered), errors.var(0), means.square(), u, 12 * (u - 0.5).square())
        sums += torch.stack([values.sum() for values in parts])
        histogram += torch.bincount((u * bins).long().clamp_max(bins - 1), minlength=bins)
    n = truth.numel()
    crps, variance, error, centre, dispersion = (sums / n).tolist()
    shares = zip(levels, (inside / n).tolist(), strict=True)
    covered = tuple(share if count >= draws_needed(level) else math.nan for level, share in shares)
    shape = tuple((histogram / n).tolist())
    return Scores(n, count, covered, crps, variance, error, centre, dispersion, shape)


def _errors(draws: Tensor, truth: Tensor) -> Tensor:
    """draws - truth in float64 on the CPU."""
    if draws.shape[1:] != truth.shape:
        raise ValueError(f"The draws have shape {tuple(draws.shape)}: expected (K, ...) with {tuple(truth.shape)}.")
    if len(draws) < 2:
        raise ValueError(f"There are {len(draws)} draws: scores of a spread need at least 2.")
    return draws.detach().cpu().double() - truth.detach().cpu().double()


def _sorted(errors: Tensor) -> Tensor:
    # Along the first axis numpy is ten times as quick as torch, which goes through it a column at a time.
    return torch.from_numpy(np.sort(errors.numpy(), axis=0))


def _fair(ordered: Tensor) -> Tensor:
    """The fair CRPS of sorted errors (K, ...)."""
    count = len(ordered)
    weights = 2 * torch.arange(1, count + 1, dtype=torch.float64) - count - 1
    pairs = torch.tensordot(weights, ordered, dims=1)
    return ordered.abs().mean(0) - pairs / (count * (count - 1))


def _places(errors: Tensor, generator: torch.Generator) -> Tensor:
    """The rank of 0 among the errors plus a uniform number: with ties, over all the ranks that it may have."""
    below, equal = (errors < 0).sum(0), (errors == 0).sum(0)
    return below + torch.rand(below.shape, generator=generator, dtype=torch.float64) * (equal + 1)
