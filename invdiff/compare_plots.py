"""Plots of a sweep for a paper: quality against cost, spread against error, and grids of pictures; PDF and PNG.

Widths are those of one column (3.4 inches) and two (7), letters have 7 points and more, and colours are those of Okabe
and Ito 2008, "Color Universal Design", which colour-blind readers tell apart; every curve is also named where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compare import best, difference, mean
from .compare_grid import GREY, PAGE, paper_style, picture_grid
from .provenance import Provenance, embed, software
from .provenance import figure as plotted
from .sweep import FIGURES, Job, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cost_plot", "save", "spread_plot", "write_plots"]

_COLUMN = 3.4
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D31")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def write_plots(sweep: Sweep, against: Mapping[tuple[str, ...], Job | None], folder: Path) -> list[str]:
    """Write every plot that the sweep has figures for; return sentences on those it has none for."""
    missing = []
    # Some of a grid's pictures may be a generative prior's, and that is what its readers are to know.
    grid = Provenance(content="grid of restorations", source="compositeSynthetic", software=software())
    for figure, name in (("nfe", "psnr_nfe"), ("seconds", "psnr_seconds")):
        if any(_point(job, figure) for job in sweep.jobs):
            save(cost_plot(sweep, figure, against), folder / name, plotted(f"{figure} of priors and solvers"))
        else:
            missing.append(f"{name} is not drawn: no job has both PSNR and {FIGURES[figure]}.")
    if any(_spreads(job) for job in sweep.jobs):
        save(spread_plot(sweep), folder / "spread_error", plotted("spread against error of solvers"))
    else:
        missing.append("spread_error is not drawn: no job has several draws an image.")
    for place, (task, jobs) in enumerate(sweep.tasks().items(), 1):
        for solver in dict.fromkeys(job.names["solver"] for job in jobs):
            own = [job for job in jobs if job.names["solver"] == solver]
            title = f"{sweep.title(task)}, {solver}"
            if any(image.pictures for job in own for image in job.images.values()):
                save(picture_grid(own, title), folder / f"grid_{place}_{_file_name(title)}", grid)
            else:
                missing.append(f"The grid of {title} is not drawn: its jobs kept no pictures.")
    return missing


@paper_style()
def save(figure: Figure, path: Path, provenance: Provenance) -> None:
    """Write path.pdf and path.png, without the date, so that the same sweep gives the same files."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once: that takes longer than the drawing
    figure.savefig(path.with_name(path.name + ".pdf"), metadata={"CreationDate": None})
    picture = path.with_name(path.name + ".png")
    figure.savefig(picture)
    embed(picture, provenance)


@paper_style()
def cost_plot(sweep: Sweep, figure: str, against: Mapping[tuple[str, ...], Job | None] | None = None) -> Figure:
    """PSNR of the mean against "nfe" or "seconds", a panel a task: priors by colour, solvers by mark.

    Passes back through a denoiser count as calls, as they cost at least as much.

    Each point is a job's mean over images; jobs of one prior and solver are joined. Its bar is the 95 % interval of the
    difference from the task's reference, as the difficulty of the images, which all share, is no doubt about a method.
    Priors of the same number of calls stand a little beside each other.

    Args:
        sweep: the jobs.
        figure: "nfe" or "seconds".
        against: the reference of each task; the best in PSNR where left out.
    """
    found = {task: [job for job in jobs if _point(job, figure)] for task, jobs in sweep.tasks().items()}
    found = {task: jobs for task, jobs in found.items() if jobs}
    plot, panels = _panels(len(found), PAGE)
    colours, marks = _looks(sweep)
    back = any(mean(job, "nfe_backward") > 0 for job in sweep.jobs)
    calls = "denoiser calls and passes back, a draw" if back else "denoiser calls a draw"
    label = calls if figure == "nfe" else "seconds an image"
    for axes, (task, jobs) in zip(panels, found.items(), strict=True):
        ends: dict[str, tuple[float, float]] = {}
        other = best(jobs) if against is None else against[task]
        costs = [_cost(job, figure) for job in jobs]
        step = 1 + 0.007 * math.log(2 * max(costs) / min(costs)) if figure == "nfe" else 1.0
        for prior, solver in dict.fromkeys((_plain(job, "prior"), _plain(job, "solver")) for job in jobs):
            own = [job for job in jobs if (_plain(job, "prior"), _plain(job, "solver")) == (prior, solver)]
            points = sorted((_cost(job, figure), mean(job, "psnr_mean"), *_bar(job, other)) for job in own)
            x, y, low, high = (list(values) for values in zip(*points, strict=True))
            x = [value * step ** (list(colours).index(prior) - (len(colours) - 1) / 2) for value in x]
            axes.plot(x, y, marker=marks[solver], color=colours[prior], markersize=4.5, linewidth=1.0)
            bars = [ends for ends in zip(x, low, high, strict=True) if not math.isnan(ends[1])]
            if bars:
                axes.vlines(*zip(*bars, strict=True), color=colours[prior], linewidth=0.9, alpha=0.6)
            ends[prior] = max(ends.get(prior, (-math.inf, 0.0)), (x[-1], y[-1]))
        axes.set_xscale("log")
        _plain_log_ticks(axes)
        axes.set_title(sweep.title(task), loc="left")
        axes.set_ylabel("PSNR of the mean, dB")
        axes.set_xlabel(label)
        axes.margins(x=0.12, y=0.1)
        axes.grid(axis="y", color="0.9", linewidth=0.5)
        _label_ends(axes, ends, colours, gap=0.06 if figure == "nfe" else 0.0)
    _legend(plot, sweep.jobs, marks)
    return plot


