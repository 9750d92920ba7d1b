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
Reported per crop and method: PSNR and SSIM of the draws' mean and of a draw, fair CRPS, coverage of central 90 %
intervals, seconds of all draws. A point estimate's CRPS is its mean absolute error.

The folder of the data is INVDIFF_DATA. Rows that stand in the CSV are kept, and not computed again.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, priors, sample, solvers
from invdiff.compare import interval
from invdiff.ensemble import Counted
from invdiff.metrics import psnr, ssim
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Grayscale, Mask, Operator, gaussian_psf, load_psf, random_mask
from invdiff.priors import Prior
from invdiff.scores import fair_crps

from . import peers
from .denoising import load_image
from .restoration import crop
from .rows import Row, read, write

RESULTS = Path(__file__).parent / "results" / "quality.csv"
SETS = ("Set5", "CBSD68", "Kodak24")
TASKS = ("blur", "motion", "down4", "inpaint70", "inpaint92", "box", "gray")
REFERENCE = "invdiff kps"
# What a step costs: a forward for a call, two more for a pass back; of MMPS it depends on how a library solves for it.
DRAWN = {"kps": 0, "ddrm": 1, "diffpir": 1, "pigdm": 3, "dps": 3, "mmps": 3, "dps_annealed": 3}
DRAWN |= {"deepinv mmps": 7, "azula mmps": 5}
OURS = ("kps", "ddrm", "diffpir", "pigdm", "mmps", "dps", "pnp_hqs", "red_gd")
THEIRS = {
    "deepinv": ("ddrm", "diffpir", "pigdm", "mmps", "dps", "dps_annealed", "pnp_hqs"),
    "azula": ("diffpir", "pigdm", "mmps", "dps"),
}
METHODS = tuple(f"invdiff {name}" for name in OURS) + tuple(
    f"{library} {name}" for library, names in THEIRS.items() for name in names
)
QUICK = (
    REFERENCE,
    "invdiff ddrm",
    "invdiff pnp_hqs",
    "deepinv ddrm",
    "deepinv diffpir",
    "deepinv pnp_hqs",
    "azula mmps",
)
FIGURES = ("psnr_mean", "psnr_draw", "ssim_mean", "ssim_draw", "crps", "coverage", "seconds")
KEY = ("image", "task", "sigma_y", "size", "draws", "method")
COLUMNS = (*KEY, "steps", "nfe", "nfe_backward", *FIGURES)


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


def own(name: str, likelihood: Likelihood, prior: Prior, draws: int, steps: int | None) -> tuple[Posterior, Row]:
    """One of our solvers: its draws, and what they took."""
    options = {"steps": 30, "products": 3} if name == "kps" else {} if steps is None else {"steps": steps}
    solver = solvers.load(name, **options)
    posterior = sample(solver, likelihood, prior, draws=draws if solver.stochastic else 1, progress=False)
    taken = getattr(solver, "steps", getattr(solver, "iterations", ""))
    return posterior, {"steps": str(taken)} | {key: str(posterior.record[key]) for key in ("nfe", "nfe_backward")}


def peer(
    library: str, name: str, likelihood: Likelihood, prior: Prior, draws: int, steps: int | None
) -> tuple[Posterior, Row] | None:
    """One of the peers' methods; None where it does not take the operator."""
    assert isinstance(likelihood.noise, GaussianNoise)
    operator, level = likelihood.operator, float(likelihood.noise.like(likelihood.batched_y).flatten()[0])
    own_operator = peers.same(operator, name, level) if library == "deepinv" else operator
    if own_operator is None:
        return None
    slot = Counted(prior)
    torch.manual_seed(0)
    build = getattr(peers, library)
    point = name == "pnp_hqs"
    made = build(name, own_operator, likelihood.batched_y[0], slot, level, steps)(1 if point else draws)
    each = draws if (library, name) == ("azula", "dps") else 1
    row = {"steps": str(steps or ""), "nfe": f"{slot.calls / each:.0f}", "nfe_backward": f"{slot.backward / each:.0f}"}
    return Posterior(made.float(), {}, "point estimate" if point else "uncalibrated spread"), row


def figures(posterior: Posterior, truth: Tensor) -> dict[str, float]:
    """The figures of one set of draws at the truth (C, H, W)."""
    draws, mean = posterior.draws, posterior.mean()
    many = truth.expand_as(draws)
    found = {"psnr_mean": float(psnr(mean[None], truth[None])), "ssim_mean": float(ssim(mean[None], truth[None]))}
    if posterior.point:
        return found | {"crps": float((mean - truth).abs().mean())}
    low, high = posterior.interval(0.9)
    return found | {
        "psnr_draw": float(psnr(draws, many).mean()),
        "ssim_draw": float(ssim(draws, many).mean()),
        "crps": float(fair_crps(draws, truth).mean()),
        "coverage": float(((truth >= low) & (truth <= high)).double().mean()),
    }


