"""A cheap check of how a foreign network was declared: it denoises two small images, and other readings of it do too.

The error of the estimate D of an image x0 with noise sigma is held against the best that a constant shrinkage could do,

    score(sigma) = log( |D - x0|^2 (1 / sigma^2 + 1 / v) ),        v = mean (x0 - 1/2)^2,

which is below 0 for anything that has learned something. A network read wrongly (its noise taken for a velocity, its
range for another, its colours in the wrong order, its steps from the wrong end) denoises worse than the same network
read rightly. So a warning is given only where another reading denoises, is clearly better on two images taken together
and not worse on either; a right reading of a network that never saw such images passes. The images are a photograph
(scikit-image's cat, which is warm in colour) and, for colour networks, another one (a cup of coffee); for gray networks
a white stroke on black, which networks for digits know how to denoise.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from invdiff.priors.network import ConvertedPrior
from invdiff.process import Discrete

__all__ = ["check"]

# Image units. The highest tell the data range, whose middle is what remains there; the lowest tell the rest.
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0, 40.0)
# Measured on the shipped prior as an eps- and a v-network, and on a network for digits: the right reading leads every
# wrong one by 0.27 or more.
MARGIN = 0.15
# Colours in the wrong order lose 0.08 and no more, since textures hardly depend on it.
COLOUR_MARGIN = 0.02
# Anything worse than twice the error of knowing nothing is called as bad: a noise predictor at the highest levels is.
WORST = 1.0
# A denoiser scores less than this at one of the two lowest levels.
DENOISES = -0.3


def check(prior: ConvertedPrior) -> None:
    """Denoise two built-in images and say in one warning what looks wrongly declared.

    Args:
        prior: what `from_network` made.

    Raises:
        ValueError: the network does not run on images of the declared kind, or returns non-finite numbers.

    Warns:
        UserWarning: another reading denoises clearly better, which the sentence names, or none denoises.
    """
    low, high = prior.sigma_range
    levels = [level for level in LEVELS if low <= level <= high]
    images = _images(prior)
    if not levels or not images:
        return
    declared = [_scores(prior, image, levels) for image in images]
    if not all(bool(torch.isfinite(scores).all()) for found in declared for scores in found.values()):
        raise ValueError(
            f"{prior.name} returns numbers that are not finite for a clean photograph with noise; check its weights, "
            f"its schedule and the time it is given."
        )
    found = [scores[prior.predicts] for scores in declared]
    rivals: list[tuple[float, str]] = []
    for kind in declared[0]:
        if kind != prior.predicts:
            rivals.append((_lead(found, [s[kind] for s in declared]), f"predicts={kind!r} (not {prior.predicts!r})"))
    for reading, words in _readings(prior, denoises=_best(found) < DENOISES):
        other = [_scores(reading, image, levels)[prior.predicts] for image in images]
        # A network that never saw photographs may do anything to one, and reversed steps leave no doubt elsewhere.
        rivals.append((_lead(found, other, everywhere="revers" not in words), words))
    lead, words = max(rivals)
    if lead > MARGIN:
        warnings.warn(
            f"{prior.name} may be declared wrongly: it denoises a test image clearly better with {words}; if the "
            f"declaration is right, pass self_test=False.",
            stacklevel=3,
        )
    elif _best(found) > DENOISES / 3:
        warnings.warn(
            f"{prior.name} does not denoise a test image at any noise level, whatever it is taken to predict; are its "
            f"weights trained, and its schedule, time and data range right?",
            stacklevel=3,
        )
    elif prior.channels == 3:
        swapped = _changed(prior, bgr=not prior.bgr)
        if _colour_lead(prior, swapped, images, levels, found) > COLOUR_MARGIN:
            warnings.warn(
                f"{prior.name} may be declared wrongly: it denoises photographs better with bgr={not prior.bgr} (its "
                f"colours in the order {'blue, green, red' if not prior.bgr else 'red, green, blue'}); if the "
                f"declaration is right, pass self_test=False.",
                stacklevel=3,
            )


def _scores(
    prior: ConvertedPrior, image: Tensor, levels: list[float], noise: Tensor | None = None
) -> dict[str, Tensor]:
    """kind -> score at every level, all from one call of the network."""
    sigma = torch.tensor(levels)
    if noise is None:
        noise = _noise(image, len(levels))
    # Every level in one batch, on whatever device the network is.
    place = next((t.device for t in _tensors(prior)), torch.device("cpu"))
    x = (image + sigma[:, None, None, None] * noise).to(place)
    with torch.no_grad():
        z, level, output = prior.run(x, sigma.to(place))
        kinds = [prior.predicts, *(kind for kind in ("eps", "v", "x0") if kind != prior.predicts)]
        estimates = {kind: prior.read(kind, z, level, output, x).cpu() for kind in kinds}
    spread = float((image - 0.5).square().mean())
    floor = 1 / sigma**2 + 1 / spread
    return {kind: ((d - image).square().flatten(1).mean(1) * floor).log() for kind, d in estimates.items()}


def _tensors(prior: ConvertedPrior) -> Iterator[Tensor]:
    if isinstance(prior.network, torch.nn.Module):
        yield from prior.network.parameters()
        yield from prior.network.buffers()


def _noise(image: Tensor, count: int) -> Tensor:
    return torch.randn((count, *image.shape[1:]), generator=torch.Generator().manual_seed(0))


def _clipped(scores: Tensor) -> Tensor:
    return torch.nan_to_num(scores, nan=WORST).clamp_max(WORST)


def _best(found: list[Tensor]) -> float:
    """The best score at the two lowest levels, where the range of the data and its subject matter least."""
    return min(float(scores[:2].min()) for scores in found)


def _lead(found: list[Tensor], other: list[Tensor], everywhere: bool = True) -> float:
    """By how much the other reading wins; -inf where it does not denoise, or loses on an image and is to win on all."""
    wins = [float((_clipped(a) - _clipped(b)).mean()) for a, b in zip(found, other, strict=True)]
    if _best(other) > DENOISES or (everywhere and min(wins) < DENOISES / 3):
        return -math.inf
    return sum(wins) / len(wins)


def _readings(prior: ConvertedPrior, denoises: bool) -> Iterator[tuple[ConvertedPrior, str]]:
    """The same network under another data range and, where it does not denoise, with its steps reversed."""
    for span in ((-1.0, 1.0), (0.0, 1.0)):
        if span != prior.data_range:
            low, high = prior.data_range
            yield _changed(prior, data_range=span), f"data_range=({span[0]:g}, {span[1]:g}) (not ({low:g}, {high:g}))"
    if denoises:
        return
    process = prior.process
    if isinstance(process, Discrete):
        last = len(process.alphas_bar) - 1.0
        steps = 1 - process.alphas_bar / torch.cat([torch.ones(1, dtype=torch.float64), process.alphas_bar[:-1]])
        if bool(((steps > 0) & (steps < 1)).all()):
            flipped = Discrete.from_betas(steps.flip(0))
            yield _changed(prior, process=flipped), "its betas in the reverse order: the schedule looks reversed"
    elif math.isinf(process.sigma_max):
        last = 1.0
    else:
        last = round(float(process.time(process.sigma_max)), 6)
    told = prior.time
    if callable(told):
        after: Callable[[Tensor], Tensor] = told
        yield _changed(prior, time=lambda t: after(last - t)), "its time counted from the other end (reversed)"
    else:
        yield _changed(prior, time=lambda t: last - t), "its time counted from the other end: the schedule is reversed"


def _changed(prior: ConvertedPrior, **changes: object) -> ConvertedPrior:
    clone = copy.copy(prior)
    for name, value in changes.items():
        setattr(clone, name, value)
    return clone


def _colour_lead(
    prior: ConvertedPrior, swapped: ConvertedPrior, images: list[Tensor], levels: list[float], found: list[Tensor]
) -> float:
    """By how much the swapped order of colours wins on the image where it wins least, where either denoises."""
    leads = []
    for image, known in zip(images, found, strict=True):
        noise = _noise(image, len(levels))
        gain = torch.zeros(len(levels))
        valid = torch.ones(len(levels), dtype=torch.bool)
        # Noise that favours one order of the colours favours the other when it is flipped.
        for eps in (noise, noise.flip(1)):
            a = known if eps is noise else _scores(prior, image, levels, eps)[prior.predicts]
            b = _scores(swapped, image, levels, eps)[prior.predicts]
            valid &= (a < 0.3) | (b < 0.3)
            gain += (_clipped(a) - _clipped(b)) / 2
        leads.append(float(gain[valid].mean()) if bool(valid.any()) else 0.0)
    return min(leads)


def _images(prior: ConvertedPrior) -> list[Tensor]:
    """Two images (1, C, H, W) in [0, 1] of the size that the network takes, or none for other than gray and colour."""
    from skimage import data

    height, width = prior.size or (32, 32)

    def photograph(picture: object, top: int, left: int) -> Tensor:
        pixels = torch.as_tensor(picture)[top : top + 256, left : left + 256].permute(2, 0, 1)[None] / 255.0
        return torch.nn.functional.adaptive_avg_pool2d(pixels, (height, width))

    cat = photograph(data.chelsea(), 20, 100)
    if prior.channels == 3:
        return [cat, photograph(data.coffee(), 60, 160)]
    if prior.channels == 1:
        return [_strokes(height, width), cat.mean(dim=1, keepdim=True)]
    return []


def _strokes(height: int, width: int) -> Tensor:
    """A white S-shaped stroke on black, a tenth of the image wide."""
    along = torch.linspace(0, 1, 200)
    across = 0.5 + 0.2 * torch.sin(2 * math.pi * along)
    down = 0.2 + 0.6 * along
    rows, columns = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    distance = ((columns[..., None] - across) ** 2 + (rows[..., None] - down) ** 2).amin(-1).sqrt()
    return torch.sigmoid((0.055 - distance) * 60)[None, None]
