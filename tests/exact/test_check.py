"""`check`: exact draws pass, each kind of fault is named, and what cannot run is said and not raised."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from invdiff import solvers
from invdiff.exact import check
from invdiff.exact.check import QUICK, Report, load, run, select
from invdiff.exact.measure import Exact
from invdiff.exact.problems import FAMILIES, Problem

INPAINT, BLUR, DENOISE = (f"gaussian/16x16 gray {name} 0.05/0" for name in ("inpaint", "blur", "denoise"))
MODES = "mixture16/A1 0.2/0"
PROBLEMS = {problem.name: problem for problem in select([INPAINT, BLUR, DENOISE, MODES])}


@dataclass(frozen=True)
class Perfect:
    """Exact draws of the problem that a likelihood belongs to, spoilt by a function of (draws, problem)."""

    spoil: Callable[[Tensor, Problem], Tensor] = lambda x, problem: x
    seed: int = 1
    stochastic: bool = True

    def iterate(self, likelihood, denoiser, x, random) -> Iterator[Tensor]:
        (problem,) = (p for p in PROBLEMS.values() if torch.equal(p.likelihood.y, likelihood.y))
        yield self.spoil(problem.posterior.sample(len(x), seed=self.seed), problem).to(x)


def quick(solver, *names: str, draws: int = 48) -> Report:
    return check(solver, names, draws=draws)


@pytest.mark.parametrize("seed", [1, 2])
def test_exact_draws_are_within_the_floor_everywhere(seed):
    report = quick(Perfect(seed=seed), INPAINT, BLUR, MODES, draws=96)
    assert [outcome.grade for outcome in report.outcomes] == ["exact"] * 3, report.lines()
    assert report.verdict.startswith(
        "Within the Monte Carlo floor of exact draws on all 3: its error bars can be used."
    )


def shrink_observed(x: Tensor, problem: Problem) -> Tensor:
    mean = problem.posterior.mean
    seen = problem.likelihood.operator(torch.ones_like(x[:1])) > 0
    return torch.where(seen, mean + 0.51 * (x - mean), x)


@pytest.mark.parametrize(
    ("spoil", "name", "sentence"),
    [
        (shrink_observed, INPAINT, "spread 0.51 of the true one in observed pixels, .*: do not use its std as an erro"),
        (lambda x, p: p.posterior.mean + 1.5 * (x - p.posterior.mean), BLUR, "spread 1.5. of the true one in observed"),
        (lambda x, p: x + 0.5 * p.posterior.std, DENOISE, r"mean off by 0\.5. posterior stds in observed pixels"),
        (
            lambda x, p: x[p.posterior.responsibilities(x).argmax(1) == 0].repeat(9, *[1] * (x.ndim - 1))[: len(x)],
            MODES,
            "weights of the",
        ),
    ],
)
def test_each_fault_is_named(spoil, name, sentence):
    (outcome,) = quick(Perfect(spoil), name, draws=128).outcomes
    assert outcome.grade == "wrong"
    assert re.search(sentence, outcome.words), outcome.words


def test_distances_have_intervals_where_the_draws_are_independent():
    exact = Exact(PROBLEMS[MODES], 96)
    draws = exact.independent()
    found, figures = exact.intervals(draws), exact.figures(draws)
    assert set(found) == {"sw1", "sw2", "energy"}
    for name, (low, high) in found.items():
        assert low <= figures[name] <= high
        assert 0 < high - low < 4 * figures[name]
    cloud = solvers.load("tds", steps=3, particles=4, keep="cloud")
    (outcome,) = quick(cloud, MODES).outcomes
    assert outcome.mode == "all of 4"
    assert outcome.intervals == {}


def test_a_small_fault_is_close_and_not_wrong():
    slightly = Perfect(lambda x, p: p.posterior.mean + 1.04 * (x - p.posterior.mean))
    (outcome,) = quick(slightly, DENOISE, draws=128).outcomes
    assert outcome.grade == "close"
    assert outcome.words.startswith("close to exact draws (spread 1.04 of the true one in observed pixels)")


def test_observed_and_unobserved_are_told_apart():
    problem = PROBLEMS[INPAINT]
    exact = Exact(problem, 128)
    figures = exact.figures(shrink_observed(exact.independent(), problem))
    assert figures["spread_observed"] == pytest.approx(0.51, abs=0.02)
    assert figures["spread_null"] == pytest.approx(1, abs=0.03)
    assert torch.tensor(exact.figures(problem.posterior.mean[None])["mean_null"]) < 1e-9


def test_variances_of_the_parts_are_those_of_many_draws():
    for name in (INPAINT, MODES, "gaussian/16x16 gray down4 0.05/0"):
        (problem,) = select([name])
        draws = problem.posterior.sample(4000, seed=3) - problem.posterior.mean
        for total, split in Exact(problem, 64).parts.values():
            assert float(split(draws).square().sum()) / 4000 == pytest.approx(total, rel=0.05)


def test_ddrm_under_blur_and_where_it_does_not_apply():
    report = quick(solvers.load("ddrm", steps=20), BLUR, "gaussian/16x16 gray reflect 0.05/0")
    wrong, refused = report.outcomes
    assert re.match("spread 0.5. of the true one in observed components", wrong.words)
    assert wrong.nfe == 20
    assert refused.words.startswith("does not apply: DDRM needs an operator with an SVD")
    assert "Do not use its std as an error bar: wrong on the one" in report.verdict
    assert "does not apply to 1 of 2" in report.verdict
    assert set(report.shown) == {BLUR}


def test_too_few_steps_of_tds_are_told_though_no_draw_is_infinite():
    (outcome,) = quick(solvers.load("tds", steps=5, particles=2), BLUR).outcomes
    assert outcome.grade == "wrong"
    assert outcome.figures["spread_observed"] > 1.5
    assert outcome.words.endswith("do not use its std as an error bar")


def test_a_point_estimate_has_no_error_bars():
    report = quick(solvers.load("pnp_admm", iterations=5), DENOISE)
    assert report.outcomes[0].mode == "point"
    assert report.verdict.startswith("A point estimate, which has no error bars")


def test_samplers_of_the_prior_apply_nowhere():
    report = quick(solvers.load("ddim", steps=5), DENOISE)
    assert report.verdict == "Applies to none of the 1 problem: see the reasons above."
    assert str(report).startswith(f"{DENOISE}: does not apply: DDIM draws from the prior alone")
    assert str(report).endswith(f"\n\n{report.verdict}")
    with pytest.raises(ValueError, match="nothing to draw: the solver ran on no problem"):
        report.picture()


def test_a_class_that_fails_says_where_and_the_others_are_run():
    def spoil(x, problem):
        if problem.name == BLUR:
            raise IndexError("no such pixel")
        return x

    report = quick(Perfect(spoil), INPAINT, BLUR)
    assert [outcome.grade for outcome in report.outcomes] == ["exact", "failed"]
    assert re.match(r"failed: IndexError: no such pixel \(test_check\.py, line \d+\)\.", report.outcomes[1].words)
    assert "It failed on" in report.verdict


def test_draws_that_are_not_finite_are_a_failure():
    report = quick(Perfect(lambda x, problem: x * float("nan")), DENOISE)
    assert "failed: FloatingPointError: Draw 0 of measurement 0 is not finite" in report.outcomes[0].words
    some = Perfect(lambda x, problem: torch.where(torch.arange(len(x)).reshape(-1, 1, 1, 1) == 3, torch.nan, x))
    (outcome,) = quick(some, DENOISE).outcomes
    assert (outcome.grade, outcome.words) == ("failed", "failed: FloatingPointError: 1 of 48 draws are not finite.")


def test_ctrl_c_keeps_what_is_finished():
    def spoil(x, problem):
        if problem.name == BLUR:
            os.kill(os.getpid(), signal.SIGINT)
        return x

    report = quick(Perfect(spoil), INPAINT, BLUR, DENOISE)
    assert [outcome.problem for outcome in report.outcomes] == [INPAINT]
    assert report.interrupted


def test_a_solver_starts_where_the_problem_says_unless_it_says_itself():
    (problem,) = select(["mixture25/d=8 dy=1/0"])
    assert problem.sigma_max > 100
    for own, expected in ((None, problem.sigma_max), (5.0, 5.0)):
        solver = replace(solvers.load("ddrm", steps=3), sigma_max=own)
        assert run(solver, problem, 2).record["solver"]["sigma_max"] == expected


def test_the_files_of_a_report(tmp_path):
    report = quick(solvers.load("ddrm", steps=5), DENOISE, "gaussian/16x16 gray reflect 0.05/0", MODES)
    report.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "check.csv",
        "check.png",
        "record.json",
        "verdict.txt",
    }
    rows = list(csv.DictReader((tmp_path / "out" / "check.csv").open()))
    assert [row["problem"] for row in rows] == [outcome.problem for outcome in report.outcomes]
    assert float(rows[0]["spread_observed"]) == pytest.approx(report.outcomes[0].figures["spread_observed"], abs=1e-4)
    assert float(rows[0]["coverage90_floor"]) == pytest.approx(0.9, abs=0.01)
    assert 0 < float(rows[0]["sw2_low"]) < float(rows[0]["sw2"]) < float(rows[0]["sw2_high"])
    assert rows[1]["grade"] == "refused"
    text = (tmp_path / "out" / "verdict.txt").read_text()
    assert report.verdict in text
    assert all(line in text for line in report.lines())
    assert text == f"{report}\n"
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["solver"]["name"] == "DDRM"
    assert record["finished"] == 3
    with pytest.raises(FileExistsError, match=r"is not empty: choose another, or give overwrite=True\.$"):
        report.save(tmp_path / "out")
    report.save(tmp_path / "out", overwrite=True)


def test_the_picture_has_a_row_for_each_problem_and_twelve_at_most():
    report = quick(solvers.load("ddrm", steps=5), DENOISE)
    figure = report.picture()
    (part,) = figure.subfigs
    assert [axes.get_xlabel() for axes in part.axes] == ["value", "value", "value", "nominal level, %"]
    # Exact and sampled draws stand in the same bins.
    bars, outline = part.axes[0].patches[:-1], part.axes[0].patches[-1]
    edges = sorted({bar.get_x() for bar in bars} | {bars[-1].get_x() + bars[-1].get_width()})
    assert sorted(set(outline.get_path().vertices[:, 0])) == pytest.approx(edges)
    many = tuple(replace(report.outcomes[0], problem=f"copy {k}") for k in range(30))
    crowd = Report(report.solver, many, {o.problem: report.shown[DENOISE] for o in many}, 30).picture()
    assert len(crowd.subfigs) == 10
    assert "10 of 30 problems" in crowd.get_suptitle()


def test_names_cells_families_and_the_quick_list():
    assert tuple(problem.name for problem in select([])) == QUICK
    assert {problem.family for problem in select([])} == {*FAMILIES} - {"heavy"}
    assert [problem.name for problem in select(["heavy"])] == ["heavy/laplace denoise/0"]
    assert len(select(["mixture16/A1 0.2"])) == 5
    assert [problem.name for problem in select(["mixture16"])] == [name for name in QUICK if "mixture16" in name]
    assert len(select(["mixture16"], full=True)) == 20


def test_one_name_needs_no_list():
    assert [problem.name for problem in select("mixture16/A1 0.2/0")] == [MODES]
    report = check(solvers.DDIM(steps=5), "mixture16", draws=48)
    assert [outcome.problem for outcome in report.outcomes] == [name for name in QUICK if "mixture16" in name]
    with pytest.raises(ValueError, match="no problem 'gausian': did you mean 'gaussian'"):
        check(solvers.DDIM(steps=5), "gausian")


@pytest.mark.parametrize(
    ("work", "error", "sentence"),
    [
        (lambda: check(solvers.DDRM), TypeError, "DDRM is no solver: expected an object with"),
        (lambda: check(7), TypeError, "int is no solver"),
        (lambda: check(solvers.DDRM(), draws=5), ValueError, "draws is 5: expected a whole number from 39 on"),
        (lambda: check(solvers.DDRM(), seed=-1), ValueError, "seed is -1"),
        (lambda: select(["gausian"]), ValueError, "no problem 'gausian': did you mean 'gaussian'"),
        (lambda: select(["mixture16/A3"]), ValueError, "no problem 'mixture16/A3': did you mean"),
        (lambda: load("ddrn"), ValueError, "did you mean 'ddrm'"),
        (lambda: load("nowhere:Thing"), ValueError, "There is no module 'nowhere' in .* or where Python looks"),
        (lambda: load("json:Thing"), ValueError, "The module json has no class 'Thing'"),
        (lambda: load("json:dumps"), ValueError, "json:dumps is function: expected a class"),
        (lambda: load("json:JSONDecoder"), ValueError, "is no solver: it has no `stochastic` and `iterate`"),
        (lambda: load("json:JSONDecoder", colour=1), ValueError, "JSONDecoder has no setting 'colour': known are obj"),
        (lambda: load("mine.py:"), ValueError, "expected a name, or module:Class such as mysolver:MySolver"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(work, error, sentence):
    with pytest.raises(error, match=sentence):
        work()


def test_a_class_of_ones_own_is_found_in_the_current_folder(tmp_path, monkeypatch):
    body = (
        "class Mine:\n    stochastic = True\n\n"
        "    def iterate(self, likelihood, denoiser, x, random):\n        yield x\n"
    )
    Path(tmp_path / "my_own_solver.py").write_text(body)
    Path(tmp_path / "needs_more.py").write_text("import something_that_is_not_there\n")
    Path(tmp_path / "is_broken.py").write_text("x = 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    assert type(load("my_own_solver:Mine")).__name__ == "Mine"
    with pytest.raises(ValueError, match=r"has no class 'Mime': expected one of Mine\."):
        load("my_own_solver:Mime")
    with pytest.raises(ValueError, match="needs 'something_that_is_not_there', which is not installed"):
        load("needs_more:Mine")
    with pytest.raises(
        ValueError, match=r"cannot be imported: ZeroDivisionError: division by zero \(is_broken.py, line 1\)"
    ):
        load("is_broken:Mine")
