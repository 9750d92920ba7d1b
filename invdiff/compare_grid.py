"""Grids of pictures of a sweep: rows of images or tasks, columns of priors, what was measured and true at the ends."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sweep import Image, Job

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bold_best", "paper_style", "picture", "picture_grid", "picture_table"]

PAGE = 7.0
GREY = "0.45"
_STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # letters that an editor of papers finds
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Sizes and widths for a paper; matplotlib's own settings come back afterwards."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


@paper_style()
def picture_grid(jobs: Sequence[Job], title: str = "", *, most: int = 6) -> Figure:
    """Rows of images and columns of priors, between measurement and truth, with the PSNR below; the best is bold.

    Args:
        jobs: of one task, a column each.
        title: above the grid.
        most: rows at most; images that more jobs have come first.
    """
    names: dict[str, Image] = {}
    shared: Counter[str] = Counter()
    for job in jobs:
        for sha256, image in job.images.items():
            if image.pictures is not None:
                names.setdefault(sha256, image)
                shared[sha256] += 1
    chosen = sorted(names, key=lambda sha256: -shared[sha256])[:most]
    rows, captions = [], []
    for sha256 in chosen:
        own = [job.images.get(sha256) for job in jobs]
        ends = names[sha256]
        rows.append([picture(ends, "measurement"), *(picture(image, "mean") for image in own), picture(ends, "truth")])
        values = [None if image is None else image.figures.get("psnr_mean") for image in own]
        name = textwrap.shorten(ends.name, 16, placeholder="…")
        captions.append([[(name, "normal")], *([pair] for pair in bold_best(values, "{:.2f} dB")), []])
    more = len(names) - len(chosen)
    heads = ["measurement", *(job.names["prior"] for job in jobs), "truth"]
    return picture_table(rows, captions, heads, title=f"{title} ({more} more images not shown)" if more else title)


def picture_table(
    rows: Sequence[Sequence[Path | None]],
    captions: Sequence[Sequence[Sequence[tuple[str, str]]]],
    heads: Sequence[str],
    *,
    sides: Sequence[str] = (),
    title: str = "",
    width: float = PAGE,
    zoom: float = 1.0,
) -> Figure:
    """Draw pictures in rows and columns, at most 8.3 inches high.

    Args:
        rows: files, the same number in each row; None leaves a cell without a picture.
        captions: lines (text, weight) below each picture.
        heads: above the columns.
        sides: left of the rows.
        title: above all.
        width: at most, inches.
        zoom: share of each picture's sides that is shown, in its middle.
    """
    line, gap = 0.115, 0.05  # inches: a line of 7 points, and what lies between pictures
    left = 0.2 if sides else gap
    foot = line * max(len(lines) for row in captions for lines in row) + 0.03
    cell = min(1.3, (width - left) / len(heads) - gap, 8.3 / len(rows) - foot - gap)
    wrapped = ["\n".join(textwrap.wrap(head, max(8, int(cell / 0.06)), break_long_words=False)) for head in heads]
    top = 0.1 + line * max(text.count("\n") + 1 for text in wrapped) + (0.18 if title else 0.0)
    width, height = left + len(heads) * (cell + gap), top + len(rows) * (cell + foot + gap)
    from matplotlib.figure import Figure

    # One pair of axes in inches for all: hundreds of axes take seconds.
    plot = Figure(figsize=(width, height), dpi=220)
    axes = plot.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    if title:
        axes.text(left, 0.04, title, va="top", fontsize=8)
    for row, (pictures, texts) in enumerate(zip(rows, captions, strict=True)):
        y = top + row * (cell + foot + gap)
        if sides:
            axes.text(left / 2, y + cell / 2, sides[row], rotation=90, ha="center", va="center", fontsize=7)
        for column, (path, lines) in enumerate(zip(pictures, texts, strict=True)):
            x = left + column * (cell + gap)
            if row == 0:
                axes.text(x + cell / 2, top - 0.04, wrapped[column], ha="center", va="bottom", fontsize=7)
            _show(axes, path, (x, y, cell), zoom)
            for place, (text, weight) in enumerate(lines):
                axes.text(
                    x + cell / 2, y + cell + 0.03 + place * line, text, ha="center", va="top", fontsize=7, weight=weight
                )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return plot


def picture(image: Image | None, name: str) -> Path | None:
    """The file of an image's truth, measurement, mean or draw, where there is one."""
    path = None if image is None or image.pictures is None else image.pictures / f"{name}.png"
    return path if path is not None and path.exists() else None


def bold_best(values: Sequence[float | None], form: str, *, lowest: bool = False) -> list[tuple[str, str]]:
    """Each value as text with its weight, "bold" for the best of several."""
    known = [value for value in values if value is not None]
    top = None if len(known) < 2 else min(known) if lowest else max(known)
    return [("-" if v is None else form.format(v), "bold" if v is not None and v == top else "normal") for v in values]


def _show(axes: Axes, path: Path | None, place: tuple[float, float, float], zoom: float) -> None:
    """One picture in a square cell (left, top, side); one that is not square keeps its shape."""
    x, y, cell = place
    if path is None:
        axes.text(x + cell / 2, y + cell / 2, "no picture", ha="center", va="center", fontsize=7, color=GREY)
        return
    from .images import read_image

    pixels = read_image(path, alpha="white")[0].clamp(0, 1)
    off = [round(side * (1 - zoom) / 2) for side in pixels.shape[1:]]
    pixels = pixels[:, off[0] : pixels.shape[1] - off[0], off[1] : pixels.shape[2] - off[1]]
    wide, high = (cell * side / max(pixels.shape[1:]) for side in (pixels.shape[2], pixels.shape[1]))
    x, y = x + (cell - wide) / 2, y + (cell - high) / 2
    shown = pixels.movedim(0, -1) if len(pixels) == 3 else pixels[0]
    where = (x, x + wide, y + high, y)
    axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=where, aspect="auto")
