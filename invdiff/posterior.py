"""What `sample` returns: draws from the posterior, their statistics, and the record of what ran."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Posterior"]

POINT = "point estimate"
DEPENDENT = "of dependent draws"


class Posterior:
    """Draws from p(x | y), or one point estimate.

    Args:
        draws: (draws, [m,] *in_shape).
        record: what ran; kept beside the draws when saved.
        label: what the spread of the draws is: "uncalibrated spread" until somebody has checked it, "heuristic spread"
            where the prior does not reach the noise levels that the sampler needs, "point estimate" for none. It ends
            in "of dependent draws" where the draws are particles of the same clouds.

    >>> posterior = Posterior(torch.arange(19.0)[:, None], {})
    >>> posterior.mean().item(), [bound.item() for bound in posterior.interval(0.9)]
    (9.0, [0.0, 18.0])
    """

    def __init__(self, draws: Tensor, record: dict[str, Any], label: str = "uncalibrated spread") -> None:
        self._draws: Tensor | None = draws
        self._path: Path | None = None
        self.record = record
        self.label = label

    @property
    def draws(self) -> Tensor:
        """(draws, [m,] *in_shape); read from the file at first use where the posterior was loaded."""
        if self._draws is None:
            from safetensors import safe_open

            assert self._path is not None
            with safe_open(str(self._path), framework="pt") as handle:
                self._draws = handle.get_tensor("draws")
        return self._draws

    @property
    def point(self) -> bool:
        """Whether this is a point estimate, which has no spread."""
        return self.label == POINT

    @property
    def dependent(self) -> bool:
        """Whether draws share clouds, `record["cloud"]` in a row each: they say less than as many independent ones."""
        return self.label.endswith(DEPENDENT)

    def __len__(self) -> int:
        return int(self.draws.shape[0])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.draws.detach().cpu().numpy(), dtype=dtype)

    def __repr__(self) -> str:
        solver = self.record.get("solver", {}).get("name", "?")
        return f"Posterior({tuple(self.draws.shape)}, {solver}, {self.label})"

    def mean(self) -> Tensor:
        """The mean of the draws, ([m,] *in_shape)."""
        return self.draws.mean(0)

    def std(self) -> Tensor:
        """The standard deviation of the draws (ddof = 1), ([m,] *in_shape).

        Raises:
            ValueError: for a point estimate, or fewer than 2 draws.
        """
        self._refuse_point("std")
        if len(self) < 2:
            raise ValueError(f"std needs at least 2 draws: this posterior has {len(self)}; ask sample for more.")
        return self.draws.std(0)

    def quantile(self, q: float) -> Tensor:
        """The value at position (K + 1) q of the K sorted draws, linear in between, ([m,] *in_shape).

        With exchangeable draws and truth, the truth lies below it with probability q exactly at whole positions
        (Weibull 1939), which the default of numpy, (K - 1) q + 1, misses for small K.

        Raises:
            ValueError: for a point estimate, q outside (0, 1), or too few draws for the position to exist.
        """
        self._refuse_point("quantile")
        if not 0 < q < 1:
            raise ValueError(f"q is {q}: expected a probability between 0 and 1.")
        count = len(self)
        position = (count + 1) * q
        # (K + 1) q of exactly 1 or K may come out a rounding error outside.
        if position < 1 - 1e-9 or position > count + 1e-9:
            needed = math.ceil(round(1 / min(q, 1 - q) - 1, 9))
            raise ValueError(f"The {q:g} quantile needs at least {needed} draws: this posterior has {count}.")
        below = min(max(math.floor(position + 1e-9), 1), count)
        above = min(below + 1, count)
        ordered = self.draws.sort(0).values
        return ordered[below - 1].lerp(ordered[above - 1], max(position - below, 0.0))

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The central interval of probability `level`: the (1 - level) / 2 quantile and the (1 + level) / 2 one.

        Raises:
            ValueError: as `quantile`; K draws reach a level of 1 - 2 / (K + 1) at most, so 90 % needs 19.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}: expected a probability between 0 and 1.")
        self._refuse_point("interval")
        needed = math.ceil(round(2 / (1 - level) - 1, 9))
        if len(self) < needed:
            raise ValueError(f"A {level:.0%} interval needs at least {needed} draws: this posterior has {len(self)}.")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write draws and record to one safetensors file, whole or not at all.

        Raises:
            FileNotFoundError: if the folder of the file does not exist.
        """
        from .priors.weights import write_safetensors

        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {target.parent} to save {target.name} in: make it first.")
        temporary = target.with_name(target.name + ".part")
        metadata = {"record": json.dumps(self.record), "label": self.label}
        try:
            write_safetensors(temporary, {"draws": self.draws.detach().cpu().contiguous()}, metadata)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Posterior:
        """Read what `save` wrote; the draws are read when they are first used.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a saved posterior.
        """
        from safetensors import SafetensorError, safe_open

        target = Path(path)
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

    def _refuse_point(self, what: str) -> None:
        if self.point:
            solver = self.record.get("solver", {}).get("name", "this solver")
            raise ValueError(
                f"{what} needs draws, and {solver} gives one point estimate, which has no spread: "
                "use a sampling solver (DDRM, DPS)."
            )
