"""`invdiff check`: what it prints and writes, Ctrl-C, and bad input in one sentence with exit code 2."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from invdiff import provenance, solvers
from invdiff.cli import main
from invdiff.exact.check import QUICK

DENOISE, MODES = "gaussian/16x16 gray denoise 0.05/0", "mixture16/A1 0.2/0"
assert {DENOISE, MODES} <= {*QUICK}
FAST = ["--prior-problem", DENOISE, "--draws", "64"]

MINE = '''
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    """The measurement itself, with noise of a size of one's own."""

    size: float = 0.05
    stochastic = True

    def iterate(self, likelihood, denoiser, x, random):
        yield likelihood.batched_y + self.size * random.normal(x)

@dataclass(frozen=True)
class Faulty:
    stochastic = True

    def iterate(self, likelihood, denoiser, x, random):
        yield x[:, :, :3]

@dataclass(frozen=True)
class Asking(Faulty):
    size: float

number = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a solver of one's own and what can be wrong around it."""
    (tmp_path / "checked_mine.py").write_text(MINE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_solver_of_the_library(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "ddrm", *FAST, "--prior-problem", MODES, "--set", "solver.steps=40"]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf"1 of 2: {DENOISE}, wrong, \d+\.\d s", lines[0])
    assert lines[1].startswith(f"2 of 2: {MODES}, ")
    assert f"{DENOISE}: spread 0." in said.out
    assert f"{MODES}: spread 0." in said.out
    assert "DDRM: Do not use its std as an error bar: wrong on all 2" in said.out
    for head in ("problem", "mean", "std", "SW2 (exact)", "90 %", "chi2", "NFE"):
        assert head in said.out
    assert not list(folder.glob("**/*.csv"))


def test_a_class_of_ones_own_with_its_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "checked_mine:Mine", *FAST, "--set", "solver.size=0.01", "--out", "out/mine"]
    assert main(words) == 0
    out = folder / "out" / "mine"
    assert {path.name for path in out.iterdir()} == {"check.csv", "check.png", "record.json", "verdict.txt"}
    assert provenance.read(out / "check.png").source == "dataDrivenMedia"
    assert "written to out/mine" in capsys.readouterr().out
    (row,) = csv.DictReader((out / "check.csv").open())
    assert row["problem"] == DENOISE
    assert float(row["spread_observed"]) < 0.5
    assert "do not use its std as an error bar" in (out / "verdict.txt").read_text()
    record = json.loads((out / "record.json").read_text())
    assert (record["solver"]["name"], record["solver"]["size"]) == ("checked_mine.Mine", 0.01)
    assert record["command"].startswith("invdiff check checked_mine:Mine --prior-problem 'gaussian/16x16")
    assert record["seed"] == 0


def test_what_does_not_apply_and_what_fails_is_a_finished_check(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "ddim", *FAST]) == 0
    assert f"{DENOISE}: does not apply: DDIM draws from the prior alone" in capsys.readouterr().out
    assert main(["check", "checked_mine:Faulty", *FAST, "--out", "o"]) == 0
    said = capsys.readouterr().out
    assert f"{DENOISE}: failed: ValueError: Faulty yielded a tensor of shape" in said
    assert "Failed on the one problem: see the reason above." in said
    assert {path.name for path in (folder / "o").iterdir()} == {"check.csv", "record.json", "verdict.txt"}


