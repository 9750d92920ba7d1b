"""Downsampling by an integer factor: box average, antialiased bicubic, or any PSF and decimation."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .base import as_shape
from .blur import as_psf
from .fourier import ROUNDING, CircularDecimation, transfer_function
from .spectral import Spectral

__all__ = ["Downsample"]


def check_factor(factor: int, in_shape: Sequence[int]) -> tuple[int, int, int]:
    """in_shape as (C, H, W), refused where the factor is not a positive integer that divides H and W."""
    channels, height, width = as_shape(in_shape, "Downsample", axes=3)
    if isinstance(factor, bool) or not isinstance(factor, Integral) or factor < 1:
        raise ValueError(
            f"Downsample got the factor {factor!r}, expected an integer of at least 1: pass for example 4."
        )
    if height % factor or width % factor:
        raise ValueError(
            f"Downsample by {factor} got an image of {height} x {width} pixels, expected sizes that {factor} divides: "
            f"crop it to {height - height % factor} x {width - width % factor} pixels."
        )
    return channels, height, width


def bicubic_weights(size: int, factor: int) -> Tensor:
    """The matrix (size // factor, size) of Pillow's antialiased bicubic reduction, in float64.

    Keys' cubic with a = -0.5 (Keys 1981, eq. 15), its support stretched by the factor, and the weights of each output
    pixel divided by their sum, so that borders are renormalised instead of padded.
    """
    centre = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor
    t = ((torch.arange(size, dtype=torch.float64) + 0.5)[None] - centre[:, None]).abs() / factor
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def Downsample(factor: int, in_shape: Sequence[int], kind: Any = "box") -> Spectral:
    """A x = the image at 1 / factor of its size; a `Spectral` operator in all three forms.

    "box" averages factor x factor pixels. "bicubic" has the weights of Pillow's antialiased resize on floats, borders
    included. A PSF convolves circularly (as `Blur` does) and keeps every factor-th pixel, beginning with the first.

    Args:
        factor: positive integer that divides H and W.
        in_shape: (C, H, W).
        kind: "box", "bicubic", or a PSF (kh, kw), or (m, kh, kw) for one per member.

    Raises:
        ValueError: a factor that does not divide the image's size, an unknown kind, a PSF that `Blur` refuses.

    >>> Downsample(2, (1, 2, 4)) @ torch.arange(8.0).reshape(1, 1, 2, 4)
    tensor([[[[2.5000, 4.5000]]]])
    """
    check_factor(factor, in_shape)
    factor = int(factor)
    if not isinstance(kind, str):
        return PsfDownsample(factor, in_shape, kind)
    if kind not in ("box", "bicubic"):
        raise ValueError(f"Downsample got kind={kind!r}, expected box, bicubic or a PSF: pass one of them.")
    return BoxDownsample(factor, in_shape) if kind == "box" else BicubicDownsample(factor, in_shape)


class PsfDownsample(CircularDecimation):
    """Circular convolution with a PSF, then every factor-th pixel."""

    def __init__(self, factor: int, in_shape: Sequence[int], psf: Any) -> None:
        shape = check_factor(factor, in_shape)
        kernel = as_psf(psf, *shape[1:])
        super().__init__(transfer_function(kernel, *shape[1:]), shape, factor)


class BoxDownsample(Spectral):
    """Average of factor x factor pixels: s = 1 / factor, V^H sums blocks and divides by factor, U = 1."""

    def __init__(self, factor: int, in_shape: Sequence[int]) -> None:
        channels, height, width = check_factor(factor, in_shape)
        super().__init__((channels, height, width), (channels, height // factor, width // factor))
        self.factor = factor
        self._keep("singular", torch.full((1, 1, 1), 1 / factor, dtype=torch.float64))

    @property
    def singular(self) -> Tensor:
        return self._master("singular")

    def with_channels(self, channels: int) -> Spectral:
        return BoxDownsample(self.factor, (channels, *self.in_shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = self.out_shape
        return x.reshape(-1, channels, height, self.factor, width, self.factor).mean((3, 5))

    def _spread(self, y: Tensor, weight: float) -> Tensor:
        channels, height, width = self.out_shape
        blocks = (weight * y).reshape(-1, channels, height, 1, width, 1)
        return blocks.expand(-1, -1, -1, self.factor, -1, self.factor).reshape(-1, *self.in_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._spread(y, 1 / self.factor**2)

    def vt(self, x: Tensor) -> Tensor:
        return self.forward(x) * self.factor

    def v(self, z: Tensor) -> Tensor:
        return self._spread(z, 1 / self.factor)

    # Copies, so that a caller who works in place on a result never writes into the tensor that went in.
    def ut(self, y: Tensor) -> Tensor:
        return y.clone()

    def u(self, w: Tensor) -> Tensor:
        return w.clone()


class BicubicDownsample(Spectral):
    """A x = R x C^T with a small matrix per axis; its SVD is the Kronecker product of theirs."""

    def __init__(self, factor: int, in_shape: Sequence[int]) -> None:
        channels, height, width = check_factor(factor, in_shape)
        super().__init__((channels, height, width), (channels, height // factor, width // factor))
        self.factor = factor
        for axis, size in (("row", height), ("column", width)):
            matrix = bicubic_weights(size, factor)
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            self._keep(axis, matrix)
            self._keep(f"{axis}_u", u)
            self._keep(f"{axis}_s", s)
            self._keep(f"{axis}_vt", vt)

    def _build(self, name: str) -> Tensor:
        singular = self._constants["row_s"][:, None] * self._constants["column_s"]
        return torch.where(singular > ROUNDING * singular.max(), singular, 0.0)[None]

    @property
    def singular(self) -> Tensor:
        return self._master("singular")

    def with_channels(self, channels: int) -> Spectral:
        return BicubicDownsample(self.factor, (channels, *self.in_shape[1:]))

    def _apply(self, x: Tensor, part: str, transposed: bool = False) -> Tensor:
        rows, columns = self._constant(f"row{part}", x), self._constant(f"column{part}", x)
        return rows.mT @ x @ columns if transposed else rows @ x @ columns.mT

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(x, "")

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(y, "", transposed=True)

    def vt(self, x: Tensor) -> Tensor:
        return self._apply(x, "_vt")

    def v(self, z: Tensor) -> Tensor:
        return self._apply(z, "_vt", transposed=True)

    def u(self, w: Tensor) -> Tensor:
        return self._apply(w, "_u")

    def ut(self, y: Tensor) -> Tensor:
        return self._apply(y, "_u", transposed=True)
