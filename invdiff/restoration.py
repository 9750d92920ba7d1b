"""`restore`: from an array to a restored array, its draws and its figures in one call."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from . import priors
from .arrays import Alpha, Array, Layout, Range, from_array
from .choices import check_sigma, load_prior, load_solver, options_belong, pick_device
from .likelihood import Likelihood
from .metrics import chi2, estimate_sigma, measured, psnr, spread_over_error, ssim
from .montecarlo import auto_of
from .montecarlo import figures as monte_carlo
from .noise import GaussianNoise
from .operators import Mask, Operator
from .options import build_operator
from .posterior import Posterior
from .priors.base import Prior
from .random import MemberRandom
from .sampling import sample
from .solvers import Solver

if TYPE_CHECKING:
    from .calibrator import Calibrator
    from .distributed import Dask

__all__ = [
    "Restoration",
    "check_sigma",
    "figures",
    "load_prior",
    "load_solver",
    "pick_device",
    "restore",
    "simulate_measurement",
]

# The random stream of a simulated measurement's noise: a draw's number never gets here, so that the noise is not the
# one that a draw starts from.
_NOISE_STREAM = (2**40, 0)
_NO_BOUNDARY = (
    "The boundary of the blur is not given, and circular is taken, which wraps the picture round: a photograph wants "
    "--boundary valid, else ripples come in from its borders; a measurement that was simulated so --boundary circular."
)


@dataclass(frozen=True)
class Restoration:
    """What `restore` returns; arrays are in the layout and the data range of the input.

    Args:
        restored: the mean of the draws, or the point estimate; in the input's dtype.
        std: standard deviation of the draws per value, float32; None for a point estimate, or where a single draw did
            not fail.
        posterior: the draws in [0, 1] and the record of what ran.
        metrics: figures by name, ready for JSON (see `figures`).
        measurement: y in [0, 1], the operator's out_shape.
        operator: the operator that was used.
        sigma: the noise level that was used, [0, 1] units.
        sigma_estimated: whether sigma was estimated from the measurement.
        layout: of the input.
        truth: (C, H, W) in [0, 1] where it is known.
    """

    restored: Array
    std: Array | None
    posterior: Posterior
    metrics: dict[str, Any]
    measurement: Tensor
    operator: Operator
    sigma: float
    sigma_estimated: bool
    layout: Layout
    truth: Tensor | None = None

    @cached_property
    def draws(self) -> Array:
        """(draws, H, W[, C]) in the input's dtype, without those that failed; made at first use, all of them."""
        return np.stack([self.layout.to_array(draw.detach()) for _, draw in self.posterior.each()])

    def recalibrated(self, calibrator: Calibrator) -> Restoration:
        """The same with the spread that a calibrator (`calibration.calibrate`) gives it.

        `posterior`, `std`, `draws` and the figures of the spread are scaled, and the label names the guarantee; what
        `restore` returned keeps the draws as they were sampled, and chi2, psnr_draw and monte_carlo are of those.

        Args:
            calibrator: made with the same solver, prior, operator, noise and number of draws.

        Raises:
            ValueError: for a point estimate, other settings, or a result that is recalibrated already.
        """
        scaled = calibrator(self.posterior)
        if scaled.usable < 2:
            raise ValueError(f"A spread needs at least 2 draws: this result has {scaled.usable}; ask for more.")
        std = scaled.std()
        metrics = self.metrics | {"label": scaled.label, "mean_std": float(std.mean())}
        if self.truth is not None:
            ratio = spread_over_error(scaled.mean().cpu(), std.cpu(), scaled.usable, self.truth)
            metrics["spread_ratio"] = ratio if math.isfinite(ratio) else None
        array = self.layout.to_array(std, dtype=np.float32, difference=True)
        return replace(self, posterior=scaled, std=array, metrics=metrics)


