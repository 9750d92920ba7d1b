"""The figures of one restored image whose truth is known, and its pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff import plots
from invdiff.images import write_image
from invdiff.metrics import chi2, psnr, spread_over_error, ssim
from invdiff.noise import GaussianNoise, NoiseModel
from invdiff.operators import Operator
from invdiff.posterior import Posterior
from invdiff.provenance import describe, embed
from invdiff.scores import fair_crps

__all__ = ["COLUMNS", "figures", "one_image", "write_pictures"]

COLUMNS = (
    "image",
    "sha256",
    "psnr_mean",
    "psnr_draw",
    "ssim_mean",
    "ssim_draw",
    "lpips",
    "crps",
    "coverage90",
    "spread_skill",
    "chi2",
    "nfe",
    "nfe_backward",
    "seconds",
    "peak_mib",
    "draws",
    "label",
)
# Sides below the window of SSIM have none.
_SSIM_WINDOW = 11


def one_image(posterior: Posterior, number: int) -> Posterior:
    """The draws of one of the images of a posterior, without those that failed for it.

    Raises:
        FloatingPointError: they all failed.
    """
    draws = [draw[number].cpu() for _, draw in posterior.each()]
    kept = [draw for draw in draws if bool(torch.isfinite(draw).all())]
    if not kept:
        raise FloatingPointError(f"All draws of image {number + 1} failed: a smaller step or more steps may help.")
    return Posterior(torch.stack(kept), {"solver": posterior.record.get("solver", {})}, posterior.label)


def figures(
    posterior: Posterior, truth: Tensor, y: Tensor, operator: Operator, noise: NoiseModel
) -> dict[str, float | None]:
    """Figures of one image: psnr, ssim, crps, coverage90, spread_skill and chi2; None for what does not exist.

    PSNR and SSIM are of images clipped to [0, 1], "draw" means over the draws. A point estimate has no draw, coverage
    or spread, and its CRPS is its mean absolute error, as is that of a single draw.

    Args:
        posterior: the draws of one image, (K, C, H, W).
        truth: (C, H, W).
        y: its measurement, (*out_shape).
        operator: that measured it.
        noise: of the measurement.
    """
    draws = posterior.draws
    mean = posterior.mean()
    out: dict[str, float | None] = dict.fromkeys(("psnr_draw", "ssim_draw", "coverage90", "spread_skill", "chi2"))
    similar = min(truth.shape[-2:]) >= _SSIM_WINDOW
    out["psnr_mean"] = float(psnr(mean[None].clamp(0, 1), truth[None]))
    out["ssim_mean"] = float(ssim(mean[None].clamp(0, 1), truth[None])) if similar else None
    error = fair_crps(draws, truth) if len(posterior) > 1 else (mean - truth).abs().double()
    out["crps"] = float(error.mean())
    if isinstance(noise, GaussianNoise) and not isinstance(noise.sigma, Tensor):
        out["chi2"] = chi2(draws, y, operator, float(noise.sigma), point=posterior.point).value
    if not posterior.point:
        clipped, against = draws.clamp(0, 1), truth.expand_as(draws)
        out["psnr_draw"] = float(psnr(clipped, against).mean())
        out["ssim_draw"] = float(ssim(clipped, against).mean()) if similar else None
    if not posterior.point and len(posterior) > 1:
        out["spread_skill"] = spread_over_error(mean, posterior.std(), len(posterior), truth)
    if not posterior.point and len(posterior) >= 19:
        low, high = posterior.interval(0.9)
        out["coverage90"] = float(((low <= truth) & (truth <= high)).double().mean())
    return {key: None if value is None or not math.isfinite(value) else value for key, value in out.items()}


def write_pictures(folder: Path, posterior: Posterior, truth: Tensor, y: Tensor) -> None:
    """Write truth.png, mean.png, measurement.png where it is an image, and of draws draw.png, std.npy and std.png."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Any] = {"truth": truth, "mean": posterior.mean()}
    if y.ndim == 3 and y.shape[0] in (1, 3):
        pictures["measurement"] = y
    if not posterior.point:
        pictures["draw"] = posterior.draws[0]
    said = {"mean": describe(posterior, "restored")} | ({} if posterior.point else {"draw": describe(posterior, 0)})
    for name, picture in pictures.items():
        write_image(folder / f"{name}.png", picture.cpu(), provenance=said.get(name))
    if not posterior.point and len(posterior) > 1:
        np.save(folder / "std.npy", posterior.std().numpy().astype(np.float32))
        plots.uncertainty_map(posterior).savefig(folder / "std.png")
        embed(folder / "std.png", describe(posterior, "std"))
