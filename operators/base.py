"""The forward map A of y = A x + n: what an operator is, and its adjoint where it is linear."""

from __future__ import annotations

import numbers
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, cast, overload

import torch
from torch import Tensor

from .linalg import CGResult, conjugate_gradient

__all__ = ["LinearOperator", "Operator"]

FLOATS = (torch.float32, torch.float64)


def as_shape(shape: Sequence[int], name: str, axes: int | None = None) -> tuple[int, ...]:
    """A tuple of positive ints without the batch axis, or a sentence that says what is wrong with it."""
    wanted = "(C, H, W)" if axes == 3 else "a tuple of positive integers without the batch axis"
    try:
        sizes: tuple[Any, ...] = tuple(shape)
    except TypeError:  # a number, None, or an array without axes
        sizes = (None,)
    # numpy's integers are integers too, and are kept as Python's; True is not a size.
    if not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) and int(n) > 0 for n in sizes):
        raise ValueError(f"{name} got the shape {shape!r}, expected {wanted}: pass for example (3, 256, 256).")
    if axes is not None and len(sizes) != axes:
        raise ValueError(f"{name} got the shape {sizes}, expected {wanted}: pass {axes} sizes.")
    return tuple(int(n) for n in sizes)


def as_constant(values: Any, name: str) -> Tensor:
    """A float64 copy of the caller's numbers on their device, refused when they are not finite real numbers."""
    if not isinstance(values, Tensor):
        import numpy as np

        array = np.asarray(values)
        if array.dtype.kind not in "buifc":
            raise TypeError(
                f"{name} is of type {array.dtype}, expected real numbers: pass an array or tensor of floats."
            )
        # astype copies, and so takes reversed views and foreign byte orders, which torch does not.
        values = torch.from_numpy(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))
    if values.is_complex():
        raise ValueError(f"{name} is complex, expected real numbers: pass its real part.")
    tensor = values.detach().to(torch.float64, copy=True)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds values that are not finite, expected finite numbers: remove NaN and infinity.")
    return tensor


def common_batch(operators: Iterable[Operator]) -> int | None:
    """The number of members that operators used together have, None when they are the same map for every member."""
    sizes = {op.batch for op in operators if op.batch is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"Operators for {' and '.join(map(str, sorted(sizes)))} members cannot be combined: "
            "pick the same number of members from each with take()."
        )
    return sizes.pop() if sizes else None


