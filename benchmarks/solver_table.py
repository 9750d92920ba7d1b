"""The table of docs/solvers.md from the tracked results: `python -m benchmarks.solver_table` writes it anew.

What a solver needs is asked of its own check; figures are those of results/posterior.csv (smallest to largest of the
four operators) and results/laboratory_FAMILY.csv (means over problems), "-" where nothing was measured.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from invdiff import Likelihood, solvers
from invdiff.noise import GaussianNoise
from invdiff.operators import Blur, Mask, from_function, gaussian_psf, random_mask
from invdiff.priors import FunctionPrior
from invdiff.solvers import CapabilityError

from . import summary
from .posterior import OPERATORS, RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "solvers.md"
BEGIN, END = "<!-- table: python -m benchmarks.solver_table -->", "<!-- end of table -->"
SHAPE = (1, 8, 8)
HEADS = (
    *("solver", "operators", "prior", "NFE", "back", "mean", "std", "cover 90 %"),
    *("25 modes: SW1", "16-d: weights", "heavy: gap, region", "nonlinear: SW1"),
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
            out.setdefault(key, {})[family] = ", ".join(words)
    return out


def _mean(rows: list[dict[str, str]], figure: str) -> str:
    """The mean over all problems of a solver."""
    values = {problem: v for cell in summary.table(rows, figure).values() for problem, v in cell.items()}
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


def written(page: str, content: str) -> str:
    """The page with the table between its marks replaced.

    Raises:
        ValueError: if the page has no marks.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"The page has no place for the table: expected {BEGIN} and {END}, each once.")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), table()))
    print(f"{PAGE.name}: {len(table().splitlines()) - 2} rows")