@paper_style()
def spread_plot(sweep: Sweep) -> Figure:
    """Spread of the draws against the error of their mean, root mean squares of each image, a panel a task.

    On the diagonal an image's spread is as large as its error; below it the draws are too sure. The spread has the
    factor sqrt((K + 1) / K) that makes the two comparable for K draws (Fortin et al. 2014).
    """
    found = {task: [job for job in jobs if _spreads(job)] for task, jobs in sweep.tasks().items()}
    found = {task: jobs for task, jobs in found.items() if jobs}
    plot, panels = _panels(len(found), 6.2)
    colours, marks = _looks(sweep)
    for axes, (task, jobs) in zip(panels, found.items(), strict=True):
        everything: list[float] = []
        ends: dict[str, tuple[float, float]] = {}
        for job in jobs:
            errors, spreads = (list(values) for values in zip(*_spreads(job), strict=True))
            everything += [*errors, *spreads]
            prior = _plain(job, "prior")
            look = {"color": colours[prior], "markersize": 4, "markerfacecolor": "none", "markeredgewidth": 0.9}
            axes.plot(errors, spreads, linestyle="", marker=marks[_plain(job, "solver")], **look)
            ends[prior] = max(ends.get(prior, (-math.inf, 0.0)), *zip(errors, spreads, strict=True))
        low, high = min(everything) / 1.2, max(everything) * 1.35
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.7, zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_box_aspect(1)
        along = {"rotation": 45, "rotation_mode": "anchor", "ha": "right", "va": "bottom", "fontsize": 7}
        axes.text(0.97, 0.985, "spread = error", transform=axes.transAxes, color=GREY, **along)
        axes.text(0.97, 0.04, "too sure", transform=axes.transAxes, color=GREY, ha="right", fontsize=7)
        _plain_log_ticks(axes)
        axes.set_title(sweep.title(task), loc="left")
        axes.set_xlabel("error of the mean (RMSE)")
        axes.set_ylabel("spread of the draws (RMS std)")
        _label_ends(axes, ends, colours)
    _legend(plot, [job for jobs in found.values() for job in jobs], marks)
    return plot


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=220)


def _panels(count: int, page: float) -> tuple[Figure, list[Any]]:
    """One panel in a column's width, or two beside each other in a page's."""
    columns = min(count, 2)
    rows = math.ceil(count / 2)
    plot = _figure(_COLUMN if columns == 1 else page, 2.4 * rows + 0.15)
    plot.set_layout_engine("constrained")
    grid = plot.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[count:]:
        axes.remove()
    return plot, list(grid[:count])


