"""Reading an ensemble that `invdiff.store` keeps in a folder: a part at a time, whatever its size."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import zarr

__all__ = ["MARK", "STATS", "Stored", "open_root", "read_attributes"]

MARK = "invdiff ensemble"
STATS = {"done": "bool", "failed_step": "int32", "nfe": "int32", "nfe_backward": "int32"}
Array = np.ndarray


def read_attributes(path: Path) -> dict[str, Any]:
    """What the root of a folder says of its ensemble.

    Raises:
        FileNotFoundError: nothing is there.
        FileExistsError: something else is there.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: expected the folder of an ensemble, sample(..., store={path}).")
    try:
        found = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        found = {}
    if found.get("written_by") != MARK:
        raise FileExistsError(f"{path} is no ensemble of invdiff: choose another folder, or remove it.")
    return found


def open_root(path: Path, mode: str) -> zarr.Group:
    """The root group, "r" or "r+"."""
    import zarr

    return zarr.open_group(str(path), mode=mode, use_consolidated=True)  # type: ignore[arg-type]


class Stored:
    """The draws of a folder, of which some may not be there yet.

    Args:
        path: the folder.

    Raises:
        FileNotFoundError, FileExistsError: as `read_attributes`.
        OSError: a file of it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.attributes = read_attributes(self.path)
        root: Any = open_root(self.path, "r")
        self._x: Any = root["posterior/x"]
        self.shape: tuple[int, ...] = tuple(self._x.shape[1:])
        self.batched: bool = self._x.metadata.dimension_names[2] == "measurement"
        self.stats = {name: self._stat(root, name) for name in STATS}

    @property
    def done(self) -> Array:
        """Whether each draw of each measurement is there, (draws, m)."""
        return self.stats["done"]

    @property
    def failed(self) -> Array:
        """The step at which each draw was no longer finite, 0 for those that are fine, (draws, m)."""
        return self.stats["failed_step"]

    @cached_property
    def finished(self) -> int:
        """The number of draws, from the first on, that are there for all measurements."""
        missing = np.flatnonzero(~self.done.all(1))
        return int(missing[0]) if missing.size else len(self.done)

    def record(self, draws: int | None = None) -> dict[str, Any]:
        """The record of the first draws, as `sample` gives it; of all that are finished if left out."""
        count = min(self.finished, draws or self.shape[0])
        failed = np.argwhere(self.failed[:count] > 0)
        return self.attributes["settings"] | {
            "draws": count,
            "batched": self.batched,
            "failed": [
                {"draw": int(k), "measurement": int(j), "step": int(self.failed[k, j])} for k, j in failed.tolist()
            ],
            "nfe": int(self.stats["nfe"][:count].max(initial=0)),
            "nfe_backward": int(self.stats["nfe_backward"][:count].max(initial=0)),
            "interrupted": count < (draws or self.shape[0]),
            "environment": self.attributes["environment"],
            "store": str(self.path),
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of the draws."""
        return torch.from_numpy(np.empty(0, self._x.dtype)).dtype

    def read(self, place: tuple[slice, slice]) -> Array:
        """The draws of some rows and measurements, (rows, measurements, *in_shape).

        Raises:
            OSError: a chunk is damaged.
        """
        rows, columns = place
        try:
            if self.batched:
                return self._x[0, rows, columns]
            return self._x[0, rows][:, None]
        except Exception as error:
            raise self._hurt(self.chunk(rows.start or 0, columns.start or 0), error) from error

    def blocks(self, count: int) -> Iterator[Tensor]:
        """The first `count` draws, a chunk's rows at a time, (k, [m,] *in_shape)."""
        step = self._x.chunks[1]
        for first in range(0, count, step):
            part = torch.from_numpy(self.read((slice(first, min(first + step, count)), slice(0, self.done.shape[1]))))
            yield part if self.batched else part[:, 0]

    def slab(self, count: int, values: slice) -> Array:
        """Some values of the flattened images of the first `count` draws, (count, m, values); the rest is not read."""
        inside = self.shape[2:] if self.batched else self.shape[1:]
        start, stop, _ = values.indices(math.prod(inside))
        out = np.full((count, self.done.shape[1], stop - start), np.nan, self._x.dtype)
        down, across = self._x.chunks[1], self._x.chunks[2] if self.batched else 1
        for first in range(0, count, down):
            for j in range(0, out.shape[1], across):
                file = self.chunk(first, j)
                if not file.exists():
                    continue
                rows, columns = min(down, count - first), min(across, out.shape[1] - j)
                try:
                    whole = np.memmap(file, self._x.dtype, "r", shape=(down, across, math.prod(inside)))
                except ValueError as error:
                    raise self._hurt(file, error) from error
                out[first : first + rows, j : j + columns] = whole[:rows, :columns, start:stop]
        return out

    def chunk(self, row: int, column: int) -> Path:
        """The file that holds a draw of a measurement."""
        index = [0, row // self._x.chunks[1]]
        if self.batched:
            index.append(column // self._x.chunks[2])
        index += [0] * (len(self.shape) + 1 - len(index))
        return self.path.joinpath("posterior", "x", "c", *map(str, index))

    def damaged(self, place: tuple[slice, slice]) -> Path | None:
        """The chunk of some draws that are said to be done, where it cannot be read or lacks one of them."""
        try:
            found = self.read(place)
        except OSError:
            return self.chunk(place[0].start, place[1].start)
        gone = np.isnan(found.reshape(*found.shape[:2], -1)).any(2) & (self.failed[place] == 0) & self.done[place]
        return self.chunk(place[0].start, place[1].start) if gone.any() else None

    def _stat(self, root: zarr.Group, name: str) -> Array:
        array: Any = root[f"sample_stats/{name}"]
        try:
            found = array[0]
        except Exception as error:
            raise self._hurt(self.path / "sample_stats" / name, error) from error
        return found if self.batched else found[:, None]

    def _hurt(self, file: Path, error: Exception) -> OSError:
        return OSError(
            f"{file} is damaged ({type(error).__name__}: {error}): run the same sample(..., store={self.path.name!r}) "
            "again, which computes its draws anew, or restore it from a copy."
        )
