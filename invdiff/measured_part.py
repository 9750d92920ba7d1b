"""W x, the part of an image that a linear measurement fixed.

With y = A x + n, n ~ N(0, R), G = A^T R^-1 A, which is what the measurement says of each direction, and C the prior's
covariance,

    W = G^1/2 C G^1/2 (I + G^1/2 C G^1/2)^-1 = G^1/2 (C^-1 + G)^-1 G^1/2

W is symmetric, its eigenvalues lie between 0 and 1, and W x = 0 where A x = 0. Where measurement and prior share their
directions, A = U diag(s) V^H, R = sigma^2 I and C = V diag(tau^2) V^H, it is

    W = V diag(s^2 / (s^2 + sigma^2 / tau^2)) V^H,

which is Wiener's filter. Where they do not, as with random pixels of images that vary by frequency, the directions are
the eigenvectors of G^1/2 C G^1/2.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .bands import Flat, PriorStd, as_bands
from .likelihood import Likelihood
from .noise import GaussianNoise, PoissonNoise
from .operators import Identity, LinearOperator, Mask, Spectral
from .operators.linalg import conjugate_gradient
from .posterior import Posterior
from .record import describe
from .roots import square_root

__all__ = ["MeasuredPart"]


class MeasuredPart:
    """W of the module, as a function of images: x -> W x.

    G^1/2 comes from the operator's SVD where there is one (and one sigma per measurement, or an operator that works
    pixel by pixel), else from products with A by Lanczos' method. The system with C is solved by conjugate gradients,
    preconditioned by the same system for the operator's mean over shifts. With one tau for all directions none of this
    is needed where there is an SVD, and without one W x = (A^T R^-1 A + I / tau^2)^-1 A^T R^-1 A x is solved by
    conjugate gradients. Where sigma is 0, W is the projection on the row space of A.

    Args:
        likelihood: a linear operator with Gaussian noise, one or m measurements. Poisson noise counts as Gaussian noise
            of variance gain * y, with y held at one photon or more.
        prior_std: tau, the prior's standard deviation. None for photographs in [0, 1], whose power falls as 1 / f^2; a
            number for all directions; a function that takes frequencies in cycles a pixel, (H, W // 2 + 1), and gives
            as many standard deviations of the coefficients of the orthonormal Fourier transform, the same in every
            channel; "draws" for the draws' own power in rings of frequency; or a GaussianPrior for its covariance.
        posterior: the draws that "draws" stands for.
        tol: relative residual at which systems are solved; 1e-3 changes the maps of photographs by less than 0.01.
        max_iter: most steps of each.

    Raises:
        ValueError: an operator that is not linear, sigma 0 for some values of a measurement only, a bad prior_std.
        TypeError: another noise, or a prior_std of another kind.

    >>> A = Mask(torch.tensor([1.0, 1.0, 0.0]), (3,))
    >>> measured = MeasuredPart(Likelihood(torch.zeros(3), A, GaussianNoise(0.1)), prior_std=0.2)
    >>> measured(torch.ones(1, 3))
    tensor([[0.8000, 0.8000, 0.0000]])
    """

    def __init__(
        self,
        likelihood: Likelihood,
        prior_std: PriorStd = None,
        *,
        posterior: Posterior | None = None,
        tol: float = 1e-3,
        max_iter: int = 500,
    ) -> None:
        if not isinstance(likelihood.operator, LinearOperator):
            raise ValueError(
                f"Measured and invented parts need a linear operator; {type(likelihood.operator).__name__} is not one: "
                "look at the spread of the draws instead."
            )
        self.operator: LinearOperator = likelihood.operator.to("cpu")
        self.in_shape = self.operator.in_shape
        self.measurements, self.batched = likelihood.measurements, likelihood.batched
        self.tol, self.max_iter = tol, max_iter
        variance = _variance(likelihood)
        exact = (variance == 0).flatten(1)
        if bool((exact.any(1) & ~exact.all(1)).any()):
            raise ValueError(
                "sigma is 0 for some values of a measurement and positive for others: give those a small sigma."
            )
        self._exact = exact.all(1)
        self._variance = torch.where(variance == 0, 1.0, variance)
        self.bands = as_bands(prior_std, self.in_shape, posterior)
        self.record: dict[str, Any] = {
            "prior_std": self.bands.record,
            "operator": describe(likelihood.operator),
            "noise": describe(likelihood.noise),
            "tolerance": tol,
        }
        self._inverse, self._lift = self._preconditioner()

    def __call__(self, x: Tensor) -> Tensor:
        """W x for x of shape (..., [m,] *in_shape), in its dtype and on its device; computed in float64 on the CPU.

        Raises:
            ValueError: if x has another shape.
        """
        inner = (self.measurements, *self.in_shape) if self.batched else self.in_shape
        if tuple(x.shape[x.ndim - len(inner) :]) != inner or x.ndim < len(inner):
            raise ValueError(f"x has shape {tuple(x.shape)}: expected one that ends in {inner}.")
        wide = x.detach().to("cpu", torch.float64).reshape(-1, *self.in_shape)
        if not len(wide):
            return x.detach().clone()
        which = torch.arange(len(wide)) % self.measurements
        with torch.no_grad():
            return self._members(wide, which).reshape(x.shape).to(x)

    def _members(self, x: Tensor, which: Tensor) -> Tensor:
        operator = self.operator.take(which)
        exact = self._exact[which if len(self._exact) > 1 else torch.zeros_like(which)]
        if bool(exact.all()):
            return _project(operator, x)
        noisy = self._noisy(operator, x, which)
        if not bool(exact.any()):
            return noisy
        return torch.where(exact.reshape(-1, *[1] * (x.ndim - 1)), _project(operator, x), noisy)

    def _noisy(self, operator: LinearOperator, x: Tensor, which: Tensor) -> Tensor:
        variance = _of(self._variance, which)
        if isinstance(self.bands, Flat):
            precision = self.bands.std**-2
            if isinstance(operator, Spectral):
                z = operator.vt(x)
                singular = _singular(operator, variance, z)
                if singular is not None:
                    return operator.v(singular**2 / (singular**2 + precision) * z)

            def damped(v: Tensor) -> Tensor:
                return _fisher(operator, variance, v) + precision * v

            return self._solve(damped, _fisher(operator, variance, x))
        bands, inverse, lift = self.bands, _of(self._inverse, which), _of(self._lift, which)

        # Conjugate gradients for q in (M^-1 + L^T T G T^T L) T q = L^T T G^1/2 x with L = C^1/2 M^-1/2 and M the system
        # I + C^1/2 G C^1/2 of the operator's mean over shifts: the identity where A treats all places alike.
        def system(q: Tensor) -> Tensor:
            z = bands.coordinates(q)
            answer = _fisher(operator, variance, bands.image(_mix(lift, z), x))
            return bands.image(_mix(inverse, z) + _mix(lift.transpose(1, 2), bands.coordinates(answer)), x)

        start = bands.coordinates(self._root(operator, variance, x))
        q = self._solve(system, bands.image(_mix(lift.transpose(1, 2), start), x))
        return self._root(operator, variance, bands.image(_mix(lift, bands.coordinates(q)), x))

    def _root(self, operator: LinearOperator, variance: Tensor, x: Tensor) -> Tensor:
        """G^1/2 x."""
        if isinstance(operator, Spectral):
            z = operator.vt(x)
            singular = _singular(operator, variance, z)
            if singular is not None:
                return operator.v(singular * z)
        return square_root(lambda v: _fisher(operator, variance, v), x, tol=self.tol, max_iter=self.max_iter)

    def _solve(self, system: Any, right: Tensor) -> Tensor:
        result = conjugate_gradient(system, right, tol=self.tol, max_iter=self.max_iter)
        worst = float(result.residual.max())
        if worst > 30 * self.tol:
            warnings.warn(
                f"The measured part was found to a relative residual of {worst:.1e}, expected {self.tol:g}: it is "
                "approximate; raise max_iter, or pass prior_std as one number.",
                stacklevel=5,
            )
        return result.x

    def _preconditioner(self) -> tuple[Tensor, Tensor]:
        """M^-1 and L = C^1/2 M^-1/2, (m, k, k, ...), with M = I + C^1/2 G C^1/2 in the bands' coordinates."""
        if isinstance(self.bands, Flat) or bool(self._exact.all()):
            return torch.zeros(1), torch.zeros(1)
        # One system for all measurements that share operator and noise.
        count = self.measurements if self.operator.batch is not None else len(self._variance)
        like = torch.zeros(count, *self.in_shape, dtype=torch.float64)
        level = self.bands.level(lambda v: _fisher(self.operator, self._variance, v), like)
        root = self.bands.variance.sqrt()
        blocks = (root[:, None] * root * level).movedim((1, 2), (-2, -1))
        values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
        values = 1 + values.clamp_min(0)
        inverse = (vectors / values[..., None, :]) @ vectors.mT
        half = (vectors / values.sqrt()[..., None, :]) @ vectors.mT
        back = [blocks.movedim((-2, -1), (1, 2)) for blocks in (inverse, half)]
        return back[0], root[:, None] * back[1]


def _variance(likelihood: Likelihood) -> Tensor:
    """The noise's variance, float64, (1 or m, 1, ..., 1) or (1 or m, *out_shape)."""
    y = likelihood.batched_y.detach().to("cpu", torch.float64)
    if isinstance(likelihood.noise, PoissonNoise):
        return likelihood.noise.gain * y.clamp_min(likelihood.noise.gain)
    if isinstance(likelihood.noise, GaussianNoise):
        return likelihood.noise.to("cpu").like(y) ** 2
    raise TypeError(
        f"Measured and invented parts know GaussianNoise and PoissonNoise: {type(likelihood.noise).__name__} is "
        "neither; pass the Gaussian noise nearest to it."
    )


def _of(values: Tensor, which: Tensor) -> Tensor:
    return values[which] if len(values) > 1 else values


def _fisher(operator: LinearOperator, variance: Tensor, x: Tensor) -> Tensor:
    """G x = A^T R^-1 A x."""
    return operator.adjoint(operator.forward(x) / variance)


def _singular(operator: Spectral, variance: Tensor, z: Tensor) -> Tensor | None:
    """The singular values of R^-1/2 A along the operator's own V, to go with coordinates z; None where V is another."""
    sigma = variance.sqrt()
    if not isinstance(operator, Mask | Identity):
        if any(size > 1 for size in variance.shape[1:]):
            return None
        sigma = sigma.reshape(-1, *[1] * (z.ndim - 1))
    return operator.singular / sigma


def _project(operator: LinearOperator, x: Tensor) -> Tensor:
    if isinstance(operator, Spectral):
        z = operator.vt(x)
        return operator.v(z * (operator.inverse_singular(z) > 0))
    return operator.pinv(operator.forward(x))


def _mix(blocks: Tensor, z: Tensor) -> Tensor:
    """Blocks (b or 1, k, k, ...) times coordinates (b, k, ...), a column at a time: six times as quick as one sum."""
    out = blocks[:, :, 0] * z[:, None, 0]
    for column in range(1, z.shape[1]):
        out += blocks[:, :, column] * z[:, None, column]
    return out
