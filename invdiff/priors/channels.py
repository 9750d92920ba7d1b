"""Priors on images of another number of channels than theirs, at the noise level that is right for them.

**Gray through a colour prior.** Copying a noisy gray image y = x + sigma n into three channels gives noise that is the
same in all of them, and no colour denoiser was trained on such: along (1, 1, 1) / sqrt(3) its standard deviation is
sqrt(3) sigma, across it none. Adding noise of standard deviation sqrt(3) sigma across makes it white at sqrt(3) sigma,
exactly what the prior was made for, and the gray value, the mean of the channels, is left as it was:

    D_gray(y, sigma) = mean_c D(y (1, 1, 1) + sqrt(3) sigma P e, sqrt(3) sigma)_c,   P = I - 1 1^T / 3.

The draw e is one fixed pattern per image size: the same for every member and every call, so the result is a function
of y. PSNR on six gray crops of CBSD68 (`benchmarks/channel_priors.py`, in dB):

    sigma * 255                                      5      10      15      25      40
    noisy                                        34.15   28.13   24.60   20.17   16.08
    FFDNet, copied, told sigma                   35.65   30.22   27.05   23.07   19.45
    FFDNet, copied, told 1.6 sigma               36.98   32.70   30.50   28.00   25.88
    FFDNet, copied, told sqrt(3) sigma           36.96   32.68   30.45   27.92   25.79
    FFDNet, noise made white (this module)       36.98   32.70   30.48   27.97   25.86
    blind DnCNN, copied                          34.43   28.32   24.77   20.34   16.30
    blind DnCNN, noise made white (this module)  36.97   32.72   30.52   27.97   25.44
    DnCNN trained on gray at 25                                          28.15

Telling a prior a higher level comes as close where the prior listens to sigma, but a blind one does not, and it fails.

**Colour through a gray prior.** The image is rotated to (sum, red - blue, magenta - green), orthonormally, so that the
noise stays white. The sum is divided by 3, which makes it a gray image in [0, 1] with noise sigma / sqrt(3), and the
two differences keep sigma and are shifted to 0.5. Same crops in colour, with FFDNet used as a gray prior as above:

    sigma * 255                                      5      10      15      25      40
    each channel by itself                       36.92   32.64   30.41   27.93   25.86
    rotated (this module)                        39.72   35.29   32.89   30.08   27.79
    FFDNet on colour, for comparison             39.68   35.34   32.97   30.21   27.94

A prior that does not go down to sigma / sqrt(3), such as one of a single level, takes each channel by itself.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache

import torch
from torch import Tensor

from invdiff.priors.base import Prior
from invdiff.priors.smoother import opponent

__all__ = ["ColourThroughGray", "GrayThroughColour", "match_channels"]


def match_channels(prior: Prior, channels: int) -> Prior:
    """Return a prior for images of `channels` channels: this one where it takes them, else this one in an adapter.

    Raises:
        ValueError: neither the prior nor the images have a single channel.
    """
    if prior.channels is None or prior.channels == channels:
        return prior
    if prior.channels == 3 and channels == 1:
        return GrayThroughColour(prior)
    if prior.channels == 1:
        return ColourThroughGray(prior, channels)
    raise ValueError(
        f"{prior.name} takes images of {prior.channels} channels and cannot serve {channels}; use a prior for "
        f"{channels} channels, for gray, or for any number."
    )


class _Adapted(Prior):
    """What both adapters share: they hold a prior and move with it."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.differentiable = prior.differentiable

    @abstractmethod
    def around(self, prior: Prior) -> Prior:
        """The same adapter around another copy of the prior."""

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str | None = None,
        compile: bool | None = None,
    ) -> Prior:
        moved = self.prior.to(device, dtype, precision=precision, compile=compile)
        return self if moved is self.prior else self.around(moved)


class GrayThroughColour(_Adapted):
    """A colour prior on gray images: `mean_c D(y (1, 1, 1) + sqrt(3) sigma P e, sqrt(3) sigma)_c`, see the module.

    Its range of sigma is that of the prior divided by sqrt(3).

    Args:
        prior: a prior of three channels.
    """

    channels = 1

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.name = f"{prior.name} on gray"
        low, high = prior.sigma_range
        self.sigma_range = (low / math.sqrt(3), high / math.sqrt(3))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = math.sqrt(3) * sigma
        if math.isfinite(self.prior.sigma_range[1]):  # the last bit of sqrt(3) * (high / sqrt(3)) may lie above high
            level = level.clamp(max=self.prior.sigma_range[1])
        across = chroma_pattern(*x.shape[-2:]).to(x)
        return self.prior(x + level[:, None, None, None] * across, level).mean(dim=1, keepdim=True)

    def around(self, prior: Prior) -> Prior:
        return GrayThroughColour(prior)


class ColourThroughGray(_Adapted):
    """A gray prior on images of several channels, rotated first where there are three, see the module.

    Args:
        prior: a prior of one channel.
        channels: image channels.
    """

    def __init__(self, prior: Prior, channels: int = 3) -> None:
        super().__init__(prior)
        self.name = f"{prior.name} on {channels} channels"
        self.channels = channels
        low, high = prior.sigma_range
        self.rotates = channels == 3 and low * math.sqrt(3) < high
        self.sigma_range = (low * math.sqrt(3), high) if self.rotates else (low, high)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if not self.rotates:
            flat = x.reshape(-1, 1, *x.shape[-2:])
            return self.prior(flat, sigma.repeat_interleave(x.shape[1])).reshape(x.shape)
        # One call for all three planes: (sum / 3, difference + 0.5, difference + 0.5) of every member.
        scale = x.new_tensor([1 / math.sqrt(3), 1.0, 1.0])[:, None, None]
        shift = x.new_tensor([0.0, 0.5, 0.5])[:, None, None]
        planes = (opponent(x) * scale + shift).reshape(-1, 1, *x.shape[-2:])
        levels = (sigma[:, None] * scale.flatten()).flatten()
        return opponent((self.prior(planes, levels).reshape(x.shape) - shift) / scale, inverse=True)

    @property
    def receptive_radius(self) -> int | None:
        """That of the gray prior: the change of colours is one of single pixels."""
        return self.prior.receptive_radius

    @property
    def stride(self) -> int:
        """That of the gray prior."""
        return self.prior.stride

    def around(self, prior: Prior) -> Prior:
        return ColourThroughGray(prior, self.channels or 1)


@lru_cache(maxsize=4)
def chroma_pattern(height: int, width: int) -> Tensor:
    """A fixed draw of white noise (1, 3, height, width) of unit variance without its part along (1, 1, 1)."""
    draw = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return draw - draw.mean(dim=1, keepdim=True)
