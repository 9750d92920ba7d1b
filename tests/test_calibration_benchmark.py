"""The benchmark of calibration: photographs are its units, and figures are those of the draws that are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import calibration, calibration_draws
from invdiff import priors


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Tiles of 12 photographs that were held out, two of each, and 3 images of each test set, of smooth noise."""
    rng, names = np.random.default_rng(0), []
    folders = [tmp_path / "train_natural", *(tmp_path / "test" / name for name in calibration_draws.TEST_SETS)]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(12):
        for tile in (0, 1):
            names.append(f"source__photograph{number}__1440_0{tile}.png")
            Image.fromarray(rng.integers(0, 256, (34, 36, 3), dtype=np.uint8)).save(folders[0] / names[-1])
    for folder in folders[1:]:
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (34, 36, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "heldout.txt").write_text("\n".join(names))
    monkeypatch.setattr(calibration_draws, "HELDOUT", tmp_path / "heldout.txt")
    monkeypatch.setattr(calibration_draws, "SOLVERS", {"ddrm": {"steps": 2}})
    return tmp_path


def test_a_photograph_is_one_unit_whatever_its_tiles(data):
    found = calibration_draws.units(data)
    assert sorted(unit.name for unit in found if unit.role == "calibration") == sorted(
        f"source__photograph{number}" for number in range(12)
    )
    assert sum(unit.role == "test" for unit in found) == 6
    # Any beginning is a fair part of the whole.
    assert 2 <= sum(unit.role == "test" for unit in found[:9]) <= 4
    assert [unit.name for unit in calibration_draws.units(data)] == [unit.name for unit in found]


def test_draws_are_kept_and_figures_made_of_them(data, tmp_path):
    found, folder = calibration_draws.units(data), tmp_path / "draws"
    prior = priors.load("gaussian")
    for batch, task, solver in calibration_draws.missing(found, ["ddrm"], folder, 6):
        if task == "inpaint":
            calibration_draws.draw(prior, batch, task, solver, folder)
    left = list(calibration_draws.missing(found, ["ddrm"], folder, 6))
    assert {task for _, task, _ in left} == {"blur", "down4", "gray"}
    posterior, truth = calibration.load(folder, found[0], "inpaint", "ddrm")
    assert posterior.shape == (calibration_draws.DRAWS, *truth.shape)
    # They are the draws of this crop, and not of another one.
    errors = [float((posterior.mean() - unit.truth()).square().mean()) for unit in found]
    assert min(errors) == errors[0]
    assert errors[0] < 0.95 * sorted(errors)[1]
    rows = list(calibration.rows(found, folder, ["ddrm"]))
    assert {row["task"] for row in rows} == {"inpaint"}
    own = {row["state"]: row for row in rows if row["tested_on"] == "CBSD68 and Kodak24"}
    assert (own["uncalibrated"]["test_images"], own["crc"]["calibration_images"]) == ("6", "12")
    covered = [
        float(((truth >= low) & (truth <= high)).double().mean())
        for unit in found
        if unit.role == "test"
        for posterior, truth in [calibration.load(folder, unit, "inpaint", "ddrm")]
        for low, high in [posterior.interval(0.9)]
    ]
    assert float(own["uncalibrated"]["coverage_90"]) == pytest.approx(np.mean(covered), abs=1e-4)
    assert float(own["crc"]["coverage_90"]) > float(own["uncalibrated"]["coverage_90"])
    assert torch.equal(posterior.draws, posterior.draws.half().float())
