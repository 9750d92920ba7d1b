"""Cycle-spun wavelet thresholding as a prior."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from invdiff.priors.smoother import Smoother, mirror, opponent

__all__ = ["Wavelet", "daubechies", "threshold"]

# Rule -> power p of the shrinkage w (1 - (T / |w|)^p).
RULES = {"soft": 1.0, "garrote": 2.0, "sharp": 4.0, "hard": math.inf}


class Wavelet(Smoother):
    """Wavelet thresholding averaged over every shift (Coifman and Donoho 1995, translation-invariant denoising),

    `D(x, sigma) = mean_s S_-s W^T theta_T(W S_s x)`,

    with an orthonormal Daubechies transform W of `levels` levels, S_s a shift, theta_T the rule that shrinks detail
    coefficients, and T following sigma. The mean over all shifts is computed at once by the undecimated transform.
    Colour images are rotated first to (sum, red - blue, magenta - green), orthonormally.

    The rules are `theta_T(w) = w max(0, 1 - (T / |w|)^p)`: "soft" (p = 1), "garrote" (2, Gao 1998), "sharp" (4) and
    "hard" (infinity, which jumps at T and is therefore not differentiable). Each has a fitted curve of its own; "sharp"
    is continuous and never more than 0.1 dB below the best of the others on the images of the fit.

    Args:
        scale: factor on the fitted threshold T.
        rule: one of the four.
        order: vanishing moments of the wavelet (2: "db2").
        levels: depth of the transform; an image too small for it is extended by reflection.

    Raises:
        ValueError: an unknown rule, or order or levels out of 1 to 8.
    """

    name = "wavelet"

    def __init__(self, scale: float = 1.0, rule: str = "sharp", order: int = 2, levels: int = 5) -> None:
        super().__init__(scale)
        if rule not in RULES:
            raise ValueError(f"rule of wavelet must be one of {', '.join(RULES)}, got {rule!r}.")
        for what, value in (("order", order), ("levels", levels)):
            if not 1 <= value <= 8:
                raise ValueError(f"{what} of wavelet must be 1 to 8, got {value}.")
        self.rule = rule
        self.order = order
        self.levels = levels
        self.family = f"wavelet_{rule}"
        self.differentiable = rule != "hard"

    def smooth(self, x: Tensor, strength: Tensor, sigma: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # The transform is periodic: the reflected margin keeps the seam away from the image; it is as wide as the
        # coarsest filter's step, so that even a small image has all its levels.
        margin = 2**self.levels
        padded = mirror(x, margin, margin)
        spun = opponent(padded) if x.shape[1] == 3 else padded
        low, high = (t.to(x) for t in daubechies(self.order))
        spun = _spin(spun, strength[:, None, None, None], self.rule, low, high, 0, self.levels)
        spun = spun[..., margin : margin + height, margin : margin + width]
        return opponent(spun, inverse=True) if x.shape[1] == 3 else spun


def _spin(x: Tensor, level: Tensor, rule: str, low: Tensor, high: Tensor, depth: int, levels: int) -> Tensor:
    """Analyse, threshold the three details, recurse into the average, and rebuild the mean over shifts."""
    if depth == levels:
        return x
    step = 2**depth
    smooth, sharp = _correlate(x, low, step, -1), _correlate(x, high, step, -1)
    average = _spin(_correlate(smooth, low, step, -2), level, rule, low, high, depth + 1, levels)
    detail = [
        threshold(_correlate(band, filters, step, -2), level, rule)
        for band, filters in ((smooth, high), (sharp, low), (sharp, high))
    ]
    smooth = _convolve(average, low, step, -2) + _convolve(detail[0], high, step, -2)
    sharp = _convolve(detail[1], low, step, -2) + _convolve(detail[2], high, step, -2)
    # Each axis holds both phases of the decimated transform, so the adjoint counts every sample twice per axis.
    return (_convolve(smooth, low, step, -1) + _convolve(sharp, high, step, -1)) / 4


def threshold(w: Tensor, level: Tensor, rule: str) -> Tensor:
    """Shrink the coefficients w towards 0: `w max(0, 1 - (level / |w|)^p)` with p of the rule."""
    # The clamp keeps the unused branch finite, and with it the gradient of `where`.
    outside = w.abs() > level
    if rule == "hard":
        return torch.where(outside, w, 0)
    ratio = level / torch.where(outside, w.abs(), level)
    return torch.where(outside, w * (1 - ratio ** RULES[rule]), 0)


def _correlate(x: Tensor, taps: Tensor, step: int, axis: int) -> Tensor:
    """`sum_k taps[k] x[n + k step]`, periodic."""
    return sum((tap * x.roll(-k * step, axis) for k, tap in enumerate(taps)), torch.zeros_like(x))


def _convolve(x: Tensor, taps: Tensor, step: int, axis: int) -> Tensor:
    """The adjoint of `_correlate`: `sum_k taps[k] x[n - k step]`, periodic."""
    return sum((tap * x.roll(k * step, axis) for k, tap in enumerate(taps)), torch.zeros_like(x))


@lru_cache(maxsize=8)
def daubechies(order: int) -> tuple[Tensor, Tensor]:
    """Low- and high-pass filters (2 order taps, float64, unit norm) of the Daubechies wavelet with `order` moments.

    From the definition (Daubechies 1992, section 6.1): |H(w)|^2 = cos^2(w/2)^order P(sin^2(w/2)), where P is the
    binomial polynomial, factored with its roots inside the unit circle.

    >>> low, high = daubechies(2)
    >>> [round(float(tap), 4) for tap in low]
    [0.483, 0.8365, 0.2241, -0.1294]
    """
    import numpy as np

    # Roots y of P, each mapped to the z with y = (2 - z - 1/z) / 4 that lies inside the unit circle.
    binomial = [math.comb(order - 1 + k, k) for k in range(order)]
    roots = np.roots(binomial[::-1]).astype(complex)
    inside = []
    for y in roots:
        pair = np.roots([1.0, 4 * y - 2, 1.0])
        inside.append(pair[np.argmin(np.abs(pair))])
    taps = np.real(np.poly([-1.0] * order + inside))
    low = torch.from_numpy(taps * math.sqrt(2) / taps.sum())
    signs = torch.tensor([(-1.0) ** k for k in range(2 * order)], dtype=torch.float64)
    return low, low.flip(0) * signs
