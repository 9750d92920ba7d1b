"""The denoiser as a linear map near x: its Jacobian is the covariance of the image, divided by sigma^2.

For the exact denoiser D(x, sigma) = E[x0 | x_sigma = x],

    Cov[x0 | x_sigma = x] = sigma^2 dD / dx

(Tweedie's formula of second order: Efron 2011, "Tweedie's Formula and Selection Bias", section 2), a symmetric matrix,
so that a product with its transpose, which one backward pass gives, is a product with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .priors.base import Prior

__all__ = ["Linearised"]


class Linearised:
    """One call of the denoiser that remembers how it was made, for products with its Jacobian J = dD / dx.

    Args:
        denoiser: a differentiable prior.
        x: (b, *in_shape).
        sigma: noise level, image units: one number or (b,).

    Attributes:
        x0: D(x, sigma), (b, *in_shape), detached.

    >>> half = Linearised(lambda x, sigma: 0.5 * x, torch.ones(1, 2), 1.0)
    >>> half.x0, half.vjp(torch.ones(1, 2))
    (tensor([[0.5000, 0.5000]]), tensor([[0.5000, 0.5000]]))
    """

    def __init__(self, denoiser: Prior, x: Tensor, sigma: float | Tensor) -> None:
        with torch.enable_grad():
            self._leaf = x.detach().requires_grad_(True)
            self._out = denoiser(self._leaf, sigma)
        self.x0 = self._out.detach()
        self._sigma = sigma

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v, member by member, by one backward pass: (b, *in_shape) -> (b, *in_shape)."""
        (product,) = torch.autograd.grad(self._out, self._leaf, v, retain_graph=True)
        return product

    def covariance(self, v: Tensor) -> Tensor:
        """sigma^2 J^T v: a product with Cov[x0 | x_sigma = x] as the denoiser states it."""
        sigma = torch.as_tensor(self._sigma, dtype=v.dtype, device=v.device)
        return sigma.reshape(-1, *(1,) * (v.ndim - 1)) ** 2 * self.vjp(v)
