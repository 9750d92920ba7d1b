"""Pictures of a restoration: the uncertainty map and the panel. Matplotlib is imported when a picture is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .posterior import Posterior
from .rim import Rim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .restoration import Restoration

__all__ = ["gallery", "panel", "uncertainty_map"]

_HEAT = "inferno"


def uncertainty_map(posterior: Posterior, *, measurement: int = 0) -> Figure:
    """Draw the standard deviation of the draws, root mean square over channels, with a colour bar.

    Its title says what the spread is (`posterior.label`): a spread that nobody has checked is called uncalibrated.
    Colours end at what the measured part has; the rim that a blur with the boundary "valid" restores may have more.

    Args:
        posterior: draws (draws, [m,] C, H, W).
        measurement: which of m measurements.

    Raises:
        ValueError: a point estimate or a single draw, which have no spread; draws that are not images.
    """
    std = posterior.std()
    if std.ndim == 4:
        std = std[measurement]
    if std.ndim != 3:
        raise ValueError(f"The draws have shape {posterior.shape}: expected images, (draws, C, H, W).")
    heat = _rms(std)
    width, height = _cell(heat, 4.2)
    figure = _figure(max(width, 3.6) + 1.1, height + 0.7)
    axes = figure.add_subplot()
    rim = Rim.of(posterior.record)
    shown = _show(axes, heat, vmin=0.0, vmax=_top(rim.inside(heat)))
    axes.set_title(f"{posterior.label}\nstandard deviation of {posterior.usable} draws, where white is 1", fontsize=10)
    axes.set_xlabel(rim.words, fontsize=8, color="0.35")
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02, extend="max" if rim else "neither")
    bar.ax.tick_params(labelsize=8)
    return figure


def panel(
    measurement: Tensor,
    restored: Tensor,
    *,
    draw: Tensor | None = None,
    std: Tensor | None = None,
    truth: Tensor | None = None,
    label: str = "uncalibrated spread",
    captions: Mapping[str, str] | None = None,
    rim: Rim | None = None,
) -> Figure:
    """Draw measurement, restored image, one draw, standard deviation, and truth and error where the truth is known.

    Error and standard deviation share one colour scale, so that they can be compared.

    Args:
        measurement: (C, h, w) in [0, 1], of its own size; left out where it is no image.
        restored, draw, std, truth: (C, H, W).
        label: what the spread is called.
        captions: a second line for "measurement", "restored", "draw", "std", "truth" or "error".
        rim: that was not measured, and that the colours are scaled without; none if left out.
    """
    notes, rim = dict(captions or {}), rim or Rim()
    images: list[tuple[str, str, Tensor, bool]] = []
    if measurement.ndim == 3 and measurement.shape[0] in (1, 3):
        images.append(("measurement", "measurement", measurement, False))
    images.append(("restored", "restored", restored, False))
    if draw is not None:
        images.append(("draw", "one draw", draw, False))
    if truth is not None:
        images.append(("truth", "truth", truth, False))
    heats = {}
    if std is not None:
        heats["std"] = _rms(std)
        images.append(("std", f"std ({label})", heats["std"], True))
    if truth is not None:
        heats["error"] = _rms(restored.detach().cpu().clamp(0, 1) - truth.detach().cpu())
        images.append(("error", "error of the restored", heats["error"], True))
    top = max((_top(rim.inside(heat)) for heat in heats.values()), default=1.0)

    width, height = _cell(restored, 3.1)
    # A row is at most four squares wide.
    columns = len(images) if len(images) <= 4 and width <= 3.5 else max(1, min(3, int(13 // width)))
    rows = math.ceil(len(images) / columns)
    figure = _figure(columns * max(width, 2.4) + 0.6, rows * (height + 0.6))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    heat_axes, shown = [], None
    for axes, (key, title, picture, is_heat) in zip(grid, images, strict=False):
        if is_heat:
            shown = _show(axes, picture, vmin=0.0, vmax=top)
            heat_axes.append(axes)
        else:
            _show(axes, picture)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(notes.get(key, ""), fontsize=8, color="0.35")
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    if shown is not None:
        more = "max" if rim else "neither"
        bar = figure.colorbar(shown, ax=heat_axes, fraction=0.05, pad=0.02, shrink=0.9, extend=more)
        bar.ax.tick_params(labelsize=8)
    return figure


def gallery(rows: Sequence[tuple[str, Restoration]]) -> Figure:
    """Draw restorations below each other: measurement, restored, one draw, standard deviation, and truth where known.

    Every row has a colour scale of its own, as one task may leave far more open than another.

    Args:
        rows: (title, restoration) of each row; restorations with draws.
    """
    columns = 5 if all(result.truth is not None for _, result in rows) else 4
    figure = _figure(columns * 2.3 + 0.9, len(rows) * 2.35)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, (title, result) in enumerate(rows):
        line = grid[row]
        posterior = result.posterior
        mean = posterior.mean()
        pictures = [result.measurement, mean, next(posterior.each())[1]]
        heads = ["measurement", "restored (mean of draws)", "one draw"]
        for axes, picture, head in zip(line, pictures, heads, strict=False):
            _show(axes, picture)
            if row == 0:
                axes.set_title(head, fontsize=10)
        heat = _rms(posterior.std())
        shown = _show(line[3], heat, vmin=0.0, vmax=_top(Rim.of(posterior.record).inside(heat)))
        if row == 0:
            line[3].set_title(f"std ({posterior.label})", fontsize=10)
        figure.colorbar(shown, ax=line[3], fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)
        if columns == 5 and result.truth is not None:
            _show(line[4], result.truth)
            if row == 0:
                line[4].set_title("truth", fontsize=10)
        line[0].set_ylabel(title, fontsize=11)
        if "psnr" in result.metrics:
            line[1].set_xlabel(f"{result.metrics['psnr']:.2f} dB", fontsize=9, color="0.25")
            line[2].set_xlabel(f"{result.metrics['psnr_draw']:.2f} dB", fontsize=9, color="0.25")
    return figure


def _figure(width: float, height: float) -> Figure:
    # Not through pyplot: no window, no global list of figures.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _cell(picture: Tensor, side: float) -> tuple[float, float]:
    """Width and height in inches, of the picture's shape and the area of a square of that side, within reason."""
    stretch = min(max(math.sqrt(picture.shape[-1] / picture.shape[-2]), 0.5), 2.0)
    return side * stretch, side / stretch


def _show(axes: Axes, picture: Tensor, **scale: Any) -> Any:
    values = picture.detach().cpu().float()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if values.ndim == 2:
        return axes.imshow(values.numpy(), cmap=_HEAT, interpolation="nearest", **scale)
    values = values.clamp(0, 1)
    if values.shape[0] == 1:
        return axes.imshow(values[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    return axes.imshow(values.movedim(0, -1).numpy(), interpolation="nearest")


def _rms(values: Tensor) -> Tensor:
    return values.detach().cpu().float().square().mean(0).sqrt()


def _top(heat: Tensor) -> float:
    """The top of the colour scale: a few outliers do not make the rest black."""
    flat = heat.flatten().sort().values
    return max(float(flat[int(0.995 * (len(flat) - 1))]), 1e-4)
