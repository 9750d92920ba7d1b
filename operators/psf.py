"""Point spread functions for `Blur` and `Downsample`: made from a formula or read from a file, with sum 1."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import as_constant

__all__ = ["disk_psf", "gaussian_psf", "load_psf", "motion_psf", "uniform_psf"]

# Grid points per pixel and axis, over which shapes with a sharp edge are averaged.
OVERSAMPLING = 16


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _positive(value: float, name: str) -> float:
    if not _is_number(value):
        raise TypeError(f"{name} is {value!r}, expected a number above 0: pass a size in pixels.")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}, expected a finite number above 0: pass a size in pixels.")
    return float(value)


def _odd(size: int | None, default: int, name: str) -> int:
    return default if size is None else _side(size, name)


def _side(size: int, name: str) -> int:
    if not _is_whole(size) or size < 1:
        raise ValueError(f"{name} got size={size!r}, expected a positive integer: pass the side of the PSF in pixels.")
    return int(size)


def _offsets(size: int) -> Tensor:
    """Distances of the pixels to the centre size // 2, which is where `Blur` has it."""
    return torch.arange(size, dtype=torch.float64) - size // 2


def gaussian_psf(sigma: float, size: int | None = None) -> Tensor:
    """A Gaussian, exp(-r^2 / (2 sigma^2)) at the pixel centres, with sum 1: (size, size), float64.

    Args:
        sigma: standard deviation in pixels.
        size: side in pixels; 2 ceil(4 sigma) + 1 when absent.

    Raises:
        TypeError: sigma is not a number.
        ValueError: sigma is not above 0 or size not a positive integer.

    >>> gaussian_psf(0.5).shape
    torch.Size([5, 5])
    """
    sigma = _positive(sigma, "gaussian_psf's sigma")
    offsets = _offsets(_odd(size, 2 * math.ceil(4 * sigma) + 1, "gaussian_psf"))
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    psf = line[:, None] * line
    return psf / psf.sum()


def disk_psf(radius: float) -> Tensor:
    """A disk, the blur of a lens out of focus, each pixel weighted by the area that the disk covers; sum 1, float64.

    Args:
        radius: in pixels.

    Raises:
        TypeError: radius is not a number.
        ValueError: radius is not above 0, or not finite.

    >>> disk_psf(1.5).shape
    torch.Size([3, 3])
    """
    radius = _positive(radius, "disk_psf's radius")
    half = max(math.ceil(radius - 0.5), 0)
    size = 2 * half + 1
    fine = (torch.arange(size * OVERSAMPLING, dtype=torch.float64) + 0.5) / OVERSAMPLING - size / 2
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2).to(torch.float64)
    psf = inside.reshape(size, OVERSAMPLING, size, OVERSAMPLING).sum((1, 3))
    # A disk so small that it lies between the grid points is a point.
    return psf / psf.sum() if bool(psf.any()) else torch.ones(1, 1, dtype=torch.float64)


