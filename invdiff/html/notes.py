"""What a reader of the report should know beside its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..contents import Contents
from ..operators import Operator
from ..posterior import Posterior
from ..record import digest
from ..rim import Rim
from .pictures import Range, Strip

__all__ = ["notes_of", "probe_words"]


def probe_words(strip: Strip, spread: bool, truth: bool, stretch: float) -> str:
    """What the probe shows, of draws whose spread a calibrator stretched so much."""
    if not spread:
        return "Values are read from pictures of 8 bits."
    words = f"Bars: the {len(strip.uris)} draws on this page, in steps of 1/255. Line: their mean."
    if len(strip.uris) >= 19:
        words += " Below: the central 90 % interval."
    if stretch != 1:
        words += f" Std and interval are those of the calibrator, {stretch:.3g} times as wide as the draws, which stay."
    return words + (" Triangle: the truth." if truth else "")


def notes_of(
    posterior: Posterior,
    drawn: Posterior,
    known: Contents,
    y: Tensor | None,
    operator: Operator | None,
    strip: Strip,
    whole: bool,
    scale: Range,
    rim: Rim,
) -> list[str]:
    """What a reader should know, and how to give what is missing."""
    record, notes = posterior.record, []
    failed, shown, w = len(drawn) - drawn.usable, len(strip.uris), strip.window
    if record.get("interrupted"):
        notes.append(f"The run is not finished: these are the {len(posterior)} draws that are there so far.")
    if failed:
        notes.append(f"{failed} of {len(drawn)} draws are not finite; they are left out everywhere.")
    if shown < drawn.usable:
        notes.append(f"The page holds the first {shown} draws; mean, std and figures are of all {drawn.usable}.")
    if not whole:
        notes.append(
            f"The image is too large for a page of 5 MB: draws and probe show a window of {w.width} × {w.height} "
            f"pixels (rows {w.top} to {w.top + w.height - 1}, columns {w.left} to {w.left + w.width - 1}), where the "
            "spread is largest; the pictures above are reduced."
        )
    if not scale.usual:
        notes.append(f"Black is {scale.low:.3g} and white {scale.high:.3g}, as the values leave [0, 1].")
    if rim:
        spread = "" if drawn.point else ": there the spread is the prior's, and colours are scaled without it"
        notes.append(f"The measurement does not show a rim of {rim.width} pixels, which is restored too{spread}.")
    if drawn.point:
        notes.append("This is a point estimate: there are no draws to play, and no spread; use a sampling solver.")
    if record.get("operator") is None:
        return [*notes, "These are draws of the prior alone: nothing was measured."] if "operator" in record else notes
    if known.measurement is None:
        notes.append("The run keeps no measurement: give it with --measurement FILE.")
    elif y is not None and (y.ndim != 3 or y.shape[0] not in (1, 3)):
        notes.append(f"The measurement, of shape {' × '.join(map(str, y.shape))}, is no picture, and is not shown.")
    if y is not None and _other(y, record):
        notes.append(
            "The measurement is not that of the run to the last bit, as a picture of it is rounded and clipped: what "
            "is said of agreement with it is approximate."
        )
    if operator is None:
        notes.append(
            "The operator cannot be built from what the run keeps, so that neither agreement with the measurement nor "
            "what was invented is shown: give it with --operator and its options."
        )
    elif known.noise is None:
        notes.append("The noise level is not a number that the run keeps: give it with --sigma.")
    return notes


def _other(y: Tensor, record: Mapping[str, Any]) -> bool:
    """Whether a measurement is another one than the record's, as far as its hash can tell."""
    known = record.get("y")
    if not isinstance(known, Mapping) or known.get("dtype") != "float32" or list(y.shape) != known.get("shape"):
        return False
    return digest(y) != known.get("sha256")