def _looks(sweep: Sweep) -> tuple[dict[str, str], dict[str, str]]:
    priors = list(dict.fromkeys(_plain(job, "prior") for job in sweep.jobs))
    solvers = list(dict.fromkeys(_plain(job, "solver") for job in sweep.jobs))
    colours = {prior: _COLOURS[place % len(_COLOURS)] for place, prior in enumerate(priors)}
    return colours, {solver: _MARKERS[place % len(_MARKERS)] for place, solver in enumerate(solvers)}


def _plain(job: Job, part: str) -> str:
    """The name without the settings in which namesakes differ: these share a colour or mark."""
    return job.names[part].partition(" ")[0]


def _point(job: Job, figure: str) -> bool:
    return not math.isnan(mean(job, "psnr_mean")) and mean(job, figure) > 0


def _cost(job: Job, figure: str) -> float:
    back = mean(job, "nfe_backward")
    return mean(job, figure) + (back if figure == "nfe" and back > 0 else 0.0)


def _bar(job: Job, other: Job | None) -> tuple[float, float]:
    if other is None or job is other:
        return math.nan, math.nan
    gap, level = difference(job, other, "psnr_mean"), mean(job, "psnr_mean")
    return level + gap.low - gap.value, level + gap.high - gap.value


def _spreads(job: Job) -> list[tuple[float, float]]:
    """Error and spread of each image with draws."""
    pairs = []
    for image in job.images.values():
        ratio, psnr = image.figures.get("spread_skill"), image.figures.get("psnr_mean")
        if ratio is not None and psnr is not None and ratio > 0:
            error = 10 ** (-psnr / 20)
            pairs.append((error, ratio * error))
    return pairs


def _plain_log_ticks(axes: Axes) -> None:
    """Numbers as people write them; also between the decades where few are spanned."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 30 * low else (1, 3)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _label_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str], gap: float = 0.0
) -> None:
    """Name each prior right of its last point, moved up or down where names would overlap.

    Points with less than a gap (share of the panel's width) between them are a column, and named right of it.
    """
    # The limits are settled here, as names are placed in shares of the panel.
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    places = axes.transAxes.inverted().transform(axes.transData.transform(list(ends.values()))).tolist()
    letter, line = 0.024, 0.085  # of a panel's width and height, for letters of 7 points
    lefts = [_column_end(x, [other for other, _ in places], gap) + 0.03 for x, _ in places]
    boxes = [(left, y, letter * len(prior)) for left, (_, y), prior in zip(lefts, places, ends, strict=True)]
    heights = _apart(boxes, line)
    for prior, (x, y), (left, _, _), height in zip(ends, places, boxes, heights, strict=True):
        line_look = {"arrowstyle": "-", "color": colours[prior], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            prior,
            xy=ends[prior],
            xytext=(left, height),
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color=colours[prior],
            arrowprops=line_look if abs(height - y) > 0.02 or left - x > 0.06 else None,
        )


def _column_end(x: float, others: Iterable[float], gap: float) -> float:
    """Where the points end that stand beside each other with no more than a gap between them."""
    for other in sorted(others):
        if x < other <= x + gap:
            x = other
    return x


def _apart(boxes: Sequence[tuple[float, float, float]], line: float) -> list[float]:
    """Heights of labels (left, height, width), moved until no two that share a stretch are closer than a line."""
    heights = [height for _, height, _ in boxes]
    order = sorted(range(len(boxes)), key=lambda place: heights[place])
    for _ in range(300):
        for i, below in enumerate(order):
            for above in order[i + 1 :]:
                (a, _, wide_a), (b, _, wide_b) = boxes[below], boxes[above]
                short = line - (heights[above] - heights[below])
                if short > 1e-6 and a < b + wide_b and b < a + wide_a:
                    heights[below] -= short / 2
                    heights[above] += short / 2
        heights = [min(max(height, line / 2), 1 - line / 2) for height in heights]
    return heights


def _legend(plot: Figure, jobs: Sequence[Job], marks: Mapping[str, str]) -> None:
    """Which mark is which solver, where there are several."""
    from matplotlib.lines import Line2D

    shown = list(dict.fromkeys(_plain(job, "solver") for job in jobs))
    if len(shown) < 2:
        return
    handles = [Line2D([], [], linestyle="", marker=marks[name], color=GREY, label=name) for name in shown]
    plot.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in text)[:80]
