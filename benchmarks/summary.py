"""Tables of what the laboratory measured: `python -m benchmarks.summary --family mixture25 --figures sw1`.

Per cell, solver and mode the mean over problems with its 95 % interval, and against another solver ("exact" by default)
the ratio of the means, or for ratios and coverages the difference, with an interval over the problems that both ran:
the same problems are drawn for both, as the spread across problems is wide. Intervals are percentile bootstraps
(Efron and Tibshirani 1993, chapter 13) over problems. Where the laboratory has rows "exact 97.5 %" the last column says
in how many problems of the cell the figure lies under what that share of the sets of exact draws does, and a line for
each solver says it of all cells: 97.5 % of them is what exact draws reach.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from invdiff.exact.distances import bootstrap_mean
from invdiff.exact.problems import FAMILIES
from invdiff.exact.verdict import FIGURES

from .quantiles import QUANTILE

RESULTS = Path(__file__).parent / "results"
DEFAULT = {
    "gaussian": ("mean_observed", "mean_null", "spread_observed", "spread_null", "sw2", "coverage90"),
    "mixture25": ("sw1", "weights_tv", "coverage90"),
    "mixture16": ("sw1", "weights_tv", "coverage90", "ksd"),
    "heavy": ("gap_db", "hdr90", "coverage90"),
    "nonlinear": ("sw1", "weights_tv", "coverage90"),
}
COSTS = ("nfe", "nfe_backward", "operator_calls", "seconds")
Row = dict[str, str]
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Mean:
    """The mean of a figure over problems, with a 95 % interval."""

    value: float
    low: float
    high: float
    problems: int

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def rows(family: str, folder: Path = RESULTS) -> list[Row]:
    """The rows of a family that ran; none where it was not measured."""
    path = folder / f"laboratory_{family}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as handle:
        return [row for row in csv.DictReader(handle) if row["status"] == "ok"]


def table(found: Iterable[Row], figure: str) -> dict[Key, dict[str, tuple[float, ...]]]:
    """(cell, solver, mode) -> problem -> what the figure is made of: one number, or two of a gap in dB."""
    parts = ("mse", "mse_exact") if figure == "gap_db" else (figure,)
    out: dict[Key, dict[str, tuple[float, ...]]] = {}
    for row in found:
        values = tuple(float(row[part] or "nan") for part in parts)
        if not any(math.isnan(value) for value in values):
            out.setdefault((row["cell"], row["solver"], row["mode"]), {})[row["problem"]] = values
    return out


def mean(values: dict[str, tuple[float, ...]], figure: str) -> Mean:
    """The mean over problems; of a gap, the ratio in dB of two means."""
    stacked = torch.tensor(list(values.values()), dtype=torch.float64)
    return _interval(stacked, lambda m: 10 * (m[..., 0] / m[..., 1]).log10() if figure == "gap_db" else m[..., 0])


def against(values: dict[str, tuple[float, ...]], other: dict[str, tuple[float, ...]], figure: str) -> Mean:
    """Paired with another solver: the ratio of the means of a distance or an error, else the difference."""
    shared = [problem for problem in values if problem in other]
    stacked = torch.tensor([(*values[p], *other[p]) for p in shared], dtype=torch.float64)
    half = stacked.shape[-1] // 2 if shared else 1
    if figure == "gap_db":
        return _interval(stacked, lambda m: 10 * (m[..., 0] / m[..., half]).log10())
    if figure.startswith(("sw", "energy", "mean", "weights", "ksd", *COSTS)):
        return _interval(stacked, lambda m: m[..., 0] / m[..., half])
    return _interval(stacked, lambda m: m[..., 0] - m[..., half])


def under(values: dict[str, tuple[float, ...]], bounds: dict[str, tuple[float, ...]]) -> tuple[int, int]:
    """In how many problems the figure is at most its bound, and how many have a bound."""
    shared = [problem for problem in values if problem in bounds]
    return sum(values[problem][0] <= bounds[problem][0] for problem in shared), len(shared)


def _interval(stacked: Tensor, statistic: Callable[[Tensor], Tensor]) -> Mean:
    """A statistic of the means over problems, (n, parts) -> (parts,), with its percentile interval."""
    if not len(stacked):
        return Mean(math.nan, math.nan, math.nan, 0)
    return Mean(float(statistic(stacked.mean(0))), *bootstrap_mean(stacked, statistic), len(stacked))


def lines(family: str, figures: Sequence[str], baseline: str, folder: Path = RESULTS) -> list[str]:
    """The tables of a family as text."""
    found = rows(family, folder)
    if not found:
        return []
    out = []
    for figure in figures:
        cells = table(found, figure)
        bounds: dict[str, tuple[float, ...]] = {}
        for key in [key for key in cells if key[1] == QUANTILE]:
            bounds |= cells.pop(key)
        out += ["", f"{family}, {FIGURES.get(figure, figure)} ({figure}); against {baseline}"]
        totals: dict[tuple[str, str], tuple[int, int]] = {}
        for (cell, solver, mode), values in cells.items():
            # The mode of the same name where there is one: clouds are held against clouds.
            others = sorted(
                (key[2] != mode, key) for key in cells if key[0] == cell and baseline in key[1].split(" ")[:1]
            )
            paired = str(against(values, cells[others[0][1]], figure)) if others and others[0][1][1] != solver else ""
            head = f"  {cell:<34}{solver:<20}{mode:<13}"
            some, of = under(values, bounds)
            total = totals.get((solver, mode), (0, 0))
            totals[solver, mode] = total[0] + some, total[1] + of
            share = f"  {some}/{of} under {QUANTILE}" if of else ""
            out.append(f"{head}{mean(values, figure)!s:<28}{paired:<28}{len(values):>4}{share}".rstrip())
        for (solver, mode), (some, of) in totals.items():
            if of:
                out.append(f"  {'all cells':<34}{solver:<20}{mode:<13}{some}/{of} under {QUANTILE} ({some / of:.1%})")
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    known = [*FIGURES, "gap_db", "ksd", *COSTS]
    parser.add_argument("--figures", nargs="*", choices=known, metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--against", default="exact", metavar="SOLVER", help="paired comparison")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    for family in given.family:
        for text in lines(family, given.figures or DEFAULT[family], given.against, given.folder):
            print(text)


if __name__ == "__main__":
    main()
