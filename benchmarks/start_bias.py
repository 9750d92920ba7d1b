"""What starting at sigma_max instead of infinity costs: `python -m benchmarks.start_bias`.

Samplers start from 0.5 + sigma_max eps, where the image should still be in: N(m, lambda + sigma_max^2) in a coordinate
of mean m and variance lambda. An exact sampler turns that into draws whose mean and std are off by

                          share of (0.5 - m) that stays          std of the draws / sqrt(lambda)
    probability-flow ODE  sqrt(lambda / (lambda + s^2))          s / sqrt(lambda + s^2)
    stochastic (DDPM)     lambda / (lambda + s^2)                s sqrt(2 lambda + s^2) / (lambda + s^2)

with s = sigma_max. The ODE scales the start; the SDE forgets more of it. The largest lambda of photographs is that of
their mean, and it grows with their size: on the 2,118 training photographs, cut to at most
256x256 about their middle, the mean of an image has a std of 0.295, 0.145 and 0.062 along three colour directions (the
first is brightness), times 256 in orthonormal coordinates: sqrt(lambda) is 75, 37 and 16. `--measure DIR` computes
these figures from the images of a folder and prints them.

`heun_*` and `ddpm_*` are those of the samplers' own distributions, by `benchmarks.samplers.propagate`. `sampled_*`
are of the brightness of 3x256x256 draws of Heun with the exact denoiser of a stationary Gaussian prior (power 1/f^2
with those colour directions, mean 0.41, the mode at frequency 0 as measured), whose covariance is diagonal in Fourier
modes and colour directions: a draw is a line in the noise it starts from, whose slope is the std of the draws, and
fitting it leaves no sampling error. A network of limited receptive field knows the mean of its field only: this is the
bias of an exact denoiser, the largest there is.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.samplers import propagate
from invdiff import sample, solvers
from invdiff.images import read_image
from invdiff.priors import FunctionPrior
from invdiff.random import MemberRandom

SIDE = 256
# Of the training photographs, by --measure: mean value, std of the mean colour along `directions`, and pixel std.
MEAN = 0.41
COLOUR_STDS = (0.295, 0.145, 0.062)
SIGMAS = (1.0, 5.0, 10.0, 20.0, 40.0, 50.0, 80.0)
PIXEL_STD = 0.19


def ode(lam: float, sigma: float) -> tuple[float, float]:
    """Share of the offset that stays and std ratio, of the probability-flow ODE."""
    return math.sqrt(lam / (lam + sigma**2)), sigma / math.sqrt(lam + sigma**2)


def sde(lam: float, sigma: float) -> tuple[float, float]:
    """The same of a stochastic sampler that draws from the exact posterior of each step."""
    return lam / (lam + sigma**2), sigma * math.sqrt(2 * lam + sigma**2) / (lam + sigma**2)


def directions() -> Tensor:
    """Orthonormal colour directions, (3, 3), brightness first."""
    return torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]]).T / torch.tensor([3.0, 2.0, 6.0]).sqrt()


def spectrum() -> Tensor:
    """Variance of every Fourier mode of the three colour coordinates, (3, H, W)."""
    frequency = torch.fft.fftfreq(SIDE, dtype=torch.float64)
    radius = (frequency[:, None] ** 2 + frequency**2).sqrt()
    radius[0, 0] = 1.0
    power = radius**-2
    power[0, 0] = 0.0
    share = torch.tensor(COLOUR_STDS, dtype=torch.float64) ** 2
    # Three channels of PIXEL_STD^2 in all, divided among the directions as their means are.
    out = power / power.mean() * (3 * PIXEL_STD**2 * share / share.sum())[:, None, None]
    out[:, 0, 0] = share * SIDE**2
    return out


def stationary() -> FunctionPrior:
    """The exact denoiser of the Gaussian prior of 3x256x256 images, by FFT."""
    variance, turn = spectrum().float(), directions()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        modes = torch.fft.fft2(torch.einsum("bchw,cd->bdhw", x - MEAN, turn), norm="ortho")
        clean = torch.fft.ifft2(modes * (variance / (variance + sigma**2)), norm="ortho").real
        return torch.einsum("bdhw,cd->bchw", clean, turn) + MEAN

    return FunctionPrior(denoise, name="stationary gaussian", channels=3)


def measure(folder: Path) -> dict[str, Any]:
    """The constants above, of a folder's images, each cut to at most SIDE x SIDE about its middle.

    `pixel_std` is the root of the mean variance of a channel about its mean within the image.
    """
    means, variances = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
            continue
        image = read_image(path)[0].double()
        top, left = (max(side - SIDE, 0) // 2 for side in image.shape[1:])
        cut = image[:, top : top + SIDE, left : left + SIDE].expand(3, -1, -1)
        means.append(cut.mean((1, 2)))
        variances.append(cut.var((1, 2), correction=0).mean())
    if len(means) < 2:
        raise SystemExit(f"{folder} holds {len(means)} images: expected at least 2, to measure how they vary.")
    colours = torch.stack(means)
    return {
        "images": len(means),
        "MEAN": float(colours.mean()),
        "COLOUR_STDS": tuple((colours @ directions().double()).std(0).tolist()),
        "PIXEL_STD": float(torch.stack(variances).mean().sqrt()),
    }


def brightness(images: Tensor) -> Tensor:
    """The coefficient of the brightest direction at frequency 0, (b,), orthonormal coordinates."""
    return (images.double().mean((2, 3)) @ directions()[:, 0].double()) * SIDE


def rows(draws: int) -> list[dict[str, Any]]:
    """One row per sigma_max and colour direction; brightness is also sampled."""
    out: list[dict[str, Any]] = []
    centre = MEAN * math.sqrt(3) * SIDE
    offset = (0.5 - MEAN) * math.sqrt(3) * SIDE
    for sigma in SIGMAS:
        for k, name in enumerate(("brightness", "second colour", "third colour")):
            lam = (COLOUR_STDS[k] * SIDE) ** 2
            row: dict[str, Any] = {"sigma_max": sigma, "mode": name, "sqrt_lambda": math.sqrt(lam)}
            for kind, (share, ratio) in (("ode", ode(lam, sigma)), ("sde", sde(lam, sigma))):
                # The offset is along brightness, and in pixel values: 0.5 - MEAN.
                row |= {f"{kind}_mean_error": share * (0.5 - MEAN) if k == 0 else 0.0, f"{kind}_std_ratio": ratio}
            for kind, solver in (("heun", solvers.Heun(steps=80)), ("ddpm", solvers.DDPM(sigma_min=0.002))):
                start = torch.tensor([0.5 - (offset / SIDE if k == 0 else 0.0)], dtype=torch.float64)
                mean, variance = propagate(
                    replace(solver, sigma_max=sigma), start, torch.tensor([lam], dtype=torch.float64)
                )
                row |= {f"{kind}_std_ratio": math.sqrt(float(variance) / lam)}
                row |= {f"{kind}_mean_error": float(mean - start) / (offset / SIDE) * (0.5 - MEAN) if k == 0 else 0.0}
            if k == 0 and draws:
                chosen = solvers.Heun(steps=16, sigma_max=sigma)
                result = sample(chosen, None, stationary(), draws=draws, in_shape=(3, SIDE, SIDE), micro_batch=4)
                found = brightness(result.draws)
                noise = MemberRandom(0, [(k, 0) for k in range(draws)]).normal(torch.empty(draws, 3, SIDE, SIDE))
                start_at = brightness(noise)
                slope = float(torch.stack([found, start_at]).cov()[0, 1] / start_at.var())
                intercept = float(found.mean() - slope * start_at.mean())
                row |= {"sampled_mean_error": (intercept - centre) / (math.sqrt(3) * SIDE)}
                row |= {"sampled_std_ratio": slope / math.sqrt(lam), "sampled_draws": draws}
            out.append(row)
            print(line(row), flush=True)
    return out


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    keys = ("ode_mean_error", "ode_std_ratio", "sde_mean_error", "sde_std_ratio", "heun_std_ratio", "ddpm_std_ratio")
    sampled = "".join(f"{row[key]:10.3f}" for key in ("sampled_mean_error", "sampled_std_ratio") if key in row)
    return f"{row['sigma_max']:<6g}{row['mode']:<15}" + "".join(f"{row[key]:10.3f}" for key in keys) + sampled


def main() -> None:
    parser = argparse.ArgumentParser(description="The bias of starting at sigma_max.")
    parser.add_argument("--draws", type=int, default=8, help="draws of 3x256x256 images; 0 for the closed form alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "start_bias.csv")
    parser.add_argument("--measure", type=Path, metavar="DIR", help="print the figures of a folder of images instead")
    settings = parser.parse_args()
    if settings.measure is not None:
        found = measure(settings.measure)
        stds = ", ".join(f"{std:.4f}" for std in found["COLOUR_STDS"])
        print(f"{found['images']} images: MEAN {found['MEAN']:.4f}, COLOUR_STDS {stds}, ", end="")
        print(f"PIXEL_STD {found['PIXEL_STD']:.4f}")
        return
    heads = ("ode mean", "ode std", "sde mean", "sde std", "heun std", "ddpm std", "drawn mean", "drawn std")
    print(f"{'sigma':<6}{'mode':<15}" + "".join(f"{head:>10}" for head in heads))
    table = rows(settings.draws)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with settings.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, table[0].keys())
        writer.writeheader()
        for row in table:
            writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})
    print(f"{settings.out.name}: {len(table)} rows")


if __name__ == "__main__":
    main()
