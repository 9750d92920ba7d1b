"""An ensemble in a folder: written a micro-batch at a time, readable at any moment, and gone on with after any stop.

The folder is a Zarr v3 hierarchy with ArviZ's names, which `xarray.open_datatree(path)` reads:

    posterior/x              (chain, draw, [measurement,] *in_shape), one chunk for each micro-batch, not compressed
    sample_stats/done        whether a draw is there, written after its micro-batch
    sample_stats/failed_step the step at which a draw was no longer finite, 0 for those that are fine
    sample_stats/nfe, nfe_backward
    observed_data/y          the measurement
    constant_data/...        what the operator is made of (mask, kernel, ...)
    truth/x                  the image itself, where it is known
    .lock                    empty, and held by the process that asked for the draws
    .run                     the run whose workers may write, a random name; empty while there is none

All arrays are there from the beginning, chunks are written beside their place and moved into it, and nothing in the
folder depends on when or how often it was interrupted: the same settings give the same bytes. Attributes of the root
hold the settings and their SHA-256, versions, the commit, and the SHA-256 of the weights.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import folders, layout
from .ensemble import Block, Ensemble, Outcome
from .kept_truth import same_truth, write_truth
from .record import environment, weight_hash
from .stored import (
    FORMAT,
    MARK,
    STATS,
    Place,
    Stored,
    differences,
    open_root,
    read_attributes,
    settings_hash,
)

if TYPE_CHECKING:
    import zarr

__all__ = ["Store"]

_ARRAYS = ("posterior/x", *(f"sample_stats/{name}" for name in STATS))


class Store:
    """The folder of an ensemble, for writing; `Posterior.load` reads it.

    Args:
        path: where it is or will be; links are followed, and ~ is the user's home.
        run: the one to write for, on a worker; `locked` begins one.
        truth: kept beside the draws, which it does not change, ([m,] *in_shape).
    """

    def __init__(self, path: str | os.PathLike[str], run: str | None = None, truth: Tensor | None = None) -> None:
        self.path = Path(path).expanduser().resolve()
        self.run = run
        self.truth = truth
        self._stored: Stored | None = None
        self._added = False

    @property
    def exists(self) -> bool:
        """Whether something is at this path."""
        return self.path.exists()

    def attributes(self) -> dict[str, Any]:
        """What the root says of the ensemble; raises what `stored.read_attributes` does."""
        return read_attributes(self.path)

    def create(self, ensemble: Ensemble, draws: int, asked: int) -> None:
        """Lay the folder out for so many draws of every measurement, whole or not at all.

        Args:
            ensemble: as it is computed.
            draws: per measurement.
            asked: members of a micro-batch before there was too little memory for them.

        Raises:
            FileNotFoundError: there is no folder to put it in.
            FileExistsError: something came to be at the path meanwhile.
            OSError: the disk is too small, or the system has no locks.
            ValueError: the draws are of a dtype that it cannot hold.
        """
        if ensemble.dtype == torch.bfloat16:
            raise ValueError("y is bfloat16, which a store cannot hold: use y.float(), or leave out store.")
        folders.require_locks()
        parent = self.path.parent
        if not parent.is_dir():
            raise FileNotFoundError(f"There is no folder {parent} to keep {self.path.name} in: make it first.")
        self._require_room(ensemble, draws * ensemble.measurements, draws, parent)
        folders.sweep(self.path)
        part, handle = folders.beside(self.path)
        try:
            self._lay_out(part, ensemble, draws, asked)
            os.rename(part, self.path)
        except OSError as error:
            if self.path.exists():
                raise FileExistsError(
                    f"{self.path} came to be while it was being laid out: another process writes there; wait for it, "
                    "or choose another folder."
                ) from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            folders.release(handle)

    def forget_auto(self, draws: int) -> None:
        """Take out the number at which a run stopped by itself, where one is about more draws than that."""
        auto = self.attributes().get("auto")
        if auto is not None and draws > auto["draws"]:
            self.note("auto", None)

    def remove(self) -> None:
        """Take the folder away, at once, where it is to be laid out anew."""
        folders.remove(self.path)

    def require_same(self, ensemble: Ensemble) -> None:
        """Refuse to go on with other settings than those the ensemble was begun with, or another truth.

        Raises:
            ValueError: naming what differs.
        """
        begun, wanted = self.attributes()["settings"], json.loads(json.dumps(ensemble.settings()))
        differing = list(differences(begun, wanted))
        if differing:
            named = "; ".join(f"{key} {a} there and {b} here" for key, a, b in differing[:4])
            more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise ValueError(
                f"{self.path} was begun with other settings ({named}{more}): its draws would not be of one ensemble; "
                "use the same settings, or another folder."
            )
        if self.truth is not None and same_truth(self.path, self.truth) is False:
            raise ValueError(
                f"{self.path} holds another truth than the one given: leave the truth out, or use another folder."
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one run; the lock goes with the process, however that ends.

        Afterwards nothing more is written: workers that are still at it are waited for, and others are refused.

        Raises:
            BlockingIOError: another process writes to it.
            FileNotFoundError: it was removed.
            OSError: it cannot be locked or written to.
        """
        try:
            handle = folders.locked(self.path)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{self.path} is being written to by another process: wait for it, or choose another folder."
            ) from error
        try:
            self.run, self._added = uuid.uuid4().hex, False
            with self._sentence():
                folders.give_to(self.path, self.run)
            self._clean()
            yield
        finally:
            self._stored = None
            with contextlib.suppress(OSError):
                if folders.whose(self.path) == self.run:
                    folders.give_to(self.path, "")
                    self._clean()
            folders.release(handle)

    def _clean(self) -> None:
        """Remove what processes had begun to write when they were killed."""
        for left in self.path.rglob("*.partial"):
            left.unlink(missing_ok=True)

    def prepare(self, ensemble: Ensemble, draws: int, first: int = 0) -> list[Block]:
        """Make room for `draws` where there is less, and name the micro-batches from `first` on that are not there yet.

        A micro-batch of which a file was damaged since is computed again, with a warning.

        Raises:
            OSError: the disk is too small for what is missing.
        """
        stored = Stored(self.path)
        more = draws > stored.shape[0]
        rows = max(draws, stored.shape[0])
        blocks = [block for block in ensemble.blocks(draws) if block.first_cloud * ensemble.kept >= first]
        todo = [block for block in blocks if self._missing(stored, ensemble.place(block, rows))]
        members = sum(math.prod(part.stop - part.start for part in ensemble.place(block, rows)) for block in todo)
        self._require_room(ensemble, members, draws, self.path)
        if more or not self._whole_metadata():
            with self._sentence():
                self._extend(rows)
        self._stored = Stored(self.path, "r+")
        standing = [] if self._added else self._standing(ensemble, draws, todo)
        self._added = self._added or bool(todo)
        return standing + todo

    @staticmethod
    def _standing(ensemble: Ensemble, draws: int, todo: list[Block]) -> list[Block]:
        """A micro-batch to compute again, and compare, before others are added to it: where settings do not tell all.

        None where nothing is to be added.
        """
        there = [block for block in ensemble.blocks(draws) if block not in todo]
        return there[:1] if todo and there and ensemble.opaque is not None else []

    @staticmethod
    def _missing(stored: Stored, place: Place) -> bool:
        """Whether a micro-batch is not there, whole or in part; of one that is not, nothing is left to stumble on."""
        rows, columns = place
        files = {name: stored.file(name, rows.start, columns.start) for name in ("done", "x", *STATS)}
        there = slice(rows.start, min(rows.stop, stored.shape[0])), columns
        if there[0].start < there[0].stop and files["done"].exists():
            file = stored.damaged(there)
            if file is None:
                return there != place or not stored.stat("done", place).all()
            warnings.warn(
                f"{file} is damaged: the draws {rows.start} to {there[0].stop - 1} are computed again.", stacklevel=5
            )
        for file in files.values():
            file.unlink(missing_ok=True)
        return True

    def note(self, name: str, value: Any) -> None:
        """Write a word of the run into the attributes of the root, replaced in one piece; None takes it out."""
        with self._sentence():
            root, part = self.path / "zarr.json", self.path / "zarr.json.partial"
            content = json.loads(root.read_text())
            content["attributes"] = {k: v for k, v in content["attributes"].items() if k != name}
            content["attributes"] |= {} if value is None else {name: value}
            part.write_text(json.dumps(content, indent=2))
            os.replace(part, root)

    def write(self, ensemble: Ensemble, block: Block, outcome: Outcome) -> None:
        """Keep what a micro-batch gave, and then mark it done.

        Raises:
            FileNotFoundError: the folder was removed, or is another run's.
            OSError: it cannot be written to (no space left, say); what is done stays done.
            ValueError: draws that are there already came out differently.
        """
        self.require_there()
        with folders.turn(self.path):
            self.require_there()
            self._write(ensemble, block, outcome)

    def _write(self, ensemble: Ensemble, block: Block, outcome: Outcome) -> None:
        if self._stored is None:
            self._stored = Stored(self.path, "r+")
        stored = self._stored
        place = ensemble.place(block, stored.shape[0])
        rows, columns = (where.stop - where.start for where in place)
        draws = outcome.draws[:rows, :columns].cpu().numpy()
        standing = stored.stat("done", place)
        if standing.any() and not np.array_equal(stored.read(place)[standing], draws[standing], equal_nan=True):
            hidden = ensemble.opaque
            why = "" if hidden is None else f"{hidden}, which the settings cannot tell, is another one, or "
            raise ValueError(
                f"Draws {place[0].start} to {place[0].stop - 1} came out otherwise than those that {self.path} "
                f"holds: {why}this machine does not compute the same bits; use another folder for its draws."
            )
        failed = outcome.failed[:rows, :columns].cpu().numpy()
        values = {
            "x": draws,
            "failed_step": failed,
            "nfe": np.full(failed.shape, outcome.nfe, np.int32),
            "nfe_backward": np.full(failed.shape, outcome.nfe_backward, np.int32),
            "done": np.ones(failed.shape, bool),
        }
        with self._sentence():
            for name, value in values.items():
                stored.put(name, place, value)

    @contextlib.contextmanager
    def _sentence(self) -> Iterator[None]:
        """Say what is kept where something cannot be written."""
        try:
            yield
        except OSError as error:
            if not self.path.exists():
                self.require_there()
            stored = Stored(self.path)
            free = shutil.disk_usage(self.path).free
            raise OSError(
                error.errno,
                f"{self.path} could not be written to ({error.strerror or error}; {free / 1e6:.0f} MB are free): "
                f"{stored.finished} of {stored.shape[0]} draws are kept; make room and run it again to go on",
            ) from error

    def _lay_out(self, folder: Path, ensemble: Ensemble, draws: int, asked: int) -> None:
        import zarr

        settings = ensemble.settings()
        likelihood = ensemble.likelihood
        attributes = {
            "written_by": MARK,
            "format": FORMAT,
            "label": ensemble.label,
            "settings": settings,
            "settings_sha256": settings_hash(settings),
            "micro_batch_asked": asked,
            "seed": ensemble.seed,
            "scheme": settings["scheme"],
            "weights_sha256": weight_hash(ensemble.prior),
            "environment": environment(ensemble.device) | {"threads": settings["machine"]["threads"]},
            "creation_library": "invdiff",
        }
        root = zarr.create_group(folder, zarr_format=3, attributes=attributes)
        head, grid = ["chain", "draw"], list(ensemble.grid)
        grid[0] *= ensemble.kept
        sizes = [draws]
        if ensemble.batched:
            head.append("measurement")
            sizes.append(ensemble.measurements)
        else:
            grid = grid[:1]
        whole = {"shape": (1, *sizes, *ensemble.shape), "chunks": (1, *grid, *ensemble.shape)}
        dtype = str(ensemble.dtype).removeprefix("torch.")
        layout.array(root, "posterior/x", dtype, [*head, *layout.axes(ensemble.shape)], np.nan, **whole)
        for name, kind in STATS.items():
            layout.array(root, f"sample_stats/{name}", kind, head, 0, shape=(1, *sizes), chunks=(1, *grid))
        if likelihood is not None:
            names = [*head[2:], *layout.axes(likelihood.operator.out_shape, "measured_")]
            layout.constant(root, "observed_data/y", likelihood.y, names)
            for name, value in layout.constants(likelihood.operator):
                layout.constant(root, f"constant_data/{name}", value)
        if self.truth is not None:
            self._keep_truth(root, ensemble)
        layout.consolidate(folder)

    def keep_truth(self, ensemble: Ensemble) -> None:
        """Put the truth into a folder that was begun without it, or whose own is damaged."""
        if self.truth is not None and not same_truth(self.path, self.truth):
            with self._sentence():
                self._keep_truth(open_root(self.path, "r+"), ensemble)
                layout.consolidate(self.path)

    def _keep_truth(self, root: zarr.Group, ensemble: Ensemble) -> None:
        assert self.truth is not None
        head = ["measurement"] if ensemble.batched else []
        write_truth(root, self.truth, [*head, *layout.axes(ensemble.shape)])

    def _extend(self, draws: int) -> None:
        root: Any = open_root(self.path, "r+")
        for name in _ARRAYS:
            array = root[name]
            array.resize((1, draws, *array.shape[2:]))
        layout.consolidate(self.path)

    def _whole_metadata(self) -> bool:
        """Whether all arrays say of themselves what the root says of them, also after an end in between."""
        try:
            said = json.loads((self.path / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
            return all(json.loads((self.path / name / "zarr.json").read_text()) == said[name] for name in _ARRAYS)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def require_there(self) -> None:
        """Make sure that the folder is still the one that was locked, by this run.

        Raises:
            FileNotFoundError: it was removed, or is another run's.
        """
        run = folders.whose(self.path)
        if run is None:
            raise FileNotFoundError(
                f"{self.path} was removed while it was being written to: nothing is left to go on with; run it again "
                "from the start."
            )
        if run != self.run:
            raise FileNotFoundError(
                f"{self.path} is no longer written to by this run, which has ended or whose folder was replaced: "
                "nothing more is written; run it again to go on with what is there."
            )

    @staticmethod
    def _require_room(ensemble: Ensemble, members: int, draws: int, folder: Path) -> None:
        needed = members * math.prod(ensemble.shape) * ensemble.dtype.itemsize
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(
                f"{draws} draws take {needed / 1e6:.0f} MB more, and {folder} has {free / 1e6:.0f} MB left: make room, "
                "choose another folder, or ask for fewer draws."
            )
