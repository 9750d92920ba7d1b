"""The posterior report: exact draws sit on its floor, and what the docs declare is what it measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.posterior import CASES, run
from invdiff import solvers

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = ("inpaint", "blur", "down4", "denoise")
ROWS = {
    (row["operator"], row["solver"]): row
    for row in csv.DictReader((ROOT / "benchmarks" / "results" / "posterior.csv").open())
}


def figures(solver: str, key: str) -> list[str]:
    return [f"{float(ROWS[operator, solver][key]):.2f}" for operator in OPERATORS]


def test_exact_draws_sit_on_the_floor_and_ddrm_does_not():
    rows = {(row["operator"], row["solver"]): row for row in run(["ddrm"], measurements=1, draws=256)}
    for operator in OPERATORS:
        exact = rows[operator, "exact"]
        assert exact["mean_error"] < 0.1
        assert exact["std_ratio"] == pytest.approx(1, abs=0.02)
        assert exact["coverage"] == pytest.approx(0.9, abs=0.01)
        assert rows[operator, "ddrm"]["sw2"] > exact["sw2"]
    assert rows["blur", "ddrm"]["coverage"] < 0.65


@pytest.mark.parametrize("name", ["ddrm", "dps"])
@pytest.mark.parametrize("key", ["mean_error", "std_ratio", "coverage"])
def test_a_solvers_docstring_declares_its_bias_as_measured(name, key):
    assert " / ".join(figures(name, key)) in type(solvers.load(name)).__doc__


def test_the_readmes_table_is_the_report():
    text = (ROOT / "README.md").read_text()
    assert {solver for _, solver in ROWS} == {"exact", *CASES}
    for _, solver in ROWS:
        keys = ("mean_error", "std_ratio", "sw2", "coverage")
        if ROWS["blur", solver]["coverage"] == "nan":
            cells = figures(solver, "mean_error")
        else:
            cells = [" / ".join(cell) for cell in zip(*(figures(solver, key) for key in keys), strict=True)]
        assert "| " + " | ".join(cells) + " |" in text, solver
