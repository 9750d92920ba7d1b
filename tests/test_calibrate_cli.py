"""`invdiff calibrate`: from folders of draws with their truths to a file that `invdiff report` takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from invdiff import Likelihood, Posterior, sample
from invdiff.calibrator import Calibrator
from invdiff.cli import main
from invdiff.conformal import calibrate
from invdiff.kept_truth import read_truth
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM, PnPADMM

SHAPE = (1, 8, 8)
PRIOR = GaussianPrior.power_law(SHAPE)


def _run(folder: Path, seed: int, steps=3, draws=19, truth=True, solver=None, image: int | None = None) -> Path:
    image = PRIOR.sample(1, seed=seed if image is None else image).float()[0]
    noise = 0.1 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    likelihood = Likelihood(image + noise, Identity(SHAPE), GaussianNoise(0.1))
    given = {"seed": seed} | ({"truth": image} if truth else {})
    sample(solver or DDRM(steps=steps), likelihood, PRIOR, draws=draws, store=folder, progress=False, **given)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with ten runs."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(10):
        _run(folder / f"{seed}.zarr", seed)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def _refused(capsys, *words: object) -> str:
    assert main(["calibrate", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("invdiff: ")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("invdiff: ").rstrip()


def test_a_bar_is_on_a_terminal_alone(runs, capsys, monkeypatch):
    folders = sorted(runs.iterdir())
    assert main(["calibrate", *map(str, folders), "--out", "quiet.json"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["calibrate", *map(str, folders), "--out", "shown.json"]) == 0
    said = capsys.readouterr().err
    assert "looking through" in said
    assert "calibrating" in said
    assert "100%" in said
    assert Path("shown.json").read_text() == Path("quiet.json").read_text()


def test_the_file_is_what_calibrate_makes_of_these_runs(runs, capsys):
    folders = sorted(runs.iterdir())
    assert main(["calibrate", *map(str, folders), "--level", "0.8", "--out", "c.json"]) == 0
    said = capsys.readouterr().out
    found = Calibrator.load("c.json")
    assert found == calibrate([Posterior.load(f) for f in folders], [read_truth(f) for f in folders], 0.8)
    assert said.splitlines()[0].startswith("calibrated spread (crc, 80 %, 10 images): the spread is multiplied by ")
    assert f"{100 * found.risk:.3g} % after" in said
    assert said.splitlines()[-1] == "written to c.json; invdiff report RUN --calibrator c.json applies it"


def test_a_folder_of_several_measurements_is_as_many_images(capsys):
    truths = PRIOR.sample(10, seed=5).float()
    y = truths + 0.1 * torch.randn(truths.shape, generator=torch.Generator().manual_seed(6))
    likelihood = Likelihood(y, Identity(SHAPE), GaussianNoise(0.1))
    sample(DDRM(steps=3), likelihood, PRIOR, draws=19, store="ten.zarr", truth=truths, progress=False)
    assert main(["calibrate", "ten.zarr"]) == 0
    assert Calibrator.load("calibrator.json") == calibrate([Posterior.load("ten.zarr")], [truths])


def test_a_pattern_that_no_shell_filled_in(runs):
    assert main(["calibrate", f"{runs}/*.zarr"]) == 0
    assert Calibrator.load("calibrator.json").images == 10
    assert main(["calibrate", f"{runs}/*.zarr", "--method", "rcps", "--level", "0.5", "--overwrite"]) == 0
    found = Calibrator.load("calibrator.json")
    assert (found.method, found.level, found.delta) == ("rcps", 0.5, 0.1)


def test_the_report_takes_it_and_refuses_other_settings_unless_told(runs, capsys):
    assert main(["calibrate", f"{runs}/*.zarr"]) == 0
    new = _run(Path("new.zarr"), 50)
    assert main(["report", str(new), "--calibrator", "calibrator.json"]) == 0
    assert "calibrated spread (crc, 90 %, 10 images)" in Path("report.html").read_text()
    other = _run(Path("other.zarr"), 50, steps=4)
    capsys.readouterr()
    words = ["report", str(other), "--calibrator", "calibrator.json", "--out", "other.html"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "The calibration is of other settings (solver.steps 3 there and 4 here)" in said
    assert "(--anyway)" in said
    assert not Path("other.html").exists()
    assert main([*words, "--anyway"]) == 0
    page = Path("other.html").read_text()
    assert "spread calibrated for other settings (crc, 90 %, 10 images; other solver.steps)" in page
    assert "nothing is promised here" in page
    assert main(["report", str(other), "--anyway"]) == 2
    assert "--anyway is given without --calibrator" in capsys.readouterr().err


def test_too_few_images_are_counted(runs, capsys):
    three = [runs / f"{seed}.zarr" for seed in (0, 1, 2)]
    assert "crc at level 90 % needs at least 9 images, and there are 3: " in _refused(capsys, *three)
    said = _refused(capsys, f"{runs}/*.zarr", "--method", "rcps", "--delta", "0.2")
    assert "rcps at level 90 % and delta 0.2 needs at least 16 images, and there are 10: " in said
    # One image again and again is one.
    assert "there are 1: " in _refused(capsys, *[runs / "0.zarr"] * 9)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gone.zarr"], "gone.zarr is not there: expected a folder of restore --store (or sample(..., store=...))."),
        (["results"], "results holds no draws: expected a folder of restore --store (or sample(..., store=...))."),
        (["no*.zarr"], "No folder matches no*.zarr: expected folders of --store."),
        (["x.zarr", "--level", "90"], "level is 90.0: expected a probability between 0 and 1."),
        (["x.zarr", "--method", "c"], "method is 'c': expected 'crc' (in expectation) or 'rcps' (with a probability)."),
        (["x.zarr", "--method", "rcps", "--delta", "0"], "delta is 0.0: expected a probability between 0 and 1."),
        (
            ["x.zarr", "--delta", "0.05"],
            "--delta is 0.05 with --method crc, which promises on average: give --method rcps.",
        ),
        (
            ["x.zarr", "--out", "results", "--overwrite"],
            "results is a folder: expected the name of a file, such as results/calibrator.json.",
        ),
        (["x.zarr", "--out", "deep/c.json"], "There is no folder deep to write c.json in: make it first."),
        (["x.zarr", "--out", "there.json"], "there.json is there already: choose another name, or give --overwrite."),
        ([], "Missing argument 'runs'; see `invdiff --help`."),
    ],
)
def test_what_is_refused_before_anything_is_read(words, sentence, capsys):
    Path("results").mkdir()
    Path("there.json").write_text("{}")
    assert _refused(capsys, *words) == sentence
    assert Path("there.json").read_text() == "{}"


def test_runs_with_one_seed_are_warned_of_as_they_share_their_noise(runs, capsys):
    folders = [str(runs / f"{seed}.zarr") for seed in range(9)]
    assert main(["calibrate", *folders, folders[0]]) == 0
    assert capsys.readouterr().err == "", "one folder twice is one run"
    _run(Path("same.zarr"), 8, image=11)
    assert main(["calibrate", *folders, "same.zarr", "--overwrite"]) == 0
    assert capsys.readouterr().err == (
        "invdiff: warning: 1 of 10 runs have the seed of another one, and with it the noise of their draws (and of "
        "--simulate their measurement's): the promise is of images whose noise has nothing in common, so give each "
        "run a --seed of its own.\n"
    )


def test_what_no_interval_is_needed_for_is_refused_before_the_first_is_computed(runs, capsys, monkeypatch):
    monkeypatch.setattr(Posterior, "interval", lambda *_: pytest.fail("it takes its time"))
    assert "there are 3: " in _refused(capsys, *[runs / f"{seed}.zarr" for seed in (0, 1, 2)])
    _run(Path("other.zarr"), 21, steps=4)
    assert _refused(capsys, f"{runs}/*.zarr", "other.zarr").startswith("other.zarr was made with other settings")
    said = _refused(capsys, f"{runs}/*.zarr", "--level", "0.95")
    assert said.startswith(f"{runs / '0.zarr'}: A 95% interval needs at least 39 draws: this posterior has 19")


def test_a_folder_that_does_not_fit_is_named(runs, capsys):
    all_of_them = sorted(runs.iterdir())
    _run(Path("bare.zarr"), 20, truth=False)
    said = _refused(capsys, *all_of_them, "bare.zarr")
    assert said.startswith("bare.zarr keeps no truth: run its restore again with --truth, or as it was with")
    _run(Path("bare.zarr"), 20)
    assert main(["calibrate", *map(str, all_of_them), "bare.zarr", "--out", "c.json"]) == 0, "the truth came later"
    capsys.readouterr()
    _run(Path("other.zarr"), 21, steps=4)
    said = _refused(capsys, *all_of_them, "other.zarr")
    assert said == (
        "other.zarr was made with other settings than those before (solver.steps 3 there and 4 here): calibrate each "
        "setting by itself."
    )
    _run(Path("few.zarr"), 22, draws=16)
    assert _refused(capsys, "few.zarr") == (
        "few.zarr: A 90% interval needs at least 19 draws: this posterior has 16; ask for more, or a lower level."
    )
    _run(Path("point.zarr"), 23, draws=1, solver=PnPADMM(iterations=2))
    assert _refused(capsys, "point.zarr").startswith("point.zarr: a point estimate has no spread to calibrate")


def test_draws_that_are_not_finished_are_refused(capsys):
    stop = iter(range(100))

    def interrupt(*_: object) -> None:
        if next(stop) == 4:
            raise KeyboardInterrupt

    image = PRIOR.sample(1, seed=0).float()[0]
    likelihood = Likelihood(image, Identity(SHAPE), GaussianNoise(0.1))
    settings = {"draws": 19, "store": "half.zarr", "truth": image, "micro_batch": 4, "on_step": interrupt}
    with pytest.warns(UserWarning, match="Interrupted: 4 of 19 draws"):
        sample(DDRM(steps=3), likelihood, PRIOR, **settings)
    assert _refused(capsys, "half.zarr") == (
        "half.zarr is not finished: 4 draws are there so far; run it again to go on, or leave it out."
    )
