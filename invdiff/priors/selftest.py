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
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from invdiff.priors.network import ConvertedPrior, edm_time
from invdiff.priors.parametrization import KINDS
from invdiff.process import EDM, Discrete, Flow

__all__ = ["check"]

# Image units. The highest tell the data range, whose middle is what remains there; the lowest tell the rest.
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0, 40.0)
# How many of them tell whether a reading denoises at all, before the others are computed.
LOWEST = 2
# Measured on the shipped prior as a network of every kind, and on a network for digits: the right reading leads every
# wrong one by 0.27 or more.
MARGIN = 0.15
# Colours in the wrong order lose 0.08 and no more, since textures hardly depend on it.
COLOUR_MARGIN = 0.02
# Anything worse than twice the error of knowing nothing is called as bad: a noise predictor at the highest levels is.
WORST = 1.0
# A denoiser scores less than this at one of the two lowest levels.
DENOISES = -0.3
# After so many seconds no further reading is begun: a slow network is asked fewer questions, the likeliest first.
SECONDS = 10.0


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
    end = time.monotonic() + SECONDS
    declared = _Reading(prior, images, levels)
    denoises = _best(declared.lowest(prior.predicts)) < DENOISES
    for scores in declared.scores(prior.predicts) if denoises else declared.lowest(prior.predicts):
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"{prior.name} returns numbers that are not finite for a clean photograph with noise; check its "
                f"weights, its schedule and the time it is given."
            )
    suspects: list[tuple[float, str]] = []
    for reading, kind, told in _readings(declared, denoises):
        if reading is not declared and time.monotonic() > end:
            break
        # A network that never saw photographs may do anything to one, and reversed steps leave no doubt elsewhere.
        if _lead(declared, reading, kind, everywhere="revers" not in told) > MARGIN:
            suspects.append((_strength(reading.lowest(kind)), told))
    if suspects:
        warnings.warn(
            f"{prior.name} may be declared wrongly: it denoises a test image clearly better with {min(suspects)[1]}; "
            f"if the declaration is right, pass self_test=False.",
            stacklevel=3,
        )
    elif _best(declared.lowest(prior.predicts)) > DENOISES / 3:
        warnings.warn(
            f"{prior.name} does not denoise a test image at any noise level, whatever it is taken to predict; are its "
            f"weights trained, and its schedule, time and data range right?",
            stacklevel=3,
        )
    elif prior.channels == 3 and time.monotonic() < end and _colour_lead(declared) > COLOUR_MARGIN:
        order = "red, green, blue" if prior.bgr else "blue, green, red"
        warnings.warn(
            f"{prior.name} may be declared wrongly: it denoises photographs better with bgr={not prior.bgr} (its "
            f"colours in the order {order}); if the declaration is right, pass self_test=False.",
            stacklevel=3,
        )


class _Reading:
    """The network fed as one declaration says, and the scores of its output taken for each kind, by image.

    They are computed when they are first asked for, those of the lowest levels by themselves: a reading that does not
    denoise there is out, at a third of the cost.
    """

    def __init__(
        self, prior: ConvertedPrior, images: list[Tensor], levels: list[float], mirrored: bool = False
    ) -> None:
        self.prior, self.images, self.levels, self.mirrored, self.rival = prior, images, levels, mirrored, False
        self._low: dict[str, list[Tensor]] | None = None
        self._high: dict[str, list[Tensor]] | None = None

    @property
    def kinds(self) -> list[str]:
        """What this output may be: "F" is fed in another way than the rest."""
        return [kind for kind in KINDS if (kind == "F") == (self.prior.predicts == "F")]

    def lowest(self, kind: str) -> list[Tensor]:
        """The scores at the lowest levels, where the range of the data and its subject matter least."""
        if self._low is None:
            self._low = self._run(0, LOWEST)
        return self._low[kind]

    def scores(self, kind: str) -> list[Tensor]:
        """The scores at every level."""
        low = self.lowest(kind)
        if len(self.levels) <= LOWEST:
            return low
        if self._high is None:
            self._high = self._run(LOWEST, len(self.levels))
        return [torch.cat(pair) for pair in zip(low, self._high[kind], strict=True)]

    def _run(self, first: int, last: int) -> dict[str, list[Tensor]]:
        sigma = torch.tensor(self.levels[first:last])
        noise = torch.randn((len(self.levels), *self.images[0].shape[1:]), generator=torch.Generator().manual_seed(0))[
            first:last
        ]
        if self.mirrored:
            noise = noise.flip(1)
        # Every image and level in one batch, on whatever device the network is.
        place = next((t.device for t in _tensors(self.prior)), torch.device("cpu"))
        x = torch.cat([image + sigma[:, None, None, None] * noise for image in self.images]).to(place)
        with torch.no_grad():
            try:
                z, level, output = self.prior.run(x, sigma.repeat(len(self.images)).to(place))
            except Exception:
                # A network may refuse what another reading feeds it, such as a time that its table lacks.
                if not self.rival:
                    raise
                return {kind: [torch.full_like(sigma, math.inf)] * len(self.images) for kind in self.kinds}
            estimates = {kind: self.prior.read(kind, z, level, output, x).cpu() for kind in self.kinds}
        return {kind: self._scored(d.split(len(sigma)), sigma) for kind, d in estimates.items()}

    def _scored(self, estimates: tuple[Tensor, ...], sigma: Tensor) -> list[Tensor]:
        found = []
        for d, image in zip(estimates, self.images, strict=True):
            floor = 1 / sigma**2 + 1 / (image - 0.5).square().mean()
            found.append(((d - image).square().flatten(1).mean(1) * floor).log())
        return found

    def changed(self, **changes: object) -> _Reading:
        """The same images for the network under another declaration."""
        clone = copy.copy(self.prior)
        for name, value in changes.items():
            setattr(clone, name, value)
        reading = _Reading(clone, self.images, self.levels, self.mirrored)
        reading.rival = True
        return reading


