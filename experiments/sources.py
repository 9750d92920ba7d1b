"""The images of an experiment: scikit-image's own photographs, any folder, or the usual test sets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invdiff.arrays import from_array
from invdiff.images import read_array

__all__ = ["PHOTOGRAPHS", "Folder", "Named", "Picture", "Skimage", "load_matrix"]

# The photographs that come with every scikit-image since 0.22, those in colour first.
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
    "ihc": "ihc.png",
    "hubble": "hubble_deep_field.jpg",
    "retina": "retina.jpg",
    "camera": "camera.png",
    "coins": "coins.png",
    "brick": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "page": "page.png",
    "text": "text.png",
    "cell": "cell.png",
}
SETS = {"cbsd68": "CBSD68", "kodak24": "Kodak24", "set5": "Set5"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")


@dataclass(frozen=True)
class Picture:
    """One image of an experiment.

    Args:
        name: of its file, without the suffix.
        pixels: (C, H, W) in [0, 1], float32.
        sha256: of the bytes of these pixels, as 8-bit values in rows of (H, W, C) where they are 8-bit, else as floats.
    """

    name: str
    pixels: Tensor
    sha256: str


@dataclass(frozen=True)
class Skimage:
    """Photographs that come with scikit-image, read from its own folder: nothing is downloaded.

    Args:
        images: names of `PHOTOGRAPHS`.
        crop: side of the square in the middle that is taken, pixels; None for the whole image.
        reduce: whole factor by which the crop is first reduced, by averages; a photograph is sharper then.

    Raises:
        ValueError: an unknown name, a crop that does not fit, or a copy of scikit-image without the file.
    """

    images: Sequence[str] = ("astronaut", "chelsea", "coffee", "rocket")
    crop: int | None = 128
    reduce: int = 1

    def load(self) -> list[Picture]:
        from importlib.util import find_spec

        spec = find_spec("skimage.data")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        found = []
        for name in self.images:
            if name not in PHOTOGRAPHS:
                raise ValueError(f"data.images names {name!r}: expected some of {', '.join(PHOTOGRAPHS)}.")
            path = folder / PHOTOGRAPHS[name]
            if not path.is_file():
                raise ValueError(f"This scikit-image has no {path.name}: leave {name} out of data.images.")
            found.append(_picture(path, name, self.crop, self.reduce))
        return _some(found, "data.images")


@dataclass(frozen=True)
class Folder:
    """The images of a folder, in the order of their names; not those of its subfolders.

    Args:
        path: the folder.
        images: file names to take, with or without suffix; None for all.
        crop: side of the square in the middle that is taken, pixels; None for whole images.
        reduce: whole factor by which an image is first reduced, by averages.
        limit: take the first so many; None for all.

    Raises:
        ValueError: a name that is not there, no image at all, or a crop that does not fit.
        NotADirectoryError: there is no such folder.
    """

    path: str
    images: Sequence[str] | None = None
    crop: int | None = None
    reduce: int = 1
    limit: int | None = None

    def load(self) -> list[Picture]:
        folder = Path(self.path)
        if not folder.is_dir():
            raise NotADirectoryError(f"data.path is {folder}: expected a folder of images.")
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if self.images is not None:
            files = [_named(name, files, folder) for name in self.images]
        files = files[: self.limit]
        return _some([_picture(file, file.stem, self.crop, self.reduce) for file in files], str(folder))


@dataclass(frozen=True)
class Named:
    """A test set in the folder that the environment variable INVDIFF_DATA names, below `test/`.

    Args:
        name: "cbsd68", "kodak24" or "set5".
        images, crop, reduce, limit: as of `Folder`.

    Raises:
        ValueError: an unknown set, or INVDIFF_DATA is not set.
        NotADirectoryError: the folder does not hold the set.
    """

    name: str
    images: Sequence[str] | None = None
    crop: int | None = None
    reduce: int = 1
    limit: int | None = None

    def load(self) -> list[Picture]:
        if self.name not in SETS:
            raise ValueError(f"data.name is {self.name!r}: expected one of {', '.join(SETS)}.")
        root = os.environ.get("INVDIFF_DATA")
        if not root:
            raise ValueError(
                f"data={self.name} needs the environment variable INVDIFF_DATA: set it to a folder that holds "
                f"test/{SETS[self.name]}, or use data=folder data.path=DIR."
            )
        folder = Path(root) / "test" / SETS[self.name]
        if not folder.is_dir():
            raise NotADirectoryError(
                f"INVDIFF_DATA is {root}, which has no folder test/{SETS[self.name]}: put it there."
            )
        return Folder(str(folder), self.images, self.crop, self.reduce, self.limit).load()


def load_matrix(path: str) -> Tensor:
    """The matrix of a `.npy` file, (n_out, n_in), float64.

    Raises:
        OSError: the file is missing or is no plain array.
        ValueError: it is no matrix.
    """
    array = read_array(path)
    if array.ndim != 2:
        raise ValueError(f"{path} holds an array of shape {array.shape}: expected a matrix, (n_out, n_in).")
    return torch.from_numpy(array.astype(np.float64))


def _picture(path: Path, name: str, crop: int | None, reduce: int) -> Picture:
    array = read_array(path)
    pixels = from_array(array, alpha="white", name=str(path))[0][0]
    for key, value in (("crop", crop), ("reduce", reduce)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"data.{key} is {value!r}: expected a whole number from 1 on.")
    exact = array.dtype == np.uint8
    if reduce > 1:
        height, width = (side // reduce * reduce for side in pixels.shape[1:])
        pixels = torch.nn.functional.avg_pool2d(pixels[:, :height, :width], reduce)
        # Rounded as the file was, so that the hash does not depend on a machine's last digit.
        pixels = (pixels * 255).round() / 255 if exact else pixels
    if crop is not None:
        if crop > min(pixels.shape[1:]):
            raise ValueError(
                f"data.crop is {crop}: {name} has {pixels.shape[1]} x {pixels.shape[2]} pixels; crop less."
            )
        top, left = ((side - crop) // 2 for side in pixels.shape[1:])
        pixels = pixels[:, top : top + crop, left : left + crop]
    rows = pixels.movedim(0, 2).contiguous()
    values = (rows * 255).round().to(torch.uint8) if exact else rows
    return Picture(name, pixels.contiguous(), hashlib.sha256(values.numpy().tobytes()).hexdigest())


def _named(name: str, files: Sequence[Path], folder: Path) -> Path:
    for file in files:
        if name in (file.name, file.stem):
            return file
    raise ValueError(f"data.images names {name!r}, which {folder} does not hold: give names of image files there.")


def _some(found: list[Picture], where: str) -> list[Picture]:
    if not found:
        raise ValueError(f"{where} has no image: expected PNG, JPEG, TIFF, BMP or .npy files.")
    doubled = {picture.name for picture in found if [p.name for p in found].count(picture.name) > 1}
    if doubled:
        raise ValueError(f"{where} has two images named {min(doubled)}: give each a name of its own.")
    return found
