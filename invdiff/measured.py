"""Measured or conjured: which part of an ensemble's draws the measurement fixed, and which part the prior invented.

Every draw x is W x + (I - W) x, with W of `invdiff.measured_part`: of a direction that the measurement sees with
singular value s under noise sigma_y, and in which the prior's standard deviation is tau,

    s^2 / (s^2 + sigma_y^2 / tau^2)

is measured, so that what is seen below the noise does not count as measured. With d = x - mean(x), e = H x the detail
of a draw and < > the mean over draws,

    invented_variance = <d (I - W) d> / <d^2>                    at each pixel
    invented_detail   = w * <e (I - W) e> / w * <e^2>
    agreement         = w * <e e'> / w * <e^2>                   over all pairs of different draws e, e'

H keeps what a Gaussian of 0.75 pixels removes: half of the amplitude at 0.25 cycles a pixel, half of the Nyquist
frequency, and more above. w is a Gaussian of 2 pixels. The shares of measured and invented parts sum to 1; as the two
are not independent at every pixel, they may leave [0, 1] a little, and are held there.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bands import PriorStd
from .contents import require_same_operator
from .likelihood import Likelihood
from .measured_part import MeasuredPart
from .operators import Blur, LinearOperator, gaussian_psf
from .posterior import Posterior
from .provenance import write_whole

__all__ = ["MeasuredOrConjured", "measured_or_conjured"]

_HIGH_PASS, _WINDOW = 0.75, 2.0
# Values of an image times draws that are split at a time: what does not fit the processor's caches takes longer.
_AT_ONCE = 2**19
_MAPS = ("invented_variance", "invented_detail", "agreement")


@dataclass(frozen=True)
class MeasuredOrConjured:
    """What `measured_or_conjured` finds; every map has values in [0, 1].

    Args:
        invented_variance: share of each value's variance over the draws that is invented, ([m,] C, H, W); 0 where the
            draws do not vary.
        invented_detail: share of the energy of the draws' fine detail around each value that is invented, ([m,] C, H,
            W); 0 where there is none.
        agreement: correlation of the fine detail of two draws around each value, ([m,] C, H, W): 1 where all draws
            show the same, or none has any, 0 where each has its own.
        record: what the split was computed with, tau by band among it, and the shares of the whole images.
        part: W; None where the maps were loaded.
    """

    invented_variance: Tensor = field(repr=False)
    invented_detail: Tensor = field(repr=False)
    agreement: Tensor = field(repr=False)
    record: dict[str, Any]
    part: MeasuredPart | None = field(default=None, repr=False, compare=False)

    def measured(self, x: Tensor) -> Tensor:
        """W x, the part of images x that the measurement fixed, (..., [m,] C, H, W).

        Raises:
            ValueError: if x has another shape, or the maps were loaded, which keeps no operator.
        """
        if self.part is None:
            raise ValueError(
                "A split that was loaded holds maps and no operator: W x is MeasuredPart(likelihood, prior_std)(x)."
            )
        return self.part(x)

    def conjured(self, x: Tensor) -> Tensor:
        """(I - W) x, the rest of images x, (..., [m,] C, H, W); raises as `measured`."""
        return x - self.measured(x)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the maps and the record (as JSON) to an .npz file, whole or not at all.

        Raises:
            ValueError: if the name does not end in .npz.
            FileNotFoundError: if the folder of the file does not exist.
        """
        target = Path(path)
        if target.suffix != ".npz":
            raise ValueError(f"{target.name} does not end in .npz: the maps are written as numpy arrays; add .npz.")
        if not target.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {target.parent} to save {target.name} in: make it first.")
        maps = {name: getattr(self, name).cpu().numpy() for name in _MAPS}
        held = io.BytesIO()
        np.savez_compressed(held, record=np.array(json.dumps(self.record)), **maps)
        write_whole(target, held.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MeasuredOrConjured:
        """Read what `save` wrote: maps and record, without W.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it was not written by `save`.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is not there: expected a file written by save.")
        try:
            with zipfile.ZipFile(path), np.load(Path(path), allow_pickle=False) as held:
                if not {"record", *_MAPS} <= set(held.files):
                    raise ValueError(f"it holds {', '.join(held.files)}")
                variance, detail, agreement = (torch.from_numpy(held[name]) for name in _MAPS)
                return cls(variance, detail, agreement, json.loads(str(held["record"])))
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is no saved split ({error}): expected a file written by save.") from error


def measured_or_conjured(
    posterior: Posterior, likelihood: Likelihood, prior_std: PriorStd = None, *, tol: float = 1e-3
) -> MeasuredOrConjured:
    """Split draws into what the measurement fixed and what the prior invented, and map the shares.

    Draws are read a part at a time, twice or thrice; those that failed count in nothing.

    Args:
        posterior: draws (draws, [m,] C, H, W), at least two.
        likelihood: what they were drawn with: a linear operator, with Gaussian or Poisson noise.
        prior_std: tau, as in `MeasuredPart`; None for photographs in [0, 1].
        tol: as in `MeasuredPart`.

    Raises:
        ValueError: a point estimate or fewer than two draws, draws that are no images or not of this likelihood, an
            operator that is not linear or plainly not that of the draws, or a bad prior_std.
        TypeError: another noise, or a prior_std of another kind.

    >>> from invdiff.noise import GaussianNoise
    >>> from invdiff.operators import Mask, box_mask
    >>> A = Mask(box_mask((1, 8, 8)), (1, 8, 8))
    >>> hidden = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * (box_mask((1, 8, 8)) == 0)
    >>> likelihood = Likelihood(torch.full((1, 8, 8), 0.5), A, GaussianNoise(0.01))
    >>> split = measured_or_conjured(Posterior(0.5 + hidden, {}), likelihood)
    >>> split.invented_variance[0, 0, :3], split.invented_variance[0, 4, 2:6]
    (tensor([0., 0., 0.]), tensor([1., 1., 1., 1.]))
    """
    if posterior.point:
        raise ValueError("A point estimate has no draws to compare: MeasuredPart(likelihood)(x) splits a single image.")
    if posterior.usable < 2:
        raise ValueError(
            f"The split needs at least 2 draws: this posterior has {posterior.usable}; ask sample for more."
        )
    expected = likelihood.operator.in_shape
    if likelihood.batched:
        expected = (likelihood.measurements, *expected)
    if posterior.shape[1:] != expected:
        raise ValueError(
            f"The draws have shape {posterior.shape}, and the likelihood is of images of shape {expected}: pass the "
            "likelihood that they were drawn with."
        )
    if posterior.record.get("operator") is not None:
        require_same_operator(likelihood.operator, posterior.record["operator"])
    if len(likelihood.operator.in_shape) != 3:
        raise ValueError(
            f"x has shape {likelihood.operator.in_shape}: maps are of images (C, H, W); MeasuredPart splits vectors."
        )
    part = MeasuredPart(likelihood, prior_std, posterior=posterior, tol=tol)
    sums = _Sums(posterior, part)
    for draws in _chunks(posterior):
        sums.add(draws)
    return sums.result()


def _chunks(posterior: Posterior) -> Iterator[Tensor]:
    """The draws that did not fail, some at a time, in float64 on the CPU."""
    held: list[Tensor] = []
    for _, draw in posterior.each():
        held.append(draw.detach().to("cpu", torch.float64))
        if (len(held) + 1) * draw.numel() > _AT_ONCE:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


class _Sums:
    """What the maps are made of, summed over draws."""

    def __init__(self, posterior: Posterior, part: MeasuredPart) -> None:
        self.posterior, self.part = posterior, part
        self.mean = posterior.mean().detach().to("cpu", torch.float64)
        self.smooth = _gaussian(_HIGH_PASS, part.in_shape)
        self.window = _gaussian(_WINDOW, part.in_shape)
        zero = torch.zeros_like(self.mean)
        self.variance, self.fixed_variance, self.energy, self.fixed_energy, self.detail = (zero,) * 5
        self.count = zero[..., :1, :1, :1]

    def add(self, draws: Tensor) -> None:
        """Draws (k, [m,] C, H, W); one that failed for a measurement is not a number there, and leaves no trace."""
        fine = draws.isfinite().flatten(-3).all(-1)[..., None, None, None]
        d = torch.where(fine, draws - self.mean, 0.0)
        e = torch.where(fine, draws, 0.0)
        e = e - _each(self.smooth, e)
        fixed_d, fixed_e = self.part(torch.stack([d, e]))
        self.count = self.count + fine.sum(0)
        self.variance = self.variance + (d * d).sum(0)
        self.fixed_variance = self.fixed_variance + (d * fixed_d).sum(0)
        self.energy = self.energy + (e * e).sum(0)
        self.fixed_energy = self.fixed_energy + (e * fixed_e).sum(0)
        self.detail = self.detail + e.sum(0)

    def result(self) -> MeasuredOrConjured:
        """The maps, not a number for a measurement with fewer than two draws."""
        n = self.count
        kept = self.posterior.mean().dtype
        # Squares of differences that rounding alone makes are nothing.
        tiny = n * (8 * torch.finfo(kept).eps * self.mean.nan_to_num().abs().max()) ** 2
        energy, fixed = _each(self.window, self.energy), _each(self.window, self.fixed_energy)
        pairs = _each(self.window, (self.detail**2 - self.energy) / (n - 1).clamp_min(1))
        shares = (
            _share(self.variance - self.fixed_variance, self.variance, tiny, 0.0),
            _share(energy - fixed, energy, tiny, 0.0),
            _share(pairs, energy, tiny, 1.0),
        )
        variance, detail, agreement = (torch.where(n >= 2, values, torch.nan).to(kept) for values in shares)
        record = {
            **self.part.record,
            "draws": self.posterior.usable,
            "dependent": self.posterior.dependent,
            "high_pass": f"1 - Gaussian of {_HIGH_PASS} pixels",
            "window": f"Gaussian of {_WINDOW} pixels",
            "whole": {
                "invented_variance": _whole(self.variance - self.fixed_variance, self.variance),
                "invented_detail": _whole(self.energy - self.fixed_energy, self.energy),
                "agreement": _whole((self.detail**2 - self.energy) / (n - 1).clamp_min(1), self.energy),
            },
        }
        return MeasuredOrConjured(variance, detail, agreement, record, self.part)


def _gaussian(std: float, in_shape: tuple[int, ...]) -> LinearOperator:
    """A Gaussian blur of images that are mirrored at their borders, cut off where it would be larger than they are."""
    full = gaussian_psf(std)
    side = min(full.shape[-1], *in_shape[1:])
    return Blur(gaussian_psf(std, side - (side + 1) % 2), in_shape, boundary="reflect")


def _each(operator: LinearOperator, x: Tensor) -> Tensor:
    return operator.forward(x.reshape(-1, *operator.in_shape)).reshape(x.shape)


def _share(part: Tensor, whole: Tensor, tiny: Tensor, otherwise: float) -> Tensor:
    """part / whole in [0, 1], and `otherwise` where the whole is nothing."""
    there = whole > tiny
    return torch.where(there, (part / torch.where(there, whole, 1.0)).clamp(0, 1), otherwise)


def _whole(part: Tensor, whole: Tensor) -> float:
    """The share of all values together, 0 of nothing."""
    total = float(whole.sum())
    return min(max(float(part.sum()) / total, 0.0), 1.0) if total > 0 else 0.0
