"""Draws of solvers on photographs, with the shipped prior: `python -m benchmarks.restoration DIR [DIR ...]`.

From each folder the first `--crops` images, in an order that a hash of their names fixes, give one crop each: of five
fixed places the one of largest variance. Every crop is measured by four operators,

    blur     circular convolution with a Gaussian of 2 pixels
    down4    bicubic reduction to a quarter of the size
    inpaint  70 % of the pixels missing
    gray     the brightness alone

with Gaussian noise, and every solver draws from the posterior at equal cost. A draw costs a forward for each call of
the denoiser and two more for each backward pass through it. KPS runs first; the others take as many steps as reach its
cost on the same crop and operator, so that theirs is the same or up to 2 more (mode "equal"), or their own number of
steps (mode "default").

Reported per crop, operator and solver, each a mean over the pixels:

    crps       of the draws at the truth, without bias: E|x - t| - E|x - x'| / 2 over pairs of different draws
               (Gneiting and Raftery 2007, eq. 21, with the ensemble's 1 / (K (K - 1)) of Ferro 2014)
    coverage   share of the true pixels inside the draws' central 90 % interval
    spread     sqrt((K + 1) / K) std / error of the mean
    psnr_mean  PSNR of the draws' mean
    psnr_draw  mean PSNR of one draw
    chi2       mean of ((A x - y) / sigma_y)^2 over the draws
    outside    share of the draws' values beyond -0.1 and 1.1
    seconds    for all draws

No image is written: folders such as CBSD68 and Kodak24 are not ours to ship.
"""

from __future__ import annotations

import argparse
import csv
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, priors, sample, solvers
from invdiff.metrics import chi2, psnr, spread_ratio
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Grayscale, Mask, Operator, gaussian_psf, random_mask
from invdiff.priors import Prior
from invdiff.scores import fair_crps

from .denoising import load_image
from .laboratory import setting
from .rows import Row, read

RESULTS = Path(__file__).parent / "results" / "restoration.csv"
TASKS = ("blur", "down4", "inpaint", "gray")
REFERENCE = "kps"
# What one step costs, forwards and twice the backward passes: the number of steps at equal cost follows.
STEP_COST = {"ddrm": 1, "diffpir": 1, "pigdm": 3, "dps": 3, "mmps": 3}
FIGURES = ("crps", "coverage", "spread", "psnr_mean", "psnr_draw", "chi2", "outside", "seconds")
KEY = ("image", "task", "sigma_y", "size", "draws", "solver", "mode")
COLUMNS = (*KEY, "top", "left", "settings", "steps", "nfe", "nfe_backward", "cost", *FIGURES)


def operators(size: int) -> dict[str, Operator]:
    """The four degradations of colour images of size x size pixels."""
    shape = (3, size, size)
    return {
        "blur": Blur(gaussian_psf(2.0), shape),
        "down4": Downsample(4, shape, "bicubic"),
        "inpaint": Mask(random_mask(shape, 0.3, seed=0), shape),
        "gray": Grayscale(shape),
    }


