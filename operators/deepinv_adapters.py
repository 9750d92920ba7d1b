"""Operators from deepinv's physics, and physics from our operators; deepinv is imported only when one is made."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import LinearOperator, Operator, as_shape, vjp_by_autograd
from .blur import Blur
from .checks import dot_test, svd_test
from .compose import stack
from .spectral import Spectral

__all__ = ["from_deepinv", "to_deepinv"]

# A dot test or an SVD identity that fails by more than this is wrong, not rounded: deepinv computes the constants of
# its physics in float32, also of one that is converted to float64 later.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}


def from_deepinv(physics: Any, in_shape: Sequence[int], check: bool = False) -> Operator:
    """An operator from a deepinv physics: its map A without its noise.

    A DecomposablePhysics whose SVD holds (it is tested on random images) becomes `Spectral`, and so does BlurFFT as our
    circular Blur; any other LinearPhysics becomes a LinearOperator, any other Physics an Operator, a stacked physics a
    `stack`. The physics is used, not copied, where its parameters have the input's dtype and device, and through a
    converted clone elsewhere.

    Args:
        physics: a deepinv.physics.Physics.
        in_shape: shape of one image, without the batch axis.
        check: test the adjoint of a linear physics on random images, and refuse a wrong one.

    Raises:
        TypeError: not a deepinv physics.
        ValueError: it cannot be applied to such images, its measurements are not real tensors, or check is set and
            its adjoint is wrong.
    """
    from deepinv.physics import BlurFFT, DecomposablePhysics, LinearPhysics, Physics, StackedPhysics

    name = type(physics).__name__
    if not isinstance(physics, Physics):
        raise TypeError(f"from_deepinv got a {name}, expected a deepinv.physics.Physics: pass the physics itself.")
    shape = as_shape(in_shape, "from_deepinv")
    if isinstance(physics, StackedPhysics):
        return stack(*[from_deepinv(part, shape, check) for part in physics.physics_list])
    out_shape = _out_shape(physics, shape)
    if not isinstance(physics, LinearPhysics):
        return DeepinvOperator(physics, shape, out_shape)
    linear = DeepinvLinear(physics, shape, out_shape)
    if check:
        _check_adjoint(linear, name)
    if isinstance(physics, DecomposablePhysics):
        decomposed = DeepinvSpectral(physics, shape, out_shape)
        if _svd_holds(decomposed):
            return decomposed
        if isinstance(physics, BlurFFT):
            return _circular_blur(physics, linear) or linear
    return linear


def _device(physics: Any) -> torch.device:
    return next((t.device for t in (*physics.parameters(), *physics.buffers())), torch.device("cpu"))


def _out_shape(physics: Any, in_shape: tuple[int, ...]) -> tuple[int, ...]:
    name = type(physics).__name__
    images = torch.zeros(2, *in_shape, device=_device(physics))
    images = images.to(_dtype(physics))
    try:
        with torch.no_grad():
            measurements = physics.A(images)
    except Exception as problem:
        raise ValueError(
            f"deepinv's {name} failed on a batch of two images of shape {in_shape} ({type(problem).__name__}: "
            f"{problem}): pass the in_shape that it was made for, and parameters that are the same for every member."
        ) from problem
    if not isinstance(measurements, Tensor) or measurements.is_complex() or measurements.shape[:1] != (2,):
        kind = measurements.dtype if isinstance(measurements, Tensor) else type(measurements).__name__
        raise ValueError(
            f"deepinv's {name} gives measurements of type {kind}, expected a real tensor (batch, ...): pass complex "
            "values as two real channels."
        )
    return tuple(measurements.shape[1:])


def _dtype(physics: Any) -> torch.dtype:
    tensors = [t for t in (*physics.parameters(), *physics.buffers()) if t.is_floating_point() or t.is_complex()]
    return torch.float64 if any(t.dtype in (torch.float64, torch.complex128) for t in tensors) else torch.float32


def _convert(physics: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The module in another precision; nn.Module.to would drop the imaginary parts of complex buffers."""

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, dtype.to_complex())
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    return physics._apply(cast)


