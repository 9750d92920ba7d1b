"""What `invdiff compare` writes: tables for the console, CSV and Markdown, and the sentences that go with them."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .compare import ENOUGH, difference, leaders, mean, mean_interval, reference
from .sweep import FIGURES, METHOD, TASK, Job, Sweep

__all__ = ["compare", "markdown", "notes", "print_tables", "signed", "write_tables"]

# Digits behind the point; the other figures have two significant ones, and whole numbers all of theirs.
_DIGITS = {"psnr_mean": 2, "psnr_draw": 2, "ssim_mean": 3, "ssim_draw": 3, "lpips": 3, "crps": 4}
_DIGITS |= {"coverage90": 2, "spread_skill": 2, "chi2": 2}
# Figures whose differences are shown; the CSV has all.
_DIFFERENCES = ("psnr_mean", "psnr_draw", "ssim_mean", "lpips", "crps")
_NO_LPIPS = "LPIPS: not computed: no weights."
_HEADS = {"coverage90": "90 %", "spread_skill": "spread/err", "peak_mib": "MiB", "seconds": "s", "psnr_draw": "a draw"}
_HEADS |= {"ssim_mean": "SSIM", "ssim_draw": "a draw", "nfe_backward": "back"}


def compare(folder: Path, *, out: Path | None, against: str | None, overwrite: bool) -> None:
    """Read a sweep, print its tables, and write tables and plots to a folder; see `invdiff.sweep.read_sweep`.

    Args:
        folder: of the sweep.
        out: for tables and plots; `compare` in the sweep's own folder where left out, which is written anew each time.
        against: the method that the others are compared with (see `invdiff.compare.reference`).
        overwrite: write to `out` though it is not empty.

    Raises:
        OSError: a folder that is not there, or cannot be written.
        ValueError: no finished job, or no job of that reference.
    """
    from . import compare_plots
    from .report import output_folder
    from .sweep import read_sweep

    sweep = read_sweep(folder)
    chosen = references(sweep, against)
    target = folder / "compare" if out is None else out
    with output_folder(target, overwrite=overwrite or out is None) as stage:
        write_tables(sweep, chosen, stage)
        missing = compare_plots.write_plots(sweep, chosen, stage)
        if out is None:
            _forget(target, stage)
    print_tables(sweep, chosen)
    for sentence in missing:
        print(sentence)
    print(f"written to {target}")


def _forget(target: Path, stage: Path) -> None:
    """Remove the plots of an earlier time that there are none of now."""
    for pattern in ("grid_*", "psnr_*", "spread_error.*"):
        for path in target.glob(pattern):
            if not (stage / path.name).exists():
                path.unlink()


def references(sweep: Sweep, name: str | None) -> dict[tuple[str, ...], Job | None]:
    """The job of each task that its others are compared with.

    Raises:
        ValueError: no task has a job of that name, or one has several.
    """
    found = {task: reference(jobs, name) for task, jobs in sweep.tasks().items()}
    if all(job is None for job in found.values()):
        choices = ", ".join(sorted({job.method for job in sweep.jobs}))
        raise ValueError(f"No finished job fits the reference {name!r}: choose from {choices}.")
    return found


def notes(sweep: Sweep, against: Mapping[tuple[str, ...], Job | None]) -> list[str]:
    """What a reader of the tables must know: jobs left out, other versions or images, figures that are missing."""
    found = list(sweep.remarks)
    labels: dict[str, dict[str, None]] = {}
    for job in sweep.jobs:
        if _has([job], "spread_skill"):
            labels.setdefault(_label(job), {})[job.method] = None
    if labels:
        found.append("Spreads: " + "; ".join(f"{label} ({', '.join(who)})" for label, who in labels.items()) + ".")
    if not _has(sweep.jobs, "lpips"):
        found.append(_NO_LPIPS)
    found += [
        f"{sweep.title(task)}: the reference has no finished job there, so no differences."
        for task, job in against.items()
        if job is None
    ]
    fewest = min(len(job.images) for job in sweep.jobs)
    if fewest < ENOUGH:
        found.append(f"Intervals over {fewest} image{'s' * (fewest > 1)} say little: six or more are needed.")
    return found


def write_tables(sweep: Sweep, against: Mapping[tuple[str, ...], Job | None], folder: Path) -> None:
    """Write table.csv (one row a job), differences.csv (one row a job and figure) and table.md."""
    jobs = [[*(job.names[part] for part in (*TASK, *METHOD)), len(job.images)] for job in sweep.jobs]
    heads = [*TASK, *METHOD, "images"]
    with (folder / "table.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow([*heads, *FIGURES, "draws", "label", "job"])
        for row, job in zip(jobs, sweep.jobs, strict=True):
            figures = [_number(mean(job, figure)) for figure in FIGURES]
            writer.writerow([*row, *figures, _draws(job), _label(job), job.path])
    with (folder / "differences.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        parts = ("mean", "low", "high", "reference", "difference", "difference_low", "difference_high", "paired_images")
        writer.writerow([*heads, "figure", *parts])
        for row, job in zip(jobs, sweep.jobs, strict=True):
            for figure in FIGURES:
                value, (low, high) = mean(job, figure), mean_interval(job, figure)
                if math.isnan(value):
                    continue
                other = against[job.task]
                ends = [_number(value), _number(low), _number(high), other.method if other else ""]
                if other is None or other is job:
                    writer.writerow([*row, figure, *ends, "", "", "", ""])
                else:
                    gap = difference(job, other, figure)
                    numbers = [_number(gap.value), _number(gap.low), _number(gap.high)]
                    writer.writerow([*row, figure, *ends, *numbers, gap.images])
    (folder / "table.md").write_text(markdown(sweep, against))


def markdown(sweep: Sweep, against: Mapping[tuple[str, ...], Job | None]) -> str:
    """All tables and notes as a page."""
    lines = ["# Comparison", ""]
    for task, jobs in sweep.tasks().items():
        lines += [f"## {_plain(sweep.heading(task))}", ""]
        heads, rows, bold = _figures(jobs)
        lines += [*_page_table(heads, rows, bold), ""]
        other = against[task]
        if other is not None and len(jobs) > 1:
            lines += [f"{_plain(_caption(jobs, other))}.", "", *_page_table(*_gaps(jobs, other)), ""]
    lines += [f"- {_plain(note)}" for note in notes(sweep, against)]
    lines += [f"- {_BOLD}", f"- {_MEANINGS}", ""]
    return "\n".join(lines)


_BOLD = (
    "Bold, from six shared images on: the best mean of PSNR, SSIM, LPIPS and CRPS, with those that cannot be told from "
    "it (the 95 % interval of the paired difference holds 0); of 90 % and spread/err the mean nearest to 0.90 and 1. "
    "Bold is against the best of its own column, the tables of differences are against one reference."
)
_MEANINGS = (
    "Noise is that of images in [0, 1]. PSNR and SSIM are of the draws' mean, or of the point estimate, whose CRPS is "
    "its mean absolute error. 90 %: share of true pixels inside the draws' 90 % intervals; spread/err: 1 where the "
    "spread is honest; chi2: 1 where draws agree with the measurement to its noise (of a point estimate no value is "
    "right: it stands in table.csv alone); NFE: denoiser calls for each draw or estimate; back: passes back through "
    "it; s: seconds an image, all its draws; MiB: the most memory of the job."
)


def print_tables(sweep: Sweep, against: Mapping[tuple[str, ...], Job | None]) -> None:
    """Print a table of each task, then the notes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False, markup=False, width=160)
    for task, jobs in sweep.tasks().items():
        heads, rows, bold = _figures(jobs)
        other = against[task]
        console.print(sweep.heading(task))
        if other is not None and len(jobs) > 1:
            gap_heads, gap_rows = _gaps(jobs, other)
            heads = [*heads, *(f"vs. {head}" for head in gap_heads[2:] if head in ("PSNR", "CRPS"))]
            keep = [place for place, head in enumerate(gap_heads) if place > 1 and head in ("PSNR", "CRPS")]
            rows = [[*row, *(gap[place] for place in keep)] for row, gap in zip(rows, gap_rows, strict=True)]
        table = Table(box=None, pad_edge=False)
        for place, head in enumerate(heads):
            table.add_column(head, justify="left" if place < 2 else "right", no_wrap=True)
        for line, row in enumerate(rows):
            styles = ["bold" if (line, place) in bold else "" for place in range(len(row))]
            table.add_row(*(Text(cell, style) for cell, style in zip(row, styles, strict=True)))
        console.print(table)
        if other is not None and len(jobs) > 1:
            console.print(f"vs.: {_caption(jobs, other)}.")
        console.print()
    for note in (*notes(sweep, against), *([_BOLD] if console.is_terminal else [])):
        console.print(note)