def crop(image: Tensor, size: int) -> tuple[int, int, Tensor]:
    """Top, left and the crop (3, size, size) of (1, 3, H, W) that has the largest variance of five fixed places.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    height, width = (side - size for side in image.shape[-2:])
    if min(height, width) < 0:
        raise ValueError(
            f"An image of {tuple(image.shape[-2:])} pixels has no crop of {size}: choose a smaller --size."
        )
    shares = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
    places = [(int(down * height), int(right * width)) for down, right in shares]
    parts = [(top, left, image[0, :, top : top + size, left : left + size]) for top, left in places]
    return max(parts, key=lambda part: float(part[2].var()))


def images(folders: Sequence[Path], count: int) -> list[tuple[str, Path]]:
    """Name and file of the first `count` images of every folder by the hash of their names, the folders in turn."""
    chosen = []
    for folder in folders:
        paths = sorted(folder.glob("*.png"), key=lambda path: zlib.crc32(path.stem.encode()))[:count]
        if not paths:
            raise SystemExit(f"No PNG images in {folder}: expected a folder such as CBSD68.")
        chosen.append([(f"{folder.name}/{path.stem}", path) for path in paths])
    longest = max(len(part) for part in chosen)
    return [part[place] for place in range(longest) for part in chosen if place < len(part)]


def figures(posterior: Posterior, truth: Tensor, likelihood: Likelihood, sigma_y: float) -> dict[str, float]:
    """The figures of one set of draws but its seconds; truth is (C, H, W)."""
    draws = posterior.draws
    low, high = posterior.interval(0.9)
    misfit = chi2(draws, likelihood.y, likelihood.operator, sigma_y).value
    assert misfit is not None
    return {
        "crps": float(fair_crps(draws, truth).mean()),
        "coverage": float(((truth >= low) & (truth <= high)).double().mean()),
        "spread": spread_ratio(draws, truth),
        "psnr_mean": float(psnr(posterior.mean()[None], truth[None])),
        "psnr_draw": float(psnr(draws, truth.expand_as(draws)).mean()),
        "chi2": misfit,
        "outside": float(((draws < -0.1) | (draws > 1.1)).double().mean()),
    }


def measure(name: str, task: str, truth: Tensor, sigma_y: float) -> Likelihood:
    """One measurement of the crop, its noise fixed by the names of image and task."""
    operator = operators(truth.shape[-1])[task]
    z = operator(truth[None])[0]
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {task}".encode()))
    return Likelihood(z + sigma_y * torch.randn(z.shape, generator=generator), operator, GaussianNoise(sigma_y))


def run_one(
    solver: solvers.Solver, likelihood: Likelihood, prior: Prior, truth: Tensor, sigma_y: float, draws: int, batch: int
) -> tuple[Row, Posterior]:
    """The figures of one solver on one measurement as text, with its draws."""
    posterior = sample(solver, likelihood, prior, draws=draws, seed=0, micro_batch=batch, progress=False)
    record = posterior.record
    values = figures(posterior, truth, likelihood, sigma_y) | {"seconds": record["seconds"]}
    row = {key: f"{values[key]:.5g}" for key in FIGURES}
    row |= {key: str(record[key]) for key in ("nfe", "nfe_backward")}
    row["cost"] = str(record["nfe"] + 2 * record["nfe_backward"])
    row |= {"settings": repr(solver), "steps": str(getattr(solver, "steps", ""))}
    return row, posterior


def measured_rows(settings: argparse.Namespace, standing: Sequence[Row]) -> Iterator[Row]:
    """One row after another, those left out that stand already with the same settings of the solver."""
    have = {tuple(row[key] for key in KEY): row for row in standing}
    prior = priors.load("natural")
    names = [REFERENCE, *(name for name in settings.solvers if name != REFERENCE)]
    for image, path in images(settings.folders, settings.crops):
        top, left, truth = crop(load_image(path), settings.size)
        for task in settings.tasks:
            likelihood = measure(image, task, truth, settings.sigma_y)
            cost = 0
            for name in names:
                # With "default" KPS also runs with its own settings, where "equal" has those of --set.
                both = dict.fromkeys(("equal", *settings.modes))
                for mode in both if name == REFERENCE else settings.modes:
                    head = [image, task, settings.sigma_y, settings.size, settings.draws, name, mode]
                    row = dict(zip(KEY, map(str, head), strict=True))
                    key = tuple(row.values())
                    equal = name != REFERENCE and mode == "equal"
                    chosen = {"steps": math.ceil(cost / STEP_COST[name])} if equal else {}
                    solver = solvers.load(
                        name, **(dict(settings.set) if name == REFERENCE and mode == "equal" else chosen)
                    )
                    if key not in have or have[key]["settings"] != repr(solver):
                        row |= {"top": str(top), "left": str(left)}
                        row |= run_one(
                            solver, likelihood, prior, truth, settings.sigma_y, settings.draws, settings.micro_batch
                        )[0]
                        have[key] = row
                        yield row
                    if name == REFERENCE and mode == "equal":
                        cost = int(have[key]["cost"])


def bootstrap(differences: Tensor, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of differences, (n,), over resampled crops."""
    count = differences.numel()
    index = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))
    means = differences.double()[index].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown: the mean of each figure over the crops, and in brackets the interval of its difference to KPS.

    Only crops that KPS has too are counted, so that every difference is paired.
    """
    cells: dict[tuple[str, str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        group = (row["size"], row["sigma_y"], row["task"], row["solver"], row["mode"])
        cells.setdefault(group, {})[row["image"]] = row
    lines = ["| task | solver | crops | steps | cost | " + " | ".join(FIGURES) + " |", "| --- " * 13 + "|"]
    for group, found in sorted(cells.items(), key=lambda cell: _place(cell[0])):
        reference = cells.get((group[0], group[1], group[2], REFERENCE, "equal"), {})
        crops = sorted(set(found) & set(reference))
        if not crops:
            continue
        texts = []
        for figure in FIGURES:
            own = torch.tensor([float(found[name][figure]) for name in crops])
            text = f"{own.mean():.4f}" if figure == "crps" else f"{own.mean():.3f}"
            if group[3] != REFERENCE and len(crops) > 1:
                low, high = bootstrap(own - torch.tensor([float(reference[name][figure]) for name in crops]))
                text += f" [{low:+.4f}, {high:+.4f}]" if figure == "crps" else f" [{low:+.2f}, {high:+.2f}]"
            texts.append(text)
        steps, cost = (sum(float(found[name][key]) for name in crops) / len(crops) for key in ("steps", "cost"))
        task = f"{group[2]} {group[1]}"
        solver = group[3] + (" (default)" if group[4] == "default" else "")
        lines.append(f"| {task} | {solver} | {len(crops)} | {steps:.0f} | {cost:.0f} | " + " | ".join(texts) + " |")
    return lines


def short(rows: Sequence[Row], size: int) -> list[str]:
    """Markdown of docs/kps.md: CRPS and coverage of each solver at equal cost, means over the crops of one size."""
    own = [row for row in rows if row["size"] == str(size) and row["mode"] == "equal"]
    names = [name for name in (REFERENCE, *STEP_COST) if any(row["solver"] == name for row in own)]
    lines = ["| task | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 1)]
    for task in TASKS:
        texts = []
        for name in names:
            found = [row for row in own if (row["task"], row["solver"]) == (task, name)]
            crps, coverage = (sum(float(row[key]) for row in found) / len(found) for key in ("crps", "coverage"))
            texts.append(f"{crps:.4f}, {coverage:.2f}")
        lines.append(f"| {task} | " + " | ".join(texts) + " |")
    return lines


def _place(group: tuple[str, str, str, str, str]) -> tuple[float, float, int, str, bool, str]:
    size, sigma_y, task, solver, mode = group
    return float(size), float(sigma_y), TASKS.index(task), mode, solver != REFERENCE, solver


def write(rows: Sequence[Row], path: Path) -> None:
    """The rows as a CSV file, put in its place whole."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draws of solvers on photographs, at equal cost.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="of PNG images; none: only the table")
    parser.add_argument("--crops", type=int, default=4, help="images of each folder")
    parser.add_argument("--size", type=int, default=64, help="side of a crop, pixels")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--sigma-y", type=float, default=0.02)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument(
        "--solvers", nargs="*", default=list(STEP_COST), choices=[REFERENCE, *STEP_COST], metavar="NAME"
    )
    parser.add_argument("--modes", nargs="*", default=["equal"], choices=["equal", "default"], metavar="MODE")
    parser.add_argument("--set", nargs="*", default=[], type=setting, metavar="NAME=VALUE", help="settings of KPS")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--resume", action="store_true", help="keep the rows of the CSV, and measure what is missing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args(argv)
    rows = read(settings.out) if settings.resume or not settings.folders else []
    if settings.folders:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        for row in measured_rows(settings, rows):
            # Written at every row, as a long run may be interrupted at any; a row of other settings is replaced.
            rows = [other for other in rows if any(other[key] != row[key] for key in KEY)] + [row]
            write(rows, settings.out)
            print(*(row[key] for key in ("image", "task", "solver", "mode", "cost", *FIGURES)), flush=True)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
