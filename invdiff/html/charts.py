"""Where the truth of one image lies among its draws, and the charts of it as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..posterior import Posterior
from ..scores import Scores, score, stream

__all__ = ["LEVELS", "against_truth", "coverage_chart", "percent", "rank_chart"]

LEVELS = (0.5, 0.8, 0.9, 0.95)
_MOST_BARS = 16
# Values of all draws that are looked at; of larger ensembles every second pixel, or every third, each way.
_MOST_VALUES = 2**26


def against_truth(posterior: Posterior, truth: Tensor) -> Scores:
    """Coverage, ranks and scores of one image (`invdiff.scores`).

    Args:
        posterior: draws (draws, C, H, W), of which 2 at least did not fail.
        truth: (C, H, W).
    """
    step = max(1, math.ceil(math.sqrt(posterior.usable * truth.numel() / _MOST_VALUES)))
    draws = torch.stack([draw[..., ::step, ::step].cpu().flatten() for _, draw in posterior.each()])
    bars = min(len(draws) + 1, _MOST_BARS)
    return score(draws, truth.cpu()[..., ::step, ::step].flatten(), LEVELS, bars, stream(0))


def coverage_chart(coverage: dict[float, float], before: dict[float, float] | None = None) -> str:
    """What was promised across, what was found upwards; on the diagonal the two agree.

    Args:
        coverage: {level: share found}.
        before: the same without recalibration, drawn as rings.
    """
    parts = [_frame("Coverage of the central intervals, promised against found")]
    parts += [f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(_x(tick), 230, percent(tick), "middle"))
        parts.append(_text(36, _y(tick) + 4, percent(tick), "end"))
        parts.append(f'<line class="grid" x1="{_x(0)}" y1="{_y(tick)}" x2="{_x(1)}" y2="{_y(tick)}"/>')
    for level, found in (before or {}).items():
        parts.append(f'<circle class="ring" cx="{_x(level):.1f}" cy="{_y(found):.1f}" r="5"/>')
    line = " ".join(f"{_x(level):.1f},{_y(found):.1f}" for level, found in coverage.items())
    parts.append(f'<polyline class="curve" points="{line}"/>')
    for level, found in coverage.items():
        title = f"{percent(level)} promised, {percent(found, 1)} found"
        parts.append(
            f'<circle class="dot" cx="{_x(level):.1f}" cy="{_y(found):.1f}" r="5"><title>{title}</title></circle>'
        )
    parts += [_text(_x(1), 250, "promised", "end"), _text(_x(0), 8, "found", "start")]
    return "".join(parts) + "</svg>"


def rank_chart(bars: Sequence[float]) -> str:
    """How often the truth stood in each place among the draws, smallest to largest; even where the spread is right."""
    even = 1 / len(bars)
    top = max(*bars, 1.25 * even)
    parts = [_frame("Rank of the truth among the draws"), '<line class="grid" x1="44" y1="210" x2="330" y2="210"/>']
    left, step = 44.0, 286 / len(bars)
    for share in bars:
        height = 190 * share / top
        title = f"<title>{percent(share, 1)}, expected {percent(even, 1)}</title>"
        parts.append(
            f'<rect class="bar" x="{left + 1:.1f}" y="{210 - height:.1f}" width="{step - 2:.1f}" '
            f'height="{height:.1f}">{title}</rect>'
        )
        left += step
    at = 210 - 190 * even / top
    parts.append(f'<line class="ideal" x1="44" y1="{at:.1f}" x2="330" y2="{at:.1f}"/>')
    parts += [_text(44, 232, "below all draws", "start"), _text(330, 232, "above all", "end")]
    return "".join(parts) + "</svg>"


def percent(share: float, digits: int = 0) -> str:
    """A share in words, which stay on one line.

    >>> percent(0.5)
    '50\\xa0%'
    """
    return f"{100 * share:.{digits}f}\xa0%"


def _frame(title: str) -> str:
    return f'<svg viewBox="0 0 340 260" role="img" aria-label="{title}"><title>{title}</title>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def _x(share: float) -> float:
    return 44 + 286 * share


def _y(share: float) -> float:
    return 210 - 190 * share
