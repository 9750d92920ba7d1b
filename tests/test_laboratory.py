"""The laboratory's runner and its tables: rows, modes, resuming, paired intervals."""

from __future__ import annotations

import csv
import math

import pytest

from benchmarks import laboratory, summary
from benchmarks.laboratory import COLUMNS, line, standing, variants, write
from benchmarks.quantiles import QUANTILE, quantiles
from invdiff import solvers
from invdiff.exact.check import select
from invdiff.exact.measure import Exact


def run(folder, *words: str) -> list[dict[str, str]]:
    laboratory.main(["--family", "mixture16", "--limit", "1", "--out", str(folder), "--draws", "64", *words])
    return list(csv.DictReader((folder / "laboratory_mixture16.csv").open()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("laboratory")
    run(out, "--solvers", "ddrm", "--set", "steps=5", "--cells", "A1")
    return out


def test_a_row_for_each_problem_and_solver_with_all_figures(folder):
    rows = list(csv.DictReader((folder / "laboratory_mixture16.csv").open()))
    assert [(row["problem"], row["solver"]) for row in rows] == [
        (f"mixture16/A1 {sigma}/0", solver) for sigma in ("0.2", "0.5") for solver in ("exact", "ddrm steps=5")
    ]
    assert tuple(rows[0]) == COLUMNS
    exact, ddrm = rows[:2]
    assert float(exact["spread_observed"]) == pytest.approx(1, abs=0.15)
    assert float(ddrm["spread_observed"]) < 0.8
    assert (ddrm["nfe"], ddrm["draws"], ddrm["mode"]) == ("5", "64", "independent")
    assert float(ddrm["operator_calls"]) >= 5
    assert float(exact["mse"]) == pytest.approx(float(exact["mse_exact"]), rel=0.5)
    assert float(exact["ksd"]) > 0


def test_resuming_keeps_the_rows_that_stand_and_runs_the_others(folder, capsys):
    path = folder / "laboratory_mixture16.csv"
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("\n", 0, -1) + 20])  # stopped in the middle of the last line
    rows = run(folder, "--solvers", "ddrm", "--set", "steps=5", "--cells", "A1", "--resume")
    assert len(rows) == 4
    # Of the same seeds the row is the same, but for the time that it took.
    same = [k for k in COLUMNS if k != "seconds"]
    assert [[row[k] for k in same] for row in rows] == [
        [row[k] for k in same] for row in csv.DictReader(whole.splitlines())
    ]
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_without_resume_a_file_that_stands_is_not_touched(folder, capsys):
    before = (folder / "laboratory_mixture16.csv").read_text()
    with pytest.raises(SystemExit):
        run(folder, "--solvers", "ddrm")
    assert "add --resume to go on" in capsys.readouterr().err
    assert (folder / "laboratory_mixture16.csv").read_text() == before


def test_a_solver_that_refuses_has_a_row_that_says_so(tmp_path):
    write(
        tmp_path / "a.csv", {"family": "f", "problem": "f/c/0", "solver": "ddrm", "mode": "independent", "status": "no"}
    )
    assert standing(tmp_path / "a.csv") == {("f/c/0", "ddrm", "independent")}
    laboratory.main(
        ["--family", "nonlinear", "--limit", "1", "--cells", "phase 0.1", "--solvers", "ddrm", "--out", str(tmp_path)]
    )
    rows = list(csv.DictReader((tmp_path / "laboratory_nonlinear.csv").open()))
    assert rows[1]["status"].startswith("does not apply: DDRM needs an operator with an SVD")
    assert "does not apply" in line(rows[1])
    assert rows[1]["sw1"] == ""
    assert summary.rows("nonlinear", tmp_path) == rows[:1]


def test_solvers_with_clouds_run_in_both_modes():
    clouds = [name for name in laboratory.names() if hasattr(solvers.load(name), "keep")]
    for name in clouds:
        (_, one, single), (_, every, whole) = variants(name, ("independent", "cloud"), {"particles": 7})
        assert (one, every) == ("one of 7", "all of 7")
        assert (single.keep, whole.keep) == ("one", "cloud")
    assert [how for _, how, _ in variants("ddrm", ("independent", "cloud"), {"particles": 7})] == ["independent"]
    assert [label for label, _, _ in variants("ddrm", ("independent",), {"steps": 7})] == ["ddrm steps=7"]