def test_ctrl_c_says_what_was_finished(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    iterate, calls, stop = solvers.DDRM.iterate, 0, 2

    def interrupted(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return iterate(self, *arguments)

    monkeypatch.setattr(solvers.DDRM, "iterate", interrupted)
    words = ["check", "ddrm", *FAST, "--prior-problem", MODES, "--set", "solver.steps=3", "--out", "kept"]
    assert main(words) == 130
    said = capsys.readouterr()
    first, last = said.err.splitlines()
    assert first.startswith(f"1 of 2: {DENOISE}, ")
    assert last == "invdiff: Interrupted: 1 of 2 problems are finished, and written to kept."
    assert f"{DENOISE}: " in said.out
    assert MODES not in said.out
    assert json.loads((folder / "kept" / "record.json").read_text())["interrupted"] is True
    calls, stop = 0, 1
    assert main([*words[:-1], "nothing"]) == 130
    assert capsys.readouterr().err == "invdiff: Interrupted: nothing was written.\n"
    assert not (folder / "nothing").exists()


CASES = {
    "unknown solver": (["ddmr"], "did you mean 'ddrm'"),
    "unknown module": (["nowhere_at_all:Thing"], "There is no module 'nowhere_at_all'"),
    "unknown class": (
        ["checked_mine:Min"],
        "The module checked_mine has no class 'Min': expected one of Mine, Faulty, Asking.",
    ),
    "no class": (["checked_mine:number"], "checked_mine:number is int: expected a class"),
    "no solver": (["pathlib:Path"], "pathlib:Path is no solver: it has no `stochastic` and `iterate`"),
    "a file": (["checked_mine.py:"], "expected a name, or module:Class such as mysolver:MySolver"),
    "unknown setting": (["ddrm", "--set", "solver.etta=1"], "did you mean 'eta'"),
    "setting misspelt": (
        ["kps", "--set", "solver.stepz=3"],
        "KPS has no setting 'stepz': did you mean 'steps'? Known are steps, schedule, sigma_min, sigma_max,",
    ),
    "own unknown setting": (
        ["checked_mine:Mine", "--set", "solver.colour=1"],
        "Mine has no setting 'colour': known are size.",
    ),
    "own without settings": (
        ["checked_mine:Faulty", "--set", "solver.size=1"],
        "Faulty has no setting 'size', nor any other.",
    ),
    "a setting left out": (["checked_mine:Asking"], "cannot be made of its settings"),
    "bad setting": (["ddrm", "--set", "solver.eta=7"], "eta of DDRM is 7"),
    "setting of the prior": (["ddrm", "--set", "prior.scale=2"], "check takes the exact priors"),
    "setting of nothing": (["ddrm", "--set", "eta=1"], "expected solver.NAME=VALUE"),
    "unknown problem": (["ddrm", "--prior-problem", "gausian"], "did you mean 'gaussian'"),
    "unknown cell": (["ddrm", "--prior-problem", "mixture16/A7 0.2"], "There is no problem 'mixture16/A7 0.2'"),
    "few draws": (["ddrm", "--draws", "10"], "draws is 10: expected a whole number from 39 on"),
    "no number": (["ddrm", "--draws", "many"], "--draws"),
    "negative seed": (["ddrm", "--seed", "-1"], "seed is -1"),
    "folder not empty": (["ddrm", "--out", "full"], "is not empty"),
    "folder is a file": (["ddrm", "--out", "file"], "file is a file"),
    "no solver at all": ([], "SOLVER"),
    "unknown option": (["ddrm", "--fulll"], "--fulll"),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_bad_input_is_one_sentence_and_nothing_is_written(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: object, **__: object) -> None:
        raise AssertionError("the computation began")

    monkeypatch.setattr(sys.modules["invdiff.exact.check"], "run", reached)  # the function has the module's name
    words, sentence = CASES[case]
    before = {path.name for path in folder.rglob("*")} | {"__pycache__"}
    assert main(["check", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("invdiff: ")
    assert said.err.count("\n") == 1, said.err
    assert sentence.lower() in said.err.lower()
    left = {path.name for path in folder.rglob("*") if path.suffix != ".pyc"}
    assert left <= before
    assert [path.name for path in (folder / "full").iterdir()] == ["notes.txt"]


def test_families_of_problems_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for family in ("gaussian", "mixture25", "mixture16", "heavy", "nonlinear"):
        assert f"\n  {family} " in said


def test_the_names_of_problems_are_listed_and_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--problems", "mixture16", "--problems", "nonlinear"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mixture16/A1 0.2/0 to /4"
    assert lines[-1] == "nonlinear/clip 0.3/0 to /7"
    assert len(lines) == 8
    name = lines[1].partition(" to ")[0]
    assert main(["check", "ddrm", "--set", "solver.steps=3", "--draws", "40", "--prior-problem", name]) == 0
    assert f"{name}: " in capsys.readouterr().out
    assert main(["list", "--problems", "mixtures"]) == 2
    assert "family is 'mixtures': expected one of gaussian, mixture25" in capsys.readouterr().err
