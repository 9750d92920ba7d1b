"""Bad input: one sentence on stderr, exit code 2, nothing written, and none of it after the computation has begun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from invdiff import running
from invdiff.cli import main

BASE = {"--operator": "denoise", "--sigma": "0.05", "--prior": "gaussian", "--solver": "ddrm"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of inputs to go wrong with, as the current folder; sampling itself must not be reached."""
    colour = pictures.astronaut()[60:92, 180:212]
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "gray.png")
    Image.fromarray(colour[:31, :30]).save(tmp_path / "odd.png")
    Image.fromarray(np.dstack([colour, np.full((32, 32), 200, np.uint8)])).save(tmp_path / "alpha.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "colour.png").read_bytes()[:1000])
    (tmp_path / "empty.png").write_bytes(b"")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        image = np.full((16, 16), 0.5, np.float32)
        image[3, 4] = value
        np.save(tmp_path / f"{name}.npy", image)
    np.save(tmp_path / "bool.npy", np.ones((16, 16), bool))
    np.save(tmp_path / "complex.npy", np.ones((16, 16), complex))
    np.save(tmp_path / "words.npy", np.full((16, 16), "a"))
    np.save(tmp_path / "word_psf.npy", np.full((3, 3), "a"))
    np.save(tmp_path / "complex_psf.npy", np.ones((3, 3), complex))
    np.save(tmp_path / "grey_levels.npy", np.full((16, 16), 128.0))
    np.save(tmp_path / "zero_psf.npy", np.zeros((3, 3)))
    np.save(tmp_path / "negative_psf.npy", -np.ones((3, 3)))
    np.save(tmp_path / "nan_psf.npy", np.full((3, 3), np.nan))
    np.save(tmp_path / "large_psf.npy", np.ones((33, 3)))
    np.save(tmp_path / "two_psfs.npy", np.ones((2, 3, 3)))
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "black.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "small_mask.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("the computation began")

    monkeypatch.setattr(running, "progress_bar", reached)
    return tmp_path


def _snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def _refused(files: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    before = _snapshot(files)
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("invdiff: ")
    assert said.err.count("\n") == 1, said.err
    assert said.err.rstrip().endswith((".", "?")), said.err
    assert "Traceback" not in said.err
    assert _snapshot(files) == before
    return said.err


CASES: dict[str, tuple[str, dict[str, str | None], str]] = {
    "missing file": ("none.png", {}, "none.png does not exist"),
    "a folder": ("full", {}, "is a folder"),
    "no image": ("text.png", {}, "text.png is not an image that can be read"),
    "cut short": ("cut.png", {}, "cut.png is damaged"),
    "empty file": ("empty.png", {}, "empty.png is not an image that can be read"),
    "nan pixels": ("nan.npy", {}, "NaN or infinite values (1 of 256)"),
    "infinite pixels": ("inf.npy", {}, "NaN or infinite values (1 of 256)"),
    "bool pixels": ("bool.npy", {}, "image has dtype bool"),
    "complex pixels": ("complex.npy", {}, "image has dtype complex128"),
    "words for pixels": ("words.npy", {}, "image has dtype <U1"),
    "bool truth": ("gray.png", {"--truth": "bool.npy"}, "truth has dtype bool"),
    "complex truth": ("gray.png", {"--truth": "complex.npy"}, "truth has dtype complex128"),
    "range of floats": ("grey_levels.npy", {}, "state its data range"),
    "alpha": ("alpha.png", {}, "has an alpha channel"),
    "alpha word": ("alpha.png", {"--alpha": "grey"}, "alpha is 'grey'"),
    "data range": ("colour.png", {"--data-range": "0"}, "data_range is 0"),
    "negative sigma": ("colour.png", {"--sigma": "-0.1"}, "sigma is -0.1"),
    "nan sigma": ("colour.png", {"--sigma": "nan"}, "sigma is nan"),
    "infinite sigma": ("colour.png", {"--sigma": "inf"}, "sigma is inf"),
    "sigma no number": ("colour.png", {"--sigma": "low"}, "sigma is 'low'"),
    "sigma in grey levels": ("colour.png", {"--sigma": "5"}, "divide by 255"),
    "sigma auto simulated": ("colour.png", {"--sigma": "auto", "--simulate": None}, "sigma is 'auto'"),
    "sigma auto of a mask": ("colour.png", {"--operator": "mask", "--sigma": "auto"}, "without missing values"),
    "psf missing": ("colour.png", {"--operator": "blur"}, "needs a PSF"),
    "psf file missing": ("colour.png", {"--operator": "blur", "--psf": "none.npy"}, "none.npy does not exist"),
    "psf unreadable": ("colour.png", {"--operator": "blur", "--psf": "text.png"}, "text.png cannot be read"),
    "psf sums to zero": ("colour.png", {"--operator": "blur", "--psf": "zero_psf.npy"}, "sums to 0"),
    "psf sums below zero": ("colour.png", {"--operator": "blur", "--psf": "negative_psf.npy"}, "sums to -9"),
    "psf not finite": ("colour.png", {"--operator": "blur", "--psf": "nan_psf.npy"}, "not finite"),
    "psf of words": ("colour.png", {"--operator": "blur", "--psf": "word_psf.npy"}, "is of type <U1"),
    "psf complex": ("colour.png", {"--operator": "blur", "--psf": "complex_psf.npy"}, "is complex"),
    "psf size in parts": ("colour.png", {"--operator": "blur", "--psf-kind": "uniform:2.5"}, "got size=2.5"),
    "psf size infinite": ("colour.png", {"--operator": "blur", "--psf-kind": "uniform:inf"}, "got size=inf"),
    "psf size nan": ("colour.png", {"--operator": "blur", "--psf-kind": "uniform:nan"}, "got size=nan"),
    "psf index of a kind": (
        "colour.png",
        {"--operator": "blur", "--psf-kind": "disk:2", "--psf-index": "1"},
        "psf_index is 1 with psf_kind ('disk:2')",
    ),
    "psf key of a kind": (
        "colour.png",
        {"--operator": "blur", "--psf-kind": "disk:2", "--psf-key": "k"},
        "psf_key is 'k' with psf_kind ('disk:2')",
    ),
    "psf index of nothing": ("colour.png", {"--operator": "downsample", "--psf-index": "1"}, "with no PSF file"),
    "psf too large": ("colour.png", {"--operator": "blur", "--psf": "large_psf.npy"}, "larger than the image"),
    "psf of several": ("colour.png", {"--operator": "blur", "--psf": "two_psfs.npy"}, "holds 2 PSFs"),
    "psf twice": ("colour.png", {"--operator": "blur", "--psf": "two_psfs.npy", "--psf-kind": "disk:2"}, "Both psf"),
    "psf kind": ("colour.png", {"--operator": "blur", "--psf-kind": "gausian:2"}, "did you mean 'gaussian'"),
    "psf numbers": ("colour.png", {"--operator": "blur", "--psf-kind": "gaussian:-2"}, "-2"),
    "boundary": ("colour.png", {"--operator": "blur", "--psf-kind": "disk:2", "--boundary": "mirror"}, "'mirror'"),
    "factor does not divide": ("odd.png", {"--operator": "downsample", "--simulate": None}, "31 x 30"),
    "factor": ("colour.png", {"--operator": "downsample", "--factor": "-2"}, "factor is -2"),
    "mask all black": ("colour.png", {"--operator": "mask", "--mask": "black.png"}, "nothing is measured"),
    "mask of another size": ("colour.png", {"--operator": "mask", "--mask": "small_mask.png"}, "8 x 8"),
    "mask missing": ("colour.png", {"--operator": "mask", "--mask": "none.png"}, "none.png does not exist"),
    "mask fraction": ("colour.png", {"--operator": "mask", "--keep": "30"}, "30"),
    "option of another operator": ("colour.png", {"--factor": "4"}, "has no option 'factor'"),
    "gray from colour": ("colour.png", {"--operator": "gray"}, "measures one"),
    "colour from gray": ("gray.png", {"--operator": "gray", "--simulate": None}, "takes a colour image"),
    "truth of another size": ("colour.png", {"--truth": "odd.png"}, "truth has shape"),
    "truth of other channels": ("colour.png", {"--truth": "gray.png"}, "truth has shape"),
    "truth and simulate": ("colour.png", {"--truth": "colour.png", "--simulate": None}, "Both --truth and --simulate"),
    "unknown operator": ("colour.png", {"--operator": "blurr"}, "did you mean 'blur'"),
    "unknown prior": ("colour.png", {"--prior": "gausian"}, "did you mean 'gaussian'"),
    "unknown solver": ("colour.png", {"--solver": "dddrm"}, "did you mean 'ddrm'"),
    "unknown solver setting": ("colour.png", {"--set": "solver.etta=1"}, "did you mean 'eta'"),
    "bad solver setting": ("colour.png", {"--set": "solver.eta=7"}, "eta of DDRM is 7"),
    "solver setting a word": ("colour.png", {"--solver": "pnp_hqs", "--set": "solver.lam=abc"}, "lam"),
    "solver setting in parts": ("colour.png", {"--solver": "pnp_hqs", "--set": "solver.iterations=2.5"}, "iterations"),
    "prior setting a word": (
        "colour.png",
        {"--set": "prior.scale=abc"},
        "got the settings scale='abc': one is not of the type that it takes",
    ),
    "prior setting in parts": (
        "colour.png",
        {"--prior": "tv", "--set": "prior.iterations=2.5"},
        "iterations of the prior 'tv' is 2.5: expected a whole number",
    ),
    "unknown prior setting": ("colour.png", {"--set": "prior.colour=1"}, "colour"),
    "setting of nothing": ("colour.png", {"--set": "eta=1"}, "expected solver.NAME=VALUE"),
    "prior that cannot serve": ("colour.png", {"--prior": "median", "--solver": "dps"}, "differentia"),
    "operator that cannot": (
        "colour.png",
        {"--operator": "blur", "--psf-kind": "disk:2", "--boundary": "zero"},
        "DDRM needs an operator with an SVD",
    ),
    "weights missing": ("colour.png", {"--prior": "dncnn:none.pth"}, "none.pth"),
    "no draws": ("colour.png", {"--draws": "0"}, "draws is 0"),
    "negative seed": ("colour.png", {"--seed": "-1"}, "seed is -1"),
    "micro batch": ("colour.png", {"--micro-batch": "0"}, "micro_batch is 0"),
    "device": ("colour.png", {"--device": "gpu"}, "device is 'gpu'"),
    "device without values": ("colour.png", {"--device": "meta"}, "device is 'meta'"),
    "device of another kind": ("colour.png", {"--device": "xla"}, "device is 'xla'"),
    "folder not empty": ("colour.png", {"--out": "full"}, "is not empty"),
    "folder is a file": ("colour.png", {"--out": "gray.png"}, "gray.png is a file"),
    "folder under a file": ("colour.png", {"--out": "gray.png/out"}, "cannot be"),
    "a number that is none": ("colour.png", {"--draws": "many"}, "--draws"),
    "unknown option": ("colour.png", {"--sgima": "1"}, "--sgima"),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_restore_refuses(case: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, changes, sentence = CASES[case]
    options = {**BASE, "--out": "out/results", **changes}
    words = [word for name, value in options.items() for word in ((name,) if value is None else (name, value))]
    assert sentence in _refused(files, capsys, ["restore", image, *words])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["restore", "colour.png", "--operator", "denoise", "--sigma", "0.1"], "--out"),
        (["restore"], "image"),
        (["restor"], "restor"),
        (["degrade", "colour.png", "--operator", "denoise", "--sigma", "-1", "--out", "o"], "sigma is -1"),
        (["degrade", "colour.png", "--operator", "blurr", "--sigma", "0", "--out", "o"], "did you mean 'blur'"),
        (["degrade", "odd.png", "--operator", "downsample", "--sigma", "0", "--out", "o"], "31 x 30"),
        (["degrade", "colour.png", "--operator", "denoise", "--sigma", "0", "--out", "full"], "is not empty"),
        (["degrade", "none.png", "--operator", "denoise", "--sigma", "0", "--out", "o"], "does not exist"),
        (["degrade", "nan.npy", "--operator", "denoise", "--sigma", "0", "--out", "o"], "NaN"),
        (["degrade", "colour.png", "--operator", "denoise", "--sigma", "0", "--out", "o", "--format", "jpg"], "'jpg'"),
    ],
)
def test_other_commands_refuse(
    words: list[str], sentence: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in _refused(files, capsys, words).replace("IMAGE", "image")


def test_a_folder_that_cannot_be_written(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", denied)  # a superuser could write anywhere
    words = [word for pair in BASE.items() for word in pair]
    assert "cannot be written" in _refused(files, capsys, ["restore", "colour.png", *words, "--out", "deep/out"])


def test_cuda_where_there_is_none(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [word for pair in BASE.items() for word in pair]
    said = _refused(files, capsys, ["restore", "colour.png", *words, "--out", "out", "--device", "cuda"])
    assert "no CUDA device" in said


def test_good_input_does_reach_the_computation(files: Path) -> None:
    words = [word for pair in BASE.items() for word in pair]
    with pytest.raises(AssertionError, match="the computation began"):
        main(["restore", "colour.png", *words, "--out", "out"])
    assert not (files / "out").exists()
