"""Fit the strength of every smoother to sigma and store the curves: `python -m benchmarks.fit_strength`.

For each family, gray and colour, and each of 13 noise levels from 0.01 to 1, the strength of highest mean PSNR is
searched on photographs that scikit-image carries (coffee, rocket, motorcycle; at their own scale and shrunk to 256
pixels), with noise N(0, sigma^2) that is not clipped. Astronaut and chelsea are held out: the table says what the
stored curve loses on them against the best strength for them. Writes invdiff/priors/strength.json,
benchmarks/results/strength.csv and docs/strength.png; `--check` only prints the held-out table for the stored curves.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff.priors.nlm import NonLocalMeans
from invdiff.priors.smooth import Bilateral, GaussianBlur, Median
from invdiff.priors.smoother import Smoother
from invdiff.priors.tv import TV
from invdiff.priors.wavelet import RULES, Wavelet

ROOT = Path(__file__).resolve().parents[1]
SIGMAS = np.geomspace(0.01, 1.0, 13)
CROP = 160
GOLDEN = (math.sqrt(5) - 1) / 2

FAMILIES: dict[str, Callable[[], Smoother]] = {
    "gaussian": GaussianBlur,
    "median": Median,
    "bilateral": Bilateral,
    **{f"wavelet_{rule}": lambda rule=rule: Wavelet(rule=rule) for rule in RULES},  # type: ignore[misc]
    "tv": TV,
    "nlm": NonLocalMeans,
}
# (lowest, highest) strength searched at sigma; generous on both sides of the best.
BRACKETS: dict[str, Callable[[float], tuple[float, float]]] = {
    "gaussian": lambda s: (0.1, 12.0),
    "median": lambda s: (0.01, 40.0),
    "bilateral": lambda s: (0.2, 9.0),
    "tv": lambda s: (0.1 * s, 8 * s),
    "nlm": lambda s: (0.1 * s, 6 * s),
}


def photographs(held_out: bool) -> Tensor:
    """Central crops (n, 3, CROP, CROP) in [0, 1], each photograph at its own scale and shrunk to 256 pixels."""
    from skimage import data
    from skimage.transform import resize

    sources = (
        (data.astronaut, data.chelsea) if held_out else (data.coffee, data.rocket, lambda: data.stereo_motorcycle()[0])
    )
    crops = []
    for source in sources:
        image = source()[..., :3] / 255.0
        ratio = 256 / min(image.shape[:2])
        small = resize(image, tuple(round(n * ratio) for n in image.shape[:2]), anti_aliasing=True)
        for version in (image, small):
            top, left = ((n - CROP) // 2 for n in version.shape[:2])
            crops.append(version[top : top + CROP, left : left + CROP])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().contiguous()


def mean_psnr(estimate: Tensor, truth: Tensor) -> float:
    """PSNR in dB, averaged over the images."""
    return float(-10 * (estimate - truth).square().flatten(1).mean(dim=1).log10().mean())


def best_strength(score: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """(strength, PSNR) of the maximum: nine points of the bracket in log scale, then golden sections."""
    grid = np.linspace(math.log(low), math.log(high), 9)
    k = int(np.argmax([score(math.exp(v)) for v in grid]))
    a, b = grid[max(k - 1, 0)], grid[min(k + 1, 8)]
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    at_c, at_d = score(math.exp(c)), score(math.exp(d))
    for _ in range(6):
        if at_c > at_d:
            b, d, at_d = d, c, at_c
            c = b - GOLDEN * (b - a)
            at_c = score(math.exp(c))
        else:
            a, c, at_c = c, d, at_d
            d = a + GOLDEN * (b - a)
            at_d = score(math.exp(d))
    return (math.exp(c), at_c) if at_c > at_d else (math.exp(d), at_d)


@torch.no_grad()
def fit(job: tuple[str, str, bool]) -> list[dict[str, float | str]]:
    """Rows of the table for one (family, "gray" or "colour", held out)."""
    family, kind, held_out = job
    torch.set_num_threads(1)
    prior = FAMILIES[family]()
    truth = photographs(held_out)
    truth = truth.mean(dim=1, keepdim=True) if kind == "gray" else truth
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    bracket = BRACKETS.get(family, lambda s: (0.5 * s, 8 * s))
    rows: list[dict[str, float | str]] = []
    for sigma in SIGMAS:
        noisy = truth + sigma * noise
        levels = torch.full((len(truth),), float(sigma))

        def score(strength: float, noisy: Tensor = noisy, levels: Tensor = levels) -> float:
            return mean_psnr(prior.smooth(noisy, torch.full_like(levels, strength), levels), truth)

        strength, found = best_strength(score, *bracket(float(sigma)))
        row: dict[str, float | str] = {
            "images": "held out" if held_out else "fitted",
            "family": family,
            "kind": kind,
            "sigma": float(sigma),
            "noisy_psnr": mean_psnr(noisy, truth),
            "best_strength": strength,
            "best_psnr": found,
        }
        rows.append(row)
    return rows


@torch.no_grad()
def stored_psnr(rows: list[dict[str, float | str]]) -> None:
    """Add to each held-out row the PSNR of the prior as it ships."""
    truth = {"colour": photographs(True)}
    truth["gray"] = truth["colour"].mean(dim=1, keepdim=True)
    noise = {kind: torch.randn(t.shape, generator=torch.Generator().manual_seed(0)) for kind, t in truth.items()}
    for row in rows:
        kind, sigma = str(row["kind"]), float(row["sigma"])
        noisy = truth[kind] + sigma * noise[kind]
        row["stored_psnr"] = mean_psnr(FAMILIES[str(row["family"])]()(noisy, min(sigma, 1.0)), truth[kind])


def smooth_curve(strength: list[float]) -> list[float]:
    """Running mean (1, 2, 1) / 4 of the logarithm inside the ends: the optimum is flat and its position noisy."""
    log = np.log(strength)
    log[1:-1] = (log[:-2] + 2 * log[1:-1] + log[2:]) / 4
    return [float(f"{v:.5g}") for v in np.exp(log)]


def plot(rows: list[dict[str, float | str]], curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Strength against sigma (left of each pair of axes) and PSNR gain against sigma, gray and colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    fig, axes = pyplot.subplots(2, 3, figsize=(12, 7), constrained_layout=True)
    units = {
        "gaussian": "width s (pixels)",
        "median": "window width - 1 (pixels)",
        "bilateral": "spatial width s (pixels)",
        "wavelet_sharp": "threshold T",
        "tv": "weight lam",
        "nlm": "h",
    }
    for axis, (family, unit) in zip(axes.flat, units.items(), strict=True):
        gain = axis.twinx()
        for kind, colour in (("gray", "0.35"), ("colour", "tab:orange")):
            axis.loglog(curves[family]["sigma"], curves[family][kind], "o-", color=colour, ms=3, label=kind)
            chosen = [r for r in rows if r["family"] == family and r["kind"] == kind and r["images"] == "held out"]
            sigma = [float(r["sigma"]) for r in chosen]
            gain.plot(sigma, [float(r["stored_psnr"]) - float(r["noisy_psnr"]) for r in chosen], ":", color=colour)
        axis.set(title=family.replace("_sharp", ""), xlabel="sigma (units of the image)", ylabel=unit)
        gain.set_ylabel("PSNR gain, held out (dB, dotted)")
        gain.set_ylim(0, 22)
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.legend(loc="upper left", frameon=False)
    fig.suptitle("Strength of best PSNR against the noise level, and what it gains on images not used in the fit")
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--check", action="store_true", help="only print the held-out table of the stored curves")
    arguments = parser.parse_args()
    kinds = ("gray", "colour")
    held = (True,) if arguments.check else (False, True)
    jobs = [(family, kind, held_out) for family in FAMILIES for kind in kinds for held_out in held]
    with ProcessPoolExecutor(arguments.workers) as pool:
        rows = [row for result in pool.map(fit, jobs) for row in result]
    held_rows = [row for row in rows if row["images"] == "held out"]
    target = ROOT / "invdiff" / "priors" / "strength.json"
    if not arguments.check:
        curves: dict[str, dict[str, list[float]]] = {}
        for family in FAMILIES:
            curves[family] = {"sigma": [float(f"{s:.6g}") for s in SIGMAS]}
            for kind in kinds:
                chosen = [r for r in rows if (r["family"], r["kind"], r["images"]) == (family, kind, "fitted")]
                curves[family][kind] = smooth_curve([float(r["best_strength"]) for r in chosen])
        lines = [f'  "{family}": {json.dumps(curve)}' for family, curve in curves.items()]
        target.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        stored_psnr(held_rows)
        with (ROOT / "benchmarks" / "results" / "strength.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(held_rows[0]), restval="", lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
        plot(rows, curves, ROOT / "docs" / "strength.png")
    else:
        stored_psnr(held_rows)
    for row in held_rows:
        lost = float(row["best_psnr"]) - float(row["stored_psnr"])
        print(f"{row['family']:16} {row['kind']:6} {row['sigma']:6.3f} {row['stored_psnr']:6.2f} dB, lost {lost:5.2f}")


if __name__ == "__main__":
    main()
