"""The picture of a split: the mean of the draws in grey, and what the prior invented of it in colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from .measured import MeasuredOrConjured
from .plots import _cell, _figure
from .posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["invented_overlay", "overlay"]

Share = Literal["invented_detail", "invented_variance"]
_TITLES = {
    "invented_detail": "fine detail that the prior invented",
    "invented_variance": "variance over draws that the prior invented",
}


def overlay(mean: Tensor, share: Tensor) -> np.ndarray:
    """The mean in grey under colours that say how much is invented, as an RGB image (H, W, 3) of bytes.

    What is all measured stays grey; what is all invented is red, through yellow.

    Args:
        mean: (C, H, W) in [0, 1].
        share: (C, H, W) in [0, 1]; its mean over channels is shown.

    Raises:
        ValueError: the shapes differ, or are not those of images.
    """
    if mean.ndim != 3 or mean.shape != share.shape:
        raise ValueError(
            f"overlay got a mean of shape {tuple(mean.shape)} and a share of shape {tuple(share.shape)}: expected the "
            "same (C, H, W) twice; pick one of several measurements."
        )
    grey = mean.detach().cpu().double().clamp(0, 1).mean(0).numpy()
    return (255 * _blend(grey, share.detach().cpu().double().mean(0).numpy())).round().astype(np.uint8)


def invented_overlay(
    posterior: Posterior, split: MeasuredOrConjured, *, share: Share = "invented_detail", measurement: int = 0
) -> Figure:
    """Draw the `overlay` of the mean of the draws with its colour bar.

    Args:
        posterior: draws (draws, [m,] C, H, W).
        split: what `measured_or_conjured` found of them.
        share: which map.
        measurement: which of m measurements.

    Raises:
        ValueError: another name for share, or a split of images of another shape.
    """
    if share not in _TITLES:
        raise ValueError(f"share is {share!r}: expected one of {', '.join(_TITLES)}.")
    mean, values = posterior.mean(), getattr(split, share)
    if mean.ndim == 4 and values.ndim == 4:
        mean, values = mean[measurement], values[measurement]
    picture = overlay(mean, values)
    width, height = _cell(mean, 4.2)
    figure = _figure(max(width, 3.6) + 1.1, height + 0.7)
    axes = figure.add_subplot()
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{_TITLES[share]}\n{split.record['draws']} draws, {posterior.label}", fontsize=10)

    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    steps = np.linspace(0, 1, 256)
    scale = ScalarMappable(cmap=ListedColormap(_blend(np.full(256, 0.6), steps)))
    bar = figure.colorbar(scale, ax=axes, fraction=0.05, pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0 % (measured)", "25 %", "50 %", "75 %", "100 % (invented)"], fontsize=8)
    return figure


def _blend(grey: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in [0, 1] of grey values under shares."""
    from matplotlib import colormaps

    # Pale yellow cannot be told from a light picture, nor dark red from a dark one.
    colour = np.asarray(colormaps["YlOrRd"](0.3 + 0.5 * share))[..., :3]
    strength = 0.7 * share[..., None]
    light = grey[..., None]
    return np.asarray((1 - strength) * light + strength * colour * (0.35 + 0.65 * light)).clip(0, 1)
