"""The identity: denoising."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .spectral import Spectral

__all__ = ["Identity"]


class Identity(Spectral):
    """A x = x, the operator of denoising; s = 1.

    Args:
        in_shape: shape of one image, without the batch axis, any number of axes.

    Raises:
        ValueError: in_shape is not made of positive integers.

    >>> Identity((2,)) @ torch.tensor([[1.0, 2.0]])
    tensor([[1., 2.]])
    """

    @property
    def complete(self) -> bool:
        return True

    def __init__(self, in_shape: Sequence[int]) -> None:
        super().__init__(in_shape, in_shape)
        self._keep("singular", torch.ones([1] * len(self.in_shape), dtype=torch.float64))

    @property
    def singular(self) -> Tensor:
        return self._master("singular")

    def with_channels(self, channels: int) -> Spectral | None:
        return Identity((channels, *self.in_shape[1:])) if len(self.in_shape) == 3 else None

    # Copies, so that a caller who works in place on a result never writes into the tensor that went in.
    def vt(self, x: Tensor) -> Tensor:
        return x.clone()

    def v(self, z: Tensor) -> Tensor:
        return z.clone()

    def ut(self, y: Tensor) -> Tensor:
        return y.clone()

    def u(self, w: Tensor) -> Tensor:
        return w.clone()

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        return y.clone()
