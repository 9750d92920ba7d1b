"""Pictures of a check: coverage, rank histogram and the TARP curve, each with what calibrated draws would show.

Matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .checked import PIXELS, RANDOM_POINT, Check
from .pooling import CONFIDENCE, flat_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["coverage_plot", "overview", "rank_plot", "tarp_plot"]

_LINE, _BAND = "#1f5fa8", "#b9c4d0"
_OTHERS = ("#c2571a", "#2f7d4f", "#7a4fa3", "#8a6d00")
_GRAY = "0.35"


def coverage_plot(check: Check, quantities: Sequence[str] = (PIXELS,)) -> Figure:
    """Draw how often central intervals hold the truth against how often they should, with 95 % intervals over images.

    Args:
        check: what `calibration.check` gave.
        quantities: some of `check.quantities`, at most 5.

    Raises:
        KeyError: a quantity was not looked at.
        ValueError: no level is reached by any image, or there are too many quantities.
    """
    if not 1 <= len(quantities) <= 1 + len(_OTHERS):
        raise ValueError(f"There are {len(quantities)} quantities: expected 1 to {1 + len(_OTHERS)} in one picture.")
    return _one(lambda axes: _coverage(axes, check, quantities))


def rank_plot(check: Check, quantity: str = PIXELS) -> Figure:
    """Draw where the truth ranks among the draws; in the gray band lie 95 % of what calibrated draws show in each bin.

    A bowl says that the draws vary too little, a dome too much, a slope that they are biased.

    Args:
        check: what `calibration.check` gave.
        quantity: one of `check.quantities`.

    Raises:
        KeyError: the quantity was not looked at.
    """
    return _one(lambda axes: _ranks(axes, check, quantity))


def tarp_plot(check: Check) -> Figure:
    """Draw the expected coverage of TARP with its 95 % interval over images: the share of images whose PIT of the
    distance to a random point is below each credibility; of calibrated draws 95 % of the curves stay inside the gray
    band throughout (Kolmogorov, Smirnov).

    Args:
        check: what `calibration.check` gave.

    Raises:
        ValueError: there are fewer than 2 images.
    """
    if check.units < 2:
        raise ValueError(f"A TARP curve needs at least 2 images, one point each: there is {_images(check)}.")
    return _one(lambda axes: _tarp(axes, check))


def overview(check: Check, quantity: str = PIXELS) -> Figure:
    """Draw coverage and ranks of one quantity and, where there are several images, the TARP curve side by side.

    Raises:
        KeyError: the quantity was not looked at.
        ValueError: no level is reached by any image.
    """
    from matplotlib.figure import Figure

    several = check.units > 1
    figure = Figure(figsize=(11.4 if several else 7.6, 4.1), layout="constrained", dpi=150)
    axes = figure.subplots(1, 3 if several else 2)
    _coverage(axes[0], check, (quantity,))
    _ranks(axes[1], check, quantity)
    if several:
        _tarp(axes[2], check)
    labels = sorted({image.label for image in check.images})
    figure.suptitle(f"{_images(check)}: {', '.join(labels)}", fontsize=11)
    return figure


def _one(draw: Callable[[Axes], None]) -> Figure:
    # Not through pyplot: no window, no global list of figures.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 4.4), layout="constrained", dpi=150)
    draw(figure.add_subplot())
    return figure


def _coverage(axes: Axes, check: Check, quantities: Sequence[str]) -> None:
    axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=1, label="calibrated")
    for quantity, colour in zip(quantities, (_LINE, *_OTHERS), strict=False):
        check.scores(quantity)
        found = {level: e for level, e in sorted(check.pooled[quantity].coverage.items()) if e.images}
        if not found:
            raise ValueError(
                f"No level of {', '.join(f'{100 * level:g} %' for level in check.levels)} is reached by the draws of "
                f"{quantity!r}: take more draws, or lower levels."
            )
        axes.plot(list(found), [e.value for e in found.values()], "o-", color=colour, markersize=4, label=quantity)
        if not any(math.isnan(e.low) for e in found.values()):
            low, high = ([getattr(e, end) for e in found.values()] for end in ("low", "high"))
            axes.vlines(list(found), low, high, color=colour, linewidth=2)
            axes.fill_between(list(found), low, high, color=colour, alpha=0.2, linewidth=0)
    _square(axes, "nominal probability of the interval", "share of truths inside")
    axes.set_title(f"coverage, {_images(check)}", fontsize=10)
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.text(0.97, 0.04, "below: intervals too narrow", ha="right", fontsize=8, color=_GRAY)


def _ranks(axes: Axes, check: Check, quantity: str) -> None:
    histograms = check.histograms(quantity)
    count, bins = histograms.shape
    edges = [b / bins for b in range(bins + 1)]
    if count > 1:
        low, high = (bins * band for band in flat_band(histograms, check.seed))
        ends = [*low.tolist(), float(low[-1])], [*high.tolist(), float(high[-1])]
        axes.fill_between(edges, *ends, step="post", color=_BAND, linewidth=0)
    axes.axhline(1, color=_GRAY, linewidth=1)
    axes.stairs((bins * histograms.mean(0)).tolist(), edges, fill=True, color=_LINE, alpha=0.25)
    axes.stairs((bins * histograms.mean(0)).tolist(), edges, color=_LINE, linewidth=1.6)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rank of the truth (0 below all draws, 1 above)", fontsize=9)
    axes.set_ylabel("density (1 where calibrated)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_title(f"ranks of {quantity}, {_likely(check.pooled[quantity].p)}", fontsize=10)


def _tarp(axes: Axes, check: Check) -> None:
    from scipy.stats import kstwo

    values = check.tarp.tolist()
    count = len(values)
    axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=1)
    half = float(kstwo.ppf(CONFIDENCE, check.units))
    ends = [0.0, half, 1 - half, 1.0]
    low, high = [max(0.0, a - half) for a in ends], [min(1.0, a + half) for a in ends]
    axes.fill_between(ends, low, high, color=_BAND, alpha=0.6, linewidth=0)
    grid = [k / 40 for k in range(41)]
    found = check.expected_coverage(grid)
    axes.fill_between(grid, [e.low for e in found], [e.high for e in found], color=_LINE, alpha=0.2, linewidth=0)
    steps = [k / count for k in range(count + 1)]
    axes.step([0.0, *values, 1.0], [*steps, 1.0], where="post", color=_LINE, linewidth=1.6)
    _square(axes, "credibility", "expected coverage")
    axes.set_title(f"TARP, {_likely(check.pooled[RANDOM_POINT].p)}", fontsize=10)
    axes.text(0.97, 0.04, "below: draws too narrow", ha="right", fontsize=8, color=_GRAY)


def _square(axes: Axes, across: str, up: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)
    axes.tick_params(labelsize=8)


def _images(check: Check) -> str:
    return f"{check.units} image" + ("s" if check.units != 1 else "")


def _likely(p: float) -> str:
    return "one image" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p {p:.3f}"
