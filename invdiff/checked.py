"""What `calibration.check` found: figures of every image, pooled over images, in tables, words and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pooling import Estimate, estimate, flatness, uniformity, unit_means
from .scores import Scores, draws_needed

__all__ = ["ANOTHER_DRAW", "PIXELS", "RANDOM_POINT", "Check", "Image", "Pooled"]

PIXELS = "pixels"
RANDOM_POINT = "distance to a random point"
ANOTHER_DRAW = "distance to another draw"
# Below this the words say that a quantity is not calibrated: several quantities are looked at, and one in twenty of
# them would fall below 0.05 by chance.
_DOUBT = 0.01
# Fewer images than this never reach it, however far from calibrated they are (`pooling.flatness`).
_FEWEST = 8
_FORMAT = 1


@dataclass(frozen=True)
class Image:
    """The figures of one posterior of an image.

    Args:
        name: unlike that of any other.
        unit: the image it belongs to; those of one unit count as one image.
        label: what the posterior calls its spread.
        quantities: scores of "pixels", of the distances and of each functional.
        chi2: residual chi^2 of its draws, or None without a likelihood or with noise of level 0.
    """

    name: str
    unit: str
    label: str
    quantities: Mapping[str, Scores]
    chi2: float | None = None


@dataclass(frozen=True)
class Pooled:
    """One quantity over all images, each figure with its interval.

    Args:
        images: how many units.
        draws: the fewest and the most of a posterior.
        coverage: of the central interval of each level; NaN where no image has the draws for it.
        crps: mean of the fair CRPS, in the units of the quantity.
        spread_skill: sqrt((K + 1) / K) RMS spread / RMS error of the mean, 1 where the spread is right, below 1 where
            it is too small (Fortin et al. 2014).
        bias: mean of the PIT less 1/2; above 0 where the truth lies above the draws.
        dispersion: mean of 12 (PIT - 1/2)^2; above 1 where the draws are too narrow or biased, below 1 where they are
            too wide.
        histogram: mean share of the PIT in each bin.
        p: how likely calibrated draws are as far from a flat histogram; where there is one value in each image, from
            uniform PITs.
    """

    images: int
    draws: tuple[int, int]
    coverage: Mapping[float, Estimate]
    crps: Estimate
    spread_skill: Estimate
    bias: Estimate
    dispersion: Estimate
    histogram: tuple[float, ...]
    p: float


@dataclass(frozen=True)
class Check:
    """The result of `calibration.check`.

    Args:
        images: figures of each posterior.
        levels: of the central intervals.
        bins: of the histograms.
        seed: of broken ties, reference points and the bootstrap.
        left_out: names of images with fewer than 2 draws that did not fail.
    """

    images: tuple[Image, ...]
    levels: tuple[float, ...]
    bins: int
    seed: int = 0
    left_out: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all images, of those left out too: what is done already where a run goes on."""
        return (*(image.name for image in self.images), *self.left_out)

    @property
    def units(self) -> int:
        """How many images there are, however many posteriors each has."""
        return len({image.unit for image in self.images})

    @property
    def quantities(self) -> tuple[str, ...]:
        """What was looked at, in any image."""
        return tuple(dict.fromkeys(name for image in self.images for name in image.quantities))

    def scores(self, quantity: str = PIXELS) -> list[Scores]:
        """The scores of one quantity, of every posterior that has it: one of 2 draws has no other draw to compare.

        Raises:
            KeyError: it was not looked at.
        """
        return [image.quantities[quantity] for image in self._having(quantity)]

    def histograms(self, quantity: str = PIXELS) -> Tensor:
        """The histogram of the PIT of each image, (images, bins).

        Raises:
            KeyError: it was not looked at.
        """
        return self._figures(quantity, lambda s: s.histogram)

    @cached_property
    def pooled(self) -> Mapping[str, Pooled]:
        """Every quantity over all images."""
        return {quantity: self._pool(quantity) for quantity in self.quantities}

    @cached_property
    def chi2(self) -> Estimate:
        """Mean residual chi^2 of the draws, 1 where they miss the measurement by its noise; NaN where it is unknown."""
        if not self.images:
            return Estimate(math.nan, math.nan, math.nan, 0)
        found = [[math.nan if image.chi2 is None else image.chi2] for image in self.images]
        units = [image.unit for image in self.images]
        return estimate(unit_means(torch.tensor(found, dtype=torch.float64), units), self.seed)

    @property
    def tarp(self) -> Tensor:
        """The PIT of the distance to a random point, one of each posterior in order of size; see `check`."""
        return torch.tensor([s.centre for s in self.scores(RANDOM_POINT)], dtype=torch.float64).sort().values

    def expected_coverage(self, credibility: Sequence[float]) -> list[Estimate]:
        """The TARP curve: the share of images whose PIT of the distance to a random point is at most each credibility.

        Lemos et al. 2023 (see `check`); of calibrated draws it is the credibility itself.

        Args:
            credibility: numbers in [0, 1].
        """
        shares = self._figures(RANDOM_POINT, lambda s: [float(s.centre <= level) for level in credibility])
        return [estimate(shares[:, [i]], self.seed) for i in range(len(credibility))]

    def _having(self, quantity: str) -> list[Image]:
        if quantity not in self.quantities:
            raise KeyError(f"quantity is {quantity!r}: expected one of {', '.join(map(repr, self.quantities))}.")
        return [image for image in self.images if quantity in image.quantities]

    def _figures(self, quantity: str, figures: Callable[[Scores], Sequence[float]]) -> Tensor:
        """Some figures of each unit, (units, figures)."""
        having = self._having(quantity)
        rows = torch.tensor([figures(image.quantities[quantity]) for image in having], dtype=torch.float64)
        return unit_means(rows, [image.unit for image in having])

    def _pool(self, quantity: str) -> Pooled:
        scores, histograms = self.scores(quantity), self.histograms(quantity)
        shares = self._figures(quantity, lambda s: s.coverage)
        spread = self._figures(quantity, lambda s: ((s.draws + 1) / s.draws * s.variance, s.error))
        centres = self._figures(quantity, lambda s: (s.centre,))
        one_each = len(histograms) == len(scores) > 1 and all(s.values == 1 for s in scores)
        return Pooled(
            images=len(histograms),
            draws=(min(s.draws for s in scores), max(s.draws for s in scores)),
            coverage={level: estimate(shares[:, [i]], self.seed) for i, level in enumerate(self.levels)},
            crps=estimate(self._figures(quantity, lambda s: (s.crps,)), self.seed),
            spread_skill=estimate(spread, self.seed, lambda means: (means[..., 0] / means[..., 1]).sqrt()),
            bias=estimate(centres - 0.5, self.seed),
            dispersion=estimate(self._figures(quantity, lambda s: (s.dispersion,)), self.seed),
            histogram=tuple(histograms.mean(0).tolist()),
            p=uniformity(centres[:, 0]) if one_each else flatness(histograms, self.seed),
        )

    def table(self) -> list[dict[str, Any]]:
        """One row for each quantity, NAME, NAME_low and NAME_high of every figure: for csv.DictWriter, or any table."""
        rows = []
        for quantity, pooled in self.pooled.items():
            low, high = pooled.draws
            row: dict[str, Any] = {"quantity": quantity, "images": pooled.images, "draws_min": low, "draws_max": high}
            figures = {f"coverage{_percent(level)}": found for level, found in pooled.coverage.items()}
            figures |= {name: getattr(pooled, name) for name in ("crps", "spread_skill", "bias", "dispersion")}
            if quantity == PIXELS:
                figures["chi2"] = self.chi2
            else:
                figures["chi2"] = Estimate(math.nan, math.nan, math.nan, 0)
            for name, found in figures.items():
                row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append(row | {"p": pooled.p})
        return rows

    def markdown(self) -> str:
        """The table for people."""
        heads = [f"cover {_percent(level)} %" for level in self.levels]
        heads = ["", "images", "draws", *heads, "CRPS", "spread / error", "bias", "dispersion", "p"]
        lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        for quantity, pooled in self.pooled.items():
            draws = str(pooled.draws[0]) if len(set(pooled.draws)) == 1 else f"{pooled.draws[0]} to {pooled.draws[1]}"
            cells = [quantity, str(pooled.images), draws, *map(_shares, pooled.coverage.values())]
            cells += [str(pooled.crps), str(pooled.spread_skill), str(pooled.bias), str(pooled.dispersion)]
            lines.append("| " + " | ".join([*cells, _likely(pooled.p)]) + " |")
        return "\n".join(lines)

    def lines(self) -> list[str]:
        """What was found, a sentence for each quantity, and what could not be looked at."""
        out = [f"{quantity}: {_words(quantity, pooled)}" for quantity, pooled in self.pooled.items()]
        if self.chi2.images:
            out.append(f"chi2 of the draws: {self.chi2}, expected 1")
        most = max((s.draws for s in self.scores()), default=0) if self.images else 0
        for level in self.levels:
            if self.images and draws_needed(level) > most:
                out.append(f"{_percent(level)} % intervals need {draws_needed(level)} draws, and there are {most}")
        if self.left_out:
            out.append(f"left out, as fewer than 2 of their draws did not fail: {', '.join(self.left_out)}")
        return out

    def __str__(self) -> str:
        return "\n".join([self.markdown(), "", *self.lines()])

    def record(self) -> dict[str, Any]:
        """Settings, pooled figures and those of every image, for JSON: what is not a number is None."""
        out = {
            "format": _FORMAT,
            "levels": list(self.levels),
            "bins": self.bins,
            "seed": self.seed,
            "left_out": list(self.left_out),
            "table": self.table(),
            "tarp": self._tarp_rows(),
            "images": [dataclasses.asdict(image) for image in self.images],
        }
        return _plain(out)

    def _tarp_rows(self) -> list[dict[str, float]]:
        levels = [k / 10 for k in range(1, 10)] if self.images else []
        found = self.expected_coverage(levels) if levels else []
        return [
            {"credibility": level, "coverage": e.value, "coverage_low": e.low, "coverage_high": e.high}
            for level, e in zip(levels, found, strict=True)
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, whole or not at all.

        Raises:
            FileNotFoundError: the folder of the file does not exist.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {target.parent} to save {target.name} in: make it first.")
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            temporary.write_text(json.dumps(self.record(), indent=1, allow_nan=False) + "\n")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Check:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is not there: expected a file that Check.save wrote.")
        try:
            found = json.loads(Path(path).read_text())
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']}")
            images = tuple(_image(entry) for entry in found["images"])
            settings = tuple(found["levels"]), found["bins"], found["seed"], tuple(found["left_out"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no saved check ({error}): expected a file that Check.save wrote.") from error
        return cls(images, *settings)

    def merged(self, *others: Check) -> Check:
        """This check and others of other images as one.

        Raises:
            ValueError: their settings differ, or an image is in two of them.
        """
        names = set(self.names)
        for other in others:
            for what in ("levels", "bins", "seed"):
                mine, theirs = getattr(self, what), getattr(other, what)
                if mine != theirs:
                    raise ValueError(f"{what} of one check is {mine} and of another {theirs}: merge checks made alike.")
            twice = sorted(names & set(other.names))
            if twice:
                raise ValueError(
                    f"The image {twice[0]!r} is in two of the checks: every image counts once; give each its own name."
                )
            names |= set(other.names)
        images = [image for one in (self, *others) for image in one.images]
        left_out = [name for one in (self, *others) for name in one.left_out]
        return dataclasses.replace(self, images=tuple(images), left_out=tuple(left_out))


def _percent(level: float) -> str:
    return f"{100 * level:g}"


def _shares(found: Estimate) -> str:
    if math.isnan(found.value):
        return "–"
    shown = f"{found.value:.3f}"
    return shown if math.isnan(found.low) else f"{shown} ({found.low:.3f} to {found.high:.3f})"


def _likely(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _words(quantity: str, pooled: Pooled) -> str:
    if pooled.images < 2:
        return "one image says nothing of calibration"
    reached = [level for level, found in pooled.coverage.items() if found.images]
    level = 0.9 if 0.9 in reached else max(reached, default=None)
    said, off = "", False
    if level is not None and quantity not in (RANDOM_POINT, ANOTHER_DRAW):
        held = pooled.coverage[level]
        said = f"; nominal {_percent(level)} % intervals hold the truth {100 * held.value:.1f} % of the time"
        said += f" ({100 * held.low:.1f} to {100 * held.high:.1f})"
        off = not held.low <= level <= held.high
    if pooled.images < _FEWEST:
        return f"{pooled.images} images are too few for a verdict, which needs {_FEWEST}{said}"
    if pooled.p >= _DOUBT:
        # Of several levels and quantities one interval in twenty misses by chance.
        return f"nothing {'certain ' if off else ''}found against it (p {_likely(pooled.p)}){said}"
    return f"{_fault(quantity, pooled)} (p {_likely(pooled.p)}){said}"


def _fault(quantity: str, pooled: Pooled) -> str:
    """What is wrong, by the sign of the figure that stands farther out of its interval."""
    shift, stretch = _off(pooled.bias, 0.0), _off(pooled.dispersion, 1.0)
    if quantity in (RANDOM_POINT, ANOTHER_DRAW) and not pooled.bias.low <= 0 <= pooled.bias.high:
        if shift > 0:
            return "the truth is too far away, draws too narrow or biased"
        # A bias may take draws away from a random point, but never nearer to each other.
        return f"the truth is too near, draws too wide{' or biased' if quantity == RANDOM_POINT else ''}"
    if abs(shift) > abs(stretch):
        return "too low in the draws" if shift > 0 else "too high in the draws"
    return "varies too little among the draws" if stretch > 0 else "varies too much among the draws"


def _off(found: Estimate, expected: float) -> float:
    return (found.value - expected) / max(found.high - found.low, 1e-12)


def _plain(thing: Any) -> Any:
    if isinstance(thing, dict):
        return {key: _plain(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_plain(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing


def _image(entry: dict[str, Any]) -> Image:
    quantities = {}
    for name, scores in entry["quantities"].items():
        coverage = tuple(math.nan if share is None else share for share in scores["coverage"])
        quantities[name] = Scores(**scores | {"coverage": coverage, "histogram": tuple(scores["histogram"])})
    return Image(entry["name"], entry["unit"], entry["label"], quantities, entry["chi2"])
