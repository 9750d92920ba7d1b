"""BM3D as a prior, from the optional package `bm3d`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor

from invdiff.priors.base import Prior
from invdiff.priors.smoother import mirror, opponent

__all__ = ["BM3D"]

_MINIMUM = 16  # pixels a side: the package's blocks of 8 need room to be matched
_LICENCE = (
    "invdiff: the package bm3d is (c) Tampere University, for nonprofit noncommercial use only; "
    "see https://webpages.tuni.fi/foi/GCF-BM3D/."
)
_told = False


class BM3D(Prior):
    """Block-matching and 3-D filtering: alike patches are stacked and filtered together (Dabov et al. 2007).

    Colour images go through the package's RGB entry, which matches blocks in the luminance of an opponent colour space;
    any other number of channels is filtered channel by channel. It runs on the CPU, one image after the other, and has
    no gradient. The package's licence allows noncommercial use only; a line on standard error says so once per process.

    Args:
        profile: the package's profile, for example "np" (normal) or "lc" (less computation).

    Raises:
        ValueError: the package is missing.
    """

    name = "bm3d"
    sigma_range = (0.0, 1.0)
    differentiable = False

    def __init__(self, profile: str = "np") -> None:
        self.package = _import()
        self.profile = profile

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([self._one(image, float(level)) for image, level in zip(x, sigma, strict=True)])

    def _one(self, image: Tensor, sigma: float) -> Tensor:
        if sigma == 0:
            return image.clone()
        rows, columns = (-(-max(_MINIMUM - size, 0) // 2) for size in image.shape[-2:])
        padded = mirror(image, rows, columns).double().cpu()
        # The RGB entry divides by the range of each opponent channel: one that is constant has to go the other way.
        spread = opponent(padded[None])[0].flatten(1) if len(image) == 3 else None
        if spread is not None and bool((spread.amax(dim=1) - spread.amin(dim=1) > 1e-9).all()):
            array = self.package.bm3d_rgb(padded.permute(1, 2, 0).numpy(), sigma, profile=self.profile)
            result = torch.from_numpy(array).permute(2, 0, 1)
        else:
            planes = [self.package.bm3d(plane.numpy(), sigma, profile=self.profile) for plane in padded]
            result = torch.stack([torch.from_numpy(plane).reshape(padded.shape[-2:]) for plane in planes])
        result = result[..., rows : rows + image.shape[-2], columns : columns + image.shape[-1]]
        return result.to(image)


def _import() -> Any:
    """The package, with its licence told once per process."""
    global _told
    try:
        package = importlib.import_module("bm3d")
    except ImportError as error:
        raise ValueError(
            "The prior bm3d needs the optional package bm3d (noncommercial use only); "
            "install it with: pip install 'invdiff[bm3d]'."
        ) from error
    if not _told:
        print(_LICENCE, file=sys.stderr)
        _told = True
    return package
