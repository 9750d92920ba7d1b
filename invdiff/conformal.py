"""Intervals that hold on new images: the spread scaled about the mean until a promise about its risk can be made.

The risk of an image is the share of its values that lie outside their interval. The central interval [l, h] of the
draws about their mean m is scaled to

    C_s = [m - s (m - l), m + s (h - m)],

and what is sought is the smallest s at which n images whose truth is known show that the risk R(s) of a new one is at
most alpha = 1 - level (`invdiff.risk` has the bounds):

- "crc", conformal risk control (Angelopoulos, Bates, Fisch, Lei, Schuster 2022): E[R(s)] <= alpha, where the
  expectation is over the new image and the n that s was found on.
- "rcps", risk-controlling prediction sets (Bates, Angelopoulos, Lei, Malik, Jordan 2021): with probability 1 - delta
  over those n, E[R(s)] <= alpha over the new image.

Both ask that the n images and the new one are exchangeable, and nothing of the model. A value lies inside from one
scale on, its critical one, so that the risk falls as s grows; where the mean lies outside [l, h] that would not be so,
and such a value counts as outside at every scale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calibrator import Calibrator, named, percent, refuse, restricted, settings_of
from .posterior import Posterior
from .risk import check_terms, images_needed, mean_share, smallest_scale
from .stored import differences

__all__ = ["Calibrator", "agreed", "calibrate", "too_few"]

# Image units: a truth this near to the mean counts as met, which rounding alone can miss where draws do not differ.
ROUNDING = 1e-6
# A scale beyond this is none: the draws differ by rounding alone.
_LARGEST = 1e30
# What must be the same for all images of a calibration; of the operator the rest may vary, such as a random mask.
_FIXED = ("solver", "prior", "noise", "draws")


def calibrate(
    posteriors: Iterable[Posterior],
    truths: Iterable[Any],
    level: float = 0.9,
    delta: float = 0.1,
    method: str = "crc",
    *,
    groups: Iterable[Any] | None = None,
    names: Iterable[str] | None = None,
) -> Calibrator:
    """Find the scale of the spread at which intervals of a level hold on new images; see the module for the promises.

    Images are the units that must be exchangeable with the one to come: photographs of the kind it will be used on, one
    crop of each. Several measurements of one truth are one unit, whose risk is their mean, and so are crops of one
    image, for which `groups` says which belong together. Posteriors are gone through one after another, and of each
    value 4 bytes are kept: 200 MB for 300 colour images of 236 x 236.

    Args:
        posteriors: one for each image, made with the same solver, prior, kind of operator, noise and number of draws.
        truths: the image of each, (*in_shape); of a posterior with m measurements (m, *in_shape), each an image of its
            own, or (*in_shape) where it has m measurements of one image.
        level: of the interval, between 0 and 1.
        delta: for "rcps", the chance that the promise does not hold.
        method: "crc" or "rcps".
        groups: a label for each posterior, or for one with m truths a list of m: those with the same are one image. If
            left out the same truth is the same image.
        names: of the posteriors, such as those of their files, for what is said of one; their numbers if left out.

    Raises:
        TypeError: for something else than posteriors.
        ValueError: for point estimates, too few draws or images (with the number that is needed), settings that
            differ, shapes that do not fit, one truth in two groups, or where no scale is enough.

    >>> noise = torch.randn(2, 20, 30, 8, generator=torch.Generator().manual_seed(0))
    >>> calibrator = calibrate([Posterior(0.1 * noise[0], {"batched": True})], [0.2 * noise[1, 0]])
    >>> calibrator.label, 1.5 < calibrator.scale < 2.5
    ('calibrated spread (crc, 90 %, 30 images)', True)
    """
    check_terms(method, level, delta)
    if isinstance(posteriors, Posterior):
        raise TypeError("posteriors is one Posterior: expected one for each image; give [posterior].")
    units: dict[Hashable, list[np.ndarray]] = {}
    seen: dict[str, Hashable] = {}
    settings: dict[str, Any] | None = None
    for posterior, truth, label, name in _together(posteriors, truths, groups, names):
        refuse(posterior, f"{name}: ")
        settings = agreed(settings, settings_of(posterior.record), name)
        images = _as_images(truth, posterior, name)
        digests = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
        owners = digests if label is None else _owners(label, len(images), name)
        for owner, digest in zip(owners, digests, strict=True):
            if seen.setdefault(digest, owner) != owner:
                raise ValueError(
                    f"{name}: its truth is in the groups {seen[digest]!r} and {owner!r}: measurements of one image are "
                    "no further images; give them the same label."
                )
        rows = _critical(posterior, images, level, name)
        for owner, row in zip(owners * (len(rows) // len(owners)), rows, strict=True):
            units.setdefault(owner, []).append(row)
    needed = images_needed(method, level, delta)
    if len(units) < needed:
        raise ValueError(too_few(method, level, delta, len(units), needed))
    members = list(units.values())
    found = smallest_scale(members, method, level, delta)
    if found is None:
        raise ValueError(_never(method, level, members))
    scale, risk = found
    if scale == 0:
        raise ValueError("Every truth is the mean of its draws: expected the true images, not restorations of them.")
    chance = float(delta) if method == "rcps" else None
    before, known = mean_share(members, 1.0), tuple(sorted(seen))
    return Calibrator(method, float(level), chance, scale, len(units), risk, before, settings or {}, known)


def _together(
    posteriors: Iterable[Any], truths: Iterable[Any], groups: Any, names: Any
) -> Iterator[tuple[Any, Any, Any, str]]:
    """(posterior, truth, label, name) in turn; labels are None where there are no groups."""
    end, count = object(), 0
    given = {"posteriors": posteriors, "truths": truths, "groups": groups, "names": names}
    each = {name: iter(items) for name, items in given.items() if items is not None}
    while True:
        found = {name: next(items, end) for name, items in each.items()}
        short = [name for name, item in found.items() if item is end]
        if len(short) == len(found):
            return
        if short:
            longer = " and ".join(name for name in found if name not in short)
            raise ValueError(
                f"{' and '.join(short)} end after {count}, before {longer}: give one of each for an image."
            )
        name = str(found.get("names", f"Posterior {count}"))
        yield found["posteriors"], found["truths"], found.get("groups"), name
        count += 1


def _as_images(truth: Any, posterior: Posterior, name: str) -> Tensor:
    """The truth as (m or 1, *in_shape), float32."""
    batched = bool(posterior.record.get("batched"))
    images = torch.as_tensor(np.asarray(truth.detach().cpu() if isinstance(truth, Tensor) else truth)).float()
    inside = posterior.shape[2:] if batched else posterior.shape[1:]
    if tuple(images.shape) == inside:
        images = images[None]
    elif not batched or tuple(images.shape) != posterior.shape[1:]:
        raise ValueError(f"{name}: its truth has the shape {tuple(images.shape)}, and its draws have {inside}.")
    if not bool(torch.isfinite(images).all()):
        raise ValueError(f"{name}: its truth has values that are not finite; leave this image out.")
    return images.contiguous()


def _owners(label: Any, count: int, name: str) -> list[Hashable]:
    """What each of the images of a posterior belongs to."""
    if not isinstance(label, list | tuple | np.ndarray | Tensor):
        return [label] * count
    labels = label.tolist() if isinstance(label, np.ndarray | Tensor) else list(label)
    if len(labels) != count:
        raise ValueError(f"{name}: groups has {len(labels)} labels for it, and it has {count} truths.")
    return labels


def _critical(posterior: Posterior, images: Tensor, level: float, name: str) -> list[np.ndarray]:
    """The scales from which on the values of each measurement lie in their interval, rising, float32."""
    try:
        low, high = posterior.interval(level)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    mean = posterior.mean()
    low, high, mean = (part.detach().cpu().double() for part in (low, high, mean))
    if not posterior.record.get("batched"):
        low, high, mean = low[None], high[None], mean[None]
    lost = torch.isnan(low).flatten(1).any(1)
    if bool(lost.any()):
        raise ValueError(
            f"{name}: too many draws of measurement {int(lost.nonzero()[0])} failed for an interval of "
            f"level {percent(level)}; make more, or leave it out."
        )
    away = images.double() - mean
    width = torch.where(away > 0, high - mean, mean - low)
    scales = torch.where(away.abs() <= ROUNDING, 0.0, away.abs() / width)
    scales = torch.where((mean < low) | (mean > high) | (scales > _LARGEST), torch.inf, scales)
    rows = scales.flatten(1).numpy()
    # Rounded up, so that no value counts as inside at a scale at which it is not.
    short = rows.astype(np.float32)
    short = np.where(short < rows, np.nextafter(short, np.float32(np.inf)), short)
    return list(np.sort(short, axis=1))


def agreed(kept: dict[str, Any] | None, now: dict[str, Any], name: str) -> dict[str, Any]:
    """What the settings so far and those of one more posterior have in common.

    Raises:
        ValueError: something differs that must not.
    """
    if kept is None:
        return now
    found = [item for item in differences(kept, restricted(now, kept)) if item[0].startswith(_FIXED)]
    kinds = [(part.get("operator") or {}).get("name") for part in (kept, now)]
    if kinds[0] != kinds[1]:
        found.append(("operator", json.dumps(kinds[0]), json.dumps(kinds[1])))
    if found:
        raise ValueError(
            f"{name} was made with other settings than those before ({named(found)}): calibrate each setting by itself."
        )
    return _shared(kept, now)


def _shared(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What two descriptions have in common."""
    out: dict[str, Any] = {}
    for key in a.keys() & b.keys():
        if isinstance(a[key], dict) and isinstance(b[key], dict):
            out[key] = _shared(a[key], b[key])
        elif a[key] == b[key]:
            out[key] = a[key]
    return {key: out[key] for key in a if key in out}


def too_few(method: str, level: float, delta: float, count: int, needed: int) -> str:
    """What is said of so many images where more are needed."""
    alpha = 1 - level
    if method == "crc":
        why = f"with n images no risk below 1 / (n + 1) can be promised, and it is to be {alpha:.3g}"
        return f"crc at level {percent(level)} needs at least {needed} images, and there are {count}: {why}."
    half = images_needed(method, level, delta, mean=alpha / 2)
    return (
        f"rcps at level {percent(level)} and delta {delta:g} needs at least {needed} images, and there are {count}: "
        f"fewer show no risk below {alpha:.3g} even where every interval holds, and {half} do so where a share of "
        f"{alpha / 2:.3g} is still outside."
    )


def _never(method: str, level: float, units: Sequence[Sequence[np.ndarray]]) -> str:
    share = mean_share(units, _LARGEST)
    return (
        f"No scale is enough for {method} at level {percent(level)}: {percent(share)} of an image's values lie "
        "outside at every scale, as their draws do not differ or their mean lies outside the interval; use a solver "
        "whose draws differ there, or a lower level."
    )
