"""Reading an ensemble that `invdiff.store` keeps in a folder: a part at a time, whatever its size."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import zarr

__all__ = [
    "FORMAT",
    "MARK",
    "STATS",
    "DamagedError",
    "Place",
    "Stored",
    "differences",
    "open_root",
    "read_attributes",
    "read_constants",
    "settings_hash",
]

MARK = "invdiff ensemble"
# Counts up whenever folders are laid out so that what read them before no longer can.
FORMAT = 1
STATS = {"done": "bool", "failed_step": "int32", "nfe": "int32", "nfe_backward": "int32"}
# Bytes at the end of a chunk.
_CHECKSUM = 4
Array = np.ndarray
Place = tuple[slice, slice]


class DamagedError(OSError):
    """A file of an ensemble that cannot be read, and which one."""

    def __init__(self, file: Path, sentence: str) -> None:
        super().__init__(sentence)
        self.file = file

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        # It may come from a worker.
        return DamagedError, (self.file, str(self))


def read_attributes(path: Path) -> dict[str, Any]:
    """What the root of a folder says of its ensemble.

    Raises:
        FileNotFoundError: nothing is there.
        FileExistsError: something else is there.
        OSError: it holds draws, but what says of which ensemble is damaged.
        ValueError: a newer invdiff wrote it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: expected the folder of an ensemble, sample(..., store={path}).")
    try:
        found = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (path / "posterior" / "x" / "zarr.json").is_file():
            raise _unsaid(path) from error
        found = {}
    if found.get("written_by") != MARK:
        raise FileExistsError(f"{path} is no ensemble of invdiff: choose another folder, or remove it.")
    if found.get("format", FORMAT) > FORMAT:
        raise ValueError(
            f"{path} has the format {found['format']} of a newer invdiff, and this one reads {FORMAT}: update it, or "
            "choose another folder."
        )
    if found.get("settings_sha256") != settings_hash(found.get("settings")):
        raise _unsaid(path)
    return found


