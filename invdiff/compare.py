"""The jobs of a sweep compared: means over images, and paired differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .sweep import METHOD, Job

__all__ = ["ENOUGH", "Difference", "best", "difference", "interval", "leaders", "mean", "mean_interval", "reference"]

_LEVEL = 0.95
# Images by which two methods can be told apart: where they are equal, all of n differences have the same sign in
# 2 ** (1 - n) of cases, which is below 5 % from six on, and of fewer the interval is little wider than their range.
ENOUGH = 6
# Which way a figure is better, or the value that is right.
_BETTER = {"psnr_mean": 1, "psnr_draw": 1, "ssim_mean": 1, "ssim_draw": 1, "lpips": -1, "crps": -1}
_RIGHT = {"coverage90": 0.9, "spread_skill": 1.0}


@dataclass(frozen=True)
class Difference:
    """Mean over the images that two jobs share of one's figure less the other's, with its 95 % interval.

    `low` and `high` are NaN for fewer than two images.
    """

    value: float
    low: float
    high: float
    images: int


def mean(job: Job, figure: str) -> float:
    """A figure's mean over the job's images, of peak memory the largest; NaN where it does not apply."""
    values = _values(job, figure)
    if not values:
        return math.nan
    return max(values) if figure == "peak_mib" else math.fsum(values) / len(values)


def mean_interval(job: Job, figure: str) -> tuple[float, float]:
    """The 95 % interval of that mean; NaN for peak memory and for fewer than two images."""
    return (math.nan, math.nan) if figure == "peak_mib" else interval(_values(job, figure))


def _values(job: Job, figure: str) -> list[float]:
    return [image.figures[figure] for image in job.images.values() if figure in image.figures]


def difference(job: Job, against: Job, figure: str) -> Difference:
    """A job's figure less another's, paired by the images' hashes; NaN where they share no image with that figure."""
    pairs = [
        image.figures[figure] - against.images[sha256].figures[figure]
        for sha256, image in job.images.items()
        if figure in image.figures and sha256 in against.images and figure in against.images[sha256].figures
    ]
    if not pairs:
        return Difference(math.nan, math.nan, math.nan, 0)
    return Difference(math.fsum(pairs) / len(pairs), *interval(pairs), len(pairs))


def interval(values: Iterable[float], *, level: float = _LEVEL, seed: int = 0) -> tuple[float, float]:
    """The bootstrap's interval of the mean of independent values, widened for small samples.

    The percentile interval of n values is too narrow by sqrt((n - 1) / n) and by the normal quantile in place of
    Student's; the expanded one of Hesterberg 2015, "What Teachers Should Know About the Bootstrap", takes the
    percentiles Phi(-sqrt(n / (n - 1)) t_{n - 1}) instead. Below six values it is nearly the range of the resampled
    means, and cannot be wider.

    Args:
        values: one an image.
        level: nominal coverage.
        seed: of the resampling.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    import torch
    from scipy.special import ndtr, stdtrit

    from .exact.distances import bootstrap_mean

    found = torch.tensor(list(values), dtype=torch.float64)
    count = len(found)
    if count < 2:
        return math.nan, math.nan
    tail = float(ndtr(-math.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 + level) / 2)))
    return bootstrap_mean(found, level=1 - 2 * tail, resamples=10_000, seed=seed)


def best(jobs: Sequence[Job]) -> Job:
    """The job whose mean has the highest mean PSNR."""

    def quality(job: Job) -> float:
        value = mean(job, "psnr_mean")
        return -math.inf if math.isnan(value) else value

    return max(jobs, key=quality)


def leaders(jobs: Sequence[Job], figure: str) -> list[Job]:
    """The job with the best mean of a figure, and those that cannot be told from it.

    These are the ones whose paired difference from it has a 95 % interval that holds 0. Of coverage and spread it is
    what comes nearest to the value that is right, alone. Means are over the images that all these jobs share.

    Returns:
        No job where fewer than two have the figure, where they share fewer than `ENOUGH` images, or where the figure
        has no better or worse (chi2, calls, seconds, memory).
    """
    having = [job for job in jobs if not math.isnan(mean(job, figure))]
    if len(having) < 2:
        return []
    shared = set.intersection(*({key for key, i in job.images.items() if figure in i.figures} for job in having))
    if len(shared) < ENOUGH:
        return []

    def level(job: Job) -> float:
        return math.fsum(job.images[sha256].figures[figure] for sha256 in shared) / len(shared)

    if figure in _RIGHT:
        off = [abs(level(job) - _RIGHT[figure]) for job in having]
        return [job for job, distance in zip(having, off, strict=True) if distance == min(off)]
    if figure not in _BETTER:
        return []
    first = max(having, key=lambda job: _BETTER[figure] * level(job))

    def told_apart(job: Job) -> bool:
        gap = difference(job, first, figure)
        return not gap.low <= 0 <= gap.high

    return [job for job in having if job is first or not told_apart(job)]


def reference(jobs: Sequence[Job], name: str | None) -> Job | None:
    """The job of a task that the others are compared with: the one of that name, else the best in PSNR.

    Args:
        jobs: of one task.
        name: "natural / ddrm", "natural/ddrm", or the prior or solver alone where one job of the task has it.

    Returns:
        None where no job of this task has the name.

    Raises:
        ValueError: several jobs have it.
    """
    if name is None:
        return best(jobs)
    wanted = name.replace(" ", "")
    exact = [job for job in jobs if job.method.replace(" ", "") == wanted]
    found = exact or [
        job for job in jobs if wanted in (part.replace(" ", "") for part in map(job.names.get, METHOD) if part)
    ]
    if len(found) > 1:
        choices = ", ".join(job.method for job in found)
        raise ValueError(f"The reference {name!r} fits {len(found)} jobs of {jobs[0].task[0]}: give one of {choices}.")
    return found[0] if found else None
