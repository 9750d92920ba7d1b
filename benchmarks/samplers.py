"""Samplers of the prior alone against priors known in closed form: `python -m benchmarks.samplers`.

Priors of 8x8 gray images, with the exact denoiser and each sampler's own schedule from sigma 40: "gaussian", of power
1/f^2 (pixel std 0.15, mean 0.4, so not the 0.5 at which samplers start), and "mixture", three such with means 0.3 to
0.7. Reported per sampler and number of steps:

    mean_error  RMS over pixels of the error of the mean, over the RMS pixel std
    cov_error   Frobenius norm of the error of the covariance, over that of the covariance
    std_error   largest |std / exact std - 1| over the eigenvectors of the covariance
    sw2         sliced 2-Wasserstein distance of the draws from as many exact ones, over the RMS pixel std; mean over
                four sets of exact draws
    floor       the same of exact draws: mean and largest of 16 sets (floor, floor_max)

For the Gaussian the first three are those of the sampler's distribution itself, without sampling error: a sampler is
then linear in its noise, and its answer to each single noise is computed (`propagate`). For the mixture they are of
the draws. The rows "ode" are the RMS error of deterministic samplers against the closed form of the probability-flow
ODE between sigma 5 and 0.02 (levels even in log sigma), x - m growing as sqrt(lambda + sigma^2) along an eigenvector,
and the order of convergence that two numbers of steps give.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior import sw2
from invdiff import sample, solvers
from invdiff.priors import GaussianMixturePrior, GaussianPrior
from invdiff.random import MemberRandom
from invdiff.schedule import noise_levels
from invdiff.solvers import PriorSampler

SHAPE = (1, 8, 8)
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "ddpm": ("ddpm", {}, (100, 300, 1000)),
    "ddpm large": ("ddpm", {"variance": "large"}, (1000,)),
    "ddim": ("ddim", {}, (20, 50, 100, 300)),
    "ddim eta 1": ("ddim", {"eta": 1.0}, (100,)),
    "heun": ("heun", {}, (10, 20, 40, 80)),
    "heun churn 10": ("heun", {"s_churn": 10.0}, (20, 40, 80)),
    "dpmpp_2m": ("dpmpp_2m", {}, (10, 20, 40, 80)),
    "dpmpp_sde": ("dpmpp_sde", {}, (20, 50, 100, 200)),
    "pf_ode": ("pf_ode", {}, (5, 10, 20, 40)),
}
DETERMINISTIC = ("ddim", "heun", "dpmpp_2m", "pf_ode")


def mixture() -> GaussianMixturePrior:
    """Three components of unequal weight whose means differ by more than their pixel std."""
    parts = [GaussianPrior.power_law(SHAPE, std=0.08, mean=mean) for mean in (0.3, 0.5, 0.7)]
    return GaussianMixturePrior(
        torch.tensor([0.5, 0.3, 0.2]), torch.stack([p.mean for p in parts]), torch.stack([p.covariance for p in parts])
    )


class _Impulses:
    """Noise that is 1 for one member of the batch at each call, and 0 for the others."""

    def __init__(self) -> None:
        self.calls = 0

    def normal(self, like: Tensor) -> Tensor:
        noise = torch.zeros_like(like)
        noise[self.calls] = 1.0
        self.calls += 1
        return noise


def propagate(solver: PriorSampler, mean: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """The exact mean and variance, (n,), of what a sampler draws from N(mean, diag(variances)).

    With a Gaussian prior the sampler is an affine function of its independent noises: the last member of the batch
    runs without noise, and each other one with a single noise of 1, whose squared effects add up.
    """
    prior = GaussianPrior(mean, torch.diag(variances))
    impulses: Any = _Impulses()
    like = torch.zeros(solver.steps + 2, len(mean), dtype=torch.float64)
    x = solver.start(None, prior, like, impulses)
    for iterate in solver.iterate(None, prior, x, impulses):
        x = iterate
    return x[-1], (x[:-1] - x[-1]).square().sum(0)


def ode_error(name: str, steps: int, high: float = 5.0, low: float = 0.02) -> float:
    """RMS error at `low` of a deterministic sampler that starts at `high` on the Gaussian prior."""
    prior = GaussianPrior.power_law(SHAPE)
    values, vectors = (t[0] for t in prior.mixture.eigen)
    solver: Any = solvers.load(name, sigmas=tuple(noise_levels("ve", steps + 1, low, high)[:-1]))
    start = prior.sample(16, seed=0) + high * MemberRandom(1, [(k, 0) for k in range(16)]).normal(
        torch.empty(16, *SHAPE, dtype=torch.float64)
    )
    iterates = list(solver.iterate(None, prior, start, MemberRandom(0, [])))
    growth = ((values + low**2) / (values + high**2)).sqrt()
    exact = ((start - prior.mean).flatten(1) @ vectors * growth) @ vectors.T + prior.mean.flatten()
    return float((iterates[-2].flatten(1) - exact).square().mean().sqrt())


def order(name: str, steps: int) -> float:
    """log2 of how much the error falls when the steps are doubled."""
    return math.log2(ode_error(name, steps) / ode_error(name, 2 * steps))


def gaussian_row(solver: PriorSampler) -> dict[str, float]:
    """Errors of the sampler's own distribution on the Gaussian prior."""
    prior = GaussianPrior.power_law(SHAPE, mean=0.4)
    values, vectors = (t[0] for t in prior.mixture.eigen)
    # Samplers start around 0.5 in every pixel: the prior's mean is turned into its eigenvectors about that point.
    offset = (prior.mean.flatten() - 0.5) @ vectors
    mean, variance = propagate(solver, 0.5 + offset, values)
    return {
        "mean_error": float((mean - 0.5 - offset).square().mean().sqrt() / values.mean().sqrt()),
        "cov_error": float((variance - values).norm() / values.norm()),
        "std_error": float(((variance / values).sqrt() - 1).abs().max()),
    }


