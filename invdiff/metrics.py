"""How good a restoration is where the truth is known, and what the measurement alone can say where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from invdiff.operators import Operator
from invdiff.operators.blur import CircularBlur

from .statistics import moments

__all__ = ["Chi2", "chi2", "estimate_sigma", "measured", "psnr", "spread_over_error", "spread_ratio", "ssim"]

# A draw whose residual is within 15 % of the noise variance is called consistent: solvers are approximate, the noise is
# rarely known better, and the sampling error of chi^2 (sqrt(2 / n)) is far below that for a photograph.
_TOLERANCE = 0.15
_WRAPS = " This blur wraps round at the borders, as that of a photograph does not: its boundary is 'valid'."


def psnr(image: Tensor, truth: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each member, 10 log10(data_range^2 / mean squared error), in dB.

    Args:
        image, truth: (b, C, H, W), or any shape that has a leading batch axis.
        data_range: the peak.

    Raises:
        ValueError: the shapes differ.

    >>> round(psnr(torch.full((1, 1, 2, 2), 0.6), torch.full((1, 1, 2, 2), 0.5)).item(), 3)
    20.0
    """
    _same(image, truth)
    error = (image.double() - truth.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(data_range**2 / error)


def ssim(
    image: Tensor, truth: Tensor, *, data_range: float = 1.0, window: Literal["gaussian", "uniform"] = "gaussian"
) -> Tensor:
    """Structural similarity of each member (Wang, Bovik, Sheikh and Simoncelli 2004, eq. 13), mean over channels.

    Args:
        image, truth: (b, C, H, W).
        data_range: the range of the values, L in the paper.
        window: "gaussian" is the paper's 11 x 11 window of sigma 1.5 (scikit-image with gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False); "uniform" is scikit-image's own default, 7 x 7 with the unbiased
            covariance.

    Raises:
        ValueError: the shapes differ, or the image is smaller than the window.
    """
    _same(image, truth)
    if window not in ("gaussian", "uniform"):
        raise ValueError(f"window is {window!r}: expected 'gaussian' or 'uniform'.")
    size = 11 if window == "gaussian" else 7
    if image.ndim != 4 or min(image.shape[-2:]) < size:
        raise ValueError(f"SSIM needs images (b, C, H, W) of at least {size} x {size}, got {tuple(image.shape)}.")
    weights = torch.ones(size, dtype=torch.float64, device=image.device)
    if window == "gaussian":
        weights = torch.exp(-0.5 * ((torch.arange(size, dtype=torch.float64, device=image.device) - 5) / 1.5) ** 2)
    weights = weights / weights.sum()
    unbiased = size**2 / (size**2 - 1) if window == "uniform" else 1.0
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def local_mean(t: Tensor) -> Tensor:
        return conv2d(conv2d(t, weights[None, None, :, None]), weights[None, None, None, :])

    def of_plane(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.double()[None, None], y.double()[None, None]
        mean_x, mean_y = local_mean(x), local_mean(y)
        var_x = unbiased * (local_mean(x * x) - mean_x * mean_x)
        var_y = unbiased * (local_mean(y * y) - mean_y * mean_y)
        covariance = unbiased * (local_mean(x * y) - mean_x * mean_y)
        similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        return (similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()

    # A plane at a time: the ten maps of a large image would take more memory than its restoration.
    planes = [of_plane(x, y) for x, y in zip(image.flatten(0, 1), truth.flatten(0, 1), strict=True)]
    return torch.stack(planes).reshape(image.shape[:2]).mean(1)


def measured(operator: Operator) -> Tensor:
    """Which values of a measurement depend on the image at all, a boolean tensor (1, *out_shape).

    A mask leaves zeros that say nothing; counting them would make any residual look small. They are found by sending
    one image with values between 0.25 and 0.75 through the operator.
    """
    generator = torch.Generator().manual_seed(0)
    # In float32, which every operator takes; what is below its rounding is not there.
    probe = 0.25 + 0.5 * torch.rand(1, *operator.in_shape, generator=generator)
    result = operator.to("cpu")(probe).abs()
    return result > 1e-6 * result.max()


@dataclass(frozen=True)
class Chi2:
    """Residual chi^2 per measured value: mean of ((A x - y) / sigma_y)^2.

    Args:
        value: mean over the draws; None where sigma is 0.
        values: how many measured values one draw is compared with.
        rms: root mean square of A x - y, in [0, 1] units.
        point: whether it belongs to a point estimate, for which no particular value is right.
        wraps: whether the operator is a blur that wraps round, as that of no photograph does.
    """

    value: float | None
    values: int
    rms: float
    point: bool
    wraps: bool = False

    @property
    def verdict(self) -> str:
        """One sentence; empty for a point estimate and where sigma is 0.

        The truth's own residual is noise, so its chi^2 is 1 +- sqrt(2 / n), and a draw from the exact posterior has the
        same distribution as the truth.
        """
        if self.point or self.value is None:
            return ""
        band = max(_TOLERANCE, 3 * math.sqrt(2 / self.values))
        if self.value > 1 + band:
            return (
                f"The draws miss the measurement by more than the noise (chi2 {self.value:.2f} > {1 + band:.2f}): "
                "more solver steps may bring them closer; else the operator or sigma is wrong, or prior and solver are "
                "biased here." + (_WRAPS if self.wraps else "")
            )
        if self.value < 1 - band:
            return (
                f"The draws follow the measurement more closely than its noise (chi2 {self.value:.2f} < {1 - band:.2f})"
                ": sigma is stated too high, or the solver fits the noise."
            )
        return f"The draws are consistent with the stated noise (chi2 {self.value:.2f}, expected 1 +- {band:.2f})."


def chi2(draws: Iterable[Tensor], y: Tensor, operator: Operator, sigma: float, *, point: bool = False) -> Chi2:
    """Compare draws with one measurement y (*out_shape or (1, *out_shape)) of noise level sigma.

    Args:
        draws: (K, *in_shape), or one (*in_shape) after another.
        y: the measurement.
        operator: that measured it.
        sigma: standard deviation of its noise.
        point: whether this is no draw but a point estimate, which may miss y.

    Raises:
        ValueError: y does not have the operator's out_shape.
    """
    if tuple(y.shape[-len(operator.out_shape) :]) != operator.out_shape or y.numel() != math.prod(operator.out_shape):
        raise ValueError(f"y has shape {tuple(y.shape)}: expected {operator.out_shape}, what the operator measures.")
    valid = measured(operator)
    # One draw at a time: a full batch of residuals would double the memory of the draws.
    squares = [(operator(x[None]) - y.to(x)).square()[valid.to(x.device)].double().mean() for x in draws]
    mean_square = float(torch.stack(squares).mean())
    value = mean_square / sigma**2 if sigma > 0 else None
    return Chi2(value, int(valid.sum()), math.sqrt(mean_square), point, isinstance(operator, CircularBlur))


def spread_ratio(draws: Tensor, truth: Tensor) -> float:
    """Spread against error: sqrt((K + 1) / K) RMS(std) / RMSE(mean), near 1 where the spread is honest.

    The mean of K draws errs by the posterior's variance times (K + 1) / K, hence the factor (Fortin et al. 2014).

    Args:
        draws: (K, C, H, W) with K at least 2.
        truth: (C, H, W) or (1, C, H, W).

    Raises:
        ValueError: fewer than two draws, or another shape.
    """
    if draws.shape[0] < 2:
        raise ValueError(f"The spread of {draws.shape[0]} draw does not exist: ask for at least 2 draws.")
    truth = truth.reshape(truth.shape[-3:]).to(draws.device)
    _same(draws[0], truth)
    return spread_over_error(*moments(draw[None].double() for draw in draws), draws.shape[0], truth)


def spread_over_error(mean: Tensor, std: Tensor, count: int, truth: Tensor) -> float:
    """`spread_ratio` of `count` draws of this mean and standard deviation, in the shape of the truth."""
    spread = std.double().square().mean().sqrt()
    error = (mean.double() - truth.to(mean).double()).square().mean().sqrt()
    return float(math.sqrt((count + 1) / count) * spread / error)


def estimate_sigma(y: Tensor) -> float:
    """Estimate the standard deviation of white Gaussian noise from the finest wavelet coefficients, in units of y.

    Median of |HH| / 0.6745 over the diagonal db2 details (Donoho and Johnstone 1994), as
    `skimage.restoration.estimate_sigma` without its need for PyWavelets; mean over channels. Exact zeros are left out.
    Fine texture counts as noise, so it is an upper estimate for sharp photographs, and it is far too low for noise that
    is correlated between pixels (a JPEG, an enlarged image).

    Args:
        y: (1, C, H, W) or (C, H, W).

    Raises:
        ValueError: the image is smaller than 4 x 4 or constant.
    """
    planes = y.detach().double().reshape(-1, 1, *y.shape[-2:])
    if min(planes.shape[-2:]) < 4:
        raise ValueError(f"The noise of an image of {y.shape[-2]} x {y.shape[-1]} cannot be estimated: state sigma.")
    root3 = math.sqrt(3)
    # Daubechies' D4 wavelet; half-sample symmetric borders, as PyWavelets has them.
    low = torch.tensor([1 + root3, 3 + root3, 3 - root3, 1 - root3], dtype=torch.float64, device=y.device)
    high = low.flip(0) * torch.tensor([1, -1, 1, -1], dtype=torch.float64, device=y.device) / (4 * math.sqrt(2))
    for axis in (-1, -2):
        planes = torch.cat(
            [planes.narrow(axis, 0, 3).flip(axis), planes, planes.narrow(axis, planes.shape[axis] - 3, 3).flip(axis)],
            axis,
        )
        taps = high.reshape((1, 1, 1, 4) if axis == -1 else (1, 1, 4, 1))
        planes = conv2d(planes, taps)
        planes = planes[..., 1::2] if axis == -1 else planes[..., 1::2, :]
    levels = []
    for plane in planes:
        details = plane[plane != 0].abs()
        # A flat image leaves rounding errors, not zeros.
        if details.numel() == 0 or details.max() <= 1e-12 * y.abs().max():
            raise ValueError("The image is constant, so that its noise cannot be estimated: state sigma.")
        levels.append(float(np.median(details.cpu().numpy())))
    return sum(levels) / len(levels) / 0.6744897501960817


def _same(image: Tensor, truth: Tensor) -> None:
    if image.shape != truth.shape:
        raise ValueError(
            f"The image has shape {tuple(image.shape)} and the truth {tuple(truth.shape)}: they must agree."
        )
