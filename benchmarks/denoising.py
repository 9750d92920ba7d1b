"""PSNR of priors as denoisers on a folder of photographs: `python -m benchmarks.denoising DIR`.

Noise of sigma 15, 25 and 50 of 255 is added and not clipped, drawn from a stream of the image's place in the sorted
folder; the figure is the mean PSNR over the images. With CBSD68 it compares with the table of DPIR (Zhang et al. 2021).
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invdiff import priors
from invdiff.metrics import psnr


def load_image(path: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def mean_psnr(prior: priors.Prior, paths: Sequence[Path], level: int) -> float:
    """Mean over the images of the PSNR in dB, at noise of `level` of 255 from the stream of the image's place."""
    sigma, total = level / 255, 0.0
    for index, path in enumerate(paths):
        x = load_image(path)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            total += float(psnr(prior(x + sigma * noise, sigma), x))
    return total / len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description="Denoising PSNR of priors.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--priors", nargs="*", default=["natural", "tv", "wavelet"], metavar="NAME")
    parser.add_argument("--levels", nargs="*", type=int, default=[15, 25, 50])
    parser.add_argument("--every", type=int, default=1, help="use every n-th image only")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "denoising.csv")
    settings = parser.parse_args()
    paths = sorted(settings.folder.glob("*.png"))[:: settings.every]
    if not paths:
        raise SystemExit(f"No PNG images in {settings.folder}: expected a folder such as CBSD68.")
    rows = []
    for name in settings.priors:
        prior = priors.load(name)
        for level in settings.levels:
            if level / 255 > prior.sigma_range[1] * (1 + 1e-6):
                continue
            clock = time.monotonic()
            row = {
                "prior": prior.name,
                "sigma_255": level,
                "psnr": f"{mean_psnr(prior, paths, level):.3f}",
                "images": len(paths),
                "seconds_per_image": f"{(time.monotonic() - clock) / len(paths):.3f}",
            }
            rows.append(row)
            print(*row.values(), flush=True)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with settings.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
