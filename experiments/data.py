"""A folder of images for training: which are held out, random crops of the rest, fixed crops of the held-out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decode import Array, decode_all
from .settings import SettingsError

__all__ = ["Crops", "Photographs", "batches_of", "find", "fixed_crops", "hold_out", "read", "source_of", "split"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def source_of(name: str, group: str | None = None) -> str:
    """The photograph a file was cut from.

    Args:
        name: of the file. Tiles `SOURCE__photo__size_nn` share one photograph; other files stand alone.
        group: a regular expression instead of that rule; what its first group (or the whole of it) matches is the
            photograph's name, and files that it does not match stand alone.
    """
    if group is not None:
        found = re.search(group, name)
        return found[min(1, found.re.groups)] if found else name
    parts = name.rsplit(".", 1)[0].split("__")
    return "__".join(parts[:2]) if len(parts) == 3 else name


def hold_out(names: Sequence[str], count: int, group: str | None = None) -> list[str]:
    """At least `count` files, whole photographs at a time, in the order of the SHA-256 of the photograph's name."""
    sources: dict[str, list[str]] = {}
    for name in sorted(names):
        sources.setdefault(source_of(name, group), []).append(name)
    held: list[str] = []
    for source in sorted(sources, key=lambda s: hashlib.sha256(s.encode()).hexdigest()):
        if len(held) >= count:
            break
        held += sources[source]
    return sorted(held)


