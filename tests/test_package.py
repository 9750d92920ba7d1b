"""What the distribution holds, and what importing it costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_list_equals_the_tree():
    listed = set(SETTINGS["tool"]["setuptools"]["packages"])
    found = {"invdiff.operators", "invdiff.experiments", "invdiff.experiments.conf"}
    for init in (ROOT / "invdiff").rglob("__init__.py"):
        if not {"operators", "experiments"} & set(init.parts):
            found.add(".".join(init.parent.relative_to(ROOT).parts))
    assert listed == found


def test_import_loads_nothing_heavy_beside_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import invdiff; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(run.stdout.split())
    assert "invdiff" in loaded
    heavy = {"deepinv", "hydra", "omegaconf", "skimage", "matplotlib", "scipy", "rich", "typer", "PIL", "safetensors"}
    assert not loaded & heavy, loaded & heavy


def test_how_many_modules_an_import_adds():
    code = "import sys, torch; n = len(sys.modules); import invdiff; print(n, len(sys.modules) - n)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    before, added = map(int, run.stdout.split())
    assert added <= 0.3 * before, (before, added)


def test_operators_refuse_another_name():
    run = subprocess.run([sys.executable, "-c", "import operators"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode != 0
    assert "import them as invdiff.operators" in run.stderr


@pytest.mark.slow
def test_the_wheel_holds_invdiff_and_nothing_else(tmp_path):
    # From a copy: a build folder left in the checkout would hide a module that is gone.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "runs", "demo_out"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"invdiff", wheel.name.split("-py3")[0] + ".dist-info"}
    for wanted in (
        "invdiff/operators/blur.py",
        "invdiff/experiments/run.py",
        "invdiff/experiments/heldout.txt",
        "invdiff/priors/natural.safetensors",
        "invdiff/priors/strength.json",
        "invdiff/py.typed",
        "invdiff/citations.bib",
        "invdiff/html/report.html",
        "invdiff/html/report.css",
        "invdiff/html/report.js",
    ):
        assert wanted in names
    conf = {str(path.relative_to(ROOT)) for path in (ROOT / "experiments").rglob("*.yaml")}
    assert len(conf) > 50
    assert {f"invdiff/{name}" for name in conf} <= set(names)
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = (
        "import invdiff, invdiff.operators as o, invdiff.priors as p; "
        "print(invdiff.__file__, o.__file__, p.load('natural').name)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
    )
    experiment = subprocess.run(
        [
            sys.executable,
            "-m",
            "invdiff.experiments.run",
            "--cfg",
            "prior=tv",
            "hydra.searchpath=[pkg://invdiff.experiments.conf]",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"},
    )
    assert "_target_: invdiff.priors.tv.TV" in experiment.stdout, experiment.stderr
    assert not experiment.stderr
    where, operators, name = run.stdout.split()
    assert Path(where).is_relative_to(target)
    assert Path(operators).is_relative_to(target)
    assert name == "natural"


def test_cleaning_up_spares_the_hours_of_training():
    recipe = (ROOT / "Makefile").read_text().split("\nclean:\n\t")[1].split()
    assert {"rm", "demo_out"} <= set(recipe)
    assert not [word for word in recipe if word.startswith("runs")]


def test_no_file_is_longer_than_400_lines():
    tracked = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    long = {name: n for name in tracked.stdout.split() if (n := len((ROOT / name).read_text().splitlines())) > 400}
    assert not long
