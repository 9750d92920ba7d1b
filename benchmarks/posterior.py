"""Every solver against a posterior known in closed form: `python -m benchmarks.posterior`.

With --all the whole laboratory of `invdiff.exact` is run instead (`benchmarks.laboratory`); this is its small part that
the docstrings of the solvers quote, and with --solvers it renews the rows of some of them.

Images are 16x16 gray draws of a Gaussian prior of power 1/f^2 (pixel std 0.15, mean 0.5), the denoiser is the exact
one, and sigma_y is 0.05. For a linear operator the posterior is Gaussian, with the mean and covariance of
`GaussianPrior.posterior`. Reported per solver and operator, as means over the measurements:

    mean error  RMS over pixels of (mean of the draws - exact mean), over the RMS of the exact posterior std
    std ratio   RMS over pixels of the draws' std, over the same of the exact posterior
    SW2         sliced 2-Wasserstein distance between the draws and as many exact draws, over the same std
    coverage    exact posterior probability of the draws' central 90 % interval, pixel by pixel

The rows "exact" are two independent sets of exact draws: the floor of each figure at this number of draws. The column
"mode" says how the draws of a cloud of particles were taken: "one of 64" is one independent draw for each cloud.
"""

from __future__ import annotations

import argparse
import csv
import math
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import Likelihood, Posterior, sample, solvers
from invdiff.exact.distances import sliced_wasserstein
from invdiff.exact.measure import mode
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Downsample, Identity, Mask, Operator, gaussian_psf, random_mask
from invdiff.priors import GaussianPrior
from invdiff.priors.mixtures import Mixture
from invdiff.random import MemberRandom

SHAPE = (1, 16, 16)
SIGMA_Y = 0.05
OPERATORS = ("inpaint", "blur", "down4", "denoise")
CASES: dict[str, dict[str, Any]] = {
    "ddrm": {},
    "ddrm (20 steps)": {"steps": 20},
    "ddrm (200 steps)": {"steps": 200},
    "dps": {},
    "dps (zeta 0.3)": {"zeta": 0.3},
    "pnp_pgd": {},
    "pnp_admm": {},
    "pnp_hqs": {},
    "red_gd": {},
    "red_fp": {},
    "red_admm": {},
}
# A solver that draws and is not listed above is measured with its defaults, but for what would take days: the particles
# of this one hold covariances of images; for Gaussians one is worth as many as a cloud, and 3 exact steps as 20.
LIGHT: dict[str, dict[str, Any]] = {"kps_cloud": {"particles": 1, "steps": 3, "full": 256}}
CASES |= {
    name: LIGHT.get(name, {})
    for name in solvers.names()
    if name not in CASES and solvers.load(name).stochastic and not isinstance(solvers.load(name), solvers.PriorSampler)
}
RESULTS = Path(__file__).parent / "results" / "posterior.csv"


def operators() -> dict[str, Operator]:
    """The four degradations."""
    return {
        "inpaint": Mask(random_mask(SHAPE, 0.5, seed=0), SHAPE),
        "blur": Blur(gaussian_psf(1.0), SHAPE),
        "down4": Downsample(4, SHAPE),
        "denoise": Identity(SHAPE),
    }