def find(folder: Path) -> list[str]:
    """The image files in a folder and its subfolders, as sorted paths within it.

    Raises:
        SettingsError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise SettingsError(f"data={folder} is no folder: give a folder of images.")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    names = [p.relative_to(folder).as_posix() for p in paths]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise SettingsError(f"No images in data={folder}: expected files ending in {', '.join(SUFFIXES)}.")
    return names


def split(names: Sequence[str], heldout: str | int | float, group: str | None = None) -> tuple[list[str], list[str]]:
    """The files to train on and those held out, which share no photograph.

    Args:
        names: of all files.
        heldout: a text file of names that are never trained on; or how many files to hold out, from 1; or which part of
            them, below 1. Numbers take whole photographs. 0 holds out nothing.
        group: see `source_of`.

    Raises:
        SettingsError: the text file is missing, none or all of its names are in the folder, it splits a photograph, or
            the number leaves nothing to train on.
    """
    if isinstance(heldout, str):
        if not Path(heldout).is_file():
            raise SettingsError(f"heldout={heldout} is no file: give a list of names, a number of files or a share.")
        listed = set(Path(heldout).read_text().split("\n"))
        held = [name for name in names if name in listed or Path(name).name in listed]
        if not held:
            raise SettingsError(f"None of the names in heldout={heldout} is in the folder: it lists other images.")
    else:
        count = heldout * len(names) if 0 < heldout < 1 else heldout
        held = hold_out(names, int(np.ceil(count)), group)
    train = sorted(set(names) - set(held))
    if not train:
        raise SettingsError(f"heldout={heldout} leaves none of the {len(names)} images to train on: hold out fewer.")
    both = {source_of(name, group) for name in train} & {source_of(name, group) for name in held}
    if both:
        raise SettingsError(
            f"heldout={heldout} splits the photograph {sorted(both)[0]!r}: some of its files are trained on, so that "
            "validation would see them; list all of them or none."
        )
    return train, held


@dataclass(frozen=True)
class Photographs:
    """Decoded images.

    Args:
        names: paths within the folder.
        arrays: H x W x C, uint8 or uint16, one for each name.
        notes: sentences about what was left out.
    """

    names: list[str]
    arrays: list[Array]
    notes: list[str]

    @property
    def sources(self) -> list[str]:
        """What stands before `__` in the names."""
        return sorted({Path(name).name.split("__")[0] for name in self.names if "__" in name})


def read(folder: Path, names: Sequence[str], *, channels: int, least: int, limit: float, cache: Path) -> Photographs:
    """Decode images, and say how many cannot be used.

    Args:
        folder: where they are.
        names: paths within it.
        channels: 1 or 3.
        least: smallest side that can be used, pixels.
        limit, cache: see `decode_all`.

    Raises:
        SettingsError: no image can be used.
    """
    kept, arrays, refused = decode_all(folder, names, channels, limit, cache)
    notes = []
    if refused:
        notes.append(f"{len(refused)} of {len(names)} images cannot be used and are left out; the first: {refused[0]}")
    sides = [min(array.shape[:2]) for array in arrays]
    small = sum(side < least for side in sides)
    if not arrays or small == len(sides):
        short = f"the shorter side of the largest is {max(sides, default=0)} pixels; give a crop of at most that."
        why = short if arrays else refused[0]
        raise SettingsError(f"None of the {len(names)} images in {folder} can be used: {why}")
    if small:
        notes.append(
            f"{small} of {len(sides)} images are left out, as their shorter side is below the crop of {least} pixels "
            f"(the smallest has {min(sides)})."
        )
    large = [n for n, side in enumerate(sides) if side >= least]
    return Photographs([kept[n] for n in large], [arrays[n] for n in large], notes)


class Crops:
    """Random flipped and rotated square crops; an image is drawn with the probability of its share of the pixels.

    Args:
        images: H x W x C, uint8 or uint16, no side below `crop`.
        crop: side in pixels.
        flip: mirror half of the crops.
        rotate: turn them by 0, 90, 180 or 270 degrees.
    """

    def __init__(self, images: Sequence[Array], crop: int, *, flip: bool = True, rotate: bool = True) -> None:
        self.images = images
        area = np.array([i.shape[0] * i.shape[1] for i in self.images], dtype=float)
        self.weights = area / area.sum()
        self.crop, self.flip, self.rotate = crop, flip, rotate

    def batch(self, size: int, random: np.random.Generator) -> Tensor:
        """(size, C, crop, crop) in [0, 1]."""
        tiles = []
        for index in random.choice(len(self.images), size, p=self.weights):
            image = self.images[index]
            top = random.integers(image.shape[0] - self.crop + 1)
            left = random.integers(image.shape[1] - self.crop + 1)
            tile = image[top : top + self.crop, left : left + self.crop]
            # Drawn whether they are used or not, so that a setting changes nothing else.
            turns, mirror = int(random.integers(4)), bool(random.integers(2))
            if self.rotate:
                tile = np.rot90(tile, turns)
            tiles.append(tile[:, ::-1] if mirror and self.flip else tile)
        return batches_of(tiles)


def batches_of(tiles: Sequence[Array]) -> Tensor:
    """(n, C, H, W) in [0, 1] of n arrays H x W x C, uint8 or uint16."""
    scaled = [torch.from_numpy(tile.astype(np.float32)) / float(np.iinfo(tile.dtype).max) for tile in tiles]
    return torch.stack(scaled).permute(0, 3, 1, 2)


def fixed_crops(images: Sequence[Array], count: int, size: int, stride: int) -> Tensor:
    """The same `count` crops at every call, from images spread over all that are given: (count, C, size, size).

    The size is reduced to what the smallest of the images used allows, in multiples of the stride.
    """
    used = [images[n * len(images) // count] for n in range(count)] if len(images) > count else list(images)
    size = min(size, *(min(image.shape[:2]) for image in used)) // stride * stride
    random = np.random.default_rng(0)
    tiles = []
    for n in range(count):
        image = used[n % len(used)]
        top = int(random.integers(image.shape[0] - size + 1))
        left = int(random.integers(image.shape[1] - size + 1))
        tiles.append(image[top : top + size, left : left + size])
    return batches_of(tiles)


def without_twins(folder: Path, train: Sequence[str], held: Collection[str]) -> tuple[list[str], int]:
    """The files to train on without those that are byte for byte a held-out file, and how many those are."""
    digest: Callable[[str], bytes] = lambda name: hashlib.sha256((folder / name).read_bytes()).digest()  # noqa: E731
    sizes = {(folder / name).stat().st_size for name in held}
    known = {digest(name) for name in held}
    kept = [name for name in train if (folder / name).stat().st_size not in sizes or digest(name) not in known]
    return kept, len(train) - len(kept)
