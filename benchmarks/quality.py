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
import importlib
import itertools
import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from importlib import metadata
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
from invdiff.record import environment, machine
from invdiff.scores import fair_crps, fair_error

from . import peers
from .denoising import load_image
from .restoration import crop
from .rows import Row, merge, read, write

RESULTS = Path(__file__).parent / "results" / "quality.csv"
SETS = ("Set5", "CBSD68", "Kodak24")
TASKS = ("blur", "motion", "down4", "inpaint70", "inpaint92", "box", "gray")
REFERENCE = "invdiff kps"
# What a step costs, of a cloud for each of its particles: a forward for a call, two more for a pass back; of MMPS it
# depends on how a library solves for it.
DRAWN = {"kps": 0, "ddrm": 1, "ddnm": 1, "diffpir": 1, "reddiff": 1, "mcgdiff": 1, "fps_smc": 1, "daps": 5, "tmpd": 5}
DRAWN |= {"pigdm": 3, "dps": 3, "mmps": 3, "dps_annealed": 3, "tds": 3, "deepinv mmps": 7, "azula mmps": 5}
CLOUDS = ("tds", "fps_smc", "mcgdiff")
OURS = ("kps", "ddrm", "ddnm", "diffpir", "pigdm", "mmps", "tmpd", "dps", "daps", "reddiff", *CLOUDS)
OURS += ("pnp_hqs", "pnp_admm", "pnp_pgd", "red_gd", "red_fp", "red_admm")
THEIRS = {
    "deepinv": ("ddrm", "diffpir", "pigdm", "mmps", "dps", "dps_annealed", "dpir", "dpir_tuned"),
    "azula": ("diffpir", "pigdm", "mmps", "dps", "tmpd"),
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
    "deepinv dpir",
    "azula mmps",
)
RANKED = {"psnr_mean": "PSNR of the mean, dB", "psnr_limit": "PSNR of the mean of endless draws, dB"}
RANKED |= {"crps": "CRPS", "coverage": "coverage error"}
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


