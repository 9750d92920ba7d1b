"""An experiment and a sweep from end to end: folders, figures, failures, and going on."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
import torch
from hydra.core.plugins import Plugins

from invdiff import cli
from invdiff.experiments import jobs as jobs_module
from invdiff.experiments.figures import COLUMNS
from invdiff.experiments.run import compose, main
from invdiff.images import read_image
from invdiff.metrics import psnr
from invdiff.provenance import read

SMALL = ["operator=mask", "data.crop=24", "data.images=[chelsea,coffee]", "draws=3", "pictures=false"]
FAST = ["prior=gaussian", "solver=ddrm", "solver.steps=4"]


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def run(out, *words):
    return main([*SMALL, f"out={out}", *words])


def folders(out):
    return sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith("."))


def rows(folder):
    with (folder / "figures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_job_of_draws(out, capsys):
    assert run(out, *FAST, "draws=19", "pictures=true") == 0
    (folder,) = folders(out)
    (job,) = compose([*SMALL, f"out={out}", *FAST, "draws=19", "pictures=true"])
    assert folder == job.folder
    assert folder.name == f"skimage_mask_gaussian_ddrm-{job.key[:8]}"
    done = json.loads((folder / "done.json").read_text())
    assert done["key"] == job.key
    assert done["names"] == {
        "data": "skimage",
        "operator": "mask",
        "noise": "gaussian",
        "prior": "gaussian",
        "solver": "ddrm",
    }
    assert done["settings"] == job.settings
    assert done["versions"]["torch"] == torch.__version__
    assert done["seconds"] > 0
    assert done["protocol"] is None
    found = rows(folder)
    assert tuple(found[0]) == COLUMNS
    assert [row["image"] for row in found] == ["chelsea", "coffee"]
    for row in found:
        assert done["images"][row["image"]] == row["sha256"]
        assert (row["nfe"], row["nfe_backward"], row["draws"], row["lpips"]) == ("4", "0", "19", "")
        assert row["label"] == "heuristic spread"
        assert float(row["psnr_draw"]) < float(row["psnr_mean"])
        assert 0 <= float(row["coverage90"]) <= 1
        assert 0 < float(row["crps"]) < 0.5
        assert float(row["spread_skill"]) > 0
        if sys.platform == "linux":
            assert 10 < float(row["peak_mib"]) < 10**5
    pictures = folder / "pictures" / "coffee"
    names = {path.name for path in pictures.iterdir()}
    assert names == {"truth.png", "measurement.png", "mean.png", "draw.png", "std.npy", "std.png"}
    assert np.load(pictures / "std.npy").shape == (3, 24, 24)
    truth, mean = read_image(pictures / "truth.png"), read_image(pictures / "mean.png")
    assert float(psnr(mean, truth)) == pytest.approx(float(found[1]["psnr_mean"]), abs=0.05)
    assert {name: getattr(read(pictures / f"{name}.png"), "content", None) for name in ("truth", "mean", "std")} == {
        "truth": None,
        "mean": "mean of 19 draws",
        "std": "standard deviation of 19 draws",
    }
    said = capsys.readouterr().out
    assert "skimage_mask_gaussian_ddrm ..." in said
    assert f"written to {out}" in said
    record = json.loads((folder / "record.json").read_text())
    assert record["runs"][0]["measurements"] == 2


def test_a_point_estimate_has_no_draws_columns(out, capsys):
    assert run(out, "prior=tv", "solver=pnp_hqs", "solver.iterations=2", "pictures=true") == 0
    (folder,) = folders(out)
    # prior, solver, PSNR, no draw, SSIM, CRPS, no coverage, no chi2, calls.
    (line,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mask ")]
    assert [*line[1:3], line[4], *line[7:10]] == ["tv", "pnp_hqs", "-", "-", "-", "2"]
    assert all(row["chi2"] for row in rows(folder))
    for row in rows(folder):
        for column in ("psnr_draw", "ssim_draw", "coverage90", "spread_skill"):
            assert row[column] == ""
        assert (row["draws"], row["label"]) == ("1", "point estimate")
        # The CRPS of a point estimate is its mean absolute error.
        pictures = folder / "pictures" / row["image"]
        error = (read_image(pictures / "mean.png") - read_image(pictures / "truth.png")).abs().mean()
        assert float(row["crps"]) == pytest.approx(float(error), abs=3e-3)
        assert not (pictures / "std.npy").exists()


def test_images_of_one_shape_are_one_run_and_each_is_itself(out):
    """A second image changes no draw of the first; another shape is another run."""
    assert run(out, *FAST) == 0
    assert run(out, *FAST, "data.images=[chelsea]") == 0
    together, alone = sorted((rows(folder) for folder in folders(out)), key=len, reverse=True)
    for column in ("psnr_mean", "psnr_draw", "crps", "chi2"):
        assert float(together[0][column]) == pytest.approx(float(alone[0][column]), rel=1e-4)
    point = ["prior=gaussian", "solver=pnp_hqs", "solver.iterations=3"]
    assert run(out / "one", *point) == 0
    assert run(out / "two", *point, "data.images=[coffee,chelsea]") == 0
    first, second = (rows(folders(out / name)[0]) for name in ("one", "two"))
    # Its noise is of the image, wherever it stands.
    assert first[0]["psnr_mean"] == second[1]["psnr_mean"] != first[1]["psnr_mean"]
    assert run(out / "gray", *FAST, "operator=identity", "data.images=[camera,chelsea,coffee]") == 0
    (folder,) = folders(out / "gray")
    record = json.loads((folder / "record.json").read_text())
    assert [part["measurements"] for part in record["runs"]] == [1, 2]
    assert [row["image"] for row in rows(folder)] == ["camera", "chelsea", "coffee"]


def test_a_sweep_goes_on_past_failures_and_lists_them(out, capsys):
    words = ["-m", "prior=gaussian,tv", "solver=pnp_hqs,ddrm,ddim", "operator.in_shape=[3,24,24]"]
    assert run(out, *words, "solver.sigma_max=null") == 2  # a setting that one of the solvers has not
    assert not out.exists()
    words = ["-m", "prior=gaussian,dncnn", "weights.dncnn=none.pth", "solver=pnp_hqs,ddim"]
    assert run(out, *words, "solvers.pnp_hqs.iterations=2") == 1
    said = capsys.readouterr().out
    assert "[4/4]" in said
    summary = said.split("Means over the images")[1]
    assert "skimage_mask_gaussian_ddim: not applicable: DDIM draws from the prior alone" in summary
    assert "skimage_mask_dncnn_pnp_hqs: failed: The file of weights none.pth does not exist" in summary
    assert "skimage_mask_gaussian_pnp_hqs" not in summary
    failed = [json.loads(path.read_text()) for path in sorted(out.glob("*/failed.json"))]
    assert sorted(entry["status"] for entry in failed) == ["failed", "failed", "not applicable"]
    assert len(list(out.glob("*/done.json"))) == 1
    assert "FileNotFoundError" in next(iter(out.glob("*dncnn_pnp_hqs*/error.txt"))).read_text()


def test_an_operator_without_svd_is_not_applicable_to_ddrm(out, capsys):
    words = ["-m", "operator=blur", "operator.boundary=reflect", "prior=gaussian", "solver=ddrm,pnp_hqs"]
    assert run(out, *words, "operator.kernel.sigma=1", "solvers.pnp_hqs.iterations=2", "data.images=[chelsea]") == 0
    assert "not applicable: DDRM needs an operator with an SVD; " in capsys.readouterr().out
    # Alone it is an error.
    assert run(out, "operator=blur", "operator.boundary=reflect", "operator.kernel.sigma=1", *FAST) == 1


def test_a_fault_of_a_job_keeps_its_trace(out, monkeypatch, capsys):
    def broken(*_, **__):
        raise KeyError("inner")

    monkeypatch.setattr(jobs_module, "sample", broken)
    assert run(out, *FAST) == 1
    assert "failed: KeyError: 'inner'" in capsys.readouterr().out
    assert "Traceback" in (folders(out)[0] / "error.txt").read_text()
    monkeypatch.undo()
    assert run(out, *FAST) == 0
    assert not (folders(out)[0] / "error.txt").exists()
    assert not (folders(out)[0] / "failed.json").exists()


def test_what_is_done_is_not_run_again(out, capsys, monkeypatch):
    words = ["-m", "prior=gaussian,tv", "solver=pnp_hqs", "solver.iterations=2"]
    assert run(out, *words) == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/done.json")}
    capsys.readouterr()
    monkeypatch.setattr(jobs_module, "sample", None)
    assert run(out, *words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"2 of 2 jobs are done already, in {out}.")
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/done.json")} == before
    monkeypatch.undo()
    assert run(out, "-m", "prior=gaussian,tv,median", *words[2:]) == 0
    assert "[1/1] skimage_mask_median_pnp_hqs" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_job_that_another_process_has_done_meanwhile_is_left_alone(out, capsys):
    words = [*SMALL, f"out={out}", *FAST]
    assert main(words) == 0
    (job,) = compose(words)
    written = (job.folder / "done.json").stat().st_mtime_ns
    assert jobs_module.run(job).status == "done"
    assert (job.folder / "done.json").stat().st_mtime_ns == written
    assert "done in the meantime by another process" in capsys.readouterr().out


def test_jobs_whose_images_have_changed_run_again(out, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images").mkdir()
    words = ["data=folder", f"data.path={tmp_path}/images", "operator=identity", *FAST, "draws=2", "store=true"]
    Image.fromarray(np.full((12, 12, 3), 90, np.uint8)).save(tmp_path / "images" / "a.png")
    assert main([*words, f"out={out}"]) == 0
    Image.fromarray(np.full((12, 12, 3), 91, np.uint8)).save(tmp_path / "images" / "a.png")
    capsys.readouterr()
    assert main([*words, f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert said.count("its images or weights have changed since it was done: it runs again.") == 1
    assert main([*words, f"out={out}"]) == 0
    assert "1 of 1 jobs are done already" in capsys.readouterr().out


def test_a_file_that_is_gone_loses_nothing(out, tmp_path, capsys):
    psf = tmp_path / "psf.npy"
    blur = ["operator=blur", "operator/kernel=load_psf", f"operator.kernel.path={psf}"]
    words = [*SMALL[1:], *FAST, *blur]
    np.save(psf, np.ones((3, 3)))
    assert main([*words, f"out={out}"]) == 0
    psf.unlink()
    capsys.readouterr()
    assert main([*words, f"out={out}"]) == 0
    assert "1 of 1 jobs are done already" in capsys.readouterr().out
    np.save(psf, np.ones((5, 5)))
    assert main([*words, f"out={out}"]) == 0
    assert "weights have changed since it was done: it runs again." in capsys.readouterr().out


def test_of_a_folder_every_file_counts(tmp_path):
    settings = {"operator": {}, "prior": {"folder": str(tmp_path)}, "lpips": None}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    first = jobs_module._files(settings)
    assert list(first) == ["prior.folder"]
    assert jobs_module._files(settings) == first
    (tmp_path / "unet" / "config.json").write_text("[]")
    assert jobs_module._files(settings) != first
    assert set(jobs_module._files({**settings, "lpips": str(tmp_path / "unet" / "config.json")})) == {
        "lpips",
        "prior.folder",
    }


def test_a_run_says_in_what_it_differs_from_its_protocol(out, capsys):
    assert run(out, *FAST, "protocol=skimage_mask") == 0
    said = capsys.readouterr().out
    assert "differs from the protocol skimage_mask: the image astronaut is missing." in said
    assert "differs from the protocol skimage_mask: data.crop is 24, the protocol has 128." in said
    # Its middle 24 pixels are other pixels.
    assert "differs from the protocol skimage_mask: the image chelsea has the SHA-256 " in said
    (folder,) = folders(out)
    done = json.loads((folder / "done.json").read_text())
    assert "draws is 3, the protocol has 20." in done["protocol"]["differs"]
    # A job that is done says it again, also where it was done without that protocol.
    assert run(out, *FAST, f"protocol={folder}/protocol.yaml") == 0
    assert "differs" not in capsys.readouterr().out
    assert run(out, *FAST, "protocol=skimage_mask") == 0
    said = capsys.readouterr().out
    assert "1 of 1 jobs are done already" in said
    assert "differs from the protocol skimage_mask: draws is 3, the protocol has 20." in said
    assert run(out, *FAST, "protocol=nothing") == 2
    assert "protocol is nothing: expected a .yaml file" in capsys.readouterr().err
    # What it did follow is a protocol itself.
    assert run(out, *FAST, f"protocol={folder}/protocol.yaml", "solver.steps=5") == 0
    assert "differs" not in capsys.readouterr().out


def test_draws_are_kept_where_asked(out):
    from invdiff import Posterior

    assert run(out, *FAST, "store=true") == 0
    (folder,) = folders(out)
    assert Posterior.load(folder / "draws.zarr").shape == (3, 2, 3, 24, 24)


def test_the_table_says_in_what_jobs_differ(out, capsys):
    words = ["-m", "prior=gaussian", "solver=ddrm", "solver.steps=3,4", "noise=gaussian,poisson"]
    assert run(out, *words, "draws=2") == 0
    said = capsys.readouterr()
    table = said.out.split("operator ")[1]
    assert table.split()[:3] == ["prior", "solver", "PSNR"]
    found = {tuple(line.split()[:5]) for line in table.splitlines()[1:5]}
    pairs = [(steps, noise) for steps in (3, 4) for noise in ("gaussian", "poisson")]
    assert found == {("mask", "gaussian", "ddrm", f"solver.steps={steps}", f"noise={noise}") for steps, noise in pairs}
    assert "skimage_mask_gaussian_ddrm solver.steps=3 noise=poisson: not applicable: DDRM needs GaussianNoise" in table


def test_the_command_is_the_same(out, capsys):
    assert cli.main(["experiment", *SMALL, f"out={out}", *FAST]) == 0
    assert len(folders(out)) == 1
    assert cli.main(["experiment", "solver=nothing"]) == 2
    assert "invdiff: There is no solver=nothing: choose from daps, " in capsys.readouterr().err
    for wrong in ("zero", "0", "2.5", "true", "null"):
        assert run(out, "prior=gaussian", "solver=pnp_hqs", f"draws={wrong}") == 2
        assert "expected a whole number of at least 1." in capsys.readouterr().err
    assert cli.main(["experiment", "prior=tv", "--cfg"]) == 0
    assert "_target_: invdiff.priors.tv.TV" in capsys.readouterr().out


def test_ctrl_c_ends_the_sweep(out, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs_module, "sample", interrupted)
    assert run(out, "-m", *FAST, "prior=gaussian,tv") == 130
    said = capsys.readouterr()
    assert said.out.count(" ...") == 1
    assert "the same line goes on with the rest" in said.err
    assert not list(out.glob("*/done.json"))
    assert cli.main(["experiment", *SMALL, f"out={out}", *FAST]) == 130
    assert capsys.readouterr().err.count("Interrupted") == 1


def test_a_launcher_that_stops_leaves_a_table(out, monkeypatch, capsys):
    make = Plugins.instantiate_launcher

    def broken(*words):
        launcher = make(*words)
        launch = launcher.launch

        def stopping(job_overrides, initial_job_idx):
            launch(job_overrides[:1], initial_job_idx)
            raise RuntimeError("process 7 was ended")

        launcher.launch = stopping
        return launcher

    monkeypatch.setattr(Plugins, "instantiate_launcher", broken)
    assert run(out, "-m", *FAST, "prior=gaussian,median") == 1
    said = capsys.readouterr().out
    assert "The launcher stopped: RuntimeError: process 7 was ended" in said
    assert "skimage_mask_median_ddrm: missing: it left nothing" in said
    assert len(list(out.glob("*/done.json"))) == 1


def test_your_own_prior_takes_a_flag(out, tmp_path, monkeypatch, capsys):
    (tmp_path / "mylab.py").write_text(
        "class Half:\n"
        "    sigma_range = (0.0, 1.0)\n"
        "    def __init__(self, share: float = 0.5) -> None:\n"
        "        self.share = share\n"
        "    def __call__(self, x, sigma):\n"
        "        return x * self.share + 0.5 * (1 - self.share)\n"
    )
    words = ["~prior", "+prior._target_=mylab.Half", "+prior.share=0.9", "solver=pnp_hqs"]
    assert run(out, *words, "--allow", "mylab:Half") == 2
    assert "names mylab.Half, which Python does not find: set PYTHONPATH" in capsys.readouterr().err
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(out, *words) == 2
    said = capsys.readouterr().err
    assert "names mylab.Half: it is not on the list" in said
    assert "say --allow mylab:Half." in said
    assert not out.exists()
    assert run(out, *words, "--allow", "mylab:Half") == 0
    assert folders(out)[0].name.startswith("skimage_mask_half_pnp_hqs-")
