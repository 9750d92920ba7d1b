"""Operators from a user's own functions and from SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import LinearOperator, Operator, as_shape, vjp_by_autograd

__all__ = ["from_function", "from_scipy"]

Function = Callable[[Tensor], Tensor]


def from_function(
    forward: Function,
    in_shape: Sequence[int],
    adjoint: Function | None = None,
    *,
    linear: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Operator:
    """An operator from a function of torch tensors, its adjoint by automatic differentiation where none is given.

    The function is called once, on a batch of four, to learn its output's shape and whether it is linear.

    Args:
        forward: (b, *in_shape) -> (b, *out_shape), each member on its own, differentiable by torch unless adjoint is
            given.
        in_shape: shape of one image, without the batch axis.
        adjoint: (b, *out_shape) -> (b, *in_shape); check it with `checks.dot_test`.
        linear: False for a map that is not linear: the result has a vjp, but no adjoint and no pseudo-inverse.
        dtype: the precision that the function computes in, when it takes only one; results still have the input's.
        device: the device that the function computes on, when it takes only one.

    Returns:
        A LinearOperator, or an Operator where linear is False.

    Raises:
        ValueError: the function fails, changes the number of members, or is not linear although linear is True.

    >>> A = from_function(lambda x: x.cumsum(-1), (4,))
    >>> A.T @ torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    tensor([[2., 1., 1., 0.]])
    """
    shape = as_shape(in_shape, "from_function")
    if adjoint is not None and not linear:
        raise ValueError("from_function got an adjoint of a map that is not linear: leave out one of the two.")
    probe = _in_precision(forward, dtype, device)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, *shape, generator=generator, dtype=torch.float32)
    inputs = torch.stack([points[0], points[1], points[0] + 2 * points[1], torch.zeros(shape)])
    inputs = inputs if dtype is None else inputs.to(dtype)
    try:
        with torch.no_grad():
            values = probe(inputs)
    except Exception as problem:
        raise ValueError(
            f"from_function's forward failed on a batch of shape {tuple(inputs.shape)} and {inputs.dtype} "
            f"({type(problem).__name__}: {problem}): give in_shape without the batch axis, and dtype= or device= where "
            "the function takes only one."
        ) from problem
    if not isinstance(values, Tensor) or values.is_complex() or values.ndim < 2 or values.shape[0] != 4:
        got = f"shape {tuple(values.shape)}, {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"from_function's forward gave {got} for a batch of 4, expected a real tensor (4, *out_shape): keep the "
            "batch axis first, and pass complex values as two real channels."
        )
    if linear:
        first, second, both, zero = values.double()
        error = torch.linalg.vector_norm(both - first - 2 * second) + torch.linalg.vector_norm(zero)
        if not float(error) <= 1e-4 * float(torch.linalg.vector_norm(both)) + 1e-12:
            raise ValueError(
                "from_function's forward is not linear: f(a + 2 b) differs from f(a) + 2 f(b), or f(0) from 0; pass "
                "linear=False, or subtract its constant part from the measurement."
            )
        back = None if adjoint is None else _in_precision(adjoint, dtype, device)
        return LinearFunction(probe, back, shape, tuple(values.shape[1:]))
    return NonlinearFunction(probe, shape, tuple(values.shape[1:]))


def _in_precision(function: Function, dtype: torch.dtype | None, device: torch.device | str | None) -> Function:
    def call(x: Tensor) -> Tensor:
        value = function(x.to(device=device or x.device, dtype=dtype or x.dtype))
        return (
            value.to(device=x.device, dtype=x.dtype) if isinstance(value, Tensor) and not value.is_complex() else value
        )

    return call


class NonlinearFunction(Operator):
    """A user's function, with the vector-Jacobian product of automatic differentiation."""

    def __init__(self, function: Function, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__(in_shape, out_shape)
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


class LinearFunction(LinearOperator):
    """A user's linear function, with the adjoint given or the one of automatic differentiation."""

    def __init__(
        self, function: Function, adjoint: Function | None, in_shape: Sequence[int], out_shape: Sequence[int]
    ) -> None:
        super().__init__(in_shape, out_shape)
        self._function = function
        self._adjoint = adjoint

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        if self._adjoint is not None:
            return self._adjoint(y)
        return vjp_by_autograd(self._function, y.new_zeros(y.shape[0], *self.in_shape), y)


def from_scipy(
    obj: Any, in_shape: Sequence[int] | None = None, out_shape: Sequence[int] | None = None
) -> LinearOperator:
    """A scipy.sparse matrix or a scipy.sparse.linalg.LinearOperator, applied to flattened images on the CPU in double.

    Results have the input's dtype and device, and gradients flow through, of any order.

    Args:
        obj: of shape (n_out, n_in), real; a LinearOperator needs its rmatvec.
        in_shape: shape of an image with n_in elements; (n_in,) when absent.
        out_shape: shape of a measurement with n_out elements; (n_out,) when absent.

    Raises:
        TypeError: neither a sparse matrix nor a LinearOperator.
        ValueError: complex, without a transpose, or of another size than the shapes.

    >>> import scipy.sparse
    >>> A = from_scipy(scipy.sparse.diags([1.0, 2.0, 3.0]))
    >>> A @ torch.ones(1, 3)
    tensor([[1., 2., 3.]])
    """
    import numpy as np
    from scipy.sparse import issparse
    from scipy.sparse.linalg import LinearOperator as ScipyLinearOperator

    if not issparse(obj) and not isinstance(obj, ScipyLinearOperator):
        raise TypeError(
            f"from_scipy got a {type(obj).__name__}, expected a scipy sparse matrix or LinearOperator: use "
            "invdiff.operators.Matrix for a dense array."
        )
    n_out, n_in = obj.shape
    images = as_shape((n_in,) if in_shape is None else in_shape, "from_scipy")
    measurements = as_shape((n_out,) if out_shape is None else out_shape, "from_scipy")
    sizes = int(np.prod(images)), int(np.prod(measurements))
    if sizes != (n_in, n_out):
        raise ValueError(
            f"from_scipy got an object of shape {n_out} x {n_in} for images of {sizes[0]} and measurements of "
            f"{sizes[1]} elements: pass in_shape and out_shape of its sizes."
        )
    if obj.dtype is not None and np.issubdtype(obj.dtype, np.complexfloating):
        raise ValueError("from_scipy got a complex operator, expected a real one: stack its real and imaginary parts.")
    if issparse(obj):
        matrix = obj.tocsr().astype(np.float64)
        transposed = matrix.T.tocsr()
        return ScipyOperator(lambda x: matrix @ x, lambda y: transposed @ y, images, measurements)
    try:
        obj.rmatvec(np.zeros(n_out))
    except (NotImplementedError, TypeError):
        raise ValueError(
            "from_scipy got a LinearOperator without a transpose, expected one with rmatvec: pass rmatvec= when you "
            "make it."
        ) from None
    return ScipyOperator(obj.matmat, obj.rmatmat, images, measurements)


class ScipyOperator(LinearOperator):
    """A pair of functions of NumPy columns, (n_in, b) -> (n_out, b) and back."""

    def __init__(
        self,
        matmat: Callable[[Any], Any],
        rmatmat: Callable[[Any], Any],
        in_shape: Sequence[int],
        out_shape: Sequence[int],
    ) -> None:
        super().__init__(in_shape, out_shape)
        self._sides = (matmat, rmatmat)

    def forward(self, x: Tensor) -> Tensor:
        return _NumpyProduct.apply(x, self, False)

    def adjoint(self, y: Tensor) -> Tensor:
        return _NumpyProduct.apply(y, self, True)

    def _product(self, x: Tensor, transposed: bool) -> Tensor:
        import numpy as np

        columns = x.detach().to("cpu", torch.float64).flatten(1).numpy().T
        values = np.array(self._sides[transposed](columns).T, dtype=np.float64, order="C")
        shape = self.in_shape if transposed else self.out_shape
        return torch.from_numpy(values).to(x.device, x.dtype).reshape(x.shape[0], *shape)


class _NumpyProduct(torch.autograd.Function):
    """A x or A^T x outside of torch; its gradient is the other one, which is again differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: ScipyOperator, transposed: bool) -> Tensor:
        ctx.operator, ctx.transposed = operator, transposed
        return operator._product(x, transposed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _NumpyProduct.apply(gradients[0], ctx.operator, not ctx.transposed), None, None
