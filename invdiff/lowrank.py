"""Symmetric matrices known on a small space, and a multiple of the identity on the rest, one for each member.

J = V diag(lam) V^T + c (I - V V^T), with V orthonormal, so that every function of J is as cheap:

    f(J) b = f(c) b + V (f(lam) - f(c)) V^T b

The space is that of block Lanczos: all products of J, up to a power, with given vectors. Where J is a multiple of the
identity but for a few directions, as the covariance of a mixture of Gaussians between its modes is, this is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LowRank", "block_lanczos", "dense"]

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LowRank:
    """J = V diag(lam) V^T + c (I - V V^T) of b members.

    Args:
        vectors: V, (b, n, m), orthonormal columns.
        values: lam, (b, m).
        rest: c, (b, 1).
    """

    vectors: Tensor
    values: Tensor
    rest: Tensor

    def apply(self, function: Function, b: Tensor) -> Tensor:
        """f(J) b for vectors b, (b, n)."""
        share = torch.einsum("bnm,bn->bm", self.vectors, b)
        other = function(self.rest)
        return other * b + torch.einsum("bnm,bm->bn", self.vectors, (function(self.values) - other) * share)

    def project(self, function: Function, a: Tensor) -> Tensor:
        """A f(J) A^T for matrices A, (b, k, n): (b, k, k)."""
        share = a @ self.vectors
        other = function(self.rest)[..., None]
        weight = function(self.values)[:, None] - other
        return other * (a @ a.mT) + (share * weight) @ share.mT

    def take(self, index: Tensor) -> LowRank:
        """The matrices of the chosen members."""
        return LowRank(self.vectors[index], self.values[index], self.rest[index])


def dense(product: Function, like: Tensor) -> LowRank:
    """The whole of J from its products with n unit vectors: `like` is (b, n), product maps (b, n) to (b, n)."""
    n = like.shape[1]
    columns = [product(row.expand_as(like)) for row in torch.eye(n, dtype=like.dtype, device=like.device)]
    return _eigen(torch.stack(columns, 2).double(), None, like.new_zeros(like.shape[0], 1).double())


def block_lanczos(product: Function, block: Tensor, depth: int) -> LowRank:
    """J on the space of block, J block, ..., J^(depth - 1) block; outside of it the mean of J on one vector there.

    Golub and Underwood 1977, "The Block Lanczos Method for Computing Eigenvalues", with every new block made orthogonal
    to all before it.

    Args:
        product: J, (b, n) -> (b, n); called depth * k + 1 times.
        block: (b, n, k + 1): k vectors to begin with, and one by which the rest is measured; (depth k + 1) <= n.
        depth: number of blocks.
    """
    start, probe = block[..., :-1].double(), block[..., -1:].double()
    basis = start.new_zeros(*start.shape[:2], 0)
    images: list[Tensor] = []
    new = start
    for _ in range(depth):
        new = _beside(basis, new)
        image = torch.stack([product(column.to(block)).double() for column in new.unbind(2)], 2)
        basis = torch.cat([basis, new], 2)
        images.append(image)
        new = image
    outside = _beside(basis, probe)[..., 0]
    rest = (outside * product(outside.to(block)).double()).sum(1, keepdim=True)
    return _eigen(basis.mT @ torch.cat(images, 2), basis, rest)


def _beside(basis: Tensor, block: Tensor) -> Tensor:
    """Orthonormal vectors that span the block's share beside the basis, or any beside it where there is none."""
    joint = torch.linalg.qr(torch.cat([basis, block], 2)).Q
    return joint[..., basis.shape[2] :]


def _eigen(small: Tensor, basis: Tensor | None, rest: Tensor) -> LowRank:
    # One member that is not finite would be an error of them all: it is left out, and comes back as not a number.
    fine = small.isfinite().flatten(1).all(1)
    values, vectors = torch.linalg.eigh(torch.where(fine[:, None, None], (small + small.mT) / 2, 0.0))
    values = torch.where(fine[:, None], values, torch.nan)
    # A covariance has no negative eigenvalue; rounding and networks make some.
    return LowRank(vectors if basis is None else basis @ vectors, values.clamp_min(0), rest.clamp_min(0))
