"""One measurement bound to its operator and its noise: log p(y | x), its gradient, its prox."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .noise import GaussianNoise, NoiseModel, PoissonNoise
from .operators import LinearOperator, Operator, Spectral
from .operators.linalg import conjugate_gradient

__all__ = ["Likelihood"]


@dataclass(frozen=True)
class Likelihood:
    """p(y | x) of a measurement y = noise(A x).

    Args:
        y: the measurement, (*out_shape) of the operator, or (m, *out_shape) for m measurements of one operator (or of
            an operator with m members).
        operator: the forward map A.
        noise: the noise model, in the units of y.

    Raises:
        ValueError: if y has another shape than the operator's output, or holds a value that is not finite.

    >>> from invdiff.noise import GaussianNoise
    >>> from invdiff.operators import Identity
    >>> likelihood = Likelihood(torch.ones(1, 2, 2), Identity((1, 2, 2)), GaussianNoise(0.1))
    >>> likelihood.prox(torch.zeros(1, 1, 2, 2), rho=100.0).mean().item()
    0.5
    """

    y: Tensor
    operator: Operator
    noise: NoiseModel
    # No field, as it is no part of what a likelihood is: what `prox` keeps of y, each likelihood its own.
    _kept: ClassVar[dict[Any, Tensor]]

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise TypeError(
                f"operator is {type(self.operator).__name__}: expected an Operator; wrap a function with "
                "operators.from_function, a deepinv physics with operators.from_deepinv."
            )
        if not hasattr(self.noise, "log_prob"):
            raise TypeError(
                f"noise is {type(self.noise).__name__}: expected a noise model, such as GaussianNoise(0.05)."
            )
        if not isinstance(self.y, Tensor) or not self.y.is_floating_point():
            kind = self.y.dtype if isinstance(self.y, Tensor) else type(self.y).__name__
            raise TypeError(f"y is {kind}: expected a float tensor of image units; convert it with torch.as_tensor.")
        shape, expected = tuple(self.y.shape), tuple(self.operator.out_shape)
        if shape != expected and shape[1:] != expected:
            many = ", ".join(("m", *map(str, expected)))
            raise ValueError(f"y has shape {shape}: expected {expected}, the operator's output, or ({many}).")
        if self.measurements == 0:
            raise ValueError("y holds no measurement: its first axis has length 0.")
        if isinstance(self.noise, PoissonNoise) and bool((self.y < 0).any()):
            raise ValueError(
                f"y holds {float(self.y.min()):.3g}: expected Poisson counts times the gain, which are not negative."
            )
        # A finite sum has finite terms, and is found in one pass; that of large terms may be infinite without one.
        if not bool(torch.isfinite(self.y.sum())) and not bool(torch.isfinite(self.y).all()):
            count = int((~torch.isfinite(self.y)).sum())
            raise ValueError(f"y holds {count} values that are not finite: mark missing pixels with a Mask instead.")
        batch = self.operator.batch
        if batch is not None and batch != self.measurements:
            raise ValueError(
                f"y holds {self.measurements} measurements and the operator {batch} members: expected as many of each."
            )
        if isinstance(self.noise, GaussianNoise):
            self.noise.like(self.batched_y)
        object.__setattr__(self, "_kept", {})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    @property
    def batched(self) -> bool:
        """Whether y came with a measurement axis."""
        return self.y.ndim == len(self.operator.out_shape) + 1

    @property
    def measurements(self) -> int:
        """The number m of measurements."""
        return self.y.shape[0] if self.batched else 1

    @property
    def batched_y(self) -> Tensor:
        """y with its measurement axis, (m, *out_shape)."""
        return self.y if self.batched else self.y[None]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(y | x) of each member of x, (b,): one measurement for all of them, or one for each."""
        z = self.operator(x)
        return self.noise.log_prob(self._y(x).expand_as(z), z)

    def grad(self, x: Tensor) -> Tensor:
        """The gradient of log p(y | x) with respect to x, J(x)^T d log p(y | z) / dz at z = A x."""
        z = self.operator(x)
        return self.operator.vjp(x, self.noise.score(self._y(x).expand_as(z), z))

    def residual(self, x: Tensor) -> Tensor:
        """y - A x, (b, *out_shape)."""
        return self._y(x) - self.operator(x)

    def prox(self, z: Tensor, rho: float | Tensor) -> Tensor:
        """argmin over x of -log p(y | x) + rho / 2 |x - z|^2.

        Closed form for operators with an SVD and one Gaussian sigma per member; whitened conjugate gradients for a
        sigma per pixel or any other linear operator. For Poisson noise closed form with a mask, and never negative;
        with other operators Newton with conjugate gradients, and a barrier where A x would be negative. With
        sigma = 0 it is the projection of z onto the solutions of A x = y nearest to them.

        Args:
            z: (b, *in_shape).
            rho: penalty, 1 / image units^2, above 0: one number or (b,).

        Raises:
            ValueError: if rho is not positive, or the operator is not linear.
        """
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(
                f"prox needs a linear operator; {type(self.operator).__name__} is not one. "
                "Use DPS or DAPS, which take gradients alone."
            )
        weight = torch.as_tensor(rho, dtype=z.dtype, device=z.device)
        # The least or the largest of numbers one of which is NaN is NaN, and is in no range.
        least, most = (weight.item(),) * 2 if weight.numel() == 1 else torch.stack(weight.aminmax()).tolist()
        if not 0 < least <= most < math.inf:
            raise ValueError(f"rho is {rho}: expected a penalty that is finite and above 0.")
        weight = weight.reshape((-1,) + (1,) * (z.ndim - 1))
        if isinstance(self.noise, PoissonNoise):
            from .poisson import poisson_prox

            return poisson_prox(self.operator, self._y(z), self.noise.gain, z, weight)
        if not isinstance(self.noise, GaussianNoise):
            raise ValueError(f"prox knows GaussianNoise and PoissonNoise: {type(self.noise).__name__} is neither.")
        sigma = self.noise.member_sigma(self._y(z))
        if sigma is not None and isinstance(self.operator, Spectral):
            return self._spectral_prox(self.operator, z, weight, sigma)
        return self._iterative_prox(self.operator, z, weight, self.noise.like(self._y(z)))

    def take(self, index: Tensor) -> Likelihood:
        """The likelihood of the chosen measurements, one per member; repeats allowed."""
        where = index.to(self.y.device)
        return Likelihood(self.batched_y[where], self.operator.take(where), self.noise.take(where, self.batched_y))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Likelihood:
        """A copy on another device or in another dtype."""
        return Likelihood(
            self.y.to(device=device, dtype=dtype), self.operator.to(device, dtype), self.noise.to(device, dtype)
        )

    def _y(self, x: Tensor) -> Tensor:
        y = self.batched_y
        if y.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"x has {x.shape[0]} members and y {y.shape[0]} measurements: expected one measurement, or as many as "
                "members; use take() to pick one for each."
            )
        return y if y.dtype == x.dtype and y.device == x.device else y.to(x)

    def _spectral_prox(self, operator: Spectral, z: Tensor, rho: Tensor, sigma: Tensor) -> Tensor:
        damping = rho.flatten() * sigma.flatten() ** 2
        return operator.damped_step(z, self._coordinates(operator, z), damping)

    def _coordinates(self, operator: Spectral, like: Tensor) -> Tensor:
        """U^H y, kept, as a solver asks for it at every step."""
        if self.y.requires_grad or self.y.is_inference():
            return operator.ut(self._y(like))
        # The version tells where a caller wrote into y; tensors made under inference_mode have none.
        key = (self.y._version, like.dtype, like.device)
        if key not in self._kept:
            self._kept.clear()
            # One that was first made under inference_mode could never enter a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                self._kept[key] = operator.ut(self._y(like))
        return self._kept[key]

    def _iterative_prox(self, operator: LinearOperator, z: Tensor, rho: Tensor, sigma: Tensor) -> Tensor:
        zero = (sigma == 0).flatten(1)
        exact = zero.all(1)
        if bool((zero.any(1) & ~exact).any()):
            raise ValueError(
                "sigma is 0 for some pixels of a measurement and positive for others, where prox has no whitened form: "
                "give the exact pixels a small sigma."
            )
        if bool(exact.any()):
            projected = z + operator.pinv(self.residual(z))
            if bool(exact.all()):
                return projected
            chosen = exact.reshape((-1,) + (1,) * (z.ndim - 1))
            noisy = torch.where(exact.reshape((-1,) + (1,) * (sigma.ndim - 1)), 1.0, sigma)
            return torch.where(chosen, projected, self._iterative_prox(operator, z, rho, noisy))
        weight = sigma**-2
        # Solved for the step x - z, in units where the largest weight is 1, so that float32 keeps its digits.
        scale = weight.flatten(1).max(1).values.reshape((-1,) + (1,) * (z.ndim - 1))
        weight = weight / scale.reshape((-1,) + (1,) * (weight.ndim - 1))
        penalty = rho / scale
        result = conjugate_gradient(
            lambda x: operator.adjoint(weight * operator.forward(x)) + penalty * x,
            operator.adjoint(weight * self.residual(z)),
            tol=1e-10 if z.dtype == torch.float64 else 1e-6,
            max_iter=500,
        )
        worst = float(result.residual.max())
        if worst > (1e-6 if z.dtype == torch.float64 else 1e-3):
            warnings.warn(
                f"prox stopped after {result.iterations} conjugate gradient steps at a relative residual of "
                f"{worst:.1e}: the problem is badly conditioned; use a larger rho or sigma.",
                stacklevel=3,
            )
        return z + result.x
