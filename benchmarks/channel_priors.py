"""PSNR of colour priors on gray images and the reverse, with the noise level right or not.

Run as `python -m benchmarks.channel_priors`. Needs INVDIFF_DATA (KAIR weights, CBSD68). Writes
benchmarks/results/channel_priors.csv.
"""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from invdiff.priors import Prior, load
from invdiff.priors.channels import ColourThroughGray, GrayThroughColour

LEVELS = (5, 10, 15, 25, 40)
CROP = 192


def crops(root: Path) -> Tensor:
    """The first six of every eighth image of CBSD68, 192 x 192 pixels each."""
    from skimage import io

    files = sorted((root / "test" / "CBSD68").glob("*.png"))[::8][:6]
    images = [torch.from_numpy(io.imread(file)[60 : 60 + CROP, 60 : 60 + CROP] / 255.0).float() for file in files]
    return torch.stack(images).permute(0, 3, 1, 2).contiguous()


def copied(prior: Prior, factor: float) -> Callable[[Tensor, float], Tensor]:
    """The gray image copied to three channels, with the prior told `factor` times sigma."""

    def call(y: Tensor, sigma: float) -> Tensor:
        return prior(y.expand(-1, 3, -1, -1), factor * sigma).mean(dim=1, keepdim=True)

    return call


@torch.no_grad()
def main() -> int:
    if "INVDIFF_DATA" not in os.environ:
        print("Set INVDIFF_DATA to the folder that holds weights/kair and test/CBSD68.", file=sys.stderr)
        return 2
    root = Path(os.environ["INVDIFF_DATA"])
    kair = root / "weights" / "kair"
    # The comparison asks for levels up to sqrt(3) * 40 / 255, a little above 55 / 255: it is not a use of the prior.
    ffdnet = load(f"ffdnet:{kair / 'ffdnet_color.pth'}")
    dncnn = load(f"dncnn:{kair / 'dncnn_color_blind.pth'}", sigma_range=(0.0, 75 / 255))
    single = load(f"dncnn:{kair / 'dncnn_25.pth'}")
    colour = crops(root)
    gray = colour.mean(dim=1, keepdim=True)
    per_channel = ColourThroughGray(GrayThroughColour(ffdnet), 3)
    per_channel.rotates = False
    methods: dict[str, tuple[Tensor, Callable[[Tensor, float], Tensor]]] = {
        "gray: noisy": (gray, lambda y, sigma: y),
        "gray: FFDNet, copied, told sigma": (gray, copied(ffdnet, 1.0)),
        "gray: FFDNet, copied, told 1.6 sigma": (gray, copied(ffdnet, 1.6)),
        "gray: FFDNet, copied, told sqrt(3) sigma": (gray, copied(ffdnet, math.sqrt(3))),
        "gray: FFDNet, noise made white": (gray, GrayThroughColour(ffdnet)),
        "gray: blind DnCNN, copied": (gray, copied(dncnn, 1.0)),
        "gray: blind DnCNN, noise made white": (gray, GrayThroughColour(dncnn)),
        "gray: DnCNN for gray at 25": (gray, single),
        "colour: noisy": (colour, lambda y, sigma: y),
        "colour: FFDNet as gray prior, each channel": (colour, per_channel),
        "colour: FFDNet as gray prior, rotated": (colour, ColourThroughGray(GrayThroughColour(ffdnet), 3)),
        "colour: FFDNet": (colour, ffdnet),
        "colour: DnCNN for gray at 25, each channel": (colour, ColourThroughGray(single, 3)),
    }
    target = Path(__file__).parent / "results" / "channel_priors.csv"
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", *(f"psnr_at_{level}" for level in LEVELS)])
        for name, (truth, method) in methods.items():
            row = []
            for level in LEVELS:
                if name.split(": ")[1].startswith("DnCNN for gray") and level != 25:
                    row.append("")
                    continue
                noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
                error = method(truth + level / 255 * noise, level / 255) - truth
                row.append(f"{-10 * error.square().flatten(1).mean(dim=1).log10().mean():.2f}")
            writer.writerow([name, *row])
            print(f"{name:45}", *(f"{value:>6}" for value in row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
