"""Is the spread right? Draws held against the truth on a set of images.

    check = calibration.check(posteriors, truths)
    print(check)

A posterior is calibrated where the truth cannot be told from one more draw. Every figure here looks at a consequence:

    coverage             the central interval of level p holds the truth with probability p
    fair CRPS            is least for the right posterior; compares two that are both calibrated
    spread / error       the draws differ from each other as much as their mean does from the truth
    rank histogram       the truth's rank among the draws is uniform, and so is its randomised PIT (`invdiff.scores`)
    functionals          the same for means of patches, energies of wavelet bands and functions of one's own
    distance, TARP       the same for the distance to a random reference point, the whole image at once
    chi2                 the draws miss the measurement by its noise

Images are the units throughout: intervals come from resampled images (`invdiff.pooling`), never from pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checked import ANOTHER_DRAW, PIXELS, RANDOM_POINT, Check, Image, Pooled
from .conformal import Calibrator, calibrate
from .functionals import Functional, PatchMeans, WaveletBand, WaveletEnergy, default_functionals, distances
from .likelihood import Likelihood
from .metrics import chi2
from .noise import GaussianNoise
from .pooling import Estimate
from .posterior import Posterior
from .record import digest
from .scores import Scores, fair_crps, fair_error, pit, ranks, score, stream

__all__ = [
    "ANOTHER_DRAW",
    "PIXELS",
    "RANDOM_POINT",
    "Calibrator",
    "Check",
    "Estimate",
    "Image",
    "PatchMeans",
    "Pooled",
    "Scores",
    "WaveletBand",
    "WaveletEnergy",
    "calibrate",
    "check",
    "fair_crps",
    "fair_error",
    "pit",
    "ranks",
]

# A histogram of more bins shows noise.
_MOST_BINS = 20
_RESERVED = (PIXELS, RANDOM_POINT, ANOTHER_DRAW)


def check(
    posteriors: Posterior | Iterable[Posterior],
    truths: Tensor | Iterable[Tensor],
    *,
    names: str | Sequence[str] | None = None,
    groups: Any = None,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    functionals: Mapping[str, Functional] | None = None,
    likelihoods: Likelihood | Iterable[Likelihood] | None = None,
    bins: int | None = None,
    seed: int = 0,
) -> Check:
    """Hold posteriors against the truth, going through them once, one at a time in memory.

    Beside pixels and functionals it looks at two distances of whole images, which see what no pixel shows: that to a
    random point of the unit cube (TARP: Lemos, Coogan, Hezaveh, Perreault-Levasseur 2023, "Sampling-Based Accuracy
    Testing of Posterior Estimators for General Inference"), where the share of draws nearer to it than the truth is
    uniform, and that to another draw, which is left out of the others, the same test with a reference that the
    measurement has a say in and far more power against a wrong width. Ours counts (rank + U) / (K + 1) and not
    rank / K, so that it is uniform for every K.

    Posteriors of the same truth count as one image, and so do those of one group, such as crops of one photograph: they
    say little more than one does. Draws that failed, or hold a value that is not finite, are left out, and posteriors
    that have fewer than 2 others are named in `left_out`. A level that K draws do not reach, K < 2 / (1 - level) - 1,
    is NaN.

    Args:
        posteriors: one for each image, or one with m measurements; any iterable, such as a generator. Of a single one
            truths, names, groups and likelihoods are what belongs to it, not a list of that.
        truths: their truths, each (*in_shape), or (m, *in_shape) for m measurements of different images.
        names: of the posteriors, "0", "1", ... if left out; those of m measurements become "NAME[0]" and so on. The
            figures of a posterior depend on it, its truth, its name and the seed, and on no other one.
        groups: which image each posterior belongs to, a label for each, or for one with m measurements a list of m; if
            left out the truth says it.
        levels: probabilities of central intervals.
        functionals: functions of images (b, *in_shape) -> (b, ...) by name; if left out the means of patches and the
            energies of wavelet bands, where the draws are images (C, H, W). {} for none.
        likelihoods: of the posteriors, with one Gaussian noise level each, for chi2.
        bins: of the histograms; if left out the number of draws of the first posterior plus 1, at most 20.
        seed: of broken ties, reference points and the bootstrap.

    Raises:
        TypeError: a posterior, truth or likelihood is something else.
        ValueError: there is no posterior, or another number of truths, likelihoods, names or groups; a name stands
            twice; a truth has another shape or is not finite; a level lies outside (0, 1); a posterior is a point
            estimate, has dependent draws or fewer than 2; a functional has a name that is taken, or gives another
            number of images or what is not finite; a likelihood's noise has not one Gaussian level.

    >>> generator = torch.Generator().manual_seed(0)
    >>> draws = torch.randn(30, 39, 1, 8, 8, generator=generator)
    >>> found = check([Posterior(x, {}) for x in draws], torch.randn(30, 1, 8, 8, generator=generator))
    >>> print(found.pooled["pixels"].coverage[0.9])
    0.895 (0.882 to 0.909)
    """
    levels = tuple(float(level) for level in levels)
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"levels holds {level}: expected probabilities between 0 and 1, such as 0.9.")
    if bins is not None and (isinstance(bins, bool) or not isinstance(bins, int) or bins < 2):
        raise ValueError(f"bins is {bins!r}: expected a whole number from 2 on.")
    stream(seed)
    for name in functionals or {}:
        if name in _RESERVED:
            raise ValueError(f"A functional is called {name!r}, which is looked at anyway: give it another name.")
    if isinstance(posteriors, Posterior):
        posteriors, truths = [posteriors], [_tensor(truths, "truths")]
        likelihoods = None if likelihoods is None else [_likelihood(likelihoods)]
        names = None if names is None else [str(names)]
        groups = None if groups is None else [groups]
    settings: _Settings | None = None
    images: list[Image] = []
    left_out: list[str] = []
    seen: set[str] = set()
    given = {"truths": truths, "names": names, "groups": groups, "likelihoods": likelihoods}
    for name, posterior, found in _together(posteriors, given):
        for image, unit, x, y, bound in _split(name, posterior, **found):
            if image in seen:
                raise ValueError(f"The name {image!r} stands twice: give every image its own.")
            seen.add(image)
            if settings is None:
                chosen = default_functionals(x.shape[1:]) if functionals is None else functionals
                settings = _Settings(levels, bins or min(len(posterior) + 1, _MOST_BINS), chosen, seed)
            if len(x) < 2:
                left_out.append(image)
            else:
                value = None if bound is None else _chi2(image, x, bound)
                images.append(Image(image, unit, posterior.label, _scores(image, x, y, settings), value))
    if settings is None:
        raise ValueError("There is no posterior to check: give at least one, better some twenty images or more.")
    return Check(tuple(images), levels, settings.bins, seed, tuple(left_out))


@dataclass(frozen=True)
class _Settings:
    levels: tuple[float, ...]
    bins: int
    functionals: Mapping[str, Functional]
    seed: int


def _scores(name: str, draws: Tensor, truth: Tensor, settings: _Settings) -> dict[str, Scores]:
    """The scores of all quantities of one image: draws (K, *in_shape) and truth (*in_shape)."""
    out = {}

    def add(quantity: str, values: Tensor, true: Tensor) -> None:
        # A stream for each: no quantity depends on which others are looked at.
        generator = stream(settings.seed, name, quantity)
        out[quantity] = score(values, true, settings.levels, settings.bins, generator)

    add(PIXELS, draws.flatten(1), truth.flatten())
    generator = stream(settings.seed, name, "reference")
    point = torch.rand(truth.shape, generator=generator, dtype=torch.float64)
    add(RANDOM_POINT, distances(draws, point), distances(truth[None], point)[0])
    if len(draws) > 2:
        chosen = int(torch.randint(len(draws), (), generator=generator))
        apart = distances(draws, draws[chosen])
        others = torch.cat([apart[:chosen], apart[chosen + 1 :]])
        add(ANOTHER_DRAW, others, distances(truth[None], draws[chosen])[0])
    for quantity, functional in settings.functionals.items():
        values = torch.cat([_apply(functional, part, quantity) for part in draws.split(16)])
        add(quantity, values, _apply(functional, truth[None].to(draws), quantity)[0])
    return out


def _apply(functional: Functional, images: Tensor, name: str) -> Tensor:
    found = functional(images)
    if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != len(images):
        given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"The functional {name!r} makes {given} of images of shape {tuple(images.shape)}: expected a tensor of "
            f"shape ({len(images)}, ...)."
        )
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"The functional {name!r} gives values that are not finite: give it finite ones.")
    return found.detach().reshape(len(images), -1)


def _chi2(name: str, draws: Tensor, likelihood: Likelihood) -> float | None:
    noise = likelihood.noise
    one = isinstance(noise, GaussianNoise) and (not isinstance(noise.sigma, Tensor) or noise.sigma.numel() == 1)
    if not one:
        raise ValueError(
            f"The noise of image {name!r} has not one Gaussian level: chi2 needs GaussianNoise(sigma) of one number; "
            "leave out likelihoods."
        )
    assert isinstance(noise, GaussianNoise)
    here = likelihood.to("cpu", draws.dtype)
    return chi2(draws, here.batched_y, here.operator, float(noise.sigma)).value


def _split(
    name: str, posterior: Posterior, truths: Tensor, groups: Any = None, likelihoods: Likelihood | None = None
) -> Iterator[tuple[str, str, Tensor, Tensor, Likelihood | None]]:
    """(name, unit, draws that are finite (K, *in_shape), truth, likelihood) of each measurement of a posterior."""
    if posterior.point or posterior.dependent or len(posterior) < 2:
        raise ValueError(_refusal(name, posterior))
    shape = posterior.shape[1:]
    batched = bool(posterior.record.get("batched", len(shape) == 4))
    truth = truths.detach().cpu()
    if tuple(truth.shape) == shape[1:] and batched:
        truth = truth.expand(shape)
    if tuple(truth.shape) not in (shape, (1, *shape)):
        raise ValueError(f"The truth of image {name!r} has shape {tuple(truth.shape)}: expected {shape}, as its draws.")
    if not bool(torch.isfinite(truth).all()):
        raise ValueError(f"The truth of image {name!r} holds values that are not finite: leave that image out.")
    truth = truth.reshape(shape)
    held, count = torch.empty(0, *shape), 0
    for _, draw in posterior.each():
        if count == 0:
            held = torch.empty(posterior.shape, dtype=draw.dtype)
        held[count] = draw.detach()
        count += 1
    held = held[:count]
    if not batched:
        yield name, _unit(truth, groups), _finite(held), truth, likelihoods
        return
    labels = list(groups) if isinstance(groups, list | tuple) else [groups] * shape[0]
    if len(labels) != shape[0]:
        raise ValueError(f"groups has {len(labels)} labels for posterior {name!r}: it has {shape[0]} measurements.")
    for j, label in enumerate(labels):
        bound = None if likelihoods is None else likelihoods.take(torch.tensor([j]))
        yield f"{name}[{j}]", _unit(truth[j], label), _finite(held[:, j]), truth[j], bound


def _unit(truth: Tensor, label: Any) -> str:
    """The label of a group; without one, what is the same for truths of the same values."""
    return f"truth {digest(truth.float())[:16]}" if label is None else str(label)


def _finite(draws: Tensor) -> Tensor:
    keep = torch.isfinite(draws).flatten(1).all(1)
    return draws if bool(keep.all()) else draws[keep]


def _refusal(name: str, posterior: Posterior) -> str:
    if posterior.point:
        return (
            f"Posterior {name!r} is a point estimate, which has no spread to check: use a sampling solver (KPS, DDRM)."
        )
    if posterior.dependent:
        return (
            f"The draws of posterior {name!r} depend on each other, so that the truth's rank among them is not uniform "
            'even where they are right: take one draw of each cloud (keep="one").'
        )
    return f"Posterior {name!r} has {len(posterior)} draw: a spread needs at least 2, and a 90 % interval 19."


def _together(
    posteriors: Iterable[Posterior], given: Mapping[str, Any]
) -> Iterator[tuple[str, Posterior, dict[str, Any]]]:
    """Name, posterior and what goes with it, refusing other numbers of things, before the first where it can."""
    given = {what: things for what, things in given.items() if things is not None}
    if isinstance(given.get("likelihoods"), Likelihood):
        raise TypeError("likelihoods is one Likelihood: expected one for each posterior, in a list.")
    for what, things in given.items():
        if isinstance(posteriors, Sized) and isinstance(things, Sized) and len(things) != len(posteriors):
            raise ValueError(f"There are {len(posteriors)} posteriors and {len(things)} {what}: expected one for each.")
    rest, end, count = {what: iter(things) for what, things in given.items()}, object(), 0
    for posterior in posteriors:
        if not isinstance(posterior, Posterior):
            raise TypeError(f"posteriors holds {type(posterior).__name__}: expected what sample returns, a Posterior.")
        found = {what: next(things, end) for what, things in rest.items()}
        for what, thing in found.items():
            if thing is end:
                raise ValueError(f"There are more posteriors than the {count} {what}: expected one for each.")
        _tensor(found["truths"], "truths")
        if "likelihoods" in found:
            _likelihood(found["likelihoods"])
        yield str(found.pop("names", count)), posterior, found
        count += 1
    for what, things in rest.items():
        if next(things, end) is not end:
            raise ValueError(f"There are more {what} than the {count} posteriors: expected one for each.")


def _tensor(truth: object, what: str) -> Tensor:
    if not isinstance(truth, Tensor):
        raise TypeError(f"{what} holds {type(truth).__name__}: expected tensors of image units.")
    return truth


def _likelihood(likelihood: object) -> Likelihood:
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihoods holds {type(likelihood).__name__}: expected Likelihood(y, operator, noise).")
    return likelihood
