"""Operators made of operators: products, sums, multiples, transposes and stacks, linear where their parts are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .base import LinearOperator, Operator, common_batch
from .color import ChannelMix, ChannelSpatial
from .fourier import CircularConvolution, CircularDecimation
from .identity import Identity
from .spectral import Spectral

__all__ = ["add", "compose", "scale", "stack", "transpose"]


def transpose(a: LinearOperator) -> LinearOperator:
    """A^T, a Spectral of a Spectral; the transpose of a transpose is the operator itself.

    >>> from invdiff.operators import Blur
    >>> blur = Blur(torch.ones(3, 3) / 9, (1, 8, 8))
    >>> blur.T.T is blur
    True
    """
    if isinstance(a, Transpose):
        return a.parent
    return SpectralTranspose(a) if isinstance(a, Spectral) else Transpose(a)


def compose(a: Operator, b: Operator) -> Operator:
    """A @ B: first B, then A; Spectral where the SVD of the product is known in closed form.

    Raises:
        ValueError: B's measurements are not A's images, or the two differ over different numbers of members.
    """
    if a.in_shape != b.out_shape:
        raise ValueError(
            f"{a!r} @ {b!r} cannot be composed: the right operator gives {b.out_shape}, the left one takes "
            f"{a.in_shape}; build one of them for the other's shape."
        )
    batch = common_batch([a, b])
    if isinstance(a, Identity):
        return b
    if isinstance(b, Identity):
        return a
    if isinstance(a, Scaled | SpectralScaled):
        return scale(a.factor, compose(a.parent, b))
    if isinstance(b, Scaled | SpectralScaled):
        return scale(b.factor, compose(a, b.parent))
    if isinstance(a, Spectral) and isinstance(b, Spectral):
        product = _closed_form(a, b)
        if product is not None:
            return product
    if isinstance(a, LinearOperator) and isinstance(b, LinearOperator):
        return LinearComposition(a, b, batch)
    return Composition(a, b, batch)


def _closed_form(a: Spectral, b: Spectral) -> Spectral | None:
    """The SVD of A B where one is known: a channel map with a spatial one, or two circular convolutions."""
    if isinstance(a, ChannelMix) != isinstance(b, ChannelMix):
        mix, spatial = (a, b) if isinstance(a, ChannelMix) else (b, a)
        if isinstance(mix, ChannelMix) and spatial.with_channels(mix.rank) is not None:
            return ChannelSpatial(mix, spatial)
    if isinstance(a, CircularConvolution | CircularDecimation) and isinstance(b, CircularConvolution):
        return a.after_blur(b)
    return None


def scale(factor: float | Tensor, a: Operator) -> Operator:
    """factor * A for a finite real number, a Spectral of a Spectral."""
    value = float(factor)
    if not math.isfinite(value):
        raise ValueError(f"An operator was multiplied by {value}, expected a finite number: check the factor.")
    if isinstance(a, Scaled | SpectralScaled | NonlinearScaled):
        return scale(value * a.factor, a.parent)
    if value == 1:
        return a
    if isinstance(a, Spectral):
        return SpectralScaled(value, a)
    return Scaled(value, a) if isinstance(a, LinearOperator) else NonlinearScaled(value, a)


def add(a: Operator, b: Operator) -> Operator:
    """A + B, of two operators of the same shapes.

    Raises:
        ValueError: shapes or numbers of members differ.
    """
    if (a.in_shape, a.out_shape) != (b.in_shape, b.out_shape):
        raise ValueError(
            f"{a!r} + {b!r} cannot be added: their shapes differ; add operators of the same in_shape and out_shape."
        )
    batch = common_batch([a, b])
    if isinstance(a, LinearOperator) and isinstance(b, LinearOperator):
        return LinearSum(a, b, batch)
    return Sum(a, b, batch)


def stack(*operators: Operator) -> Stacked:
    """Several measurements of one image as one operator: x -> (A x, B x, ...).

    Measurements are joined along their first axis where the other axes agree, (C1, H, W) and (C2, H, W) to
    (C1 + C2, H, W), else flattened and joined to one vector; `split` takes a measurement apart, `join`
    puts it together.

    Raises:
        ValueError: no operator, different in_shapes, or different numbers of members.

    >>> from invdiff.operators import Identity
    >>> both = stack(Identity((3, 4, 4)), 2 * Identity((3, 4, 4)))
    >>> both.out_shape
    (6, 4, 4)
    """
    if not operators:
        raise ValueError("stack() got no operator, expected at least one: pass stack(A, B).")
    if len({a.in_shape for a in operators}) > 1:
        raise ValueError(
            f"stack() got operators for images of shapes {', '.join(str(a.in_shape) for a in operators)}, expected "
            "one shape: build them all for the same image."
        )
    if all(isinstance(a, LinearOperator) for a in operators):
        return LinearStacked(operators)
    return Stacked(operators)


class Composition(Operator):
    """x -> A(B(x)), with the chain rule J_B(x)^T J_A(B(x))^T v."""

    def __init__(self, a: Operator, b: Operator, batch: int | None) -> None:
        super().__init__(b.in_shape, a.out_shape, batch=batch, children=(a, b))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self._children
        return a.forward(b.forward(x))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        a, b = self._children
        return b.vjp(x, a.vjp(b.forward(x), v))


class LinearComposition(Composition, LinearOperator):
    """A B, with the adjoint B^T A^T."""

    def adjoint(self, y: Tensor) -> Tensor:
        a, b = cast(tuple[LinearOperator, LinearOperator], self._children)
        return b.adjoint(a.adjoint(y))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.adjoint(v)


class Sum(Operator):
    """x -> A(x) + B(x)."""

    def __init__(self, a: Operator, b: Operator, batch: int | None) -> None:
        super().__init__(a.in_shape, a.out_shape, batch=batch, children=(a, b))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self._children
        return a.forward(x) + b.forward(x)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        a, b = self._children
        return a.vjp(x, v) + b.vjp(x, v)


class LinearSum(Sum, LinearOperator):
    """A + B, with the adjoint A^T + B^T."""

    def adjoint(self, y: Tensor) -> Tensor:
        a, b = cast(tuple[LinearOperator, LinearOperator], self._children)
        return a.adjoint(y) + b.adjoint(y)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.adjoint(v)


class Stacked(Operator):
    """x -> (A_1(x), ..., A_n(x)), joined to one tensor; made by `stack`."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        shapes = [a.out_shape for a in operators]
        self._joined = len({shape[1:] for shape in shapes}) == 1
        total = sum(shape[0] if self._joined else math.prod(shape) for shape in shapes)
        out_shape = (total, *shapes[0][1:]) if self._joined else (total,)
        super().__init__(operators[0].in_shape, out_shape, batch=common_batch(operators), children=operators)

    @property
    def operators(self) -> tuple[Operator, ...]:
        """The operators stacked, in their order."""
        return self._children

    def join(self, measurements: Sequence[Tensor]) -> Tensor:
        """One tensor (b, *out_shape) of one measurement per operator, each (b, *its out_shape)."""
        if len(measurements) != len(self._children):
            raise ValueError(
                f"join() got {len(measurements)} measurements, expected {len(self._children)}: pass one per operator."
            )
        parts = measurements if self._joined else [part.flatten(1) for part in measurements]
        return torch.cat(list(parts), dim=1)

    def split(self, y: Tensor) -> list[Tensor]:
        """The measurements in y (b, *out_shape), one per operator, as views."""
        shapes = [a.out_shape for a in self._children]
        sizes = [shape[0] if self._joined else math.prod(shape) for shape in shapes]
        parts = y.split(sizes, dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        return self.join([a.forward(x) for a in self._children])

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        terms = [a.vjp(x, part) for a, part in zip(self._children, self.split(v), strict=True)]
        return torch.stack(terms).sum(0)


class LinearStacked(Stacked, LinearOperator):
    """(A_1; ...; A_n), with the adjoint sum of A_i^T y_i."""

    def adjoint(self, y: Tensor) -> Tensor:
        operators = cast(tuple[LinearOperator, ...], self._children)
        terms = [a.adjoint(part) for a, part in zip(operators, self.split(y), strict=True)]
        return torch.stack(terms).sum(0)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.adjoint(v)


class NonlinearScaled(Operator):
    """x -> c A(x)."""

    def __init__(self, factor: float, parent: Operator) -> None:
        super().__init__(parent.in_shape, parent.out_shape, batch=parent.batch, children=(parent,))
        self.factor = factor

    @property
    def parent(self) -> Operator:
        return self._children[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.parent.forward(x)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.factor * self.parent.vjp(x, v)


class Scaled(LinearOperator):
    """c A, with the adjoint c A^T."""

    def __init__(self, factor: float, parent: LinearOperator) -> None:
        super().__init__(parent.in_shape, parent.out_shape, batch=parent.batch, children=(parent,))
        self.factor = factor

    @property
    def parent(self) -> LinearOperator:
        return cast(LinearOperator, self._children[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.parent.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.parent.adjoint(y)


class SpectralScaled(Spectral):
    """c A = (sign(c) U) diag(|c| s) V^H of a Spectral A."""

    def __init__(self, factor: float, parent: Spectral) -> None:
        super().__init__(parent.in_shape, parent.out_shape, batch=parent.batch, children=(parent,))
        self.factor = factor
        self._sign = -1.0 if factor < 0 else 1.0

    @property
    def parent(self) -> Spectral:
        return cast(Spectral, self._children[0])

    @property
    def complete(self) -> bool:
        return self.parent.complete

    @property
    def singular(self) -> Tensor:
        return abs(self.factor) * self.parent.singular

    def vt(self, x: Tensor) -> Tensor:
        return self.parent.vt(x)

    def v(self, z: Tensor) -> Tensor:
        return self.parent.v(z)

    def ut(self, y: Tensor) -> Tensor:
        return self._sign * self.parent.ut(y)

    def u(self, w: Tensor) -> Tensor:
        return self._sign * self.parent.u(w)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.parent.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.parent.adjoint(y)


class Transpose(LinearOperator):
    """A^T as an operator."""

    def __init__(self, parent: LinearOperator) -> None:
        super().__init__(parent.out_shape, parent.in_shape, batch=parent.batch, children=(parent,))

    @property
    def parent(self) -> LinearOperator:
        return cast(LinearOperator, self._children[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.parent.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.parent.forward(y)


class SpectralTranspose(Transpose, Spectral):
    """A^T = V diag(s) U^H of a Spectral A."""

    @property
    def parent(self) -> Spectral:
        return cast(Spectral, self._children[0])

    @property
    def singular(self) -> Tensor:
        return self.parent.singular

    def vt(self, x: Tensor) -> Tensor:
        return self.parent.ut(x)

    def v(self, z: Tensor) -> Tensor:
        return self.parent.u(z)

    def ut(self, y: Tensor) -> Tensor:
        return self.parent.vt(y)

    def u(self, w: Tensor) -> Tensor:
        return self.parent.v(w)
