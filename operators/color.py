"""Channels mixed pixel by pixel, alone or together with a map of the pixels that is the same on every channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .base import as_constant, as_shape, common_batch
from .spectral import Spectral

__all__ = ["Grayscale"]

WEIGHTS = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722)}


class ChannelMix(Spectral):
    """A x = M x on the channels of every pixel, M of shape (out channels, channels); the SVD is M's.

    Args:
        matrix: M, real and not zero.
        in_shape: (C, H, W).
    """

    def __init__(self, matrix: Any, in_shape: Sequence[int]) -> None:
        channels, height, width = as_shape(in_shape, type(self).__name__, axes=3)
        m = as_constant(matrix, "The channel matrix")
        super().__init__((channels, height, width), (m.shape[0], height, width))
        u, s, vt = torch.linalg.svd(m, full_matrices=False)
        # A mean of channels should have positive coordinates: LAPACK may return both factors with the other sign.
        sign = torch.where(u.sum(0) < 0, -1.0, 1.0).to(u)
        self._keep("matrix", m)
        self._keep("u", u * sign)
        self._keep("vt", vt * sign[:, None])
        self._keep("singular", torch.where(s > 1e-14 * s.max(), s, 0.0)[:, None, None])
        self.rank: int = s.numel()

    @property
    def singular(self) -> Tensor:
        return self._master("singular")

    def forward(self, x: Tensor) -> Tensor:
        return mix(self._constant("matrix", x), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return mix(self._constant("matrix", y).mT, y)

    def vt(self, x: Tensor) -> Tensor:
        return mix(self._constant("vt", x), x)

    def v(self, z: Tensor) -> Tensor:
        return mix(self._constant("vt", z).mT, z)

    def u(self, w: Tensor) -> Tensor:
        return mix(self._constant("u", w), w)

    def ut(self, y: Tensor) -> Tensor:
        return mix(self._constant("u", y).mT, y)


def mix(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (o, C) on the channels of x (b, C, H, W), real or complex."""
    if matrix.shape[1] == 1:
        return matrix[:, 0, None, None] * x
    if matrix.shape[0] == 1:
        return (matrix[0, :, None, None] * x).sum(1, keepdim=True)
    return torch.einsum("oc,bchw->bohw", matrix.to(x.dtype), x)


class Grayscale(ChannelMix):
    """A x = sum over channels of w_c x_c: the gray image of a colour image; s = |w|.

    Args:
        in_shape: (C, H, W).
        weights: "bt601" (0.299, 0.587, 0.114), "bt709" (0.2126, 0.7152, 0.0722), or one number per channel.

    Raises:
        ValueError: an unknown name, another number of weights than channels, or weights that are all zero.

    >>> Grayscale((3, 1, 1)) @ torch.tensor([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1)
    tensor([[[[0.5925]]]])
    """

    def __init__(self, in_shape: Sequence[int], weights: str | Sequence[float] | Tensor = "bt601") -> None:
        channels = as_shape(in_shape, "Grayscale", axes=3)[0]
        if isinstance(weights, str):
            if weights not in WEIGHTS:
                raise ValueError(
                    f"Grayscale got weights={weights!r}, expected {' or '.join(WEIGHTS)}, or one number per channel: "
                    "pass one of them."
                )
            weights = WEIGHTS[weights]
        values = as_constant(weights, "Grayscale's weights")
        if tuple(values.shape) != (channels,):
            raise ValueError(
                f"Grayscale got weights of shape {tuple(values.shape)} for {channels} channels, expected one number "
                "per channel: pass weights=[...] of that length."
            )
        if not bool((values != 0).any()):
            raise ValueError(
                "Grayscale got weights that are all zero, expected at least one other: pass the channels' shares."
            )
        super().__init__(values[None], in_shape)


class ChannelSpatial(Spectral):
    """M (x) S: a channel mixture and a map of the pixels that is the same on every channel, in either order.

    The SVD is the Kronecker product of theirs: V^H x = V_S^H (V_M^H x), s = s_M s_S.

    Args:
        mixture: the channel map.
        spatial: the spatial map, for any number of channels.
    """

    def __init__(self, mixture: ChannelMix, spatial: Spectral) -> None:
        narrow = spatial.with_channels(mixture.rank)
        if narrow is None:
            raise ValueError(f"{spatial!r} is not the same on every channel: compose it as a LinearOperator.")
        in_shape = (mixture.in_shape[0], *spatial.in_shape[1:])
        out_shape = (mixture.out_shape[0], *spatial.out_shape[1:])
        super().__init__(in_shape, out_shape, batch=common_batch([mixture, spatial]), children=(mixture, narrow))

    @property
    def mixture(self) -> ChannelMix:
        return cast(ChannelMix, self._children[0])

    @property
    def spatial(self) -> Spectral:
        return cast(Spectral, self._children[1])

    @property
    def singular(self) -> Tensor:
        return self.mixture.singular * self.spatial.singular

    def vt(self, x: Tensor) -> Tensor:
        return self.spatial.vt(self.mixture.vt(x))

    def v(self, z: Tensor) -> Tensor:
        return self.mixture.v(self.spatial.v(z))

    def ut(self, y: Tensor) -> Tensor:
        return self.spatial.ut(self.mixture.ut(y))

    def u(self, w: Tensor) -> Tensor:
        return self.mixture.u(self.spatial.u(w))

    # Through the r = rank mixed channels, the fewest that the spatial map can be given.
    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixture._constant("singular", x) * self.mixture.vt(x)
        return self.mixture.u(self.spatial.forward(mixed))

    def adjoint(self, y: Tensor) -> Tensor:
        mixed = self.mixture._constant("singular", y) * self.mixture.ut(y)
        return self.mixture.v(self.spatial.adjoint(mixed))