def restore(
    image: Any,
    operator: Operator | Callable[[tuple[int, ...]], Operator] | str = "denoise",
    *,
    sigma: float | str,
    prior: str | Prior | Callable[..., Tensor] = "natural",
    solver: str | Solver | None = None,
    draws: int | Literal["auto"] = 16,
    tolerance: float | None = None,
    min_draws: int | None = None,
    max_draws: int | None = None,
    seed: int = 0,
    data_range: Range | None = None,
    device: torch.device | str = "auto",
    progress: bool = True,
    simulate: bool = False,
    truth: Any = None,
    alpha: Alpha = "refuse",
    micro_batch: int | None = None,
    tile: int | str = "auto",
    store: str | os.PathLike[str] | None = None,
    engine: str | Dask | None = None,
    operator_options: Mapping[str, Any] | None = None,
    prior_options: Mapping[str, Any] | None = None,
    solver_options: Mapping[str, Any] | None = None,
) -> Restoration:
    """Restore an image from its measurement y = A x + sigma n.

    Args:
        image: the measurement, H x W or H x W x C, uint8, uint16 or float; with `simulate` the clean image. An array of
            the operator's out_shape where that is not an image (a sinogram).
        operator: an operator; a function from the shape (C, H, W) of `image` to one; or a name of
            `invdiff.options.names()` with `operator_options` (psf=..., factor=..., mask=...).
        sigma: standard deviation of the noise in units of the data range, so that 0.02 is 5.1 grey levels of uint8; or
            "auto" for an estimate from the measurement.
        prior: a name of `priors.names()`, or any denoiser (x, sigma) -> estimate of x0. Gray images run through colour
            priors and the reverse.
        solver: a name of `solvers.names()` or a solver; if left out KPS with 30 steps and 3 products, half the cost of
            KPS() and on photographs as good (`docs/kps.md`).
        draws: number of draws, or "auto" for as many as `tolerance` needs; solvers that give a point estimate make one
            whatever it says.
        tolerance, min_draws, max_draws: with "auto", the Monte Carlo error of mean and std at which to stop, and the
            least and the most draws (`sample`).
        seed: of the draws and of simulated noise.
        data_range: the value that stands for 1, or those of 0 and 1 (a camera's offset and white); 255 for uint8, 65535
            for uint16 and 1 for float when left out.
        device: "auto" (a CUDA device where there is one), "cpu", "cuda" or a torch device.
        progress: show a progress bar on a terminal.
        simulate: degrade `image` first, restore that, and compare with `image`.
        truth: the clean image where it is known, for figures only, in the layout of the result; data_range applies to
            it where it has the dtype of `image`.
        alpha: refuse an alpha channel, or flatten the image on "white" or "black".
        micro_batch: members per batch; less needs less memory.
        tile: "auto" runs the prior in tiles where the image has more than 2^20 pixels and the prior says how far it
            looks; "off" never does; a number is the largest side of a tile in pixels (`priors.Tiled`).
        store: a folder that keeps the draws as they come, and the truth, and from which the same call goes on
            (`sample`).
        engine: "dask" or `invdiff.distributed.Dask(...)`, for draws on workers, which write to `store`.
        operator_options, prior_options, solver_options: settings of what is given by name. A blur without a boundary
            is circular, with a warning where nothing is simulated: photographs want {"boundary": "valid"}.

    Raises:
        TypeError, ValueError: for input that cannot be used, before the first step.

    >>> rng = np.random.default_rng(0)
    >>> noisy = np.tile(np.linspace(50, 200, 32), (32, 1)) + rng.normal(0, 10, (32, 32))
    >>> result = restore(noisy.clip(0, 255).astype(np.uint8), sigma=10 / 255, prior="tv", solver="pnp_admm")
    >>> result.restored.shape, result.restored.dtype, result.posterior.label
    ((32, 32), dtype('uint8'), 'point estimate')
    """
    level = check_sigma(sigma, simulate=simulate)
    if isinstance(image, (str, os.PathLike)):
        raise TypeError(f"image is the path {str(image)!r}: expected an array; read it with invdiff.images.read_array.")
    # Checked here too, since a solver that gives a point estimate never sees it.
    auto_of(draws, tolerance, min_draws, max_draws)
    if truth is not None and simulate:
        raise ValueError("Both truth and simulate are given: with simulate the image itself is the truth.")
    where = pick_device(device)
    options_belong(operator, operator_options, "operator")
    chosen = load_solver(solver, options_belong("kps" if solver is None else solver, solver_options, "solver"))
    slot = load_prior(prior, options_belong(prior, prior_options, "prior"))

    shaped, layout = _read(image, operator, data_range=data_range, alpha=alpha)
    forward = _operator(operator, shaped, simulate, operator_options)
    if forward.batch is not None:
        raise ValueError(f"The operator has {forward.batch} members: restore takes one image; use sample().")
    clean: Tensor | None = None
    if simulate:
        clean = _fits(shaped, forward.in_shape, "image")
        y = simulate_measurement(clean, forward, float(level or 0), seed=seed)
    else:
        y = _as_measurement(shaped, forward)
        if truth is not None:
            # A float measurement of an 8-bit photograph is usual: the stated range is that of the image's own dtype.
            same = np.asarray(truth).dtype == layout.dtype
            given = from_array(truth, data_range=data_range if same else None, alpha=alpha, name="truth")[0]
            clean = _fits(given, forward.in_shape, "truth")
    estimated = level is None
    if level is None:
        if not bool(measured(forward).all()):
            raise ValueError("sigma 'auto' needs a measurement without missing values: state sigma as a number.")
        level = estimate_sigma(y)
    from .priors.tiled import in_tiles

    slot = _match_channels(in_tiles(slot, tile, forward.in_shape), forward.in_shape)
    likelihood = Likelihood(y.to(where), forward.to(where), GaussianNoise(level))
    if operator == "blur" and not simulate and (operator_options or {}).get("boundary") is None:
        warnings.warn(_NO_BOUNDARY, stacklevel=2)
    drawn: dict[str, Any] = {"draws": 1}
    if getattr(chosen, "stochastic", True):
        drawn = {"draws": draws, "tolerance": tolerance, "min_draws": min_draws, "max_draws": max_draws}
    posterior = sample(
        chosen,
        likelihood,
        slot,
        **drawn,
        seed=seed,
        device=where,
        micro_batch=micro_batch,
        store=store,
        truth=None if store is None else clean,
        engine=engine,
        progress=progress,
    )
    centre = posterior.mean()
    has_spread = not posterior.point and posterior.usable > 1
    return Restoration(
        restored=layout.to_array(centre),
        std=layout.to_array(posterior.std(), dtype=np.float32, difference=True) if has_spread else None,
        posterior=posterior,
        metrics=figures(posterior, y, forward, level, truth=clean, estimated=estimated),
        measurement=y,
        operator=forward,
        sigma=level,
        sigma_estimated=estimated,
        layout=layout,
        truth=clean,
    )