def cloud(name: str, cost: int) -> dict[str, int]:
    """Particles and steps of a cloud that costs no less, and hardly more, than this."""
    share, solver = DRAWN[name], solvers.load(name)
    particles = max(2, cost // (share * solver.steps))  # type: ignore[attr-defined]
    return {"particles": particles, "steps": max(2, math.ceil(cost / (share * particles)))}


def own(name: str, likelihood: Likelihood, prior: Prior, draws: int, cost: int) -> tuple[Posterior, Row]:
    """One of our solvers at this cost of a draw: its draws, and what they took."""
    options: dict[str, Any] = {"steps": 30, "products": 3} if name == "kps" else {}
    if name in CLOUDS:
        options = cloud(name, cost)
    elif name in DRAWN and name != REFERENCE.split()[1]:
        options = {"steps": steps_for(DRAWN[name], cost)}
    solver = solvers.load(name, **options)
    # As many members at a time as leave none to be filled up.
    size = math.ceil(draws / math.ceil(draws / 16))
    wanted = draws if solver.stochastic else 1
    clock = time.process_time()
    posterior = sample(solver, likelihood, prior, draws=wanted, micro_batch=size, progress=False)
    row = {"seconds": f"{time.process_time() - clock:.5g}", "particles": str(getattr(solver, "particles", ""))}
    row["steps"] = str(getattr(solver, "steps", getattr(solver, "iterations", "")))
    return posterior, row | {key: str(posterior.record[key]) for key in ("nfe", "nfe_backward")}


def steps_for(share: int, cost: int) -> int:
    """The number of steps of which each costs `share` that together cost no less than this."""
    return max(2, math.ceil(cost / share))


def peer(
    library: str, name: str, likelihood: Likelihood, prior: Prior, draws: int, steps: int | None
) -> tuple[Posterior, Row] | None:
    """One of the peers' methods; None where it does not take the operator."""
    importlib.import_module(library)  # which takes seconds of its own
    assert isinstance(likelihood.noise, GaussianNoise)
    operator, level = likelihood.operator, float(likelihood.noise.like(likelihood.batched_y).flatten()[0])
    own_operator = peers.same(operator, name, level) if library == "deepinv" else operator
    if own_operator is None:
        return None
    slot = Counted(prior)
    torch.manual_seed(0)
    build = getattr(peers, library)
    point = name.startswith("dpir")
    clock = time.process_time()
    made = build(name, own_operator, likelihood.batched_y[0], slot, level, steps)(1 if point else draws)
    seconds = time.process_time() - clock
    each = draws if (library, name) == ("azula", "dps") else 1
    row = {"steps": str(steps or ""), "nfe": f"{slot.calls / each:.0f}", "nfe_backward": f"{slot.backward / each:.0f}"}
    row["seconds"] = f"{seconds:.5g}"
    return Posterior(made.float(), {}, "point estimate" if point else "uncalibrated spread"), row


def nominal(draws: int) -> float:
    """The level of the intervals that so many draws can give, 90 % at most."""
    return min(0.9, (draws - 1) / (draws + 1))


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
                outcome = _made(method, likelihood, prior, settings.draws, cost)
                if outcome is None:
                    continue
                values = {figure: f"{value:.5g}" for figure, value in figures(outcome[0], truth).items()}
                row |= outcome[1] | values | here
                have[key] = row
                yield row
            if method == REFERENCE:
                cost = int(have[key]["nfe"]) + 2 * int(have[key]["nfe_backward"])


def _made(method: str, likelihood: Likelihood, prior: Prior, draws: int, cost: int) -> tuple[Posterior, Row] | None:
    """What a method gives at this cost; None where it does not take the operator."""
    library, name = method.split()
    if library == "invdiff":
        return own(name, likelihood, prior, draws, cost)
    share = DRAWN.get(method, DRAWN.get(name, 0))
    return peer(library, name, likelihood, prior, draws, steps_for(share, cost) if share else None)


def ranks(found: Sequence[Row]) -> list[str]:
    """Markdown: the place of KPS among all methods, on the crops that all have, and its distance to the best other.

    A method's distance to KPS is the mean over these crops, in brackets its 95 % interval; that of coverage is how much
    further the coverage of all these crops is from nominal. A figure that is not a number is the worst.
    """
    heads = ("task", "noise", "crops", *(f"KPS in {words}" for words in RANKED.values()))
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for (sigma_y, task), here in sorted(
        _by_case(found).items(), key=lambda case: (case[0][0], TASKS.index(case[0][1]))
    ):
        # A run that was interrupted has methods that lack the last crop.
        common = set.intersection(*(set(rows) for rows in here.values())) if REFERENCE in here else set()
        shared = {method: {name: rows[name] for name in sorted(common)} for method, rows in here.items()}
        cells = [_place(shared, figure) for figure in RANKED]
        lines.append(f"| {' | '.join((task, sigma_y, str(len(common)), *cells))} |")
    return lines


def _by_case(found: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[str, Row]]]:
    """Rows by noise and task, in them by method, in them by image."""
    cases: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for row in found:
        cases.setdefault((row["sigma_y"], row["task"]), {}).setdefault(row["method"], {})[row["image"]] = row
    return cases