def settings_hash(settings: Any) -> str:
    """The SHA-256 of what must be the same for draws to be of one ensemble."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(begun: Any, wanted: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """(where, what stands there, what is wanted) for everything that differs between two descriptions."""
    if isinstance(begun, dict) and isinstance(wanted, dict):
        for key in [*begun, *(key for key in wanted if key not in begun)]:
            yield from differences(begun.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif begun != wanted:
        yield name, _short(begun), _short(wanted)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:36] + " ..."


def _unsaid(path: Path) -> DamagedError:
    return DamagedError(
        path / "zarr.json",
        f"{path / 'zarr.json'} is damaged, which says what the draws beside it are of: restore it from a copy, or "
        "choose another folder.",
    )


def open_root(path: Path, mode: str) -> zarr.Group:
    """The root group, "r" or "r+"."""
    import zarr

    return zarr.open_group(str(path), mode=mode, use_consolidated=True)  # type: ignore[arg-type]


def read_constants(path: Path, group: str) -> dict[str, Tensor]:
    """The arrays of "observed_data", "constant_data" or "truth", by name; none where there is no such group.

    Raises:
        DamagedError: one of them cannot be read.
    """
    root, found = open_root(path, "r"), {}
    if group not in root:
        return {}
    for name, array in root[group].arrays():  # type: ignore[union-attr]
        try:
            found[name] = torch.from_numpy(np.asarray(array[...]))
        except Exception as error:
            raise DamagedError(
                path / group / name,
                f"{path / group / name} is damaged ({type(error).__name__}: {error}): restore it from a copy, or "
                f"remove {path.name} and run its sample(..., store={path.name!r}) again.",
            ) from error
    return found


class Stored:
    """The draws of a folder, of which some may not be there yet.

    Args:
        path: the folder.
        mode: "r+" to write to it too.
        draws: leave out those from here on, as if they were not there; nothing of them is read.

    Raises:
        FileNotFoundError, FileExistsError, OSError, ValueError: as `read_attributes`.
    """

    def __init__(self, path: str | os.PathLike[str], mode: str = "r", draws: int | None = None) -> None:
        self.path = Path(path)
        self.attributes = read_attributes(self.path)
        root: Any = open_root(self.path, mode)
        self._arrays: dict[str, Any] = {"x": root["posterior/x"]} | {k: root[f"sample_stats/{k}"] for k in STATS}
        self._x = self._arrays["x"]
        count, *rest = self._x.shape[1:]
        self.shape: tuple[int, ...] = (min(count, draws or count), *rest)
        self.batched: bool = self._x.metadata.dimension_names[2] == "measurement"
        self._sound: set[tuple[int, int]] = set()

    @cached_property
    def done(self) -> Array:
        """Whether each draw of each measurement is there, (draws, m); not where a mark is damaged."""
        return self._marks["done"]

    @cached_property
    def failed(self) -> Array:
        """The step at which each draw was no longer finite, 0 for those that are fine, (draws, m)."""
        return self._marks["failed_step"]

    @cached_property
    def _marks(self) -> dict[str, Array]:
        """All of STATS, with a warning for micro-batches of which a file is damaged: they are not there."""
        try:
            return {name: self.stat(name, self._whole) for name in STATS}
        except DamagedError:
            pass
        (rows, columns), parts = self._whole, []
        for first in range(rows.start, rows.stop, self._x.chunks[1]):
            place = slice(first, min(first + self._x.chunks[1], rows.stop)), columns
            try:
                parts.append({name: self.stat(name, place) for name in STATS})
            except DamagedError as error:
                warnings.warn(
                    f"{error.file} is damaged: the draws {first} to {place[0].stop - 1} count as not there; run the "
                    "same sample(...) again, which computes them anew.",
                    stacklevel=4,
                )
                size = place[0].stop - first, columns.stop
                parts.append({name: np.zeros(size, kind) for name, kind in STATS.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in STATS}

    @cached_property
    def finished(self) -> int:
        """The number of draws, from the first on, that are there for all measurements."""
        missing = np.flatnonzero(~self.done.all(1))
        return int(missing[0]) if missing.size else len(self.done)

    def record(self, draws: int | None = None) -> dict[str, Any]:
        """The record of the first draws, as `sample` gives it; of all that are finished if left out."""
        count = min(self.finished, draws or self.shape[0])
        failed = np.argwhere(self.failed[:count] > 0)
        auto = self.attributes.get("auto")
        return self.attributes["settings"] | {
            **({"auto": auto} if auto is not None and auto["draws"] == count else {}),
            "micro_batch_asked": self.attributes["micro_batch_asked"],
            "draws": count,
            "batched": self.batched,
            "failed": [
                {"draw": int(k), "measurement": int(j), "step": int(self.failed[k, j])} for k, j in failed.tolist()
            ],
            **{name: int(self._marks[name][:count].max(initial=0)) for name in ("nfe", "nfe_backward")},
            "interrupted": count < (draws or self.shape[0]),
            "environment": self.attributes["environment"],
            "store": str(self.path),
        }

    def stat(self, name: str, place: Place) -> Array:
        """One of STATS for some draws, (rows, measurements).

        Raises:
            DamagedError: a file of it cannot be read.
        """
        return self._get(name, place)

    def read(self, place: Place) -> Array:
        """Some draws, (rows, measurements, *in_shape); not a number where they failed or are not there yet.

        Raises:
            DamagedError: a chunk cannot be read, or lacks a draw that is said to be done.
        """
        found = self._get("x", place)
        gone = np.isnan(found.reshape(*found.shape[:2], -1)).any(2)
        if gone.any():
            gone &= self.stat("done", place) & (self.stat("failed_step", place) == 0)
            if gone.any():
                row, column = np.argwhere(gone)[0]
                raise self._hurt("x", place[0].start + row, place[1].start + column, "draws are missing")
        return found

    def put(self, name: str, place: Place, value: Array) -> None:
        """Write "x" or one of STATS for some draws, (rows, measurements, ...)."""
        if self.batched:
            self._arrays[name][0, place[0], place[1]] = value
        else:
            self._arrays[name][0, place[0]] = value[:, 0]

    def blocks(self, count: int, columns: slice | None = None, *, first: int = 0) -> Iterator[Tensor]:
        """The first `count` draws, a chunk's rows at a time, (k, [m,] *in_shape).

        Args:
            count: of draws.
            columns: measurements; all of them if left out.
            first: draws before this one are left out; a chunk begins with it.
        """
        step = self._x.chunks[1]
        for begin in range(first, count, step):
            place = slice(begin, min(begin + step, count)), columns or self._whole[1]
            part = torch.from_numpy(self.read(place))
            yield part if self.batched else part[:, 0]

    def columns(self) -> Iterator[slice]:
        """All measurements, a chunk's at a time."""
        for first in range(0, self._measurements, self._across):
            yield slice(first, min(first + self._across, self._measurements))

    def slab(self, count: int, columns: slice, values: slice) -> Array:
        """Some values of the flattened images of the first `count` draws of a chunk's measurements, (count, m, values).

        A chunk is read whole once, for its checksum; of the next slabs nothing else is.
        """
        inside = self.shape[2:] if self.batched else self.shape[1:]
        start, stop, _ = values.indices(math.prod(inside))
        out = np.full((count, columns.stop - columns.start, stop - start), np.nan, self._x.dtype)
        down = self._x.chunks[1]
        for first in range(0, count, down):
            rows = slice(first, min(first + down, count))
            if (first, columns.start) not in self._sound:
                self.read((rows, columns))
                self._sound.add((first, columns.start))
            file = self.file("x", first, columns.start)
            # A chunk of draws that all failed is not written.
            if file.exists():
                whole = np.memmap(file, self._x.dtype, "r", shape=(down, self._across, math.prod(inside)))
                out[rows] = whole[: rows.stop - rows.start, : out.shape[1], start:stop]
        return out

    def file(self, name: str, row: int, column: int) -> Path:
        """The file that holds "x", or one of STATS, of a draw of a measurement."""
        array = self._arrays[name]
        index = [0, row // array.chunks[1]]
        if self.batched:
            index.append(column // array.chunks[2])
        index += [0] * (array.ndim - len(index))
        return self.path.joinpath("posterior" if name == "x" else "sample_stats", name, "c", *map(str, index))

    def damaged(self, place: Place) -> Path | None:
        """A file of the draws of one micro-batch that cannot be read or is too short; None where all is well.

        Of the draws themselves it looks at the size alone: to read them all would take as long as the disk is slow.
        """
        try:
            failed = {name: self.stat(name, place) for name in STATS}["failed_step"] > 0
        except DamagedError as error:
            return error.file
        file = self.file("x", place[0].start, place[1].start)
        if not file.exists():
            # A chunk of draws that all failed is not written.
            return None if failed.all() else file
        whole = math.prod(self._x.chunks) * self._x.dtype.itemsize + _CHECKSUM
        return None if file.stat().st_size == whole else file

    @property
    def _measurements(self) -> int:
        return self.shape[1] if self.batched else 1

    @property
    def _across(self) -> int:
        """Measurements of a chunk."""
        return self._x.chunks[2] if self.batched else 1

    @property
    def _whole(self) -> Place:
        return slice(0, self.shape[0]), slice(0, self._measurements)

    def _get(self, name: str, place: Place) -> Array:
        rows, columns = place
        array = self._arrays[name]
        try:
            return array[0, rows, columns] if self.batched else array[0, rows][:, None]
        except Exception as error:
            raise self._culprit(name, place, error) from error

    def _culprit(self, name: str, place: Place, error: Exception) -> DamagedError:
        """The first chunk of some draws that cannot be read alone."""
        array, (rows, columns) = self._arrays[name], place
        for row in range(rows.start, rows.stop, array.chunks[1]):
            for column in range(columns.start, columns.stop, self._across):
                try:
                    _ = array[0, row, column] if self.batched else array[0, row]
                except Exception:
                    return self._hurt(name, row, column, f"{type(error).__name__}: {error}")
        return self._hurt(name, rows.start, columns.start, f"{type(error).__name__}: {error}")

    def _hurt(self, name: str, row: int, column: int, why: str) -> DamagedError:
        file = self.file(name, int(row), int(column))
        remove = "remove it and " if name == "x" and file.exists() else ""
        return DamagedError(
            file,
            f"{file} is damaged ({why}): {remove}run the same sample(..., store={self.path.name!r}) again, which "
            "computes its draws anew, or restore it from a copy.",
        )
