"""`--draws auto` on the command line, and what it prints of the Monte Carlo error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invdiff.cli import main
from invdiff.posterior import Posterior


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    given = f"restore {tmp_path}/photo.png --operator denoise --sigma 0.1 --prior gaussian --set solver.steps=3"
    return [*given.split(), "--out", str(tmp_path / "out")]


def test_auto_draws_until_the_tolerance_and_says_so(words, tmp_path, capsys):
    auto = ["--draws", "auto", "--tolerance", "0.03", "--min-draws", "4", "--micro-batch", "4"]
    assert main([*words, *auto, "--store", str(tmp_path / "run.zarr")]) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["auto"]["reached"]
    assert record["draws"] % 4 == 0
    assert len(list((tmp_path / "out" / "draws").iterdir())) == record["draws"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    errors = metrics["monte_carlo"]
    assert max(errors["mean_error"], errors["std_error"]) <= 0.03
    said = " ".join(capsys.readouterr().out.split())
    assert f"Monte Carlo error mean {errors['mean_error']:.4f}, std {errors['std_error']:.4f}" in said
    assert f"({3 * record['draws']} more draws halve both)" in said
    assert "uncalibrated spread" in said or "heuristic spread" in said
    assert Posterior.load(tmp_path / "run.zarr").record["auto"] == record["auto"]


def test_it_warns_where_the_most_draws_are_too_few(words, capsys):
    assert main([*words, "--draws", "auto", "--tolerance", "1e-5", "--max-draws", "4"]) == 0
    assert "after 4 draws, the most that there were to be, and the tolerance is 1e-05" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--draws", "many"], "--draws is 'many': expected a whole number from 1 on, or auto."),
        (["--draws", "0"], "draws is 0: expected a whole number from 1 on, or 'auto'."),
        (["--tolerance", "0.1"], "tolerance is given with draws=16: it belongs to draws='auto'"),
        (["--draws", "auto", "--tolerance", "-1"], "tolerance is -1.0: expected a positive number"),
    ],
)
def test_what_cannot_be_is_refused(words, capsys, given, sentence):
    assert main([*words, *given]) == 2
    assert sentence in capsys.readouterr().err