def _place(here: dict[str, dict[str, Row]], figure: str) -> str:
    """The place of KPS, and by how much it is better than the best of the others, or worse."""
    kps, sign = here.get(REFERENCE, {}), {"psnr_mean": 1, "psnr_limit": 1, "crps": -1}.get(figure)
    gains: dict[str, list[float]] = {}
    for method, others in here.items():
        names = [name for name in kps if others[name].get(figure)]
        if method == REFERENCE or not names:
            continue
        pairs = [(float(kps[name][figure]), float(others[name][figure])) for name in names]
        if sign:
            gains[method] = [sign * (ours - theirs) for ours, theirs in pairs]
        else:
            # The distance of the mean coverage from nominal, where too much and too little of single crops cancel.
            level = nominal(int(kps[names[0]]["draws"]))
            sides = [math.copysign(1, sum(values) / len(values) - level) for values in zip(*pairs, strict=True)]
            gains[method] = [sides[1] * (theirs - level) - sides[0] * (ours - level) for ours, theirs in pairs]
    if not gains:
        return "-"
    means = {method: sum(values) / len(values) for method, values in gains.items()}
    # Not a number is no place: a method that diverged is behind everybody.
    means = {method: math.inf if math.isnan(mean) else mean for method, mean in means.items()}
    best = min(means, key=lambda method: means[method])
    rank = 1 + sum(mean < 0 for mean in means.values())
    digits = 2 if figure.startswith("psnr") else 4 if figure == "crps" else 3
    ahead = [value if rank == 1 else -value for value in gains[best]]
    said = f"{abs(means[best]):.{digits}f}"
    if len(ahead) > 1:
        low, high = interval(ahead)
        said += f" [{low:.{digits}f}, {high:.{digits}f}]"
    of = f"{rank} of {len(gains) + 1}"
    return f"{of}, {said} ahead of {best}" if rank == 1 else f"**not first: {of}**, {said} behind {best}"


def table(found: Sequence[Row]) -> list[str]:
    """Markdown: means over the crops; in brackets the 95 % interval of the difference to KPS, crop by crop."""
    cells: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in found:
        cells.setdefault((row["sigma_y"], row["task"], row["method"]), {})[row["image"]] = row
    shown = ("psnr_mean", "psnr_limit", "psnr_draw", "ssim_mean", "crps", "coverage")
    lines = [
        "| task | method | crops | NFE + passes back | " + " | ".join(shown) + " |",
        "| --- " * (4 + len(shown)) + "|",
    ]
    order = {name: place for place, name in enumerate(METHODS)}
    for sigma_y, task, method in sorted(cells, key=lambda cell: (cell[0], TASKS.index(cell[1]), order[cell[2]])):
        here, reference = cells[sigma_y, task, method], cells.get((sigma_y, task, REFERENCE), {})
        names = sorted(set(here) & set(reference))
        if not names:
            continue
        nfe, back = (sum(float(here[name][key]) for name in names) / len(names) for key in ("nfe", "nfe_backward"))
        cost = f"{nfe:.0f} + {back:.0f}" if back else f"{nfe:.0f}"
        texts = [_text(here, reference, names, figure, method == REFERENCE) for figure in shown]
        clouds = sorted({int(here[name]["particles"]) for name in names if here[name].get("particles")})
        said = f"{method}, clouds of {' or '.join(map(str, clouds))}" if clouds else method
        lines.append(f"| {task} {sigma_y} | {said} | {len(names)} | {cost} | " + " | ".join(texts) + " |")
    return lines


def _text(here: dict[str, Row], reference: dict[str, Row], names: Sequence[str], figure: str, alone: bool) -> str:
    if not all(here[name].get(figure) for name in names):
        return "-"
    values = [float(here[name][figure]) for name in names]
    if any(map(math.isnan, values)):
        return "failed"
    digits = 4 if figure == "crps" else 2
    text = f"{sum(values) / len(values):.{digits}f}"
    if alone or len(names) < 2:
        return text
    low, high = interval(value - float(reference[name][figure]) for value, name in zip(values, names, strict=True))
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"


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
    parser.add_argument("--quick", action="store_true", help="one 32x32 crop, seven methods, two tasks: 2 minutes")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=SETS, metavar="SET")
    parser.add_argument("--crops", type=int, default=4, help="images of each set")
    parser.add_argument("--size", type=int, default=48, help="side of a crop, pixels")
    parser.add_argument("--draws", type=int, default=16)
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
    for row in rows(settings, [*standing, *found]):
        found.append(row)
        write(out, COLUMNS, found)
        print(*(row.get(key, "") for key in ("image", "task", "sigma_y", "method", "nfe", *FIGURES)), flush=True)
    print("\n".join([*ranks(found), "", *table(found)]))


if __name__ == "__main__":
    main()
