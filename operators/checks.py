"""Checks of an operator by definition: of its adjoint, its SVD, its pseudo-inverse, its Jacobian and its norm.

Each returns the error that it measured, and raises AssertionError with a sentence when `tol` is given and exceeded.
All draw from a random stream of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LinearOperator, Operator
from .linalg import inner, norm
from .spectral import Spectral

__all__ = ["dot_test", "pinv_test", "spectral_norm", "svd_test", "vjp_test"]


class _Probe:
    """Random inputs of one check: one stream, one dtype and device, as many members as the operator has."""

    def __init__(
        self, operator: Operator, seed: int, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.members = operator.batch or batch
        self.dtype, self.device = dtype, device

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(self.members, *shape, generator=self.generator, dtype=torch.float64)
        return values.to(self.device, self.dtype)


def _relative(error: Tensor, scale: Tensor) -> float:
    """The largest error of a member relative to its scale; an error of a member without scale counts as it is."""
    return float((error / torch.where(scale > 0, scale, 1.0)).max())


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


def _judge(error: float, tol: float | None, sentence: str) -> float:
    # "not <=" so that a NaN fails.
    if tol is not None and not error <= tol:
        raise AssertionError(f"{sentence}: the error is {error:.2e}, expected at most {tol:g}.")
    return error


def dot_test(
    operator: LinearOperator,
    *,
    tol: float | None = None,
    seed: int = 0,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> float:
    """|<A x, y> - <x, A^T y>| / (|A x| |y|) for four random pairs x and y, the largest over the members.

    Args:
        operator: a linear operator.
        tol: largest error to pass; 1e-12 is met in float64 and 1e-5 in float32 by every operator of this package.
        seed: of the random vectors.
        batch: members to draw, where the operator does not say how many.
        dtype: of the vectors.
        device: of the vectors.

    Raises:
        AssertionError: tol is exceeded.

    >>> from invdiff.operators import Blur
    >>> dot_test(Blur(torch.ones(2, 3), (3, 8, 9), boundary="reflect")) < 1e-12
    True
    """
    probe = _Probe(operator, seed, batch, dtype, device)
    gaps, scales, fallbacks = [], [], []
    for _ in range(4):
        x, y = probe.draw(operator.in_shape), probe.draw(operator.out_shape)
        image, back = operator(x), operator.adjoint(y)
        # Sums in float64, so that the error is the operator's and not the inner product's.
        x, y, image, back = _wide(x), _wide(y), _wide(image), _wide(back)
        gaps.append((inner(image, y) - inner(x, back)).abs())
        scales.append(norm(image) * norm(y))
        fallbacks.append(norm(x) * norm(back))
    # The mean, so that one x which A happens to map almost to zero is not taken for an error.
    scale, fallback = torch.stack(scales).mean(0), torch.stack(fallbacks).mean(0)
    error = _relative(torch.stack(gaps).amax(0), torch.where(scale > 0, scale, fallback))
    return _judge(error, tol, f"The adjoint of {operator!r} is not its adjoint")


def svd_test(
    operator: Spectral,
    *,
    tol: float | None = None,
    seed: int = 0,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> float:
    """The largest relative error among the identities that `Spectral` promises, on random images and measurements.

    u(s vt(x)) = A x,  v(s ut(y)) = A^T y,  vt(v(z)) = z and ut(u(w)) = w on their ranges (z = vt(x), w = s vt(x)),
    <vt(x), z> = <x, v(z)>,  <ut(y), w> = <y, u(w)>,  |v(vt(x))| = |vt(x)|, and s is real and not negative.

    Args:
        operator: an operator with an SVD.
        tol, seed, batch, dtype, device: as in `dot_test`; 1e-10 is met in float64.

    Raises:
        AssertionError: tol is exceeded.
    """
    probe = _Probe(operator, seed, batch, dtype, device)
    x, y = probe.draw(operator.in_shape), probe.draw(operator.out_shape)
    z, w = operator.vt(x), operator.ut(y)
    s = operator.singular_as(z)
    other_z, other_w = operator.vt(probe.draw(operator.in_shape)), operator.ut(probe.draw(operator.out_shape))
    image, back = operator(x), operator.adjoint(y)
    # Where A x is nothing but rounding its own size is no scale: |s|_max |x| is.
    largest = s.max().double()
    seen = s * z
    # Norms and sums in float64, so that the errors are the operator's and not theirs.
    size_x, size_y, size_z = norm(_wide(x)), norm(_wide(y)), norm(_wide(z))
    pairs = [
        (operator.u(seen), image, largest * size_x),
        (operator.v(s * w), back, largest * size_y),
        (operator.vt(operator.v(z)), z, size_z),
        (operator.ut(operator.u(seen)), seen, largest * size_x),
    ]
    errors = [_relative(norm(_wide(got) - _wide(expected)), scale) for got, expected, scale in pairs]
    for a, coordinates, other, back_again in ((x, z, other_z, operator.v), (y, w, other_w, operator.u)):
        gap = inner(_wide(coordinates), _wide(other)) - inner(_wide(a), _wide(back_again(other)))
        errors.append(_relative(gap.abs(), norm(_wide(a)) * norm(_wide(other))))
    errors.append(_relative((norm(_wide(operator.v(z))) - size_z).abs(), size_z))
    errors.append(max(0.0, -float(s.min())))
    return _judge(max(errors), tol, f"The SVD of {operator!r} does not hold")


def pinv_test(
    operator: LinearOperator,
    *,
    tol: float | None = None,
    seed: int = 0,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> float:
    """The largest relative error among the four Moore-Penrose conditions (Penrose 1955), on random vectors.

    A A+ A x = A x,  A+ A A+ y = A+ y,  <A A+ y, y'> = <y, A A+ y'>,  <A+ A x, x'> = <x, A+ A x'>.

    Args:
        operator: a linear operator.
        tol, seed, batch, dtype, device: as in `dot_test`; rounding is amplified by the condition number.

    Raises:
        AssertionError: tol is exceeded.
    """
    probe = _Probe(operator, seed, batch, dtype, device)
    x, other_x = probe.draw(operator.in_shape), probe.draw(operator.in_shape)
    y, other_y = probe.draw(operator.out_shape), probe.draw(operator.out_shape)
    image, inverse = operator(x), operator.pinv(y)
    seen, other_seen = operator.pinv(image), operator.pinv(operator(other_x))
    fitted, other_fitted = operator(inverse), operator(operator.pinv(other_y))
    errors = [
        _relative(norm(operator(seen) - image), norm(image)),
        _relative(norm(operator.pinv(fitted) - inverse), norm(inverse)),
        _relative((inner(fitted, other_y) - inner(y, other_fitted)).abs(), norm(y) * norm(other_y)),
        _relative((inner(seen, other_x) - inner(x, other_seen)).abs(), norm(x) * norm(other_x)),
    ]
    return _judge(max(errors), tol, f"The pseudo-inverse of {operator!r} is not Moore-Penrose's")


def vjp_test(
    operator: Operator,
    *,
    tol: float | None = None,
    seed: int = 0,
    batch: int = 2,
    device: torch.device | str = "cpu",
    step: float = 1e-3,
) -> float:
    """|<v, J(x) d> - <J(x)^T v, d>| / (|J(x) d| |v|) with J(x) d by central differences of fourth order, in float64.

    Args:
        operator: an operator, linear or not, that is smooth around random images in [0, 1].
        tol: largest error to pass.
        seed, batch, device: as in `dot_test`.
        step: of the differences, in units of the image's values; the error is of order step^4.

    Raises:
        AssertionError: tol is exceeded.
    """
    probe = _Probe(operator, seed, batch, torch.float64, device)
    x = 0.5 + 0.1 * probe.draw(operator.in_shape)
    d, v = probe.draw(operator.in_shape), probe.draw(operator.out_shape)
    with torch.no_grad():
        near = operator(x + step * d) - operator(x - step * d)
        far = operator(x + 2 * step * d) - operator(x - 2 * step * d)
    derivative = (8 * near - far) / (12 * step)
    back = operator.vjp(x, v)
    scale = norm(derivative) * norm(v)
    scale = torch.where(scale > 0, scale, norm(back) * norm(d))
    error = _relative((inner(v, derivative) - inner(back, d)).abs(), scale)
    return _judge(error, tol, f"The vjp of {operator!r} is not that of its forward map")


def spectral_norm(
    operator: LinearOperator,
    *,
    tol: float = 1e-6,
    max_iter: int = 500,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> float:
    """The largest singular value by power iteration on A^T A, over all members; a lower bound that tightens.

    Args:
        operator: a linear operator; a `Spectral` one has it at once, as `operator.singular.max()`.
        tol: stop when no member's estimate changes by more than this share in one iteration.
        max_iter: most iterations.
        seed, dtype, device: as in `dot_test`.

    >>> from invdiff.operators import Matrix
    >>> round(spectral_norm(Matrix([[3.0, 0.0], [0.0, 1.0]])), 4)
    3.0
    """
    probe = _Probe(operator, seed, 1, dtype, device)
    x = probe.draw(operator.in_shape)
    estimate = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
    with torch.no_grad():
        for _ in range(max_iter):
            size = norm(x)
            x = x / torch.where(size > 0, size, 1.0).reshape(-1, *[1] * (x.ndim - 1))
            image = operator.forward(x)
            previous, estimate = estimate, norm(image)
            if bool(((estimate - previous).abs() <= tol * estimate).all()):
                break
            x = operator.adjoint(image)
    return float(estimate.max())
