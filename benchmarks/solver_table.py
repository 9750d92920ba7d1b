"""The tables of docs/solvers.md, and one of docs/kps.md, from the tracked results.

`python -m benchmarks.solver_table` writes them anew.

What a solver needs is asked of its own check; figures are those of results/posterior.csv (smallest to largest of the
four operators) and results/laboratory_FAMILY.csv (means over problems); "-" where nothing was measured, or, of 25
modes, not all of the problems that the solvers are held to.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch

from invdiff import Likelihood, solvers
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Mask, from_function, gaussian_psf, random_mask
from invdiff.priors import FunctionPrior
from invdiff.solvers import CapabilityError

from . import summary
from .posterior import OPERATORS, RESULTS
from .quantiles import QUANTILE

PAGE = Path(__file__).parent.parent / "docs" / "solvers.md"
FLAGSHIP = PAGE.with_name("kps.md")
BEGIN, END = "<!-- table: python -m benchmarks.solver_table -->", "<!-- end of table -->"
BEGIN_CELLS, END_CELLS = "<!-- cells: python -m benchmarks.solver_table -->", "<!-- end of cells -->"
SHAPE = (1, 8, 8)
# The problems of 25 modes that every solver is held to, by number of values: as many as the slowest of them ran on.
MODES = {d: [f"mixture25/d={d} dy={d_y}/{n}" for d_y in (1, 2, 4) for n in range(5)] for d in (8, 80)}
HEADS = (
    *("solver", "operators", "prior", "NFE", "back", "mean", "std", "cover 90 %"),
    *("25 modes, d = 8 / 80: SW1", "16-d: weights", "heavy: gap, region", "nonlinear: SW1"),
)
CELLS = "gaussian/16x16 gray"
CELL_HEADS = (
    *("solver", "cells", "problems", "std, observed", "std, not observed", "cover 90 %"),
    *("mean, observed / floor", "mean, not observed / floor", "SW2 / floor"),
)
CELL_FIGURES = ("spread_observed", "spread_null", "coverage90", "mean_observed", "mean_null", "sw2")
BEGIN_SIZES, END_SIZES = "<!-- sizes: python -m benchmarks.solver_table -->", "<!-- end of sizes -->"
SIZES = ("16x16 gray", "16x16 colour", "32x32 gray", "32x32 colour")
SIZE_HEADS = (
    *("images", "cells", "problems", "std, observed", "std, not observed", "cover 90 %", "passes back"),
    *("mean, observed: under", "mean, not observed: under", "SW2: under"),
)
FAMILIES = {
    "mixture25": ("sw1",),
    "mixture16": ("weights_tv",),
    "heavy": ("gap_db", "hdr90"),
    "nonlinear": ("sw1",),
}


def needs(name: str) -> tuple[str, str]:
    """Which operators, and which priors, a solver takes: as its own check refuses the others."""
    y = torch.full(SHAPE, 0.5)
    operators = {
        "any": from_function(lambda x: x**2, SHAPE, linear=False),
        "linear": Blur(gaussian_psf(1.0, 3), SHAPE, boundary="reflect"),
        "SVD": Mask(random_mask(SHAPE, 0.5, seed=0), SHAPE),
    }
    solver = solvers.load(name)
    smooth, stiff = (FunctionPrior(lambda x, sigma: x, name="any", differentiable=d) for d in (True, False))
    for kind, operator in operators.items():
        likelihood = Likelihood(y, operator, GaussianNoise(0.1))
        for word, prior in (("any", stiff), ("differentiable", smooth)):
            try:
                solver.check(likelihood, prior)  # type: ignore[attr-defined]
            except CapabilityError:
                continue
            return kind, word
    return "none", "none"


def small() -> dict[str, list[dict[str, str]]]:
    """The rows of posterior.csv that draw, by solver, in the order of the file."""
    found: dict[str, list[dict[str, str]]] = {}
    with RESULTS.open(newline="") as handle:
        for row in csv.DictReader(handle):
            if row["coverage"] != "nan":
                found.setdefault(row["solver"], []).append(row)
    return found


def span(rows: list[dict[str, str]], key: str, digits: int = 2) -> str:
    """Smallest to largest of a figure over the operators."""
    values = [float(row[key]) for row in rows]
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def large(folder: Path = RESULTS.parent) -> dict[tuple[str, str], dict[str, str]]:
    """(solver, mode) -> family -> its cell of the table, from the laboratory's CSVs."""
    out: dict[tuple[str, str], dict[str, str]] = {}
    for family, figures in FAMILIES.items():
        rows = summary.rows(family, folder)
        for key in dict.fromkeys((row["solver"], row["mode"]) for row in rows):
            own = [row for row in rows if (row["solver"], row["mode"]) == key]
            words = [_mean(own, figure) for figure in figures]
            out.setdefault(key, {})[family] = _by_size(own) if family == "mixture25" else ", ".join(words)
    return out


def _by_size(rows: list[dict[str, str]]) -> str:
    """On 25 modes, the mean over the same problems of each number of values; "-" where one of them was not run."""
    found = {row["problem"]: float(row["sw1"]) for row in rows}
    words = [
        f"{sum(found[p] for p in wanted) / len(wanted):.2f}" if found.keys() >= set(wanted) else "-"
        for wanted in MODES.values()
    ]
    return " / ".join(words) if set(words) != {"-"} else "-"


