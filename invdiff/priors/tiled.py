"""Denoising a large image in tiles, with the result of the whole image and the memory of one tile.

A network without statistics over the image decides a pixel by the pixels within its receptive radius r. The image is
divided into rectangles; the denoiser reads each with `overlap` more pixels on every side that is not the image's own
border, and what it says of the rectangle is kept. With overlap >= r that is what it says of the whole image. With less,
neighbours are blended across their common edge by windows w_k that sum to 1,

    D(x, sigma) = sum_k w_k D(x_k, sigma),    sum_k w_k = 1,

inside every single call, so that a solver sees one denoiser of the whole image and its data step stays global.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .base import Prior
from .channels import GrayThroughColour

__all__ = ["LARGE", "Tiled", "in_tiles"]

# Pixels of an image from which `restore` takes tiles by itself.
LARGE = 2**20

# The largest side at which the feature maps of the shipped prior stay below 32 MiB. Above, glibc takes fresh pages for
# every one of them, and a pixel costs nearly twice as much processor time.
TILE = 704


class Tiled(Prior):
    """A prior that takes images larger than a tile in overlapping tiles, blended inside every call.

    Tiles begin at multiples of the prior's stride and reach to the image's own borders, where they are padded as the
    whole image is. Each member goes through the prior alone, so that its bits do not depend on the others. Autograd
    runs a tile again when its gradient is wanted, and so never holds the activations of two.

    Args:
        prior: a prior that decides a pixel by its neighbourhood.
        tile: largest side of a tile in pixels; rounded down to a multiple of the prior's stride. Where left out 704,
            or four times the overlap where that is more.
        overlap: pixels that a tile reads beyond those it decides; rounded up to a multiple of the prior's stride. Where
            left out the prior's receptive radius, which changes nothing but rounding (RMS 1e-8 in float32, 2e-4 in
            bfloat16). Of the 136 pixels of the shipped prior 96 keep a call within RMS 4e-4 of the untiled one at any
            sigma, 64 within 3e-3; a run of DDRM stays within 5e-4 even with 32 (docs/large.md).

    Raises:
        TypeError: `prior` is no Prior, or tile or overlap no whole number.
        ValueError: a tile too small for its overlap, no overlap where the reach of the prior is not known, or a prior
            that cannot be tiled.

    >>> from invdiff.priors import load
    >>> tiled = Tiled(load("natural"), tile=512)
    >>> tiled.tile, tiled.overlap
    (512, 136)
    """

    def __init__(self, prior: Prior, tile: int | None = None, overlap: int | None = None) -> None:
        if not isinstance(prior, Prior):
            raise TypeError(f"Tiled takes a prior, got {type(prior).__name__}: make one with priors.load or as_prior.")
        if isinstance(prior, Tiled):
            raise ValueError(f"{prior.name} is in tiles already: give the prior that it was made of, `prior.prior`.")
        if isinstance(prior, GrayThroughColour):
            raise ValueError(
                f"{prior.name} adds a pattern of the image's size, which tiles would cut: tile the colour prior and "
                f"adapt that, priors.match_channels(Tiled(prior), 1)."
            )
        stride, radius = prior.stride, prior.receptive_radius
        if overlap is None and radius is None:
            raise ValueError(
                f"How far {prior.name} looks is not known: give Tiled an overlap, in pixels, beyond which a pixel of "
                f"the image no longer matters to it."
            )
        wanted = _whole(overlap if overlap is not None else radius, "overlap", least=0)
        self.overlap = -(-wanted // stride) * stride
        side = _whole(max(TILE, 4 * self.overlap) if tile is None else tile, "tile", least=1)
        self.tile = side // stride * stride
        if self.tile <= 2 * self.overlap:
            raise ValueError(
                f"tile is {side} pixels, which an overlap of {self.overlap} on both sides uses up: expected "
                f"{2 * self.overlap + stride} or more, or a smaller overlap."
            )
        self.prior = prior
        self.name = f"{prior.name} in tiles"
        self.channels, self.sigma_range = prior.channels, prior.sigma_range
        self.differentiable, self.jacobian_limit = prior.differentiable, prior.jacobian_limit

    @property
    def receptive_radius(self) -> int | None:
        """That of the prior in the tiles."""
        return self.prior.receptive_radius

    @property
    def stride(self) -> int:
        """That of the prior in the tiles."""
        return self.prior.stride

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if max(x.shape[-2:]) <= self.tile:
            return self.prior(x, sigma)
        rows, columns = (self._parts(length, x) for length in x.shape[-2:])
        recompute = torch.is_grad_enabled() and x.requires_grad
        out = torch.zeros_like(x)
        for k, row, column in itertools.product(range(len(x)), rows, columns):
            piece, level = x[k : k + 1, :, row.read, column.read], sigma[k : k + 1]
            if recompute:
                clean = checkpoint(self.prior, piece, level, use_reentrant=False, preserve_rng_state=False)
            else:
                clean = self.prior(piece, level)
            window = row.window[:, None] * column.window
            out[k : k + 1, :, row.kept, column.kept] += window * clean[..., row.inside, column.inside]
        return out

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str | None = None,
        compile: bool | None = None,
    ) -> Prior:
        moved = self.prior.to(device, dtype, precision=precision, compile=compile)
        return self if moved is self.prior else Tiled(moved, self.tile, self.overlap)

    def _parts(self, length: int, like: Tensor) -> list[_Part]:
        """The tiles along an axis: as many as are needed, each deciding about as much as the others."""
        stride, overlap, radius = self.stride, self.overlap, self.receptive_radius
        if length <= self.tile:
            return [_Part(slice(0, length), slice(0, length), slice(0, length), like.new_ones(length))]
        # The tiles at both ends need no overlap beyond the image: what is left is divided evenly.
        inner = length - 2 * overlap
        share = math.ceil(inner / math.ceil(inner / (self.tile - 2 * overlap)))
        step = -(-share // stride) * stride
        cuts = [0, *range(overlap + step, length - overlap, step), length]
        # Tiles that see all that matters agree where they meet.
        blend = 0 if radius is not None and overlap >= radius else min(overlap // 8, step // 2)
        rise = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(2 * blend, device=like.device) + 0.5) / (2 * blend or 1))
        parts = []
        for first, last in itertools.pairwise(cuts):
            head, tail = (0 if first == 0 else blend), (0 if last == length else blend)
            begin, end = (0 if first == 0 else first - overlap), min(last + overlap, length)
            window = like.new_ones(last - first + head + tail)
            if head:
                window[: 2 * head] = rise
            if tail:
                window[len(window) - 2 * tail :] = 1 - rise
            kept = slice(first - head, last + tail)
            parts.append(_Part(slice(begin, end), kept, slice(kept.start - begin, kept.stop - begin), window))
        return parts


def in_tiles(prior: Prior, tile: int | str, in_shape: Sequence[int]) -> Prior:
    """The prior for images of a shape: itself, or in tiles.

    Args:
        prior: any prior.
        tile: the largest side of a tile in pixels; "off"; or "auto" for tiles where an image has more than `LARGE`
            pixels, a million, and the prior declares its receptive radius.
        in_shape: (C, H, W).

    Raises:
        ValueError: another word, or what `Tiled` refuses.
    """
    if isinstance(tile, str):
        if tile not in ("auto", "off"):
            raise ValueError(f"tile is {tile!r}: expected a whole number of pixels, 'auto' or 'off'.")
        large = len(in_shape) == 3 and in_shape[1] * in_shape[2] > LARGE
        wanted = tile == "auto" and large and prior.receptive_radius is not None
        return Tiled(prior) if wanted and not isinstance(prior, Tiled) else prior
    return Tiled(prior, tile)


@dataclass(frozen=True)
class _Part:
    """One tile along one axis: the pixels that it reads and keeps, those among what it read, and their weights."""

    read: slice
    kept: slice
    inside: slice
    window: Tensor


def _whole(value: object, name: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {value!r}: expected a whole number of pixels.")
    if value < least:
        raise ValueError(f"{name} is {value}: expected {least} or more, in pixels.")
    return int(value)
