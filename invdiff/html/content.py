"""What a report holds before it is a page: pictures, draws, figures and notes."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import montecarlo
from ..contents import Contents, contents, require_same_operator
from ..likelihood import Likelihood
from ..metrics import psnr, spread_over_error
from ..noise import GaussianNoise, NoiseModel
from ..operators import Identity, Mask, Operator, Spectral
from ..posterior import Posterior
from ..record import digest
from ..restoration import figures
from ..rim import Rim
from ..scores import Scores
from .charts import against_truth
from .look import Look, Shown
from .notes import notes_of, probe_words
from .pictures import Range, Window, encode_draws, gray_map, rms, top_of

if TYPE_CHECKING:
    from ..conformal import Calibrator

__all__ = ["Report", "assemble"]

# Values of all draws together that are split into measured and invented, about a minute's work, and the fewest draws.
_MOST_VALUES = 2**22
_FEW = 8
# How much images vary, where the split by frequency would take minutes: about the std of photographs in [0, 1].
_PRIOR_STD = 0.25


@dataclass
class Report:
    """Everything on the page.

    Args:
        posterior: of one measurement, recalibrated where a calibrator was given.
        sheet: pictures at a glance.
        data: what the script of the page reads.
        top: end of the colour scale of std and error.
        window: what of the image the draws show; None where it is all of it.
        figures: as `restoration.figures`, and "restored", how the middle is called.
        scores: of the draws against the truth.
        probe: what the probe shows.
        notes: what a reader should know.
    """

    posterior: Posterior
    sheet: list[Shown]
    data: dict[str, Any]
    top: float
    window: Window | None
    figures: dict[str, Any]
    scores: Scores | None
    probe: str
    notes: list[str] = field(default_factory=list)


def assemble(
    posterior: Posterior,
    given: Contents,
    *,
    sigma: float | None,
    calibrator: Calibrator | None,
    anyway: bool,
    number: int,
    limit: int,
) -> Report:
    """Everything on the page; `write_report` says what of what, and what is refused."""
    if not isinstance(posterior, Posterior):
        raise TypeError(f"posterior is {type(posterior).__name__}: expected a Posterior; load it with Posterior.load.")
    kept, notes = contents(posterior), list[str]()
    drawn, known = _one(posterior, _first(given, kept), number)
    shape = drawn.shape[1:]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"The draws have shape {shape}: a report shows images of 1 or 3 channels, (C, H, W).")
    if drawn.usable == 0:
        raise ValueError("Every draw failed, so that there is nothing to show: see the record for the steps.")
    # Mean and std are asked for again and again, and draws in memory are gone through each time: a copy keeps them.
    drawn = copy.copy(drawn)
    drawn._kept_moments = drawn._moments()
    # Without an entry nobody knows; with None there was no measurement.
    if given.operator is not None and "operator" in posterior.record:
        require_same_operator(given.operator, posterior.record["operator"])
    if sigma is not None:
        known = replace(known, noise=GaussianNoise(sigma))
    y, truth, operator = _checked(known, shape)
    spread = not drawn.point and drawn.usable > 1
    worth = drawn if calibrator is None else calibrator(drawn, anyway=anyway)
    stretch = 1.0 if calibrator is None else calibrator.scale

    mean = drawn.mean().cpu().float()
    std = worth.std().cpu().float() if spread else None
    scale = Range.of(mean)
    maps = {} if std is None else {"std": rms(std)}
    if truth is not None:
        maps["error"] = rms(mean.clamp(scale.low, scale.high) - truth)
    rim = Rim.of(posterior.record)
    top = top_of(*map(rim.inside, maps.values())) if maps else 1.0
    split, shares = _split(drawn, y, operator, known.noise, mean, notes) if spread else ({}, {})

    pictured = y if y is not None and y.ndim == 3 and y.shape[0] in (1, 3) else None
    align = _factor(pictured, shape)
    # The rest is for the reduced pictures and the page itself.
    # What is looked at first is the largest spread of what was measured.
    strip = encode_draws(drawn, None if std is None else rim.without(std), scale, int(0.75 * limit), align)
    window = strip.window
    whole = window.whole(shape)
    look = Look(worth, mean, truth, pictured, maps, scale, top, rim)
    row, column = _striking(rim.without(maps["std"]) if spread else None, window)
    data = {
        "height": window.height,
        "width": window.width,
        "top": window.top,
        "left": window.left,
        "channels": shape[0],
        "low": scale.low,
        "high": scale.high,
        "draws": [] if drawn.point else strip.uris,
        "numbers": strip.numbers,
        "scale": stretch,
        "layers": look.layers(window, whole),
        "tints": [{"key": key, "name": name, "uri": gray_map(window.of(v))} for key, (name, v) in split.items()],
        "row": row,
        "column": column,
    }
    scores = against_truth(worth, truth) if spread and truth is not None and not drawn.dependent else None
    if spread and truth is not None and drawn.dependent:
        notes.append(
            "Coverage and rank of the truth are not shown: the draws depend on each other, so that they would be off "
            "even where the spread is right."
        )
    if given.truth is not None and truth is not None and kept.truth is not None:
        held = kept.truth[number] if kept.truth.ndim > truth.ndim else kept.truth
        if not truth.equal(held.float()):
            notes.append(
                "The truth is not that of the run to the last bit: what is said against it is of the one given."
            )
    if calibrator is not None and truth is not None and digest(truth) in calibrator.sha256:
        notes.append(
            "The calibrator was found on this image among others: what it promises is of new ones, and what is said "
            "here against the truth is no test of it."
        )
    found = _figures(drawn, y, operator, known.noise, truth, mean) | shares
    found |= found.get("monte_carlo") or montecarlo.figures(drawn) or {}
    if "std_error" in found:
        found["std_error"] *= stretch  # as the std that it is the error of
    if std is not None:
        found["mean_std"] = float(std.mean())
        if truth is not None:
            found["spread_ratio"] = spread_over_error(mean, std, drawn.usable, truth)
    notes[:0] = notes_of(posterior, drawn, known, y, operator, strip, whole, scale, rim)
    return Report(
        worth,
        look.sheet(reduce=not whole),
        data,
        top,
        None if whole else window,
        found | {"restored": "point estimate" if drawn.point else "mean", "label": worth.label},
        scores,
        probe_words(strip, spread, truth is not None, stretch),
        notes,
    )


def _first(given: Contents, kept: Contents) -> Contents:
    """What the caller gave, and what stands beside the draws for the rest."""
    pairs = ((getattr(given, name), getattr(kept, name)) for name in ("measurement", "truth", "operator", "noise"))
    return Contents(*(mine if mine is not None else theirs for mine, theirs in pairs))


def _one(posterior: Posterior, known: Contents, number: int) -> tuple[Posterior, Contents]:
    """The draws of one measurement, and what belongs to it."""
    batched = bool(posterior.record.get("batched", False))
    count = posterior.shape[1] if batched else 1
    if not 0 <= number < count:
        raise ValueError(f"number is {number}: the draws are of {count} measurement{'s' if count > 1 else ''}, from 0.")
    if not batched:
        return posterior, known

    def own(value: Tensor | None, axes: int) -> Tensor | None:
        return value[number] if value is not None and value.ndim == axes + 1 and len(value) == count else value

    operator, noise = known.operator, known.noise
    y = own(known.measurement, 3 if operator is None else len(operator.out_shape))
    if operator is not None:
        operator = operator.take([number])
    draws = torch.cat([block[:, number] for block in posterior.blocks()])
    failed = [
        entry | {"measurement": 0} for entry in posterior.record.get("failed", ()) if entry["measurement"] == number
    ]
    record = posterior.record | {"batched": False, "measurements": 1, "failed": failed, "measurement": number}
    truth = own(known.truth, len(posterior.shape) - 2)
    return Posterior(draws, record, posterior.label), Contents(y, truth, operator, noise)


def _checked(known: Contents, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None, Operator | None]:
    """Measurement, truth and operator on the CPU, refused where their shapes do not fit."""
    y, truth, operator = known.measurement, known.truth, known.operator
    for name, value in (("truth", truth), ("measurement", y)):
        if value is not None and not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"The {name} holds values that are not finite: put numbers in their place, or leave it out."
            )
    if truth is not None:
        truth = _single(truth, len(shape))
        if tuple(truth.shape) != shape:
            raise ValueError(f"The truth has shape {tuple(truth.shape)}: expected {shape}, that of a draw.")
    if operator is not None:
        operator = operator.to("cpu")
        if operator.in_shape != shape:
            raise ValueError(f"The operator takes images of {operator.in_shape}: the draws are {shape}.")
        y = None if y is None else _single(y, len(operator.out_shape))
        if y is not None and tuple(y.shape) != operator.out_shape:
            raise ValueError(
                f"The measurement has shape {tuple(y.shape)}: the operator of the draws measures {operator.out_shape}."
            )
    return None if y is None else _single(y, 3), truth, operator


def _single(value: Tensor, axes: int) -> Tensor:
    """A tensor on the CPU, without a batch axis of one."""
    held = value.detach().cpu().float()
    return held[0] if held.ndim == axes + 1 and len(held) == 1 else held


def _striking(std: Tensor | None, window: Window) -> tuple[int, int]:
    """Where the probe begins: the pixel of the window with the largest spread, not at its rim; its middle without."""
    margin = min(window.height, window.width) // 8
    if std is None:
        return window.height // 2, window.width // 2
    inner = window.of(std)[margin : window.height - margin, margin : window.width - margin]
    row, column = divmod(int(inner.argmax()), inner.shape[1])
    return row + margin, column + margin


def _factor(y: Tensor | None, shape: tuple[int, ...]) -> int:
    """By how much a measurement is smaller, where that is a whole number; 1 else."""
    if y is None or shape[-1] % y.shape[-1] or shape[-2] % y.shape[-2]:
        return 1
    factor = shape[-1] // y.shape[-1]
    return factor if shape[-2] // y.shape[-2] == factor else 1


def _split(
    posterior: Posterior,
    y: Tensor | None,
    operator: Operator | None,
    noise: NoiseModel | None,
    mean: Tensor,
    notes: list[str],
) -> tuple[dict[str, tuple[str, Tensor]], dict[str, float]]:
    """Maps (H, W) of what the prior invented, by key, with their names; and the shares of the whole image."""
    if y is None or operator is None or noise is None:
        return {}, {}
    from ..measured import measured_or_conjured

    count = min(posterior.usable, max(_FEW, _MOST_VALUES // mean.numel()))
    if count * mean.numel() > 2 * _MOST_VALUES:
        notes.append("What the prior invented is not computed for images this large: see measured_or_conjured.")
        return {}, {}
    draws = torch.stack([draw for _, draw in itertools.islice(posterior.each(), count)])
    record = posterior.record | {"draws": count, "failed": []}
    prior_std = None if _has_root(operator, noise) else _PRIOR_STD
    try:
        likelihood = Likelihood(y, operator, noise)
        split = measured_or_conjured(Posterior(draws, record, posterior.label), likelihood, prior_std)
    except (TypeError, ValueError) as error:
        notes.append(f"What the prior invented is not shown: {error}")
        return {}, {}
    if count < posterior.usable:
        notes.append(f"What the prior invented is computed from the first {count} draws.")
    if prior_std is not None:
        notes.append(
            f"What the prior invented is computed as if images varied by {prior_std} in every direction, as there is "
            "no SVD of operator and noise: measured_or_conjured takes their power by frequency, in minutes."
        )
    maps = {
        "variance": ("share of the variance", split.invented_variance),
        "detail": ("share of fine detail", split.invented_detail),
    }
    flat = {key: (name, values.cpu().float().mean(0)) for key, (name, values) in maps.items()}
    return flat, split.record["whole"]


def _has_root(operator: Operator, noise: NoiseModel) -> bool:
    """Whether the square root of A^T R^-1 A is known in closed form, R the noise's covariance."""
    level = noise.sigma if isinstance(noise, GaussianNoise) else None
    return isinstance(operator, Spectral) and (isinstance(level, int | float) or isinstance(operator, Mask | Identity))


def _figures(
    posterior: Posterior,
    y: Tensor | None,
    operator: Operator | None,
    noise: NoiseModel | None,
    truth: Tensor | None,
    mean: Tensor,
) -> dict[str, Any]:
    """The figures of `restore` where all they need is known, else what the truth gives alone."""
    level = noise.sigma if isinstance(noise, GaussianNoise) else None
    if y is not None and operator is not None and isinstance(level, int | float):
        return figures(posterior, y, operator, float(level), truth=truth)
    return {} if truth is None else {"psnr": float(psnr(mean.clamp(0, 1)[None], truth[None]))}
