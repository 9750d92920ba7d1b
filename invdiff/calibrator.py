"""A scale for the spread of posteriors that was found on images whose truth is known, and what it promises there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .posterior import DEPENDENT, Posterior
from .provenance import write_whole
from .risk import check_terms
from .stored import differences

__all__ = ["Calibrator", "Recalibrated", "named", "percent", "refuse", "restricted", "settings_of"]

FORMAT = 1
MARK = "invdiff calibrator"


@dataclass(frozen=True)
class Calibrator:
    """A scale for the spread of posteriors, and what it promises; `calibrate` makes it.

    Args:
        method: "crc" or "rcps".
        level: of the interval that the promise is about.
        delta: chance that the promise of "rcps" does not hold; None for "crc".
        scale: by which draws are moved away from their mean.
        images: the number of images it was found on.
        risk: mean share of an image's values outside the scaled intervals, on those images.
        risk_before: the same before scaling.
        settings: of solver, prior, operator, noise and draws, as far as they were the same for all images.
        sha256: of every truth, by which an image can be told.

    >>> Calibrator("crc", 0.9, None, 1.25, 168, 0.094, 0.16).label
    'calibrated spread (crc, 90 %, 168 images)'
    """

    method: str
    level: float
    delta: float | None
    scale: float
    images: int
    risk: float
    risk_before: float
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    sha256: tuple[str, ...] = field(default=(), repr=False)

    @property
    def label(self) -> str:
        """What the spread of a posterior is called that this was applied to."""
        return f"calibrated spread ({self._terms})"

    @property
    def guarantee(self) -> str:
        """What is promised, in a sentence."""
        wrong = f"on average at most {percent(1 - self.level)} of its values lie outside their interval"
        promise = f"On a new image of the same kind, {wrong} of level {percent(self.level)}"
        if self.delta is None:
            return f"{promise}; the average is also over the {self.images} images of the calibration (crc)."
        chance = percent(1 - self.delta)
        return f"{promise}; with probability {chance} over the {self.images} images of the calibration (rcps)."

    def __call__(self, posterior: Posterior, *, anyway: bool = False) -> Recalibrated:
        """The posterior with its spread scaled about its mean, draw -> mean + scale (draw - mean).

        `interval(level)` of the result is what the promise is about; `std()` and other intervals are scaled with it.
        Draws are scaled as they are read: those of a folder are never all in memory.

        Args:
            posterior: draws of the solver, prior, operator, noise and number of draws that this was found with.
            anyway: take one that was made otherwise too; label and record then say so, and nothing is promised.

        Raises:
            TypeError: if it is no Posterior.
            ValueError: for a point estimate, draws that were scaled before, or other settings.
        """
        refuse(posterior)
        now = settings_of(posterior.record)
        found = list(differences(self.settings, restricted(now, self.settings)))
        if found and not anyway:
            raise ValueError(
                f"The calibration is of other settings ({named(found)}): it promises nothing for this posterior; "
                "calibrate with these settings, or give anyway=True (--anyway), which the label then says."
            )
        label = self.label
        if found:
            other = ", ".join(where for where, _, _ in found[:3]) + (", ..." if len(found) > 3 else "")
            label = f"spread calibrated for other settings ({self._terms}; other {other})"
        note = {key: value for key, value in asdict(self).items() if key not in ("settings", "sha256")}
        note |= {
            "guarantee": None if found else self.guarantee,
            "differences": [{"setting": where, "calibrated": there, "here": here} for where, there, here in found],
            "before": posterior.label,
        }
        if posterior.dependent:
            label = f"{label} {DEPENDENT}"
        return Recalibrated(posterior, self.scale, {**posterior.portable_record, "calibration": note}, label)

    @property
    def _terms(self) -> str:
        chance = "" if self.delta is None else f"delta {self.delta:g}, "
        return f"{self.method}, {percent(self.level)}, {chance}{self.images} images"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, whole or not at all.

        Raises:
            FileNotFoundError: if the folder of the file does not exist.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {target.parent} to save {target.name} in: make it first.")
        content = {"written_by": MARK, "format": FORMAT, **asdict(self), "guarantee": self.guarantee}
        write_whole(target, f"{json.dumps(content, indent=2, allow_nan=False)}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibrator:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no calibrator, a newer invdiff wrote it, or a value in it cannot be.
        """
        target = Path(path)
        if not target.is_file():
            raise FileNotFoundError(f"{target} is not there: expected a file of invdiff calibrate (Calibrator.save).")
        try:
            content = json.loads(target.read_text(encoding="utf-8"))
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get("written_by") != MARK:
            raise ValueError(f"{target} is no calibrator: expected a file of invdiff calibrate (Calibrator.save).")
        if content.get("format") != FORMAT:
            raise ValueError(f"{target} has the format {content.get('format')}, and this invdiff reads {FORMAT}.")
        fields = {key: content[key] for key in cls.__dataclass_fields__ if key in content}
        try:
            calibrator = cls(**(fields | {"sha256": tuple(fields.get("sha256", ()))}))
            check_terms(calibrator.method, calibrator.level, calibrator.delta)
            if not (0 < calibrator.scale < math.inf and calibrator.images > 0):
                raise ValueError(f"the scale is {calibrator.scale}, of {calibrator.images} images")
            if not isinstance(calibrator.settings, dict):
                raise TypeError(f"the settings are {calibrator.settings!r}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{target} is damaged ({error}): calibrate again, or take a copy.") from error
        return replace(calibrator, settings=_comparable(calibrator.settings))


