"""The denoiser as a linear map near x: its Jacobian is the covariance of the image, divided by sigma^2.

For the exact denoiser D(x, sigma) = E[x0 | x_sigma = x],

    Cov[x0 | x_sigma = x] = sigma^2 dD / dx

(Tweedie's formula of second order: Efron 2011, "Tweedie's Formula and Selection Bias", section 2), a symmetric matrix,
so that a product with its transpose, which one backward pass gives, is a product with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .operators.linalg import column
from .priors.base import Prior

__all__ = ["Linearised"]


class Linearised:
    """One call of the denoiser that remembers how it was made, for products with its Jacobian J = dD / dx.

    Args:
        denoiser: a prior, best a differentiable one.
        x: (b, *in_shape).
        sigma: noise level, image units.

    Attributes:
        x0: D(x, sigma), (b, *in_shape), detached.

    >>> half = Linearised(lambda x, sigma: 0.5 * x, torch.ones(1, 2), 1.0)
    >>> half.x0, half.product(torch.ones(1, 2))
    (tensor([[0.5000, 0.5000]]), tensor([[0.5000, 0.5000]]))
    """

    def __init__(self, denoiser: Prior, x: Tensor, sigma: float) -> None:
        self._denoiser, self._sigma = denoiser, sigma
        self._smooth = getattr(denoiser, "differentiable", True)
        if self._smooth:
            with torch.enable_grad():
                self._at = x.detach().requires_grad_(True)
                self._out = denoiser(self._at, sigma)
        else:
            self._at, self._out = x, denoiser(x, sigma)
        self.x0 = self._out.detach()

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v, member by member, by one backward pass: (b, *in_shape) -> (b, *in_shape)."""
        (product,) = torch.autograd.grad(self._out, self._at, v, retain_graph=True)
        return product

    def covariance(self, v: Tensor) -> Tensor:
        """sigma^2 J^T v: a product with Cov[x0 | x_sigma = x] as the denoiser states it."""
        return self._sigma**2 * self.product(v)

    def product(self, v: Tensor) -> Tensor:
        """J^T v, or where the prior cannot be differentiated J v by a difference of two calls, a tenth of sigma apart.

        The distance is the root mean square of each member's step.
        """
        if self._smooth:
            return self.vjp(v)
        length = column(v.flatten(1).square().mean(1).sqrt() / (0.1 * self._sigma), v)
        step = torch.where(length > 0, v / length, 0.0)
        return (self._denoiser(self._at + step, self._sigma) - self.x0) * length
