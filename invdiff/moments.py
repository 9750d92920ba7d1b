"""E[x0 | x_sigma = x, y] by moment matching, with linear systems that remember the noise level before.

Given x_sigma = x the image has the mean D = D(x, sigma) and the covariance S = sigma^2 dD/dx; taken for Gaussian, it
has given y = A x0 + n, n ~ N(0, R), the mean

    D + S A^T u,    (A S A^T + R) u = y - A D

(Rozet, Andry, Lanusse, Louppe 2024, "Learning Diffusion Priors from Observations by Expectation Maximization", section
4.2), exact where x0 given x_sigma is Gaussian. What is new here is how u is found: by residuals minimised over the u
of the level before and over residuals preconditioned with the same matrix for stationary images, whose power spectrum
is learned from the products that have been made anyway. Two products with S a level are then enough where dozens were
needed. Above the level up to which the prior's Jacobian is a covariance (`Prior.jacobian_limit`) S is that of
stationary photographs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .jacobian import Linearised
from .likelihood import Likelihood
from .noise import GaussianNoise
from .operators import LinearOperator
from .operators.linalg import column, conjugate_gradient, inner
from .priors.base import Prior
from .spectrum import Spectrum

__all__ = ["MomentMatched"]


class MomentMatched:
    """The function (x, sigma) -> E[x0 | x_sigma = x, y], to be called at falling noise levels.

    Args:
        likelihood: a linear operator with Gaussian noise; one measurement for all members of x or one for each.
        denoiser: the prior. Where it cannot be differentiated, products with its Jacobian are differences of two
            calls, a tenth of sigma apart (RMS).
        like: a batch of the images to come, (b, *in_shape).
        products: most products with the Jacobian at each level, from 1 on.
        tolerance: share of sigma (RMS) at which what is missing from an estimate no longer counts.
        inner_steps: most steps of the preconditioner's own conjugate gradients, which never call the denoiser.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        denoiser: Prior,
        like: Tensor,
        products: int = 5,
        tolerance: float = 0.005,
        inner_steps: int = 20,
    ) -> None:
        assert isinstance(likelihood.operator, LinearOperator)
        assert isinstance(likelihood.noise, GaussianNoise)
        self.likelihood, self.denoiser = likelihood, denoiser
        self.operator = likelihood.operator
        self.variance = likelihood.noise.like(likelihood.batched_y.to(like)) ** 2
        self.products, self.tolerance, self.inner_steps = products, tolerance, inner_steps
        self.spectrum = Spectrum(like.shape[1:])
        # The limit is one of networks of images; for vectors there is nothing to put in the Jacobian's place.
        self.limit = denoiser.jacobian_limit if self.spectrum.image else math.inf
        if self.limit < math.inf:
            self.spectrum.assume_photographs(like)
        self.u: Tensor | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x_sigma = x, y], (b, *in_shape)."""
        if sigma > self.limit:
            x0 = self.denoiser(x, sigma)
            self.u = self._precondition(self.likelihood.residual(x0), sigma)
            return x0 + self.spectrum.covariance(self.operator.adjoint(self.u), sigma)
        near = Linearised(self.denoiser, x, sigma)
        self.spectrum.forget()
        residual = self.likelihood.residual(near.x0)
        u, shift = torch.zeros_like(residual), torch.zeros_like(x)
        # Members stop one by one, so that none feels how hard its neighbours' systems are.
        going = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        tried: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(self.products):
            direction = self.u if self.u is not None and not tried else self._precondition(residual, sigma)
            if direction is not self.u:
                going = going & self._unsolved(direction, sigma)
                if not bool(going.any()):
                    break
                # A member that has stopped learns nothing more: its products with 0 leave its spectrum alone.
                direction = torch.where(column(going, direction), direction, 0.0)
            image, lift = self._system(near, direction, sigma)
            # Least squares over all directions (GCR: Eisenstat, Elman, Schultz 1983). The residual never grows,
            # whatever the matrix: a network's Jacobian is only nearly symmetric, and not quite positive.
            for other, seen, raised in tried:
                share = _share(image, seen)
                direction = direction - column(share, direction) * other
                image = image - column(share, image) * seen
                lift = lift - column(share, lift) * raised
            tried.append((direction, image, lift))
            length = torch.where(going, _share(residual, image), 0.0)
            u, shift = u + column(length, u) * direction, shift + column(length, shift) * lift
            residual = residual - column(length, residual) * image
        self.u = u
        self.spectrum.learn(sigma)
        return near.x0 + shift

    def _unsolved(self, z: Tensor, sigma: float) -> Tensor:
        """Whether the preconditioner's guess of what is missing from each member's estimate counts beside sigma."""
        if self.spectrum.power is None:
            return torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
        missing = self.spectrum.covariance(self.operator.adjoint(z), sigma)
        return missing.flatten(1).square().mean(1).sqrt() > self.tolerance * sigma

    def _system(self, near: Linearised, v: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(A S A^T + R) v, and S A^T v on the way."""
        lifted = self.operator.adjoint(v)
        product = near.product(lifted)
        self.spectrum.listen(lifted, product)
        lift = sigma**2 * product
        return self.operator.forward(lift) + self.variance * v, lift

    def _precondition(self, residual: Tensor, sigma: float) -> Tensor:
        if self.spectrum.power is None:
            return residual

        def apply(v: Tensor) -> Tensor:
            image = self.spectrum.covariance(self.operator.adjoint(v), sigma)
            return self.operator.forward(image) + self.variance * v

        return conjugate_gradient(apply, residual, tol=1e-2, max_iter=self.inner_steps).x


def _share(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> / |b|^2 of each member, and 0 where b is 0."""
    square = inner(b, b)
    return torch.where(square > 0, inner(a, b) / torch.where(square > 0, square, 1.0), 0.0)
