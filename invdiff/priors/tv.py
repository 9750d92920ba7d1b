"""Total variation as a prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invdiff.priors.smoother import Smoother

__all__ = ["TV", "tv_denoise", "tv_objective"]


class TV(Smoother):
    """Total variation denoising (Rudin, Osher and Fatemi 1992),

    `D(x, sigma) = argmin_u |u - x|^2 / 2 + lam * sum_p |grad u_p|`,

    where |.| runs over both directions and all channels together (vectorial, isotropic), by a fixed number of steps of
    the fast gradient projection on the dual (Beck and Teboulle 2009, algorithm FGP); lam follows sigma.

    Args:
        scale: factor on the fitted strength lam.
        iterations: dual steps. The strength was fitted with the default; a large lam needs more to reach the minimum.

    Raises:
        ValueError: iterations is not positive.
    """

    name = "tv"
    family = "tv"

    def __init__(self, scale: float = 1.0, iterations: int = 100) -> None:
        super().__init__(scale)
        if iterations < 1:
            raise ValueError(f"iterations of tv must be at least 1, got {iterations}.")
        self.iterations = iterations

    def smooth(self, x: Tensor, strength: Tensor, sigma: Tensor) -> Tensor:
        return tv_denoise(x, strength, self.iterations)


def tv_denoise(x: Tensor, lam: Tensor, iterations: int) -> Tensor:
    """The total variation minimiser of x (b, C, H, W) with one lam per member (b,), after `iterations` dual steps."""
    weight = lam[:, None, None, None]
    step = 1 / (8 * weight)  # 8 bounds the squared norm of the gradient operator
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down_ahead, right_ahead = down, right
    t = 1.0
    for _ in range(iterations):
        u = x + weight * _divergence(down_ahead, right_ahead)
        new_down, new_right = _gradient(u)
        new_down, new_right = down_ahead + step * new_down, right_ahead + step * new_right
        # |p| <= 1 per pixel over directions and channels; written so that its derivative at 0 is finite.
        squared = (new_down.square() + new_right.square()).sum(dim=1, keepdim=True)
        shrink = squared.clamp_min(1).rsqrt()
        new_down, new_right = new_down * shrink, new_right * shrink
        t_next = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = (t - 1) / t_next
        down_ahead = torch.lerp(down, new_down, 1 + momentum)
        right_ahead = torch.lerp(right, new_right, 1 + momentum)
        down, right, t = new_down, new_right, t_next
    return x + weight * _divergence(down, right)


def tv_objective(u: Tensor, x: Tensor, lam: float) -> Tensor:
    """`|u - x|^2 / 2 + lam * TV(u)` of each member, shape (b,)."""
    down, right = _gradient(u)
    variation = (down.square() + right.square()).sum(dim=1).sqrt().flatten(1).sum(dim=1)
    return (u - x).square().flatten(1).sum(dim=1) / 2 + lam * variation


def _gradient(u: Tensor) -> tuple[Tensor, Tensor]:
    """Forward differences, zero at the far border."""
    down = torch.nn.functional.pad(u[..., 1:, :] - u[..., :-1, :], (0, 0, 0, 1))
    right = torch.nn.functional.pad(u[..., :, 1:] - u[..., :, :-1], (0, 1))
    return down, right


def _divergence(down: Tensor, right: Tensor) -> Tensor:
    """Minus the adjoint of `_gradient`; both fields are zero at their far border."""
    pad = torch.nn.functional.pad
    return down - pad(down[..., :-1, :], (0, 0, 1, 0)) + right - pad(right[..., :, :-1], (1, 0))
