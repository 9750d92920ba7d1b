"""The programs of docs/examples: short, runnable from an empty folder, and as good as they say."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))
Program = Callable[[str], tuple[dict[str, Any], str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Run the program of that name in an empty folder; what it defined, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def program(name: str) -> tuple[dict[str, Any], str]:
        before = torch.random.get_rng_state()
        defined = runpy.run_path(str(FOLDER / f"{name}.py"))
        assert torch.equal(torch.random.get_rng_state(), before)
        return defined, capsys.readouterr().out

    return program


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_short_says_what_it_shows_and_uses_what_is_public(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 40
    assert text.startswith('"""')
    assert not re.search(r"\b_[a-z]|\._", text.replace("for _ in", ""))


def test_every_program_is_tested_here() -> None:
    assert {path.stem for path in PROGRAMS} == {"deepinv_user", "microscopy", "tomography"}


def test_microscopy_gains_decibels_and_keeps_dtype_and_offset(run: Program) -> None:
    defined, printed = run("microscopy")
    restored = defined["result"].restored
    assert restored.dtype.name == "uint16"
    assert restored.min() >= 100 - 400, "the camera's offset stays"
    assert printed.startswith("uint16 The draws are consistent with the stated noise")
    (before, wrong_before), (after, wrong_after) = re.findall(r"([\d.]+) dB, ([\d.]+)% of pixels", printed)
    assert float(after) > float(before) + 3
    assert float(wrong_after) < 0.65 * float(wrong_before)


def test_deepinv_s_denoiser_and_ours_in_one_solver(run: Program) -> None:
    _, printed = run("deepinv_user")
    inverse, smoother, natural = (float(number) for number in re.findall(r"([\d.]+) dB", printed))
    assert inverse + 8 < smoother < natural - 1.5
    assert re.search(r"deepinv:TVDenoiser: .*heuristic spread 0\.\d", printed)
    assert re.search(r"natural: .*uncalibrated spread 0\.0\d", printed)


def test_tomography_covers_the_phantom_and_draws_a_map(run: Program) -> None:
    defined, printed = run("tomography")
    assert defined["result"].metrics["psnr"] > 23.5
    assert 0.85 < defined["inside"] < 0.995
    assert "90 % intervals" in printed
    assert len(list(Path("tomography.zarr").iterdir())) > 1
    with Image.open("tomography.png") as picture:
        colours = picture.convert("RGB").getcolors(2**24)
    assert colours is not None
    assert len(colours) > 200
