"""A dense matrix as an operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import as_constant, as_shape
from .spectral import Spectral

__all__ = ["Matrix"]


class Matrix(Spectral):
    """A x = M x on flattened images; the SVD is computed when it is first needed.

    Args:
        matrix: M, (n_out, n_in), real; (m, n_out, n_in) for one matrix per member.
        in_shape: shape of an image with n_in elements; (n_in,) when absent.
        out_shape: shape of a measurement with n_out elements; (n_out,) when absent.

    Raises:
        ValueError: a matrix that is not finite or not of two (or three) axes, or shapes of another size.

    >>> A = Matrix([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> A @ torch.tensor([[1.0, 1.0]])
    tensor([[ 3.,  7., 11.]])
    >>> A.T.in_shape
    (3,)
    """

    def __init__(
        self, matrix: Any, in_shape: Sequence[int] | None = None, out_shape: Sequence[int] | None = None
    ) -> None:
        values = as_constant(matrix, "The matrix")
        if values.ndim not in (2, 3) or values.numel() == 0:
            raise ValueError(
                f"Matrix got an array of shape {tuple(values.shape)}, expected (n_out, n_in), or (members, n_out, "
                "n_in) for one matrix per member: reshape it."
            )
        if values.ndim == 3 and values.shape[0] == 1:
            values = values[0]
        n_out, n_in = values.shape[-2:]
        in_shape = as_shape((n_in,) if in_shape is None else in_shape, "Matrix")
        out_shape = as_shape((n_out,) if out_shape is None else out_shape, "Matrix")
        if math.prod(in_shape) != n_in or math.prod(out_shape) != n_out:
            raise ValueError(
                f"Matrix of {n_out} x {n_in} got in_shape {in_shape} and out_shape {out_shape}, expected {n_in} and "
                f"{n_out} elements: pass shapes of those sizes."
            )
        batch = values.shape[0] if values.ndim == 3 else None
        super().__init__(in_shape, out_shape, batch=batch)
        members = batch is not None
        self._keep("matrix", values, members)
        self._per_member |= {"u", "singular", "vt"} if members else set()

    def _build(self, name: str) -> Tensor:
        u, s, vt = torch.linalg.svd(self._constants["matrix"], full_matrices=False)
        rank_limit = max(self._constants["matrix"].shape[-2:]) * torch.finfo(torch.float64).eps
        s = torch.where(s > rank_limit * s.amax(-1, keepdim=True), s, 0.0)
        self._constants.update(u=u, singular=s, vt=vt)
        return self._constants[name]

    @property
    def singular(self) -> Tensor:
        return self._master("singular")

    @staticmethod
    def _apply(matrix: Tensor, x: Tensor, shape: Sequence[int]) -> Tensor:
        flat = x.flatten(1)
        product = flat @ matrix.mT if matrix.ndim == 2 else (matrix @ flat[..., None])[..., 0]
        return product.reshape(x.shape[0], *shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply(self._constant("matrix", x), x, self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(self._constant("matrix", y).mT, y, self.in_shape)

    def _rank_shape(self) -> tuple[int]:
        return (min(math.prod(self.in_shape), math.prod(self.out_shape)),)

    def vt(self, x: Tensor) -> Tensor:
        return self._apply(self._constant("vt", x), x, self._rank_shape())

    def v(self, z: Tensor) -> Tensor:
        return self._apply(self._constant("vt", z).mT, z, self.in_shape)

    def ut(self, y: Tensor) -> Tensor:
        return self._apply(self._constant("u", y).mT, y, self._rank_shape())

    def u(self, w: Tensor) -> Tensor:
        return self._apply(self._constant("u", w), w, self.out_shape)
