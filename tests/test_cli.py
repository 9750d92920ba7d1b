"""The command line run in process, on small images with fast priors."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as pictures

from invdiff import Posterior, commands, priors, solvers
from invdiff.cli import main
from invdiff.images import read_array, read_image
from invdiff.priors import Prior
from invdiff.report import output_folder, weight_hash

FAST = ["--prior", "gaussian", "--set", "solver.steps=3", "--draws", "2"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(pictures.astronaut()[60:124:2, 180:244:2]).save(path)
    return path


def _run(*words: object) -> int:
    return main([str(word) for word in words])


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_restore_writes_the_whole_folder(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "one"  # the parent is made too
    words = ["restore", photo, "--operator", "blur", "--psf-kind", "gaussian:1", "--sigma", "0.02", "--simulate"]
    assert _run(*words, *FAST, "--seed", 5, "--out", out, "--keep-posterior") == 0
    assert _names(out) == {
        "restored.png",
        "draws/000.png",
        "draws/001.png",
        "std.png",
        "measurement.png",
        "panel.png",
        "provenance.json",
        "metrics.json",
        "record.json",
        "posterior.safetensors",
    }
    restored = read_array(out / "restored.png")
    assert restored.shape == (32, 32, 3)
    assert restored.dtype == np.uint8
    posterior = Posterior.load(out / "posterior.safetensors")
    np.testing.assert_allclose(restored / 255, posterior.mean().clamp(0, 1).movedim(0, -1), atol=0.51 / 255)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["psnr"] > 15
    assert 0 < metrics["ssim"] <= 1
    assert metrics["chi2"]["values"] == 3 * 32 * 32
    assert metrics["spread_ratio"] > 0
    record = json.loads((out / "record.json").read_text())
    assert record["command"] == shlex.join(
        ["invdiff", *map(str, words), *FAST, "--seed", "5", "--out", str(out), "--keep-posterior"]
    )
    assert record["settings"]["operator"] == {"name": "blur", "psf_kind": "gaussian:1"}
    assert record["settings"]["solver"] == {"name": "kps", "steps": 3, "products": 3}
    assert record["solver"]["tolerance"] == 0.005  # resolved
    assert record["seed"] == 5
    assert record["nfe"] == 3
    assert record["seconds"] > 0
    assert record["weights_sha256"] is None
    assert len(record["input"]["sha256"]) == 64
    assert {"invdiff", "torch", "python", "git_commit", "device"} <= record["environment"].keys()
    said = capsys.readouterr()
    assert said.err == ""
    for word in (
        "PSNR",
        "SSIM",
        "chi2",
        "uncalibrated spread" if posterior.label.startswith("un") else "heuristic",
        str(out),
    ):
        assert word in said.out
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize("solver", ["pnp_admm", "red_gd"])
def test_point_estimates_have_no_draws_and_no_std(photo: Path, tmp_path: Path, solver: str) -> None:
    out = tmp_path / "out"
    settings = ["--prior", "tv", "--solver", solver, "--set", "solver.iterations=3"]
    assert _run("restore", photo, "--operator", "denoise", "--sigma", "0.05", *settings, "--out", out) == 0
    assert _names(out) == {
        *("restored.png", "measurement.png", "panel.png"),
        *("metrics.json", "record.json", "provenance.json"),
    }
    assert json.loads((out / "metrics.json").read_text())["chi2"]["verdict"] == ""


@pytest.mark.parametrize(
    ("operator", "file_format"),
    [
        ("blur", "tiff"),
        ("downsample", "npy"),
        ("mask", "tiff"),
        ("mask", "png"),
        ("gray", "npy"),
        ("gray", "png"),
        ("denoise", "tiff"),
        ("bayer", "tiff"),
    ],
)
def test_degrade_then_restore_with_the_printed_command(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], operator: str, file_format: str
) -> None:
    given = {"blur": ["--psf-kind", "motion:5:30"], "downsample": ["--factor", 2]}.get(operator, [])
    if operator == "mask":
        given = ["--keep", 0.5, "--mask-seed", 3]
    words = ["--operator", operator, *given, "--sigma", 0.05, "--seed", 1]
    assert _run("degrade", photo, *words, "--format", file_format, "--out", tmp_path / "low") == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert ("--boundary circular" in line) == (operator == "blur")
    assert json.loads((tmp_path / "low" / "record.json").read_text())["restore"] == line
    np.testing.assert_array_equal(read_array(tmp_path / "low" / "truth.png"), read_array(photo))
    command = shlex.split(line)
    assert command[0] == "invdiff"
    assert _run(*command[1:], *FAST) == 0
    assert "warning" not in capsys.readouterr().err
    found = json.loads((tmp_path / "low" / "restored" / "metrics.json").read_text())
    assert _run("restore", photo, *words, *FAST, "--simulate", "--out", tmp_path / "direct", "--seed", 1) == 0
    direct = json.loads((tmp_path / "direct" / "metrics.json").read_text())
    # Same measurement, other draws; PNG clips the noise.
    assert found["psnr"] == pytest.approx(direct["psnr"], abs=0.6)
    if file_format != "png":
        assert found["chi2"]["values"] == direct["chi2"]["values"]


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    import tifffile

    image = np.linspace(0, 65535, 24 * 24 * 3).reshape(24, 24, 3).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    assert (
        _run("restore", tmp_path / "a.tif", "--operator", "denoise", "--sigma", "0.01", *FAST, "--out", tmp_path / "o")
        == 0
    )
    restored = read_array(tmp_path / "o" / "restored.png")
    assert restored.dtype == np.uint16
    assert len(np.unique(restored)) > 256


def test_files_for_psf_and_mask(photo: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "psf.npy", np.ones((2, 3, 3)) * 7)  # any scale, and two of them
    words = ["--sigma", "0.02", "--simulate", *FAST]
    blur = ["--operator", "blur", "--psf", tmp_path / "psf.npy", "--psf-index", 1]
    assert _run("restore", photo, *blur, *words, "--out", tmp_path / "a") == 0
    formula = ["--operator", "blur", "--psf-kind", "uniform:3"]
    assert _run("restore", photo, *formula, *words, "--out", tmp_path / "b") == 0
    np.testing.assert_array_equal(read_array(tmp_path / "a/restored.png"), read_array(tmp_path / "b/restored.png"))
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    gray = tmp_path / "gray.png"
    Image.fromarray(read_array(photo)[..., 0]).save(gray)
    for number, picture in enumerate((photo, gray)):  # a mask saved in colour serves a gray image too
        out = tmp_path / f"m{number}"
        assert (
            _run("restore", picture, "--operator", "mask", "--mask", tmp_path / "mask.png", *words, "--out", out) == 0
        )
        assert (read_array(out / "measurement.png")[:, 20:] == 0).all()


def test_sigma_auto_and_alpha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).normal(128, 10, (40, 40, 4)).clip(0, 255).astype(np.uint8)
    noise[..., 3] = 255
    Image.fromarray(noise).save(tmp_path / "a.png")
    words = ["restore", tmp_path / "a.png", "--operator", "denoise", "--sigma", "auto", *FAST, "--out", tmp_path / "o"]
    assert _run(*words, "--alpha", "white") == 0
    assert "an estimate from the measurement" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "o/metrics.json").read_text())
    assert metrics["sigma_estimated"] is True
    assert metrics["sigma"] == pytest.approx(10 / 255, rel=0.1)


def test_overwrite_replaces_results_and_nothing_else(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["restore", photo, "--operator", "denoise", "--sigma", "0.05", "--prior", "gaussian", "--out", out]
    assert _run(*words, "--set", "solver.steps=2", "--draws", 3) == 0
    (out / "notes.txt").write_text("mine")
    before = (out / "record.json").read_text()
    assert _run(*words, "--set", "solver.steps=2", "--draws", 2) == 2  # refused, and nothing is changed
    assert (out / "record.json").read_text() == before
    assert _run(*words, "--set", "solver.steps=2", "--draws", 2, "--overwrite") == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert {path.name for path in (out / "draws").iterdir()} == {"000.png", "001.png"}
    assert json.loads((out / "record.json").read_text())["draws"] == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert _run(*words[:-1], empty, "--set", "solver.steps=2", "--draws", 2) == 0
    assert (empty / "record.json").exists()
    assert not list(empty.glob(".*"))


def test_ctrl_c_exits_130_and_leaves_nothing(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stop = 0

    class Interrupting(Prior):
        name = "interrupting"

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    monkeypatch.setattr(priors, "load", lambda name, **options: Interrupting())
    words = ["restore", photo, "--operator", "denoise", "--sigma", "0.05", "--set", "solver.steps=3", "--draws", 4]
    words += ["--micro-batch", 1, "--out", tmp_path / "a" / "out"]
    for last in (2, 8):  # in the first draw, and after whole draws that sample() would keep
        calls, stop = 0, last
        assert _run(*words) == 130
        said = capsys.readouterr()
        assert said.err == "invdiff: Interrupted: nothing was written.\n"
        assert said.out == ""
        assert {path.name for path in tmp_path.iterdir()} == {"photo.png"}


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def write(target: Path, error: BaseException) -> None:
        with output_folder(target, overwrite=True) as stage:
            (stage / "record.json").write_text("new")
            raise error

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "a" / "b", OSError("disk full"))
    assert not list(tmp_path.iterdir())
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "record.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(kept, KeyboardInterrupt())
    assert _names(kept) == {"record.json"}
    assert (kept / "record.json").read_text() == "old"


def test_the_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with output_folder(tmp_path / "out") as stage:
        (stage / "record.json").write_text("{}")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_list_prints_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("list") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {words[0] for words in lines}
    assert {*priors.names(), *solvers.names(), "blur", "downsample", "mask", "gray", "denoise", "bayer"} <= shown
    assert all(len(words) > 2 for words in lines if words[0] not in ("operators", "priors", "solvers"))


@pytest.mark.parametrize("words", [[], ["--help"], ["restore", "--help"], ["degrade", "--help"]])
def test_help(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 0
    assert "Usage: invdiff" in capsys.readouterr().out


def test_weight_hash_follows_the_weights() -> None:
    class Holder(Prior):
        name = "holder"

        def __init__(self, value: float) -> None:
            self.network = torch.nn.Linear(2, 1)
            with torch.no_grad():
                for parameter in self.network.parameters():
                    parameter.fill_(value)

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x

    with torch.random.fork_rng():
        first, same, other = Holder(1.0), Holder(1.0), Holder(2.0)
    assert weight_hash(first) == weight_hash(same)
    assert weight_hash(first) != weight_hash(other)
    assert weight_hash(priors.load("tv")) is None


def test_importing_the_command_line_stays_light() -> None:
    import subprocess
    import sys

    code = (
        "import sys, invdiff.cli; print([m for m in ('deepinv', 'matplotlib', 'skimage', 'hydra') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_restored_jpeg_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pictures.astronaut()[60:124:2, 180:228:2]).save(tmp_path / "a.jpg", exif=exif)
    out = tmp_path / "o"
    assert _run("restore", tmp_path / "a.jpg", "--operator", "denoise", "--sigma", "0.01", *FAST, "--out", out) == 0
    assert read_array(out / "restored.png").shape == (24, 32, 3)
    expected = read_image(tmp_path / "a.jpg")
    assert (read_image(out / "restored.png") - expected).abs().mean() < 0.08


def test_a_store_is_gone_on_with_and_says_what_it_keeps(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "run.zarr"
    words = ["restore", photo, "--operator", "blur", "--psf-kind", "gaussian:1", "--sigma", "0.02", "--simulate"]
    words += ["--prior", "gaussian", "--solver", "ddrm", "--set", "solver.steps=2", "--micro-batch", "2"]
    inside = tmp_path / "out" / "run.zarr"
    assert _run(*words, "--store", inside, "--out", tmp_path / "out") == 2
    assert "lies in --out" in capsys.readouterr().err
    words += ["--store", store]
    assert _run(*words, "--draws", 2, "--out", tmp_path / "two") == 0
    capsys.readouterr()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # Whatever it is that Ctrl-C meets, what is kept is said: here the writing of the pictures.
    monkeypatch.setattr(commands, "write_restoration", interrupt)
    assert _run(*words, "--draws", 4, "--out", tmp_path / "four") == 130
    assert "Interrupted: 4 of 4 draws are finished and kept in" in capsys.readouterr().err
    assert not (tmp_path / "four").exists()