def _tensors(prior: ConvertedPrior) -> Iterator[Tensor]:
    if isinstance(prior.network, torch.nn.Module):
        yield from prior.network.parameters()
        yield from prior.network.buffers()


def _clipped(scores: Tensor) -> Tensor:
    return torch.nan_to_num(scores, nan=WORST).clamp_max(WORST)


def _best(lowest: list[Tensor]) -> float:
    return min(float(scores.min()) for scores in lowest)


def _strength(lowest: list[Tensor]) -> float:
    """How well a reading denoises, which ranks the suspects: at high noise a shrinking that knows nothing may win."""
    return sum(float(scores.clamp_max(0).sum()) for scores in lowest)


def _lead(declared: _Reading, reading: _Reading, kind: str, everywhere: bool) -> float:
    """By how much another reading wins; -inf where it does not denoise, or loses on an image and is to win on all."""
    if not _best(reading.lowest(kind)) <= DENOISES:
        return -math.inf
    found, other = declared.scores(declared.prior.predicts), reading.scores(kind)
    wins = [float((_clipped(a) - _clipped(b)).mean()) for a, b in zip(found, other, strict=True)]
    if everywhere and min(wins) < DENOISES / 3:
        return -math.inf
    return sum(wins) / len(wins)


def _readings(declared: _Reading, denoises: bool) -> Iterator[tuple[_Reading, str, str]]:
    """Other readings of the network, the likeliest first, each with the words that declare it.

    A network that denoises as it is declared may be of another data range, which shows at high noise only, but hardly
    of another schedule.
    """
    prior = declared.prior
    own = prior.predicts
    for kind in declared.kinds:
        if kind != own:
            yield declared, kind, f"predicts={kind!r} (not {own!r})"
    for span in ((-1.0, 1.0), (0.0, 1.0)):
        if span == prior.data_range:
            continue
        low, high = prior.data_range
        words = f"data_range=({span[0]:g}, {span[1]:g}) (not ({low:g}, {high:g}))"
        reading = declared.changed(data_range=span)
        yield reading, own, words
        for kind in reading.kinds if not denoises else ():
            if kind != own:
                yield reading, kind, f"predicts={kind!r} (not {own!r}) and {words}"
    if denoises:
        return
    yield from _reversed(declared)
    if own == "F":
        plain = declared.changed(predicts="eps", time="fraction" if prior.time is edm_time else prior.time)
        for kind in plain.kinds:
            yield plain, kind, f"predicts={kind!r} (not 'F')"
        return
    edm = declared.changed(predicts="F", process=EDM(), time=edm_time)
    yield edm, "F", f"predicts='F' (not {own!r}), its schedule and time left out"
    if not isinstance(prior.process, Flow):
        flow = declared.changed(predicts="flow", process=Flow(), time="fraction")
        yield flow, "flow", f"predicts='flow' (not {own!r}), its schedule and time left out"


def _reversed(declared: _Reading) -> Iterator[tuple[_Reading, str, str]]:
    """The steps in the reverse order, and the time counted from the other end."""
    prior = declared.prior
    process, told = prior.process, prior.time
    if isinstance(process, Discrete):
        last = len(process.alphas_bar) - 1.0
        steps = 1 - process.alphas_bar / torch.cat([torch.ones(1, dtype=torch.float64), process.alphas_bar[:-1]])
        if bool(((steps > 0) & (steps < 1)).all()):
            flipped = declared.changed(process=Discrete.from_betas(steps.flip(0)))
            yield flipped, prior.predicts, "its betas in the reverse order: the schedule looks reversed"
    elif math.isinf(process.sigma_max):
        last = 1.0
    else:
        last = round(float(process.time(process.sigma_max)), 6)
    if callable(told):
        after: Callable[[Tensor], Tensor] = told
        counted = declared.changed(time=lambda t: after(last - t))
        yield counted, prior.predicts, "its time counted from the other end (reversed)"
    else:
        whole = told == "integer"
        counted = declared.changed(time=lambda t: (last - t).round().long() if whole else last - t)
        yield counted, prior.predicts, "its time counted from the other end: the schedule is reversed"


def _colour_lead(declared: _Reading) -> float:
    """By how much the swapped order of colours wins on the image where it wins least, where either denoises."""
    prior = declared.prior
    gains = [torch.zeros(len(declared.levels)) for _ in declared.images]
    valid = [torch.ones(len(declared.levels), dtype=torch.bool) for _ in declared.images]
    least = 0.0
    # Noise that favours one order of the colours favours the other when it is flipped.
    for mirrored in (False, True):
        as_declared = _Reading(prior, declared.images, declared.levels, mirrored=True) if mirrored else declared
        swapped = as_declared.changed(bgr=not prior.bgr)
        pairs = zip(as_declared.scores(prior.predicts), swapped.scores(prior.predicts), strict=True)
        for k, (a, b) in enumerate(pairs):
            valid[k] &= (a < 0.3) | (b < 0.3)
            gains[k] += (_clipped(a) - _clipped(b)) / 2
        least = min(
            float(gain[fine].mean()) if bool(fine.any()) else 0.0 for gain, fine in zip(gains, valid, strict=True)
        )
        if least <= 0:
            break
    return least


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
