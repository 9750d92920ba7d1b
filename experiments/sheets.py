"""Sheets of pictures: what a prior makes of noisy images, and what it makes of noise alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import record, sample
from invdiff.images import write_image
from invdiff.priors import Prior
from invdiff.provenance import Provenance, describe, is_generative, software
from invdiff.solvers import Heun

from .validate import _noise

__all__ = ["denoised_sheet", "generated_sheet", "tile"]


def tile(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Images (n, C, H, W) as one white sheet (C, rows (H + gap) - gap, columns (W + gap) - gap), clipped to [0, 1]."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    sheet = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for n, image in enumerate(images.detach().cpu().clamp(0, 1)):
        top, left = n // columns * (height + gap), n % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def denoised_sheet(prior: Prior, images: Tensor, path: Path) -> None:
    """One row for each image: itself, and with noise of 25, 50 (of 255) and half of white, each beside its estimate.

    Levels outside the prior's range are left out.
    """
    levels = [s for s in (25 / 255, 50 / 255, 0.5) if prior.sigma_range[0] <= s <= prior.sigma_range[1] * (1 + 1e-6)]
    noise = _noise(images, 1).to(images)
    columns = [images]
    with torch.no_grad():
        for sigma in levels:
            noisy = images + sigma * noise
            columns += [noisy, prior(noisy, sigma)]
    source = "compositeSynthetic" if is_generative(record.describe(prior), drawn=False) else "composite"
    said = Provenance(content="images, noisy images and their estimates", source=source, software=software())
    write_image(path, tile(torch.stack(columns, 1).flatten(0, 1), len(columns)), provenance=said)


def generated_sheet(prior: Prior, shape: tuple[int, int, int], count: int, path: Path, steps: int = 18) -> None:
    """Draws from the prior by Heun's method, the same noise at every call."""
    solver: Any = Heun(steps=steps)
    made = sample(solver, None, prior, draws=count, in_shape=shape, progress=False)
    sheet = tile(made.draws, math.ceil(math.sqrt(count)))
    write_image(path, sheet, provenance=describe(made, "draws"))
