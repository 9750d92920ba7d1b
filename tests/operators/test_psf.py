"""Point spread functions: their shapes by formula, and files that are good and bad."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from invdiff.operators import Blur, disk_psf, gaussian_psf, load_psf, motion_psf, uniform_psf

MAKERS = {
    "gaussian": lambda: gaussian_psf(1.7),
    "wide gaussian": lambda: gaussian_psf(3.0, 6),
    "disk": lambda: disk_psf(3.3),
    "point": lambda: disk_psf(0.01),
    "motion": lambda: motion_psf(9.0, 30.0),
    "short motion": lambda: motion_psf(0.2),
    "uniform": lambda: uniform_psf((3, 4)),
}


def moments(psf: torch.Tensor) -> tuple[float, float, float, float]:
    """Means and variances along rows and columns, from the pixel size // 2."""
    rows = torch.arange(psf.shape[0], dtype=torch.float64) - psf.shape[0] // 2
    columns = torch.arange(psf.shape[1], dtype=torch.float64) - psf.shape[1] // 2
    mean_row, mean_column = float((psf.sum(1) * rows).sum()), float((psf.sum(0) * columns).sum())
    return (
        mean_row,
        mean_column,
        float((psf.sum(1) * rows**2).sum()) - mean_row**2,
        float((psf.sum(0) * columns**2).sum()) - mean_column**2,
    )


@pytest.mark.parametrize("name", MAKERS)
def test_sum_is_one_and_nothing_is_negative(name: str) -> None:
    psf = MAKERS[name]()
    assert psf.dtype == torch.float64
    assert float(psf.sum()) == pytest.approx(1.0, abs=1e-14)
    assert float(psf.min()) >= 0


def test_moments_are_those_of_the_shapes() -> None:
    assert moments(gaussian_psf(1.7)) == pytest.approx((0, 0, 1.7**2, 1.7**2), abs=0.01)
    assert moments(disk_psf(6.0)) == pytest.approx((0, 0, 9.0, 9.0), abs=0.15)
    length, angle = 20.0, 30.0
    # Sharing a point between two pixels adds up to 1/4 pixel^2 of variance, 1/6 on average.
    expected = [
        length**2 / 12 * part**2 + 1 / 6 for part in (math.sin(math.radians(angle)), math.cos(math.radians(angle)))
    ]
    assert moments(motion_psf(length, angle)) == pytest.approx((0, 0, *expected), abs=0.1)


def test_the_angle_counts_from_the_horizontal_counter_clockwise() -> None:
    psf = motion_psf(15, 45)
    assert float(psf[0, -1] + psf[1, -2]) > 0
    assert float(psf[:3, :3].sum()) == 0
    assert motion_psf(5, 180).shape == motion_psf(5, 0).shape


def test_disks_are_round_and_flat() -> None:
    psf = disk_psf(4.0)
    torch.testing.assert_close(psf, psf.T)
    torch.testing.assert_close(psf, psf.flip(0))
    assert float(psf[4, 4]) == pytest.approx(1 / (math.pi * 16), rel=0.01)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_sizes_that_are_not_positive_are_refused(value: float) -> None:
    for maker in (gaussian_psf, disk_psf, motion_psf):
        with pytest.raises(ValueError, match="expected a finite number above 0"):
            maker(value)
    with pytest.raises(ValueError, match="expected a positive integer"):
        gaussian_psf(1.0, 0)
    with pytest.raises(ValueError, match="expected a positive integer"):
        uniform_psf(0)
    with pytest.raises(ValueError, match="angle is nan"):
        motion_psf(3.0, float("nan"))


def test_files_of_every_kind_give_the_same_psf(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (5, 4)).astype(np.float64)
    np.save(tmp_path / "a.npy", values)
    scipy.io.savemat(tmp_path / "a.mat", {"k": values})
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(values.astype(np.uint16) * 256).save(tmp_path / "b.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tiff")
    Image.fromarray(np.repeat(values.astype(np.uint8)[..., None], 3, 2)).save(tmp_path / "c.png")
    with_alpha = np.concatenate([np.repeat(values[..., None], 3, 2), np.full((5, 4, 1), 9)], 2).astype(np.uint8)
    Image.fromarray(with_alpha).save(tmp_path / "d.png")
    expected = torch.from_numpy(values / values.sum())
    for name in ("a.npy", "a.mat", "a.png", "b.png", "a.tiff", "c.png", "d.png"):
        torch.testing.assert_close(load_psf(tmp_path / name), expected, msg=name)