def sw2(a: Tensor, b: Tensor, directions: int = 200, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance of two sets of draws, along the directions of all tracked figures."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(a[0].numel(), directions, generator=generator, dtype=torch.float64)
    return sliced_wasserstein(a, b, 2, axes / axes.norm(dim=0))


def verdict(posterior: Posterior, exact: Mixture, reference: Tensor) -> dict[str, float]:
    """The four figures of one set of draws against the exact posterior."""
    scale = float(exact.std.square().mean().sqrt())
    row = {"mean_error": float((posterior.mean().double() - exact.mean).square().mean().sqrt()) / scale}
    if posterior.point:
        return row | {"std_ratio": math.nan, "sw2": math.nan, "coverage": math.nan}
    row["std_ratio"] = float(posterior.std().double().square().mean().sqrt()) / scale
    row["sw2"] = sw2(posterior.draws, reference) / scale
    low, high = (bound.double() for bound in posterior.interval(0.9))
    upper = torch.special.ndtr((high - exact.mean) / exact.std)
    row["coverage"] = float((upper - torch.special.ndtr((low - exact.mean) / exact.std)).mean())
    return row


def run(cases: Iterable[str], measurements: int, draws: int) -> list[dict[str, float | str]]:
    """One row per case and operator."""
    prior = GaussianPrior.power_law(SHAPE)
    rows: list[dict[str, float | str]] = []
    for name, operator in operators().items():
        x0 = prior.sample(measurements, seed=1)
        z = operator(x0)
        y = GaussianNoise(SIGMA_Y).sample(z, MemberRandom(2, [(0, j) for j in range(measurements)])).float()
        likelihood = Likelihood(y, operator, GaussianNoise(SIGMA_Y))
        exacts = [prior.posterior(likelihood.take(torch.tensor([j]))) for j in range(measurements)]
        references = [exact.sample(draws, seed=3) for exact in exacts]
        for case in ["exact", *cases]:
            clock = time.monotonic()
            if case == "exact":
                sets = [Posterior(exact.sample(draws, seed=4), {}) for exact in exacts]
                calls, how = {"nfe": 0, "nfe_backward": 0}, "independent"
            else:
                solver = solvers.load(case.split()[0], **CASES[case])
                count = draws if solver.stochastic else 1
                result = sample(solver, likelihood, prior, draws=count, seed=0, micro_batch=batch(solver))
                sets = [Posterior(result.draws[:, j], result.record, result.label) for j in range(measurements)]
                calls, how = {key: result.record[key] for key in ("nfe", "nfe_backward")}, mode(result)
            figures = [verdict(s, e, r) for s, e, r in zip(sets, exacts, references, strict=True)]
            row: dict[str, float | str] = {"operator": name, "solver": case, "mode": how, **calls}
            row |= {key: sum(f[key] for f in figures) / measurements for key in figures[0]}
            row |= {"measurements": measurements, "draws": draws, "seconds": round(time.monotonic() - clock, 1)}
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict[str, float | str]) -> str:
    """One row as text."""
    figures = "".join(
        f"{'-':>9}" if math.isnan(float(row[k])) else f"{float(row[k]):9.3f}"
        for k in ("mean_error", "std_ratio", "sw2", "coverage")
    )
    return f"{row['operator']:<9}{row['solver']:<18}{row['nfe']:>6}{figures}"


def batch(solver: solvers.Solver) -> int:
    """Members at a time: 256 draws, or as many clouds as hold 1,024 particles, 256 at most."""
    particles = getattr(solver, "particles", 1)
    return min(256, max(1, 1024 // particles))


def merged(rows: list[dict[str, float | str]], path: Path) -> list[dict[str, str]]:
    """New rows with those of other solvers that stand in the file, by operator and then in the order of CASES."""
    text = [{k: f"{v:.4f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows]
    fresh = {(row["operator"], row["solver"]) for row in text}
    if path.exists():
        with path.open(newline="") as handle:
            standing = [row for row in csv.DictReader(handle) if row["solver"] in ("exact", *CASES)]
        text += [row for row in standing if (row["operator"], row["solver"]) not in fresh]
    order = ["exact", *CASES]
    return sorted(text, key=lambda row: (OPERATORS.index(row["operator"]), order.index(row["solver"])))


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    if "--all" in words:
        from . import laboratory

        return laboratory.main([word for word in words if word != "--all"])
    parser = argparse.ArgumentParser(description="Solvers against an exact posterior (--all: the whole laboratory).")
    parser.add_argument("--solvers", nargs="*", default=list(CASES), choices=list(CASES), metavar="NAME")
    parser.add_argument("--measurements", type=int, default=2)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV; rows of other solvers in it stay")
    settings = parser.parse_args(words)
    heads = ("mean err", "std", "SW2", "cover")
    print(f"{'operator':<9}{'solver':<18}{'NFE':>6}" + "".join(f"{head:>9}" for head in heads))
    rows = merged(run(settings.solvers, settings.measurements, settings.draws), settings.out)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with settings.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print(f"{settings.out.name}: {len(rows)} rows, torch {torch.__version__}, {platform.machine()}")


if __name__ == "__main__":
    main()
