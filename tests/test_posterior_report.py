"""The posterior report: exact draws sit on its floor, and what the docs declare is what it measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks.posterior import CASES, OPERATORS, merged, mode, operators, run
from invdiff import Posterior, solvers

ROOT = Path(__file__).resolve().parent.parent
ROWS = {
    (row["operator"], row["solver"]): row
    for row in csv.DictReader((ROOT / "benchmarks" / "results" / "posterior.csv").open())
}
MEASURED = {solver for _, solver in ROWS if solver in solvers.names() and ROWS["blur", solver]["coverage"] != "nan"}
IN_README = (
    *("exact", "kps", "ddrm", "ddrm (20 steps)", "ddrm (200 steps)", "dps", "dps (zeta 0.3)"),
    *("diffpir", "pigdm", "mmps", "daps"),
    *("pnp_pgd", "pnp_admm", "pnp_hqs", "red_gd", "red_fp", "red_admm"),
)


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


@pytest.mark.parametrize("name", sorted(MEASURED))
@pytest.mark.parametrize("key", ["mean_error", "std_ratio", "coverage"])
def test_a_solvers_docstring_declares_its_bias_as_measured(name, key):
    assert " / ".join(figures(name, key)) in type(solvers.load(name)).__doc__


def test_every_solver_is_measured():
    assert tuple(operators()) == OPERATORS
    missing = {"exact", *CASES} - {solver for _, solver in ROWS}
    assert not missing, f"run python -m benchmarks.posterior --solvers {' '.join(sorted(missing))}"
    assert len(ROWS) == len(OPERATORS) * (len(CASES) + 1)


def test_the_readmes_table_is_the_report():
    text = (ROOT / "README.md").read_text()
    for solver in IN_README:
        keys = ("mean_error", "std_ratio", "sw2", "coverage")
        if ROWS["blur", solver]["coverage"] == "nan":
            cells = figures(solver, "mean_error")
        else:
            cells = [" / ".join(cell) for cell in zip(*(figures(solver, key) for key in keys), strict=True)]
        assert "| " + " | ".join(cells) + " |" in text, solver


def test_new_rows_replace_those_of_their_solver_and_leave_the_others(tmp_path):
    path = tmp_path / "posterior.csv"
    path.write_text("operator,solver,mode,nfe\ndenoise,dps,independent,1000\nblur,ddrm,independent,50\nblur,gone,x,1\n")
    fresh = [{"operator": "blur", "solver": "ddrm", "mode": "independent", "nfe": 20}]
    assert [tuple(row.values()) for row in merged(fresh, path)] == [
        ("blur", "ddrm", "independent", "20"),
        ("denoise", "dps", "independent", "1000"),
    ]


@pytest.mark.parametrize(
    ("label", "record", "word"),
    [
        ("point estimate", {}, "point"),
        ("uncalibrated spread", {"cloud": None}, "independent"),
        ("uncalibrated spread", {"cloud": 64, "dependent": False}, "one of 64"),
        ("uncalibrated spread of dependent draws", {"cloud": 64, "dependent": True}, "all of 64"),
    ],
)
def test_every_row_says_how_its_draws_hang_together(label, record, word):
    assert mode(Posterior(torch.zeros(2, 1), record, label)) == word
