"""The report of what `restore --keep-posterior` wrote: draws, a record and pictures, and no folder of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invdiff.cli import main
from tests.report_page import data_of

ROUNDED = "The measurement is not that of the run to the last bit, as a picture of it is rounded and clipped"


@pytest.fixture(autouse=True)
def photo(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ramp = np.linspace(20, 230, 16).astype(np.uint8)
    Image.fromarray(np.tile(ramp, (16, 1))).save("photo.png")


def _page(*words: str) -> str:
    sampler = ["--solver", "ddrm", "--set", "solver.steps=2", "--draws", "8", "--seed", "1", "--keep-posterior"]
    assert main(["restore", "photo.png", *words, *sampler, "--sigma", "0.1", "--out", "results"]) == 0
    assert main(["report", "results"]) == 0
    return Path("report.html").read_text()


def test_operators_without_arrays_are_built_again():
    text = _page("--operator", "denoise")
    assert "The operator cannot be built" not in text
    assert "Residual chi²" in text
    assert [tint["key"] for tint in data_of(text)["tints"]] == ["variance", "detail"]
    assert ROUNDED not in text, "a photograph of 8 bits is kept as it is"


def test_a_simulated_measurement_was_rounded_for_its_picture():
    assert ROUNDED in _page("--operator", "denoise", "--simulate")
