"""Non-local means as a prior."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invdiff.priors.smoother import Smoother, box_sum, mirror

__all__ = ["NonLocalMeans", "non_local_means"]


class NonLocalMeans(Smoother):
    """Non-local means, a mean of the pixels of a window whose patches look alike,

    `D(x, sigma)_p = sum_t w x_{p+t} / sum_t w`,  `w = exp(-max(d^2(p, p+t) - 2 sigma^2, 0) / h^2)`

    (Buades, Coll and Morel 2005, eq. 2, with the noise's share taken off as in Buades et al. 2011, section 3), where
    d^2 is the mean squared difference of the two patches over pixels and channels and h follows sigma.

    Args:
        scale: factor on the fitted strength h.
        patch: odd width of the patches in pixels.
        reach: the search window spans 2 reach + 1 pixels.

    Raises:
        ValueError: patch is not odd and positive, or reach is not positive.
    """

    name = "nlm"
    family = "nlm"

    def __init__(self, scale: float = 1.0, patch: int = 5, reach: int = 8) -> None:
        super().__init__(scale)
        if patch < 1 or patch % 2 == 0:
            raise ValueError(f"patch of nlm must be an odd number of pixels, got {patch}.")
        if reach < 1:
            raise ValueError(f"reach of nlm must be at least 1 pixel, got {reach}.")
        self.patch = patch
        self.reach = reach

    def smooth(self, x: Tensor, strength: Tensor, sigma: Tensor) -> Tensor:
        return non_local_means(x, strength, sigma, self.patch, self.reach)


def non_local_means(x: Tensor, h: Tensor, sigma: Tensor, patch: int = 5, reach: int = 8) -> Tensor:
    """Non-local means of x (b, C, H, W) with h and sigma per member (b,); borders by reflection."""
    padded = mirror(x, reach + patch // 2, reach + patch // 2)
    weight, total = torch.ones_like(x[:, :1]), x.clone()
    for row in range(reach + 1):
        # One row of shifts is recomputed in the backward pass: storing all of them would take gigabytes.
        if x.requires_grad and torch.is_grad_enabled():
            more = checkpoint(_shifts, padded, h, sigma, row, patch, reach, use_reentrant=False)
        else:
            more = _shifts(padded, h, sigma, row, patch, reach)
        weight, total = weight + more[0], total + more[1]
    return total / weight


def _shifts(padded: Tensor, h: Tensor, sigma: Tensor, row: int, patch: int, reach: int) -> tuple[Tensor, Tensor]:
    """Weights and weighted values of the shifts (row, .) and their opposites, which share one weight map."""
    half = patch // 2
    height, width = (size - 2 * (reach + half) for size in padded.shape[-2:])
    channels = padded.shape[1]
    weight = padded.new_zeros(len(padded), 1, height, width)
    total = padded.new_zeros(len(padded), channels, height, width)
    noise = (2 * sigma.square())[:, None, None, None]
    inverse = -h.square().reciprocal()[:, None, None, None]
    for column in range(-reach if row else 1, reach + 1):
        # Domain: every p for which p or p + t lies in the image, and a border of half a patch.
        top, left = reach - row, reach - max(column, 0)
        tall, wide = height + row + 2 * half, width + abs(column) + 2 * half
        here = padded[..., top : top + tall, left : left + wide]
        there = padded[..., top + row : top + row + tall, left + column : left + column + wide]
        squares = (here - there).square().sum(dim=1, keepdim=True)
        distance = box_sum(squares, patch) / (patch * patch * channels)
        w = ((distance - noise).clamp_min(0) * inverse).exp()
        for top, left, values in (
            (row, max(column, 0), there),  # p in the image, looking at p + t
            (0, max(-column, 0), here),  # p + t in the image, looking back at p
        ):
            part = w[..., top : top + height, left : left + width]
            weight += part
            total.addcmul_(part, values[..., half + top : half + top + height, half + left : half + left + width])
    return weight, total
