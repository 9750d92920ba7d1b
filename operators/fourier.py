"""Circular convolutions, alone or followed by decimation, diagonal in the Fourier domain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import common_batch
from .spectral import Spectral

__all__ = ["CircularConvolution", "CircularDecimation", "transfer_function"]

# A singular value below this share of the largest is the rounding of a zero.
ROUNDING = 1e-14


def transfer_function(kernel: Tensor, height: int, width: int) -> Tensor:
    """Half spectrum of a PSF with its centre at (kh // 2, kw // 2): (..., kh, kw) -> (..., 1, height, width // 2 + 1).

    Exactly Hermitian in the columns that hold both signs of a frequency, with values at rounding level set to zero,
    so that a frequency and its mirror image always have the same singular value.
    """
    kh, kw = kernel.shape[-2:]
    padded = torch.nn.functional.pad(kernel, (0, width - kw, 0, height - kh))
    half = torch.fft.rfft2(padded.roll((-(kh // 2), -(kw // 2)), dims=(-2, -1)))
    mirrored = half.flip(-2).roll(1, dims=-2).conj()
    paired = torch.zeros(half.shape[-1], dtype=torch.bool, device=half.device)
    paired[0] = True
    paired[-1] |= width % 2 == 0
    half = torch.where(paired, (half + mirrored) / 2, half)
    largest = half.abs().amax((-2, -1), keepdim=True)
    return torch.where(half.abs() > ROUNDING * largest, half, 0.0).unsqueeze(-3)


def full_spectrum(half: Tensor, width: int) -> Tensor:
    """Both halves of a Hermitian spectrum, (..., H, width // 2 + 1) -> (..., H, width)."""
    other = half[..., 1 : (width + 1) // 2].flip((-2, -1)).roll(1, dims=-2).conj()
    return torch.cat([half, other], dim=-1)


def _split_members(half: Tensor) -> tuple[Tensor, int | None]:
    if half.ndim == 4 and half.shape[0] == 1:
        half = half[0]
    return half, half.shape[0] if half.ndim == 4 else None


class CircularConvolution(Spectral):
    """A x = F^H (h * F x), the circular convolution with transfer function h; s = |h|, V = F^H, U = F^H diag(h / |h|).

    F is the orthonormal two-dimensional FFT of real images, so coordinates are complex: those of non-negative column
    frequencies, (C, H, W // 2 + 1), times sqrt(2) where they stand for a mirrored one too. Where h = 0 the phase is 1.

    Args:
        half: transfer function of non-negative column frequencies, (1, H, W // 2 + 1), complex128, as
            `transfer_function` gives it; (m, 1, H, W // 2 + 1) for a convolution per member.
        in_shape: (C, H, W).
    """

    @property
    def complete(self) -> bool:
        return True

    def __init__(self, half: Tensor, in_shape: Sequence[int]) -> None:
        half, batch = _split_members(half)
        super().__init__(in_shape, in_shape, batch=batch)
        self._keep("half", half, batch is not None)
        self._per_member |= {"singular", "phase"} if batch is not None else set()

    def _build(self, name: str) -> Tensor:
        half = self._constants["half"]
        size = half.abs()
        return size if name == "singular" else torch.where(size > 0, half / torch.where(size > 0, size, 1.0), 1.0)

    @property
    def singular(self) -> Tensor:
        return self._master("singular")

    def with_channels(self, channels: int) -> CircularConvolution:
        return CircularConvolution(self._constants["half"], (channels, *self.in_shape[1:]))

    def after_blur(self, blur: CircularConvolution) -> CircularConvolution:
        """This convolution after another one: the transfer functions multiply."""
        common_batch([self, blur])
        return CircularConvolution(self._constants["half"] * blur._constants["half"], self.in_shape)

    def _root(self, like: Tensor) -> Tensor:
        """sqrt(2) for the columns whose mirror images are left out, else 1, to go with images or coordinates."""

        def build() -> Tensor:
            width = self.in_shape[-1]
            root = torch.full((width // 2 + 1,), math.sqrt(2), dtype=like.dtype.to_real(), device=like.device)
            root[:1] = 1.0
            root[(width + 1) // 2 :] = 1.0
            return root

        return self._cached(("root", like.dtype.to_real(), like.device), build)

    def vt(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, norm="ortho") * self._root(x)

    def v(self, z: Tensor) -> Tensor:
        return torch.fft.irfft2(z / self._root(z), s=self.in_shape[-2:], norm="ortho")

    def ut(self, y: Tensor) -> Tensor:
        return self._constant("phase", y).conj() * self.vt(y)

    def u(self, w: Tensor) -> Tensor:
        return self.v(self._constant("phase", w) * w)

    # The weights of coordinates cancel: without them, and the phases, it is faster than through vt and u.
    def _filter(self, x: Tensor, half: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * half, s=self.in_shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self._constant("half", x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._constant("half", y).conj())

    def pinv(self, y: Tensor, rcond: float | None = None) -> Tensor:
        return self._back(y, self.inverse_singular(y, rcond))

    def damped_pinv(self, y: Tensor, damping: float | Tensor) -> Tensor:
        return self._back(y, self._damped_weight(y, damping))

    def _back(self, y: Tensor, weight: Tensor) -> Tensor:
        return self._filter(y, weight * self._constant("phase", y).conj())


class CircularDecimation(Spectral):
    """A x = every factor-th pixel of a circular convolution; an SVD by folding the spectrum.

    (F A x)_q = 1/f * sum over the f^2 aliases k of q of h_k (F x)_k, so that s_q = |h_aliases| / f, V^H folds with the
    unit vectors h_k / (f s_q), and U = F^H on the small grid. Where s_q = 0 the unit vector has equal entries.

    Args:
        half: transfer function on the large grid, as for `CircularConvolution`.
        in_shape: (C, H, W).
        factor: f, which divides H and W.
    """

    def __init__(self, half: Tensor, in_shape: Sequence[int], factor: int) -> None:
        half, batch = _split_members(half)
        channels, height, width = in_shape
        super().__init__(in_shape, (channels, height // factor, width // factor), batch=batch)
        self.factor = factor
        self._keep("half", half, batch is not None)
        self._per_member |= {"singular", "unit"} if batch is not None else set()

    def _build(self, name: str) -> Tensor:
        full = full_spectrum(self._constants["half"], self.in_shape[-1]) / self.factor
        singular = self._fold(full.abs() ** 2).sqrt()
        largest = singular.amax((-2, -1), keepdim=True)
        singular = torch.where(singular > ROUNDING * largest, singular, 0.0)
        if name == "singular":
            return singular
        size = self._unfold(singular)
        return torch.where(size > 0, full / torch.where(size > 0, size, 1.0), 1 / self.factor)

    def _fold(self, spectrum: Tensor) -> Tensor:
        """Sum over the aliases of each frequency of the small grid."""
        _, height, width = self.out_shape
        f = self.factor
        return spectrum.reshape(*spectrum.shape[:-2], f, height, f, width).sum((-4, -2))

    def _unfold(self, spectrum: Tensor) -> Tensor:
        return spectrum.repeat(*[1] * (spectrum.ndim - 2), self.factor, self.factor)

    @property
    def singular(self) -> Tensor:
        return self._master("singular")

    def with_channels(self, channels: int) -> CircularDecimation:
        return CircularDecimation(self._constants["half"], (channels, *self.in_shape[1:]), self.factor)

    def after_blur(self, blur: CircularConvolution) -> CircularDecimation:
        """This decimation of an image that another convolution blurred first: the transfer functions multiply."""
        common_batch([self, blur])
        return CircularDecimation(self._constants["half"] * blur._constants["half"], self.in_shape, self.factor)

    def vt(self, x: Tensor) -> Tensor:
        return self._fold(self._constant("unit", x) * torch.fft.fft2(x, norm="ortho"))

    def v(self, z: Tensor) -> Tensor:
        return torch.fft.ifft2(self._constant("unit", z).conj() * self._unfold(z), norm="ortho").real

    def ut(self, y: Tensor) -> Tensor:
        return torch.fft.fft2(y, norm="ortho")

    def u(self, w: Tensor) -> Tensor:
        return torch.fft.ifft2(w, norm="ortho").real

    def damped_step(self, z: Tensor, coordinates: Tensor, damping: float | Tensor) -> Tensor:
        # Through the measurement, as FFTs of real images take half the time of those of complex coordinates.
        gap = coordinates - self.ut(self.forward(z))
        return z + self._image(self._damped_weight(gap, damping) * gap)

    def _image(self, z: Tensor) -> Tensor:
        """V z of the coordinates of a real image, whose other half says nothing more."""
        columns = slice(0, self.in_shape[-1] // 2 + 1)
        half = self._constant("unit", z)[..., columns].conj() * self._unfold(z)[..., columns]
        return torch.fft.irfft2(half, s=self.in_shape[-2:], norm="ortho")

    def damped_pinv(self, y: Tensor, damping: float | Tensor) -> Tensor:
        coordinates = self.ut(y)
        return self._image(self._damped_weight(coordinates, damping) * coordinates)

    def forward(self, x: Tensor) -> Tensor:
        blurred = torch.fft.irfft2(torch.fft.rfft2(x) * self._constant("half", x), s=self.in_shape[-2:])
        # A copy: a view would keep the large image alive.
        return blurred[..., :: self.factor, :: self.factor].contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        spread = y.new_zeros(y.shape[0], *self.in_shape)
        spread[..., :: self.factor, :: self.factor] = y
        return torch.fft.irfft2(torch.fft.rfft2(spread) * self._constant("half", y).conj(), s=self.in_shape[-2:])
