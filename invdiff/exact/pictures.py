"""The picture of a check: marginals of exact against sampled draws, and true against nominal coverage."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .verdict import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LEVELS", "Marginal", "Shown", "picture", "show"]

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))
# Okabe and Ito's blue and vermilion, told apart with any colour vision, and in gray by their weight.
_EXACT, _SAMPLED = "0.72", "#0072B2"
_WRONG = "#D55E00"


@dataclass(frozen=True)
class Marginal:
    """One coordinate: its name, and the values of exact and of sampled draws there."""

    title: str
    exact: Tensor
    sampled: Tensor


@dataclass(frozen=True)
class Shown:
    """What the picture shows of one problem.

    Args:
        marginals: of a few coordinates.
        truth: true coverage of the nominal LEVELS, mean over coordinates; None where there are too few draws.
        band: smallest and largest of the same over sets of exact draws, (2, levels).
    """

    marginals: tuple[Marginal, ...]
    truth: Tensor | None
    band: Tensor | None


def show(draws: Tensor, sets: Sequence[Tensor], reference: Tensor) -> Shown:
    """Choose the coordinates of worst, median and best agreement, and follow the coverage over LEVELS.

    Args:
        draws: (n, *shape), the solver's.
        sets: exact draws, each (n, *shape).
        reference: more exact draws, (N, *shape).
    """
    flat, exact = draws.double().flatten(1), reference.double().flatten(1)
    grid = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    apart = (flat.quantile(grid, 0) - exact.quantile(grid, 0)).abs().mean(0) / exact.std(0).clamp_min(1e-12)
    order = apart.argsort(descending=True)
    chosen = {"worst": int(order[0]), "best": int(order[-1])}
    if len(order) > 2:
        chosen = {"worst": int(order[0]), "median": int(order[len(order) // 2]), "best": int(order[-1])}
    marginals = tuple(
        Marginal(f"{word} match, {_place(index, draws.shape[1:])}", exact[:, index], flat[:, index])
        for word, index in chosen.items()
    )
    if len(draws) < 39:  # 95 % intervals do not exist
        return Shown(marginals, None, None)
    curves = torch.stack([_covered(part.double().flatten(1), exact) for part in sets])
    return Shown(marginals, _covered(flat, exact), torch.stack([curves.amin(0), curves.amax(0)]))


def _place(index: int, shape: Sequence[int]) -> str:
    """Row and column of a pixel, with the channel where there are several; the number of a coordinate of a vector."""
    if len(shape) != 3:
        return f"coordinate {index + 1}"
    channel, rest = divmod(index, shape[1] * shape[2])
    row, column = divmod(rest, shape[2])
    return f"pixel ({row}, {column})" + (f" of channel {channel}" if shape[0] > 1 else "")


def _covered(draws: Tensor, exact: Tensor) -> Tensor:
    """The share of exact draws inside the central intervals of the draws, mean over coordinates, per level."""
    ordered = draws.sort(0).values
    count = len(ordered)
    out = []
    for level in LEVELS:
        low, high = (_at(ordered, (count + 1) * q) for q in ((1 - level) / 2, (1 + level) / 2))
        out.append(((exact >= low) & (exact <= high)).double().mean())
    return torch.stack(out)


def _at(ordered: Tensor, position: float) -> Tensor:
    """The value at a position from 1 to n of sorted draws, linear in between (as `Posterior.quantile`)."""
    below = min(max(int(position + 1e-9), 1), len(ordered))
    return ordered[below - 1].lerp(ordered[min(below, len(ordered) - 1)], max(position - below, 0.0))


def picture(outcomes: Sequence[Outcome], shown: dict[str, Shown], title: str) -> Figure:
    """One row for each problem: three marginals, and the coverage curve where the draws have one.

    Args:
        outcomes: the problems, in order; those without an entry in `shown` are left out.
        shown: by the name of the problem.
        title: stands above all.

    Raises:
        ValueError: if nothing was run.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = [(outcome, shown[outcome.problem]) for outcome in outcomes if outcome.problem in shown]
    if not rows:
        raise ValueError("There is nothing to draw: the solver ran on no problem.")
    # Not through pyplot: no window, no global list of figures.
    figure = Figure(figsize=(12.5, 2.35 * len(rows) + 0.9), layout="constrained", dpi=110)
    parts = figure.subfigures(len(rows), 1, squeeze=False).flatten()
    for part, (outcome, what) in zip(parts, rows, strict=True):
        part.suptitle(
            textwrap.fill(f"{outcome.problem}: {outcome.words}", 180),
            fontsize=9,
            x=0.01,
            ha="left",
            color=_WRONG if outcome.grade == "wrong" else "black",
        )
        axes = part.subplots(1, 4)
        for panel, marginal in zip(axes[:3], what.marginals, strict=False):
            _marginal(panel, marginal)
        for panel in axes[len(what.marginals) : 3]:
            panel.set_axis_off()
        _coverage(axes[3], what)
    handles = [
        Patch(facecolor=_EXACT, label="exact posterior"),
        Line2D([], [], color=_SAMPLED, lw=2, label="this solver's draws"),
        Line2D([], [], color="black", lw=1, ls=":", label="coverage = level"),
    ]
    figure.suptitle(title, fontsize=12)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _marginal(axes: Any, marginal: Marginal) -> None:
    both = torch.cat([marginal.exact, marginal.sampled])
    # A few draws far out are left to the edge, and do not squeeze the rest into one bin.
    low, high = (float(both.quantile(q)) for q in (0.002, 0.998))
    reach = max(high - low, 1e-6 * max(abs(high), 1.0))
    # The same bins for both: a narrow mode would look lower in wider ones.
    bins = 32 if len(marginal.sampled) >= 256 else 16
    edges = torch.linspace(low - 0.05 * reach, high + 0.05 * reach, bins + 1).tolist()
    axes.hist(marginal.exact.tolist(), edges, density=True, color=_EXACT)
    if len(marginal.sampled) > 1:
        axes.hist(marginal.sampled.tolist(), edges, density=True, histtype="step", color=_SAMPLED, lw=1.8)
    else:
        axes.axvline(float(marginal.sampled[0]), color=_SAMPLED, lw=2)
    axes.set_title(marginal.title, fontsize=8.5)
    axes.set_yticks([])
    axes.set_ylabel("density", fontsize=8)
    axes.set_xlabel("value", fontsize=8)
    axes.tick_params(labelsize=7.5)


def _coverage(axes: Any, what: Shown) -> None:
    if what.truth is None or what.band is None:
        axes.text(0.5, 0.5, "no intervals", ha="center", va="center", fontsize=9, color="0.35")
        axes.set_axis_off()
        return
    levels = [100 * level for level in LEVELS]
    axes.fill_between(levels, *(100 * what.band).tolist(), color=_EXACT, lw=0)
    axes.plot([0, 100], [0, 100], color="black", lw=1, ls=":")
    axes.plot(levels, (100 * what.truth).tolist(), color=_SAMPLED, lw=1.8)
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=(0, 50, 90), yticks=(0, 50, 90))
    axes.set_title("coverage of intervals", fontsize=8.5)
    axes.set_xlabel("nominal level, %", fontsize=8)
    axes.set_ylabel("true coverage, %", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.set_aspect("equal")