def test_one_of_several_is_chosen(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).random((3, 4, 4))
    np.save(tmp_path / "stack.npy", stack)
    cells = np.empty((1, 2), dtype=object)
    cells[0, 0], cells[0, 1] = stack[0], stack[1][:3]
    scipy.io.savemat(tmp_path / "cells.mat", {"kernels": cells, "note": np.ones((2, 2))})
    torch.testing.assert_close(load_psf(tmp_path / "stack.npy", 2), torch.from_numpy(stack[2] / stack[2].sum()))
    assert load_psf(tmp_path / "cells.mat", 1, key="kernels").shape == (3, 4)
    with pytest.raises(ValueError, match="holds 3 PSFs: choose one with index=0 to 2"):
        load_psf(tmp_path / "stack.npy")
    with pytest.raises(ValueError, match="holds 3 PSFs, not number 3"):
        load_psf(tmp_path / "stack.npy", 3)
    with pytest.raises(ValueError, match="holds the variables kernels, note: choose one with key="):
        load_psf(tmp_path / "cells.mat")
    with pytest.raises(ValueError, match="has no variable 'psf': choose one of kernels, note"):
        load_psf(tmp_path / "cells.mat", key="psf")


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "broken.mat").write_bytes(b"MATLAB")
    np.save(tmp_path / "zero.npy", np.zeros((3, 3)))
    np.save(tmp_path / "nan.npy", np.full((3, 3), np.nan))
    np.save(tmp_path / "line.npy", np.ones(3))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name, sentence in {
        "missing.png": "does not exist",
        "text.png": "cannot be read",
        "broken.mat": "cannot be read",
        "pickle.npy": "cannot be read",
        "zero.npy": "sums to 0",
        "nan.npy": "not finite",
        "line.npy": r"has the shape \(3,\)",
    }.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            load_psf(tmp_path / name)
        assert name in str(caught.value)


def test_the_motion_kernels_of_levin_load() -> None:
    folder = os.environ.get("INVDIFF_DATA")
    if not folder or not (Path(folder) / "kernels/Levin09.mat").exists():
        pytest.skip("INVDIFF_DATA does not point to a folder with kernels/Levin09.mat")
    path = Path(folder) / "kernels/Levin09.mat"
    psfs = [load_psf(path, index) for index in range(8)]
    assert all(float(psf.sum()) == pytest.approx(1.0) and 13 <= psf.shape[0] <= 30 for psf in psfs)
    assert Blur(psfs[0], (3, 32, 32)).out_shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: uniform_psf(2.5), ValueError, "size=2.5"),  # type: ignore[arg-type]
        (lambda: uniform_psf(True), ValueError, "size=True"),
        (lambda: uniform_psf((1, 2, 3)), ValueError, r"size=\(1, 2, 3\)"),  # type: ignore[arg-type]
        (lambda: uniform_psf(None), ValueError, "size=None"),  # type: ignore[arg-type]
        (lambda: gaussian_psf("1"), TypeError, "sigma is '1'"),  # type: ignore[arg-type]
        (lambda: gaussian_psf(1.0, True), ValueError, "size=True"),
        (lambda: disk_psf(None), TypeError, "radius is None"),  # type: ignore[arg-type]
        (lambda: motion_psf(5.0, "30"), TypeError, "angle is '30'"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_number_is_refused(make, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_integers_of_numpy_are_integers(tmp_path: Path) -> None:
    assert uniform_psf(np.int64(3)).shape == (3, 3)
    assert uniform_psf((np.int64(1), np.int32(2))).shape == (1, 2)
    assert gaussian_psf(np.float32(1.0), np.int64(5)).shape == (5, 5)
    np.save(tmp_path / "stack.npy", np.stack([np.ones((3, 3)), np.eye(3)]))
    torch.testing.assert_close(
        load_psf(tmp_path / "stack.npy", index=np.int64(1)), torch.eye(3, dtype=torch.float64) / 3
    )
    with pytest.raises(ValueError, match="index is True"):
        load_psf(tmp_path / "stack.npy", index=True)
