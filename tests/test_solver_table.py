"""docs/solvers.md: its table is that of the tracked results, and its list of problems that of the quick check."""

from __future__ import annotations

import re

import pytest

from benchmarks import laboratory
from benchmarks.solver_table import BEGIN, END, HEADS, PAGE, large, needs, span, table, written
from invdiff.exact.check import QUICK


def test_the_page_holds_the_table_of_the_tracked_results():
    assert written(PAGE.read_text(), table()) == PAGE.read_text(), "run python -m benchmarks.solver_table"


def test_the_page_lists_the_problems_of_the_quick_check():
    assert tuple(re.findall(r"^\| `(\w+/[^`]+)` \|", PAGE.read_text(), re.MULTILINE)) == QUICK


def test_every_row_is_as_wide_as_the_head():
    lines = table().splitlines()
    assert {line.count("|") for line in lines} == {len(HEADS) + 1}
    assert any(line.startswith("| `exact` |") for line in lines)


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
    base = {"family": "mixture25", "cell": "c", "status": "ok", "mode": "all of 9"}
    for number, value in enumerate((1.0, 2.0)):
        row = base | {"problem": f"c/{number}", "solver": "dps", "sw1": value}
        laboratory.write(tmp_path / "laboratory_mixture25.csv", row)
    heavy = base | {"family": "heavy", "problem": "h/0", "solver": "dps", "mse": 2.0, "mse_exact": 1.0, "hdr90": 0.5}
    laboratory.write(tmp_path / "laboratory_heavy.csv", heavy)
    laboratory.write(tmp_path / "laboratory_nonlinear.csv", base | {"problem": "n/0", "status": "does not apply: no"})
    assert large(tmp_path) == {("dps", "all of 9"): {"mixture25": "1.50", "heavy": "3.01 dB, 0.50"}}
    assert table(tmp_path).splitlines()[-1] == (
        "| `dps`, all of 9 | any | differentiable | - | - | - | - | - | 1.50 | - | 3.01 dB, 0.50 | - |"
    )


def test_a_page_without_a_place_is_refused():
    assert written(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="has no place for the table"):
        written("nothing", "new")
