"""What `sample` returns: draws from the posterior, their statistics, and the record of what ran."""

from __future__ import annotations

import json
import math
import numbers
import os
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import statistics

if TYPE_CHECKING:
    from .stored import Stored

__all__ = ["Posterior"]

POINT = "point estimate"
DEPENDENT = "of dependent draws"


class Posterior:
    """Draws from p(x | y), or one point estimate.

    Statistics go through the draws a part at a time, so that those of an ensemble in a folder are never all in memory.
    Draws that failed (`record["failed"]`) are not a number throughout, and count in no statistic; of a measurement that
    has too few others, a statistic is not a number either.

    Args:
        draws: (draws, [m,] *in_shape), or the folder that holds them.
        record: what ran; kept beside the draws when saved.
        label: what the spread of the draws is: "uncalibrated spread" until somebody has checked it, "heuristic spread"
            where the prior does not reach the noise levels that the sampler needs, "point estimate" for none. It ends
            in "of dependent draws" where the draws are particles of the same clouds.

    >>> posterior = Posterior(torch.arange(19.0)[:, None], {})
    >>> posterior.mean().item(), [bound.item() for bound in posterior.interval(0.9)]
    (9.0, [0.0, 18.0])
    """

    def __init__(self, draws: Tensor | Stored, record: dict[str, Any], label: str = "uncalibrated spread") -> None:
        self._draws: Tensor | None = draws if isinstance(draws, Tensor) else None
        self._stored: Stored | None = None if isinstance(draws, Tensor) else draws
        self._path: Path | None = None
        self._kept_moments: tuple[Tensor, Tensor] | None = None
        self.record = record
        self.label = label

    @property
    def draws(self) -> Tensor:
        """(draws, [m,] *in_shape); read at first use, and then kept, where the posterior was loaded."""
        if self._draws is None:
            if self._stored is not None:
                self._draws = torch.cat(list(self._stored.blocks(len(self))))
            else:
                from safetensors import safe_open

                assert self._path is not None
                with safe_open(str(self._path), framework="pt") as handle:
                    self._draws = handle.get_tensor("draws")
        return self._draws

    @property
    def shape(self) -> tuple[int, ...]:
        """(draws, [m,] *in_shape), known without reading the draws of a folder or file."""
        if self._draws is None and self._stored is not None:
            return (int(self.record["draws"]), *self._stored.shape[1:])
        if self._draws is None:
            return self._file_shape
        return tuple(self.draws.shape)

    @cached_property
    def _file_shape(self) -> tuple[int, ...]:
        from safetensors import safe_open

        with safe_open(str(self._path), framework="pt") as handle:
            return tuple(handle.get_slice("draws").get_shape())

    @property
    def portable_record(self) -> dict[str, Any]:
        """The record without the path of the folder that holds the draws, for files that leave this machine."""
        return {key: value for key, value in self.record.items() if key != "store"}

    @property
    def point(self) -> bool:
        """Whether this is a point estimate, which has no spread."""
        return self.label == POINT

    @property
    def dependent(self) -> bool:
        """Whether draws share clouds, `record["cloud"]` in a row each: they say less than as many independent ones."""
        return self.label.endswith(DEPENDENT)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        held = self.draws.device.type == "cpu"
        array = self.draws.detach().cpu().numpy()
        if copy is False and not (held and (dtype is None or np.dtype(dtype) == array.dtype)):
            raise ValueError(
                f"The draws are {array.dtype} on {self.draws.device}: an array of {np.dtype(dtype or array.dtype)} "
                "without a copy cannot be made; leave out copy=False."
            )
        return np.array(array, dtype=dtype) if copy else np.asarray(array, dtype=dtype)

    def __repr__(self) -> str:
        solver = self.record.get("solver", {}).get("name", "?")
        return f"Posterior({self.shape}, {solver}, {self.label})"

    def blocks(self) -> Iterator[Tensor]:
        """All draws in order, a part of them at a time, (k, [m,] *in_shape)."""
        if self._draws is None and self._stored is not None:
            yield from self._stored.blocks(len(self))
        else:
            yield from self.draws.split(16)

    def each(self) -> Iterator[tuple[int, Tensor]]:
        """The number and the values ([m,] *in_shape) of every draw that did not fail, one after another.

        Those of a folder are not kept in memory. With several measurements a draw that failed for some of them is
        given, not a number there.
        """
        failed, number = self._failed, 0
        for block in self.blocks():
            for draw in block:
                if failed is None or not bool(failed[number].all()):
                    yield number, draw
                number += 1

    @property
    def usable(self) -> int:
        """The number of draws that did not fail, of the measurement that has most."""
        return len(self) if self._failed is None else len(self) - int(self._failed.sum(0).min())

    def mean(self) -> Tensor:
        """The mean of the draws, ([m,] *in_shape)."""
        return self._moments()[0].clone()

    def std(self) -> Tensor:
        """The standard deviation of the draws (ddof = 1), ([m,] *in_shape).

        Raises:
            ValueError: for a point estimate, or fewer than 2 draws.
        """
        self._refuse_point("std")
        if self.usable < 2:
            raise ValueError(f"std needs at least 2 draws: this posterior has {self._has()}; ask sample for more.")
        return self._moments()[1].clone()

    def quantile(self, q: float) -> Tensor:
        """The value at position (K + 1) q of the K sorted draws, linear in between, ([m,] *in_shape).

        With exchangeable draws and truth, the truth lies below it with probability q exactly at whole positions
        (Weibull 1939), which the default of numpy, (K - 1) q + 1, misses for small K.

        Raises:
            ValueError: for a point estimate, q outside (0, 1), or too few draws for the position to exist.
        """
        return self._quantiles([q])[0]

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The central interval of probability `level`: the (1 - level) / 2 quantile and the (1 + level) / 2 one.

        Raises:
            ValueError: as `quantile`; K draws reach a level of 1 - 2 / (K + 1) at most, so 90 % needs 19.
        """
        self._refuse_interval(level)
        low, high = self._quantiles([(1 - level) / 2, (1 + level) / 2])
        return low, high

    def _refuse_interval(self, level: float) -> None:
        """Raise what `interval` does, without reading a draw."""
        if not 0 < level < 1:
            raise ValueError(f"level is {level}: expected a probability between 0 and 1.")
        self._refuse_point("interval")
        needed = math.ceil(round(2 / (1 - level) - 1, 9))
        if self.usable < needed:
            raise ValueError(
                f"A {100 * level:g}% interval needs at least {needed} draws: this posterior has {self._has()}; ask for "
                "more, or a lower level."
            )

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; those of a folder or file, whose draws do not change, are computed once."""
        if self._kept_moments is not None:
            return self._kept_moments
        if self._draws is None and self._stored is not None:
            self._kept_moments = statistics.stored_moments(self._stored, len(self))
            return self._kept_moments
        return statistics.moments(self.blocks(), self._failed)

    def _quantiles(self, probabilities: list[float]) -> list[Tensor]:
        self._refuse_point("quantile")
        for q in probabilities:
            if isinstance(q, bool) or not isinstance(q, numbers.Real):
                raise TypeError(f"q is {q!r}: expected one probability; call quantile once for each.")
            if not 0 < q < 1:
                raise ValueError(f"q is {q}: expected a probability between 0 and 1.")
            # (K + 1) q of exactly 1 or K may come out a rounding error outside.
            needed = math.ceil(round(1 / min(q, 1 - q) - 1, 9))
            if self.usable < needed:
                raise ValueError(f"The {q:g} quantile needs at least {needed} draws: this posterior has {self._has()}.")
        if self._draws is None and self._stored is not None:
            found = statistics.stored_quantiles(self._stored, len(self), probabilities)
        else:
            found = statistics.quantiles(self.draws, self._failed, probabilities)
        return found

    @cached_property
    def _failed(self) -> Tensor | None:
        """Which draws failed, (draws, [m]); None where none did."""
        if not self.record.get("failed"):
            return None
        if self._stored is not None:
            mask = torch.from_numpy(self._stored.failed[: len(self)] > 0)
        else:
            mask = torch.zeros(self.shape[0], self.record["measurements"], dtype=torch.bool)
            rows, columns = ([entry[key] for entry in self.record["failed"]] for key in ("draw", "measurement"))
            mask[rows, columns] = True
        return mask if self.record.get("batched", False) else mask[:, 0]

    def _has(self) -> str:
        return f"{self.usable}" + ("" if self._failed is None else " that did not fail")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write draws and record to one safetensors file, a part at a time, whole or not at all.

        The record leaves out the path of the folder that the draws were kept in.

        Raises:
            FileNotFoundError: if the folder of the file does not exist.
        """
        from .export import safetensors

        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {target.parent} to save {target.name} in: make it first.")
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            safetensors(self, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Posterior:
        """Read what `save` wrote, or the folder of `sample(..., store=path)`, finished or not.

        The draws are read when they are first used. Of a folder there are those that are finished, from the first on;
        where its last run had draws="auto" and came to an end, as many as that run took, whatever else is there.

        Raises:
            FileNotFoundError: if there is no such file or folder.
            ValueError: if the file is not a saved posterior, or the folder has no draw yet.
            FileExistsError: if the folder is no ensemble.
            OSError: if it is damaged.
        """
        from safetensors import SafetensorError, safe_open

        target = Path(path)
        if target.is_dir():
            from .stored import Stored

            stored = Stored(target)
            if stored.finished == 0:
                raise ValueError(f"{target} holds no draws yet: run its sample(..., store=...) again to go on.")
            auto = stored.attributes.get("auto")
            return cls(stored, stored.record(None if auto is None else auto["draws"]), stored.attributes["label"])
        if not target.is_file():
            raise FileNotFoundError(f"{target} is not there: expected a file written by Posterior.save.")
        try:
            with safe_open(str(target), framework="pt") as handle:
                metadata, names = handle.metadata() or {}, set(handle.keys())
        except SafetensorError as error:
            raise ValueError(
                f"{target} is not a saved posterior: expected a file written by Posterior.save."
            ) from error
        if "draws" not in names or "record" not in metadata:
            raise ValueError(f"{target} is not a saved posterior: it holds no draws with a record.")
        posterior = cls(torch.empty(0), json.loads(metadata["record"]), metadata["label"])
        posterior._draws, posterior._path = None, target
        return posterior

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write draws and record to .npz, .tiff (a stack of images) or .h5, a part at a time; see `invdiff.export`."""
        from .export import export

        export(self, path, overwrite=overwrite)

    def _refuse_point(self, what: str) -> None:
        if self.point:
            solver = self.record.get("solver", {}).get("name", "this solver")
            raise ValueError(
                f"{what} needs draws, and {solver} gives one point estimate, which has no spread: "
                "use a sampling solver (KPS, DDRM)."
            )
