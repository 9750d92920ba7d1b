"""Draws in the files of others: what is read back is what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff import Likelihood, Posterior, sample
from invdiff.noise import GaussianNoise
from invdiff.operators import Identity, Matrix
from invdiff.priors import GaussianPrior
from invdiff.solvers import DDRM

SHAPE = (3, 4, 6)
PRIOR = GaussianPrior.power_law(SHAPE)


def run(measurements: int | None = None, dtype: torch.dtype = torch.float32, **where) -> Posterior:
    y = PRIOR.sample(measurements or 1, seed=1).to(dtype)
    given = Likelihood(y if measurements else y[0], Identity(SHAPE), GaussianNoise(0.1))
    return sample(DDRM(steps=3), given, PRIOR, draws=5, micro_batch=2, **where)


def read(path: Path) -> tuple[np.ndarray, dict, str]:
    """Draws, record and label, by others' readers alone."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["draws"], json.loads(str(file["record"])), str(file["label"])
    if path.suffix in (".h5", ".hdf5"):
        import h5py

        with h5py.File(path) as file:
            return file["draws"][...], json.loads(file["record"].asstr()[()]), file["label"].asstr()[()]
    import tifffile

    with tifffile.TiffFile(path) as file:
        said = json.loads(file.pages[0].description)
        assert all(page.shape == SHAPE[1:] for page in file.pages)
        return np.stack([page.asarray() for page in file.pages]).reshape(said["shape"]), said["record"], said["label"]


@pytest.mark.parametrize("suffix", [".npz", ".tif", ".tiff", ".h5", ".hdf5", ".TIF"])
@pytest.mark.parametrize("measurements", [None, 2])
@pytest.mark.parametrize("kept", [False, True])
def test_what_is_read_back_is_what_was_drawn(tmp_path, suffix, measurements, kept):
    posterior = run(measurements, **({"store": tmp_path / "run"} if kept else {}))
    posterior.export(tmp_path / f"draws{suffix}")
    draws, record, label = read((tmp_path / f"draws{suffix}").rename(tmp_path / f"draws{suffix.lower()}"))
    np.testing.assert_array_equal(draws, posterior.draws.numpy())
    assert draws.dtype == np.float32
    assert record == {key: value for key, value in posterior.record.items() if key != "store"}
    assert label == "uncalibrated spread"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("suffix", [".npz", ".tiff", ".h5"])
def test_double_precision_is_kept(tmp_path, suffix):
    posterior = run(dtype=torch.float64)
    posterior.export(tmp_path / f"draws{suffix}")
    draws = read(tmp_path / f"draws{suffix}")[0]
    assert draws.dtype == np.float64
    np.testing.assert_array_equal(draws, posterior.draws.numpy())


def test_a_folder_is_exported_without_reading_it_whole(tmp_path):
    posterior = run(store=tmp_path / "run")
    for suffix in (".npz", ".tiff", ".h5"):
        posterior.export(tmp_path / f"draws{suffix}")
    assert posterior._draws is None


def test_failed_draws_are_not_a_number_in_the_file(tmp_path):
    posterior = run()
    posterior.draws[1] = torch.nan
    posterior.export(tmp_path / "draws.npz")
    assert np.isnan(read(tmp_path / "draws.npz")[0][1]).all()


def test_a_file_is_replaced_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "draws.npz").write_text("precious")
    with pytest.raises(FileExistsError, match=r"draws\.npz is there already: choose another name, or give overwrite="):
        run().export(tmp_path / "draws.npz")
    assert (tmp_path / "draws.npz").read_text() == "precious"
    run().export(tmp_path / "draws.npz", overwrite=True)
    assert read(tmp_path / "draws.npz")[0].shape == (5, *SHAPE)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("draws.png", r"draws\.png ends in \.png: expected one of \.npz, \.tif, \.tiff, \.h5, \.hdf5\."),
        ("draws", "draws ends in nothing: expected one of"),
        ("draws.npy", r"draws\.npy ends in \.npy: expected one of"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        run().export(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*missing to write draws\.npz in: make it first"):
        run().export(tmp_path / "missing" / "draws.npz")


def test_what_is_no_image_has_no_pages(tmp_path):
    given = Likelihood(torch.zeros(4), Matrix(torch.eye(4)), GaussianNoise(0.1))
    posterior = sample(DDRM(steps=3), given, GaussianPrior(torch.zeros(4), torch.eye(4)), draws=3)
    with pytest.raises(
        ValueError, match=r"draws\.tiff is to hold images: these draws have the shape \(4,\); use npz or"
    ):
        posterior.export(tmp_path / "draws.tiff")
    posterior.export(tmp_path / "draws.npz")
    np.testing.assert_array_equal(read(tmp_path / "draws.npz")[0], posterior.draws.numpy())


@pytest.mark.parametrize("suffix", [".npz", ".tiff", ".h5"])
def test_a_damaged_folder_leaves_no_file(tmp_path, suffix):
    posterior = run(store=tmp_path / "run")
    file = tmp_path / "run" / "posterior" / "x" / "c" / "0" / "1" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OSError, match="is damaged"):
        posterior.export(tmp_path / f"draws{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_two_exports_to_one_file_do_not_meet(tmp_path, monkeypatch):
    import invdiff.export as module

    posterior, written, writing = run(), [], module._npz

    def watched(posterior, path):
        writing(posterior, path)
        written.append(path)
        if len(written) == 1:
            posterior.export(tmp_path / "draws.npz")

    monkeypatch.setattr(module, "_npz", watched)
    posterior.export(tmp_path / "draws.npz")
    assert len(set(written)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["draws.npz"]


def test_a_file_does_not_tell_where_the_draws_were_kept(tmp_path):
    posterior = run(store=tmp_path / "run")
    assert "store" in posterior.record
    for suffix in (".npz", ".tiff", ".h5"):
        posterior.export(tmp_path / f"draws{suffix}")
        assert "store" not in read(tmp_path / f"draws{suffix}")[1]
        assert str(tmp_path).encode() not in (tmp_path / f"draws{suffix}").read_bytes()