def test_every_solver_that_draws_is_run():
    assert {"ddrm", "dps"} <= {*laboratory.names()}
    assert not {"ddim", "heun", "pnp_hqs"} & {*laboratory.names()}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--solvers", "ddmr"], "invalid choice: 'ddmr'"),
        (["--family", "gaussians"], "invalid choice: 'gaussians'"),
        (["--set", "steps"], "expected NAME=VALUE, such as steps=20"),
        (["--quantile", "5"], "'5': expected a whole number of sets from 40 on, such as 200"),
    ],
)
def test_wrong_words_are_refused(words, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit):
        laboratory.main([*words, "--out", str(tmp_path)])
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("operator", ["inpaint", "blur", "denoise"])
def test_the_quantile_over_sets_is_that_of_exact_draws_made_one_by_one(operator):
    """Its sets live in the directions of the distance; here whole images are drawn and measured."""
    (problem,) = select([f"gaussian/16x16 gray {operator} 0.2/0"])
    exact = Exact(problem, 24)
    bounds = quantiles(exact, 400)
    rows = [exact.figures(part) for part in problem.posterior.sample(150 * 24, seed=8).split(24)]
    for name, bound in bounds.items():
        # Of 150 binomial trials of 0.975 half the error of one in a thousand is 4 %.
        assert sum(row[name] <= bound for row in rows) / len(rows) == pytest.approx(0.975, abs=0.05), name
        assert sum(row[name] <= 0.9 * bound for row in rows) / len(rows) < 0.95, name
    assert ("mean_null" in bounds) == (operator == "inpaint")
    assert quantiles(exact, 400) == bounds
    (mixture,) = select(["mixture16/A1 0.2/0"])
    with pytest.raises(ValueError, match=r"mixture16/A1 0\.2/0 is not Gaussian: expected a problem of the family"):
        quantiles(Exact(mixture, 24), 40)


def test_the_tables_say_in_how_many_problems_a_solver_stays_under_the_quantile(tmp_path, capsys):
    words = ["--family", "gaussian", "--limit", "2", "--out", str(tmp_path), "--draws", "48", "--quantile", "60"]
    laboratory.main([*words, "--cells", "16x16 gray inpaint 0.05", "--solvers", "ddrm", "--set", "steps=5"])
    assert QUANTILE in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "laboratory_gaussian.csv").open()))
    assert [row["solver"] for row in rows] == ["exact", QUANTILE, "ddrm steps=5"] * 2
    assert (rows[1]["mode"], rows[1]["coverage90"], rows[1]["nfe"]) == ("of 60 sets", "", "")
    assert 0 < float(rows[1]["sw2"]) < float(rows[2]["sw2"])
    found = [text.split() for text in summary.lines("gaussian", ("sw2", "spread_observed"), "exact", tmp_path)]
    tails = [text[-5:] for text in found if "under" in text]
    assert sum("ddrm" in text for text in found) == 3  # a cell and all of them, and the spread, which has no quantile
    assert tails[1] == ["0/2", "under", *QUANTILE.split()]
    assert not any(text[:2] == ["gaussian/16x16", QUANTILE] for text in found)
    assert summary.under({"a": (1.0,), "b": (2.0,), "c": (3.0,)}, {"a": (1.0,), "b": (1.5,)}) == (1, 2)


def problems(*values: float) -> dict[str, tuple[float, ...]]:
    return {str(k): (value,) for k, value in enumerate(values)}


def test_means_with_intervals():
    found = summary.mean(problems(*[1.0, 3.0] * 50), "sw1")
    assert found.value == 2
    # Standard error 0.1, so that the interval is 2 +/- 0.196.
    assert found.low == pytest.approx(1.8, abs=0.03)
    assert found.high == pytest.approx(2.2, abs=0.03)


def test_comparisons_are_paired_over_the_problems_that_both_ran():
    other = problems(1.0, 10.0, 100.0, 7.0)
    half = {key: (value / 2,) for key, (value,) in problems(1.0, 10.0, 100.0).items()}
    found = summary.against(half, other, "sw1")
    # However wide the spread across problems, half of it is half of it.
    assert (found.value, found.low, found.high, found.problems) == (0.5, 0.5, 0.5, 3)
    shifted = {key: (value + 0.1,) for key, (value,) in other.items()}
    difference = summary.against(shifted, other, "coverage90")
    assert (difference.low, difference.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert math.isnan(summary.against(half, {}, "sw1").value)


def test_a_gap_in_decibels_is_of_mean_squared_errors():
    values = {"a": (2.0, 1.0), "b": (20.0, 10.0)}
    assert summary.mean(values, "gap_db").value == pytest.approx(10 * math.log10(2))


def test_the_tables_name_cell_solver_and_mode(folder):
    text = "\n".join(summary.lines("mixture16", ("sw1", "gap_db"), "exact", folder))
    assert "mixture16/A1 0.2" in text
    assert "ddrm steps=5" in text
    assert "independent" in text
    assert summary.lines("heavy", ("gap_db",), "exact", folder) == []
