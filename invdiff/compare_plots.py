"""Plots of a sweep for a paper: quality against cost, spread against error, and grids of pictures; PDF and PNG.

Widths are those of one column (3.4 inches) and two (7), letters have 7 points and more, and colours are those of Okabe
and Ito 2008, "Color Universal Design", which colour-blind readers tell apart; priors are also named beside their
points. What marks and bars are stands below the panels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compare import best, difference, mean
from .compare_grid import GREY, PAGE, paper_style, picture_grid
from .compare_labels import Name, Panel, name_points
from .provenance import Provenance, embed, software
from .provenance import figure as plotted
from .sweep import FIGURES, Job, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cost_plot", "save", "spread_plot", "write_plots"]

_COLUMN = 3.4
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D31")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Up to so many curves are named each; of more, each prior once.
_EACH = 12


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
    What has the same number of calls stands beside each other.

    Args:
        sweep: the jobs.
        figure: "nfe" or "seconds".
        against: the reference of each task; the best in PSNR where left out.
    """
    found = {task: [job for job in jobs if _point(job, figure)] for task, jobs in sweep.tasks().items()}
    found = {task: jobs for task, jobs in found.items() if jobs}
    others = {task: best(jobs) if against is None else against[task] for task, jobs in found.items()}
    plot, axes_of = _panels(len(found), PAGE)
    colours, marks = _looks(sweep)
    drawn = [job for jobs in found.values() for job in jobs]
    panels, beside = [], False
    for axes, (task, jobs) in zip(axes_of, found.items(), strict=True):
        curves: dict[tuple[str, str], list[Job]] = {}
        for job in jobs:
            curves.setdefault((_plain(job, "prior"), _plain(job, "solver")), []).append(job)
        costs = [_cost(job, figure) for job in jobs]
        # A panel shows at least a factor of two, and equal calls stand 3 % of it from each other.
        width = max(math.log(max(costs) / min(costs)), math.log(2))
        shift = _columns({key: max(_cost(job, figure) for job in own) for key, own in curves.items()})
        beside = beside or (figure == "nfe" and any(shift.values()))
        names, points, bars = [], [], []
        for (prior, solver), own in curves.items():
            step = math.exp(0.03 * width * shift[prior, solver]) if figure == "nfe" else 1.0
            values = sorted(
                (step * _cost(job, figure), mean(job, "psnr_mean"), *_bar(job, others[task])) for job in own
            )
            line = [(x, y) for x, y, _, _ in values]
            axes.plot(
                *zip(*line, strict=True), marker=marks[solver], color=colours[prior], markersize=4.5, linewidth=1.0
            )
            ends = [(x, low, high) for x, _, low, high in values if not math.isnan(low)]
            if ends:
                axes.vlines(*zip(*ends, strict=True), color=colours[prior], linewidth=0.9, alpha=0.6)
            names.append(Name(prior, *line[-1], colours[prior]))
            points += line
            bars += ends
        middle = math.sqrt(max(costs) * min(costs))
        axes.set_xscale("log")
        axes.set_xlim(middle * math.exp(-0.66 * width), middle * math.exp(0.66 * width))
        axes.margins(y=0.12)
        axes.set_title(sweep.title(task), loc="left")
        axes.set_ylabel(_quality(drawn))
        axes.set_xlabel(_calls(drawn) if figure == "nfe" else _seconds(drawn))
        axes.grid(axis="y", color="0.9", linewidth=0.5)
        panels.append(Panel(axes, names if len(names) <= _EACH else _last_of_each(names), points, bars))
    said = _bars_are(found, others)
    _legend(plot, drawn, marks, f"{said} Equal numbers of calls stand side by side." if beside else said)
    name_points(plot, panels)
    return plot


