"""docs/solvers.md: its table is that of the tracked results, and its list of problems that of the quick check."""

from __future__ import annotations

import math
import re

import pytest

from benchmarks import laboratory
from benchmarks.quantiles import QUANTILE
from benchmarks.solver_table import (
    BEGIN,
    BEGIN_SIZES,
    CELL_FIGURES,
    CELL_HEADS,
    END,
    END_SIZES,
    FLAGSHIP,
    HEADS,
    MODES,
    PAGE,
    SIZE_HEADS,
    SIZES,
    by_size,
    cells,
    large,
    needs,
    renewed,
    span,
    table,
    written,
)
from invdiff.exact.check import QUICK


def test_the_page_holds_the_tables_of_the_tracked_results():
    assert renewed(PAGE.read_text()) == PAGE.read_text(), "run python -m benchmarks.solver_table"


def test_the_page_of_kps_holds_its_table():
    page = FLAGSHIP.read_text()
    assert written(page, by_size(), BEGIN_SIZES, END_SIZES) == page, "run python -m benchmarks.solver_table"


def test_kps_is_held_to_exact_draws_of_the_same_problems(tmp_path):
    path = tmp_path / "laboratory_gaussian.csv"
    for size in SIZES:
        for problem, solver, value, passes in (
            *(("a/0", "kps", 1.0, 70), ("a/1", "kps", 2.0, 90), ("b/0", "kps", 3.0, 80)),
            *(("a/0", "exact", 1.5, 0), ("a/1", "exact", 2.5, 0), ("b/0", "exact", 2.0, 0), ("b/1", "exact", 9.0, 0)),
            *(("a/0", QUANTILE, 1.2, 0), ("b/0", QUANTILE, 2.5, 0), ("b/1", QUANTILE, 9.5, 0)),
        ):
            row = {"cell": f"gaussian/{size} {problem[0]}", "status": "ok", "mode": "independent", "solver": solver}
            row |= {"problem": f"{size} {problem}", "nfe_backward": passes}
            laboratory.write(path, row | dict.fromkeys(CELL_FIGURES, value))
    spans, under = "1.500 to 3.000 (2.000 to 2.000)", "1 of 2 (1)"
    assert by_size(tmp_path).splitlines()[2:] == [
        f"| {size} | 2 | 3 | {spans} | {spans} | {spans} | 70 to 90 | {under} | {under} | {under} |" for size in SIZES
    ]


def test_the_page_lists_the_problems_of_the_quick_check():
    assert tuple(re.findall(r"^\| `(\w+/[^`]+)` \|", PAGE.read_text(), re.MULTILINE)) == QUICK


def test_every_row_is_as_wide_as_the_head():
    for made, heads in ((table(), HEADS), (cells(), CELL_HEADS), (by_size(), SIZE_HEADS)):
        lines = made.splitlines()
        assert {line.count("|") for line in lines} == {len(heads) + 1}
        assert heads == SIZE_HEADS or any(line.startswith("| `exact` |") for line in lines)


@pytest.mark.parametrize(
    ("name", "expected"), [("ddrm", ("SVD", "any")), ("dps", ("any", "differentiable")), ("pnp_hqs", ("linear", "any"))]
)
def test_what_a_solver_needs_is_what_its_check_refuses(name, expected):
    assert needs(name) == expected


def test_the_smallest_to_the_largest():
    rows = [{"nfe": "0.5"}, {"nfe": "0.25"}, {"nfe": "2"}]
    assert span(rows, "nfe") == "0.25 to 2.00"
    assert span(rows[:1], "nfe") == "0.50"
    assert span([{"nfe": "77"}, {"nfe": "101"}], "nfe", digits=0) == "77 to 101"


def test_the_laboratory_s_means_go_into_the_table(tmp_path):
    base = {"family": "mixture25", "status": "ok", "mode": "all of 9", "solver": "dps"}
    # A problem beyond those that all are held to does not count, and of 80 values one of them is missing.
    for value, problem in enumerate([*MODES[8], "mixture25/d=8 dy=1/5", *MODES[80][1:]]):
        row = base | {"cell": problem.rpartition("/")[0], "problem": problem, "sw1": value}
        laboratory.write(tmp_path / "laboratory_mixture25.csv", row)
    heavy = base | {"family": "heavy", "cell": "h", "problem": "h/0", "mse": 2.0, "mse_exact": 1.0, "hdr90": 0.5}
    laboratory.write(tmp_path / "laboratory_heavy.csv", heavy)
    lost = base | {"cell": "n", "problem": "n/0", "status": "does not apply: no"}
    laboratory.write(tmp_path / "laboratory_nonlinear.csv", lost)
    assert large(tmp_path) == {("dps", "all of 9"): {"mixture25": "7.00 / -", "heavy": "3.01 dB, 0.50"}}
    assert table(tmp_path).splitlines()[-1] == (
        "| `dps`, all of 9 | any | differentiable | - | - | - | - | - | 7.00 / - | - | 3.01 dB, 0.50 | - |"
    )


def test_cells_of_gaussian_images_are_paired_with_exact_draws(tmp_path):
    path = tmp_path / "laboratory_gaussian.csv"
    # The first cell has a problem more of exact draws alone, the last none of them.
    ran = {
        "exact": {"a/0": 0.1, "a/1": 0.3, "a/2": 0.5, "b/0": 0.1},
        "dps": {"a/0": 0.3, "a/1": 0.5, "b/0": 0.1, "c/0": 9},
    }
    for solver, values in ran.items():
        for problem, value in values.items():
            cell = f"gaussian/16x16 gray {problem[0]}"
            row = {"family": "gaussian", "cell": cell, "status": "ok", "mode": "independent", "problem": problem}
            row |= {"solver": solver, "mean_observed": value, "mean_null": math.nan, "sw2": value}
            laboratory.write(path, row | {"spread_observed": value, "spread_null": math.nan, "coverage90": 0.9})
    bound = {"cell": "gaussian/16x16 gray a", "status": "ok", "solver": QUANTILE, "problem": "a/0", "sw2": 7.0}
    laboratory.write(path, bound)
    laboratory.write(path, bound | {"cell": "gaussian/32x32 gray a", "solver": "dps"})
    assert cells(tmp_path).splitlines()[2:] == [
        "| `exact` | 2 | 4 | 0.10 to 0.30 | - | 0.90 to 0.90 | 1.00 to 1.00 | - | 1.00 to 1.00 |",
        "| `dps` | 3 | 4 | 0.10 to 9.00 | - | 0.90 to 0.90 | 1.00 to 2.00 | - | 1.00 to 2.00 |",
    ]


def test_a_page_without_a_place_is_refused():
    assert written(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="has no place for the table"):
        written("nothing", "new")