def _caption(jobs: Sequence[Job], other: Job) -> str:
    return f"differences from {other.method}, mean over the images that both have [95 % interval]"


def _figures(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]], set[tuple[int, int]]]:
    """Heads and rows of the means, and which cells (row, column) are the best; figures that no job has are left out."""
    shown = [figure for figure in FIGURES if _has(jobs, figure) and figure != "ssim_draw"]
    if not any(mean(job, "nfe_backward") > 0 for job in jobs) and "nfe_backward" in shown:
        shown.remove("nfe_backward")
    if all(job.point for job in jobs) and "chi2" in shown:
        shown.remove("chi2")
    heads = ["prior", "solver", "images", *(_HEADS.get(figure, FIGURES[figure]) for figure in shown)]
    rows = []
    for job in jobs:
        values = [math.nan if figure == "chi2" and job.point else mean(job, figure) for figure in shown]
        cells = [_text(value, figure) for value, figure in zip(values, shown, strict=True)]
        rows.append([job.names["prior"], job.names["solver"], str(len(job.images)), *cells])
    best = set()
    for column, figure in enumerate(shown, 3):
        first = leaders(jobs, figure)
        best |= {(row, column) for row, job in enumerate(jobs) if any(job is one for one in first)}
    return heads, rows, best


def _gaps(jobs: Sequence[Job], other: Job) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the paired differences."""
    shown = [figure for figure in _DIFFERENCES if _has(jobs, figure)]
    heads = ["prior", "solver", *(FIGURES[figure] for figure in shown)]
    rows = []
    for job in jobs:
        names = [job.names["prior"], job.names["solver"]]
        if job is other:
            rows.append([*names, *("reference" if figure == "psnr_mean" else "" for figure in shown)])
        else:
            rows.append([*names, *(_gap(job, other, figure) for figure in shown)])
    return heads, rows


def _gap(job: Job, other: Job, figure: str) -> str:
    gap = difference(job, other, figure)
    if math.isnan(gap.value):
        return "-"
    value, low, high = (signed(number, _DIGITS[figure]) for number in (gap.value, gap.low, gap.high))
    return value if math.isnan(gap.low) else f"{value} [{low}, {high}]"


def signed(value: float, digits: int) -> str:
    """A number with its sign, zero without one.

    >>> signed(-0.4, 1), signed(-0.4, 0)
    ('-0.4', '0')
    """
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def _has(jobs: Sequence[Job], figure: str) -> bool:
    return any(figure in image.figures for job in jobs for image in job.images.values())


def _text(value: float, figure: str) -> str:
    if math.isnan(value):
        return "-"
    if figure in _DIGITS:
        return f"{value:.{_DIGITS[figure]}f}"
    return f"{value:.0f}" if value >= 10 or value == round(value) else f"{value:.2g}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _draws(job: Job) -> str:
    return " to ".join(str(count) for count in sorted({image.draws for image in job.images.values()})) or "0"


def _label(job: Job) -> str:
    return "; ".join(sorted({image.label for image in job.images.values() if image.label}))


def _page_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], bold: Collection[tuple[int, int]] = ()
) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'|'.join([' --- '] * len(heads))}|"
    for line, row in enumerate(rows):
        cells = [f"**{cell}**" if (line, place) in bold else _plain(cell) for place, cell in enumerate(row)]
        yield f"| {' | '.join(cells)} |"


def _plain(text: Any) -> str:
    """Names come from files: they must not break the table, nor become markup."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
