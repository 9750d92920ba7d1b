"""The prior's standard deviation tau in every direction: a covariance C that is diagonal in coordinates of its own.

    C = T^T diag(tau^2) T,    T orthonormal

For stationary images T is the Fourier transform after a turn of the channels, and tau^2 the power of each frequency, of
brightness and of colours apart; for a Gaussian with a dense covariance T holds the eigenvectors.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .priors.analytic import GaussianPrior
from .priors.base import Prior
from .priors.stationary import StationaryGaussian
from .record import describe
from .spectrum import Spectrum

if TYPE_CHECKING:
    from .posterior import Posterior

__all__ = ["Axes", "Bands", "Flat", "Frequencies", "PriorStd", "as_bands"]

PriorStd = float | str | Callable[[Tensor], Tensor] | GaussianPrior | None
Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Flat:
    """One tau for every direction, C = tau^2 I.

    Args:
        std: tau, image units.
        record: what the measured part was computed with, for JSON.
    """

    std: float
    record: dict[str, Any]


@dataclass(frozen=True)
class Bands(ABC):
    """C = T^T diag(tau^2) T.

    Args:
        variance: tau^2 of each coordinate, (k, ...).
        vectors: what T is made of.
        record: as in `Flat`.
    """

    variance: Tensor
    vectors: Tensor
    record: dict[str, Any]

    @abstractmethod
    def coordinates(self, x: Tensor) -> Tensor:
        """T x, (b, *in_shape) -> (b, k, ...)."""

    @abstractmethod
    def image(self, z: Tensor, like: Tensor) -> Tensor:
        """T^T z, shaped like `like`."""

    @abstractmethod
    def level(self, fisher: Apply, like: Tensor) -> Tensor:
        """What is nearest to T G T^T among the matrices that mix only the k: (m, k, k, ...), or (m, 1, 1, 1).

        Args:
            fisher: G, (m, *in_shape) -> the same.
            like: zeros, (m, *in_shape).
        """


class Axes(Bands):
    """T = E^T, the eigenvectors of a dense covariance in the columns of `vectors`, (n, n); variance is (1, n)."""

    def coordinates(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.vectors)[:, None]

    def image(self, z: Tensor, like: Tensor) -> Tensor:
        return (z[:, 0] @ self.vectors.T).reshape(like.shape)

    def level(self, fisher: Apply, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(2, (1, *like.shape[1:]), generator=generator).to(like) * 2 - 1
        return (signs * fisher(signs + like)).flatten(1).mean(1).reshape(-1, 1, 1, 1)


class Frequencies(Bands):
    """T = the orthonormal Fourier transform of channels turned by `vectors`, (C, C); variance is (C, H, W // 2 + 1)."""

    # More places than one are for operators that treat places differently, such as masks.
    places = 16

    def coordinates(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(torch.einsum("dc,bdhw->bchw", self.vectors, x), norm="ortho")

    def image(self, z: Tensor, like: Tensor) -> Tensor:
        turned = torch.fft.irfft2(z, s=like.shape[-2:], norm="ortho")
        return torch.einsum("dc,bchw->bdhw", self.vectors, turned)

    def level(self, fisher: Apply, like: Tensor) -> Tensor:
        """The mean of G over shifts (T. Chan 1988, "An Optimal Circulant Preconditioner for Toeplitz Systems").

        It is estimated from what G makes of points at a few places, and exact where G is the same at every place.
        """
        height, width = like.shape[-2:]
        generator = torch.Generator().manual_seed(0)
        columns = [torch.zeros(()).to(like) for _ in self.vectors]
        for place in torch.randint(height * width, (self.places,), generator=generator).tolist():
            row, column = divmod(place, width)
            for c, vector in enumerate(self.vectors.T):
                point = torch.zeros_like(like)
                point[..., row, column] = vector
                answer = fisher(point).roll((-row, -column), (-2, -1))
                columns[c] = columns[c] + self.coordinates(answer).real * math.sqrt(height * width)
        return torch.stack(columns, 2) / self.places


def as_bands(prior_std: PriorStd, in_shape: tuple[int, ...], posterior: Posterior | None = None) -> Flat | Bands:
    """tau from what a caller gives for it: see `invdiff.measured.MeasuredPart`.

    Args:
        prior_std: None, a number, a function of frequency, "draws" or a GaussianPrior.
        in_shape: shape of x without the batch axis.
        posterior: the draws that "draws" stands for.

    Raises:
        TypeError: something else.
        ValueError: a number that is not positive and finite, a function that gives other values than standard
            deviations, a prior of images of another shape, or frequencies of what is no image.
    """
    if isinstance(prior_std, GaussianPrior):
        return _exact(prior_std, in_shape)
    if isinstance(prior_std, numbers.Real) and not isinstance(prior_std, bool):
        std = float(prior_std)
        if not (math.isfinite(std) and std > 0):
            raise ValueError(f"prior_std is {std}: expected a finite number above 0, in image units.")
        return Flat(std, {"kind": "number", "std": std})
    if isinstance(prior_std, Prior) or not (prior_std is None or prior_std == "draws" or callable(prior_std)):
        shown = getattr(prior_std, "name", None) or repr(prior_std)
        raise TypeError(
            f"prior_std is {shown}: expected a number, a function of frequency, a GaussianPrior, 'draws' (the draws' "
            "own power), or None for photographs."
        )
    if len(in_shape) != 3:
        raise ValueError(
            f"prior_std goes by frequency, and x has shape {in_shape}, which is no image (C, H, W): pass a number or a "
            "GaussianPrior."
        )
    return _by_frequency(prior_std, in_shape, posterior)


def _by_frequency(
    prior_std: str | Callable[[Tensor], Tensor] | None, in_shape: tuple[int, ...], posterior: Posterior | None
) -> Frequencies:
    channels, height, width = in_shape
    half = (channels, height, width // 2 + 1)
    vectors = torch.eye(channels, dtype=torch.float64)
    if callable(prior_std):
        frequency = _frequency(height, width)
        std = prior_std(frequency.clone())
        if not (isinstance(std, Tensor) and std.shape == frequency.shape and bool((std >= 0).all())) or not bool(
            torch.isfinite(std).all()
        ):
            raise ValueError(
                "prior_std, called with frequencies in cycles a pixel, gave something else than as many finite "
                "standard deviations: return for example 0.05 / f.clamp_min(0.01)."
            )
        variance = std.double().square().expand(half)
        return _frequencies(variance, vectors, "function", in_shape)
    spectrum = Spectrum(in_shape)
    if channels == 3:
        # Brightness first, as in Spectrum; the two colours share one power, so that any turn of them will do.
        vectors = torch.linalg.eigh(torch.ones(3, 3, dtype=torch.float64)).eigenvectors.flip(1)
    if prior_std is None:
        spectrum.assume_photographs(torch.zeros(1, *in_shape, dtype=torch.float64))
        assert spectrum.power is not None
        return _frequencies(spectrum.power[0][spectrum.bands].reshape(half), vectors, "photographs", in_shape)
    if posterior is None:
        raise ValueError("prior_std is 'draws', and there are none: call measured_or_conjured, or pass a number.")
    return _frequencies(_power_of_draws(posterior, spectrum, vectors, half), vectors, "draws", in_shape)


def _power_of_draws(posterior: Posterior, spectrum: Spectrum, vectors: Tensor, half: tuple[int, ...]) -> Tensor:
    """The mean power of the draws in each of the spectrum's rings, the lowest one's that of the next."""
    shape = (-1, half[0], half[1], posterior.shape[-1])
    bare = Frequencies(torch.zeros(half), vectors, {})
    total, count = torch.zeros(half, dtype=torch.float64), 0
    for _, draw in posterior.each():
        images = draw.detach().cpu().double().reshape(shape)
        images = images[images.isfinite().flatten(1).all(1)]
        total, count = total + bare.coordinates(images).abs().square().sum(0), count + len(images)
    bands = spectrum.bands
    zero = torch.zeros(spectrum.count, dtype=torch.float64)
    size = zero.index_add(0, bands, torch.ones(len(bands), dtype=torch.float64))
    ring = zero.index_add(0, bands, total.flatten()) / (size.clamp_min(1) * max(count, 1))
    # The mean of an image says nothing of how the means of images differ.
    groups = 2 if half[0] == 3 else 1
    first = torch.arange(groups) * (spectrum.count // groups)
    if spectrum.count // groups > 1:
        ring[first] = ring[first + 1]
    return ring[bands].reshape(half)


def _exact(prior: GaussianPrior, in_shape: tuple[int, ...]) -> Bands:
    mixture = prior.mixture
    if mixture.shape != tuple(in_shape):
        raise ValueError(f"prior_std is a prior of images of shape {mixture.shape}: expected {tuple(in_shape)}.")
    if isinstance(mixture, StationaryGaussian):
        values, vectors = torch.linalg.eigh(mixture.channels)
        half = mixture.power[:, : in_shape[-1] // 2 + 1]
        return _frequencies(values.clamp_min(0)[:, None, None] * half, vectors, "gaussian prior", in_shape)
    values, vectors = mixture.dense.eigen
    return Axes(values, vectors[0], {"kind": "gaussian prior", "covariance": describe(mixture.dense.covariances[0])})


def _frequency(height: int, width: int) -> Tensor:
    """Radial frequency in cycles a pixel, (H, W // 2 + 1)."""
    fy, fx = (torch.fft.fftfreq(height).double()[:, None], torch.fft.rfftfreq(width).double())
    return (fy**2 + fx**2).sqrt()


def _frequencies(variance: Tensor, vectors: Tensor, kind: str, in_shape: tuple[int, ...]) -> Frequencies:
    """Bands with the root mean square of tau in octaves noted down, for each turned channel."""
    frequency = _frequency(*in_shape[1:])
    octaves, std = [], []
    for octave in range(math.ceil(math.log2(max(in_shape[1:]))) + 1):
        inside = (frequency > 2.0 ** -(octave + 1)) & (frequency <= 2.0**-octave)
        if bool(inside.any()):
            octaves.append([2.0 ** -(octave + 1), 2.0**-octave])
            std.append(variance[:, inside].mean(1).sqrt().tolist())
    record = {"kind": kind, "cycles_per_pixel": octaves, "std": std, "channels": vectors.T.tolist()}
    return Frequencies(variance, vectors, record)