def _check_adjoint(operator: DeepinvLinear, name: str) -> None:
    try:
        error = dot_test(operator, device=_device(operator._physics))
    except (RuntimeError, IndexError, ValueError) as problem:
        raise ValueError(
            f"deepinv's {name} cannot apply its A_adjoint to images of shape {operator.in_shape} "
            f"({type(problem).__name__}: {problem}): use an operator of invdiff.operators, or from_function(physics.A, "
            "in_shape), which derives the adjoint from A."
        ) from problem
    limit = TOLERANCE[operator.precision]
    if not error <= limit:
        raise ValueError(
            f"deepinv's {name} fails the dot test on images of shape {operator.in_shape}: |<Ax, y> - <x, A^T y>| is "
            f"{error:.1e} |Ax| |y|, expected at most {limit:g}, so its A_adjoint is not the adjoint of its A; use an "
            "operator of invdiff.operators, or from_function(physics.A, in_shape), which derives the adjoint from A."
        )


def _svd_holds(operator: DeepinvSpectral) -> bool:
    try:
        return svd_test(operator, device=_device(operator._physics)) <= TOLERANCE[operator.precision]
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        # Some declare a decomposition and do not supply its parts; they stay linear operators.
        return False


def _circular_blur(physics: Any, linear: DeepinvLinear) -> LinearOperator | None:
    """BlurFFT as our circular Blur, whose FFT coordinates are orthonormal (its own half spectra are not)."""
    kernel = getattr(physics, "filter", None)
    if not isinstance(kernel, Tensor) or kernel.ndim != 4 or not torch.equal(kernel, kernel[:1, :1].expand_as(kernel)):
        return None
    try:
        blur = Blur(kernel[0, 0], linear.in_shape)
    except ValueError:
        return None
    image = torch.rand(1, *linear.in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        error = (blur(image) - linear(image.to(_device(physics))).to("cpu")).abs().max()
    return blur.to(_device(physics)) if float(error) <= TOLERANCE[linear.precision] else None


class DeepinvOperator(Operator):
    """A deepinv physics without its noise, with the vjp of automatic differentiation."""

    def __init__(self, physics: Any, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__(in_shape, out_shape)
        self._physics = physics
        self._clones: dict[tuple[torch.dtype, torch.device], Any] = {}
        self._single = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_clones": {}}

    @property
    def precision(self) -> torch.dtype:
        """float64, until the physics turned out to compute in float32 only."""
        return torch.float32 if self._single else torch.float64

    def _for(self, like: Tensor) -> Any:
        """The physics in the precision and on the device of like; the user's own is never converted."""
        key = like.dtype.to_real(), like.device
        if key == (_dtype(self._physics), _device(self._physics)):
            return self._physics
        if key not in self._clones:
            self._clones[key] = _convert(self._physics.clone(), *key)
        return self._clones[key]

    def _call(self, method: str, x: Tensor) -> Tensor:
        double = x.dtype.to_real() == torch.float64
        if double and not self._single:
            try:
                return getattr(self._for(x), method)(x)
            except (RuntimeError, TypeError):
                # Some physics hold float32 constants that no conversion reaches.
                self._single = True
        if double:
            single = x.to(torch.complex64 if x.is_complex() else torch.float32)
            return self._call(method, single).to(x.dtype)
        return getattr(self._for(x), method)(x)

    def forward(self, x: Tensor) -> Tensor:
        return self._call("A", x).to(x.dtype)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return vjp_by_autograd(self.forward, x, v)


class DeepinvLinear(DeepinvOperator, LinearOperator):
    """A deepinv LinearPhysics, with its own adjoint."""

    def adjoint(self, y: Tensor) -> Tensor:
        return self._call("A_adjoint", y).to(y.dtype)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.adjoint(v)


class DeepinvSpectral(DeepinvLinear, Spectral):
    """A deepinv DecomposablePhysics A = U diag(mask) V^H, the sign or phase of its mask moved into U."""

    def _mask(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self._for(like).mask, device=like.device)

    def _phase(self, like: Tensor) -> Tensor:
        mask = self._mask(like)
        return torch.where(mask != 0, torch.sgn(mask), torch.ones_like(mask))

    @property
    def singular(self) -> Tensor:
        return torch.as_tensor(self._physics.mask).detach().abs().double()

    def singular_as(self, like: Tensor) -> Tensor:
        return self.singular.to(like.device, like.dtype.to_real())

    def inverse_singular(self, like: Tensor, rcond: float | None = None) -> Tensor:
        # Not kept between calls, as the user's physics may get another mask.
        self._cache.clear()
        return super().inverse_singular(like, rcond)

    def vt(self, x: Tensor) -> Tensor:
        return self._call("V_adjoint", x)

    def v(self, z: Tensor) -> Tensor:
        return self._call("V", z)

    def ut(self, y: Tensor) -> Tensor:
        coordinates = self._call("U_adjoint", y)
        return self._phase(coordinates).conj() * coordinates

    def u(self, w: Tensor) -> Tensor:
        return self._call("U", self._phase(w) * w)


def to_deepinv(operator: Operator, **options: Any) -> Any:
    """A deepinv physics from an operator, a LinearPhysics of a linear one, so that it runs inside deepinv.

    Its A_dagger is the operator's pinv, and its prox_l2 that of the SVD where there is one.

    Args:
        operator: any operator, of this package or the user's.
        options: passed to the physics, for example noise_model=deepinv.physics.GaussianNoise(0.02).
    """
    if not isinstance(operator, Operator):
        raise TypeError(
            f"to_deepinv got a {type(operator).__name__}, expected an operator: make one with from_function or "
            "from_scipy."
        )
    nonlinear, linear, spectral = _physics_classes()
    if isinstance(operator, Spectral):
        return spectral(operator, **options)
    return (linear if isinstance(operator, LinearOperator) else nonlinear)(operator, **options)


@functools.cache
def _physics_classes() -> tuple[type, type, type]:
    from deepinv.physics import LinearPhysics, Physics

    class OperatorPhysics(Physics):  # type: ignore[misc]
        """An operator that is not linear as a deepinv physics."""

        def __init__(self, operator: Operator, **options: Any) -> None:
            super().__init__(**options)
            self.operator = operator

        def A(self, x: Tensor, **_: Any) -> Tensor:
            return self.operator(x)

        def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
            return self.operator.vjp(x, v)

    class OperatorLinearPhysics(LinearPhysics):  # type: ignore[misc]
        """A linear operator as a deepinv physics."""

        def __init__(self, operator: LinearOperator, **options: Any) -> None:
            super().__init__(img_size=operator.in_shape, **options)
            self.operator = operator

        def A(self, x: Tensor, **_: Any) -> Tensor:
            return self.operator(x)

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
            return self.operator.adjoint(y)

        def A_dagger(self, y: Tensor, **_: Any) -> Tensor:
            return self.operator.pinv(y)

    class OperatorSpectralPhysics(OperatorLinearPhysics):
        """An operator with an SVD as a deepinv physics, its proximal step in closed form."""

        operator: Spectral

        def prox_l2(self, z: Any, y: Tensor, gamma: Any, **_: Any) -> Tensor:
            start = torch.as_tensor(0.0 if z is None else z, dtype=y.dtype, device=y.device)
            start = start.expand(y.shape[0], *self.operator.in_shape)
            weight = torch.as_tensor(gamma, dtype=y.dtype, device=y.device)
            damping = (1 / weight).flatten() if weight.numel() > 1 else float(1 / weight)
            return start + self.operator.damped_pinv(y - self.operator.forward(start), damping)

    return OperatorPhysics, OperatorLinearPhysics, OperatorSpectralPhysics
