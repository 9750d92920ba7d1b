"""The peers' samplers against a posterior known in closed form: `python -m benchmarks.posterior_peers`.

The problems, the exact denoiser and the figures of `benchmarks.posterior`, for the samplers of deepinv and azula with
their documented settings (and others where those fail, named so): 16x16 gray Gaussian images, sigma_y 0.05. deepinv's
DDRM needs its own operators, with the same mask and kernel; the rest of deepinv, and azula, get ours. Rows that stand
in the CSV are replaced by those of the same operator and case, and the others kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from invdiff import Likelihood, Posterior
from invdiff.ensemble import Counted
from invdiff.noise import GaussianNoise
from invdiff.priors import GaussianPrior
from invdiff.random import MemberRandom

from . import peers
from .posterior import SHAPE, SIGMA_Y, line, operators, verdict
from .rows import read, write

RESULTS = Path(__file__).parent / "results" / "posterior_peers.csv"
CASES = (
    *("deepinv ddrm", "deepinv diffpir", "deepinv dps", "deepinv dps_annealed", "deepinv pigdm", "deepinv mmps"),
    *("azula dps", "azula diffpir", "azula pigdm", "azula mmps", "azula mmps_5", "azula tmpd"),
)
Row = dict[str, float | str]


def run(cases: Sequence[str], measurements: int, draws: int) -> Iterator[Row]:
    """One row per case and operator."""
    prior = GaussianPrior.power_law(SHAPE)
    for name, operator in operators().items():
        z = operator(prior.sample(measurements, seed=1))
        y = GaussianNoise(SIGMA_Y).sample(z, MemberRandom(2, [(0, j) for j in range(measurements)])).float()
        exacts = [prior.posterior(Likelihood(one, operator, GaussianNoise(SIGMA_Y))) for one in y]
        references = [exact.sample(draws, seed=3) for exact in exacts]
        for case in cases:
            library, method = case.split()
            own = peers.same(operator, method, SIGMA_Y) if library == "deepinv" else operator
            if own is None:
                continue
            clock, slot, figures = time.monotonic(), Counted(prior), []
            for one, exact, reference in zip(y, exacts, references, strict=True):
                torch.manual_seed(0)
                made = getattr(peers, library)(method, own, one, slot, SIGMA_Y)(draws)
                figures.append(verdict(Posterior(made.float(), {}), exact, reference))
            nfe = slot.calls / measurements / (draws if case == "azula dps" else 1)
            row: Row = {"operator": name, "solver": case, "nfe": round(nfe)}
            row |= {key: sum(found[key] for found in figures) / measurements for key in figures[0]}
            row |= {"measurements": measurements, "draws": draws, "seconds": round(time.monotonic() - clock, 1)}
            print(line(row), flush=True)
            yield row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--measurements", type=int, default=2)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args(argv)
    found = {(row["operator"], row["solver"]): row for row in read(settings.out)}
    for row in run(settings.cases, settings.measurements, settings.draws):
        text = {key: f"{value:.4f}" if isinstance(value, float) else str(value) for key, value in row.items()}
        found[text["operator"], text["solver"]] = text
        write(settings.out, list(text), found.values())


if __name__ == "__main__":
    main()