@paper_style()
def spread_plot(sweep: Sweep) -> Figure:
    """Spread of the draws against the error of their mean, root mean squares of each image, a panel a task.

    On the diagonal an image's spread is as large as its error; below it the draws are too sure. The spread has the
    factor sqrt((K + 1) / K) that makes the two comparable for K draws (Fortin et al. 2014).
    """
    found = {task: [job for job in jobs if _spreads(job)] for task, jobs in sweep.tasks().items()}
    found = {task: jobs for task, jobs in found.items() if jobs}
    plot, axes_of = _panels(len(found), 6.2)
    colours, marks = _looks(sweep)
    panels = []
    for axes, (task, jobs) in zip(axes_of, found.items(), strict=True):
        points: list[tuple[float, float]] = []
        names = []
        for job in jobs:
            own, prior = _spreads(job), _plain(job, "prior")
            look = {"color": colours[prior], "markersize": 4, "markerfacecolor": "none", "markeredgewidth": 0.9}
            axes.plot(*zip(*own, strict=True), linestyle="", marker=marks[_plain(job, "solver")], **look)
            names.append(Name(prior, *max(own), colours[prior]))
            points += own
        everything = [value for point in points for value in point]
        low, high = min(everything) / 1.25, max(everything) * 1.25
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.7, zorder=0)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_box_aspect(1)
        axes.set_title(sweep.title(task), loc="left")
        axes.set_xlabel("error of the mean (RMSE)")
        axes.set_ylabel("spread of the draws (RMS std)")
        panels.append(Panel(axes, _last_of_each(names), points))
    drawn = [job for jobs in found.values() for job in jobs]
    said = "A mark an image. Grey line: the spread is as large as the error; below it the draws are too sure."
    _legend(plot, drawn, marks, said)
    name_points(plot, panels)
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


def _calls(jobs: Sequence[Job]) -> str:
    """The label of calls, as jobs with draws, point estimates or both have them."""
    calls = "denoiser calls and passes back" if any(mean(job, "nfe_backward") > 0 for job in jobs) else "denoiser calls"
    if not any(job.point for job in jobs):
        return f"{calls} per draw"
    return f"{calls} per estimate" if all(job.point for job in jobs) else f"{calls} per draw or estimate"


def _quality(jobs: Sequence[Job]) -> str:
    if not any(job.point for job in jobs):
        return "PSNR of the mean, dB"
    return "PSNR, dB" if all(job.point for job in jobs) else "PSNR of mean or estimate, dB"


def _seconds(jobs: Sequence[Job]) -> str:
    return "seconds per image" if all(job.point for job in jobs) else "seconds per image, all its draws"


def _bars_are(tasks: Mapping[tuple[str, ...], Sequence[Job]], others: Mapping[tuple[str, ...], Job | None]) -> str:
    """What marks and bars are, in words."""
    counts = sorted({len(job.images) for jobs in tasks.values() for job in jobs})
    images = f"{counts[0]} to {counts[-1]} images" if len(counts) > 1 else f"{counts[0]} image{'s' * (counts[0] > 1)}"
    marks = f"Marks: means over {images}."
    drawn = [task for task, jobs in tasks.items() for job in jobs if not math.isnan(_bar(job, others[task])[0])]
    if not drawn:
        return marks
    methods = {other.method for task in drawn if (other := others[task]) is not None}
    chosen = all(others[task] is best(jobs) for task, jobs in tasks.items())
    name = methods.pop() if len(methods) == 1 else f"the {'best' if chosen else 'reference'} of each panel"
    return f"{marks} Bars: 95 % intervals over images of the difference from {name} (no bar)."


def _columns(ends: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """How many steps each curve stands right of its place, so that those that end at the same place can be told."""
    out = {}
    for key, end in ends.items():
        same = [other for other, value in ends.items() if abs(math.log(value / end)) < 0.01]
        out[key] = same.index(key) - (len(same) - 1) / 2
    return out


def _last_of_each(names: Sequence[Name]) -> list[Name]:
    """The name of each prior at its last point alone, where every curve's would be too many."""
    last: dict[str, Name] = {}
    for name in names:
        if name.text not in last or name.x > last[name.text].x:
            last[name.text] = name
    return list(last.values())


def _legend(plot: Figure, jobs: Sequence[Job], marks: Mapping[str, str], said: str) -> None:
    """Below the panels, in a figure that is higher by it: marks and bars in words, and the marks of several solvers."""
    from matplotlib.lines import Line2D

    shown = list(dict.fromkeys(_plain(job, "solver") for job in jobs))
    names = shown if len(shown) > 1 else []
    handles = [Line2D([], [], linestyle="", marker=marks[name], color=GREY, label=name) for name in names]
    lines = textwrap.wrap(said, int(plot.get_figwidth() / 0.058))
    plot.set_figheight(plot.get_figheight() + 0.14 * (len(lines) + bool(names)))
    legend = plot.legend(
        handles=handles,
        title="\n".join(lines),
        title_fontsize=7,
        loc="outside lower center",
        ncols=min(max(len(handles), 1), 6),
        frameon=False,
    )
    legend.get_title().set_multialignment("center")


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in text)[:80]
