"""Blur: convolution with a point spread function, under five boundary conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .base import LinearOperator, as_constant, as_shape
from .fourier import CircularConvolution, transfer_function

__all__ = ["Blur"]

BOUNDARIES = ("circular", "reflect", "replicate", "zero", "valid")


def as_psf(kernel: Any, height: int, width: int) -> Tensor:
    """A float64 copy of a PSF, (kh, kw) or one per member (m, kh, kw), refused where it cannot blur this image."""
    psf = as_constant(kernel, "The PSF")
    if psf.ndim not in (2, 3) or psf.numel() == 0:
        raise ValueError(
            f"The PSF has the shape {tuple(psf.shape)}, expected (height, width), or (members, height, width) for one "
            "per member: reshape it."
        )
    kh, kw = psf.shape[-2:]
    if kh > height or kw > width:
        raise ValueError(
            f"The PSF of {kh} x {kw} pixels is larger than the image of {height} x {width} pixels: crop it, or restore "
            "a larger image."
        )
    total = float(psf.sum((-2, -1)).min())
    if total <= 0:
        raise ValueError(
            f"The PSF sums to {total:g}, expected a positive sum: pass intensities, and 1 to keep brightness."
        )
    return psf[0] if psf.ndim == 3 and psf.shape[0] == 1 else psf


@overload
def Blur(kernel: Any, in_shape: Sequence[int], boundary: Literal["circular"] = "circular") -> CircularBlur: ...
@overload
def Blur(kernel: Any, in_shape: Sequence[int], boundary: str) -> LinearOperator: ...
def Blur(kernel: Any, in_shape: Sequence[int], boundary: str = "circular") -> LinearOperator:
    """A x = k * x, the convolution of every channel with a PSF: (A x)[i] = sum_j k[j] x[i - j + c], c = size // 2.

    A convolution, so the PSF is what a bright point turns into (not its mirror image), and the point stays at the
    PSF's pixel (kh // 2, kw // 2). The PSF is used as it is: divide it by its sum to keep the brightness, as the
    makers and `load_psf` do. With the circular boundary the operator is `Spectral`; every other boundary is what an
    image outside the frame is taken to be, with an exact adjoint.

    Args:
        kernel: PSF, (kh, kw) of any size up to the image's, or (m, kh, kw) for one PSF per member.
        in_shape: (C, H, W).
        boundary: "circular"; "reflect" (mirrored about the border pixel), "replicate" (border pixel repeated),
            "zero"; or "valid": only pixels whose whole neighbourhood is in the frame, (C, H - kh + 1, W - kw + 1).

    Returns:
        A Spectral operator for the circular boundary, else a LinearOperator.

    Raises:
        ValueError: a PSF that is not finite, larger than the image or without a positive sum; an unknown boundary.

    >>> point = torch.zeros(1, 1, 1, 5)
    >>> point[..., 2] = 1.0
    >>> Blur(torch.tensor([[0.5, 0.3, 0.2]]), (1, 1, 5)) @ point
    tensor([[[[0.0000, 0.5000, 0.3000, 0.2000, 0.0000]]]])
    >>> Blur(torch.ones(3, 3) / 9, (3, 8, 8), boundary="valid").out_shape
    (3, 6, 6)
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"Blur got boundary={boundary!r}, expected one of {', '.join(BOUNDARIES)}: pass one of them.")
    return CircularBlur(kernel, in_shape) if boundary == "circular" else PaddedBlur(kernel, in_shape, boundary)


class CircularBlur(CircularConvolution):
    """Blur of an image that continues periodically."""

    boundary = "circular"

    def __init__(self, kernel: Any, in_shape: Sequence[int]) -> None:
        shape = as_shape(in_shape, "Blur", axes=3)
        psf = as_psf(kernel, *shape[1:])
        super().__init__(transfer_function(psf, *shape[1:]), shape)
        self._keep("kernel", psf, self.batch is not None)

    @property
    def kernel(self) -> Tensor:
        """The PSF in float64, (kh, kw) or (m, kh, kw)."""
        return self._master("kernel")


class PaddedBlur(LinearOperator):
    """Blur of an image that is extended past its frame (or not at all), computed exactly by FFTs of the padded size."""

    def __init__(self, kernel: Any, in_shape: Sequence[int], boundary: str) -> None:
        channels, height, width = as_shape(in_shape, "Blur", axes=3)
        psf = as_psf(kernel, height, width)
        kh, kw = psf.shape[-2:]
        valid = boundary == "valid"
        out_shape = (channels, height - kh + 1, width - kw + 1) if valid else (channels, height, width)
        super().__init__((channels, height, width), out_shape, batch=psf.shape[0] if psf.ndim == 3 else None)
        self.boundary = boundary
        # (before, after) of each axis: the PSF's centre k // 2 leaves k - 1 - k // 2 pixels before the frame.
        self._pads = [(0, 0) if valid else (k - 1 - k // 2, k // 2) for k in (kh, kw)]
        self._corner = (kh - 1, kw - 1)
        padded = [size + sum(pad) for size, pad in zip((height, width), self._pads, strict=True)]
        self._fft_size = tuple(fast_size(size) for size in padded)
        self._padded = tuple(padded)
        members = self.batch is not None
        self._keep("kernel", psf, members)
        self._keep("half", torch.fft.rfft2(psf, s=self._fft_size).unsqueeze(-3), members)

    @property
    def kernel(self) -> Tensor:
        """The PSF in float64, (kh, kw) or (m, kh, kw)."""
        return self._master("kernel")

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = self._pads
        if self.boundary in ("reflect", "replicate"):
            x = torch.nn.functional.pad(x, (left, right, top, bottom), mode=self.boundary)
        elif self.boundary == "zero":
            x = torch.nn.functional.pad(x, (left, right, top, bottom))
        # The first k - 1 rows and columns of the circular product are contaminated by its wrap; they are not used.
        spectrum = torch.fft.rfft2(x, s=self._fft_size) * self._constant("half", x)
        (row, column), (_, height, width) = self._corner, self.out_shape
        full = torch.fft.irfft2(spectrum, s=self._fft_size)
        return full[..., row : row + height, column : column + width].contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        (row, column), (_, height, width) = self._corner, self.out_shape
        rows, columns = self._fft_size
        y = torch.nn.functional.pad(y, (column, columns - column - width, row, rows - row - height))
        spectrum = torch.fft.rfft2(y) * self._constant("half", y).conj()
        g = torch.fft.irfft2(spectrum, s=self._fft_size)[..., : self._padded[0], : self._padded[1]]
        for axis, (before, after) in zip((-2, -1), self._pads, strict=True):
            g = unpad(g, axis, before, after, self.boundary)
        return g.contiguous()


def unpad(g: Tensor, axis: int, before: int, after: int, boundary: str) -> Tensor:
    """Adjoint of padding one axis: what lies past the frame is added to the pixels it was copied from."""
    size = g.shape[axis] - before - after
    core = g.narrow(axis, before, size)
    if boundary not in ("reflect", "replicate") or before + after == 0:
        return core
    core = core.clone()
    head, tail = g.narrow(axis, 0, before), g.narrow(axis, before + size, after)
    if boundary == "replicate":
        core.narrow(axis, 0, 1).add_(head.sum(axis, keepdim=True))
        core.narrow(axis, size - 1, 1).add_(tail.sum(axis, keepdim=True))
    else:
        core.narrow(axis, 1, before).add_(head.flip(axis))
        core.narrow(axis, size - 1 - after, after).add_(tail.flip(axis))
    return core


def fast_size(size: int) -> int:
    """The smallest length >= size without prime factors above 7, for which FFTs are fast."""
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
