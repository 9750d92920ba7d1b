"""Gaussian blur, median and bilateral filter as priors."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invdiff.priors.base import by_level
from invdiff.priors.smoother import Smoother, box_sum, mirror

__all__ = ["Bilateral", "GaussianBlur", "Median"]


class GaussianBlur(Smoother):
    """Convolution with a Gaussian, `D(x, sigma) = F^-1 exp(-s^2 |w|^2 / 2) F x`, whose width s in pixels follows sigma.

    The convolution is exact in the frequencies of the image extended by reflection, so it is the identity at s = 0 and
    as cheap at s = 20.

    >>> GaussianBlur()(torch.full((1, 1, 4, 5), 0.5), 0.1).unique().tolist()
    [0.5]
    """

    name = "gaussian"
    family = "gaussian"

    def smooth(self, x: Tensor, strength: Tensor, sigma: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # The reflected image is even, so half of each axis is the other half mirrored: x then x reversed is its period.
        doubled = torch.cat([x, x.flip(-1)], dim=-1)
        doubled = torch.cat([doubled, doubled.flip(-2)], dim=-2)
        rows = 2 * math.pi * torch.fft.fftfreq(2 * height, dtype=x.dtype, device=x.device)
        columns = 2 * math.pi * torch.fft.rfftfreq(2 * width, dtype=x.dtype, device=x.device)
        decay = 0.5 * strength[:, None, None, None] ** 2
        transfer = (-decay * rows[:, None] ** 2).exp() * (-decay * columns**2).exp()
        smooth = torch.fft.irfft2(torch.fft.rfft2(doubled) * transfer, s=doubled.shape[-2:])
        return smooth[..., :height, :width]


class Median(Smoother):
    """The median over a square window of each channel, whose width 1 + strength in pixels follows sigma.

    Between odd widths the two neighbouring medians are mixed linearly, so that the strength is continuous: at width 2
    the result is half the image and half its 3 x 3 median. Windows wider than 7 pixels read the median off the counts
    below 128 levels of the channel (quantiles and even steps), interpolated between levels. Not differentiable: counts
    have no gradient.
    """

    name = "median"
    family = "median"
    differentiable = False

    def smooth(self, x: Tensor, strength: Tensor, sigma: Tensor) -> Tensor:
        return by_level(self._mixed, x, strength)

    @classmethod
    def _mixed(cls, x: Tensor, strength: Tensor) -> Tensor:
        half = float(strength) / 2
        below = math.floor(half)
        mix = half - below
        low = cls.window_median(x, 2 * below + 1)
        return low if mix == 0 else low.lerp(cls.window_median(x, 2 * below + 3), mix)

    @staticmethod
    def window_median(x: Tensor, width: int) -> Tensor:
        """The median over width x width windows (odd), borders by reflection."""
        if width == 1:
            return x
        if width > 7:
            return _median_by_counts(x, width)
        padded = mirror(x, width // 2, width // 2)
        height, across = x.shape[-2:]
        shifts = [padded[..., i : i + height, j : j + across] for i in range(width) for j in range(width)]
        return torch.stack(shifts, dim=-1).median(dim=-1).values


def _median_by_counts(x: Tensor, width: int, levels: int = 128) -> Tensor:
    """Interpolate the window's median between the levels where the share of smaller pixels passes one half."""
    flat = x.flatten(2).sort(dim=-1).values
    at = torch.linspace(0, flat.shape[-1] - 1, levels // 2, device=x.device).round().long()
    # Quantiles are dense where the values are, even steps bound the error where they are not.
    share = torch.linspace(0, 1, levels // 2, dtype=x.dtype, device=x.device)
    even = torch.lerp(flat[..., :1], flat[..., -1:], share)
    even[..., -1:] = flat[..., -1:]  # rounding must not leave the highest value above the last level
    grid = torch.cat([flat[..., at], even], dim=-1).sort(dim=-1).values
    padded = mirror(x, width // 2, width // 2)
    half = (width * width) / 2
    result = grid[..., -1, None, None].expand_as(x).clone()
    before, before_count = grid[..., 0, None, None], torch.zeros_like(x)
    for k in range(grid.shape[-1]):
        level = grid[..., k, None, None]
        # int16 holds the count of a window up to 181 pixels wide and moves half the memory of float32.
        count = box_sum((padded <= level).to(torch.int16 if width < 182 else torch.int32), width).to(x.dtype)
        passes = (before_count < half) & (count >= half)
        part = (half - before_count) / (count - before_count).clamp_min(1)
        result = torch.where(passes, before + part * (level - before), result)
        before, before_count = level, count
    return result


class Bilateral(Smoother):
    """The bilateral filter, a mean of the neighbours that are near in space and alike in value,

    `D(x, sigma)_p = sum_t w x_{p+t} / sum_t w`,  `w = exp(-|t|^2 / (2 s^2) - |x_p - x_{p+t}|^2 / (2 h^2))`

    (Tomasi and Manduchi 1998, eq. 5 and 7), with |.| over the channels, the tonal width `h = 3 sigma (1 + 10 sigma^2)`
    in units of the image, and the spatial width s in pixels following sigma. The window reaches 2.5 s.

    The tonal width was found once on the images of the fit: near 3 sigma up to 0.1, and so wide at strong noise, where
    single pixels say nothing about edges, that the filter turns into a Gaussian blur.
    """

    name = "bilateral"
    family = "bilateral"

    def smooth(self, x: Tensor, strength: Tensor, sigma: Tensor) -> Tensor:
        # Members of equal sigma have equal strength: one window for all of them.
        return by_level(lambda members, level: self._at(members, level, strength, sigma), x, sigma)

    def _at(self, x: Tensor, level: Tensor, strength: Tensor, sigma: Tensor) -> Tensor:
        spatial = float(strength[(sigma == level).nonzero()[0, 0]])
        tonal = 3 * float(level) * (1 + 10 * float(level) ** 2)
        return bilateral(x, spatial, tonal, math.ceil(2.5 * spatial))


def bilateral(x: Tensor, spatial: float, tonal: float, radius: int) -> Tensor:
    """The bilateral filter of one spatial width (pixels) and one tonal width, over (2 radius + 1)^2 pixels."""
    padded = mirror(x, radius, radius)
    weight, total = torch.ones_like(x[:, :1]), x
    for row in range(radius + 1):
        # One row of shifts is recomputed in the backward pass: storing all of them would take gigabytes.
        if x.requires_grad and torch.is_grad_enabled():
            more = checkpoint(_shifts, padded, row, radius, spatial, tonal, x.shape[-2:], use_reentrant=False)
        else:
            more = _shifts(padded, row, radius, spatial, tonal, x.shape[-2:])
        weight, total = weight + more[0], total + more[1]
    return total / weight


def _shifts(
    padded: Tensor, row: int, radius: int, spatial: float, tonal: float, size: torch.Size
) -> tuple[Tensor, Tensor]:
    """Weights and weighted values of the shifts (row, .) and their opposites, which share one weight map."""
    height, width = size
    weight = padded.new_zeros(len(padded), 1, height, width)
    total = padded.new_zeros(len(padded), padded.shape[1], height, width)
    for column in range(-radius if row else 1, radius + 1):
        # Domain: every p for which p or p + t lies in the image.
        top, left = radius - row, radius - max(column, 0)
        tall, wide = height + row, width + abs(column)
        here = padded[..., top : top + tall, left : left + wide]
        there = padded[..., top + row : top + row + tall, left + column : left + column + wide]
        distance = (here - there).square().sum(dim=1, keepdim=True)
        near = -(row * row + column * column) / (2 * spatial * spatial)
        w = (near - distance / (2 * tonal * tonal)).exp()
        for top, left, values in (
            (row, max(column, 0), there),  # p in the image, looking at p + t
            (0, max(-column, 0), here),  # p + t in the image, looking back at p
        ):
            part = w[..., top : top + height, left : left + width]
            weight += part
            total.addcmul_(part, values[..., top : top + height, left : left + width])
    return weight, total