class Recalibrated(Posterior):
    """A posterior whose draws are moved away from their mean, or towards it, as they are read."""

    def __init__(self, inner: Posterior, scale: float, record: dict[str, Any], label: str) -> None:
        super().__init__(torch.empty(0), record, label)
        self._draws = None
        self._inner, self._scale = inner, scale

    @property
    def draws(self) -> Tensor:
        """(draws, [m,] *in_shape), scaled at first use, and then kept."""
        if self._draws is None:
            self._draws = torch.cat(list(self.blocks()))
        return self._draws

    @property
    def shape(self) -> tuple[int, ...]:
        """(draws, [m,] *in_shape)."""
        return self._inner.shape

    def blocks(self) -> Iterator[Tensor]:
        """All draws in order, a part of them at a time, (k, [m,] *in_shape)."""
        for block in self._inner.blocks():
            yield self._scaled(block)

    def _scaled(self, values: Tensor) -> Tensor:
        mean = self._centre.to(values)
        return mean + self._scale * (values - mean)

    @cached_property
    def _centre(self) -> Tensor:
        return self._inner.mean()

    @cached_property
    def _failed(self) -> Tensor | None:
        return self._inner._failed

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, std = self._inner._moments()
        return mean, self._scale * std

    def _quantiles(self, probabilities: list[float]) -> list[Tensor]:
        return [self._scaled(values) for values in self._inner._quantiles(probabilities)]


def refuse(posterior: Any, where: str = "") -> None:
    """Refuse what has no spread that could be scaled.

    Raises:
        TypeError: it is no Posterior.
        ValueError: it is a point estimate, or was scaled before.
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(f"{where}expected a Posterior, as sample(...) gives, not {type(posterior).__name__}.")
    if posterior.point:
        raise ValueError(f"{where}a point estimate has no spread to calibrate; use a sampling solver (KPS, DDRM).")
    if "calibration" in posterior.record:
        raise ValueError(f"{where}this is {posterior.label} already; give the posterior as it was sampled.")


def settings_of(record: dict[str, Any]) -> dict[str, Any]:
    """What draws were made with, as far as their spread depends on it, as JSON gives it back."""
    auto = record.get("auto")
    draws = record.get("draws") if auto is None else {key: auto[key] for key in ("tolerance", "minimum", "maximum")}
    kept = {key: record.get(key) for key in ("solver", "prior", "operator", "noise")}
    return _comparable(json.loads(json.dumps(kept | {"draws": draws})))


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without what changes the last bits of draws alone: the prior's compilation and layout in memory."""

    def plain(prior: Any) -> Any:
        if not isinstance(prior, dict):
            return prior
        return {key: plain(value) for key, value in prior.items() if key not in ("compiled", "layout")}

    return {key: plain(value) if key == "prior" else value for key, value in settings.items()}


def restricted(now: Any, kept: Any) -> Any:
    """A description with the keys that another one has."""
    if isinstance(now, dict) and isinstance(kept, dict):
        return {key: restricted(now.get(key), value) for key, value in kept.items()}
    return now


def named(found: Sequence[tuple[str, str, str]]) -> str:
    named = "; ".join(f"{where} {there} there and {here} here" for where, there, here in found[:3])
    return named + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"
