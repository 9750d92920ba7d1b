"""What else to ask of draws than their pixels: means of patches, wavelet bands, and distances to a reference point.

A functional takes images (b, C, H, W) to (b, ...), as many values of each as it likes. A posterior that is right is
calibrated for all of them, and pixels alone do not show whether neighbours vary together as they should.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = ["Functional", "PatchMeans", "WaveletBand", "WaveletEnergy", "default_functionals", "distances"]

Functional = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PatchMeans:
    """The means of the size x size patches that tile an image, (b, C, H // size, W // size).

    Args:
        size: side of a patch in pixels; what is left over at the right and at the bottom is cut off.

    Raises:
        ValueError: when called, if the images are smaller than a patch.

    >>> PatchMeans(2)(torch.arange(8.0).reshape(1, 1, 2, 4)).tolist()
    [[[[2.5, 4.5]]]]
    """

    size: int = 8

    def __call__(self, x: Tensor) -> Tensor:
        _check(x, self.size, "Patch means")
        return avg_pool2d(x, self.size)


@dataclass(frozen=True)
class WaveletBand:
    """The horizontal, vertical and diagonal detail of one level of the orthonormal Haar transform, (b, 3 C, h, w).

    Haar 1910. Level j compares neighbouring squares of 2^(j - 1) pixels a side, and h = H // 2^j.

    Args:
        level: from 1, the finest, on.

    Raises:
        ValueError: when called, if the images have no such level.

    >>> WaveletBand(1)(torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])).flatten().tolist()
    [0.5, 0.5, 0.5]
    """

    level: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        _check(x, 2**self.level, f"Level {self.level} of the wavelet transform")
        height, width = (side // 2**self.level * 2 for side in x.shape[-2:])
        half = 2 ** (self.level - 1)
        squares = (x if half == 1 else half * avg_pool2d(x, half))[..., :height, :width]
        left, right = squares[..., 0::2], squares[..., 1::2]
        across, along = left - right, left + right
        details = [along[..., 0::2, :] - along[..., 1::2, :]]
        details += [across[..., 0::2, :] + across[..., 1::2, :], across[..., 0::2, :] - across[..., 1::2, :]]
        return torch.cat(details, 1) / 2


@dataclass(frozen=True)
class WaveletEnergy:
    """The root mean square of each channel's `WaveletBand`, (b, C): how much detail of that size an image has.

    Draws that are too smooth or too noisy show here at once, even where each pixel's interval is right.

    Args:
        level: from 1, the finest, on.

    Raises:
        ValueError: when called, if the images have no such level.
    """

    level: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        band = WaveletBand(self.level)(x)
        return band.unflatten(1, (3, x.shape[1])).square().mean((1, 3, 4)).sqrt()


def default_functionals(in_shape: Sequence[int]) -> dict[str, Functional]:
    """Patch means and the energies of three wavelet bands, as far as images of this shape have them.

    >>> list(default_functionals((3, 16, 16)))
    ['means of 8x8 patches', 'wavelet energy 1', 'wavelet energy 2', 'wavelet energy 3']
    """
    if len(in_shape) != 3:
        return {}
    side = min(in_shape[1:])
    size = 8 if side >= 16 else 2
    out: dict[str, Functional] = {}
    if side >= size:
        out[f"means of {size}x{size} patches"] = PatchMeans(size)
    return out | {f"wavelet energy {level}": WaveletEnergy(level) for level in (1, 2, 3) if side >= 2 ** (level + 1)}


def distances(images: Tensor, reference: Tensor) -> Tensor:
    """The Euclidean distance of each of (b, values) from a reference point (values,), (b, 1) in float64."""
    point = reference.detach().cpu().double()
    # An image at a time: all of them in float64 would double the memory of an ensemble twice over.
    return torch.stack([(image.detach().cpu().double() - point).norm() for image in images])[:, None]


def _check(x: Tensor, side: int, what: str) -> None:
    if x.ndim != 4 or min(x.shape[-2:]) < side:
        raise ValueError(f"{what} needs images (b, C, H, W) of at least {side} x {side}, got {tuple(x.shape)}.")
