"""Decode a folder of images once: into memory, or into one memory-mapped file where they are larger than a limit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invdiff.images import read_array

__all__ = ["Decoded", "decode", "decode_all"]

Array = NDArray[Any]
Decoded = tuple[list[str], list[Array], list[str]]

# ITU-R BT.601, as Pillow turns colour into gray.
_LUMA = np.array([0.299, 0.587, 0.114])


def decode(path: Path, channels: int) -> Array:
    """An image as H x W x channels of uint8 or uint16, upright.

    Gray becomes colour by repetition and colour becomes gray by its luma. Floating point images are kept in 16 bits.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has transparent pixels, another number of channels, or float values outside [0, 1].
    """
    array = read_array(path)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"{path.name} has the shape {array.shape}: expected gray or RGB.")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"{path.name} has float values from {array.min():g} to {array.max():g}: expected 0 to 1.")
        array = np.rint(array * 65535).astype(np.uint16)
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path.name} has values of type {array.dtype}: expected 8 or 16 bits.")
    if array.shape[2] in (2, 4):
        if (array[..., -1] != np.iinfo(array.dtype).max).any():
            raise ValueError(f"{path.name} has transparent pixels, whose colours mean nothing.")
        array = array[..., :-1]
    if channels == 3 and array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    elif channels == 1 and array.shape[2] == 3:
        array = np.rint(array @ _LUMA).astype(array.dtype)[..., None]
    return np.ascontiguousarray(array)


def _readable(folder: Path, names: Sequence[str], channels: int, refused: list[str]) -> Iterator[tuple[str, Array]]:
    for name in names:
        try:
            yield name, decode(folder / name, channels)
        except (OSError, ValueError) as error:
            refused.append(str(error))


def decode_all(folder: Path, names: Sequence[str], channels: int, limit: float, cache: Path) -> Decoded:
    """Decode the named files of a folder, in memory up to `limit` bytes and else as views of a file in `cache`.

    Args:
        folder: where the files are.
        names: their paths within it.
        channels: 1 or 3.
        limit: bytes that may be held in memory.
        cache: folder of the memory-mapped file, which the next run finds again unless a file has changed.

    Returns:
        The names that could be read, their arrays, and one sentence for each file that could not.
    """
    stats = [(name, (folder / name).stat()) for name in names]
    told = [str(folder.resolve()), channels, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    pixels, index = cache / f"{key}.pixels", cache / f"{key}.json"
    if pixels.exists() and index.exists():
        return _mapped(pixels, json.loads(index.read_text()))
    kept: list[str] = []
    arrays: list[Array] = []
    entries: list[tuple[str, str, tuple[int, ...], int]] = []
    refused: list[str] = []
    size, file, partial = 0, None, pixels.with_suffix(f".{os.getpid()}.part")
    try:
        for name, array in _readable(folder, names, channels, refused):
            kept.append(name)
            # Every image begins at an even byte, as 16-bit values must.
            entries.append((name, array.dtype.name, array.shape, size))
            size += array.nbytes + array.nbytes % 2
            arrays.append(array)
            if file is None and size > limit:
                cache.mkdir(parents=True, exist_ok=True)
                file = partial.open("wb")
            if file is not None:
                for held in arrays:
                    file.write(held.tobytes() + b"\0" * (held.nbytes % 2))
                arrays.clear()
        if file is None:
            return kept, arrays, refused
        file.close()
        os.replace(partial, pixels)
    finally:
        if file is not None:
            file.close()
            partial.unlink(missing_ok=True)
    # The index is written last: without it the pixels are not taken for complete.
    found = {"entries": entries, "refused": refused}
    partial.write_text(json.dumps(found))
    os.replace(partial, index)
    return _mapped(pixels, found)


def _mapped(pixels: Path, index: dict[str, Any]) -> Decoded:
    whole = np.memmap(pixels, dtype=np.uint8, mode="r")
    arrays: list[Array] = []
    for _, dtype, shape, offset in index["entries"]:
        flat = whole[offset : offset + int(np.prod(shape)) * np.dtype(dtype).itemsize]
        arrays.append(flat.view(dtype).reshape(shape))
    return [entry[0] for entry in index["entries"]], arrays, list(index["refused"])