def simulate_measurement(x: Tensor, operator: Operator, sigma: float, *, seed: int = 0) -> Tensor:
    """y = A x + sigma n of one image x (*in_shape), with zeros where the operator measures nothing; (*out_shape)."""
    z = operator(x[None])
    noise = MemberRandom(seed, [_NOISE_STREAM]).normal(z)
    return ((z + sigma * noise) * measured(operator).to(z))[0]


def figures(
    posterior: Posterior, y: Tensor, operator: Operator, sigma: float, *, truth: Tensor | None, estimated: bool = False
) -> dict[str, Any]:
    """Figures of a restoration, ready for JSON.

    draws, the number of those that count, and failed, of those that do not; sigma and sigma_estimated; chi2 (value,
    values, rms, verdict); mean_std; and where the truth is known psnr and ssim of the restored image (clipped to [0, 1]
    as it is when saved), psnr_draw (mean over the draws), psnr_measurement and ssim_measurement where shapes agree, and
    spread_ratio; of 3 draws or more monte_carlo (mean_error, std_error, more_to_halve). Names without a value are
    absent.
    """
    draws = (draw.detach().cpu() for _, draw in posterior.each())
    residual = chi2(draws, y.cpu(), operator.to("cpu"), sigma, point=posterior.point)
    out: dict[str, Any] = {
        "label": posterior.label,
        "draws": posterior.usable,
        "failed": len(posterior) - posterior.usable,
        "sigma": sigma,
        "sigma_estimated": estimated,
        "chi2": {
            "value": residual.value,
            "values": residual.values,
            "rms": residual.rms,
            "verdict": residual.verdict,
        },
    }
    spread = posterior.std().cpu() if not posterior.point and posterior.usable > 1 else None
    if spread is not None:
        out["mean_std"] = float(spread.mean())
    errors = monte_carlo(posterior)
    if errors is not None:
        out["monte_carlo"] = errors
    if truth is None:
        return out
    mean = posterior.mean().cpu()
    out |= _compare("", mean.clamp(0, 1), truth)
    if not posterior.point:
        levels = [psnr(draw.cpu().clamp(0, 1)[None], truth[None]) for _, draw in posterior.each()]
        out["psnr_draw"] = float(torch.cat(levels).mean())
    if spread is not None:
        out["spread_ratio"] = spread_over_error(mean, spread, len(levels), truth)
    if y.shape == truth.shape:
        out |= _compare("_measurement", y.cpu().clamp(0, 1), truth)
    return {
        name: value if not isinstance(value, float) or math.isfinite(value) else None for name, value in out.items()
    }


