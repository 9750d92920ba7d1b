"""What the classical smoothers share: a strength tied to sigma by a fitted curve, and window arithmetic.

Each smoother has one strength (a width, a threshold, a weight). The curve `strength(sigma)` in `strength.json` holds,
for gray and for colour images, the strength of highest PSNR at noise levels from 0.01 to 1, as fitted by
`benchmarks/fit_strength.py` on photographs that scikit-image carries. Between the levels it is linear in log-log, and
below 0.01 it goes on along its first segment, to strength 0 (which returns the image itself) at sigma 0.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from functools import lru_cache
from importlib import resources

import torch
from torch import Tensor

from invdiff.priors.base import Prior

__all__ = ["Smoother", "box_sum", "fitted_strength", "mirror", "opponent"]


class Smoother(Prior):
    """A prior `D(x, sigma) = smooth(x, scale * strength(sigma), sigma)` with `strength` from the fitted curve.

    Args:
        scale: factor on the fitted strength; 1 is the best PSNR, more smooths more.

    Raises:
        ValueError: scale is not a positive number.
    """

    sigma_range = (0.0, 1.0)
    family: str

    def __init__(self, scale: float = 1.0) -> None:
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale of {self.name} must be a positive number, got {scale}.")
        self.scale = float(scale)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if not self.differentiable:
            x = x.detach()
        work = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        level = sigma.to(work.dtype)
        strength = self.scale * fitted_strength(self.family, level, x.shape[1])
        # At strength 0 a smoother divides by zero; any other strength stands in and the image itself is returned.
        idle = strength <= 0
        one = torch.ones_like(strength)
        result = self.smooth(work, torch.where(idle, one, strength), torch.where(idle, one, level))
        return torch.where(idle[:, None, None, None], work, result).to(x.dtype)

    @abstractmethod
    def smooth(self, x: Tensor, strength: Tensor, sigma: Tensor) -> Tensor:
        """Smooth x (b, C, H, W) with one positive strength per member (b,), at noise levels sigma (b,)."""


@lru_cache(maxsize=1)
def _curves() -> dict[str, dict[str, list[float]]]:
    curves: dict[str, dict[str, list[float]]] = json.loads(
        resources.files("invdiff.priors").joinpath("strength.json").read_text(encoding="utf-8")
    )
    return curves


def fitted_strength(family: str, sigma: Tensor, channels: int) -> Tensor:
    """The strength of best PSNR at each noise level, in the dtype of sigma.

    Args:
        family: a key of `strength.json`.
        sigma: noise levels (b,), at least 0.
        channels: image channels; one has a curve of its own, any other number uses that of colour.
    """
    curve = _curves()[family]
    log_sigma = torch.tensor(curve["sigma"], dtype=torch.float64).log()
    log_strength = torch.tensor(curve["gray" if channels == 1 else "colour"], dtype=torch.float64).log()
    slope = log_strength.diff() / log_sigma.diff()
    log_sigma, log_strength, slope = (t.to(sigma.device) for t in (log_sigma, log_strength, slope))
    level = sigma.double().log()
    segment = (torch.searchsorted(log_sigma, level.contiguous()) - 1).clamp(0, len(slope) - 1)
    strength = (log_strength[segment] + slope[segment] * (level - log_sigma[segment])).exp()
    return torch.where(sigma > 0, strength, torch.zeros_like(strength)).to(sigma.dtype)


def mirror(x: Tensor, rows: int, columns: int) -> Tensor:
    """Extend the last two axes by half-sample symmetric reflection (d c b a | a b c d | d c b a), by any amount."""
    for axis, amount in ((-2, rows), (-1, columns)):
        size = x.shape[axis]
        index = torch.arange(-amount, size + amount, device=x.device) % (2 * size)
        x = x.index_select(axis, torch.where(index < size, index, 2 * size - 1 - index))
    return x


def box_sum(x: Tensor, width: int) -> Tensor:
    """Sums over width x width windows that fit inside the last two axes, which shrink by width - 1.

    Runs of 1, 2, 4, ... samples are added together: a dozen additions whatever the width, and none of the rounding that
    differences of cumulative sums bring.
    """
    for axis in (-2, -1):
        run, length, total, done = x, 1, None, 0
        size = x.shape[axis] - width + 1
        remaining = width
        while remaining:
            if remaining & 1:
                part = run.narrow(axis, done, size)
                total = part if total is None else total + part
                done += length
            remaining >>= 1
            if remaining:
                run = run.narrow(axis, 0, run.shape[axis] - length) + run.narrow(axis, length, run.shape[axis] - length)
                length *= 2
        assert total is not None
        x = total
    return x


def opponent(x: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate three colour channels to (sum, red - blue, magenta - green), orthonormal, or back.

    The rotation keeps white noise white and gathers what the channels share in the first.
    """
    basis = x.new_tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    basis = basis / basis.norm(dim=1, keepdim=True)
    return torch.einsum("ij,bjhw->bihw", basis.T if inverse else basis, x)
