"""Linear solvers that treat every member of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CGResult", "column", "conjugate_gradient", "inner", "norm"]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product of every member, Re sum conj(a) b over all axes but the first: (b, ...) -> (b,)."""
    product = (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b
    return product.flatten(1).sum(1)


def norm(a: Tensor) -> Tensor:
    """Euclidean norm of every member: (b, ...) -> (b,)."""
    return torch.linalg.vector_norm(a.flatten(1), dim=1)


@dataclass(frozen=True)
class CGResult:
    """What conjugate gradients reached: the solution, and how well each member was solved.

    Attributes:
        x: the solution, of the right-hand side's shape.
        residual: |rhs - apply(x)| / |rhs| of each member, computed anew at the end, shape (b,); 0 where rhs is 0.
        iterations: applications of the matrix until the last member stopped.
        converged: residual within the tolerance asked for, per member, shape (b,).
    """

    x: Tensor
    residual: Tensor
    iterations: int
    converged: Tensor


def column(values: Tensor, like: Tensor) -> Tensor:
    """(b,) -> (b, 1, ..., 1), to multiply a batch like `like` member by member."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    x0: Tensor | None = None,
    tol: float = 1e-6,
    max_iter: int = 500,
) -> CGResult:
    """Solve M x = rhs for a symmetric positive semi-definite M, one system per member of the batch.

    alpha_k = |r_k|^2 / <p_k, M p_k>,  x_{k+1} = x_k + alpha_k p_k,  r_{k+1} = r_k - alpha_k M p_k,
    p_{k+1} = r_{k+1} + (|r_{k+1}|^2 / |r_k|^2) p_k        (Hestenes and Stiefel 1952, eq. 3:1a-f)

    Step lengths and the stopping rule belong to each member; a member that has stopped is frozen, so that its
    result does not depend on its neighbours. From x0 = 0 a consistent singular system gives its minimum-norm solution.

    Args:
        apply: x -> M x, on a batch (b, ...).
        rhs: (b, ...), real.
        x0: start, of the same shape; zero when absent.
        tol: stop a member at |r| <= tol * |rhs|.
        max_iter: most applications of M.

    Raises:
        ValueError: a negative tolerance, a negative max_iter or a start of another shape.

    >>> matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    >>> result = conjugate_gradient(lambda x: x @ matrix, torch.tensor([[1.0, 2.0]]))
    >>> result.x
    tensor([[0.0909, 0.6364]])
    """
    if not tol >= 0:
        raise ValueError(f"conjugate_gradient got tol={tol}, expected a number >= 0: pass for example tol=1e-6.")
    if max_iter < 0:
        raise ValueError(f"conjugate_gradient got max_iter={max_iter}, expected 0 or more: pass for example 500.")
    if x0 is not None and x0.shape != rhs.shape:
        raise ValueError(
            f"conjugate_gradient got a start of shape {tuple(x0.shape)}, expected the right-hand side's "
            f"{tuple(rhs.shape)}: pass x0 of that shape or leave it out."
        )
    x = torch.zeros_like(rhs) if x0 is None else x0
    residual = rhs if x0 is None else rhs - apply(x)
    limit = tol * norm(rhs)
    direction = residual
    square = inner(residual, residual)
    active = square.sqrt() > limit
    iterations = 0
    while iterations < max_iter and bool(active.any()):
        image = apply(direction)
        iterations += 1
        curvature = inner(direction, image)
        # No curvature left (a singular system at its rounding floor): another step would divide by it.
        active = active & (curvature > 0)
        alpha = torch.where(active, square / torch.where(active, curvature, 1.0), 0.0)
        # torch.where and not a product with 0: a stopped member keeps its bits even if its image is not finite.
        moving = column(active, x)
        step = column(alpha, x)
        x = torch.where(moving, x + step * direction, x)
        residual = torch.where(moving, residual - step * image, residual)
        new_square = inner(residual, residual)
        beta = torch.where(active, new_square / torch.where(active, square, 1.0), 0.0)
        direction = torch.where(moving, residual + column(beta, x) * direction, direction)
        square = new_square
        active = active & (square.sqrt() > limit)
    with torch.no_grad():
        scale = norm(rhs)
        error = norm(rhs - apply(x)) / torch.where(scale > 0, scale, 1.0)
        # The recursion's residual decides about convergence to within rounding of the true one.
        floor = 100 * torch.finfo(rhs.dtype).eps
        converged = (error <= max(2 * tol, floor)) | (square.sqrt() <= limit)
    return CGResult(x, error, iterations, converged)