def rows(settings: argparse.Namespace, standing: Sequence[Row]) -> Iterator[Row]:
    """One row after another, without those that stand."""
    have = {tuple(row[key] for key in KEY): row for row in standing}
    data, prior = Path(os.environ["INVDIFF_DATA"]), priors.load("natural")
    forward = operators(settings.size, data)
    for image, truth in crops(data, settings.sets, settings.crops, settings.size):
        for task in settings.tasks:
            z = forward[task](truth[None])[0]
            generator = torch.Generator().manual_seed(zlib.crc32(f"{image} {task}".encode()))
            y = z + settings.sigma_y * torch.randn(z.shape, generator=generator)
            likelihood = Likelihood(y, forward[task], GaussianNoise(settings.sigma_y))
            cost = 0
            for method in dict.fromkeys((REFERENCE, *settings.methods)):
                head = [image, task, settings.sigma_y, settings.size, settings.draws, method]
                row = dict(zip(KEY, map(str, head), strict=True))
                key = tuple(row.values())
                if key not in have:
                    library, name = method.split()
                    share = DRAWN.get(method, DRAWN.get(name, 0))
                    steps = math.ceil(cost / share) if share else None
                    make: Callable[..., Any] = own if library == "invdiff" else functools.partial(peer, library)
                    clock = time.monotonic()
                    outcome = make(name, likelihood, prior, settings.draws, steps)
                    if outcome is None:
                        continue
                    values = figures(outcome[0], truth) | {"seconds": time.monotonic() - clock}
                    row |= outcome[1] | {figure: f"{value:.5g}" for figure, value in values.items()}
                    have[key] = row
                    yield row
                if method == REFERENCE:
                    cost = int(have[key]["nfe"]) + 2 * int(have[key]["nfe_backward"])


def table(found: Sequence[Row]) -> list[str]:
    """Markdown: means over the crops; in brackets the 95 % interval of the difference to KPS, crop by crop."""
    cells: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in found:
        cells.setdefault((row["sigma_y"], row["task"], row["method"]), {})[row["image"]] = row
    shown = ("psnr_mean", "psnr_draw", "ssim_mean", "crps", "coverage")
    lines = [
        "| task | method | crops | NFE + passes back | " + " | ".join(shown) + " |",
        "| --- " * (4 + len(shown)) + "|",
    ]
    order = {name: place for place, name in enumerate(METHODS)}
    for sigma_y, task, method in sorted(cells, key=lambda cell: (cell[0], TASKS.index(cell[1]), order[cell[2]])):
        here, reference = cells[sigma_y, task, method], cells.get((sigma_y, task, REFERENCE), {})
        names = sorted(set(here) & set(reference))
        texts = [_text(here, reference, names, figure, method == REFERENCE) for figure in shown]
        nfe, back = (sum(float(here[name][key]) for name in names) / len(names) for key in ("nfe", "nfe_backward"))
        cost = f"{nfe:.0f} + {back:.0f}" if back else f"{nfe:.0f}"
        lines.append(f"| {task} {sigma_y} | {method} | {len(names)} | {cost} | " + " | ".join(texts) + " |")
    return lines


def _text(here: dict[str, Row], reference: dict[str, Row], names: Sequence[str], figure: str, alone: bool) -> str:
    if not all(here[name].get(figure) for name in names):
        return "-"
    values = [float(here[name][figure]) for name in names]
    digits = 4 if figure == "crps" else 2
    text = f"{sum(values) / len(values):.{digits}f}"
    if alone or len(names) < 2:
        return text
    low, high = interval(value - float(reference[name][figure]) for value, name in zip(values, names, strict=True))
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one 32x32 crop, six methods, two tasks: 2 minutes")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS, metavar="SET")
    parser.add_argument("--crops", type=int, default=4, help="images of each set")
    parser.add_argument("--size", type=int, default=64, help="side of a crop, pixels")
    parser.add_argument("--draws", type=int, default=19)
    parser.add_argument("--sigma-y", type=float, default=0.05)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args(argv)
    if not os.environ.get("INVDIFF_DATA"):
        raise SystemExit("INVDIFF_DATA is not set: expected the folder that holds test/ and kernels/.")
    if settings.quick:
        settings.sets, settings.crops, settings.size, settings.methods = SETS[:1], 1, 32, list(QUICK)
        settings.tasks, settings.out = ["blur", "inpaint70"], settings.out.with_name("quality_quick.csv")
    found = read(settings.out)
    for row in rows(settings, found):
        found.append(row)
        write(settings.out, COLUMNS, found)
        print(*(row.get(key, "") for key in ("image", "task", "method", "nfe", *FIGURES)), flush=True)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
