"""Names beside the points of a plot, where they hide no mark, no bar and no other name; and numbers on log axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

__all__ = ["Name", "Panel", "log_ticks", "name_points", "place_names"]

# Boxes are (left, bottom, right, top) in pixels, one a row.
Boxes = np.ndarray[Any, np.dtype[np.float64]]
_GAPS = (4.0, 8.0, 13.0, 20.0, 29.0, 40.0)  # points between a mark's middle and its name
_ANGLES = 16
_MARK = 3.2  # points from a mark's middle to its edge
# What a square pixel costs: of another name, of a mark, of a bar; and of what lies outside of the panel.
_ON_NAME, _ON_MARK, _ON_BAR, _OUTSIDE = 8.0, 6.0, 1.0, 50.0


@dataclass(frozen=True)
class Name:
    """What stands beside a point, in the coordinates of the data."""

    text: str
    x: float
    y: float
    colour: str


@dataclass(frozen=True)
class Panel:
    """A panel, what is to be named in it, and what must stay visible.

    Args:
        axes: the panel.
        names: what to write.
        marks: (x, y) of every point.
        bars: (x, low, high) of every bar.
    """

    axes: Axes
    names: Sequence[Name]
    marks: Sequence[tuple[float, float]]
    bars: Sequence[tuple[float, float, float]] = ()


def name_points(plot: Figure, panels: Sequence[Panel]) -> None:
    """Lay a figure out for good, and write the names into its panels."""
    for panel in panels:
        _plain_log_ticks(panel.axes)
    plot.draw_without_rendering()
    plot.set_layout_engine("none")  # laid out once: that takes longer than the drawing
    for panel in panels:
        place_names(panel)


def place_names(panel: Panel) -> list[Annotation]:
    """Write each name beside its point, joined to it by a line where there is no place close by.

    The panel must have its final size and limits. Each name in turn takes the cheapest of some places around its point,
    until none moves; nothing is left to chance.
    """
    axes, names, marks, bars = panel.axes, panel.names, panel.marks, panel.bars
    if not names:
        return []
    pixels = axes.figure.dpi / 72
    points = axes.transData.transform([(name.x, name.y) for name in names])
    trials = [axes.text(0, 0, name.text, fontsize=7) for name in names]
    extents = [text.get_window_extent() for text in trials]
    for text in trials:
        text.remove()
    sizes = np.array([(box.width, box.height) for box in extents])
    places = np.stack([_places(point, size, pixels) for point, size in zip(points, sizes, strict=True)])
    middle = axes.transData.transform(np.array(marks, dtype=float).reshape(-1, 2))
    dots = np.hstack([middle - _MARK * pixels, middle + _MARK * pixels])
    ends = [axes.transData.transform([(x, low), (x, high)]) for x, low, high in bars]
    lines = np.array([(*(low - pixels / 2), *(high + pixels / 2)) for low, high in ends]).reshape(-1, 4)
    inside = np.array([axes.bbox.extents])
    area = sizes.prod(1)
    fixed = _ON_MARK * _shared(places, dots) + _ON_BAR * _shared(places, lines)
    fixed += _OUTSIDE * (area[:, None] - _shared(places, inside))
    fixed += _taste(sizes, pixels)
    chosen = fixed.argmin(1)
    for _ in range(20):
        before = chosen.copy()
        for number in range(len(names)):
            others = np.delete(places[np.arange(len(names)), chosen], number, 0)
            chosen[number] = (fixed[number] + _ON_NAME * _shared(places[number : number + 1], others)[0]).argmin()
        if (before == chosen).all():
            break
    boxes = places[np.arange(len(names)), chosen]
    return [_written(axes, *each, pixels) for each in zip(names, points, boxes, strict=True)]


def _places(point: Any, size: Any, pixels: float) -> Boxes:
    """Boxes of that size around a point, the closest first."""
    found = []
    for gap in _GAPS:
        for number in range(_ANGLES):
            along = np.array([math.cos(2 * math.pi * number / _ANGLES), math.sin(2 * math.pi * number / _ANGLES)])
            middle = point + along * (gap * pixels + size / 2)
            found.append(np.concatenate([middle - size / 2, middle + size / 2]))
    return np.array(found)


def _taste(sizes: Any, pixels: float) -> Boxes:
    """What a place costs by itself: far is worse than close, and right of the point is where names are looked for."""
    gaps = np.repeat(_GAPS, _ANGLES)
    turned = 1 - np.cos(2 * math.pi * np.tile(np.arange(_ANGLES), len(_GAPS)) / _ANGLES)
    return np.asarray((gaps - _GAPS[0]) * 9 * pixels + turned * 14 * pixels)[None].repeat(len(sizes), 0)


def _shared(boxes: Boxes, others: Boxes) -> Boxes:
    """The area that each box (n, k, 4) has in common with others (m, 4), all together, (n, k)."""
    low = np.maximum(boxes[..., None, :2], others[:, :2])
    high = np.minimum(boxes[..., None, 2:], others[:, 2:])
    return np.asarray((high - low).clip(0).prod(-1).sum(-1))


def _written(axes: Axes, name: Name, point: Any, box: Any, pixels: float) -> Annotation:
    """The name in its box, with a halo that keeps it readable on a bar, and a line to the point where it is not close.

    Places are kept as distances from the point, so that they hold at any resolution.
    """
    from matplotlib.patheffects import withStroke

    nearest = np.clip(point, box[:2], box[2:])
    far = bool(np.hypot(*(nearest - point)) > 9 * pixels)
    from_name = tuple((nearest - box[:2]) / (box[2:] - box[:2]))
    line = {"arrowstyle": "-", "color": name.colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3, "relpos": from_name}
    text = axes.annotate(
        name.text,
        xy=(name.x, name.y),
        xytext=tuple(((box[:2] + box[2:]) / 2 - point) / pixels),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=7,
        color=name.colour,
        zorder=5,
        arrowprops=line if far else None,
        path_effects=[withStroke(linewidth=1.6, foreground="white")],
    )
    text.set_in_layout(False)
    return text


def _plain_log_ticks(axes: Axes) -> None:
    """Numbers as people write them on every logarithmic axis: 1, 2, 5, 10; a few of them in any case."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(FixedLocator(log_ticks(*sorted(axis.get_view_interval()))))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic axis from low to high, at least three: 1, 2, 5, 10 where they are not too many.

    >>> log_ticks(0.8, 70)
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    >>> log_ticks(0.02, 3000)
    [0.1, 1.0, 10.0, 100.0, 1000.0]
    >>> log_ticks(27, 36)
    [28.0, 30.0, 32.0, 34.0, 36.0]
    """
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 2, 3, 5), (1,)):
        found = [float(f"{part}e{decade}") for decade in decades for part in parts]
        found = [value for value in found if low <= value <= high]
        if 3 <= len(found) <= 10:
            return found
    steps = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in steps if low <= value <= high]