def drawn_row(draws: Tensor, prior: GaussianPrior | GaussianMixturePrior) -> dict[str, float]:
    """The same errors, of draws."""
    values, vectors = torch.linalg.eigh(prior.covariance)
    centred = (draws.double() - prior.mean).flatten(1)
    covariance = centred.T.cov(correction=1)
    variance = ((centred - centred.mean(0)) @ vectors).square().mean(0)
    return {
        "mean_error": float(centred.mean(0).square().mean().sqrt() / values.mean().sqrt()),
        "cov_error": float((covariance - prior.covariance).norm() / prior.covariance.norm()),
        "std_error": float(((variance / values).sqrt() - 1).abs().max()),
    }


def distance(draws: Tensor, references: list[Tensor]) -> float:
    """The mean sliced 2-Wasserstein distance from several sets."""
    return sum(sw2(draws, reference) for reference in references) / len(references)


def run(draws: int) -> list[dict[str, Any]]:
    """All rows."""
    rows: list[dict[str, Any]] = []
    for kind, prior in (("gaussian", GaussianPrior.power_law(SHAPE, mean=0.4)), ("mixture", mixture())):
        references = [prior.sample(draws, seed=seed) for seed in (1, 2, 3, 4)]
        scale = float(prior.mixture.std.square().mean().sqrt())
        distances = [distance(prior.sample(draws, seed=seed), references) / scale for seed in range(5, 21)]
        floor = {"floor": sum(distances) / len(distances), "floor_max": max(distances)}
        rows.append({"prior": kind, "sampler": "exact", "steps": 0, "nfe": 0, "sw2": distances[0]})
        rows[-1] |= floor | drawn_row(prior.sample(draws, seed=5), prior)
        print(line(rows[-1]), flush=True)
        for case, (name, settings, steps) in CASES.items():
            for count in steps:
                solver: Any = solvers.load(name, steps=count, **settings)
                result = sample(solver, None, prior, draws=draws, seed=0, micro_batch=draws)
                row = {"prior": kind, "sampler": case, "steps": count, "nfe": result.record["nfe"]} | floor
                row |= {"sw2": distance(result.draws, references) / scale}
                row |= gaussian_row(solver) if kind == "gaussian" else drawn_row(result.draws, prior)
                rows.append(row)
                print(line(row), flush=True)
    for name in DETERMINISTIC:
        for count in (20, 40, 80):
            nfe = {"heun": 2 * count, "pf_ode": 4 * count}.get(name, count)
            row = {"prior": "ode", "sampler": name, "steps": count, "nfe": nfe, "ode_error": ode_error(name, count)}
            rows.append(row | {"order": order(name, count // 2)})
            print(f"{'ode':<10}{name:<16}{count:>6}{row['ode_error']:12.2e}{rows[-1]['order']:8.2f}", flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    keys = ("mean_error", "cov_error", "std_error", "sw2", "floor", "floor_max")
    figures = "".join(f"{row[key]:10.4f}" for key in keys)
    return f"{row['prior']:<10}{row['sampler']:<16}{row['steps']:>6}{row['nfe']:>6}{figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Samplers against priors known in closed form.")
    parser.add_argument("--draws", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "samplers.csv")
    settings = parser.parse_args()
    heads = ("mean err", "cov err", "std err", "SW2", "floor", "up to")
    print(f"{'prior':<10}{'sampler':<16}{'steps':>6}{'NFE':>6}" + "".join(f"{head:>10}" for head in heads))
    rows = run(settings.draws)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    fields = ("prior", "sampler", "steps", "nfe", "mean_error", "cov_error", "std_error", "sw2", "floor", "floor_max")
    with settings.out.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, (*fields, "ode_error", "order"))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})
    print(f"{settings.out.name}: {len(rows)} rows, {settings.draws} draws")


if __name__ == "__main__":
    main()
