"""The square root of a symmetric matrix that is known by its products, applied to a batch of vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .operators.linalg import column, inner, norm

__all__ = ["square_root"]


def square_root(apply: Callable[[Tensor], Tensor], x: Tensor, *, tol: float = 1e-5, max_iter: int = 300) -> Tensor:
    """M^(1/2) x for a symmetric positive semi-definite M, for each member of the batch on its own.

    With the Lanczos basis Q and T = Q^T M Q the answer is |x| Q T^(1/2) e_1 (Higham 2008, "Functions of Matrices",
    section 13.2). The basis is run through twice, so that no more than three vectors of it are ever kept.

    Args:
        apply: x -> M x, on a batch (b, ...).
        x: (b, ...), float64.
        tol: change of the answer over ten products, or a quarter of those made, as a share of it, at which a member
            stops.
        max_iter: most products in each of the two runs.

    >>> matrix = torch.diag(torch.tensor([4.0, 9.0, 0.0], dtype=torch.float64))
    >>> square_root(lambda x: x @ matrix, torch.ones(1, 3, dtype=torch.float64)).round(decimals=6)
    tensor([[2., 3., 0.]], dtype=torch.float64)
    """
    size = norm(x)
    start = x / column(torch.where(size > 0, size, 1.0), x)
    # Rounding makes a basis of n vectors need more than n steps.
    most, look = min(max_iter, 2 * x[0].numel() + 10), 10
    diagonal, beside = [], []
    last, here, width = torch.zeros_like(x), start, torch.zeros_like(size)
    weights = torch.zeros(len(x), 0).to(x)
    going = size > 0
    for step in range(1, most + 1):
        last, here, level, width = _step(apply, last, here, width)
        diagonal.append(level)
        beside.append(width)
        if step < min(look, most):
            continue
        look = max(step + 10, 5 * step // 4)
        new = _first_column(torch.stack(diagonal, 1), torch.stack(beside, 1))
        change = norm(new - torch.nn.functional.pad(weights, (0, step - weights.shape[1])))
        # A member that has stopped keeps the weights it stopped with, whatever its neighbours still need.
        kept = torch.nn.functional.pad(weights, (0, step - weights.shape[1]))
        weights = torch.where(going[:, None], new, kept)
        going = going & (change > tol * norm(new))
        if not bool(going.any()):
            break
    out, last, here, width = torch.zeros_like(x), torch.zeros_like(x), start, torch.zeros_like(size)
    for weight in weights.unbind(1):
        out = out + column(size * weight, x) * here
        last, here, _, width = _step(apply, last, here, width)
    return out


def _step(
    apply: Callable[[Tensor], Tensor], last: Tensor, here: Tensor, width: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This vector of the basis, the next one, and the two new entries of T: its diagonal and what lies beside it."""
    image = apply(here)
    level = inner(here, image)
    image = image - column(level, image) * here - column(width, image) * last
    width = norm(image)
    # Where the space is exhausted the rest is zero, and stays so.
    done = width <= 1e-13 * level.abs()
    width = torch.where(done, 0.0, width)
    following = torch.where(column(done, image), 0.0, image / column(torch.where(width > 0, width, 1.0), image))
    return here, following, level, width


def _first_column(diagonal: Tensor, beside: Tensor) -> Tensor:
    """T^(1/2) e_1 of each member's tridiagonal T, (b, k)."""
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(beside[:, :-1], 1) + torch.diag_embed(beside[:, :-1], -1)
    values, vectors = torch.linalg.eigh(matrix)
    return torch.einsum("bik,bk->bi", vectors, values.clamp_min(0).sqrt() * vectors[:, 0])
