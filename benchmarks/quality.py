"""Restorations of photographs by every solver here and by the peers': `python -m benchmarks.quality [--quick]`.

Crops of Set5, CBSD68 and Kodak24 (of the first images by a hash of their names, the crop of largest variance of five
fixed places), measured by

    blur       circular convolution with a Gaussian of 2 pixels
    motion     circular convolution with the first of Levin's measured motion kernels
    down4      bicubic reduction to a quarter of the size
    inpaint70  70 % of the pixels missing at random;  inpaint92: 92 %;  box: the middle quarter
    gray       the brightness alone

with Gaussian noise of --sigma-y. The network is the shipped prior for all. At equal cost (mode "equal"): a draw of KPS
with 30 steps and 3 products comes first, and each of the others takes as many steps as cost the same, a forward for a
call and two more for a pass back; plug-and-play methods, whose result is one image, have their own number of steps.
deepinv's `dpir` is its `optim.DPIR` with our prior as the denoiser, `dpir_tuned` the same with the settings of
`benchmarks.tuning`, and `dps_annealed` its DPS with another guidance, as the default fails at so few steps. Every draw
of TDS, FPS-SMC and MCGDiff comes from a cloud of its own, so that draws are independent as everybody's are; all
particles count as its cost: there are as many as the cost allows at the solver's own number of steps, at least 2, with
fewer steps where 2 cost too much. Left out are KPSCloud, whose clouds of 256 cost as many times more, and PnPDM, whose
diffusions of up to 100 steps leave it hardly two iterations at this cost.

Reported per crop and method: PSNR and SSIM of the draws' mean and of a draw, PSNR of the mean of infinitely many draws
(by `fair_error`: the mean of K draws is off by 1/K of their variance more, which favours draws too close together),
fair CRPS, coverage of central 90 % intervals (of (K - 1) / (K + 1) where there are K < 19 draws), processor seconds of
all draws. A point estimate's CRPS is its mean absolute error; its PSNR is held against that of means, which cost as
many times more as there are draws. Where one draw is not finite, the method failed, and stands behind all others.

Crops come one after another, the sets in turn, each with all tasks, noises and methods, so that what is finished at
any time is a fair part of the whole. The folder of the data is INVDIFF_DATA. Rows that stand in the CSV are kept, and
not computed again. Two processes share the work by --part 0/2 and --part 1/2, each with a CSV of its own; --merge puts
those together.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, priors
from invdiff.metrics import psnr, ssim
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Grayscale, Mask, Operator, gaussian_psf, load_psf, random_mask
from invdiff.record import environment, machine
from invdiff.scores import fair_crps, fair_error

from .denoising import load_image
from .quality_methods import METHODS, REFERENCE, THEIRS, run
from .quality_tables import TASKS, nominal, overall, ranks, table
from .restoration import crop
from .rows import Row, merge, read, write

RESULTS = Path(__file__).parent / "results" / "quality.csv"
SETS = ("Set5", "CBSD68", "Kodak24")
QUICK = (
    REFERENCE,
    "invdiff ddrm",
    "invdiff pnp_hqs",
    "deepinv ddrm",
    "deepinv diffpir",
    "deepinv dpir",
    "azula mmps",
)
FIGURES = ("psnr_mean", "psnr_limit", "psnr_draw", "ssim_mean", "ssim_draw", "crps", "coverage", "seconds")
KEY = ("image", "task", "sigma_y", "size", "draws", "method")
WHERE = ("device", "torch", "deepinv", "azula", "commit")
COLUMNS = (*KEY, "steps", "particles", "nfe", "nfe_backward", *FIGURES, *WHERE)


def operators(size: int, data: Path) -> dict[str, Operator]:
    """The seven degradations of colour crops."""
    shape = (3, size, size)
    box = torch.ones(size, size)
    box[size // 4 : size - size // 4, size // 4 : size - size // 4] = 0
    motion = load_psf(data / "kernels" / "Levin09.mat", index=0)
    return {
        "blur": Blur(gaussian_psf(2.0), shape),
        "motion": Blur(motion, shape),
        "down4": Downsample(4, shape, "bicubic"),
        "inpaint70": Mask(random_mask(shape, 0.3, seed=0), shape),
        "inpaint92": Mask(random_mask(shape, 0.08, seed=0), shape),
        "box": Mask(box, shape),
        "gray": Grayscale(shape),
    }


def crops(data: Path, sets: Sequence[str], count: int, size: int) -> list[tuple[str, Tensor]]:
    """Name and crop of the first `count` images of every set, the sets in turn."""
    chosen = []
    for name in sets:
        paths = sorted((data / "test" / name).glob("*.png"), key=lambda path: zlib.crc32(path.stem.encode()))[:count]
        chosen.append([(f"{name}/{path.stem}", path) for path in paths])
    longest = max(len(part) for part in chosen)
    picked = [part[place] for place in range(longest) for part in chosen if place < len(part)]
    return [(name, crop(load_image(path), size)[2]) for name, path in picked]


def where() -> Row:
    """The machine, the versions and the commit that a row was measured with."""
    found = environment(torch.device("cpu"))
    row = {"device": machine(torch.device("cpu"))["device"], "torch": found["torch"], "commit": found["git_commit"]}
    for library in THEIRS:
        try:
            row[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            row[library] = ""
    return row | {"commit": str(row["commit"])[:10]}


def figures(posterior: Posterior, truth: Tensor) -> dict[str, float]:
    """The figures of one set of draws at the truth (C, H, W); not a number where one of the draws is none."""
    draws = posterior.draws
    if not draws.isfinite().all():
        return dict.fromkeys(FIGURES[:-1], math.nan)
    mean = posterior.mean()
    many = truth.expand_as(draws)
    found = {"psnr_mean": float(psnr(mean[None], truth[None])), "ssim_mean": float(ssim(mean[None], truth[None]))}
    if posterior.point:
        return found | {"psnr_limit": found["psnr_mean"], "crps": float((mean - truth).abs().mean())}
    low, high = posterior.interval(nominal(len(draws)))
    return found | {
        "psnr_limit": -10 * float(fair_error(draws, truth).mean().log10()),
        "psnr_draw": float(psnr(draws, many).mean()),
        "ssim_draw": float(ssim(draws, many).mean()),
        "crps": float(fair_crps(draws, truth).mean()),
        "coverage": float(((truth >= low) & (truth <= high)).double().mean()),
    }


def rows(settings: argparse.Namespace, standing: Sequence[Row]) -> Iterator[Row]:
    """One row after another, without those that stand."""
    have, here = {tuple(row[key] for key in KEY): row for row in standing}, where()
    data, prior = Path(os.environ["INVDIFF_DATA"]), priors.load("natural")
    forward = operators(settings.size, data)
    first, parts = settings.part
    chosen = crops(data, settings.sets, settings.crops, settings.size)[first::parts]
    for (image, truth), sigma_y, task in itertools.product(chosen, settings.sigma_y, settings.tasks):
        z = forward[task](truth[None])[0]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{image} {task}".encode()))
        y = z + sigma_y * torch.randn(z.shape, generator=generator)
        likelihood = Likelihood(y, forward[task], GaussianNoise(sigma_y))
        cost = 0
        for method in dict.fromkeys((REFERENCE, *settings.methods)):
            row = dict(zip(KEY, map(str, [image, task, sigma_y, settings.size, settings.draws, method]), strict=True))
            key = tuple(row.values())
            if key not in have:
                outcome = run(method, likelihood, prior, settings.draws, cost)
                if outcome is None:
                    continue
                values = {figure: f"{value:.5g}" for figure, value in figures(outcome[0], truth).items()}
                row |= outcome[1] | values | here
                have[key] = row
                yield row
            if method == REFERENCE:
                cost = int(have[key]["nfe"]) + 2 * int(have[key]["nfe_backward"])


def part_of(word: str) -> tuple[int, int]:
    """ "1/2", the second of two parts, as (1, 2).

    Raises:
        ArgumentTypeError: it is not k/n with 0 <= k < n.
    """
    first, _, parts = word.partition("/")
    if not (first.isdigit() and parts.isdigit() and int(first) < int(parts)):
        raise argparse.ArgumentTypeError(f"{word!r} is no part: expected 0/2 or 1/2, say.")
    return int(first), int(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one 32x32 crop, seven methods, two tasks: half a minute")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS, metavar="SET")
    parser.add_argument("--crops", type=int, default=4, help="images of each set")
    parser.add_argument("--size", type=int, default=32, help="side of a crop, pixels")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--sigma-y", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--part", type=part_of, default=(0, 1), metavar="K/N", help="every N-th crop from the K-th on")
    parser.add_argument("--merge", action="store_true", help="put the CSVs of the parts together, and measure nothing")
    parser.add_argument("--out", type=Path, help="results/quality.csv; quality_quick.csv, quality_part0of2.csv")
    settings = parser.parse_args(argv)
    whole = settings.out or RESULTS
    if settings.merge:
        parts = [row for path in sorted(whole.parent.glob(f"{whole.stem}_part*.csv")) for row in read(path)]
        write(whole, COLUMNS, merge(read(whole), parts, KEY))
        return
    if not os.environ.get("INVDIFF_DATA"):
        raise SystemExit("INVDIFF_DATA is not set: expected the folder that holds test/ and kernels/.")
    out = whole
    if settings.quick:
        settings.sets, settings.crops, settings.size, settings.methods = SETS[:1], 1, 32, list(QUICK)
        settings.tasks, settings.sigma_y, out = ["blur", "inpaint70"], [0.05], whole.with_name("quality_quick.csv")
    elif settings.part[1] > 1:
        out = whole.with_name(f"{whole.stem}_part{settings.part[0]}of{settings.part[1]}.csv")
    found, standing = read(out), read(whole)
    other = [row for row in found if (row["size"], row["draws"]) != (str(settings.size), str(settings.draws))]
    if other:
        raise SystemExit(
            f"{out} holds {other[0]['draws']} draws of {other[0]['size']}x{other[0]['size']}: give --out another file, "
            "as these make no one table."
        )
    for row in rows(settings, [*standing, *found]):
        found.append(row)
        write(out, COLUMNS, found)
        print(*(row.get(key, "") for key in ("image", "task", "sigma_y", "method", "nfe", *FIGURES)), flush=True)
    print("\n".join([*ranks(found), "", *overall(found), "", *table(found)]))


if __name__ == "__main__":
    main()
