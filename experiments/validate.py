"""Validation on fixed crops of held-out images: denoising PSNR, and the loss in bands of the noise level."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from invdiff.metrics import psnr
from invdiff.priors import Prior

from .objective import Objective

__all__ = ["BANDS", "LEVELS", "band_losses", "band_names", "bands_of", "denoising_psnr"]

# Noise levels of the denoising literature, of 255.
LEVELS = (5, 10, 15, 25, 50, 75)
# Edges of the bands in which losses are told apart, image units.
BANDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def bands_of(sigma: Tensor) -> Tensor:
    """The band of each noise level, 0 to len(BANDS)."""
    return torch.bucketize(sigma, torch.tensor(BANDS, device=sigma.device))


def band_names() -> list[str]:
    """Column names of the bands' losses."""
    edges = [f"{edge:g}" for edge in BANDS]
    inner = [f"loss {low} to {high}" for low, high in itertools.pairwise(edges)]
    return [f"loss below {edges[0]}", *inner, f"loss above {edges[-1]}"]


def _noise(like: Tensor, seed: int) -> Tensor:
    """The same noise at every validation; one stream for each image, whatever the others are."""
    generators = [torch.Generator().manual_seed(1_000_003 * seed + n) for n in range(len(like))]
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators])


def denoising_psnr(prior: Prior, images: Tensor, batch: int = 16) -> dict[str, float]:
    """Mean PSNR in dB of the denoised images, by noise level of 255; levels above the prior's range are left out.

    The noise is not clipped and neither is the estimate.

    Args:
        prior: what is judged.
        images: (n, C, H, W) in [0, 1], on the prior's device.
        batch: images at once.
    """
    found: dict[str, float] = {}
    for level in LEVELS:
        sigma = level / 255
        if not prior.sigma_range[0] <= sigma <= prior.sigma_range[1] * (1 + 1e-6):
            continue
        noisy = images + sigma * _noise(images, level).to(images)
        with torch.no_grad():
            parts = [prior(part, sigma) for part in noisy.split(batch)]
        found[f"psnr {level}"] = round(float(psnr(torch.cat(parts), images).mean()), 3)
    return found


def band_losses(
    objective: Objective, images: Tensor, sigma_range: tuple[float, float], batch: int = 16
) -> dict[str, float]:
    """The training loss on held-out images, at the middle of every band that the range of noise levels has a part in.

    It is that of the weights being trained, without an average over the steps.
    """
    low, high = sigma_range
    edges = (0.0, *BANDS, float("inf"))
    found: dict[str, float] = {}
    for name, (left, right) in zip(band_names(), itertools.pairwise(edges), strict=True):
        left, right = max(left, low), min(right, high)
        if left >= right:
            continue
        # The geometric middle, or half of the upper edge where the range begins at 0.
        sigma = (left * right) ** 0.5 if left > 0 else right / 2
        noise = _noise(images, 0).to(images)
        total = 0.0
        with torch.no_grad():
            for part, eps in zip(images.split(batch), noise.split(batch), strict=True):
                levels = torch.full((len(part),), sigma, device=part.device)
                total += float(objective.losses(part, levels, eps).sum())
        found[f"held-out {name}"] = total / len(images)
    return found