def cells(folder: Path = RESULTS.parent) -> str:
    """The table of Gaussian images of 16x16 gray: smallest to largest mean of a cell, errors over those of "exact"."""
    found = [row for row in summary.rows("gaussian", folder) if row["cell"].startswith(CELLS)]
    tables = {figure: summary.table(found, figure) for figure in CELL_FIGURES}
    lines = ["| " + " | ".join(CELL_HEADS) + " |", "|" + " --- |" * len(CELL_HEADS)]
    for solver, mode in dict.fromkeys((row["solver"], row["mode"]) for row in found if row["solver"] != QUANTILE):
        own = [row for row in found if (row["solver"], row["mode"]) == (solver, mode)]
        words = [f"`{solver}`" if mode == "independent" else f"`{solver}`, {mode}"]
        words += [str(len({row[key] for row in own})) for key in ("cell", "problem")]
        for figure, by_key in tables.items():
            means = []
            for cell in dict.fromkeys(row["cell"] for row in own):
                values, floor = by_key.get((cell, solver, mode), {}), by_key.get((cell, "exact", "independent"), {})
                if not figure.startswith(("mean", "sw")):
                    means.append(summary.mean(values, figure).value)
                elif values.keys() & floor.keys():
                    means.append(summary.against(values, floor, figure).value)
            means = [value for value in means if not math.isnan(value)]
            words.append(f"{min(means):.2f} to {max(means):.2f}" if means else "-")
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def by_size(folder: Path = RESULTS.parent) -> str:
    """The table of KPS on all Gaussian images: smallest to largest mean of a cell, in brackets those of exact draws."""
    rows = summary.rows("gaussian", folder)
    lines = ["| " + " | ".join(SIZE_HEADS) + " |", "|" + " --- |" * len(SIZE_HEADS)]
    for size in SIZES:
        own = [row for row in rows if row["cell"].startswith(f"gaussian/{size} ")]
        kps = [row for row in own if row["solver"] == "kps"]
        ran = {row["problem"] for row in kps}
        exact = [row for row in own if row["solver"] == "exact" and row["problem"] in ran]
        bounds = [row for row in own if row["solver"] == QUANTILE and row["problem"] in ran]
        words = [size, str(len({row["cell"] for row in kps})), str(len(ran))]
        for figure in CELL_FIGURES[:3]:
            spans = []
            for found in (kps, exact):
                means = [summary.mean(v, figure).value for v in summary.table(found, figure).values()]
                spans.append(f"{min(means):.3f} to {max(means):.3f}")
            words.append(f"{spans[0]} ({spans[1]})")
        words.append(span(kps, "nfe_backward", digits=0))
        for figure in CELL_FIGURES[3:]:
            limits = _by_problem(bounds, figure)
            (some, of), (others, _) = (summary.under(_by_problem(found, figure), limits) for found in (kps, exact))
            words.append(f"{some} of {of} ({others})")
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def _by_problem(rows: list[dict[str, str]], figure: str) -> dict[str, tuple[float, ...]]:
    """The figure of every problem, whatever its cell."""
    return {problem: v for cell in summary.table(rows, figure).values() for problem, v in cell.items()}


def _mean(rows: list[dict[str, str]], figure: str) -> str:
    """The mean over all problems of a solver."""
    values = _by_problem(rows, figure)
    if not values:
        return "-"
    found = summary.mean(values, figure).value
    return f"{found:.2f} dB" if figure == "gap_db" else f"{found:.2f}"


def table(folder: Path = RESULTS.parent) -> str:
    """The table in Markdown: one row for each solver and mode."""
    quick, whole = small(), large(folder)
    lines = ["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS)]
    keys = [(name, rows[0]["mode"]) for name, rows in quick.items()]
    for name, mode in [*keys, *(key for key in whole if key not in keys)]:
        base = name.split()[0]
        cells = [f"`{name}`" if mode == "independent" else f"`{name}`, {mode}"]
        cells += ["", ""] if base == "exact" else needs(base)
        if (name, mode) in keys:
            rows = quick[name]
            assert {row["operator"] for row in rows} == {*OPERATORS}
            cells += [rows[0]["nfe"], span(rows, "nfe_backward", digits=0)]
            cells += [span(rows, key) for key in ("mean_error", "std_ratio", "coverage")]
        else:
            cells += ["-"] * 5
        cells += [whole.get((name, mode), {}).get(family, "-") for family in FAMILIES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def written(page: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with the table between its marks replaced.

    Raises:
        ValueError: if the page has no marks.
    """
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"The page has no place for the table: expected {begin} and {end}, each once.")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def renewed(page: str) -> str:
    """The page with both tables of the tracked results."""
    return written(written(page, table()), cells(), BEGIN_CELLS, END_CELLS)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
    FLAGSHIP.write_text(written(FLAGSHIP.read_text(), by_size(), BEGIN_SIZES, END_SIZES))
    print(f"{PAGE.name}: {len(table().splitlines()) - 2} and {len(cells().splitlines()) - 2} rows")
