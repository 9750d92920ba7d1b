"""Linear maps whose singular value decomposition is known in closed form."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from .base import LinearOperator

__all__ = ["Spectral"]


class Spectral(LinearOperator):
    """A linear map whose singular value decomposition A = U diag(s) V^H is known in closed form, never stored densely.

    A subclass supplies singular, vt, v, ut and u, with

        u(s * vt(x)) = A x,   v(s * ut(y)) = A^T y,   <vt(x), z> = <x, v(z)>,   <ut(y), w> = <y, u(w)>,
        vt(v(z)) = z for z in the range of vt,   ut(u(w)) = w for w in the range of ut.

    vt may be thin (fewer coordinates than pixels): x - v(vt(x)) is then the rest of the null space. Coordinates may
    be complex (FFT); inner products are real parts, and noise is drawn in image space and passed through vt or ut.

    """

    @property
    def complete(self) -> bool:
        """Whether v(vt(x)) = x for every x: nothing is lost in coordinates."""
        return False

    @property
    @abstractmethod
    def singular(self) -> Tensor:
        """Singular values s >= 0 in float64, broadcastable against vt(x); with a batch axis where members differ."""

    @abstractmethod
    def vt(self, x: Tensor) -> Tensor:
        """V^H x: coordinates of an image, (b, *in_shape) -> (b, ...)."""

    @abstractmethod
    def v(self, z: Tensor) -> Tensor:
        """V z: the image of coordinates, the adjoint of vt."""

    @abstractmethod
    def ut(self, y: Tensor) -> Tensor:
        """U^H y: coordinates of a measurement, (b, *out_shape) -> (b, ...), of vt's shape."""

    @abstractmethod
    def u(self, w: Tensor) -> Tensor:
        """U w: the measurement of coordinates, the adjoint of ut."""

    def with_channels(self, channels: int) -> Spectral | None:
        """The same spatial map on images of another number of channels; None where channels differ or are mixed."""
        return None

    def singular_as(self, like: Tensor) -> Tensor:
        """The singular values in the precision and on the device of like (real or complex), cast once and kept."""
        singular = self.singular
        dtype = like.dtype.to_real()
        if singular.dtype == dtype and singular.device == like.device:
            return singular
        return self._cached(("s", dtype, like.device), lambda: singular.to(like.device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.u(self.singular_as(x) * self.vt(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.v(self.singular_as(y) * self.ut(y))

    def pinv(self, y: Tensor, rcond: float | None = None) -> Tensor:
        """Moore-Penrose inverse V diag(1/s) U^H y, (b, *out_shape) -> (b, *in_shape).

        Args:
            y: (b, *out_shape).
            rcond: singular values up to rcond times the largest (of each member) count as zero; ten roundings of
                y's dtype when absent.
        """
        coordinates = self.ut(y)
        return self.v(self.inverse_singular(coordinates, rcond) * coordinates)

    def damped_pinv(self, y: Tensor, damping: float | Tensor) -> Tensor:
        """V diag(s / (s^2 + d)) U^H y = argmin_x |A x - y|^2 + d |x|^2; d = 0 gives pinv.

        The proximal step follows from it: argmin |A x - y|^2 / (2 sigma^2) + rho/2 |x - z|^2 is
        z + damped_pinv(y - A z, rho sigma^2), thin vt or not.

        Args:
            y: (b, *out_shape).
            damping: d >= 0, a number or one per member (b,).
        """
        coordinates = self.ut(y)
        return self.v(self._damped_weight(coordinates, damping) * coordinates)

    def damped_step(self, z: Tensor, coordinates: Tensor, damping: float | Tensor) -> Tensor:
        """z + V diag(s / (s^2 + d)) (U^H y - s V^H z) = argmin_x |A x - y|^2 + d |x - z|^2.

        What `z + damped_pinv(y - A z, d)` is, without going to the measurement and back.

        Args:
            z: (b, *in_shape).
            coordinates: ut(y), of b members or one.
            damping: d >= 0, a number or one per member (b,).
        """
        gap = coordinates - self.singular_as(coordinates) * self.vt(z)
        return z + self.v(self._damped_weight(gap, damping) * gap)

    def largest(self, like: Tensor) -> Tensor:
        """The largest singular value of each member, (1 or m, 1, ..., 1), to go with coordinates like, (b, ...)."""
        singular = self.singular.to(like.device)
        members = self.batch is not None and singular.ndim == like.ndim
        key = ("largest", members, like.device)
        top = self._cached(key, lambda: singular.flatten(1).amax(1) if members else singular.max())
        return top.reshape(-1, *[1] * (like.ndim - 1))

    def inverse_singular(self, like: Tensor, rcond: float | None = None) -> Tensor:
        """1 / s to go with coordinates like, (b, ...), and 0 where s counts as zero (see `pinv`)."""
        relative = 10 * torch.finfo(like.dtype).eps if rcond is None else rcond

        def build() -> Tensor:
            singular = self.singular.to(like.device)
            kept = singular > relative * self.largest(like)
            weight = torch.where(kept, 1 / torch.where(kept, singular, 1.0), 0.0)
            return weight.to(like.device, like.dtype.to_real())

        return build() if rcond is not None else self._cached(("1/s", like.dtype.to_real(), like.device), build)

    def _damped_weight(self, like: Tensor, damping: float | Tensor) -> Tensor:
        if not isinstance(damping, Tensor):
            if not (math.isfinite(damping) and damping >= 0):
                raise ValueError(
                    f"damped_pinv got damping {damping}, expected a finite number >= 0: pass rho sigma**2."
                )
            if damping == 0:
                return self.inverse_singular(like)
        singular = self.singular_as(like)
        d = torch.as_tensor(damping, device=like.device, dtype=like.dtype.to_real())
        d = d.reshape(-1, *[1] * (like.ndim - 1)) if d.ndim == 1 else d
        square = self._cached(("s^2", singular.dtype, like.device), singular.square)
        # A number above 0 may be 0 in this precision.
        if bool((d > 0).all()):
            return singular / (square + d)
        total = square + d
        return torch.where(d > 0, singular / torch.where(total > 0, total, 1.0), self.inverse_singular(like))