class Operator(ABC):
    """A map A from images to measurements, the same for every member of a batch or one map per member.

    A subclass supplies forward. Constants live in float64 on one device (`_constants`) and are cast, once, to the
    dtype and device of the input they meet, so that results have the input's dtype.

    Attributes:
        in_shape: shape of one image, without the batch axis.
        out_shape: shape of one measurement, without the batch axis.
        batch: None when every member sees the same map, else the number of members that the maps differ over.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    batch: int | None

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        batch: int | None = None,
        children: Sequence[Operator] = (),
    ) -> None:
        self.in_shape = as_shape(in_shape, type(self).__name__)
        self.out_shape = as_shape(out_shape, type(self).__name__)
        self.batch = batch
        self._children: tuple[Operator, ...] = tuple(children)
        self._constants: dict[str, Tensor] = {}
        self._per_member: set[str] = set()
        self._cache: dict[Any, Tensor] = {}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x without checks: (b, *in_shape) -> (b, *out_shape), in x's dtype."""

    def __call__(self, x: Tensor) -> Tensor:
        """A x, after checking that x is a real batch (b, *in_shape), with b = batch where members differ."""
        self._check(x)
        return self.forward(x)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J(x)^T v by automatic differentiation: x (b, *in_shape), v (b, *out_shape) -> (b, *in_shape)."""
        return vjp_by_autograd(self.forward, x, v)

    def take(self, index: Tensor | Sequence[int]) -> Self:
        """The operator of the members in index (1-D, repeats allowed); self where all members share one map."""
        if self.batch is None:
            return self
        chosen = torch.as_tensor(index)
        if chosen.ndim != 1 or chosen.dtype not in (torch.int64, torch.int32) or chosen.numel() == 0:
            raise ValueError(
                f"take() got an index of shape {tuple(chosen.shape)} and type {chosen.dtype}, expected member "
                f"numbers from 0 to {self.batch - 1}: pass for example torch.tensor([0, 0, 1])."
            )
        if int(chosen.min()) < 0 or int(chosen.max()) >= self.batch:
            raise ValueError(
                f"take() got member numbers from {int(chosen.min())} to {int(chosen.max())}, but this operator has "
                f"members 0 to {self.batch - 1}: pick among those."
            )
        constants = {
            name: tensor[chosen.to(tensor.device)] if name in self._per_member else tensor
            for name, tensor in self._constants.items()
        }
        # One member left is one map for all: its constants broadcast.
        batch = chosen.numel() if chosen.numel() > 1 else None
        return self._copy(constants, [child.take(index) for child in self._children], batch)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """A copy with its constants on another device, self when nothing changes.

        dtype is accepted so that every object moves by the same call; constants stay in float64 and results have
        the dtype of the tensor they are applied to, so it changes nothing.
        """
        if dtype is not None and dtype not in FLOATS:
            raise TypeError(
                f"An operator got dtype {dtype}, expected torch.float32 or torch.float64: pass one of them."
            )
        constants = {name: tensor.to(device) for name, tensor in self._constants.items()}
        children = [child.to(device, dtype) for child in self._children]
        same = all(constants[name] is tensor for name, tensor in self._constants.items())
        if same and all(new is old for new, old in zip(children, self._children, strict=True)):
            return self
        return self._copy(constants, children, self.batch)

    def _copy(self, constants: dict[str, Tensor], children: Sequence[Operator], batch: int | None) -> Self:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._constants, new._children, new._cache, new.batch = constants, tuple(children), {}, batch
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    # -- constants ---------------------------------------------------------------------------------------------

    def _keep(self, name: str, tensor: Tensor, per_member: bool = False) -> None:
        """Store a float64 (or complex128) constant; per_member when its first axis numbers the members."""
        self._constants[name] = tensor
        if per_member:
            self._per_member.add(name)

    def _build(self, name: str) -> Tensor:
        """Compute a constant that is needed only by some callers; a subclass with such constants overrides it."""
        raise KeyError(name)

    def _master(self, name: str) -> Tensor:
        if name not in self._constants:
            with torch.inference_mode(False), torch.no_grad():
                self._constants[name] = self._build(name)
        return self._constants[name]

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """The constant in like's precision and on its device."""
        master = self._master(name)
        dtype = like.dtype.to_complex() if master.is_complex() else like.dtype.to_real()
        if master.dtype == dtype and master.device == like.device:
            return master
        return self._cached((name, dtype, like.device), lambda: master.to(like.device, dtype))

    def _cached(self, key: Any, build: Callable[[], Tensor]) -> Tensor:
        if key not in self._cache:
            # A tensor first made under inference_mode could never enter a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                self._cache[key] = build()
        return self._cache[key]

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} got a {type(x).__name__}, expected a torch tensor: convert it with torch.as_tensor."
            )
        if x.dtype not in FLOATS:
            raise TypeError(
                f"{name} got a tensor of {x.dtype}, expected float32 or float64: convert it with x.float()."
            )
        if tuple(x.shape[1:]) != self.in_shape or x.ndim != len(self.in_shape) + 1:
            hint = (
                "add the batch axis with x[None]" if tuple(x.shape) == self.in_shape else "pass tensors of that shape"
            )
            expected = ", ".join(map(str, self.in_shape))
            raise ValueError(f"{name} got a tensor of shape {tuple(x.shape)}, expected (batch, {expected}): {hint}.")
        if self.batch is not None and x.shape[0] != self.batch:
            raise ValueError(
                f"{name} got {x.shape[0]} members, but its maps differ over {self.batch} members: "
                "pick one map for each member of x with take()."
            )

    # -- algebra -----------------------------------------------------------------------------------------------

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: Operator) -> Operator: ...
    def __matmul__(self, other: Tensor | Operator) -> Tensor | Operator:
        """A @ x applies, A @ B composes (first B, then A)."""
        from .compose import compose

        if isinstance(other, Operator):
            return compose(self, other)
        return self(other)

    def __mul__(self, factor: float) -> Operator:
        from .compose import scale

        return scale(factor, self) if isinstance(factor, numbers.Real) or _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> Operator:
        return self * (1 / factor)

    def __neg__(self) -> Operator:
        return self * -1.0

    def __add__(self, other: Operator) -> Operator:
        from .compose import add

        return add(self, other) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: Operator) -> Operator:
        return self + (-other) if isinstance(other, Operator) else NotImplemented

    def __repr__(self) -> str:
        members = "" if self.batch is None else f", {self.batch} members"
        return f"{type(self).__name__}({self.in_shape} -> {self.out_shape}{members})"


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def vjp_by_autograd(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """J(x)^T v of a function of tensors, itself differentiable when x or v require gradients."""
    create_graph = torch.is_grad_enabled() and (x.requires_grad or v.requires_grad)
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors born under inference_mode cannot enter a graph; their clones can.
        point = x.clone() if x.is_inference() else x
        weight = v.clone() if v.is_inference() else v
        if not create_graph or not point.requires_grad:
            point = point.detach().requires_grad_()
        value = function(point)
        if not value.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(value, point, weight, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


class LinearOperator(Operator):
    """A linear map, with its exact adjoint.

    A subclass supplies forward and adjoint.
    """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y without checks: (b, *out_shape) -> (b, *in_shape), in y's dtype."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """A^T v; the Jacobian of a linear map is the map, so x is not read."""
        return self.adjoint(v)

    @property
    def T(self) -> LinearOperator:
        """The adjoint as an operator of its own: A.T(y), A.T @ y."""
        from .compose import transpose

        return transpose(self)

    def least_squares(
        self, y: Tensor, *, x0: Tensor | None = None, tol: float = 1e-6, max_iter: int = 1000
    ) -> CGResult:
        """argmin |A x - y| by conjugate gradients on A^T A x = A^T y, with the residual of each member.

        Args:
            y: (b, *out_shape).
            x0: start (b, *in_shape); from zero, the default, the solution is the one of minimum norm.
            tol: relative residual |A^T (y - A x)| / |A^T y| at which a member stops.
            max_iter: most applications of A^T A.
        """
        return conjugate_gradient(
            lambda x: self.adjoint(self.forward(x)), self.adjoint(y), x0=x0, tol=tol, max_iter=max_iter
        )

    def pinv(self, y: Tensor) -> Tensor:
        """Moore-Penrose inverse applied to y, (b, *out_shape) -> (b, *in_shape); see `least_squares`.

        Warns, with the residual of the worst member, when conjugate gradients stop short of convergence.
        """
        tol = 1e-10 if y.dtype == torch.float64 else 1e-5
        result = self.least_squares(y, tol=tol)
        if not bool(result.converged.all()):
            worst = int(result.residual.argmax())
            warnings.warn(
                f"{type(self).__name__}.pinv stopped after {result.iterations} iterations at a relative residual of "
                f"{float(result.residual[worst]):.1e} (member {worst}), expected {tol:g}: the operator is "
                "ill-conditioned; use a solver with a prior, or least_squares() with your own tol and max_iter.",
                stacklevel=2,
            )
        return result.x

    # mypy cannot see that the narrower overload agrees with Operator's, a LinearOperator being an Operator.
    @overload  # type: ignore[override]
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    @overload
    def __matmul__(self, other: Operator) -> Operator: ...
    def __matmul__(self, other: Tensor | Operator) -> Tensor | Operator:
        """A @ x applies, A @ B composes (first B, then A)."""
        return super().__matmul__(other)

    def __mul__(self, factor: float) -> LinearOperator:
        return cast(LinearOperator, super().__mul__(factor))

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> LinearOperator:
        return cast(LinearOperator, super().__truediv__(factor))

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    @overload
    def __add__(self, other: LinearOperator) -> LinearOperator: ...
    @overload
    def __add__(self, other: Operator) -> Operator: ...
    def __add__(self, other: Operator) -> Operator:
        return super().__add__(other)

    @overload
    def __sub__(self, other: LinearOperator) -> LinearOperator: ...
    @overload
    def __sub__(self, other: Operator) -> Operator: ...
    def __sub__(self, other: Operator) -> Operator:
        return super().__sub__(other)
