"""How large the mean of n risks in [0, 1] may be for the promise that a further one is at most alpha.

- "crc": n / (n + 1) mean + 1 / (n + 1) <= alpha, which bounds the expectation (Angelopoulos, Bates, Fisch, Lei,
  Schuster 2022, "Conformal Risk Control").
- "rcps": the chance of so small a mean is below delta wherever the expected risk is alpha or more. That chance is
  bounded as Bates, Angelopoulos, Lei, Malik, Jordan 2021, "Distribution-Free, Risk-Controlling Prediction Sets", do, by
  the smaller of the inequalities of Hoeffding 1963 and Bentkus 2004.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import numpy as np

__all__ = ["METHODS", "certified", "check_terms", "hoeffding_bentkus", "images_needed", "mean_share", "smallest_scale"]

METHODS = ("crc", "rcps")


def check_terms(method: str, level: float, delta: float | None) -> None:
    """Refuse a method, level or delta that cannot be.

    Raises:
        ValueError: naming it.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: expected 'crc' (in expectation) or 'rcps' (with a probability).")
    for name, value in (("level", level), ("delta", delta)):
        if name == "delta" and method == "crc":
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < 1:
            raise ValueError(f"{name} is {value!r}: expected a probability between 0 and 1.")


def hoeffding_bentkus(mean: float, count: int, expected: float) -> float:
    """A bound on the chance that `count` independent risks in [0, 1] of expectation `expected` have so small a mean.

    min(exp(-n h(min(r, e), e)), e' P(Binomial(n, e) <= ceil(n r))), h(a, b) = a log(a / b) + (1 - a) log((1 - a) /
    (1 - b)), with r the mean, e the expectation and e' Euler's number.

    >>> f"{hoeffding_bentkus(0.05, 200, 0.1):.4f}"
    '0.0219'
    """
    from scipy.special import bdtr

    low = min(mean, expected)
    divergence = low * math.log(low / expected) if low > 0 else 0.0
    divergence += (1 - low) * math.log((1 - low) / (1 - expected)) if low < 1 else 0.0
    return min(math.exp(-count * divergence), math.e * float(bdtr(math.ceil(count * mean), count, expected)), 1.0)


def certified(method: str, mean: float, count: int, level: float, delta: float) -> bool:
    """Whether a mean risk over so many images is small enough for the promise at a level."""
    alpha = 1 - level
    if method == "crc":
        # A rounding error may put the smallest number of images just outside.
        return count * mean + 1 <= (count + 1) * alpha + 1e-9
    return hoeffding_bentkus(mean, count, alpha) < delta


def images_needed(method: str = "crc", level: float = 0.9, delta: float = 0.1, *, mean: float = 0.0) -> int:
    """The smallest number of images at which a mean risk over them is small enough for the promise at a level.

    Args:
        method: "crc" or "rcps".
        level: of the interval.
        delta: of "rcps".
        mean: risk, below 1 - level; at 0 this is the least with which there is any scale.

    Raises:
        ValueError: for terms that cannot be, or a mean that no number of images is enough for.

    >>> images_needed("crc"), images_needed("rcps"), images_needed("rcps", mean=0.05)
    (9, 22, 134)
    """
    check_terms(method, level, delta)
    if not 0 <= mean < 1 - level - 1e-12:
        raise ValueError(f"mean is {mean!r}: expected a risk from 0 to below 1 - level, {1 - level:g}.")
    count = 1
    while not certified(method, mean, count, level, delta):
        count += 1
    return count


def mean_share(units: Sequence[Sequence[np.ndarray]], scale: float) -> float:
    """The mean over units of the mean over their members of the share of critical scales above a scale.

    Args:
        units: of each its members, of each the critical scales in rising order, (values,).
        scale: of the intervals.
    """
    at, total = np.float32(scale), 0.0
    for unit in units:
        total += sum(1 - int(member.searchsorted(at, "right")) / member.size for member in unit) / len(unit)
    return total / len(units)


def smallest_scale(
    units: Sequence[Sequence[np.ndarray]], method: str, level: float, delta: float
) -> tuple[float, float] | None:
    """The smallest scale whose mean risk and that of all larger ones are certified, and that risk; None for no scale.

    The risk changes at the critical scales alone, which are float32: the search halves the numbers of that type from
    the largest down, and so ends at the very one.
    """
    finite = [row[np.isfinite(row)] for unit in units for row in unit]
    top = max((row[-1] for row in finite if row.size), default=np.float32(0))
    if not certified(method, mean_share(units, float(top)), len(units), level, delta):
        return None
    # Of floats that are not negative the bits, read as integers, have the same order.
    fails, holds = -1, int(np.float32(top).view(np.int32))
    while holds - fails > 1:
        middle = (holds + fails) // 2
        risk = mean_share(units, float(np.int32(middle).view(np.float32)))
        if certified(method, risk, len(units), level, delta):
            holds = middle
        else:
            fails = middle
    scale = float(np.int32(holds).view(np.float32))
    return scale, mean_share(units, scale)