def _compare(suffix: str, image: Tensor, truth: Tensor) -> dict[str, float]:
    out = {f"psnr{suffix}": float(psnr(image[None], truth[None]))}
    if min(image.shape[-2:]) >= 11:
        out[f"ssim{suffix}"] = float(ssim(image[None], truth[None]))
    return out


def _match_channels(prior: Prior, in_shape: tuple[int, ...]) -> Prior:
    if prior.channels is None or len(in_shape) != 3 or prior.channels == in_shape[0]:
        return prior
    return priors.match_channels(prior, in_shape[0])


def _read(image: Any, operator: Any, *, data_range: Range | None, alpha: Alpha) -> tuple[Tensor, Layout]:
    """The caller's array as (1, C, H, W), or (1, *out_shape) where the operator does not measure images."""
    if isinstance(operator, Operator):
        if len(operator.in_shape) != 3:
            raise ValueError(f"The operator takes {operator.in_shape}: restore needs one of images, (C, H, W).")
        shape = tuple(np.shape(image))
        if len(operator.out_shape) != 3 and shape == operator.out_shape:
            flat, layout = from_array(np.asarray(image).reshape(1, -1), data_range=data_range, name="image")
            colour = operator.in_shape[0] > 1
            return flat.reshape(1, *shape), replace(layout, channel_axis=colour)
    return from_array(image, data_range=data_range, alpha=alpha)


def _operator(operator: Any, shaped: Tensor, simulate: bool, options: Mapping[str, Any] | None) -> Operator:
    shape = tuple(shaped.shape[1:])
    if isinstance(operator, Operator):
        return operator
    if isinstance(operator, str):
        return build_operator(operator, shape, simulate=simulate, **(options or {}))
    if hasattr(operator, "A_adjoint"):
        raise TypeError("operator is a deepinv physics: wrap it with operators.from_deepinv(physics, in_shape).")
    if not callable(operator):
        raise TypeError(
            f"operator is {type(operator).__name__}: expected an Operator, a name, or a function of a shape."
        )
    made = operator(shape)
    if not isinstance(made, Operator):
        raise TypeError(f"operator returned {type(made).__name__} for the shape {shape}: expected an Operator.")
    return made


def _fits(shaped: Tensor, expected: tuple[int, ...], what: str) -> Tensor:
    if tuple(shaped.shape[1:]) != expected:
        raise ValueError(
            f"The {what} has shape {tuple(shaped.shape[1:])} (C, H, W): the operator's images have {expected}."
        )
    return shaped[0]


def _as_measurement(shaped: Tensor, operator: Operator) -> Tensor:
    found, expected = tuple(shaped.shape[1:]), operator.out_shape
    if found == expected:
        return shaped[0] * measured(operator)[0]
    if isinstance(operator, Mask) and len(expected) == 3 and found == (1, *expected[1:]):
        seen = operator.singular > 0
        if bool((seen.sum(0) == 1).all()):  # a raw sensor image: every pixel belongs to one channel
            return shaped[0] * seen
    raise ValueError(f"The measurement has shape {found} (C, H, W): the operator measures {expected}.")