def motion_psf(length: float, angle: float = 0.0) -> Tensor:
    """A straight line, the blur of a motion at constant speed, its points shared between the nearest pixels; sum 1.

    Args:
        length: of the motion, in pixels.
        angle: of the motion in degrees, counter-clockwise from the horizontal.

    Raises:
        TypeError: length or angle is not a number.
        ValueError: length is not above 0 or angle not finite.

    >>> motion_psf(5).shape, motion_psf(5, 90).shape
    (torch.Size([1, 7]), torch.Size([7, 1]))
    """
    length = _positive(length, "motion_psf's length")
    if not _is_number(angle):
        raise TypeError(f"motion_psf's angle is {angle!r}, expected a number: pass degrees.")
    if not math.isfinite(angle):
        raise ValueError(f"motion_psf's angle is {angle}, expected a finite number: pass degrees.")
    count = max(math.ceil(length * OVERSAMPLING), 2)
    along = ((torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5) * length
    rows = -along * math.sin(math.radians(angle))
    columns = along * math.cos(math.radians(angle))
    # Rounded, so that a horizontal motion has one row although sin(180 degrees) is not quite zero in floating point.
    reach = [math.ceil(round(float(points.abs().max()), 9)) for points in (rows, columns)]
    psf = torch.zeros(2 * reach[0] + 1, 2 * reach[1] + 1, dtype=torch.float64)
    psf_rows = (1 - (rows[:, None] - _offsets(psf.shape[0])).abs()).clamp_min(0)
    psf_columns = (1 - (columns[:, None] - _offsets(psf.shape[1])).abs()).clamp_min(0)
    psf = psf_rows.mT @ psf_columns
    return psf / psf.sum()


def uniform_psf(size: int | tuple[int, int]) -> Tensor:
    """A rectangle of equal values with sum 1, float64.

    Args:
        size: side, or (height, width), in pixels.

    Raises:
        ValueError: a size that is not a positive integer.

    >>> uniform_psf((1, 2))
    tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    pair = size if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"uniform_psf got size={size!r}, expected one side or (height, width): pass sizes in pixels.")
    height, width = pair
    height, width = _side(height, "uniform_psf"), _side(width, "uniform_psf")
    return torch.full((height, width), 1 / (height * width), dtype=torch.float64)


def load_psf(path: str | Path, index: int | None = None, key: str | None = None) -> Tensor:
    """Read a PSF from a .npy, .mat or image file and divide it by its sum: (kh, kw), float64.

    Args:
        path: the file. Channels of a colour image are averaged; pixel values are taken as intensities.
        index: which PSF (from 0) of a file that holds several, as a stack (n, kh, kw) or a MATLAB cell array.
        key: which variable of a .mat file that holds several.

    Raises:
        ValueError: no such file or not a readable one, several PSFs and no choice among them, or a PSF that is not
            finite or has no positive sum.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"The PSF file {file} does not exist: check its path.")
    suffix = file.suffix.lower()
    try:
        arrays = (
            _read_npy(file) if suffix == ".npy" else _read_mat(file, key) if suffix == ".mat" else _read_image(file)
        )
    except _ChoiceError as problem:
        raise ValueError(str(problem)) from None
    except Exception as problem:
        raise ValueError(
            f"The PSF file {file} cannot be read ({type(problem).__name__}: {problem}): expected a .npy file of "
            "numbers, a .mat file, or an image."
        ) from problem
    if index is not None and not _is_whole(index):
        raise ValueError(f"index is {index!r}, expected the number of a PSF in {file}: pass 0 to {len(arrays) - 1}.")
    if index is None and len(arrays) > 1:
        raise ValueError(f"The PSF file {file} holds {len(arrays)} PSFs: choose one with index=0 to {len(arrays) - 1}.")
    chosen = index or 0
    if not 0 <= chosen < len(arrays):
        raise ValueError(
            f"The PSF file {file} holds {len(arrays)} PSFs, not number {index}: pass 0 to {len(arrays) - 1}."
        )
    psf = as_constant(arrays[chosen], f"The PSF in {file}")
    if psf.ndim != 2 or psf.numel() == 0:
        raise ValueError(f"The PSF in {file} has the shape {tuple(psf.shape)}, expected (height, width): reshape it.")
    total = float(psf.sum())
    if total <= 0:
        raise ValueError(f"The PSF in {file} sums to {total:g}, expected a positive sum: pass a file of intensities.")
    return psf / total


class _ChoiceError(Exception):
    """The file is readable, but it does not say which of its arrays is meant."""


def _layers(array: Any) -> list[Any]:
    return list(array) if array.ndim == 3 else [array]


def _read_npy(file: Path) -> list[Any]:
    import numpy as np

    return _layers(np.load(file, allow_pickle=False))


def _read_mat(file: Path, key: str | None) -> list[Any]:
    from scipy.io import loadmat

    try:
        content = {name: value for name, value in loadmat(file).items() if not name.startswith("__")}
    except NotImplementedError:
        content = _read_mat_hdf5(file)
    if key is None and len(content) != 1:
        raise _ChoiceError(f"The PSF file {file} holds the variables {', '.join(content)}: choose one with key=.")
    if key is not None and key not in content:
        raise _ChoiceError(f"The PSF file {file} has no variable {key!r}: choose one of {', '.join(content)}.")
    array = content[key] if key is not None else next(iter(content.values()))
    return list(array.flat) if array.dtype == object else _layers(array)


def _read_mat_hdf5(file: Path) -> dict[str, Any]:
    """Numeric arrays and cell arrays of a MATLAB 7.3 file, which is HDF5 with every array transposed."""
    import h5py
    import numpy as np

    content: dict[str, Any] = {}
    with h5py.File(file) as store:
        for name, item in store.items():
            if not isinstance(item, h5py.Dataset):
                continue
            if h5py.check_ref_dtype(item.dtype) is h5py.Reference:
                cells = np.empty(item.size, dtype=object)
                for number, reference in enumerate(item[()].flat):
                    cells[number] = store[reference][()].T
                content[name] = cells
            else:
                content[name] = item[()].T
    return content


def _read_image(file: Path) -> list[Any]:
    import numpy as np
    from PIL import Image

    with Image.open(file) as image:
        palette = image.convert("RGB") if image.mode in ("P", "1", "CMYK", "YCbCr") else image
        values = np.asarray(palette, dtype=np.float64)
    if values.ndim == 3:
        # An alpha channel says nothing about intensity.
        colours: Sequence[int] = range(values.shape[2] - (values.shape[2] in (2, 4)))
        values = values[:, :, list(colours)].mean(2)
    return [values]
